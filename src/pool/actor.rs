//! The pool's actor: write what happened into the books, ask `policy` what to do, do it, publish.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::breaker::Verdict;
use super::gap::Gaps;
use super::handle::{Lease, LeaseEvent, Lessee, PoolHandle};
use super::ledger::{Adoption, Drain, Ledger, Stage, VmRow, Waiting};
use super::policy::{self, Decision};
use super::recipe::recipe;
use super::snapshot::{self, PoolSnapshot};
use crate::blocking;
use crate::clock::{self, Instant, UnixMillis};
use crate::config::{Config, Pool};
use crate::guest::{Channel, Connector};
use crate::host;
use crate::ids::{BuildId, Generation, PoolName};
use crate::runtime::{Fault, ImageInfo, Reason, Runtime, VmName};
use crate::telemetry::events::{
    ActorRestarted, AdoptionEnd, BreakerOpened, GuestRefused, PoolTroubled, RetireReason, SlotRefilled,
    StaleReport, VmAdopted, VmCreated,
};
use crate::trace::chronicle::Chronicle;
use crate::vm::actor::{self as vm_actor, Begin, VmArguments};
use crate::vm::birth::Recipe;
use crate::vm::handle::{Reporter, VmCommand, VmHandle, VmReport};
use crate::vm::state::{VmPhase, VmStateName};

/// The disk is looked at this often, and the books are read again.
const TICK: Duration = Duration::from_secs(10);

/// What the pool hears.
pub enum PoolMessage {
    Claim {
        build: BuildId,
        pool: PoolName,
        since: UnixMillis,
        lessee: Lessee,
    },
    Withdraw(BuildId),
    /// A build of an earlier daemon asks for the VM that it had.
    TakeUp {
        build: BuildId,
        lessee: Lessee,
    },
    /// A lease was dropped.
    Return {
        vm: VmName,
        build: BuildId,
    },
    Vm(VmName, VmReport),
    /// A VM that could not be removed is to be tried again.
    RetryQuarantined(VmName),
    /// A VM's process or its files are not on the host.
    Vanished(VmName),
    /// What the image of a pool is, by the pool's edition that named it.
    Image(PoolName, u32, Result<ImageInfo, Fault>),
    Disk(Option<host::Disk>),
    Tick,
    /// Another configuration is in force; answered with how many builds waited for a pool that is no more.
    Follow {
        config: Arc<Config>,
        roll: Vec<PoolName>,
        reply: RpcReplyPort<usize>,
    },
    /// Empties the pool, or lets it go on; answered when the snapshot says so.
    Drain(Option<Drain>, RpcReplyPort<()>),
    Stop(RpcReplyPort<()>),
}

/// What the actor is made from.
pub struct PoolArguments {
    pub config: Arc<Config>,
    pub runtime: Arc<dyn Runtime>,
    pub connector: Arc<dyn Connector>,
    /// Greater than every generation that was ever used.
    pub first: Generation,
    /// VMs that builds had under an earlier daemon, which are theirs still.
    pub adopt: Vec<Adoption>,
    /// Told of each generation before it is used.
    pub note_generation: Arc<dyn Fn(Generation) + Send + Sync>,
    pub publish: watch::Sender<Arc<PoolSnapshot>>,
    pub chronicle: Chronicle,
    /// As an earlier run of the daemon left it.
    pub draining: Option<Drain>,
}

/// The actor. Its state is in [`PoolBooks`].
pub struct PoolManager;

