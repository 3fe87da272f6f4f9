//! What happens, as typed events. `emit` logs and counts in one place, so that the two cannot tell different stories.

mod golden;

use std::time::Duration;

pub use golden::{GoldenFailed, GoldenMade, ResumeFellBack};
use metrics::{counter, gauge, histogram};
use tracing::{debug, error, info, warn};

use super::names;
use crate::api::wire::{Claim, ReloadView};
use crate::build::spec::BuildResult;
use crate::clock::UnixMillis;
use crate::ids::{BuildId, PoolName};
use crate::runtime::{Fault, Verb, VmName};
use crate::vm::state::{BirthPhase, VmPhase};

/// The phases of a build, in their order: labels and names in JSON.
pub const BUILD_PHASES: [&str; 11] = [
    "queue",
    "probe",
    "source",
    "cache_restore",
    "signing",
    "step",
    "signing_removal",
    "artifacts",
    "cache_save",
    "teardown",
    "upload",
];

/// Why a VM was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetireReason {
    /// Its build is over: the normal end.
    Used,
    /// It failed.
    Failed,
    /// It was warm for longer than the pool allows.
    Aged,
    /// More were idle than the pool keeps.
    Surplus,
    /// Another pool's build needed its place.
    Evicted,
    /// The pool is drained.
    Drained,
    /// The configuration has left it behind.
    Outdated,
    /// The daemon stops.
    Stopping,
}

impl RetireReason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Used,
        Self::Failed,
        Self::Aged,
        Self::Surplus,
        Self::Evicted,
        Self::Drained,
        Self::Outdated,
        Self::Stopping,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Failed => "failed",
            Self::Aged => "aged",
            Self::Surplus => "surplus",
            Self::Evicted => "evicted",
            Self::Drained => "drained",
            Self::Outdated => "outdated",
            Self::Stopping => "stopping",
        }
    }
}

/// What became of a VM that a build had under an earlier daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdoptionEnd {
    /// Its build goes on in it.
    Adopted,
    /// It fits neither its pool nor the host any more: it goes.
    Refused,
    /// It was not found again: it goes.
    Failed,
}

impl AdoptionEnd {
    /// Every ending.
    pub const ALL: [Self; 3] = [Self::Adopted, Self::Refused, Self::Failed];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Adopted => "adopted",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// A VM that a build had under an earlier daemon was taken up, or was not.
pub struct VmAdopted<'a> {
    pub build: BuildId,
    pub vm: &'a VmName,
    pub result: AdoptionEnd,
    /// Why not; empty when it was.
    pub why: &'a str,
}
impl VmAdopted<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let (pool, result) = (self.vm.pool.to_string(), self.result.as_str());
        counter!(names::VMS_ADOPTED, "pool" => pool, "result" => result).increment(1);
        match self.result {
            AdoptionEnd::Adopted => {
                info!(build = %self.build, vm = %self.vm, "vm adopted, its build goes on")
            }
            AdoptionEnd::Refused | AdoptionEnd::Failed => {
                warn!(build = %self.build, vm = %self.vm, why = self.why, "vm not adopted, its build is attempted again");
            }
        }
    }
}

/// What the janitor did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JanitorAction {
    /// An orphan of ours was stopped and deleted.
    Removed,
    /// An orphan of ours could not be removed.
    RemovalFailed,
    /// A name that starts like ours and is not: reported, left alone.
    Malformed,
    /// A VM in the books whose process or files are gone: its actor was told.
    Vanished,
    /// A VM that could not be removed before: its removal was tried again.
    TriedAgain,
}

impl JanitorAction {
    /// Every action.
    pub const ALL: [Self; 5] =
        [Self::Removed, Self::RemovalFailed, Self::Malformed, Self::Vanished, Self::TriedAgain];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::RemovalFailed => "removal_failed",
            Self::Malformed => "malformed",
            Self::Vanished => "vanished",
            Self::TriedAgain => "tried_again",
        }
    }
}

/// The daemon serves.
pub struct DaemonStarted<'a> {
    pub address: std::net::SocketAddr,
    pub home: &'a std::path::Path,
    pub runtime: &'a str,
    pub pools: usize,
}
impl DaemonStarted<'_> {
    /// Logs it.
    pub fn emit(self) {
        info!(address = %self.address, home = %self.home.display(), runtime = self.runtime, pools = self.pools,
            version = env!("CARGO_PKG_VERSION"), "daemon started");
    }
}

