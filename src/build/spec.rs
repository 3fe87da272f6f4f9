//! What a build is asked to be, complete and checked: the request, the project's file and the daemon's defaults merged.
//! It is journalled as it stands here, so it holds no secret: only their names.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::ids::PoolName;
use crate::signing::Signer;

/// A complete build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSpec {
    /// For people and for metrics: the project's name.
    pub project: String,
    pub pool: PoolName,
    /// The pipeline that its steps are from. Journals of earlier daemons have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// What its log begins with: what was chosen for it, and why. Journals of earlier daemons have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub said: Vec<String>,
    pub steps: Vec<Step>,
    pub env: BTreeMap<String, String>,
    /// Names only; the values live in memory, and sealed in the journal.
    pub secrets: Vec<String>,
    /// Who signs, where it signs; the certificate and its key live where the secrets' values do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<Signer>,
    /// Globs relative to the source's root.
    pub artifacts: Vec<String>,
    /// What it wants restored, and leaves for others. Journals of earlier daemons have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<Cache>,
    /// For the whole attempt, from the lease to the last artifact.
    #[serde(with = "crate::build::spec::human")]
    pub timeout: Duration,
    /// How often it is attempted again when the system was at fault.
    pub retries: u16,
}

/// One command of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    /// For the guest's login shell.
    pub command: String,
    /// Relative to the source's root; empty is the root.
    pub dir: String,
    /// Of each run of it.
    #[serde(with = "crate::build::spec::human")]
    pub timeout: Duration,
    /// How often it is run again in the same VM when it exits with another code than 0. Journals of earlier daemons have none.
    #[serde(default)]
    pub retries: u16,
}

/// The words for how a build ended; a label of metrics, the field in JSON, and the base of the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildResult {
    /// Every step exited 0 and every artifact was there.
    Success,
    /// The user's: a step failed, an artifact was missing.
    Failure,
    /// The system's: nothing that the user could have done.
    Error,
    /// A step's or the build's time was over.
    Timeout,
    /// Somebody cancelled it.
    Cancellation,
}

impl BuildResult {
    /// Every result, for metrics that start at zero.
    pub const ALL: [Self; 5] = [Self::Success, Self::Failure, Self::Error, Self::Timeout, Self::Cancellation];

    /// The word for labels and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Cancellation => "cancellation",
        }
    }
}

/// Durations as text (`90s`), in JSON and TOML.
pub mod human {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes `1m 30s`.
    pub fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&humantime::format_duration(*d))
    }

    /// Reads what [`serialize`] writes, and any other sum of humantime's units.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        humantime::parse_duration(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }

    /// The same for a value that may be absent.
    pub mod option {
        use std::time::Duration;

        use serde::{Deserialize, Deserializer, Serializer};

        /// Writes `1m 30s`, or nothing.
        pub fn serialize<S: Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
            match d {
                Some(d) => super::serialize(d, s),
                None => s.serialize_none(),
            }
        }

        /// Reads a duration that was given.
        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
            let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
            humantime::parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
        }
    }
}