/// What the pool's actor knows.
pub struct PoolBooks {
    args: PoolArguments,
    /// What VMs are made from, by pool; also of pools that are closed.
    shapes: BTreeMap<PoolName, Pool>,
    ledger: Ledger,
    handles: HashMap<VmName, VmHandle>,
    channels: HashMap<VmName, Arc<dyn Channel>>,
    lessees: HashMap<BuildId, Lessee>,
    /// VMs of an earlier daemon's builds that those have not been given yet, and why they will not be.
    adopted: HashMap<BuildId, (VmName, Option<String>)>,
    /// Who is told when a VM's guest is dead.
    mourners: HashMap<VmName, Lessee>,
    gaps: Gaps,
    images_asked: HashMap<PoolName, AbortOnDropHandle<()>>,
    disk_asked: Option<AbortOnDropHandle<()>>,
    timer: Option<AbortOnDropHandle<()>>,
    stop: Vec<RpcReplyPort<()>>,
    /// Answered with the next snapshot.
    published: Vec<RpcReplyPort<()>>,
    generation: u64,
}

impl Actor for PoolManager {
    type Msg = PoolMessage;
    type State = PoolBooks;
    type Arguments = PoolArguments;

    async fn pre_start(
        &self,
        me: ActorRef<PoolMessage>,
        args: PoolArguments,
    ) -> Result<PoolBooks, ActorProcessingErr> {
        let mut ledger = Ledger::new(&args.config, args.first);
        ledger.draining = args.draining;
        me.cast(PoolMessage::Tick)?;
        let mut books = PoolBooks {
            shapes: args.config.pools.clone(),
            args,
            ledger,
            adopted: HashMap::new(),
            handles: HashMap::new(),
            channels: HashMap::new(),
            lessees: HashMap::new(),
            mourners: HashMap::new(),
            gaps: Gaps::default(),
            images_asked: HashMap::new(),
            disk_asked: None,
            timer: None,
            stop: Vec::new(),
            published: Vec::new(),
            generation: 0,
        };
        books.adopt_all(&me).await?;
        Ok(books)
    }

    async fn handle(
        &self,
        me: ActorRef<PoolMessage>,
        message: PoolMessage,
        books: &mut PoolBooks,
    ) -> Result<(), ActorProcessingErr> {
        let claiming = match &message {
            PoolMessage::Claim { build, .. } => Some(*build),
            PoolMessage::Withdraw(_) | PoolMessage::Return { .. } | PoolMessage::Vm(..) => None,
            PoolMessage::RetryQuarantined(_) | PoolMessage::Vanished(_) | PoolMessage::TakeUp { .. } => None,
            PoolMessage::Image(..) | PoolMessage::Disk(_) | PoolMessage::Tick => None,
            PoolMessage::Follow { .. } | PoolMessage::Drain(..) | PoolMessage::Stop(_) => None,
        };
        books.hear(&me, message);
        books.settle(&me, claiming).await
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<PoolMessage>,
        event: SupervisionEvent,
        books: &mut PoolBooks,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, why) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            // It stopped itself, and said before that its VM is gone; this event has overtaken that report.
            SupervisionEvent::ActorTerminated(..)
            | SupervisionEvent::ActorStarted(_)
            | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        books.vm_actor_ended(&me, &cell, &why).await;
        books.settle(&me, None).await
    }
}

/// Spawns the pool under `supervisor`.
///
/// # Errors
/// When the actor system refuses.
pub async fn spawn(arguments: PoolArguments, supervisor: ActorCell) -> Result<PoolHandle, ractor::SpawnErr> {
    let snapshot = arguments.publish.subscribe();
    let (actor, _) = PoolManager::spawn_linked(None, PoolManager, arguments, supervisor).await?;
    Ok(PoolHandle::new(actor, snapshot))
}

