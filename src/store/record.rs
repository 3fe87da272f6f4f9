//! A build as the journal keeps it. No secret is in it: their values lie beside it, sealed, until it is over.

use serde::{Deserialize, Serialize};

use crate::api::wire::{ArtifactView, BuildState, BuildView, CacheView, Claim, PhaseView};
use crate::build::place::{Place, Verdict};
use crate::build::spec::{BuildResult, BuildSpec};
use crate::clock::{UnixMicros, UnixMillis};
use crate::ids::BuildId;

/// A build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecord {
    pub id: BuildId,
    pub spec: BuildSpec,
    /// The name of its source's file in the spool.
    pub source: String,
    /// Attempts begun; 0 before the first.
    pub attempt: u16,
    /// Whether it holds a VM now.
    pub running: bool,
    pub result: Option<BuildResult>,
    pub reason: Option<String>,
    pub vm: Option<String>,
    pub claim: Option<Claim>,
    pub submitted_ms: UnixMillis,
    pub finished_ms: Option<UnixMillis>,
    /// For its timeline; builds of earlier daemons have none of these.
    #[serde(default, skip_serializing_if = "Stamps::is_empty")]
    pub stamps: Stamps,
    pub phases: Vec<PhaseView>,
    pub artifacts: Vec<ArtifactView>,
    /// What became of its caches. Journals of earlier daemons have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<CacheView>,
    /// Where its attempt is; `None` while nothing of the user's has run in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// How it will end, written before its guest is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Somebody has asked to cancel it, and was told that it will be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_asked: bool,
    /// Whether a delivery is still owed. Read from the outbox, never written.
    #[serde(skip)]
    pub owed: bool,
}

/// A build's ends in microseconds, by a clock that nobody sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamps {
    /// Its source had arrived, and was about to be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrived_us: Option<UnixMicros>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted_us: Option<UnixMicros>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_us: Option<UnixMicros>,
}

impl Stamps {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl BuildRecord {
    /// A build that was just received; the journal gives it its number.
    pub fn received(spec: BuildSpec, source: String, at: UnixMillis) -> Self {
        Self {
            id: BuildId(0),
            spec,
            source,
            attempt: 0,
            running: false,
            result: None,
            reason: None,
            vm: None,
            claim: None,
            submitted_ms: at,
            finished_ms: None,
            stamps: Stamps::default(),
            phases: Vec::new(),
            artifacts: Vec::new(),
            caches: Vec::new(),
            place: None,
            verdict: None,
            cancel_asked: false,
            owed: false,
        }
    }

    /// As it goes over HTTP.
    pub fn view(&self, waiting_for: Option<String>) -> BuildView {
        let state = match (self.result, self.running) {
            (Some(_), _) if self.owed => BuildState::Uploading,
            (Some(_), _) => BuildState::Done,
            (None, true) => BuildState::Running,
            (None, false) => BuildState::Queued,
        };
        BuildView {
            id: self.id,
            project: self.spec.project.clone(),
            pool: self.spec.pool.to_string(),
            state,
            result: self.result,
            reason: self.reason.clone(),
            waiting_for: waiting_for.filter(|_| state == BuildState::Queued),
            vm: self.vm.clone(),
            claim: self.claim,
            attempt: self.attempt,
            submitted_ms: self.submitted_ms,
            finished_ms: self.finished_ms,
            phases: self.phases.clone(),
            artifacts: self.artifacts.clone(),
            caches: self.caches.clone(),
            failure: None,
            guest: None,
        }
    }
}
