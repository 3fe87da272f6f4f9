//! The daemon's own process, under the names that every Prometheus client uses.

#![expect(clippy::disallowed_macros, reason = "metrics are made in telemetry, and nowhere else")]

use metrics::{counter, gauge};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;

use super::names;

/// Measures this process: a few system calls.
pub(super) fn measure() {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        // The recorder's counters are whole numbers; the loss is under a second.
        let seconds = (usage.user_time() + usage.system_time()).num_seconds();
        counter!(names::PROCESS_CPU).absolute(u64::try_from(seconds).unwrap_or(0));
    }
    if let Some(memory) = memory_stats::memory_stats() {
        gauge!(names::PROCESS_MEMORY).set(memory.physical_mem as f64);
        gauge!(names::PROCESS_VIRTUAL_MEMORY).set(memory.virtual_mem as f64);
    }
    if let Ok(open) = std::fs::read_dir("/dev/fd") {
        // The folder itself is open while it is read.
        gauge!(names::PROCESS_FDS).set(open.count().saturating_sub(1) as f64);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        gauge!(names::PROCESS_FDS_MAX).set(soft as f64);
    }
}