impl PoolBooks {
    fn hear(&mut self, me: &ActorRef<PoolMessage>, message: PoolMessage) {
        match message {
            PoolMessage::Claim { pool, lessee, .. } if !self.ledger.is_open(&pool) => {
                lessee(LeaseEvent::PoolGone);
            }
            PoolMessage::Claim { build, pool, since, lessee } => {
                self.lessees.insert(build, lessee);
                self.ledger.reclaim(Waiting { build, pool, since, asked: clock::now() });
            }
            PoolMessage::Withdraw(build) => {
                self.ledger.withdraw(build);
                self.lessees.remove(&build);
                if let Some((vm, _)) = self.adopted.remove(&build) {
                    self.remove(&vm, RetireReason::Used);
                }
            }
            PoolMessage::TakeUp { build, lessee } => {
                self.lessees.insert(build, lessee);
                self.hand_over(me, build);
            }
            PoolMessage::Return { vm, build } => self.returned(&vm, build),
            PoolMessage::Vm(vm, report) => self.vm_reported(me, &vm, report),
            PoolMessage::RetryQuarantined(vm) => {
                let lost = self.ledger.vms.get(&vm).filter(|row| row.stage == Stage::Lost);
                lost.iter().for_each(|row| self.command(&row.name, VmCommand::Remove(RetireReason::Failed)));
            }
            PoolMessage::Vanished(vm) => self.command(&vm, VmCommand::Vanished),
            PoolMessage::Image(pool, edition, answer) => self.image_answered(&pool, edition, answer),
            PoolMessage::Disk(disk) => {
                self.disk_asked = None;
                let min = self.args.config.host.disk_free_min.0;
                self.ledger.disk_low = disk.is_some_and(|disk| disk.free < min);
            }
            PoolMessage::Tick => self.look_at_disk(me),
            PoolMessage::Follow { config, roll, reply } => {
                let homeless = self.follow(config, &roll);
                self.look_at_disk(me);
                reply.send(homeless).ok();
            }
            PoolMessage::Drain(why, reply) => {
                self.ledger.draining = why;
                self.published.push(reply);
            }
            PoolMessage::Stop(reply) => self.stop_all(reply),
        }
    }

    fn returned(&mut self, vm: &VmName, build: BuildId) {
        if let Some(lessee) = self.lessees.remove(&build) {
            self.mourners.insert(vm.clone(), lessee);
        }
        self.remove(vm, RetireReason::Used);
        if !self.handles.contains_key(vm) {
            self.mourn(vm);
        }
    }

    fn remove(&mut self, vm: &VmName, why: RetireReason) {
        self.channels.remove(vm);
        self.ledger.dying(vm);
        if let Some(handle) = self.handles.get(vm) {
            handle.command(VmCommand::Remove(why));
        }
    }

    fn mourn(&mut self, vm: &VmName) {
        if let Some(lessee) = self.mourners.remove(vm) {
            lessee(LeaseEvent::GuestDead(vm.clone()));
        }
    }

    fn vm_reported(&mut self, me: &ActorRef<PoolMessage>, vm: &VmName, report: VmReport) {
        match report {
            VmReport::State(state) => self.ledger.note_state(vm, state, UnixMillis::now()),
            VmReport::Prepared => {
                let moved = self.ledger.prepared(vm);
                expect(moved, vm, "prepared");
            }
            VmReport::Started { pid, at } => {
                if let Some(gap) = self.gaps.started(vm, at) {
                    SlotRefilled { vm, gap }.emit();
                }
                if let Some(row) = self.ledger.vms.get_mut(vm) {
                    row.pid = pid;
                }
            }
            VmReport::Warm { channel, address } => self.warmed(vm, channel, address),
            VmReport::Adopted { channel, address } => self.adopted(me, vm, channel, address),
            VmReport::Healthy => {
                self.trouble(&vm.pool, |trouble| trouble.mended());
                self.ledger.breaker.mended();
            }
            VmReport::Failed { phase, fault } => self.failed(me, vm, phase, fault),
            VmReport::GuestDead { at } => {
                self.gaps.died(vm, at);
                self.ledger.guest_dead(vm);
                self.mourn(vm);
            }
            VmReport::Gone => {
                self.ledger.gone(vm);
                self.handles.remove(vm);
                self.mourn(vm);
            }
            VmReport::Quarantined { .. } => {
                self.ledger.failures += 1;
                self.ledger.lost(vm);
                self.mourn(vm);
            }
        }
    }

