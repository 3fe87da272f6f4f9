//! Spans out of what was written down: the build's phases from its record, its VMs' lives and its slots from beside it. Every
//! moment from the submission to the result has an owner, and where it has none that is a span too. Spans of one thread lie
//! in each other or beside each other, whatever was written: clocks may have been set between two runs of the daemon.

mod lives;

use serde_json::{Map, Value, json};

use super::chrome;
use crate::api::timeline::{ChromeTrace, Share, TraceSummary};
use crate::api::wire::PhaseView;
use crate::clock::UnixMicros;
use crate::store::BuildRecord;
use crate::store::spans::{RECORD, Timeline, UPLOAD};

/// Nobody's.
pub const UNACCOUNTED: &str = "unaccounted";

/// Something with a beginning and an end.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub name: String,
    /// `build`, `vm`, `slot`, `upload`.
    pub kind: &'static str,
    pub from: UnixMicros,
    pub to: UnixMicros,
    pub args: Map<String, Value>,
}

impl Span {
    /// How long.
    pub fn micros(&self) -> u64 {
        self.to.since(self.from)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub name: String,
    pub what: String,
    pub at: UnixMicros,
}

/// What lies on one line.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Thread {
    pub name: String,
    pub spans: Vec<Span>,
    pub marks: Vec<Mark>,
}

/// Lines that belong together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Process {
    pub name: String,
    pub threads: Vec<Thread>,
}

/// What a timeline is drawn from.
pub struct Known<'a> {
    pub record: &'a BuildRecord,
    pub beside: &'a Timeline,
    pub now: UnixMicros,
    /// VMs that exist now; what the others did last is not going on.
    pub alive: &'a dyn Fn(&str) -> bool,
}

/// The trace of a build.
pub fn trace(known: &Known<'_>) -> ChromeTrace {
    let (from, to) = ends(known.record, known.now);
    let pieces = pieces(known.record, from, to);
    let notes = notes(known, to);
    let marks = notes.iter().map(|what| Mark { name: "note".into(), what: what.clone(), at: to });
    let line =
        Thread { name: "phases".into(), spans: build_line(known, &pieces, from, to), marks: marks.collect() };
    let mut processes = vec![Process { name: format!("build {}", known.record.id), threads: vec![line] }];
    let (of_vms, vms) = lives::draw(known);
    processes.extend(of_vms);
    let (deliveries, uploads) = uploads(known);
    processes.extend(deliveries);
    let owners = shares(pieces.iter().map(|piece| (piece.owner.as_str(), piece.to.since(piece.from))));
    let lines = processes.iter().flat_map(|process| &process.threads);
    let summary = TraceSummary {
        build: known.record.id,
        project: known.record.spec.project.clone(),
        pool: known.record.spec.pool.to_string(),
        result: known.record.result,
        origin_us: lines.flat_map(|line| line.spans.iter().map(|span| span.from)).min().unwrap_or(from),
        total_us: to.since(from),
        unaccounted_us: owners.iter().filter(|share| share.owner == UNACCOUNTED).map(|share| share.us).sum(),
        owners,
        vms,
        uploads,
        notes,
    };
    chrome::trace(&processes, summary)
}

/// From the submission to the result, or to now.
fn ends(record: &BuildRecord, now: UnixMicros) -> (UnixMicros, UnixMicros) {
    let from = record.stamps.submitted_us.unwrap_or(record.submitted_ms.into());
    let finished = record.stamps.finished_us.or(record.finished_ms.map(Into::into));
    (from, finished.unwrap_or(now).max(from))
}

/// What somebody had of the build's time.
struct Piece {
    name: String,
    owner: String,
    attempt: Option<u16>,
    from: UnixMicros,
    to: UnixMicros,
    args: Map<String, Value>,
}

/// The whole time from `from` to `to`, in pieces without a gap.
fn pieces(record: &BuildRecord, from: UnixMicros, to: UnixMicros) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut cursor, mut run) = (from, 1);
    for (at, phase) in record.phases.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|before| record.phases.get(before));
        let began = started(phase).clamp(cursor, to);
        if began > cursor {
            pieces.push(between(before, phase, cursor, began));
        }
        run = if before.is_some_and(|before| is_rerun(before, phase)) { run + 1 } else { 1 };
        cursor = ended(phase).unwrap_or(to).clamp(began, to);
        pieces.push(worked(phase, run, began, cursor));
    }
    if cursor < to {
        pieces.push(nobodys(cursor, to));
    }
    pieces
}

fn started(phase: &PhaseView) -> UnixMicros {
    phase.started_us.unwrap_or(phase.started_ms.into())
}

/// `None` while it goes on.
fn ended(phase: &PhaseView) -> Option<UnixMicros> {
    let took = phase.took_us.or(phase.took_ms.map(|ms| ms.saturating_mul(1000)))?;
    Some(UnixMicros(started(phase).0.saturating_add(i64::try_from(took).unwrap_or(i64::MAX))))
}

/// A step that failed and was run again, in the same attempt.
fn is_rerun(before: &PhaseView, phase: &PhaseView) -> bool {
    let same = before.phase == "step" && phase.phase == "step" && before.step == phase.step;
    same && before.attempt == phase.attempt && before.exit_code.is_some_and(|code| code != 0)
}

fn owner(phase: &PhaseView) -> String {
    match &phase.step {
        Some(step) => format!("{} {step}", phase.phase),
        None => phase.phase.clone(),
    }
}

