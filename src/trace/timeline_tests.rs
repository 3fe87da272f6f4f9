//! Timelines from what could have been written down.

use super::*;
use crate::api::timeline::TraceEvent;
use crate::build::spec::BuildResult;
use crate::clock::UnixMillis;
use crate::ids::BuildId;
use crate::store::spans::{BuildSpan, SlotLives, VmKey, VmLife, VmSpan};
use crate::testing;

/// Submitted at 1 s, over at 2 s.
fn record(phases: Vec<PhaseView>) -> BuildRecord {
    let mut record = BuildRecord::received(testing::spec(), "source".into(), UnixMillis(1_000));
    record.id = BuildId(7);
    record.stamps.submitted_us = Some(UnixMicros(1_000_000));
    record.stamps.finished_us = Some(UnixMicros(2_000_000));
    record.result = Some(BuildResult::Success);
    record.phases = phases;
    record
}

fn phase(name: &str, from: i64, took: u64) -> PhaseView {
    PhaseView {
        phase: name.into(),
        step: (name == "step").then(|| "make".into()),
        attempt: 1,
        started_ms: UnixMillis(from / 1000),
        took_ms: Some(took / 1000),
        started_us: Some(UnixMicros(from)),
        took_us: Some(took),
        exit_code: None,
    }
}

fn life(generation: u64, phases: &[(&str, i64)]) -> VmLife {
    let vm = VmKey { pool: "linux".into(), slot: 0, generation };
    let span = |(phase, at): &(&str, i64)| VmSpan {
        vm: vm.clone(),
        phase: (*phase).into(),
        began_us: UnixMicros(*at),
        build: (*phase == "leased").then_some(BuildId(7)),
        detail: None,
    };
    VmLife { spans: phases.iter().map(span).collect(), vm }
}

fn drawn(record: &BuildRecord, beside: &Timeline) -> ChromeTrace {
    let known = Known { record, beside, now: UnixMicros(3_000_000), alive: &|_| false };
    let trace = super::trace(&known);
    assert_eq!(trace.audit(), Ok(()), "{trace:#?}");
    trace
}

fn spans<'a>(trace: &'a ChromeTrace, cat: &str) -> Vec<&'a TraceEvent> {
    trace.trace_events.iter().filter(|e| e.ph == "X" && e.cat.as_deref() == Some(cat)).collect()
}

fn names(trace: &ChromeTrace, cat: &str) -> Vec<String> {
    spans(trace, cat).iter().map(|event| format!("{} {}", event.name, event.dur.unwrap_or(0))).collect()
}

#[test]
fn a_trace_whose_spans_cross_or_whose_shares_do_not_sum_up_is_found_out() {
    let whole = drawn(&record(vec![phase("queue", 1_010_000, 90_000)]), &Timeline::default());
    let mut crossing = whole.clone();
    let queue = crossing.trace_events.iter_mut().find(|event| event.name == "queue").expect("there");
    queue.dur = Some(5_000_000);
    assert!(crossing.audit().expect_err("it crosses").contains("queue"));
    let mut short = whole;
    short.other_data.owners.pop();
    assert!(short.audit().is_err());
}

#[test]
fn every_microsecond_has_an_owner_or_is_shown_to_have_none() {
    let phases = vec![phase("queue", 1_010_000, 90_000), phase("step", 1_100_500, 800_000)];
    let trace = drawn(&record(phases), &Timeline::default());
    assert_eq!(
        names(&trace, "build"),
        [
            "build 7: success 1000000",
            "accept 10000",
            "attempt 1 890500",
            "queue 90000",
            "unaccounted 500",
            "step make 800000",
            "unaccounted 99500",
        ]
    );
    let figures = &trace.other_data;
    assert_eq!(figures.owners.iter().map(|share| share.us).sum::<u64>(), figures.total_us);
    assert_eq!((figures.total_us, figures.unaccounted_us), (1_000_000, 100_000));
}

#[test]
fn retries_are_spans_of_their_own_and_pauses_lie_between_attempts() {
    let failed = PhaseView { exit_code: Some(1), ..phase("step", 1_000_000, 100_000) };
    let second = PhaseView { attempt: 2, ..phase("queue", 1_300_000, 700_000) };
    let trace = drawn(&record(vec![failed, phase("step", 1_100_000, 100_000), second]), &Timeline::default());
    let names = names(&trace, "build");
    assert!(names.contains(&"step make (run 2) 100000".into()), "{names:?}");
    assert!(
        names.contains(&"pause 100000".into()) && names.contains(&"attempt 2 700000".into()),
        "{names:?}"
    );
    let step = trace.other_data.owners.iter().find(|share| share.owner == "step make").expect("there");
    assert_eq!((step.us, step.times), (200_000, 2));
}