    fn warmed(&mut self, vm: &VmName, channel: Arc<dyn Channel>, address: std::net::IpAddr) {
        let moved = self.ledger.warmed(vm, clock::now());
        expect(moved, vm, "warm");
        if !moved {
            return;
        }
        self.channels.insert(vm.clone(), channel);
        if let Some(row) = self.ledger.vms.get_mut(vm) {
            row.address = Some(address);
        }
        self.trouble(&vm.pool, |trouble| trouble.warmed());
    }

    /// VMs of an earlier daemon's builds come into the books before anything is decided from them.
    async fn adopt_all(&mut self, me: &ActorRef<PoolMessage>) -> Result<(), ActorProcessingErr> {
        for adoption in std::mem::take(&mut self.args.adopt) {
            match self.ledger.adopt(&adoption, UnixMillis::now()) {
                Ok(()) => {
                    self.adopted.insert(adoption.build, (adoption.vm.clone(), None));
                    self.args.chronicle.vm(
                        &adoption.vm,
                        VmStateName::Adopting.as_str(),
                        Some(adoption.build),
                    );
                    self.spawn_vm(me, &adoption.vm, Begin::Adoption).await?;
                }
                // The janitor finds it.
                Err(why) => {
                    let Adoption { vm, build, .. } = &adoption;
                    VmAdopted { build: *build, vm, result: AdoptionEnd::Refused, why: &why }.emit();
                }
            }
        }
        Ok(self.ledger.audit()?)
    }

    fn adopted(
        &mut self,
        me: &ActorRef<PoolMessage>,
        vm: &VmName,
        channel: Arc<dyn Channel>,
        address: std::net::IpAddr,
    ) {
        let Some(row) = self.ledger.vms.get_mut(vm) else { return };
        row.address = Some(address);
        // Without its build it is on its way out.
        if let Stage::Leased(build) = row.stage {
            self.channels.insert(vm.clone(), channel);
            VmAdopted { build, vm, result: AdoptionEnd::Adopted, why: "" }.emit();
            self.hand_over(me, build);
        }
    }

    /// To a build of an earlier daemon, what it had: as soon as it has asked and its VM was found again, or was not.
    fn hand_over(&mut self, me: &ActorRef<PoolMessage>, build: BuildId) {
        let Some(lessee) = self.lessees.get(&build).cloned() else { return };
        let Some((vm, lost)) = self.adopted.get(&build).cloned() else {
            return lessee(LeaseEvent::NotAdopted("its VM is not there any more".into()));
        };
        if let Some(why) = lost {
            self.adopted.remove(&build);
            self.mourners.insert(vm.clone(), lessee.clone());
            lessee(LeaseEvent::NotAdopted(why));
            if !self.handles.contains_key(&vm) {
                self.mourn(&vm);
            }
        } else if let Some(channel) = self.channels.remove(&vm) {
            self.adopted.remove(&build);
            let pool = PoolHandle::new(me.clone(), self.args.publish.subscribe());
            let lease = Lease { vm, channel, at_once: false, waited: Duration::ZERO, build, pool };
            lessee(LeaseEvent::Granted(lease));
        }
    }

    /// A VM is going that a build of an earlier daemon should have got back.
    fn not_adopted(&mut self, me: &ActorRef<PoolMessage>, vm: &VmName, build: Option<BuildId>, why: &str) {
        let Some((build, (_, lost))) =
            build.and_then(|build| self.adopted.get_mut(&build).map(|a| (build, a)))
        else {
            return;
        };
        *lost = Some(why.to_owned());
        VmAdopted { build, vm, result: AdoptionEnd::Failed, why }.emit();
        self.hand_over(me, build);
    }

    fn trouble(&mut self, pool: &PoolName, change: impl FnOnce(&mut super::trouble::Trouble)) {
        if let Some(row) = self.ledger.pools.get_mut(pool) {
            change(&mut row.trouble);
        }
    }

