//! The VM's actor: decode, `state::step`, perform. No handler waits: work is a task that reports back.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::birth::{self, Answered, Origin, Recipe, Stillborn};
use super::handle::{Reporter, VmCommand, VmHandle, VmReport};
use super::removal::{self, Watch};
use super::state::{self, BirthPhase, Effect, Event, VmPhase, VmStateName};
use crate::clock::{self, Deadline, Instant};
use crate::guest::{Channel, Connector};
use crate::runtime::{Fault, Reason, RunProcess, Runtime};
use crate::telemetry::events::{
    RetireReason, StaleReport, VmFailed, VmPhaseEnded, VmQuarantined, VmRetired, VmWarmed,
};

/// What the actor hears: commands from the pool, reports from its own tasks.
pub enum VmMessage {
    Command(VmCommand),
    /// Other deadlines hold from now on.
    Follow(Box<Recipe>),
    Task(TaskReport),
}

/// What the actor's tasks report.
pub enum TaskReport {
    Finished(BirthPhase, Duration),
    Started(Box<dyn RunProcess>, Instant),
    Answered(Answered),
    Stillborn(Stillborn),
    NotAdopted(Fault),
    Suspended,
    NotSuspended(Fault),
    RunEnded(Fault),
    ConnectionLost(Fault),
    ProbeDue,
    Probed(Result<(), Fault>),
    GuestDead(Instant),
    Removed,
    RemovalFailed(Fault),
}

/// How an actor begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With a clone.
    Birth,
    /// With what runs already: a build had it under an earlier daemon.
    Adoption,
    /// With what lies on the disk: an earlier daemon suspended it.
    Keeping,
    /// With removal: an earlier actor of this VM failed.
    Removal,
}

/// What an actor is made from.
pub struct VmArguments {
    pub recipe: Recipe,
    pub runtime: Arc<dyn Runtime>,
    pub connector: Arc<dyn Connector>,
    pub report: Reporter,
    pub begin: Begin,
}

/// The actor. Its state is in [`VmLife`].
pub struct VmActor;

/// What one VM's actor knows.
pub struct VmLife {
    recipe: Arc<Recipe>,
    runtime: Arc<dyn Runtime>,
    connector: Arc<dyn Connector>,
    report: Reporter,
    state: VmStateName,
    /// The task of the current phase; replaced or dropped, it is aborted.
    task: Option<AbortOnDropHandle<()>>,
    /// Tells when the connection is lost.
    listener: Option<AbortOnDropHandle<()>>,
    watch: Option<Watch>,
    /// A removal that waits for the process that is being started; whether there will be one is not known before.
    awaited: Option<oneshot::Sender<Watch>>,
    channel: Option<Arc<dyn Channel>>,
    /// Whether a guest may have been started.
    started: Option<Instant>,
}

impl Actor for VmActor {
    type Msg = VmMessage;
    type State = VmLife;
    type Arguments = VmArguments;

    async fn pre_start(
        &self,
        me: ActorRef<VmMessage>,
        args: VmArguments,
    ) -> Result<VmLife, ActorProcessingErr> {
        let mut life = VmLife {
            recipe: Arc::new(args.recipe),
            runtime: args.runtime,
            connector: args.connector,
            report: args.report,
            state: VmStateName::Cloning,
            task: None,
            listener: None,
            watch: None,
            awaited: None,
            channel: None,
            started: None,
        };
        match args.begin {
            Begin::Birth => life.prepare(&me),
            Begin::Adoption => life.adopt(&me),
            Begin::Keeping => {
                life.state = VmStateName::Suspended;
                (life.report)(&life.recipe.name, VmReport::State(life.state));
            }
            Begin::Removal => {
                life.started = Some(clock::now());
                life.step(&me, Event::Failed);
            }
        }
        Ok(life)
    }

    async fn handle(
        &self,
        me: ActorRef<VmMessage>,
        message: VmMessage,
        life: &mut VmLife,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            VmMessage::Command(command) => life.command(&me, command),
            VmMessage::Follow(recipe) => life.recipe = Arc::new(*recipe),
            VmMessage::Task(report) => life.task_reported(&me, report),
        }
        Ok(())
    }
}

/// Spawns a VM's actor under `supervisor`. It begins at once.
///
/// # Errors
/// When the actor system refuses.
pub async fn spawn(
    arguments: VmArguments,
    supervisor: ractor::ActorCell,
) -> Result<VmHandle, ractor::SpawnErr> {
    let (actor, _) = VmActor::spawn_linked(None, VmActor, arguments, supervisor).await?;
    Ok(VmHandle::new(actor))
}

