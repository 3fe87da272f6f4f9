//! The build's actor: decode, `state::step`, perform. It is the only writer of its build's record.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ractor::rpc::CallResult;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort};
use secrecy::SecretString;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::caching::CacheRoom;
use super::live::{LiveBuild, LiveBuilds};
use super::log::{LogHead, LogWriter};
use super::phases::Stopwatch;
use super::pipeline::{self, Progress, Work};
use super::place::{Doing, Place, Verdict};
use super::recorder::{JOURNAL_PAUSE, Recorder, Written};
use super::redact::Redactor;
use super::spec::BuildResult;
use super::state::{self, Budget, Effect, Event, Outcome, State};
use crate::api::service::Ticket;
use crate::api::wire::{Claim, GuestView};
use crate::cache::shelf::Shelf;
use crate::clock::UnixMillis;
use crate::config::{Config, Live};
use crate::guest::Look;
use crate::ids::BuildId;
use crate::jitter;
use crate::pool::handle::{Lease, LeaseEvent, Lessee, PoolHandle};
use crate::signing::vault;
use crate::store::{BuildRecord, Store, StoreError};
use crate::telemetry::events::{BuildEnded, BuildRetried, Degraded, StaleReport, VmClaimed};
use crate::telemetry::guests::{GuestLeft, GuestLooked};
use crate::trace::chronicle::Chronicle;

/// The pause before the second attempt; it doubles with each.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// And is not longer than this.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// What the actor hears.
pub enum BuildMessage {
    Pool(LeaseEvent),
    Progress(Progress),
    WorkEnded(Outcome),
    /// A pause is over: claim a VM.
    Claim,
    /// The guest of this VM was not reported dead in time.
    TearDownLate(String),
    /// Answered with whether it was in time; if it was, when it is on disk.
    Cancel(RpcReplyPort<bool>),
    /// The result is on disk.
    Recorded,
}

/// What every build needs.
#[derive(Clone)]
pub struct BuildContext {
    pub config: Live,
    pub pool: PoolHandle,
    pub store: Store,
    pub chronicle: Chronicle,
    pub live: LiveBuilds,
    pub caches: Shelf,
    /// Told when a build has something to deliver.
    pub uploads: Arc<dyn Fn() + Send + Sync>,
}

/// What one build's actor is made from.
pub struct BuildArguments {
    pub context: BuildContext,
    pub record: BuildRecord,
    pub secrets: Arc<BTreeMap<String, SecretString>>,
    /// It goes on in the VM that it had under an earlier daemon, and which the pool has adopted for it.
    pub go_on: bool,
    /// Its place in the daemon; `None` for a build that was accepted before a restart.
    pub ticket: Option<Ticket>,
}

/// A build's actor, from outside.
#[derive(Clone)]
pub struct BuildHandle {
    actor: ActorRef<BuildMessage>,
}

impl BuildHandle {
    /// Asks the build to end. `true`: it will end as cancelled, whatever else comes; `false`: it has its verdict already;
    /// `None`: its actor does not answer within `limit`, or has ended.
    pub async fn cancel(&self, limit: Duration) -> Option<bool> {
        match self.actor.call(BuildMessage::Cancel, Some(limit)).await {
            Ok(CallResult::Success(in_time)) => Some(in_time),
            Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => None,
        }
    }

    /// The actor's identity, as supervision events carry it.
    pub fn id(&self) -> ractor::ActorId {
        self.actor.get_id()
    }

    /// The actor, for its supervisor.
    pub fn cell(&self) -> ActorCell {
        self.actor.get_cell()
    }
}

/// The actor. Its state is in [`BuildLife`].
pub struct BuildActor;

/// What one build's actor knows.
pub struct BuildLife {
    context: BuildContext,
    secrets: Arc<BTreeMap<String, SecretString>>,
    _ticket: Option<Ticket>,
    state: State,
    record: BuildRecord,
    publish: watch::Sender<BuildRecord>,
    log: Option<LogWriter>,
    lease: Option<Lease>,
    dead_vms: u16,
    phases: Stopwatch,
    cancel: CancellationToken,
    task: Option<AbortOnDropHandle<()>>,
    recorder: Recorder,
}

impl Actor for BuildActor {
    type Msg = BuildMessage;
    type State = BuildLife;
    type Arguments = BuildArguments;

