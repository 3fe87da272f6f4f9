//! A VM's life:
//!
//! ```text
//!                                                                       Suspending -> Suspended <- kept
//!                                                                             ^             |
//!                                                                             |             |
//!   Cloning -> Cloned -> Configured -> Starting -> Addressed -> Answering -> Warm -> Leased | <- Adopting
//!      |          |          |            |            |            |         |        |    |    |
//!      +----------+----------+------------+------------+------------+---------+--------+----+----+
//!                                         v
//!                                     Removing -> Gone
//!                                       |   ^
//!                                       v   | asked again
//!                                     Quarantined
//! ```
//!
//! Each state is named after what is done (`Cloned`: the clone is there and is being configured). `Configured` waits for a
//! slot, and a clone takes none. A VM that was `Leased` can only be removed. `Adopting` is where the life of a VM begins that
//! a build had under an earlier daemon: it is found again, and is that build's still, or it goes. A VM that is `Suspended` is
//! a golden one: it never runs again, others are cloned from it and resume. It is made of a warm VM that no build ever had,
//! and is found again by the next daemon.

use serde::Serialize;

/// Where a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VmStateName {
    Cloning,
    Cloned,
    Configured,
    Starting,
    Addressed,
    Answering,
    Warm,
    Leased,
    Suspending,
    Suspended,
    Adopting,
    Removing,
    Quarantined,
}

impl VmStateName {
    /// Every state in which a VM exists.
    pub const ALL: [Self; 13] = [
        Self::Cloning,
        Self::Cloned,
        Self::Configured,
        Self::Starting,
        Self::Addressed,
        Self::Answering,
        Self::Warm,
        Self::Leased,
        Self::Suspending,
        Self::Suspended,
        Self::Adopting,
        Self::Removing,
        Self::Quarantined,
    ];

    /// The word for labels and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cloning => "cloning",
            Self::Cloned => "cloned",
            Self::Configured => "configured",
            Self::Starting => "starting",
            Self::Addressed => "addressed",
            Self::Answering => "answering",
            Self::Warm => "warm",
            Self::Leased => "leased",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Adopting => "adopting",
            Self::Removing => "removing",
            Self::Quarantined => "quarantined",
        }
    }
}

/// The phases of a birth, as they are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BirthPhase {
    Clone,
    Configure,
    Start,
    /// Of a VM that resumes: until it says so.
    Restore,
    Address,
    Connect,
    Warmup,
}

impl BirthPhase {
    /// Every phase.
    pub const ALL: [Self; 7] = [
        Self::Clone,
        Self::Configure,
        Self::Start,
        Self::Restore,
        Self::Address,
        Self::Connect,
        Self::Warmup,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Configure => "configure",
            Self::Start => "start",
            Self::Restore => "restore",
            Self::Address => "address",
            Self::Connect => "connect",
            Self::Warmup => "warmup",
        }
    }
}

/// Where in its life a VM failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmPhase {
    Birth(BirthPhase),
    Warm,
    Leased,
    /// Its state was being saved.
    Suspend,
    /// Its state is saved, and others are cloned from it.
    Suspended,
    /// A build has it, and it could not be found again.
    Adoption,
    Removal,
}

impl VmPhase {
    /// Every phase.
    pub const ALL: [Self; 13] = [
        Self::Birth(BirthPhase::Clone),
        Self::Birth(BirthPhase::Configure),
        Self::Birth(BirthPhase::Start),
        Self::Birth(BirthPhase::Restore),
        Self::Birth(BirthPhase::Address),
        Self::Birth(BirthPhase::Connect),
        Self::Birth(BirthPhase::Warmup),
        Self::Warm,
        Self::Leased,
        Self::Suspend,
        Self::Suspended,
        Self::Adoption,
        Self::Removal,
    ];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Birth(phase) => phase.as_str(),
            Self::Warm => "warm",
            Self::Leased => "leased",
            Self::Suspend => "suspend",
            Self::Suspended => "suspended",
            Self::Adoption => "adoption",
            Self::Removal => "removal",
        }
    }
}

/// What can happen to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The birth's task finished a phase.
    Finished(BirthPhase),
    /// The pool gave it a slot.
    SlotGranted,
    /// The pool gave it to a build.
    Leased,
    /// The pool wants its state, to clone others from.
    SuspendAsked,
    /// Its state is saved, and its process is gone.
    Suspended,
    /// It was found again: its process, its address, a connection.
    Adopted,
    /// It failed, or its guest died.
    Failed,
    /// The pool wants it gone.
    RemovalAsked,
    /// Removal proved that nothing is left.
    Removed,
    /// Removal gave up.
    RemovalFailed,
}

/// What the actor is to do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing but to publish the new state.
    None,
    /// Tell the pool that a slot can be used, and wait for it.
    ReportPrepared,
    /// Start the guest and bring it up.
    Boot,
    /// Tell the pool that it can be leased; begin to probe it at intervals.
    ReportWarm,
    /// Save its state.
    Suspend,
    /// Tell the pool that others can be cloned from it.
    ReportSuspended,
    /// Take it away.
    Remove,
    /// Say so and end.
    ReportGone,
    /// Say so, and stay: the slot is lost.
    ReportQuarantined,
}