fn tell(me: &ActorRef<VmMessage>, report: TaskReport) {
    me.cast(VmMessage::Task(report)).ok();
}

impl VmLife {
    fn command(&mut self, me: &ActorRef<VmMessage>, command: VmCommand) {
        match command {
            VmCommand::GrantSlot => self.step(me, Event::SlotGranted),
            VmCommand::Lease => self.step(me, Event::Leased),
            VmCommand::Suspend => self.step(me, Event::SuspendAsked),
            VmCommand::Remove(reason) => {
                if !matches!(self.state, VmStateName::Removing | VmStateName::Quarantined) {
                    VmRetired { vm: &self.recipe.name, reason }.emit();
                }
                self.step(me, Event::RemovalAsked);
            }
            VmCommand::Vanished => {
                let text = "its process or its files are gone from the host";
                self.fail(me, self.phase(), &Fault::new(Reason::GuestStopped, "janitor", text));
            }
        }
    }

    fn task_reported(&mut self, me: &ActorRef<VmMessage>, report: TaskReport) {
        match report {
            TaskReport::Finished(phase, took) => {
                VmPhaseEnded { vm: &self.recipe.name, phase, took }.emit();
                self.step(me, Event::Finished(phase));
            }
            TaskReport::Started(process, at) => self.own(me, process, at),
            TaskReport::Answered(answered) => self.answered(me, answered),
            TaskReport::Stillborn(Stillborn { phase, fault }) => {
                self.awaited = None;
                if !matches!(self.state, VmStateName::Removing | VmStateName::Quarantined) {
                    self.task = None; // It has said its last: no process comes of it.
                }
                self.fail(me, VmPhase::Birth(phase), &fault);
            }
            TaskReport::NotAdopted(fault) => self.fail(me, VmPhase::Adoption, &fault),
            TaskReport::Suspended => self.step(me, Event::Suspended),
            TaskReport::NotSuspended(fault) => self.fail(me, VmPhase::Suspend, &fault),
            TaskReport::RunEnded(fault)
                if fault.reason == Reason::Suspended && self.state == VmStateName::Suspending =>
            {
                self.look_at_state(me);
            }
            TaskReport::RunEnded(fault)
            | TaskReport::ConnectionLost(fault)
            | TaskReport::Probed(Err(fault)) => {
                self.fail(me, self.phase(), &fault);
            }
            TaskReport::ProbeDue => self.probe(me),
            TaskReport::Probed(Ok(())) => {
                (self.report)(&self.recipe.name, VmReport::Healthy);
                self.probe_later(me);
            }
            TaskReport::GuestDead(at) => (self.report)(&self.recipe.name, VmReport::GuestDead { at }),
            TaskReport::Removed => self.step(me, Event::Removed),
            TaskReport::RemovalFailed(fault) => {
                VmQuarantined { vm: &self.recipe.name, fault: &fault }.emit();
                self.step(me, Event::RemovalFailed);
                (self.report)(&self.recipe.name, VmReport::Quarantined { fault });
            }
        }
    }

    fn step(&mut self, me: &ActorRef<VmMessage>, event: Event) {
        match state::step(self.state, event) {
            Ok((next, effect)) => {
                if let Some(next) = next.filter(|next| *next != self.state) {
                    self.state = next;
                    (self.report)(&self.recipe.name, VmReport::State(next));
                }
                self.perform(me, effect);
            }
            Err(refused) => StaleReport { what: "vm", why: refused.to_string() }.emit(),
        }
    }

    fn perform(&mut self, me: &ActorRef<VmMessage>, effect: Effect) {
        match effect {
            Effect::None | Effect::ReportQuarantined => {}
            Effect::ReportPrepared => (self.report)(&self.recipe.name, VmReport::Prepared),
            Effect::Boot => self.boot(me),
            Effect::ReportWarm => self.report_warm(me),
            Effect::Suspend => self.suspend(me),
            Effect::ReportSuspended => {
                (self.watch, self.started) = (None, None);
                (self.report)(&self.recipe.name, VmReport::Suspended);
            }
            Effect::Remove => self.remove(me),
            Effect::ReportGone => {
                (self.report)(&self.recipe.name, VmReport::Gone);
                me.stop(None);
            }
        }
    }

