//! Takes down when a phase of a VM's life began, and what is done for a build that none of its phases is. Who tells it does not wait: a queue, and a task
//! that writes to the journal what has come together. One anchor dates everything in a run of the daemon.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::clock::{Anchor, Instant, UnixMicros};
use crate::ids::BuildId;
use crate::runtime::VmName;
use crate::store::spans::{BuildSpan, RECORD, UPLOAD, VmKey, VmSpan};
use crate::store::{Store, StoreError};
use crate::telemetry::events::{Degraded, SpansDropped};
use crate::vm::handle::VmReport;

/// Spans that may wait for the journal: some hundred VMs' lives. Nobody waits for a place; what finds none is counted.
const WAITING_MAX: usize = 4096;
/// What comes within this time goes into one transaction; so much of a timeline does a crash of the daemon take.
const GATHER: Duration = Duration::from_millis(200);

/// The phase that begins when the guest's process exists.
pub const STARTED: &str = "started";
/// The phase that begins when the guest is dead.
pub const DEAD: &str = "dead";
/// Not a phase: nothing of the VM is left.
pub const GONE: &str = "gone";
/// Not a phase: why one was the last.
pub const FAILED: &str = "failed";

/// What is taken down.
enum Note {
    Vm(VmSpan),
    Build(BuildSpan),
    /// Answered when all that was told before is written.
    Settle(oneshot::Sender<()>),
}

/// The way in. Clones share it.
#[derive(Clone)]
pub struct Chronicle {
    anchor: Anchor,
    notes: mpsc::Sender<Note>,
}

/// What is told and not yet written.
pub struct Unwritten(mpsc::Receiver<Note>);

impl Chronicle {
    /// A run's, and what [`write`] is to be given.
    pub fn begin() -> (Self, Unwritten) {
        let (notes, unwritten) = mpsc::channel(WAITING_MAX);
        (Self { anchor: Anchor::cast(), notes }, Unwritten(unwritten))
    }

    /// What this run's moments are dated from.
    pub fn anchor(&self) -> Anchor {
        self.anchor
    }

    /// A VM has reached a phase, now.
    pub fn vm(&self, vm: &VmName, phase: &str, build: Option<BuildId>) {
        self.note(Note::Vm(self.span(vm, phase, self.anchor.now(), build, None)));
    }

    /// A VM's actor reports; to be called where it does.
    pub fn heard(&self, vm: &VmName, report: &VmReport) {
        let now = self.anchor.now();
        let (phase, at, detail) = match report {
            VmReport::State(state) => (state.as_str(), now, None),
            VmReport::Started { at, .. } => (STARTED, self.anchor.date(*at), None),
            VmReport::GuestDead { at } => (DEAD, self.anchor.date(*at), None),
            VmReport::Gone => (GONE, now, None),
            VmReport::Failed { phase, fault } => (FAILED, now, Some(format!("{}: {fault}", phase.as_str()))),
            // Its state says so, or nothing has begun.
            VmReport::Prepared | VmReport::Warm { .. } | VmReport::Adopted { .. } => return,
            VmReport::Healthy | VmReport::Suspended | VmReport::Quarantined { .. } => return,
        };
        self.note(Note::Vm(self.span(vm, phase, at, None, detail)));
    }

    /// A result was tried to be delivered.
    pub fn upload(&self, build: BuildId, sink: &str, attempt: u32, began: Instant, error: Option<&str>) {
        let (began_us, ended_us) = (self.anchor.date(began), self.anchor.now());
        let (name, sink, error) = (UPLOAD.to_owned(), Some(sink.to_owned()), error.map(str::to_owned));
        self.note(Note::Build(BuildSpan { build, name, sink, attempt, began_us, ended_us, error }));
    }

    /// A build that was over at `over` has its result on disk.
    pub fn recorded(&self, build: BuildId, over: UnixMicros) {
        let (name, ended_us) = (RECORD.to_owned(), self.anchor.now());
        let span = BuildSpan { build, name, sink: None, attempt: 1, began_us: over, ended_us, error: None };
        self.note(Note::Build(span));
    }

    /// Waits until all that was told before is written, for `limit` at most.
    pub async fn settled(&self, limit: Duration) {
        let (reply, written) = oneshot::channel();
        let asked = async {
            if self.notes.send(Note::Settle(reply)).await.is_ok() {
                written.await.ok();
            }
        };
        timeout(limit, asked).await.ok();
    }

    fn span(
        &self,
        vm: &VmName,
        phase: &str,
        began_us: UnixMicros,
        build: Option<BuildId>,
        detail: Option<String>,
    ) -> VmSpan {
        let vm = VmKey { pool: vm.pool.to_string(), slot: vm.slot.0, generation: vm.generation.0 };
        VmSpan { vm, phase: phase.to_owned(), began_us, build, detail }
    }

    fn note(&self, note: Note) {
        if self.notes.try_send(note).is_err() {
            SpansDropped { count: 1 }.emit();
        }
    }
}

/// Writes down what is told, for as long as somebody may tell something.
pub async fn write(store: Store, mut unwritten: Unwritten) {
    let Unwritten(notes) = &mut unwritten;
    let mut told = Vec::new();
    while notes.recv_many(&mut told, WAITING_MAX).await > 0 {
        // Somebody who waits for it is not kept waiting.
        if !told.iter().any(|note| matches!(note, Note::Settle(_))) {
            tokio::select! {
                biased;
                () = sleep(GATHER) => {}
                () = asked(notes, &mut told) => {}
            }
        }
        if put_down(&store, std::mem::take(&mut told)).await.is_err() {
            return;
        }
    }
}

/// Takes in what comes until somebody waits for it.
async fn asked(notes: &mut mpsc::Receiver<Note>, told: &mut Vec<Note>) {
    while told.len() < WAITING_MAX {
        let Some(note) = notes.recv().await else { return };
        let waits = matches!(note, Note::Settle(_));
        told.push(note);
        if waits {
            return;
        }
    }
}

/// # Errors
/// When the journal is closed. What it cannot take otherwise is lost, and nobody stands still for it.
async fn put_down(store: &Store, told: Vec<Note>) -> Result<(), StoreError> {
    let (mut vms, mut builds, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
    for note in told {
        match note {
            Note::Vm(span) => vms.push(span),
            Note::Build(span) => builds.push(span),
            Note::Settle(reply) => waiting.push(reply),
        }
    }
    let count = vms.len() + builds.len();
    if count > 0 {
        match store.note_spans(vms, builds).await {
            Ok(()) => {}
            Err(StoreError::Closed) => return Err(StoreError::Closed),
            Err(error) => {
                SpansDropped { count }.emit();
                Degraded { what: "timelines in the journal", error: error.to_string() }.emit();
            }
        }
    }
    for reply in waiting {
        reply.send(()).ok();
    }
    Ok(())
}
