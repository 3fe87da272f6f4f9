//! The recorder. Every label set that can occur is there at zero from the start: a series that first appears with the
//! value 1 has never increased, as far as Prometheus can tell. Gauges of state are set from the published snapshot when
//! they are asked for, so they cannot drift from it.

#![expect(clippy::disallowed_macros, reason = "metrics are made here and in `events`, and nowhere else")]

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::caching;
use super::controlling;
use super::events::{self, AdoptionEnd, JanitorAction, RetireReason, Stored};
use super::guests;
use super::images::ChosenBy;
use super::names::{self, Kind};
use super::process;
use crate::build::spec::BuildResult;
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::pool::breaker::{BreakerState, INTENSITY};
use crate::pool::snapshot::PoolSnapshot;
use crate::runtime::{FaultKind, Reason, Verb};
use crate::vm::state::{BirthPhase, VmPhase, VmStateName};

/// Samples of histograms pile up until they are folded in; a scrape folds too, but nobody may be scraping.
pub const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The rendered side of the recorder.
#[derive(Clone)]
pub struct Exporter {
    handle: PrometheusHandle,
}

/// Installs the process-wide recorder, or returns the one that is there: tests start several daemons in one process.
pub fn install() -> Exporter {
    static EXPORTER: OnceLock<Exporter> = OnceLock::new();
    EXPORTER.get_or_init(build_recorder).clone()
}

fn build_recorder() -> Exporter {
    let mut builder = PrometheusBuilder::new();
    for metric in names::ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            builder = match builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds) {
                Ok(builder) => builder,
                Err(_) => PrometheusBuilder::new(),
            };
        }
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).ok();
    for metric in names::ALL {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    Exporter { handle }
}

impl Exporter {
    /// Sets every known label set to zero.
    pub fn zero(&self, config: &Config) {
        gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let now = UnixMillis::now().as_seconds();
        gauge!(names::START_TIME).set(now);
        gauge!(names::PROCESS_START).set(now);
        gauge!(names::RECONCILE_LAST_SUCCESS).set(0.0);
        gauge!(names::CONFIG_RELOAD_OK).set(1.0);
        gauge!(names::CONFIG_RELOAD_TIME).set(now);
        zero_configured(config);
        for phase in VmPhase::ALL {
            for reason in Reason::ALL {
                counter!(names::VM_FAILURES, "phase" => phase.as_str(), "reason" => reason.as_str())
                    .absolute(0);
            }
        }
        for phase in events::BUILD_PHASES {
            histogram_at_zero(names::BUILD_PHASE_SECONDS, &[("phase", phase)]);
        }
        for verb in Verb::ALL {
            for result in ["ok", "error", "timeout"] {
                histogram_at_zero(
                    names::RUNTIME_VERB_SECONDS,
                    &[("verb", verb.as_str()), ("result", result)],
                );
            }
        }
        for reason in Reason::ALL.into_iter().filter(|reason| reason.kind() == FaultKind::Host) {
            counter!(names::HOST_BREAKER_OPENED, "reason" => reason.as_str()).absolute(0);
        }
        counter!(names::HOST_BREAKER_OPENED, "reason" => INTENSITY).absolute(0);
        for action in JanitorAction::ALL {
            counter!(names::JANITOR_ACTIONS, "action" => action.as_str()).absolute(0);
        }
        gauge!(names::ORPHANS_STUCK).set(0.0);
        counter!(names::TRACE_SPANS_DROPPED).absolute(0);
        caching::zero();
        for why in ChosenBy::ALL {
            counter!(names::IMAGE_CHOICES, "why" => why.as_str()).absolute(0);
        }
        for result in ["known", "sent"] {
            counter!(names::TREES, "result" => result).absolute(0);
        }
        for what in Stored::ALL {
            gauge!(names::DISK_USED, "what" => what.as_str()).set(0.0);
            gauge!(names::DISK_APPARENT, "what" => what.as_str()).set(0.0);
            counter!(names::DISK_REMOVED, "what" => what.as_str()).absolute(0);
        }
        for actor in ["pool", "build", "uploader"] {
            counter!(names::ACTOR_RESTARTS, "actor" => actor).absolute(0);
        }
    }

    /// Sets what another configuration adds to zero, and takes over its bounds; what counts already goes on.
    pub fn follow(&self, config: &Config) {
        zero_configured(config);
    }

    /// Folds samples in. To be called every [`UPKEEP_EVERY`].
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// The text format, with the gauges as the snapshot has them.
    pub fn render(&self, snapshot: &PoolSnapshot, disk: Option<(u64, u64)>) -> String {
        set_gauges(snapshot);
        if let Some((free, size)) = disk {
            gauge!(names::HOST_DISK_FREE).set(free as f64);
            gauge!(names::HOST_DISK_SIZE).set(size as f64);
        }
        process::measure();
        self.handle.render()
    }
}

