//! The supervisor: it spawns the pool, the uploader and each build, and knows what to do when one of them fails. A failed
//! uploader is started again, a failed build is attempted again, and a failed pool ends the daemon: its books are broken, its
//! VMs are taken away with it, and the next start reads the journal and the host afresh.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use secrecy::SecretString;
use tokio::sync::mpsc;

use super::handle::SupervisorHandle;
use super::intensity::Intensity;
use super::resume::{self, Fate, Left};
use crate::build::actor::{self as build_actor, BuildArguments, BuildContext};
use crate::build::live::LiveBuilds;
use crate::build::place::Verdict;
use crate::build::spec::BuildResult;
use crate::cache::shelf::Shelf;
use crate::clock::{self, UnixMillis};
use crate::config::Live;
use crate::ids::BuildId;
use crate::pool::actor::{self as pool_actor, PoolArguments};
use crate::pool::handle::PoolHandle;
use crate::store::{BuildRecord, Store};
use crate::telemetry::events::{ActorRestarted, Degraded};
use crate::trace::chronicle::Chronicle;
use crate::upload::actor::{self as upload_actor, UploadArguments, UploadMessage};
use crate::upload::sink::Courier;

/// Restarts of the uploader and of builds' actors: more of them, and the daemon is broken.
const RESTARTS_MAX: usize = 5;
/// Within this time.
const RESTARTS_WINDOW: Duration = Duration::from_secs(60);

/// What the supervisor hears.
pub enum SupervisorMessage {
    /// A build that is on disk. Answered when others can look at it.
    Build(Box<BuildArguments>, Option<RpcReplyPort<()>>),
    /// A build has something to deliver.
    Uploads,
    /// Answered when every result that is due was tried to be delivered.
    SettleUploads(RpcReplyPort<()>),
    /// What builds need, once the pool is there.
    Context(RpcReplyPort<BuildContext>),
    /// Every build's actor ends; the journal keeps their builds.
    StopBuilds(RpcReplyPort<()>),
}

/// What the supervisor is made from.
pub struct SupervisorArguments {
    pub config: Live,
    pub store: Store,
    pub chronicle: Chronicle,
    pub live: LiveBuilds,
    pub caches: Shelf,
    pub pool: PoolArguments,
    pub courier: Arc<dyn Courier>,
    /// Told once why the daemon cannot go on.
    pub broken: mpsc::Sender<String>,
}

/// Spawns the supervisor, and with it the pool and the uploader.
///
/// # Errors
/// When one of them does not start.
pub async fn spawn(arguments: SupervisorArguments) -> Result<SupervisorHandle, ractor::SpawnErr> {
    Ok(SupervisorHandle::new(Supervisor::spawn(None, Supervisor, arguments).await?.0))
}

/// The actor. Its state is in [`Tree`].
pub struct Supervisor;

struct BuildChild {
    id: BuildId,
    secrets: Arc<BTreeMap<String, SecretString>>,
    cell: ActorCell,
}

