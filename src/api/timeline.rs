//! `GET /api/v1/builds/{id}/trace.json`: a build, its VM and its slot in Chrome's trace event format, which Perfetto and
//! `chrome://tracing` open. Fields are added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::build::spec::BuildResult;
use crate::clock::UnixMicros;
use crate::ids::BuildId;

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChromeTrace {
    pub trace_events: Vec<TraceEvent>,
    /// How viewers are to show times; the events themselves are in microseconds.
    pub display_time_unit: String,
    pub other_data: TraceSummary,
}

impl ChromeTrace {
    /// What viewers take for granted, and what the figures promise.
    ///
    /// # Errors
    /// The first thing that is not so.
    pub fn audit(&self) -> Result<(), String> {
        let mut open: BTreeMap<(u32, u32), Vec<(u64, u64)>> = BTreeMap::new();
        for event in self.trace_events.iter().filter(|event| event.ph == "X") {
            let dur = event.dur.ok_or_else(|| format!("`{}` has no duration", event.name))?;
            let (from, to) = (event.ts, event.ts.saturating_add(dur));
            let around = open.entry((event.pid, event.tid)).or_default();
            while around.last().is_some_and(|(_, end)| *end <= from && *end < to) {
                around.pop();
            }
            if around.last().is_some_and(|(begin, end)| from < *begin || (*end < to && from < *end)) {
                return Err(format!("`{}` crosses the one before it", event.name));
            }
            around.push((from, to));
        }
        let summed: u64 = self.other_data.owners.iter().map(|share| share.us).sum();
        let total = self.other_data.total_us;
        if summed == total {
            Ok(())
        } else {
            Err(format!("shares sum up to {summed}, and the whole is {total}"))
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceEvent {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cat: Option<String>,
    /// `X`: something with a beginning and a duration; `i`: something that happened; `M`: a name.
    pub ph: String,
    /// Microseconds after `origin_us`.
    pub ts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dur: Option<u64>,
    pub pid: u32,
    pub tid: u32,
    /// Of what happened: how far it is drawn, `t` for its thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub args: Map<String, Value>,
}

/// Where the time went, in figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceSummary {
    pub build: BuildId,
    pub project: String,
    pub pool: String,
    /// Absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<BuildResult>,
    /// What `ts` counts from, since 1970.
    pub origin_us: UnixMicros,
    /// From the submission to the result, or to now.
    pub total_us: u64,
    /// What of it nobody answers for.
    pub unaccounted_us: u64,
    /// All of it, by who had it.
    pub owners: Vec<Share>,
    /// The VMs that it had, in that order.
    pub vms: Vec<VmShares>,
    pub uploads: Vec<Share>,
    /// What is missing, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What one had of the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub owner: String,
    pub us: u64,
    /// How often.
    pub times: u32,
}

/// A VM's life, and its slot around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmShares {
    pub vm: String,
    /// As `linux/0`.
    pub slot: String,
    pub phases: Vec<Share>,
    /// From the guest before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Turn>,
    /// To the guest after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Turn>,
}

/// A slot passes from one guest to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// The other one.
    pub vm: String,
    /// From the death of the one to the process of the other; absent where one of them is not known, or still to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_us: Option<u64>,
    /// Whether the later one was cloned when the earlier one died.
    pub cloned_ahead: bool,
    /// From the death of the one until the other was warm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_after_us: Option<u64>,
}
