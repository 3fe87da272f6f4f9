//! Spans as Chrome's trace events: a process and threads with names, and what lies on each thread in its order, whole before
//! part.

use serde_json::{Map, Value};

use super::timeline::{Mark, Process, Span};
use crate::api::timeline::{ChromeTrace, TraceEvent, TraceSummary};
use crate::clock::UnixMicros;

/// Processes with their threads, and the figures.
pub fn trace(processes: &[Process], other_data: TraceSummary) -> ChromeTrace {
    let origin = other_data.origin_us;
    let mut trace_events = Vec::new();
    // Perfetto takes a thread's number for unique on the machine.
    let mut tid = 0;
    for (pid, process) in (1u32..).zip(processes) {
        trace_events.push(name("process_name", &process.name, pid, tid + 1));
        trace_events.push(order("process_sort_index", pid, tid + 1, pid));
        for thread in &process.threads {
            tid += 1;
            trace_events.push(name("thread_name", &thread.name, pid, tid));
            trace_events.push(order("thread_sort_index", pid, tid, tid));
            let mut spans: Vec<&Span> = thread.spans.iter().collect();
            spans.sort_by_key(|span| (span.from, std::cmp::Reverse(span.to)));
            trace_events.extend(spans.into_iter().map(|span| complete(span, origin, pid, tid)));
            trace_events.extend(thread.marks.iter().map(|mark| instant(mark, origin, pid, tid)));
        }
    }
    ChromeTrace { trace_events, display_time_unit: "ms".into(), other_data }
}

fn complete(span: &Span, origin: UnixMicros, pid: u32, tid: u32) -> TraceEvent {
    TraceEvent {
        cat: Some(span.kind.to_owned()),
        dur: Some(span.micros()),
        ts: span.from.since(origin),
        args: span.args.clone(),
        ..event(&span.name, "X", pid, tid)
    }
}

fn instant(mark: &Mark, origin: UnixMicros, pid: u32, tid: u32) -> TraceEvent {
    let args = Map::from_iter([("what".to_owned(), Value::from(mark.what.as_str()))]);
    let ts = mark.at.since(origin);
    TraceEvent { cat: Some("mark".into()), ts, s: Some("t".into()), args, ..event(&mark.name, "i", pid, tid) }
}

fn name(what: &str, name: &str, pid: u32, tid: u32) -> TraceEvent {
    TraceEvent {
        args: Map::from_iter([("name".to_owned(), Value::from(name))]),
        ..event(what, "M", pid, tid)
    }
}

fn order(what: &str, pid: u32, tid: u32, index: u32) -> TraceEvent {
    let args = Map::from_iter([("sort_index".to_owned(), Value::from(index))]);
    TraceEvent { args, ..event(what, "M", pid, tid) }
}

fn event(name: &str, ph: &str, pid: u32, tid: u32) -> TraceEvent {
    let (name, ph) = (name.to_owned(), ph.to_owned());
    TraceEvent { name, cat: None, ph, ts: 0, dur: None, pid, tid, s: None, args: Map::new() }
}