    /// Where in its life the VM is, for the failure's label.
    fn phase(&self) -> VmPhase {
        match self.state {
            VmStateName::Cloning => VmPhase::Birth(BirthPhase::Clone),
            VmStateName::Cloned | VmStateName::Configured => VmPhase::Birth(BirthPhase::Configure),
            VmStateName::Starting => VmPhase::Birth(BirthPhase::Address),
            VmStateName::Addressed => VmPhase::Birth(BirthPhase::Connect),
            VmStateName::Answering => VmPhase::Birth(BirthPhase::Warmup),
            VmStateName::Warm => VmPhase::Warm,
            VmStateName::Leased => VmPhase::Leased,
            VmStateName::Suspending => VmPhase::Suspend,
            VmStateName::Suspended => VmPhase::Suspended,
            VmStateName::Adopting => VmPhase::Adoption,
            VmStateName::Removing | VmStateName::Quarantined => VmPhase::Removal,
        }
    }

    fn fail(&mut self, me: &ActorRef<VmMessage>, phase: VmPhase, fault: &Fault) {
        // While it goes, whatever breaks is what was meant to break.
        if matches!(self.state, VmStateName::Removing | VmStateName::Quarantined) {
            return;
        }
        VmFailed { vm: &self.recipe.name, phase, fault }.emit();
        VmRetired { vm: &self.recipe.name, reason: RetireReason::Failed }.emit();
        if let Some(channel) = &self.channel {
            // A build in it is to hear this reason, and not that the VM is being removed.
            channel.abandon(fault.clone());
        }
        (self.report)(&self.recipe.name, VmReport::Failed { phase, fault: fault.clone() });
        self.step(me, Event::Failed);
    }

    fn prepare(&mut self, me: &ActorRef<VmMessage>) {
        let (runtime, recipe, me) = (self.runtime.clone(), self.recipe.clone(), me.clone());
        self.run(async move {
            let done = |phase, took| tell(&me, TaskReport::Finished(phase, took));
            if let Err(stillborn) = birth::prepare(runtime.as_ref(), &recipe, done).await {
                tell(&me, TaskReport::Stillborn(stillborn));
            }
        });
    }

    fn boot(&mut self, me: &ActorRef<VmMessage>) {
        self.started = Some(clock::now());
        let (runtime, recipe, me) = (self.runtime.clone(), self.recipe.clone(), me.clone());
        self.run(async move {
            let done = |phase, took| tell(&me, TaskReport::Finished(phase, took));
            tell(
                &me,
                match birth::start(runtime.as_ref(), &recipe, done).await {
                    Ok(process) => TaskReport::Started(process, clock::now()),
                    Err(stillborn) => TaskReport::Stillborn(stillborn),
                },
            );
        });
    }

    /// The guest's own end is the sign that it is done.
    fn suspend(&mut self, me: &ActorRef<VmMessage>) {
        self.listener = None;
        let Some(channel) = self.channel.take() else { return self.step(me, Event::Failed) };
        let (runtime, recipe, me) = (self.runtime.clone(), self.recipe.clone(), me.clone());
        self.run(async move {
            if let Err(fault) = birth::suspend(runtime.as_ref(), channel, &recipe).await {
                return tell(&me, TaskReport::NotSuspended(fault));
            }
            tokio::time::sleep(recipe.boot_timeout).await;
            let text = format!("its process did not end within {:?}", recipe.boot_timeout);
            tell(&me, TaskReport::NotSuspended(Fault::new(Reason::SuspendFailed, "tart suspend", text)));
        });
    }

    fn look_at_state(&mut self, me: &ActorRef<VmMessage>) {
        let (runtime, recipe, me) = (self.runtime.clone(), self.recipe.clone(), me.clone());
        self.run(async move {
            let looked = birth::confirm_suspended(runtime.as_ref(), &recipe).await;
            tell(&me, looked.map_or_else(TaskReport::NotSuspended, |()| TaskReport::Suspended));
        });
    }

    fn adopt(&mut self, me: &ActorRef<VmMessage>) {
        self.state = VmStateName::Adopting;
        (self.report)(&self.recipe.name, VmReport::State(self.state));
        // It runs, as far as anybody knows: removal has to end it whether it is found or not.
        self.started = Some(clock::now());
        let (runtime, recipe, me) = (self.runtime.clone(), self.recipe.clone(), me.clone());
        self.run(async move {
            let found = birth::find(runtime.as_ref(), &recipe).await;
            let started = |process| TaskReport::Started(process, clock::now());
            tell(&me, found.map_or_else(TaskReport::NotAdopted, started));
        });
    }

    fn rejoin(&mut self, me: &ActorRef<VmMessage>) {
        let (runtime, connector, recipe, me) =
            (self.runtime.clone(), self.connector.clone(), self.recipe.clone(), me.clone());
        self.run(async move {
            let joined = birth::rejoin(runtime.as_ref(), connector.as_ref(), &recipe).await;
            tell(&me, joined.map_or_else(TaskReport::NotAdopted, TaskReport::Answered));
        });
    }

