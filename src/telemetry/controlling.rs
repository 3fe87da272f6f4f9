//! What happens between us and controllers, as typed events. No key and no token is in any of them.

use std::time::Duration;

use metrics::{counter, gauge};
use tracing::{debug, info, warn};

use super::names;
use crate::ids::BuildId;

/// A call to a controller: a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Register,
    Unregister,
    Poll,
    Status,
    Abandon,
    Authenticate,
    Source,
    Certificates,
    Heartbeat,
    Telemetry,
    Log,
    Result,
}

impl Call {
    /// Every call.
    pub const ALL: [Self; 12] = [
        Self::Register,
        Self::Unregister,
        Self::Poll,
        Self::Status,
        Self::Abandon,
        Self::Authenticate,
        Self::Source,
        Self::Certificates,
        Self::Heartbeat,
        Self::Telemetry,
        Self::Log,
        Self::Result,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Unregister => "unregister",
            Self::Poll => "poll",
            Self::Status => "status",
            Self::Abandon => "abandon",
            Self::Authenticate => "authenticate",
            Self::Source => "source",
            Self::Certificates => "certificates",
            Self::Heartbeat => "heartbeat",
            Self::Telemetry => "telemetry",
            Self::Log => "log",
            Self::Result => "result",
        }
    }
}

/// How a job ended for its controller: a label, and a word in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its result is with the controller.
    Success,
    /// That it failed is with the controller.
    Failure,
    /// It was cancelled over there.
    Cancelled,
    /// Another worker has it, or has brought it home.
    Overtaken,
    /// The controller does not know it any more.
    Lost,
    /// It went back to the controller's queue.
    Abandoned,
    /// It was never ours: a claim that did not hold.
    Ghost,
    /// Nobody is configured to deliver it any more.
    Orphaned,
    /// It could not be delivered for too long.
    Undelivered,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 9] = [
        Self::Success,
        Self::Failure,
        Self::Cancelled,
        Self::Overtaken,
        Self::Lost,
        Self::Abandoned,
        Self::Ghost,
        Self::Orphaned,
        Self::Undelivered,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Overtaken => "overtaken",
            Self::Lost => "lost",
            Self::Abandoned => "abandoned",
            Self::Ghost => "ghost",
            Self::Orphaned => "orphaned",
            Self::Undelivered => "undelivered",
        }
    }
}

/// A controller answers, and did not before.
pub struct ControllerReached<'a> {
    pub controller: &'a str,
}
impl ControllerReached<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        gauge!(names::CONTROLLER_CONNECTED, "controller" => self.controller.to_owned()).set(1.0);
        info!(controller = self.controller, "controller connected");
    }
}

/// A controller does not answer, or refuses us, and did not before.
pub struct ControllerFailed<'a> {
    pub controller: &'a str,
    pub error: &'a str,
    pub hint: Option<&'a str>,
}
impl ControllerFailed<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        gauge!(names::CONTROLLER_CONNECTED, "controller" => self.controller.to_owned()).set(0.0);
        warn!(
            controller = self.controller,
            error = self.error,
            hint = self.hint,
            next = "it is asked again, with growing pauses",
            "controller fails"
        );
    }
}

/// A lane has a worker of its own with the controller.
pub struct LaneRegistered<'a> {
    pub controller: &'a str,
    pub lane: u16,
    pub worker: &'a str,
    pub dialect: &'static str,
}
impl LaneRegistered<'_> {
    /// Logs it.
    pub fn emit(self) {
        let Self { controller, lane, worker, dialect } = self;
        info!(controller, lane, worker, dialect, "lane registered");
    }
}

/// A lane left the controller: it takes no more builds.
pub struct LaneLeft<'a> {
    pub controller: &'a str,
    pub lane: u16,
}
impl LaneLeft<'_> {
    /// Logs it.
    pub fn emit(self) {
        info!(controller = self.controller, lane = self.lane, "lane unregistered");
    }
}