    fn failed(&mut self, me: &ActorRef<PoolMessage>, vm: &VmName, phase: VmPhase, fault: Fault) {
        self.ledger.failures += 1;
        let text = fault.to_string();
        match phase {
            // The build that has it hears of it through its own connection, or just has; and it may have caused it.
            VmPhase::Leased | VmPhase::Removal | VmPhase::Adoption => {}
            VmPhase::Warm => self.blame(&vm.pool, Some(vm), fault, true),
            VmPhase::Birth(_) if fault.reason == Reason::SystemLimit && self.ledger.is_macos(vm) => {
                self.refused(vm, &fault);
            }
            VmPhase::Birth(_) => self.blame(&vm.pool, Some(vm), fault, false),
        }
        self.channels.remove(vm);
        let build = self.ledger.dying(vm);
        self.not_adopted(me, vm, build, &text);
    }

    /// A fault of the host's is the host's, and opens its breaker; one of the image's or of a guest's is its pool's.
    fn blame(&mut self, pool: &PoolName, vm: Option<&VmName>, fault: Fault, while_warm: bool) {
        let now = clock::now();
        match self.ledger.breaker.failed(vm, &fault, now) {
            Verdict::Known => {}
            Verdict::Opened(wait) => {
                if let Some(opened) = self.ledger.breaker.opened() {
                    BreakerOpened { reason: opened.label(), fault: &opened.fault, wait }.emit();
                }
            }
            Verdict::Pool => {
                let Some(row) = self.ledger.pools.get_mut(pool) else { return };
                // The image is looked at again before the next clone.
                if fault.reason == Reason::ImageMissing {
                    row.image = None;
                }
                let wait = row.trouble.failed(fault.clone(), while_warm, now);
                PoolTroubled { pool, fault: &fault, failures: row.trouble.failures(), wait }.emit();
            }
        }
    }

    /// macOS refused a macOS guest: what does run is all that fits for now.
    fn refused(&mut self, vm: &VmName, fault: &Fault) {
        let runs = |row: &&VmRow| matches!(row.stage, Stage::Booting | Stage::Warm | Stage::Leased(_));
        let others = self.ledger.vms.values().filter(runs).map(|row| &row.name);
        let others = others.filter(|name| *name != vm && self.ledger.is_macos(name));
        let ours = others.map(ToString::to_string).collect();
        let max = self.ledger.host.macos_guests_max();
        let wait = self.ledger.limit.refused(&vm.pool, fault, &ours, max, clock::now());
        if let Some(met) = self.ledger.limit.met() {
            GuestRefused { pool: &vm.pool, fault: &met.fault, leaked: met.leaked, wait }.emit();
        }
    }

    fn image_answered(&mut self, pool: &PoolName, edition: u32, answer: Result<ImageInfo, Fault>) {
        if self.ledger.pools.get(pool).is_none_or(|row| row.edition != edition) {
            return; // About an image that the pool had before.
        }
        self.images_asked.remove(pool);
        match answer {
            Ok(info) => {
                if let Some(row) = self.ledger.pools.get_mut(pool) {
                    row.image = Some(info);
                    row.trouble.warmed();
                }
                self.ledger.breaker.answered();
            }
            Err(fault) => self.blame(pool, None, fault, false),
        }
    }

    /// Takes another configuration over, and tells VMs that stay what holds for them from now on.
    fn follow(&mut self, config: Arc<Config>, roll: &[PoolName]) -> usize {
        let homeless = self.ledger.follow(&config, roll);
        self.images_asked.retain(|pool, _| !roll.contains(pool) && self.ledger.is_open(pool));
        for build in &homeless {
            if let Some(lessee) = self.lessees.remove(build) {
                lessee(LeaseEvent::PoolGone);
            }
        }
        self.shapes.extend(config.pools.clone());
        self.args.config = config;
        for row in self.ledger.vms.values() {
            let current =
                self.ledger.pools.get(&row.name.pool).is_some_and(|pool| pool.edition == row.edition);
            let (Some(recipe), Some(handle)) = (self.recipe(&row.name), self.handles.get(&row.name)) else {
                continue;
            };
            if current {
                handle.follow(recipe);
            }
        }
        homeless.len()
    }