fn worked(phase: &PhaseView, run: u32, from: UnixMicros, to: UnixMicros) -> Piece {
    let mut args = Map::from_iter([("attempt".to_owned(), phase.attempt.into())]);
    args.extend(phase.exit_code.map(|code| ("exit_code".to_owned(), code.into())));
    args.extend((run > 1).then(|| ("run".to_owned(), run.into())));
    args.extend((ended(phase).is_none()).then(|| ("open".to_owned(), true.into())));
    let owner = owner(phase);
    let name = if run > 1 { format!("{owner} (run {run})") } else { owner.clone() };
    Piece { name, owner, attempt: Some(phase.attempt), from, to, args }
}

/// What lies between two phases: before the first one the build was taken in, and between attempts there is a pause.
fn between(before: Option<&PhaseView>, phase: &PhaseView, from: UnixMicros, to: UnixMicros) -> Piece {
    match before {
        None => Piece { name: "accept".into(), owner: "accept".into(), ..nobodys(from, to) },
        Some(before) if before.attempt < phase.attempt => {
            Piece { name: "pause".into(), owner: "pause".into(), ..nobodys(from, to) }
        }
        Some(before) => {
            let attempt = Some(phase.attempt).filter(|attempt| *attempt == before.attempt);
            Piece { attempt, ..nobodys(from, to) }
        }
    }
}

fn nobodys(from: UnixMicros, to: UnixMicros) -> Piece {
    Piece { name: UNACCOUNTED.into(), owner: UNACCOUNTED.into(), attempt: None, from, to, args: Map::new() }
}

fn build_line(known: &Known<'_>, pieces: &[Piece], from: UnixMicros, to: UnixMicros) -> Vec<Span> {
    let record = known.record;
    let said = record.result.map_or("under way", |result| result.as_str());
    let whole = |name: String, from, to, args| Span { name, kind: "build", from, to, args };
    let mut args = Map::from_iter([("project".to_owned(), json!(record.spec.project))]);
    args.extend(record.reason.iter().map(|why| ("reason".to_owned(), json!(why))));
    args.extend(record.vm.iter().map(|vm| ("vm".to_owned(), json!(vm))));
    args.extend(record.claim.iter().map(|claim| ("claim".to_owned(), json!(claim))));
    let mut spans = vec![whole(format!("build {}: {said}", record.id), from, to, args)];
    let arrived = record.stamps.arrived_us.filter(|arrived| *arrived < from);
    spans.extend(arrived.map(|arrived| whole("receive".into(), arrived, from, Map::new())));
    let recorded = known.beside.done.iter().rfind(|span| span.name == RECORD && span.ended_us > to);
    spans.extend(recorded.map(|span| whole(RECORD.into(), to, span.ended_us, Map::new())));
    for attempt in pieces.chunk_by(|a, b| a.attempt == b.attempt) {
        let (Some(first), Some(last)) = (attempt.first(), attempt.last()) else { continue };
        if let Some(number) = first.attempt {
            spans.push(whole(format!("attempt {number}"), first.from, last.to, Map::new()));
        }
        let piece = |p: &Piece| whole(p.name.clone(), p.from, p.to, p.args.clone());
        spans.extend(attempt.iter().map(piece));
    }
    spans
}

fn notes(known: &Known<'_>, to: UnixMicros) -> Vec<String> {
    let record = known.record;
    let mut notes = Vec::new();
    if record.stamps.submitted_us.is_none() {
        notes.push("the build is from before timelines were kept: its phases are in milliseconds".to_owned());
    }
    let had = record.phases.iter().any(|phase| phase.phase != "queue");
    if had && known.beside.slots.is_empty() {
        let why = "it ran before timelines were kept, or what was kept has been forgotten";
        notes.push(format!("nothing is known of its VM and its slot: {why}"));
    }
    if record.result.is_none() {
        notes.push(format!("the build is under way: what goes on ends at {} here", to.0));
    }
    notes
}

fn uploads(known: &Known<'_>) -> (Option<Process>, Vec<Share>) {
    let mut threads: Vec<Thread> = Vec::new();
    let uploads = known.beside.done.iter().filter(|span| span.name == UPLOAD);
    for (upload, sink) in uploads.filter_map(|span| Some((span, span.sink.as_ref()?))) {
        let at = threads.iter().position(|thread| thread.name == *sink).unwrap_or_else(|| {
            threads.push(Thread { name: sink.clone(), ..Thread::default() });
            threads.len() - 1
        });
        let spans = &mut threads[at].spans;
        let from = spans.last().map_or(upload.began_us, |last| last.to.max(upload.began_us));
        let mut args = Map::from_iter([("attempt".to_owned(), upload.attempt.into())]);
        args.extend(upload.error.iter().map(|why| ("error".to_owned(), json!(why))));
        let (name, to) = (format!("{UPLOAD} {sink}"), upload.ended_us.max(from));
        spans.push(Span { name, kind: "upload", from, to, args });
    }
    let spans = threads.iter().flat_map(|thread| &thread.spans);
    let shares = shares(spans.map(|span| (span.name.as_str(), span.micros())));
    let process = Process { name: "deliveries".into(), threads };
    (Some(process).filter(|process| !process.threads.is_empty()), shares)
}

/// Sums by owner, in the order in which they came first.
fn shares<'a>(times: impl Iterator<Item = (&'a str, u64)>) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    for (owner, us) in times {
        match shares.iter_mut().find(|share| share.owner == owner) {
            Some(share) => (share.us, share.times) = (share.us + us, share.times + 1),
            None => shares.push(Share { owner: owner.to_owned(), us, times: 1 }),
        }
    }
    shares
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