    async fn pre_start(
        &self,
        me: ActorRef<BuildMessage>,
        args: BuildArguments,
    ) -> Result<BuildLife, ActorProcessingErr> {
        let BuildArguments { context, mut record, secrets, go_on, ticket } = args;
        let phases = Stopwatch::over(&mut record, context.chronicle.anchor());
        record.running = go_on;
        let (log, head) = open_log(&context.config.get(), record.id, &secrets)?;
        let (publish, changed) = watch::channel(record.clone());
        let handle = BuildHandle { actor: me.clone() };
        context.live.enter(record.id, LiveBuild { record: changed, log: head, handle });
        let recorder = Recorder::new(context.store.clone(), record.clone());
        let mut life = BuildLife {
            dead_vms: 0,
            context,
            secrets,
            _ticket: ticket,
            state: if go_on { State::Adopting } else { State::Waiting },
            record,
            publish,
            log: Some(log),
            lease: None,
            phases,
            cancel: CancellationToken::new(),
            task: None,
            recorder,
        };
        if go_on {
            life.context.pool.take_up(life.record.id, lessee(&me));
        } else {
            life.claim(&me);
        }
        Ok(life)
    }

    async fn handle(
        &self,
        me: ActorRef<BuildMessage>,
        message: BuildMessage,
        life: &mut BuildLife,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            BuildMessage::Pool(LeaseEvent::Granted(lease)) => life.granted(&me, lease),
            BuildMessage::Pool(LeaseEvent::GuestDead(vm)) => life.guest_dead(&me, &vm.to_string()),
            BuildMessage::Pool(LeaseEvent::NotAdopted(why)) => {
                life.step(&me, Event::NotAdopted(format!("the daemon was restarted, and {why}")));
            }
            BuildMessage::Pool(LeaseEvent::PoolGone) => {
                let pool = &life.record.spec.pool;
                life.step(&me, Event::PoolGone(format!("there is no pool `{pool}` any more")));
            }
            BuildMessage::TearDownLate(vm) => life.guest_dead(&me, &vm),
            BuildMessage::Progress(progress) => life.progress(progress),
            BuildMessage::WorkEnded(outcome) => life.step(&me, Event::WorkEnded(outcome)),
            BuildMessage::Claim => life.claim(&me),
            BuildMessage::Cancel(reply) => life.cancel_asked(&me, reply),
            BuildMessage::Recorded => life.close(&me),
        }
        Ok(())
    }
}

/// Spawns a build's actor under `supervisor`. It claims a VM at once.
///
/// # Errors
/// When its log cannot be opened, or the actor system refuses.
pub async fn spawn(
    arguments: BuildArguments,
    supervisor: ActorCell,
) -> Result<BuildHandle, ractor::SpawnErr> {
    let (actor, _) = BuildActor::spawn_linked(None, BuildActor, arguments, supervisor).await?;
    Ok(BuildHandle { actor })
}

/// The folder of a build.
pub fn folder(config: &Config, id: BuildId) -> PathBuf {
    config.home.builds().join(id.to_string())
}

/// The log of a build.
pub fn log_path(config: &Config, id: BuildId) -> PathBuf {
    folder(config, id).join("log.jsonl")
}

/// The artifacts of a build.
pub fn artifacts_path(config: &Config, id: BuildId) -> PathBuf {
    folder(config, id).join("artifacts")
}

fn open_log(
    config: &Config,
    id: BuildId,
    secrets: &BTreeMap<String, SecretString>,
) -> std::io::Result<(LogWriter, watch::Receiver<LogHead>)> {
    std::fs::create_dir_all(folder(config, id))?;
    let redactor = Redactor::new(vault::unspeakable(secrets));
    LogWriter::open(&log_path(config, id), redactor, config.builds.log_max.0)
}

fn lessee(me: &ActorRef<BuildMessage>) -> Lessee {
    let told = me.clone();
    Arc::new(move |event| {
        told.cast(BuildMessage::Pool(event)).ok();
    })
}

impl BuildLife {
    fn step(&mut self, me: &ActorRef<BuildMessage>, event: Event) {
        match state::step(self.state.clone(), event, self.budget()) {
            Ok((next, effect)) => {
                self.state = next;
                self.perform(me, effect);
            }
            Err(refused) => StaleReport { what: "build", why: refused.to_string() }.emit(),
        }
    }