/// What the supervisor knows.
pub struct Tree {
    config: Live,
    store: Store,
    courier: Arc<dyn Courier>,
    context: BuildContext,
    pool: PoolHandle,
    pool_id: ActorId,
    uploader: ActorRef<UploadMessage>,
    /// In the order in which they came, so that they end in one: a simulated history is the same for its seed.
    builds: BTreeMap<ActorId, BuildChild>,
    intensity: Intensity,
    broken: mpsc::Sender<String>,
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = Tree;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        me: ActorRef<SupervisorMessage>,
        args: SupervisorArguments,
    ) -> Result<Tree, ActorProcessingErr> {
        let pool = pool_actor::spawn(args.pool, me.get_cell()).await?;
        let uploads = UploadArguments {
            config: args.config.clone(),
            store: args.store.clone(),
            courier: args.courier.clone(),
            chronicle: args.chronicle.clone(),
        };
        let uploader = upload_actor::spawn(uploads, me.get_cell()).await?;
        let told = me.clone();
        let context = BuildContext {
            config: args.config.clone(),
            pool: pool.clone(),
            store: args.store.clone(),
            chronicle: args.chronicle,
            live: args.live,
            caches: args.caches,
            uploads: Arc::new(move || {
                told.cast(SupervisorMessage::Uploads).ok();
            }),
        };
        Ok(Tree {
            config: args.config,
            store: args.store,
            courier: args.courier,
            context,
            pool_id: pool.id(),
            pool,
            uploader,
            builds: BTreeMap::new(),
            intensity: Intensity::new(RESTARTS_MAX, RESTARTS_WINDOW),
            broken: args.broken,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        tree: &mut Tree,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Build(arguments, reply) => {
                tree.start_build(&me, *arguments).await;
                if let Some(reply) = reply {
                    reply.send(()).ok();
                }
            }
            SupervisorMessage::Uploads => {
                tree.uploader.cast(UploadMessage::Look).ok();
            }
            SupervisorMessage::SettleUploads(reply) => {
                tree.uploader.cast(UploadMessage::Settle(reply)).ok();
            }
            SupervisorMessage::Context(reply) => {
                reply.send(tree.context.clone()).ok();
            }
            SupervisorMessage::StopBuilds(reply) => {
                // Killed, not asked: a build's end must not be mistaken for its result.
                std::mem::take(&mut tree.builds).into_values().for_each(|child| child.cell.kill());
                reply.send(()).ok();
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        tree: &mut Tree,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => tree.failed(&me, &cell, &error.to_string()).await,
            SupervisionEvent::ActorTerminated(cell, _, _) => {
                tree.builds.remove(&cell.get_id());
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

impl Tree {
    async fn start_build(&mut self, me: &ActorRef<SupervisorMessage>, arguments: BuildArguments) {
        let (record, secrets) = (arguments.record.clone(), arguments.secrets.clone());
        match build_actor::spawn(arguments, me.get_cell()).await {
            Ok(handle) => {
                let child = BuildChild { id: record.id, secrets, cell: handle.cell() };
                self.builds.insert(handle.id(), child);
            }
            Err(error) => {
                // What was kept for it has nobody else.
                self.pool.withdraw(record.id);
                self.give_up(record, &error.to_string());
            }
        }
    }

    async fn failed(&mut self, me: &ActorRef<SupervisorMessage>, cell: &ActorCell, why: &str) {
        let id = cell.get_id();
        if id == self.pool_id {
            self.broken.try_send(format!("the pool failed: {why}")).ok();
            return;
        }
        if !self.intensity.allows(clock::now()) {
            self.broken.try_send(format!("too many failures; the last: {why}")).ok();
            return;
        }
        if let Some(child) = self.builds.remove(&id) {
            ActorRestarted { actor: "build", why }.emit();
            self.restart_build(me, child, why).await;
        } else if id == self.uploader.get_id() {
            ActorRestarted { actor: "uploader", why }.emit();
            let arguments = UploadArguments {
                config: self.config.clone(),
                store: self.store.clone(),
                courier: self.courier.clone(),
                chronicle: self.context.chronicle.clone(),
            };
            match upload_actor::spawn(arguments, me.get_cell()).await {
                Ok(uploader) => self.uploader = uploader,
                Err(error) => {
                    self.broken.try_send(format!("the uploader does not start: {error}")).ok();
                }
            }
        }
    }

    /// The actor's lease went with it, so its VM is on its way out; the build is attempted again if it may.
    async fn restart_build(&mut self, me: &ActorRef<SupervisorMessage>, child: BuildChild, why: &str) {
        let Some(live) = self.context.live.get(child.id) else { return };
        let record = live.record.borrow().clone();
        self.pool.withdraw(child.id);
        let left = Left { source: true, pool: true, sealed: None, guest: false };
        match resume::fate(&record, &left) {
            // What was decided stands; that no tries are left is said with what took the last.
            Fate::Over(verdict) if record.verdict.is_some() || record.cancel_asked => {
                self.end(record, verdict)
            }
            Fate::Over(_) => self.give_up(record, why),
            Fate::Again | Fate::GoOn => {
                let arguments = BuildArguments {
                    context: self.context.clone(),
                    record: resume::again(record),
                    secrets: child.secrets,
                    go_on: false,
                    ticket: None,
                };
                self.start_build(me, arguments).await;
            }
        }
    }

    /// A build that nothing can run any more ends as the system's error; its result still goes to disk.
    fn give_up(&self, record: BuildRecord, why: &str) {
        let reason = Some(format!("preheat failed: {why}"));
        self.end(record, Verdict { result: BuildResult::Error, reason });
    }

    fn end(&self, record: BuildRecord, verdict: Verdict) {
        let record = resume::ended(record, verdict, UnixMillis::now());
        let (store, live) = (self.store.clone(), self.context.live.clone());
        let sinks = self.config.get().uploads.iter().map(|u| u.name.clone()).collect();
        tokio::spawn(async move {
            let id = record.id;
            if let Err(error) = store.finish(record, sinks).await {
                Degraded { what: "journal", error: error.to_string() }.emit();
            }
            live.remove(id);
        });
    }
}