    /// The guest's process is ours from here on.
    fn own(&mut self, me: &ActorRef<VmMessage>, process: Box<dyn RunProcess>, at: Instant) {
        (self.report)(&self.recipe.name, VmReport::Started { pid: process.pid(), at });
        let told = me.clone();
        let watch = Watch::new(process, move |why| tell(&told, TaskReport::RunEnded(why)));
        if let Some(removal) = self.awaited.take() {
            removal.send(watch).ok();
            return;
        }
        self.watch = Some(watch);
        if self.state == VmStateName::Adopting {
            return self.rejoin(me);
        }
        if self.state != VmStateName::Starting {
            return;
        }
        let (runtime, connector, recipe, me) =
            (self.runtime.clone(), self.connector.clone(), self.recipe.clone(), me.clone());
        self.run(async move {
            // The warm-up's end is told with the channel, so that warm never comes before it.
            let done = |phase, took| {
                if phase != BirthPhase::Warmup {
                    tell(&me, TaskReport::Finished(phase, took));
                }
            };
            tell(
                &me,
                match birth::reach(runtime.as_ref(), connector.as_ref(), &recipe, done).await {
                    Ok(answered) => TaskReport::Answered(answered),
                    Err(stillborn) => TaskReport::Stillborn(stillborn),
                },
            );
        });
    }

    fn answered(&mut self, me: &ActorRef<VmMessage>, answered: Answered) {
        if !matches!(self.state, VmStateName::Answering | VmStateName::Adopting) {
            return;
        }
        let (lost, told) = (answered.channel.lost(), me.clone());
        self.listener = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tell(&told, TaskReport::ConnectionLost(lost.await));
        })));
        self.channel = Some(answered.channel.clone());
        let (channel, address) = (answered.channel, answered.address);
        if self.state == VmStateName::Adopting {
            self.step(me, Event::Adopted);
            (self.report)(&self.recipe.name, VmReport::Adopted { channel, address });
        } else {
            self.step(me, Event::Finished(BirthPhase::Warmup));
            (self.report)(&self.recipe.name, VmReport::Warm { channel, address });
        }
    }

    fn report_warm(&self, me: &ActorRef<VmMessage>) {
        if let Some(started) = self.started {
            let resumed = matches!(self.recipe.origin, Origin::Golden { .. });
            VmWarmed { vm: &self.recipe.name, took: started.elapsed(), resumed }.emit();
        }
        self.probe_later(me);
    }

    fn probe_later(&self, me: &ActorRef<VmMessage>) {
        me.send_after(self.recipe.probe_interval, || VmMessage::Task(TaskReport::ProbeDue));
    }

    fn probe(&mut self, me: &ActorRef<VmMessage>) {
        let (VmStateName::Warm, Some(channel)) = (self.state, self.channel.clone()) else { return };
        let (limit, me) = (self.recipe.probe_timeout, me.clone());
        self.run(async move { tell(&me, TaskReport::Probed(channel.probe(limit).await)) });
    }

    fn remove(&mut self, me: &ActorRef<VmMessage>) {
        self.listener = None;
        if let Some(channel) = self.channel.take() {
            // Whoever works in the guest learns it now, not when a connection could not be opened again.
            channel.abandon(Fault::new(Reason::GuestStopped, "ssh", "the VM is being removed"));
        }
        let (runtime, recipe, me) = (self.runtime.clone(), self.recipe.clone(), me.clone());
        let (watch, started) = (self.watch.take(), self.started.is_some());
        // A process that is being started must be known before it can be ended: `stop` finds it by a lock that it may not
        // have yet.
        let starting = self.task.take().filter(|_| started && watch.is_none());
        let (tell_watch, late) = oneshot::channel();
        self.awaited = starting.is_some().then_some(tell_watch);
        self.run(async move {
            let deadline = Deadline::after(recipe.removal_timeout);
            let watch = match (watch, starting) {
                (None, Some(starting)) => removal::started(starting, late, deadline).await,
                (watch, _) => watch,
            };
            if started
                && let Err(fault) = removal::end_guest(runtime.as_ref(), &recipe.name, watch, deadline).await
            {
                return tell(&me, TaskReport::RemovalFailed(fault));
            }
            tell(&me, TaskReport::GuestDead(clock::now()));
            tell(
                &me,
                match removal::delete(runtime.as_ref(), &recipe.name, deadline).await {
                    Ok(()) => TaskReport::Removed,
                    Err(fault) => TaskReport::RemovalFailed(fault),
                },
            );
        });
    }

    /// Replaces the task of the phase before, which ends it.
    fn run(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(task)));
    }
}
