//! The catalogue: each metric's name, kind, labels and meaning. Labels come from the configuration or from closed lists,
//! never from a build, so that the number of series is known when the daemon starts.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With its upper bounds, in seconds.
    Histogram(&'static [f64]),
}

/// One entry of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// Dense where clone and boot lie; quantiles of a boot are read off these.
const BOOT: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0];
/// From a warm VM to a wait of hours: a ceiling in between would hide the worst.
const WAIT: &[f64] = &[
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0,
];
/// Resolution where iOS builds lie: 2 to 20 minutes.
const BUILD: &[f64] = &[
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 300.0, 450.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
    5400.0, 7200.0, 10800.0, 14400.0,
];
const PHASE: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0];
/// From a slot that is free to a guest that starts: what nobody notices, and what is a fault.
const GAP: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
const VERB: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const HTTP: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

macro_rules! catalogue {
    ($($constant:ident = $name:literal, $kind:expr, [$($label:literal),*], $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*
        /// Every metric of the daemon's own.
        pub const ALL: &[Metric] = &[
            $(Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help },)*
        ];
    };
}

use Kind::{Counter, Gauge, Histogram};

catalogue! {
    BUILD_INFO = "preheat_build_info", Gauge, ["version"], "1, labelled with the daemon's version.";
    START_TIME = "preheat_start_time_seconds", Gauge, [], "When the daemon started, in seconds since 1970.";
    DRAINING = "preheat_draining", Gauge, [], "1 while the daemon is drained: it takes no builds, begins none and keeps no VMs.";
    CONFIG_RELOAD_OK = "preheat_config_last_reload_successful", Gauge, [], "1 when the configuration that was last read is in force, 0 when it had a mistake.";
    CONFIG_RELOAD_TIME = "preheat_config_last_reload_success_timestamp_seconds", Gauge, [], "When the configuration in force was read, in seconds since 1970.";
    SLOTS = "preheat_slots", Gauge, ["pool"], "Slots of the pool: VMs that may run at once.";
    SLOT_STATE = "preheat_slot_state", Gauge, ["pool", "slot", "state"], "1 for the state that the slot is in, 0 for the others.";
    VMS = "preheat_vms", Gauge, ["pool", "state"], "VMs of the pool by state.";
    POOL_TARGET = "preheat_pool_target", Gauge, ["pool"], "VMs that the pool is asked to keep warm.";
    POOL_OLDEST_NOT_READY = "preheat_pool_oldest_not_ready_timestamp_seconds", Gauge, ["pool"], "Since when the VM that has been coming up for longest is doing so, in seconds since 1970; 0 when none is.";
    SLOTS_LOST = "preheat_slots_lost", Gauge, ["pool", "reason"], "Slots that are lost until somebody looks: quarantined with a guest that does not die, or leaked by macOS.";
    HOST_BREAKER = "preheat_host_breaker", Gauge, ["state"], "1 for the state that the host's breaker is in, 0 for the others: open means that no VM is born but a slow probe.";
    HOST_BREAKER_OPENED = "preheat_host_breaker_opened_total", Counter, ["reason"], "Times that the host's breaker opened or stayed open after a probe, by the reason.";
    POOL_TROUBLE = "preheat_pool_trouble", Gauge, ["pool"], "1 while VMs of the pool fail to come up, whosever fault it is.";
    CLAIMS = "preheat_claims_total", Counter, ["pool", "result"], "Claims of a VM: a hit was served by a warm VM at once, a miss waited.";
    CLAIM_SECONDS = "preheat_claim_duration_seconds", Histogram(WAIT), ["pool", "result"], "From the claim of a VM to its lease.";
    VM_BOOT_SECONDS = "preheat_vm_boot_seconds", Histogram(BOOT), ["pool", "path"], "From run to warm, by path: cold or resume.";
    RESUME_FALLBACKS = "preheat_resume_fallbacks_total", Counter, ["pool", "reason"], "VMs that should have resumed from a saved state and did not, by the reason: their slot boots.";
    GOLDENS_MADE = "preheat_goldens_made_total", Counter, ["pool", "result"], "Warm VMs that were suspended for their slots to resume from, or failed to be.";
    VM_BOOT_PHASE_SECONDS = "preheat_vm_boot_phase_seconds", Histogram(BOOT), ["pool", "phase"], "One phase of a VM's birth.";
    SLOT_GAP_SECONDS = "preheat_slot_gap_seconds", Histogram(GAP), ["pool"], "From a guest's death to the process of the next one in its slot, where that one was cloned and wanted.";
    VM_FAILURES = "preheat_vm_failures_total", Counter, ["phase", "reason"], "VMs that failed, by the phase of their life and the reason.";
    VMS_CREATED = "preheat_vms_created_total", Counter, ["pool"], "VMs whose clone was begun: the attempts beside the failures.";
    VMS_ADOPTED = "preheat_vms_adopted_total", Counter, ["pool", "result"], "VMs that a build had when an earlier daemon ended: adopted and the build goes on in it, refused by the host's bounds, or failed to be found again.";
    VMS_RETIRED = "preheat_vms_retired_total", Counter, ["pool", "reason"], "VMs that were removed, by why.";
    QUEUE_DEPTH = "preheat_queue_depth", Gauge, ["pool"], "Builds that wait for a VM.";
    QUEUE_OLDEST = "preheat_queue_oldest_timestamp_seconds", Gauge, [], "Since when the build that has waited for longest waits, in seconds since 1970; 0 when none waits.";
    BUILDS_RUNNING = "preheat_builds_running", Gauge, ["pool"], "Builds that hold a VM.";
    BUILDS = "preheat_builds_total", Counter, ["pool", "result"], "Builds that ended. failure is the user's, error is the system's.";
    BUILD_SECONDS = "preheat_build_duration_seconds", Histogram(BUILD), ["pool", "result"], "From submission to the result.";
    BUILD_PHASE_SECONDS = "preheat_build_phase_seconds", Histogram(PHASE), ["phase"], "One phase of a build.";
    BUILD_ATTEMPTS = "preheat_build_attempts_total", Counter, ["pool", "outcome"], "Attempts that ended: over, or again after a fault of the system's.";
    GUEST_CPU = "preheat_guest_cpu_busy_ratio", Gauge, ["pool", "slot"], "How busy the processors of a build's guest are; 0 while no build is in the slot.";
    GUEST_MEMORY_USED = "preheat_guest_memory_used_bytes", Gauge, ["pool", "slot"], "Memory that is in use in a build's guest; 0 while no build is in the slot.";
    GUEST_MEMORY = "preheat_guest_memory_bytes", Gauge, ["pool", "slot"], "Memory of a build's guest; 0 while no build is in the slot.";
    GUEST_DISK_USED = "preheat_guest_disk_used_bytes", Gauge, ["pool", "slot"], "Disk space that is in use in a build's guest; 0 while no build is in the slot.";
    GUEST_DISK_FREE = "preheat_guest_disk_free_bytes", Gauge, ["pool", "slot"], "Disk space that is free in a build's guest; 0 also while no build is in the slot.";
    GUEST_DISK_LOW = "preheat_guest_disk_low_total", Counter, ["pool"], "Attempts of builds whose guest's disk got nearly full.";
    IMAGE_GENERATION = "preheat_image_generation", Gauge, ["pool"], "The generation of the pool's image that its VMs are cloned from; 0 where the image has none.";
    IMAGE_CHOICES = "preheat_image_choices_total", Counter, ["why"], "Times that an image's name came to mean another generation: asked for, rolled back, failed to come up, or adopted because nobody had chosen.";
    RUNTIME_VERB_SECONDS = "preheat_runtime_verb_duration_seconds", Histogram(VERB), ["verb", "result"], "One verb of the VM runtime.";
    JANITOR_ACTIONS = "preheat_janitor_actions_total", Counter, ["action"], "What the janitor did about what it found.";
    RECONCILE_LAST_SUCCESS = "preheat_reconcile_last_success_timestamp_seconds", Gauge, [], "When the host's VMs were last compared with the books, in seconds since 1970.";
    ORPHANS_STUCK = "preheat_orphans_stuck", Gauge, [], "VMs of ours that are in no book and could not be removed: whatever they hold of the host is lost.";
    TREES = "preheat_source_trees_total", Counter, ["result"], "Sources that came by their tree's name: known and not sent, or sent.";
    DISK_USED = "preheat_disk_used_bytes", Gauge, ["what"], "Blocks that builds, the spool, kept source trees (a build's own source is one of them), VMs with their images, VMs' logs, and caches take; where clones share blocks unseen (APFS), an upper bound.";
    DISK_APPARENT = "preheat_disk_apparent_bytes", Gauge, ["what"], "What the lengths of the same files add up to, holes included.";
    TRACE_SPANS_DROPPED = "preheat_trace_spans_dropped_total", Counter, [], "Pieces of timelines that the journal could not take: traces have gaps there.";
    DISK_REMOVED = "preheat_disk_removed_total", Counter, ["what"], "Builds, sources, logs and caches that were removed because they were kept long enough or the disk was short.";
    CACHE_RESTORES = "preheat_cache_restores_total", Counter, ["pool", "result"], "Caches that builds asked for: a hit had the key, a prefix the beginning of one, a miss nothing, and one that failed could not be restored.";
    CACHE_RESTORED_BYTES = "preheat_cache_restored_bytes_total", Counter, ["pool"], "Bytes of caches that went into guests.";
    CACHE_RESTORE_SECONDS = "preheat_cache_restore_seconds", Histogram(PHASE), ["pool"], "One cache on its way into a guest.";
    CACHE_SAVES = "preheat_cache_saves_total", Counter, ["pool", "result"], "Caches that builds had to save: saved, present because another build was first, or not saved.";
    CACHE_SAVED_BYTES = "preheat_cache_saved_bytes_total", Counter, ["pool"], "Bytes of caches that were saved.";
    CACHE_SAVE_SECONDS = "preheat_cache_save_seconds", Histogram(PHASE), ["pool"], "One cache on its way out of a guest.";
    CACHE_REMOVALS = "preheat_cache_removals_total", Counter, ["reason"], "Caches that were removed: evicted by the bounds, damaged, or asked for.";
    CACHE_ENTRIES = "preheat_cache_entries", Gauge, [], "Caches that are kept.";
    UPLOADS_PENDING = "preheat_uploads_pending", Gauge, ["sink"], "Results not yet delivered to the sink.";
    UPLOAD_ATTEMPTS = "preheat_upload_attempts_total", Counter, ["sink", "result"], "Attempts to deliver a result.";
    CONTROLLER_CONNECTED = "preheat_controller_connected", Gauge, ["controller"], "1 when the controller answered the last call of a lane, 0 when it did not or refused it.";
    CONTROLLER_LANES_BUSY = "preheat_controller_lanes_busy", Gauge, ["controller"], "Lanes that have a build of the controller.";
    CONTROLLER_JOBS = "preheat_controller_jobs_total", Counter, ["controller", "outcome"], "Builds that a controller gave us, by how they ended for it.";
    CONTROLLER_CALLS_FAILED = "preheat_controller_calls_failed_total", Counter, ["controller", "call"], "Calls that a controller did not answer, or refused.";
    CONTROLLER_RESULT_RETRIES = "preheat_controller_result_retries_total", Counter, ["controller"], "Results that had to be brought to a controller again.";
    HOST_DISK_FREE = "preheat_host_disk_free_bytes", Gauge, [], "Free bytes on the volume of the installation.";
    HOST_DISK_FREE_MIN = "preheat_host_disk_free_min_bytes", Gauge, [], "With less free than this no build is accepted and no VM cloned: host.disk_free_min.";
    HOST_DISK_SIZE = "preheat_host_disk_size_bytes", Gauge, [], "Size of the volume of the installation.";
    ACTOR_RESTARTS = "preheat_actor_restarts_total", Counter, ["actor"], "Actors of the daemon that failed and were started again.";
    PROCESS_CPU = "process_cpu_seconds_total", Counter, [], "CPU time of the daemon, user and system.";
    PROCESS_MEMORY = "process_resident_memory_bytes", Gauge, [], "Resident memory of the daemon.";
    PROCESS_VIRTUAL_MEMORY = "process_virtual_memory_bytes", Gauge, [], "Virtual memory of the daemon.";
    PROCESS_START = "process_start_time_seconds", Gauge, [], "When the process started, in seconds since 1970.";
    PROCESS_FDS = "process_open_fds", Gauge, [], "Open file descriptors of the daemon.";
    PROCESS_FDS_MAX = "process_max_fds", Gauge, [], "File descriptors that the daemon may open.";
    HTTP_SECONDS = "preheat_http_request_duration_seconds", Histogram(HTTP), ["route", "method", "status"], "Requests to the API, by the route's template.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_prometheus_and_are_unique() {
        let mut seen = BTreeSet::new();
        for metric in ALL {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            let ours = metric.name.starts_with("preheat_") || metric.name.starts_with("process_");
            assert!(ours && metric.help.ends_with('.'), "{}", metric.name);
            let counter = metric.name.ends_with("_total");
            assert_eq!(counter, metric.kind == Counter, "{}: `_total` is for counters", metric.name);
            if let Histogram(bounds) = metric.kind {
                assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
                assert!(bounds.windows(2).all(|w| w[0] < w[1]), "{}", metric.name);
            }
            assert!(
                !metric.labels.iter().any(|l| ["host", "build", "vm", "branch"].contains(l)),
                "{}",
                metric.name
            );
        }
    }
}