    fn recipe(&self, vm: &VmName) -> Option<Recipe> {
        let image = self.ledger.pools.get(&vm.pool).and_then(|row| row.image.as_ref());
        Some(recipe(vm, self.shapes.get(&vm.pool)?, image, &self.args.config))
    }

    fn look_at_disk(&mut self, me: &ActorRef<PoolMessage>) {
        if self.disk_asked.is_some() {
            return;
        }
        let (path, me): (PathBuf, _) = (self.args.config.home.path().to_owned(), me.clone());
        self.disk_asked = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let disk = blocking::run(move || host::disk(&path)).await.ok().flatten();
            me.cast(PoolMessage::Disk(disk)).ok();
        })));
    }

    fn look_at_images(&mut self, me: &ActorRef<PoolMessage>, now: Instant) {
        if self.ledger.stopping || self.ledger.draining.is_some() {
            return;
        }
        for (pool, row) in &self.ledger.pools {
            let due = row.image.is_none() && row.trouble.allows(now, 0) && self.ledger.breaker.allows(now);
            let Some(config) = self.args.config.pools.get(pool).filter(|_| due) else { continue };
            if self.images_asked.contains_key(pool) {
                continue;
            }
            let (runtime, image, name, me) =
                (self.args.runtime.clone(), config.image.clone(), pool.clone(), me.clone());
            let edition = row.edition;
            let task = AbortOnDropHandle::new(tokio::spawn(async move {
                let answer = runtime.image(&image).await;
                me.cast(PoolMessage::Image(name, edition, answer)).ok();
            }));
            self.images_asked.insert(pool.clone(), task);
        }
    }

    fn stop_all(&mut self, reply: RpcReplyPort<()>) {
        self.ledger.stopping = true;
        self.images_asked.clear();
        self.stop.push(reply);
        let names: Vec<VmName> = self.ledger.vms.keys().cloned().collect();
        for vm in names {
            self.remove(&vm, RetireReason::Stopping);
        }
    }

    /// Decides and performs until there is nothing to do, then publishes.
    async fn settle(
        &mut self,
        me: &ActorRef<PoolMessage>,
        claiming: Option<BuildId>,
    ) -> Result<(), ActorProcessingErr> {
        let now = clock::now();
        while let Some(decision) = policy::decide(&self.ledger, now) {
            self.perform(me, decision, claiming, now).await?;
        }
        self.gaps.turn_over();
        self.look_at_images(me, now);
        self.ledger.forget_closed();
        self.shapes.retain(|pool, _| self.ledger.pools.contains_key(pool));
        self.ledger.audit()?;
        self.publish(now);
        for reply in self.published.drain(..) {
            reply.send(()).ok();
        }
        self.arm(me, now);
        let busy = self.ledger.vms.values().any(|vm| vm.state != VmStateName::Quarantined);
        if self.ledger.stopping && !busy {
            for reply in self.stop.drain(..) {
                reply.send(()).ok();
            }
        }
        Ok(())
    }

    async fn perform(
        &mut self,
        me: &ActorRef<PoolMessage>,
        decision: Decision,
        claiming: Option<BuildId>,
        now: Instant,
    ) -> Result<(), ActorProcessingErr> {
        match decision {
            Decision::Lease { vm, build } => self.lease(me, &vm, build, claiming == Some(build), now),
            Decision::Start { vm } => {
                if !self.ledger.grant(&vm) {
                    return Err(format!("{vm} cannot be started although the policy says so").into());
                }
                self.gaps.granted(&vm);
                self.command(&vm, VmCommand::GrantSlot);
            }
            Decision::Clone { pool, slot } => {
                let vm = self.ledger.register(&pool, slot, UnixMillis::now());
                (self.args.note_generation)(vm.generation);
                VmCreated { vm: &vm }.emit();
                self.args.chronicle.vm(&vm, VmStateName::Cloning.as_str(), None);
                self.spawn_vm(me, &vm, Begin::Birth).await?;
            }
            Decision::Remove { vm, why } => self.remove(&vm, why),
        }
        Ok(())
    }

    fn lease(
        &mut self,
        me: &ActorRef<PoolMessage>,
        vm: &VmName,
        build: BuildId,
        at_once: bool,
        now: Instant,
    ) {
        let Some(channel) = self.channels.remove(vm) else { return self.remove(vm, RetireReason::Failed) };
        let Some(waiting) = self.ledger.lease(vm, build) else { return };
        self.command(vm, VmCommand::Lease);
        self.args.chronicle.vm(vm, VmStateName::Leased.as_str(), Some(build));
        let lease = Lease {
            vm: vm.clone(),
            channel,
            at_once,
            waited: now.saturating_duration_since(waiting.asked),
            build,
            pool: PoolHandle::new(me.clone(), self.args.publish.subscribe()),
        };
        // Nobody to take it: dropping the lease brings the VM back, and away.
        if let Some(lessee) = self.lessees.get(&build) {
            lessee(LeaseEvent::Granted(lease));
        }
    }

    fn command(&self, vm: &VmName, command: VmCommand) {
        if let Some(handle) = self.handles.get(vm) {
            handle.command(command);
        }
    }

    async fn spawn_vm(
        &mut self,
        me: &ActorRef<PoolMessage>,
        vm: &VmName,
        begin: Begin,
    ) -> Result<(), ActorProcessingErr> {
        let (told, chronicle) = (me.clone(), self.args.chronicle.clone());
        let report: Reporter = Arc::new(move |vm, report| {
            chronicle.heard(vm, &report);
            told.cast(PoolMessage::Vm(vm.clone(), report)).ok();
        });
        let arguments = VmArguments {
            recipe: self.recipe(vm).ok_or("a pool that is not configured")?,
            runtime: self.args.runtime.clone(),
            connector: self.args.connector.clone(),
            report,
            begin,
        };
        let handle = vm_actor::spawn(arguments, me.get_cell()).await?;
        self.handles.insert(vm.clone(), handle);
        Ok(())
    }

    /// A VM's actor ended. If its VM is still in the books it failed, and another takes its VM away.
    async fn vm_actor_ended(&mut self, me: &ActorRef<PoolMessage>, cell: &ActorCell, why: &str) {
        let found = self.handles.iter().find(|(_, handle)| handle.id() == cell.get_id());
        let Some(vm) = found.map(|(vm, _)| vm.clone()) else { return };
        self.handles.remove(&vm);
        self.channels.remove(&vm);
        if !self.ledger.vms.contains_key(&vm) {
            return;
        }
        ActorRestarted { actor: "vm", why }.emit();
        self.ledger.failures += 1;
        let build = self.ledger.dying(&vm);
        self.not_adopted(me, &vm, build, why);
        if self.spawn_vm(me, &vm, Begin::Removal).await.is_err() {
            self.ledger.lost(&vm);
        }
    }

    fn publish(&mut self, now: Instant) {
        self.generation += 1;
        let snapshot = snapshot::of(&self.ledger, &self.args.config, self.generation, now, UnixMillis::now());
        self.args.publish.send_replace(Arc::new(snapshot));
    }

    /// One timer, for whatever is due first.
    fn arm(&mut self, me: &ActorRef<PoolMessage>, now: Instant) {
        let due = policy::wake(&self.ledger, now).unwrap_or(now + TICK).min(now + TICK);
        let me = me.clone();
        self.timer = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            me.cast(PoolMessage::Tick).ok();
        })));
    }
}

/// A report that the books did not expect is stale, and said so.
fn expect(moved: bool, vm: &VmName, what: &'static str) {
    if !moved {
        StaleReport { what, why: format!("{vm} is not where that fits") }.emit();
    }
}