/// An absolute zero changes no counter that is further.
fn zero_configured(config: &Config) {
    gauge!(names::HOST_DISK_FREE_MIN).set(config.host.disk_free_min.0 as f64);
    for (name, pool) in &config.pools {
        zero_pool(name.as_str());
        guests::zero_pool(name.as_str(), pool.max);
    }
    for upload in &config.uploads {
        gauge!(names::UPLOADS_PENDING, "sink" => upload.name.clone()).increment(0.0);
        for result in ["ok", "error"] {
            counter!(names::UPLOAD_ATTEMPTS, "sink" => upload.name.clone(), "result" => result).absolute(0);
        }
    }
    for controller in &config.controllers {
        controlling::zero(&controller.name);
    }
}

fn zero_pool(pool: &str) {
    let pool = || pool.to_owned();
    for result in ["hit", "miss"] {
        counter!(names::CLAIMS, "pool" => pool(), "result" => result).absolute(0);
        histogram_at_zero(names::CLAIM_SECONDS, &[("pool", &pool()), ("result", result)]);
    }
    for path in ["cold", "resume"] {
        histogram_at_zero(names::VM_BOOT_SECONDS, &[("pool", &pool()), ("path", path)]);
    }
    for reason in Reason::ALL {
        counter!(names::RESUME_FALLBACKS, "pool" => pool(), "reason" => reason.as_str()).absolute(0);
    }
    for result in ["ok", "error"] {
        counter!(names::GOLDENS_MADE, "pool" => pool(), "result" => result).absolute(0);
    }
    for phase in BirthPhase::ALL {
        histogram_at_zero(names::VM_BOOT_PHASE_SECONDS, &[("pool", &pool()), ("phase", phase.as_str())]);
    }
    histogram_at_zero(names::SLOT_GAP_SECONDS, &[("pool", &pool())]);
    counter!(names::VMS_CREATED, "pool" => pool()).absolute(0);
    for end in AdoptionEnd::ALL {
        counter!(names::VMS_ADOPTED, "pool" => pool(), "result" => end.as_str()).absolute(0);
    }
    for reason in RetireReason::ALL {
        counter!(names::VMS_RETIRED, "pool" => pool(), "reason" => reason.as_str()).absolute(0);
    }
    for result in BuildResult::ALL {
        counter!(names::BUILDS, "pool" => pool(), "result" => result.as_str()).absolute(0);
        histogram_at_zero(names::BUILD_SECONDS, &[("pool", &pool()), ("result", result.as_str())]);
    }
    caching::zero_pool(&pool());
    for outcome in ["over", "again"] {
        counter!(names::BUILD_ATTEMPTS, "pool" => pool(), "outcome" => outcome).absolute(0);
    }
}

/// Registers a histogram without a sample.
pub(super) fn histogram_at_zero(name: &'static str, labels: &[(&'static str, &str)]) {
    let labels: Vec<metrics::Label> =
        labels.iter().map(|(key, value)| metrics::Label::new(*key, (*value).to_owned())).collect();
    histogram!(name, labels).record_many(0.0, 0);
}

fn set_gauges(snapshot: &PoolSnapshot) {
    gauge!(names::DRAINING).set(if snapshot.draining { 1.0 } else { 0.0 });
    for pool in &snapshot.pools {
        let name = || pool.name.to_string();
        gauge!(names::SLOTS, "pool" => name()).set(f64::from(pool.max));
        gauge!(names::POOL_TARGET, "pool" => name()).set(f64::from(pool.warm));
        gauge!(names::SLOTS_LOST, "pool" => name(), "reason" => "quarantined")
            .set(f64::from(pool.quarantined));
        gauge!(names::SLOTS_LOST, "pool" => name(), "reason" => "slot_leaked").set(f64::from(pool.leaked));
        gauge!(names::POOL_TROUBLE, "pool" => name()).set(if pool.trouble.is_some() { 1.0 } else { 0.0 });
        gauge!(names::IMAGE_GENERATION, "pool" => name()).set(f64::from(pool.generation.unwrap_or(0)));
        gauge!(names::QUEUE_DEPTH, "pool" => name()).set(f64::from(pool.waiting));
        let held = pool.count(VmStateName::Leased) + pool.count(VmStateName::Adopting);
        gauge!(names::BUILDS_RUNNING, "pool" => name()).set(held as f64);
        let oldest = pool.oldest_not_ready.map_or(0.0, UnixMillis::as_seconds);
        gauge!(names::POOL_OLDEST_NOT_READY, "pool" => name()).set(oldest);
        for state in VmStateName::ALL {
            gauge!(names::VMS, "pool" => name(), "state" => state.as_str()).set(pool.count(state) as f64);
        }
        for (slot, current) in pool.slots.iter().enumerate() {
            for state in VmStateName::ALL.map(Some).into_iter().chain([None]) {
                let word = state.map_or("empty", VmStateName::as_str);
                let on = if state == *current { 1.0 } else { 0.0 };
                gauge!(names::SLOT_STATE, "pool" => name(), "slot" => slot.to_string(), "state" => word)
                    .set(on);
            }
        }
    }
    for state in BreakerState::ALL {
        let on = if state == snapshot.breaker { 1.0 } else { 0.0 };
        gauge!(names::HOST_BREAKER, "state" => state.as_str()).set(on);
    }
    gauge!(names::QUEUE_OLDEST).set(snapshot.oldest_waiting.map_or(0.0, UnixMillis::as_seconds));
}