/// Why an event was refused: it is stale, or it makes no sense in this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} does not fit {state:?}")]
pub struct Refused {
    pub state: VmStateName,
    pub event: Event,
}

/// The next state and what to do. `None` as a state means gone.
///
/// # Errors
/// [`Refused`] for an event that does not fit; nothing changes then.
pub fn step(state: VmStateName, event: Event) -> Result<(Option<VmStateName>, Effect), Refused> {
    use BirthPhase::{Address, Clone, Configure, Connect, Restore, Start, Warmup};
    use VmStateName::{
        Addressed, Adopting, Answering, Cloned, Cloning, Configured, Leased, Quarantined, Removing, Starting,
        Suspended, Suspending, Warm,
    };
    let next = match (state, event) {
        // ## Birth, one phase after the other
        (Cloning, Event::Finished(Clone)) => (Some(Cloned), Effect::None),
        (Cloned, Event::Finished(Configure)) => (Some(Configured), Effect::ReportPrepared),
        (Configured, Event::SlotGranted) => (Some(Starting), Effect::Boot),
        (Starting, Event::Finished(Start | Restore)) => (Some(Starting), Effect::None),
        (Starting, Event::Finished(Address)) => (Some(Addressed), Effect::None),
        (Addressed, Event::Finished(Connect)) => (Some(Answering), Effect::None),
        (Answering, Event::Finished(Warmup)) => (Some(Warm), Effect::ReportWarm),
        // ## Warm -> Leased, once
        (Warm, Event::Leased) => (Some(Leased), Effect::None),
        // ## Warm -> Suspending -> Suspended: no build ever had it
        (Warm, Event::SuspendAsked) => (Some(Suspending), Effect::Suspend),
        (Suspending, Event::Suspended) => (Some(Suspended), Effect::ReportSuspended),
        // ## Adopting => Leased: to the build that had it
        (Adopting, Event::Adopted) => (Some(Leased), Effect::None),
        // ## Removing: from anywhere, once
        (
            Cloning | Cloned | Configured | Starting | Addressed | Answering | Warm | Leased | Suspending
            | Suspended | Adopting,
            Event::Failed | Event::RemovalAsked,
        ) => (Some(Removing), Effect::Remove),
        (Removing, Event::Removed) => (None, Effect::ReportGone),
        (Removing, Event::RemovalFailed) => (Some(Quarantined), Effect::ReportQuarantined),
        // ## Quarantined => Removing: somebody may have mended what was in the way
        (Quarantined, Event::RemovalAsked) => (Some(Removing), Effect::Remove),
        // ## Repeats are answered with peace
        (Removing, Event::Failed | Event::RemovalAsked) | (Quarantined, Event::Failed) => {
            (Some(state), Effect::None)
        }
        (state, event) => return Err(Refused { state, event }),
    };
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 16] = [
        Event::Finished(BirthPhase::Clone),
        Event::Finished(BirthPhase::Configure),
        Event::Finished(BirthPhase::Start),
        Event::Finished(BirthPhase::Restore),
        Event::Finished(BirthPhase::Address),
        Event::Finished(BirthPhase::Connect),
        Event::Finished(BirthPhase::Warmup),
        Event::SlotGranted,
        Event::Leased,
        Event::SuspendAsked,
        Event::Suspended,
        Event::Adopted,
        Event::Failed,
        Event::RemovalAsked,
        Event::Removed,
        Event::RemovalFailed,
    ];

    /// Every sequence of events up to a length: what must never be seen in one.
    fn walk(state: VmStateName, leased: bool, removing: bool, depth: usize) {
        if depth == 0 {
            return;
        }
        for event in EVENTS {
            let Ok((next, effect)) = step(state, event) else { continue };
            if leased {
                assert_ne!(effect, Effect::ReportWarm, "a leased VM is never offered again");
                assert_ne!(effect, Effect::Boot, "a leased VM never boots again");
                assert_ne!(effect, Effect::Suspend, "what a build left behind is never saved");
            }
            assert!(!(removing && effect == Effect::Remove), "one removal at a time");
            if let Some(next) = next {
                let leased = leased || next == VmStateName::Leased;
                walk(next, leased, next == VmStateName::Removing, depth - 1);
            }
        }
    }

    #[test]
    fn a_leased_vm_is_never_offered_again_and_one_removal_runs_at_a_time() {
        walk(VmStateName::Cloning, false, false, 9);
        // One that is adopted was leased before: from its first moment on it is never offered and never boots.
        walk(VmStateName::Adopting, true, false, 9);
    }

    #[test]
    fn an_adopted_vm_is_a_builds_or_goes() {
        let ways = EVENTS.map(|event| step(VmStateName::Adopting, event));
        let mut next: Vec<_> = ways.into_iter().flatten().map(|(next, _)| next).collect();
        next.dedup();
        assert_eq!(next, [Some(VmStateName::Leased), Some(VmStateName::Removing)]);
    }

    #[test]
    fn every_state_can_be_left_for_removal() {
        for state in VmStateName::ALL {
            let (next, _) = step(state, Event::Failed).expect("a failure is always heard");
            assert!(matches!(next, Some(VmStateName::Removing | VmStateName::Quarantined)), "{state:?}");
        }
    }
}