    fn budget(&self) -> Budget {
        let allowed = self.record.spec.retries.saturating_add(1);
        Budget {
            retries_left: allowed.saturating_sub(self.record.attempt),
            dead_vms: self.dead_vms,
            cancelled: self.record.cancel_asked,
        }
    }

    fn perform(&mut self, me: &ActorRef<BuildMessage>, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Claim => {
                // Nothing of the build was done in it, so it was no attempt.
                self.dead_vms += 1;
                self.record.attempt = self.record.attempt.saturating_sub(1);
                self.claim(me);
            }
            Effect::Retry { why } => self.retry(me, &why),
            Effect::Work => self.work(me, None),
            Effect::GoOn => {
                let vm = self.record.vm.as_deref().unwrap_or_default();
                self.say(format!("preheat was started again; the build goes on in {vm}"));
                self.work(me, self.record.place.clone());
            }
            Effect::CancelWork => self.cancel.cancel(),
            Effect::TearDown => self.tear_down(me),
            Effect::Finish(result, reason) => self.finish(me, result, reason),
        }
    }

    /// Whoever asked in time is told so when the request is on disk: a restart of the daemon does not lose it then.
    fn cancel_asked(&mut self, me: &ActorRef<BuildMessage>, reply: RpcReplyPort<bool>) {
        if self.record.verdict.is_some() || !state::can_be_cancelled(&self.state) {
            // It may still save caches, which is not worth the VM of somebody who waits for its end.
            self.cancel.cancel();
            reply.send(false).ok();
            return;
        }
        self.record.cancel_asked = true;
        let written = self.announce();
        tokio::spawn(async move {
            if written.wait().await {
                reply.send(true).ok();
            }
        });
        self.step(me, Event::CancelAsked);
    }

    /// The death of a VM of an attempt before is no news.
    fn guest_dead(&mut self, me: &ActorRef<BuildMessage>, vm: &str) {
        if self.record.vm.as_deref() == Some(vm) && matches!(self.state, State::TearingDown(..)) {
            self.step(me, Event::GuestDead);
        }
    }

    fn claim(&mut self, me: &ActorRef<BuildMessage>) {
        if self.state != State::Waiting {
            return;
        }
        self.task = None;
        drop(self.let_go());
        self.record.running = false;
        (self.record.vm, self.record.place) = (None, None);
        // One that waited under an earlier daemon waits on.
        if !self.phases.runs(&self.record, "queue", self.record.attempt + 1) {
            self.end_phase(None);
            self.begin_phase("queue", None);
        }
        let (id, pool) = (self.record.id, self.record.spec.pool.clone());
        self.context.pool.claim(id, pool, self.record.submitted_ms, lessee(me));
    }

    fn granted(&mut self, me: &ActorRef<BuildMessage>, lease: Lease) {
        if self.state == State::Adopting {
            self.lease = Some(lease);
            return self.step(me, Event::Granted);
        }
        if self.state != State::Waiting {
            return; // Cancelled meanwhile: the lease is dropped, and its VM taken away.
        }
        self.end_phase(None);
        self.record.attempt += 1;
        self.record.running = true;
        self.record.vm = Some(lease.vm.to_string());
        self.record.claim = Some(if lease.at_once { Claim::Hit } else { Claim::Miss });
        self.lease = Some(lease);
        self.step(me, Event::Granted);
    }

    fn work(&mut self, me: &ActorRef<BuildMessage>, from: Option<Place>) {
        let (Some(lease), Some(log)) = (&self.lease, self.log.clone()) else { return };
        let config = &self.context.config.get();
        let probe_timeout = config.pools.get(&self.record.spec.pool).map(|pool| pool.probe_timeout);
        let work = Work {
            spec: self.record.spec.clone(),
            channel: lease.channel.clone(),
            from,
            source: config.home.spool().join(&self.record.source),
            artifacts: artifacts_path(config, self.record.id),
            artifacts_max: config.builds.artifacts_max.0,
            caches: self.cache_room(config),
            secrets: self.secrets.clone(),
            log,
            log_path: log_path(config, self.record.id),
            probe_timeout: probe_timeout.unwrap_or(Duration::from_secs(5)),
            kill_grace: config.builds.kill_grace,
            guest_health: config.builds.guest_health,
            cancel: self.cancel.clone(),
        };
        let me = me.clone();
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let report = |progress| {
                me.cast(BuildMessage::Progress(progress)).ok();
            };
            let outcome = pipeline::work(work, report).await;
            me.cast(BuildMessage::WorkEnded(outcome)).ok();
        })));
    }

    fn cache_room(&self, config: &Config) -> CacheRoom {
        CacheRoom {
            build: self.record.id,
            shelf: self.context.caches.clone(),
            bounds: config.caches.clone(),
            home: config.home.path().to_owned(),
            disk_free_min: config.host.disk_free_min.0,
        }
    }

    fn progress(&mut self, progress: Progress) {
        match progress {
            Progress::Began { phase, step } => {
                self.begin_phase(phase, step);
            }
            Progress::WentOn => {
                self.phases.go_on(&mut self.record);
                self.announce();
            }
            Progress::Reached { place, kept } => {
                let (phase, step) = self.phase_of(&place.doing);
                if !self.phases.runs(&self.record, phase, self.record.attempt) {
                    self.begin_phase(phase, step);
                }
                self.record.place = Some(place);
                kept.send(self.announce()).ok();
            }
            Progress::Ended { exit_code } => {
                if self.record.phases.last().is_some_and(|phase| phase.phase == "probe") {
                    self.claimed();
                }
                self.end_phase(exit_code);
            }
            Progress::Artifacts(artifacts) => {
                self.record.artifacts = artifacts;
                self.announce();
            }
            Progress::Failed(failure) => {
                self.record.failure = Some(failure);
                self.announce();
            }
            Progress::CachesRestored(caches) => {
                self.record.caches = caches;
                self.announce();
            }
            Progress::Succeeded { kept } => self.succeeded(kept),
            Progress::Looked { look, low } => self.looked(look, low),
            Progress::CachesSaved(saved) => {
                for (key, saved) in saved {
                    let cache = self.record.caches.iter_mut().find(|cache| cache.key == key);
                    cache.into_iter().for_each(|cache| cache.saved = Some(saved.clone()));
                }
                self.announce();
            }
        }
    }

    /// Not worth a write to the journal by itself: it is there with what comes next.
    fn looked(&mut self, look: Look, low: bool) {
        let Some(lease) = &self.lease else { return };
        GuestLooked { build: self.record.id, vm: &lease.vm, look, low }.emit();
        let (Some(cpu_percent), Some(memory), Some(disk)) = (look.cpu_percent, look.memory, look.disk) else {
            return;
        };
        self.record.guest = Some(GuestView {
            cpu_percent,
            memory_used_bytes: memory.0,
            memory_total_bytes: memory.1,
            disk_used_bytes: disk.0,
            disk_free_bytes: disk.1,
            at_ms: UnixMillis::now(),
        });
        self.publish.send_replace(self.record.clone());
    }

    /// What is left is to save caches, and no crash in it runs the build again. Who cancelled before was told that it ends so.
    fn succeeded(&mut self, kept: oneshot::Sender<Written>) {
        if !self.record.cancel_asked {
            self.record.verdict = Some(Verdict { result: BuildResult::Success, reason: None });
            kept.send(self.announce()).ok();
        }
    }

    fn phase_of(&self, doing: &Doing) -> (&'static str, Option<String>) {
        match doing {
            Doing::Step { index, .. } => ("step", self.record.spec.steps.get(*index).map(|s| s.name.clone())),
            Doing::Artifacts => ("artifacts", None),
        }
    }

    /// The VM answered: the claim is served, and only now it counts.
    fn claimed(&mut self) {
        let (Some(lease), Some(claim)) = (&self.lease, self.record.claim) else { return };
        self.dead_vms = 0;
        VmClaimed { build: self.record.id, vm: &lease.vm, claim, waited: lease.waited }.emit();
    }

    fn let_go(&mut self) -> Option<Lease> {
        self.lease.take().inspect(|lease| GuestLeft { vm: &lease.vm }.emit())
    }

    /// The verdict is on disk before the guest is touched: a crash from here on ends the build so, and never runs it again.
    fn tear_down(&mut self, me: &ActorRef<BuildMessage>) {
        self.end_phase(None);
        if let State::TearingDown(result, reason) = &self.state {
            self.record.verdict = Some(Verdict { result: *result, reason: reason.clone() });
        }
        let written = self.begin_phase("teardown", None);
        let lease = self.let_go();
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            written.wait().await;
            drop(lease);
        })));
        if let Some(vm) = self.record.vm.clone() {
            me.send_after(self.context.config.get().runtime.deadlines.stop, || {
                BuildMessage::TearDownLate(vm)
            });
        }
    }

    fn retry(&mut self, me: &ActorRef<BuildMessage>, why: &str) {
        self.end_phase(None);
        self.task = None;
        drop(self.let_go());
        self.record.guest = None;
        BuildRetried {
            build: self.record.id,
            pool: &self.record.spec.pool,
            attempt: self.record.attempt,
            why,
        }
        .emit();
        self.say(format!(
            "attempt {} failed, and not by your doing: {why}; it is tried again",
            self.record.attempt
        ));
        let failures = u32::from(self.record.attempt);
        let pause = jitter::backoff(RETRY_PAUSE, RETRY_PAUSE_MAX, failures, jitter::next());
        self.record.running = false;
        self.record.artifacts.clear();
        self.record.caches.clear();
        self.record.failure = None;
        self.record.place = None;
        self.dead_vms = 0;
        self.announce();
        me.send_after(pause, || BuildMessage::Claim);
    }

    fn finish(&mut self, me: &ActorRef<BuildMessage>, result: BuildResult, reason: Option<String>) {
        self.context.pool.withdraw(self.record.id);
        self.end_phase(None);
        self.record.running = false;
        self.record.result = Some(result);
        self.record.reason = reason;
        self.record.finished_ms = Some(UnixMillis::now());
        self.record.stamps.finished_us = Some(self.context.chronicle.anchor().now());
        let verdict = Verdict { result, reason: self.record.reason.clone() };
        self.say(verdict.said());
        let (store, record, me) = (self.context.store.clone(), self.record.clone(), me.clone());
        let sinks: Vec<String> = self.context.config.get().uploads.iter().map(|u| u.name.clone()).collect();
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            // The result stands when it is on disk, not before.
            while let Err(error) = store.finish(record.clone(), sinks.clone()).await {
                Degraded { what: "journal", error: error.to_string() }.emit();
                if matches!(error, StoreError::Closed) {
                    return;
                }
                tokio::time::sleep(JOURNAL_PAUSE).await;
            }
            me.cast(BuildMessage::Recorded).ok();
        })));
    }

    /// The result is on disk: it is told, and the actor ends.
    fn close(&mut self, me: &ActorRef<BuildMessage>) {
        let record = &self.record;
        let took = record.finished_ms.map_or(Duration::ZERO, |end| end.since(record.submitted_ms));
        if let Some(over) = record.stamps.finished_us {
            self.context.chronicle.recorded(record.id, over);
        }
        if let Some(result) = record.result {
            let (pool, reason) = (record.spec.pool.as_str(), record.reason.as_deref());
            BuildEnded { build: record.id, pool, result, reason, took }.emit();
        }
        self.announce();
        std::fs::remove_file(self.context.config.get().home.spool().join(&record.source)).ok();
        self.context.live.remove(record.id);
        (self.context.uploads)();
        self.log = None;
        me.stop(None);
    }

    fn say(&self, text: String) {
        if let Some(log) = self.log.clone() {
            // In a task, because the log may be behind; the clone keeps it open until the line is in.
            tokio::spawn(async move { log.say(text).await });
        }
    }

    fn begin_phase(&mut self, phase: &'static str, step: Option<String>) -> Written {
        // Waiting is part of the attempt that it is for.
        let attempt = self.record.attempt + u16::from(!self.record.running);
        self.phases.begin(&mut self.record, phase, step, attempt);
        self.announce()
    }

    fn end_phase(&mut self, exit_code: Option<i32>) {
        if self.phases.end(&mut self.record, exit_code) {
            self.announce();
        }
    }

    /// To whoever looks, and to the journal.
    fn announce(&self) -> Written {
        self.publish.send_replace(self.record.clone());
        self.recorder.note(self.record.clone())
    }
}