/// The daemon was asked to end, and lets what runs go on first.
pub struct DaemonDraining {
    pub limit: Duration,
    /// Builds that hold a VM.
    pub running: usize,
}
impl DaemonDraining {
    /// Logs it.
    pub fn emit(self) {
        info!(
            builds_running = self.running,
            limit_s = self.limit.as_secs(),
            next = "a second signal stops at once, and the next start attempts again what it cuts short",
            "daemon draining: no more builds are taken, those that run go on to their end"
        );
    }
}

/// The daemon ends: what still runs is cut short, and every VM is taken away.
pub struct DaemonStopping {
    /// Why it does not wait, or wait any longer.
    pub why: &'static str,
    /// Builds that are cut short.
    pub running: usize,
}
impl DaemonStopping {
    /// Logs it.
    pub fn emit(self) {
        info!(
            why = self.why,
            builds_cut_short = self.running,
            next = "a further signal exits at once, and the next start takes the VMs away that are left",
            "daemon stopping: VMs are taken away"
        );
    }
}

/// The daemon leaves with its VMs still there.
pub struct DaemonCut {
    pub code: i32,
}
impl DaemonCut {
    /// Logs it.
    pub fn emit(self) {
        warn!(code = self.code, hint = "the next start takes away what is left", "daemon exits at once");
    }
}

/// An operator emptied the daemon, or let it go on.
pub struct DrainChanged {
    pub draining: bool,
}
impl DrainChanged {
    /// Logs it.
    pub fn emit(self) {
        if self.draining {
            info!(
                next = "`preheat resume` goes on; a restart does not",
                "draining: no builds are taken or begun, idle VMs are taken away"
            );
        } else {
            info!("no longer draining");
        }
    }
}

/// Another configuration is in force.
pub struct ConfigReloaded<'a> {
    pub view: &'a ReloadView,
}
impl ConfigReloaded<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        gauge!(names::CONFIG_RELOAD_OK).set(1.0);
        gauge!(names::CONFIG_RELOAD_TIME).set(UnixMillis::now().as_seconds());
        let ReloadView { changes, pools_added, pools_removed, builds_ended, warnings } = self.view;
        info!(changes = changes.len(), pools_added = ?pools_added, pools_removed = ?pools_removed, builds_ended,
            "configuration reloaded");
        for change in changes {
            info!(
                key = change.key,
                from = change.from,
                to = change.to,
                applies = change.applies,
                "configuration changed"
            );
        }
        for warning in warnings {
            warn!(warning, "configuration");
        }
    }
}

/// A configuration has a mistake, and the one before stays in force.
pub struct ConfigRefused<'a> {
    pub mistakes: &'a [String],
}
impl ConfigRefused<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        gauge!(names::CONFIG_RELOAD_OK).set(0.0);
        for mistake in self.mistakes {
            error!(mistake, "configuration refused");
        }
        error!(
            mistakes = self.mistakes.len(),
            hint = "correct it and reload; `preheat config check` names every mistake",
            "the configuration before stays in force"
        );
    }
}

/// A clone was begun.
pub struct VmCreated<'a> {
    pub vm: &'a VmName,
}
impl VmCreated<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        counter!(names::VMS_CREATED, "pool" => self.vm.pool.to_string()).increment(1);
        debug!(vm = %self.vm, "vm created");
    }
}

/// A phase of a VM's birth ended well.
pub struct VmPhaseEnded<'a> {
    pub vm: &'a VmName,
    pub phase: BirthPhase,
    pub took: Duration,
}
impl VmPhaseEnded<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let (pool, phase) = (self.vm.pool.to_string(), self.phase.as_str());
        histogram!(names::VM_BOOT_PHASE_SECONDS, "pool" => pool, "phase" => phase).record(self.took);
        debug!(vm = %self.vm, phase, took_ms = self.took.as_millis() as u64, "vm phase ended");
    }
}

