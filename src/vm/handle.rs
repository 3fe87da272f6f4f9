//! What others hold of a VM: a way to command it, and the reports that it makes.

use std::net::IpAddr;
use std::sync::Arc;

use ractor::ActorRef;

use super::actor::VmMessage;
use super::birth::Recipe;
use super::state::{VmPhase, VmStateName};
use crate::clock::Instant;
use crate::guest::Channel;
use crate::runtime::{Fault, VmName};
use crate::telemetry::events::RetireReason;

/// What the pool may want of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmCommand {
    /// It may start: a slot is its own.
    GrantSlot,
    /// A build has it.
    Lease,
    /// Its state is to be saved, for others to be cloned from.
    Suspend,
    /// It is to go.
    Remove(RetireReason),
    /// Its process or its files are not on the host.
    Vanished,
}

/// What a VM tells of itself.
pub enum VmReport {
    /// It is in this state now.
    State(VmStateName),
    /// Cloned and configured: it waits for a slot.
    Prepared,
    /// Its guest runs in this process, since then or before.
    Started { pid: Option<u32>, at: Instant },
    /// It can be leased.
    Warm { channel: Arc<dyn Channel>, address: IpAddr },
    /// Its state is saved, and its process is gone: the slot is free.
    Suspended,
    /// It was found again, and is its build's as before.
    Adopted { channel: Arc<dyn Channel>, address: IpAddr },
    /// It answered a probe while it was warm.
    Healthy,
    /// It failed; it is removing itself.
    Failed { phase: VmPhase, fault: Fault },
    /// Its guest is dead since then: the slot is free, though the clone's files may still be there.
    GuestDead { at: Instant },
    /// Nothing of it is left.
    Gone,
    /// It could not be removed.
    Quarantined { fault: Fault },
}

/// Where reports go. Called from the VM's actor; it must not wait.
pub type Reporter = Arc<dyn Fn(&VmName, VmReport) + Send + Sync>;

/// A VM's actor, from outside.
#[derive(Clone)]
pub struct VmHandle {
    actor: ActorRef<VmMessage>,
}

impl VmHandle {
    /// Wraps a running actor.
    pub fn new(actor: ActorRef<VmMessage>) -> Self {
        Self { actor }
    }

    /// Sends a command. An actor that has ended has reported so, or its supervisor knows.
    pub fn command(&self, command: VmCommand) {
        self.actor.cast(VmMessage::Command(command)).ok();
    }

    /// What holds for it from now on. It is made from the same.
    pub fn follow(&self, recipe: Recipe) {
        self.actor.cast(VmMessage::Follow(Box::new(recipe))).ok();
    }

    /// The actor's identity, as supervision events carry it.
    pub fn id(&self) -> ractor::ActorId {
        self.actor.get_id()
    }
}