#[test]
fn clocks_that_were_set_between_two_runs_of_the_daemon_cross_no_spans() {
    let phases = vec![
        phase("queue", 500_000, 2_000_000),
        phase("source", 1_200_000, 100_000),
        phase("step", 1_100_000, 5_000_000),
        phase("teardown", 900_000, 1),
    ];
    let own = life(5, &[("started", 40), ("leased", 20), ("adopting", 10), ("dead", 50), ("gone", 5)]);
    let (before, after) = (life(4, &[("dead", 90)]), life(6, &[("started", 1), ("dead", 2)]));
    let slots = vec![SlotLives { before: Some(before), own, after: Some(after) }];
    let trace = drawn(&record(phases), &Timeline { slots, done: Vec::new() });
    assert_eq!(trace.other_data.owners.iter().map(|share| share.us).sum::<u64>(), 1_000_000);
}

#[test]
fn a_slots_gap_is_from_the_death_to_the_next_process_and_says_what_it_waited_for() {
    let before = life(
        3,
        &[("started", 100), ("leased", 300), ("removing", 900_000), ("dead", 910_000), ("gone", 915_000)],
    );
    let own = life(
        5,
        &[
            ("cloning", 800_000),
            ("cloned", 805_000),
            ("configured", 806_000),
            ("starting", 910_200),
            ("started", 911_000),
            ("warm", 990_000),
            ("leased", 1_000_000),
            ("leased", 1_000_010),
            ("removing", 1_900_000),
            ("dead", 1_910_000),
            ("gone", 1_920_000),
        ],
    );
    let after = life(
        6,
        &[
            ("cloning", 1_905_000),
            ("configured", 1_915_000),
            ("starting", 1_915_100),
            ("started", 1_916_000),
            ("warm", 2_500_000),
        ],
    );
    let slots = vec![SlotLives { before: Some(before), own, after: Some(after) }];
    let trace =
        drawn(&record(vec![phase("queue", 1_000_000, 1_000_000)]), &Timeline { slots, done: Vec::new() });
    assert_eq!(
        names(&trace, "slot"),
        [
            "preheat-linux-0-3 10000",
            "gap 1000",
            "to be let run 200",
            "run 800",
            "preheat-linux-0-5 999000",
            "gap 6000",
            "no clone yet 5000",
            "to be let run 100",
            "run 900",
            "preheat-linux-0-6 584000",
        ]
    );
    let vm = &trace.other_data.vms[0];
    let (before, after) = (vm.before.as_ref().expect("one"), vm.after.as_ref().expect("one"));
    assert_eq!((before.gap_us, before.cloned_ahead, before.warm_after_us), (Some(1_000), true, Some(80_000)));
    assert_eq!((after.gap_us, after.cloned_ahead, after.warm_after_us), (Some(6_000), false, Some(590_000)));
    let leased = vm.phases.iter().find(|share| share.owner == "leased").expect("there");
    assert_eq!((leased.us, leased.times), (900_000, 1), "told twice, it is one");
}

#[test]
fn a_build_of_an_earlier_daemon_has_a_trace_that_says_what_is_missing() {
    let mut old = record(vec![phase("queue", 1_000_000, 5_000), phase("step", 1_005_000, 9_000)]);
    old.stamps = Default::default();
    old.finished_ms = Some(UnixMillis(1_014));
    for phase in &mut old.phases {
        (phase.started_us, phase.took_us) = (None, None);
    }
    let trace = drawn(&old, &Timeline::default());
    assert_eq!((trace.other_data.total_us, trace.other_data.unaccounted_us), (14_000, 0));
    assert!(trace.other_data.notes.iter().any(|note| note.contains("milliseconds")));
    assert!(trace.other_data.notes.iter().any(|note| note.contains("its VM and its slot")));
    assert_eq!(
        trace.trace_events.iter().filter(|event| event.ph == "i").count(),
        2,
        "seen in the viewer too"
    );
}

#[test]
fn what_is_done_when_the_build_is_over_is_drawn_behind_it_and_each_delivery_on_its_sinks_line() {
    let upload = |sink: &str, from, to, error: Option<&str>| BuildSpan {
        build: BuildId(7),
        name: UPLOAD.into(),
        sink: Some(sink.into()),
        attempt: 1,
        began_us: UnixMicros(from),
        ended_us: UnixMicros(to),
        error: error.map(str::to_owned),
    };
    let record_of_it =
        BuildSpan { name: RECORD.into(), sink: None, ..upload("", 2_000_000, 2_004_000, None) };
    let done = vec![
        record_of_it,
        upload("nas", 2_000_000, 2_100_000, Some("away")),
        upload("s3", 2_000_000, 2_300_000, None),
        upload("nas", 2_050_000, 2_200_000, None),
    ];
    let trace = drawn(&record(Vec::new()), &Timeline { slots: Vec::new(), done });
    assert_eq!(names(&trace, "upload"), ["upload nas 100000", "upload nas 100000", "upload s3 300000"]);
    assert_eq!(spans(&trace, "upload")[0].args["error"], "away");
    assert_eq!(names(&trace, "build").last().map(String::as_str), Some("record 4000"));
}