/// A VM is warm.
pub struct VmWarmed<'a> {
    pub vm: &'a VmName,
    /// From `run` to warm.
    pub took: Duration,
    /// From a saved state; else it booted.
    pub resumed: bool,
}
impl VmWarmed<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let pool = self.vm.pool.to_string();
        let path = if self.resumed { "resume" } else { "cold" };
        histogram!(names::VM_BOOT_SECONDS, "pool" => pool, "path" => path).record(self.took);
        info!(vm = %self.vm, path, took_ms = self.took.as_millis() as u64, "vm warm");
    }
}

/// A guest was started in the place of one that had died.
pub struct SlotRefilled<'a> {
    pub vm: &'a VmName,
    /// From the death to the new guest's process.
    pub gap: Duration,
}
impl SlotRefilled<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        histogram!(names::SLOT_GAP_SECONDS, "pool" => self.vm.pool.to_string()).record(self.gap);
        debug!(vm = %self.vm, gap_us = self.gap.as_micros() as u64, "slot refilled");
    }
}

/// A VM failed.
pub struct VmFailed<'a> {
    pub vm: &'a VmName,
    pub phase: VmPhase,
    pub fault: &'a Fault,
}
impl VmFailed<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let (phase, reason) = (self.phase.as_str(), self.fault.reason.as_str());
        counter!(names::VM_FAILURES, "phase" => phase, "reason" => reason).increment(1);
        let hint = self.fault.reason.hint().unwrap_or_default();
        warn!(vm = %self.vm, phase, reason, fault = %self.fault, hint, "vm failed");
    }
}

/// A VM is being removed.
pub struct VmRetired<'a> {
    pub vm: &'a VmName,
    pub reason: RetireReason,
}
impl VmRetired<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let reason = self.reason.as_str();
        counter!(names::VMS_RETIRED, "pool" => self.vm.pool.to_string(), "reason" => reason).increment(1);
        debug!(vm = %self.vm, reason, "vm retired");
    }
}

/// A VM could not be removed; its slot is lost until somebody looks.
pub struct VmQuarantined<'a> {
    pub vm: &'a VmName,
    pub fault: &'a Fault,
}
impl VmQuarantined<'_> {
    /// Logs it.
    pub fn emit(self) {
        error!(vm = %self.vm, fault = %self.fault,
            hint = "its slot is lost until it is gone; removal is tried again every minute", "vm quarantined");
    }
}

/// A message came that the state does not know: dropped, because a stale report is no reason to die.
pub struct StaleReport<'a> {
    pub what: &'a str,
    pub why: String,
}
impl StaleReport<'_> {
    /// Logs it.
    pub fn emit(self) {
        debug!(what = self.what, why = self.why, "stale report ignored");
    }
}

/// VMs of a pool fail to come up, and it waits before the next try.
pub struct PoolTroubled<'a> {
    pub pool: &'a PoolName,
    pub fault: &'a Fault,
    pub failures: u32,
    pub wait: Duration,
}
impl PoolTroubled<'_> {
    /// Logs it.
    pub fn emit(self) {
        warn!(pool = %self.pool, reason = self.fault.reason.as_str(), failures = self.failures,
            next_try_in_ms = self.wait.as_millis() as u64, "pool has trouble");
    }
}

/// The host is at fault, and no VM is born but a slow probe.
pub struct BreakerOpened<'a> {
    /// A [`Reason`](crate::runtime::Reason), or that there were too many failures.
    pub reason: &'static str,
    pub fault: &'a Fault,
    pub wait: Duration,
}
impl BreakerOpened<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        counter!(names::HOST_BREAKER_OPENED, "reason" => self.reason).increment(1);
        let hint = self.fault.reason.hint().unwrap_or_default();
        error!(reason = self.reason, fault = %self.fault, hint, next_try_in_ms = self.wait.as_millis() as u64,
            "the host has trouble: no vm is started");
    }
}

/// macOS refuses a macOS guest before its time.
pub struct GuestRefused<'a> {
    pub pool: &'a PoolName,
    pub fault: &'a Fault,
    /// Slots that nobody holds.
    pub leaked: u32,
    pub wait: Duration,
}
impl GuestRefused<'_> {
    /// Logs it.
    pub fn emit(self) {
        let hint = self.fault.reason.hint().unwrap_or_default();
        error!(pool = %self.pool, reason = self.fault.reason.as_str(), fault = %self.fault, leaked = self.leaked, hint,
            next_try_in_ms = self.wait.as_millis() as u64, "macos refuses a guest");
    }
}

