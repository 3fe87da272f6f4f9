//! What a controller has in its database, and what is done with it in both dialects.

use std::collections::{BTreeMap, VecDeque};

use serde_json::Value;

use super::Bugs;

/// The text of its sweep.
pub const SWEPT: &str = "Build timeout - no heartbeat from worker for 125s";

/// A build.
#[derive(Clone, Default)]
pub struct Build {
    pub id: String,
    pub status: String,
    pub worker: Option<String>,
    pub error: Option<String>,
    pub source: Vec<u8>,
    pub certificates: Option<Vec<u8>>,
    pub result: Option<Vec<u8>>,
    pub log: Vec<(String, String)>,
    pub heartbeats: u32,
    pub telemetry: Vec<Value>,
    /// Times that it was told a result.
    pub told: u32,
    /// Times that its source was fetched.
    pub fetched: u32,
    pub otp: String,
    pub token: String,
}

impl std::fmt::Debug for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Build")
            .field("status", &self.status)
            .field("worker", &self.worker)
            .field("error", &self.error)
            .field("told", &self.told)
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

impl Build {
    /// Whether nothing more is to come.
    pub fn over(&self) -> bool {
        ["completed", "failed", "cancelled"].contains(&self.status.as_str())
    }

    /// The messages of its log.
    pub fn lines(&self) -> Vec<&str> {
        self.log.iter().map(|(_, message)| message.as_str()).collect()
    }
}

/// Everything.
#[derive(Debug, Default)]
pub struct Book {
    pub bugs: Bugs,
    pub builds: BTreeMap<String, Build>,
    pub queue: VecDeque<String>,
    /// Workers, and their tokens where there are any.
    pub workers: BTreeMap<String, String>,
    /// What each worker is believed to do.
    pub active: BTreeMap<String, String>,
    /// A ghost is offered from the second question on.
    pub haunted: BTreeMap<String, String>,
    pub unregistered: Vec<String>,
    pub abandoned: Vec<String>,
    pub calls: Vec<String>,
    pub made: u32,
}

impl Book {
    /// A name that nothing else has.
    pub fn name(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("{kind}_{:03}-Xy", self.made)
    }

    /// A build that waits.
    pub fn submit(&mut self, source: Vec<u8>, certificates: Option<Vec<u8>>) -> String {
        let id = self.name("build");
        let (otp, token) = (format!("otp-of-{id}"), format!("token-of-{id}"));
        let build = Build {
            id: id.clone(),
            status: "pending".into(),
            source,
            certificates,
            otp,
            token,
            ..Build::default()
        };
        self.builds.insert(id.clone(), build);
        self.queue.push_back(id.clone());
        id
    }

    /// A build, to be changed.
    pub fn of(&mut self, id: &str) -> &mut Build {
        self.builds.get_mut(id).expect("a build")
    }

    /// Nobody has it any more.
    pub fn drop_job(&mut self, id: &str) {
        self.active.retain(|_, job| job != id);
        self.haunted.retain(|_, job| job != id);
    }

    /// Its client cancels it. The worker is not told.
    pub fn cancel(&mut self, id: &str, status: &str) {
        let build = self.of(id);
        (build.status, build.worker) = (status.into(), None);
        build.error = Some("Build cancelled by user".into());
        self.drop_job(id);
    }

    /// No heartbeat was noted for too long. The worker is not told.
    pub fn sweep(&mut self, id: &str) {
        let build = self.of(id);
        (build.status, build.worker, build.error) = ("failed".into(), None, Some(SWEPT.into()));
        self.drop_job(id);
    }

    /// Tells of a call that was made.
    pub fn called(&self, call: &str) -> usize {
        self.calls.iter().filter(|c| c.contains(call)).count()
    }

    /// A worker's job, if it has one.
    pub fn job_of(&self, worker: &str) -> Option<&str> {
        self.active.get(worker).map(String::as_str)
    }

    /// The next that waits, whether it does so still or not.
    pub fn next(&mut self) -> Option<String> {
        while let Some(id) = self.queue.pop_front() {
            if self.bugs.ghosts || self.of(&id).status == "pending" {
                return Some(id);
            }
        }
        None
    }

    /// A result came.
    pub fn result(&mut self, id: &str, file: Option<Vec<u8>>, error: Option<String>) {
        let build = self.of(id);
        build.told += 1;
        match file {
            Some(bytes) => {
                build.status = "completed".into();
                build.result = Some(bytes);
            }
            None => {
                build.status = "failed".into();
                build.error = Some(error.unwrap_or_else(|| "Build failed".into()));
            }
        }
        self.drop_job(id);
    }

    /// Whether this result is answered with an error, though it was stored.
    pub fn fails_after(&mut self) -> bool {
        let fails = self.bugs.results_fail_after > 0;
        self.bugs.results_fail_after = self.bugs.results_fail_after.saturating_sub(1);
        fails
    }

    /// Whether this result is not even looked at.
    pub fn fails_before(&mut self) -> bool {
        let fails = self.bugs.results_fail_before > 0;
        self.bugs.results_fail_before = self.bugs.results_fail_before.saturating_sub(1);
        fails
    }

    /// Notes lines, or does not.
    pub fn log(&mut self, id: &str, lines: Vec<(String, String)>) -> bool {
        if self.bugs.logs_fail > 0 {
            self.bugs.logs_fail -= 1;
            return false;
        }
        self.of(id).log.extend(lines);
        true
    }
}
