//! The VMs that a build had, each on its own line, and the slots in which they ran: who held the place, and the gap between
//! one guest's death and the next one's process.

use serde_json::{Map, Value, json};

use super::{Known, Mark, Process, Span, Thread, shares};
use crate::api::timeline::{Turn, VmShares};
use crate::clock::UnixMicros;
use crate::ids::{Generation, SlotId};
use crate::runtime::VmName;
use crate::store::spans::{SlotLives, VmKey, VmLife};

/// What was written down when a phase began, and what the phase is called where time is what matters.
const PHASES: &[(&str, &str)] = &[
    ("cloning", "clone"),
    ("cloned", "configure"),
    ("configured", "wait for the slot"),
    ("starting", "start"),
    ("started", "address"),
    ("addressed", "connect"),
    ("answering", "warm-up"),
    ("warm", "warm"),
    ("leased", "leased"),
    ("suspending", "suspend"),
    ("suspended", "suspended"),
    ("adopting", "adopt"),
    ("removing", "kill"),
    ("dead", "delete"),
    ("quarantined", "quarantined"),
];

/// What is written down and is no phase: it happened.
const MARKS: [&str; 2] = ["gone", "failed"];

fn called(phase: &str) -> &str {
    PHASES.iter().find(|(written, _)| *written == phase).map_or(phase, |(_, called)| called)
}

/// A VM's name, as it is everywhere else.
fn name(vm: &VmKey) -> String {
    let VmKey { pool, slot, generation } = vm;
    match pool.parse() {
        Ok(pool) => VmName { pool, slot: SlotId(*slot), generation: Generation(*generation) }.to_string(),
        Err(_) => format!("{pool}-{slot}-{generation}"),
    }
}

/// A process for the VMs, one for each slot, and the figures.
pub(super) fn draw(known: &Known<'_>) -> (Vec<Process>, Vec<VmShares>) {
    let (mut own, mut slots, mut figures) =
        (Process { name: "vm".into(), ..Process::default() }, Vec::new(), Vec::new());
    for lives in &known.beside.slots {
        let line = line(known, &lives.own, |_| true);
        figures.push(VmShares {
            vm: line.name.clone(),
            slot: format!("{}/{}", lives.own.vm.pool, lives.own.vm.slot),
            phases: shares(line.spans.iter().map(|span| (span.name.as_str(), span.micros()))),
            before: lives.before.as_ref().map(|before| turn(&before.vm, before, &lives.own)),
            after: lives.after.as_ref().map(|after| turn(&after.vm, &lives.own, after)),
        });
        own.threads.push(line);
        slots.push(slot(known, lives));
    }
    let own = Some(own).filter(|own| !own.threads.is_empty());
    (own.into_iter().chain(slots).collect(), figures)
}

/// When the VM first reached a phase.
fn first(life: &VmLife, phase: &str) -> Option<UnixMicros> {
    life.spans.iter().find(|span| span.phase == phase).map(|span| span.began_us)
}

fn turn(other: &VmKey, earlier: &VmLife, later: &VmLife) -> Turn {
    let dead = first(earlier, "dead");
    let after = |at: Option<UnixMicros>| Some(at?.since(dead?));
    let cloned = first(later, "configured");
    Turn {
        vm: name(other),
        gap_us: after(first(later, "started")),
        cloned_ahead: cloned.is_some_and(|cloned| dead.is_none_or(|dead| cloned <= dead)),
        warm_after_us: after(first(later, "warm")),
    }
}