/// A build got a VM that answered.
pub struct VmClaimed<'a> {
    pub build: BuildId,
    pub vm: &'a VmName,
    pub claim: Claim,
    pub waited: Duration,
}
impl VmClaimed<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let result = match self.claim {
            Claim::Hit => "hit",
            Claim::Miss => "miss",
        };
        let pool = self.vm.pool.to_string();
        counter!(names::CLAIMS, "pool" => pool.clone(), "result" => result).increment(1);
        histogram!(names::CLAIM_SECONDS, "pool" => pool, "result" => result).record(self.waited);
        info!(build = %self.build, vm = %self.vm, claim = result, waited_ms = self.waited.as_millis() as u64, "vm claimed");
    }
}

/// A build was accepted and is on disk.
pub struct BuildAccepted<'a> {
    pub build: BuildId,
    pub project: &'a str,
    pub pool: &'a PoolName,
}
impl BuildAccepted<'_> {
    /// Logs it.
    pub fn emit(self) {
        info!(build = %self.build, project = self.project, pool = %self.pool, "build accepted");
    }
}

/// A phase of a build ended.
pub struct BuildPhaseEnded<'a> {
    pub build: BuildId,
    pub phase: &'static str,
    pub step: Option<&'a str>,
    pub took: Duration,
}
impl BuildPhaseEnded<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        histogram!(names::BUILD_PHASE_SECONDS, "phase" => self.phase).record(self.took);
        debug!(build = %self.build, phase = self.phase, step = self.step, took_ms = self.took.as_millis() as u64,
            "build phase ended");
    }
}

/// An attempt failed through the system's fault, and the build is tried again.
pub struct BuildRetried<'a> {
    pub build: BuildId,
    pub pool: &'a PoolName,
    pub attempt: u16,
    pub why: &'a str,
}
impl BuildRetried<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        counter!(names::BUILD_ATTEMPTS, "pool" => self.pool.to_string(), "outcome" => "again").increment(1);
        warn!(build = %self.build, attempt = self.attempt, why = self.why, "build is attempted again");
    }
}

/// A build has its result.
pub struct BuildEnded<'a> {
    pub build: BuildId,
    pub pool: &'a str,
    pub result: BuildResult,
    pub reason: Option<&'a str>,
    pub took: Duration,
}
impl BuildEnded<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let (pool, result) = (self.pool.to_owned(), self.result.as_str());
        counter!(names::BUILDS, "pool" => pool.clone(), "result" => result).increment(1);
        counter!(names::BUILD_ATTEMPTS, "pool" => pool.clone(), "outcome" => "over").increment(1);
        histogram!(names::BUILD_SECONDS, "pool" => pool, "result" => result).record(self.took);
        info!(build = %self.build, result, reason = self.reason, took_ms = self.took.as_millis() as u64, "build ended");
    }
}

/// A verb of the runtime ended.
pub struct VerbEnded {
    pub verb: Verb,
    /// `ok`, `error` or `timeout`.
    pub result: &'static str,
    pub took: Duration,
}
impl VerbEnded {
    /// Logs and counts it.
    pub fn emit(self) {
        let verb = self.verb.as_str();
        histogram!(names::RUNTIME_VERB_SECONDS, "verb" => verb, "result" => self.result).record(self.took);
        debug!(verb, result = self.result, took_ms = self.took.as_millis() as u64, "runtime verb ended");
    }
}

/// The janitor dealt with a VM that was not in the books.
pub struct JanitorActed<'a> {
    pub name: &'a str,
    pub action: JanitorAction,
    pub detail: String,
}
impl JanitorActed<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        counter!(names::JANITOR_ACTIONS, "action" => self.action.as_str()).increment(1);
        warn!(vm = self.name, action = self.action.as_str(), detail = self.detail, "janitor acted");
    }
}

/// The host was compared with the books.
pub struct Reconciled {
    pub found: usize,
    /// Orphans of ours that could not be removed.
    pub stuck: usize,
    pub took: Duration,
}
impl Reconciled {
    /// Logs and counts it.
    pub fn emit(self) {
        gauge!(names::RECONCILE_LAST_SUCCESS).set(UnixMillis::now().as_seconds());
        gauge!(names::ORPHANS_STUCK).set(self.stuck as f64);
        debug!(found = self.found, stuck = self.stuck, took_ms = self.took.as_millis() as u64, "reconciled");
    }
}

