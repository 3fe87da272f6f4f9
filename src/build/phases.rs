//! The phases of a build as they are timed: one is open at most. One that a crash left open is gone on with or ended, so that
//! each stands once in the record and its time is the whole time.

use std::time::Duration;

use crate::api::wire::PhaseView;
use crate::clock::{self, Anchor, Instant, UnixMillis};
use crate::store::BuildRecord;
use crate::telemetry::events::{BUILD_PHASES, BuildPhaseEnded};

/// The stopwatch of the phase that is open: the last of the record.
#[derive(Debug)]
pub struct Stopwatch {
    anchor: Anchor,
    /// Since when it runs, and what it had taken before.
    since: Option<(Instant, Duration)>,
}

impl Stopwatch {
    /// Over a record from the journal: a phase that was open there is open again.
    pub fn over(record: &mut BuildRecord, anchor: Anchor) -> Self {
        let mut watch = Self { anchor, since: None };
        if record.phases.last().is_some_and(|phase| phase.took_ms.is_none()) {
            watch.go_on(record);
        }
        watch
    }

    /// Whether the phase that is open is the record's `phase` of `attempt`.
    pub fn runs(&self, record: &BuildRecord, phase: &str, attempt: u16) -> bool {
        let last = record.phases.last();
        self.since.is_some() && last.is_some_and(|last| last.phase == phase && last.attempt == attempt)
    }

    /// Opens a phase of `attempt`; the one before is over.
    pub fn begin(
        &mut self,
        record: &mut BuildRecord,
        phase: &'static str,
        step: Option<String>,
        attempt: u16,
    ) {
        let now = clock::now();
        self.since = Some((now, Duration::ZERO));
        record.phases.push(PhaseView {
            phase: phase.to_owned(),
            step,
            attempt,
            started_ms: UnixMillis::now(),
            took_ms: None,
            started_us: Some(self.anchor.date(now)),
            took_us: None,
            exit_code: None,
        });
    }

    /// The last phase is under way again. How long it took before is what was written down, else the time since it began.
    pub fn go_on(&mut self, record: &mut BuildRecord) {
        let Some(last) = record.phases.last_mut().filter(|_| self.since.is_none()) else { return };
        let since = || UnixMillis::now().since(last.started_ms);
        let whole = last.took_us.map(Duration::from_micros).or(last.took_ms.map(Duration::from_millis));
        let before = whole.unwrap_or_else(since);
        (last.took_ms, last.took_us, last.exit_code) = (None, None, None);
        self.since = Some((clock::now(), before));
    }

    /// The open phase is over. False when there is none.
    pub fn end(&mut self, record: &mut BuildRecord, exit_code: Option<i32>) -> bool {
        let Some((since, before)) = self.since.take() else { return false };
        let Some(last) = record.phases.last_mut() else { return false };
        let took = before + since.elapsed();
        last.took_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        last.took_us = Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        last.exit_code = exit_code;
        if let Some(phase) = BUILD_PHASES.into_iter().find(|known| *known == last.phase) {
            BuildPhaseEnded { build: record.id, phase, step: last.step.as_deref(), took }.emit();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test(start_paused = true)]
    async fn a_phase_that_a_crash_left_open_stands_once_and_with_its_whole_time() {
        let second = Duration::from_secs(1);
        let mut record = BuildRecord::received(testing::spec(), "source".into(), UnixMillis(0));
        let mut watch = Stopwatch::over(&mut record, Anchor::cast());
        watch.begin(&mut record, "step", Some("make".into()), 1);
        record.phases[0].started_ms = UnixMillis(UnixMillis::now().0 - 7_000);
        let mut watch = Stopwatch::over(&mut record, Anchor::cast());
        assert!(watch.runs(&record, "step", 1) && !watch.runs(&record, "step", 2));
        tokio::time::advance(second).await;
        watch.end(&mut record, Some(0));
        let took = record.phases[0].took_ms.expect("ended");
        assert!((8_000..60_000).contains(&took), "{took}");

        // Its end was written down, and then it is read to its end again.
        let mut watch = Stopwatch::over(&mut record, Anchor::cast());
        assert!(!watch.runs(&record, "step", 1), "it was over");
        watch.go_on(&mut record);
        tokio::time::advance(second).await;
        watch.end(&mut record, Some(3));
        assert_eq!(record.phases.len(), 1);
        assert_eq!((record.phases[0].took_ms, record.phases[0].exit_code), (Some(took + 1000), Some(3)));
    }
}
