//! The daemon's own process, under the names that every Prometheus client uses.

#![expect(clippy::disallowed_macros, reason = "metrics are made in telemetry, and nowhere else")]

use metrics::{counter, gauge};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use super::names;

/// Measures this process.
pub(super) struct OwnProcess {
    /// `None` where the system does not let itself be asked.
    system: Option<System>,
}

impl Default for OwnProcess {
    fn default() -> Self {
        Self { system: System::new().ok() }
    }
}

impl OwnProcess {
    /// Sets the gauges. A few system calls.
    pub(super) fn measure(&mut self) {
        let pid = Pid::from_u32(std::process::id());
        let what = ProcessRefreshKind::nothing().with_memory().with_cpu();
        let Some(system) = &mut self.system else { return };
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
        let Some(process) = system.process(pid) else { return };
        // The recorder's counters are whole numbers; the loss is under a second.
        counter!(names::PROCESS_CPU).absolute(process.accumulated_cpu_time() / 1000);
        gauge!(names::PROCESS_MEMORY).set(process.memory() as f64);
        gauge!(names::PROCESS_VIRTUAL_MEMORY).set(process.virtual_memory() as f64);
        gauge!(names::PROCESS_START).set(process.start_time() as f64);
        if let Some(open) = process.open_files() {
            gauge!(names::PROCESS_FDS).set(open as f64);
        }
        if let Some(max) = process.open_files_limit() {
            gauge!(names::PROCESS_FDS_MAX).set(max as f64);
        }
    }
}
