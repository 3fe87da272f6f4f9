//! What others hold of the pool: a handle to ask with, a snapshot to look at, and leases.

use std::sync::Arc;
use std::time::Duration;

use ractor::rpc::CallResult;
use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::watch;

use super::actor::PoolMessage;
use super::ledger::Drain;
use super::snapshot::PoolSnapshot;
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::guest::Channel;
use crate::ids::{BuildId, PoolName};
use crate::runtime::VmName;

/// What the pool tells a build that asked.
pub enum LeaseEvent {
    /// A VM is the build's.
    Granted(Lease),
    /// The VM that the build had under an earlier daemon is not to be had any more, for this reason.
    NotAdopted(String),
    /// The guest of a VM that the build gave back is dead.
    GuestDead(VmName),
    /// The pool that it asked for is not there any more; it waits no longer.
    PoolGone,
}

/// Where a build hears from the pool. Called from the pool's actor; it must not wait.
pub type Lessee = Arc<dyn Fn(LeaseEvent) + Send + Sync>;

/// A VM that belongs to one build. Dropped, the VM is taken away: it is never offered again.
#[must_use]
pub struct Lease {
    pub vm: VmName,
    pub channel: Arc<dyn Channel>,
    /// It was warm when it was asked for.
    pub at_once: bool,
    /// From the claim to this lease.
    pub waited: Duration,
    pub(super) build: BuildId,
    pub(super) pool: PoolHandle,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.cast(PoolMessage::Return { vm: self.vm.clone(), build: self.build });
    }
}

/// The pool's actor, from outside.
#[derive(Clone)]
pub struct PoolHandle {
    actor: ActorRef<PoolMessage>,
    snapshot: watch::Receiver<Arc<PoolSnapshot>>,
}

impl PoolHandle {
    /// Wraps a running actor.
    pub fn new(actor: ActorRef<PoolMessage>, snapshot: watch::Receiver<Arc<PoolSnapshot>>) -> Self {
        Self { actor, snapshot }
    }

    /// The actor's identity, as supervision events carry it.
    pub fn id(&self) -> ractor::ActorId {
        self.actor.get_id()
    }

    /// Asks for a VM for a build. A build that asks again keeps the place that `since` gives it.
    pub fn claim(&self, build: BuildId, pool: PoolName, since: UnixMillis, lessee: Lessee) {
        self.cast(PoolMessage::Claim { build, pool, since, lessee });
    }

    /// Asks for the VM that a build had under an earlier daemon.
    pub fn take_up(&self, build: BuildId, lessee: Lessee) {
        self.cast(PoolMessage::TakeUp { build, lessee });
    }

    /// The build waits no more, and takes nothing up.
    pub fn withdraw(&self, build: BuildId) {
        self.cast(PoolMessage::Withdraw(build));
    }

    /// Tries again to remove a VM that could not be removed.
    pub fn retry_quarantined(&self, vm: VmName) {
        self.cast(PoolMessage::RetryQuarantined(vm));
    }

    /// A VM that should be on the host was not found there.
    pub fn vanished(&self, vm: VmName) {
        self.cast(PoolMessage::Vanished(vm));
    }

    /// Empties the pool, or lets it go on. Returns when the snapshot says so, or `limit` has passed.
    pub async fn drain(&self, why: Option<Drain>, limit: Duration) {
        self.actor.call(|reply| PoolMessage::Drain(why, reply), Some(limit)).await.ok();
    }

    /// Follows another configuration; VMs of the pools in `roll` are replaced. Answers how many builds waited for a pool that
    /// is no more, or `None` when the pool does not answer within `limit`.
    pub async fn follow(&self, config: Arc<Config>, roll: Vec<PoolName>, limit: Duration) -> Option<usize> {
        let asked = self.actor.call(|reply| PoolMessage::Follow { config, roll, reply }, Some(limit));
        match asked.await {
            Ok(CallResult::Success(homeless)) => Some(homeless),
            Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => None,
        }
    }

    /// Takes every VM away and starts none; returns when that is done or `limit` has passed.
    pub async fn stop_all(&self, limit: Duration) {
        let asked = self.actor.call(|reply: RpcReplyPort<()>| PoolMessage::Stop(reply), Some(limit));
        asked.await.ok();
    }

    /// The pool as last published.
    pub fn snapshot(&self) -> Arc<PoolSnapshot> {
        self.snapshot.borrow().clone()
    }

    /// Waits until a published snapshot satisfies `condition`, and returns it. For waits that have a deadline around them.
    pub async fn until(&self, mut condition: impl FnMut(&PoolSnapshot) -> bool) -> Arc<PoolSnapshot> {
        let mut receiver = self.snapshot.clone();
        let found = receiver.wait_for(|snapshot| condition(snapshot)).await.map(|snapshot| snapshot.clone());
        match found {
            Ok(snapshot) => snapshot,
            Err(_) => std::future::pending().await,
        }
    }

    fn cast(&self, message: PoolMessage) {
        self.actor.cast(message).ok();
    }
}