/// What lies on the disk, by kind: a label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    Builds,
    Spool,
    Trees,
    Vms,
    Logs,
    Caches,
}

impl Stored {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Builds, Self::Spool, Self::Trees, Self::Vms, Self::Logs, Self::Caches];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Builds => "builds",
            Self::Spool => "spool",
            Self::Trees => "trees",
            Self::Vms => "vms",
            Self::Logs => "logs",
            Self::Caches => "caches",
        }
    }
}

/// A source came by its tree's name.
pub struct TreeTaken {
    /// It was here, and nothing was sent.
    pub known: bool,
}
impl TreeTaken {
    /// Logs and counts it.
    pub fn emit(self) {
        let result = if self.known { "known" } else { "sent" };
        counter!(names::TREES, "result" => result).increment(1);
        debug!(result, "a source's tree was taken");
    }
}

/// Something that was kept long enough was removed from the disk.
pub struct Removed<'a> {
    pub what: Stored,
    pub name: &'a str,
    pub bytes: u64,
}
impl Removed<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        counter!(names::DISK_REMOVED, "what" => self.what.as_str()).increment(1);
        debug!(what = self.what.as_str(), name = self.name, bytes = self.bytes, "removed from the disk");
    }
}

/// What something takes of the disk.
pub struct DiskMeasured {
    pub what: Stored,
    /// Bytes of blocks.
    pub used: u64,
    /// Bytes of lengths.
    pub apparent: u64,
}
impl DiskMeasured {
    /// Sets the gauges.
    pub fn emit(self) {
        let what = self.what.as_str();
        gauge!(names::DISK_USED, "what" => what).set(self.used as f64);
        gauge!(names::DISK_APPARENT, "what" => what).set(self.apparent as f64);
    }
}

/// A result was delivered, or was not.
pub struct UploadTried<'a> {
    pub build: BuildId,
    pub sink: &'a str,
    /// `None` when it was delivered.
    pub error: Option<String>,
    pub attempt: u32,
}
impl UploadTried<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let result = if self.error.is_none() { "ok" } else { "error" };
        counter!(names::UPLOAD_ATTEMPTS, "sink" => self.sink.to_owned(), "result" => result).increment(1);
        match self.error {
            None => info!(build = %self.build, sink = self.sink, attempt = self.attempt, "result delivered"),
            Some(error) => {
                warn!(build = %self.build, sink = self.sink, attempt = self.attempt, error, "result not delivered");
            }
        }
    }
}

/// How much is left to deliver to a sink.
pub struct UploadsPending<'a> {
    pub sink: &'a str,
    pub pending: u64,
}
impl UploadsPending<'_> {
    /// Sets the gauge.
    pub fn emit(self) {
        gauge!(names::UPLOADS_PENDING, "sink" => self.sink.to_owned()).set(self.pending as f64);
    }
}

/// Pieces of timelines are lost.
pub struct SpansDropped {
    pub count: usize,
}
impl SpansDropped {
    /// Counts it.
    pub fn emit(self) {
        counter!(names::TRACE_SPANS_DROPPED).increment(self.count as u64);
    }
}

/// An actor failed and is started again.
pub struct ActorRestarted<'a> {
    pub actor: &'static str,
    pub why: &'a str,
}
impl ActorRestarted<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        counter!(names::ACTOR_RESTARTS, "actor" => self.actor).increment(1);
        error!(actor = self.actor, why = self.why, "actor restarted");
    }
}

/// The API answered.
pub struct HttpAnswered<'a> {
    /// The route's template.
    pub route: &'a str,
    pub method: &'a str,
    pub status: u16,
    pub took: Duration,
}
impl HttpAnswered<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let labels = [
            ("route", self.route.to_owned()),
            ("method", self.method.to_owned()),
            ("status", self.status.to_string()),
        ];
        histogram!(names::HTTP_SECONDS, &labels).record(self.took);
        debug!(route = self.route, method = self.method, status = self.status, "http answered");
    }
}

/// Something that the daemon can live with did not work.
pub struct Degraded<'a> {
    pub what: &'a str,
    pub error: String,
}
impl Degraded<'_> {
    /// Logs it.
    pub fn emit(self) {
        warn!(what = self.what, error = self.error, "degraded");
    }
}
