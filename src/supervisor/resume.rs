//! What becomes of a build that the journal has without a result when the daemon starts, or when its actor failed.

use crate::build::place::Verdict;
use crate::build::spec::{BuildResult, BuildSpec};
use crate::clock::UnixMillis;
use crate::store::BuildRecord;

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It waits for a VM, again or still.
    Again,
    /// It goes on in the VM that it has.
    GoOn,
    /// It is over.
    Over(Verdict),
}

/// What is left of a build beside its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Its source is still in the spool.
    pub source: bool,
    /// Its pool is still configured.
    pub pool: bool,
    /// Why the journal does not give the values of its secrets, if so.
    pub sealed: Option<String>,
    /// The VM that it has is adopted for it.
    pub guest: bool,
}

/// Decides.
pub fn fate(record: &BuildRecord, left: &Left) -> Fate {
    // What was decided, or promised, stands whatever is left.
    if let Some(verdict) = &record.verdict {
        return Fate::Over(verdict.clone());
    }
    if record.cancel_asked {
        let reason = Some("cancelled".to_owned());
        return Fate::Over(Verdict { result: BuildResult::Cancellation, reason });
    }
    if !left.pool {
        return error(format!("there is no pool `{}` any more", record.spec.pool));
    }
    if !left.source {
        return error("its source is gone from the spool".into());
    }
    if let Some(why) = &left.sealed {
        return error(format!(
            "the daemon was restarted, and {} are lost: {why}; submit it again",
            secrets(&record.spec)
        ));
    }
    if left.guest && record.running && record.place.is_some() {
        return Fate::GoOn;
    }
    if in_its_work(record) && record.attempt > record.spec.retries {
        return error("the daemon ended under it, and no retries are left".into());
    }
    Fate::Again
}

/// What of it was sealed.
fn secrets(spec: &BuildSpec) -> String {
    let values = format!("the values of `{}`", spec.secrets.join("`, `"));
    match &spec.signing {
        None => values,
        Some(_) if spec.secrets.is_empty() => "its certificate and profiles".to_owned(),
        Some(_) => format!("{values}, its certificate and profiles"),
    }
}

fn error(reason: String) -> Fate {
    Fate::Over(Verdict { result: BuildResult::Error, reason: Some(reason) })
}

/// Whether something of the user's may have run in its attempt. A journal of before there were places has only the phases.
fn in_its_work(record: &BuildRecord) -> bool {
    let work = |phase: &str| matches!(phase, "step" | "artifacts" | "teardown");
    let old = || record.phases.last().is_some_and(|last| work(&last.phase));
    record.running && (record.place.is_some() || old())
}

/// The record of a build that is attempted again. An attempt in which nothing of the user's ran was none.
pub fn again(mut record: BuildRecord) -> BuildRecord {
    if record.running && !in_its_work(&record) {
        record.attempt = record.attempt.saturating_sub(1);
    }
    record.running = false;
    record.place = None;
    record.artifacts.clear();
    record.caches.clear();
    record.failure = None;
    record
}

/// The record of a build that is over.
pub fn ended(mut record: BuildRecord, verdict: Verdict, at: UnixMillis) -> BuildRecord {
    record.running = false;
    if let Some(open) = record.phases.last_mut().filter(|phase| phase.took_ms.is_none()) {
        let took = at.since(open.started_ms);
        open.took_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        open.took_us = Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
    record.result = Some(verdict.result);
    record.reason = verdict.reason;
    record.finished_ms = Some(at);
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::place::{Doing, Place};
    use crate::ids::RunId;
    use crate::testing;

    const ALL: Left = Left { source: true, pool: true, sealed: None, guest: true };
    const NO_GUEST: Left = Left { guest: false, ..ALL };

    fn record(running: bool, attempt: u16) -> BuildRecord {
        let received = BuildRecord::received(testing::spec(), "source".into(), UnixMillis(0));
        BuildRecord { running, attempt, ..received }
    }

    fn in_a_step(attempt: u16) -> BuildRecord {
        let doing = Doing::Step { index: 0, run: RunId::new(), failed: 0, began_ms: UnixMillis(5) };
        BuildRecord { place: Some(Place { work_began_ms: UnixMillis(1), doing }), ..record(true, attempt) }
    }

    #[test]
    fn a_build_in_a_step_goes_on_where_its_guest_lives_and_is_attempted_again_where_not() {
        assert_eq!(fate(&in_a_step(1), &ALL), Fate::GoOn);
        assert_eq!(fate(&in_a_step(3), &ALL), Fate::GoOn, "that takes no retry");
        assert_eq!(fate(&in_a_step(2), &NO_GUEST), Fate::Again);
        assert!(matches!(fate(&in_a_step(3), &NO_GUEST), Fate::Over(v) if v.result == BuildResult::Error));
        assert_eq!(again(in_a_step(2)).attempt, 2, "an attempt in which a step ran was one");
    }

    #[test]
    fn an_attempt_in_which_nothing_of_the_users_ran_costs_no_retry() {
        let before = record(true, 3);
        assert_eq!(fate(&before, &ALL), Fate::Again, "nothing is there to go on with");
        assert_eq!(again(before).attempt, 2);
        assert_eq!(again(record(false, 2)).attempt, 2, "it waited: nothing to give back");
    }

    #[test]
    fn what_was_decided_or_promised_stands_whatever_is_left() {
        let none = Left { source: false, pool: false, sealed: Some("no key".into()), guest: false };
        let verdict = Verdict { result: BuildResult::Failure, reason: Some("step `a` exited with 1".into()) };
        let decided = BuildRecord { verdict: Some(verdict.clone()), cancel_asked: true, ..in_a_step(1) };
        let asked = BuildRecord { cancel_asked: true, ..in_a_step(1) };
        for left in [&ALL, &NO_GUEST, &none] {
            assert_eq!(fate(&decided, left), Fate::Over(verdict.clone()));
            assert!(matches!(fate(&asked, left), Fate::Over(v) if v.result == BuildResult::Cancellation));
        }
    }

    #[test]
    fn what_cannot_be_run_is_over_and_says_why() {
        let secret = |mut record: BuildRecord| {
            record.spec.secrets = vec!["TOKEN".into()];
            record
        };
        for (record, left) in [
            (in_a_step(1), Left { source: false, ..ALL }),
            (in_a_step(1), Left { pool: false, ..ALL }),
            (secret(in_a_step(1)), Left { sealed: Some("no key".into()), ..ALL }),
        ] {
            assert!(matches!(fate(&record, &left), Fate::Over(v) if v.result == BuildResult::Error));
        }
        assert_eq!(fate(&secret(in_a_step(1)), &ALL), Fate::GoOn);
    }

    #[test]
    fn a_record_of_an_older_journal_is_read_and_its_phases_say_where_it_was() {
        let json = serde_json::to_value(record(true, 2)).expect("json");
        let fields = json.as_object().expect("an object");
        assert!(["place", "verdict", "cancel_asked"].iter().all(|new| !fields.contains_key(*new)));
        let mut old: BuildRecord = serde_json::from_value(json).expect("it parses");
        assert_eq!(again(old.clone()).attempt, 1);
        old.phases.push(crate::api::wire::PhaseView {
            phase: "step".into(),
            step: None,
            attempt: 2,
            started_ms: UnixMillis(1000),
            took_ms: None,
            started_us: None,
            took_us: None,
            exit_code: None,
        });
        assert_eq!(again(old.clone()).attempt, 2);
        let verdict = Verdict { result: BuildResult::Error, reason: None };
        assert_eq!(ended(old, verdict, UnixMillis(3500)).phases[0].took_ms, Some(2500));
    }
}