/// Lanes that have a build.
pub struct LanesBusy<'a> {
    pub controller: &'a str,
    pub busy: u16,
}
impl LanesBusy<'_> {
    /// Sets the gauge.
    pub fn emit(self) {
        gauge!(names::CONTROLLER_LANES_BUSY, "controller" => self.controller.to_owned())
            .set(f64::from(self.busy));
    }
}

/// A job is a build of ours.
pub struct JobAccepted<'a> {
    pub controller: &'a str,
    pub job: &'a str,
    pub lane: u16,
    pub build: BuildId,
    /// It was one before we were started.
    pub again: bool,
}
impl JobAccepted<'_> {
    /// Logs it.
    pub fn emit(self) {
        let Self { controller, job, lane, build, again } = self;
        info!(controller, job, lane, %build, again, "job accepted");
    }
}

/// A job is over for its controller.
pub struct JobEnded<'a> {
    pub controller: &'a str,
    pub job: &'a str,
    pub build: Option<BuildId>,
    pub outcome: Outcome,
    /// What the controller was told, or why it was told nothing.
    pub why: &'a str,
}
impl JobEnded<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let (controller, outcome) = (self.controller, self.outcome.as_str());
        counter!(names::CONTROLLER_JOBS, "controller" => controller.to_owned(), "outcome" => outcome)
            .increment(1);
        let (job, build, why) = (self.job, self.build.map(|id| id.0), self.why);
        match self.outcome {
            Outcome::Success | Outcome::Failure | Outcome::Cancelled => {
                info!(controller, job, build, outcome, why, "job ended");
            }
            Outcome::Overtaken
            | Outcome::Lost
            | Outcome::Abandoned
            | Outcome::Ghost
            | Outcome::Orphaned
            | Outcome::Undelivered => warn!(controller, job, build, outcome, why, "job ended"),
        }
    }
}

/// A result was taken.
pub struct ResultBrought<'a> {
    pub controller: &'a str,
    pub job: &'a str,
    pub file: &'a str,
    pub bytes: u64,
    pub sha256: &'a str,
}
impl ResultBrought<'_> {
    /// Logs it.
    pub fn emit(self) {
        let Self { controller, job, file, bytes, sha256 } = self;
        info!(controller, job, file, bytes, sha256, "result brought to the controller");
    }
}

/// A result was not taken, or nobody knows whether it was, and is brought again.
pub struct ResultDelayed<'a> {
    pub controller: &'a str,
    pub job: &'a str,
    pub error: &'a str,
    pub pause: Duration,
}
impl ResultDelayed<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let Self { controller, job, error, pause } = self;
        counter!(names::CONTROLLER_RESULT_RETRIES, "controller" => controller.to_owned()).increment(1);
        warn!(controller, job, error, pause_s = pause.as_secs(), "result not brought to the controller yet");
    }
}

/// A call failed.
pub struct CallFailed<'a> {
    pub controller: &'a str,
    pub call: Call,
    pub error: &'a str,
}
impl CallFailed<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let (controller, call, error) = (self.controller, self.call.as_str(), self.error);
        counter!(names::CONTROLLER_CALLS_FAILED, "controller" => controller.to_owned(), "call" => call)
            .increment(1);
        debug!(controller, call, error, "call to the controller failed");
    }
}

/// Sets every label set of a controller to zero.
pub(super) fn zero(controller: &str) {
    let controller = || controller.to_owned();
    gauge!(names::CONTROLLER_CONNECTED, "controller" => controller()).increment(0.0);
    gauge!(names::CONTROLLER_LANES_BUSY, "controller" => controller()).increment(0.0);
    for outcome in Outcome::ALL {
        counter!(names::CONTROLLER_JOBS, "controller" => controller(), "outcome" => outcome.as_str())
            .absolute(0);
    }
    for call in Call::ALL {
        counter!(names::CONTROLLER_CALLS_FAILED, "controller" => controller(), "call" => call.as_str())
            .absolute(0);
    }
    counter!(names::CONTROLLER_RESULT_RETRIES, "controller" => controller()).absolute(0);
}
