//! The pool's actor: write what happened into the books, ask `policy` what to do, do it, publish.

mod adopting;
mod failing;
mod goldens;
mod looking;
mod performing;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::gap::Gaps;
use super::handle::{LeaseEvent, Lessee, PoolHandle};
use super::ledger::{Adoption, Changes, Drain, Golden, Ledger, Stage, VmRow, Waiting};
use super::policy;
use super::snapshot::{PoolSnapshot, Publisher};
use crate::clock::{self, Instant, UnixMillis};
use crate::config::{Config, Pool};
use crate::guest::{Channel, Connector};
use crate::host;
use crate::ids::{BuildId, Generation, PoolName};
use crate::runtime::{Fault, ImageInfo, Runtime, VmName};
use crate::telemetry::events::{RetireReason, SlotRefilled, StaleReport};
use crate::trace::chronicle::Chronicle;
use crate::vm::handle::{VmCommand, VmHandle, VmReport};
use crate::vm::state::VmStateName;

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
    /// Suspended VMs that an earlier daemon made.
    pub keep: Vec<Golden>,
    /// Told of each suspended VM that is there, or is no more.
    pub note_golden: Arc<dyn Fn(GoldenNote) + Send + Sync>,
    /// Told of each generation before it is used.
    pub note_generation: Arc<dyn Fn(Generation) + Send + Sync>,
    pub publish: watch::Sender<Arc<PoolSnapshot>>,
    pub chronicle: Chronicle,
    /// As an earlier run of the daemon left it.
    pub draining: Option<Drain>,
}

/// What is written down of a suspended VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GoldenNote {
    Made(Golden),
    Gone(VmName),
}

/// Itself, to send messages to and to start children under. Its parts, in the folder `actor`, know it by this name only.
type Me = ActorRef<PoolMessage>;

/// A broken invariant, which ends the actor.
type Failed = ActorProcessingErr;

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
    /// When an image was last asked for, so that one with other content is noticed.
    images_seen: HashMap<PoolName, Instant>,
    disk_asked: Option<AbortOnDropHandle<()>>,
    timer: Option<AbortOnDropHandle<()>>,
    stop: Vec<RpcReplyPort<()>>,
    /// Answered with the next snapshot.
    published: Vec<RpcReplyPort<()>>,
    publisher: Publisher,
}

impl Actor for PoolManager {
    type Msg = PoolMessage;
    type State = PoolBooks;
    type Arguments = PoolArguments;

    async fn pre_start(&self, me: Me, args: PoolArguments) -> Result<PoolBooks, ActorProcessingErr> {
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
            images_seen: HashMap::new(),
            disk_asked: None,
            timer: None,
            stop: Vec::new(),
            published: Vec::new(),
            publisher: Publisher::default(),
        };
        books.adopt_all(&me).await?;
        books.keep_all(&me).await?;
        Ok(books)
    }

    async fn handle(
        &self,
        me: Me,
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
        me: Me,
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
        if let Some(vm) = books.vm_of(&cell) {
            books.vm_actor_ended(&me, &vm, &why).await;
        }
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
    fn hear(&mut self, me: &Me, message: PoolMessage) {
        match message {
            PoolMessage::Claim { pool, lessee, .. } if !self.ledger.is_open(&pool) => {
                lessee(LeaseEvent::PoolGone);
            }
            PoolMessage::Claim { build, pool, since, lessee } => {
                self.lessees.insert(build, lessee);
                self.ledger.claim(Waiting { build, pool, since, asked: clock::now() });
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
                let lost = self.ledger.vm(&vm).filter(|row| row.stage == Stage::Lost);
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
            PoolMessage::Stop(reply) => {
                self.stop.push(reply);
                self.stop_all();
            }
        }
    }

    fn vm_reported(&mut self, me: &Me, vm: &VmName, report: VmReport) {
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
                self.ledger.note_pid(vm, pid);
            }
            VmReport::Warm { channel, address } => self.warmed(vm, channel, address),
            VmReport::Suspended => self.suspended(vm),
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
                self.forget_golden(vm);
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
        self.ledger.note_address(vm, address);
        self.trouble(&vm.pool, |trouble| trouble.warmed());
    }

    /// Decides and performs until there is nothing to do, then publishes.
    async fn settle(&mut self, me: &Me, claiming: Option<BuildId>) -> Result<(), ActorProcessingErr> {
        let now = clock::now();
        while let Some(decision) = policy::decide(&self.ledger, now) {
            self.perform(me, decision, claiming, now).await?;
        }
        self.gaps.turn_over();
        self.look_at_images(me, now);
        self.ledger.forget_closed();
        self.shapes.retain(|pool, _| self.ledger.pools.contains_key(pool));
        let changes = self.ledger.take_changes();
        self.ledger.audit_changes(&changes)?;
        self.publish(&changes, now);
        for reply in self.published.drain(..) {
            reply.send(()).ok();
        }
        self.arm(me, now);
        let busy = |vm: &VmRow| !matches!(vm.state, VmStateName::Quarantined | VmStateName::Suspended);
        if self.ledger.stopping && !self.ledger.vms().values().any(busy) {
            for reply in self.stop.drain(..) {
                reply.send(()).ok();
            }
        }
        Ok(())
    }

    /// The VM that an actor has.
    fn vm_of(&self, cell: &ActorCell) -> Option<VmName> {
        let found = self.handles.iter().find(|(_, handle)| handle.id() == cell.get_id());
        found.map(|(vm, _)| vm.clone())
    }

    fn publish(&mut self, changes: &Changes, now: Instant) {
        let (ledger, config) = (&self.ledger, &self.args.config);
        let snapshot = self.publisher.publish(ledger, changes, config, now, UnixMillis::now());
        self.args.publish.send_replace(Arc::new(snapshot));
    }

    /// One timer, for whatever is due first.
    fn arm(&mut self, me: &Me, now: Instant) {
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