/// A VM's phases as far as `shown` says; what it does last goes on until now, if the VM is there.
fn line(known: &Known<'_>, life: &VmLife, shown: impl Fn(&str) -> bool) -> Thread {
    let mut line = Thread { name: name(&life.vm), ..Thread::default() };
    let mut open: Option<Span> = None;
    let mut cursor = UnixMicros(i64::MIN);
    for written in &life.spans {
        let at = written.began_us.max(cursor);
        cursor = at;
        if written.phase == "failed" {
            let what = written.detail.clone().unwrap_or_default();
            line.marks.push(Mark { name: "failed".into(), what, at });
            continue;
        }
        // The pool says who has it a moment before the VM itself says that somebody has.
        if let Some(same) = open.as_mut().filter(|same| same.name == called(&written.phase)) {
            same.args.extend(build(written.build.map(|id| id.0)));
            continue;
        }
        line.spans.extend(open.take().map(|span| Span { to: at, ..span }));
        if !MARKS.contains(&written.phase.as_str()) && shown(&written.phase) {
            let (name, args) = (called(&written.phase).to_owned(), build(written.build.map(|id| id.0)));
            open = Some(Span { name, kind: "vm", from: at, to: at, args: Map::from_iter(args) });
        }
    }
    if let Some(mut span) = open {
        if (known.alive)(&line.name) {
            span.to = known.now.max(span.from);
            span.args.insert("open".into(), true.into());
        } else {
            span.args.insert("end".into(), "nobody was there to see it".into());
        }
        line.spans.push(span);
    }
    line
}

fn build(id: Option<u64>) -> Option<(String, Value)> {
    id.map(|id| ("build".to_owned(), id.into()))
}

/// The slot: its place, the death before, the birth after.
fn slot(known: &Known<'_>, lives: &SlotLives) -> Process {
    let SlotLives { before, own, after } = lives;
    let mut threads = vec![place(known, lives)];
    let dies = |phase: &str| matches!(phase, "removing" | "dead" | "quarantined");
    let comes_up = |phase: &str| !matches!(phase, "warm" | "leased") && !dies(phase);
    let named = |what: &str, line: Thread| Thread { name: format!("{what} {}", line.name), ..line };
    threads.extend(before.as_ref().map(|vm| named("before:", line(known, vm, dies))));
    threads.extend(after.as_ref().map(|vm| named("after:", line(known, vm, comes_up))));
    Process { name: format!("slot {}/{}", own.vm.pool, own.vm.slot), threads }
}

/// Who held the place, and what it was empty for.
fn place(known: &Known<'_>, lives: &SlotLives) -> Thread {
    let mut spans: Vec<Span> = Vec::new();
    let mut earlier: Option<&VmLife> = None;
    for life in [lives.before.as_ref(), Some(&lives.own), lives.after.as_ref()].into_iter().flatten() {
        let free = spans.last().map(|span| span.to);
        if let (Some(free), Some(_)) = (free, earlier.and_then(|vm| first(vm, "dead"))) {
            spans.extend(gap(free, life));
        }
        let Some(started) = first(life, "started").map(|at| at.max(free.unwrap_or(at))) else { break };
        let seen = life.spans.last().map_or(started, |last| last.began_us);
        let alive = (known.alive)(&name(&life.vm));
        let to = first(life, "dead").unwrap_or(if alive { known.now } else { seen });
        // Of its neighbours only what is next to it: an idle one may have been warm for hours.
        let from = if life.vm == lives.own.vm || earlier.is_some() {
            started
        } else {
            to.min(dying(life).unwrap_or(to))
        };
        let args = Map::from_iter([("vm".to_owned(), json!(name(&life.vm)))]);
        spans.push(Span { name: name(&life.vm), kind: "slot", from, to: to.max(from), args });
        earlier = Some(life);
    }
    Thread { name: "place".into(), spans, marks: Vec::new() }
}

fn dying(life: &VmLife) -> Option<UnixMicros> {
    first(life, "removing")
}

/// From `free` to the process of the next guest, and in it what was waited for.
fn gap(free: UnixMicros, next: &VmLife) -> Vec<Span> {
    let Some(started) = first(next, "started").filter(|started| *started > free) else { return Vec::new() };
    let cloned = first(next, "configured").unwrap_or(free).clamp(free, started);
    let granted = first(next, "starting").unwrap_or(cloned).clamp(cloned, started);
    let ahead = Map::from_iter([("cloned_ahead".to_owned(), Value::from(cloned == free))]);
    let span = |name: &str, from, to| Span { name: name.into(), kind: "slot", from, to, args: Map::new() };
    let parts =
        [("no clone yet", free, cloned), ("to be let run", cloned, granted), ("run", granted, started)];
    let parts =
        parts.into_iter().filter(|(_, from, to)| from < to).map(|(name, from, to)| span(name, from, to));
    std::iter::once(Span { args: ahead, ..span("gap", free, started) }).chain(parts).collect()
}
