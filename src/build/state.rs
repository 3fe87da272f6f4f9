//! A build's life:
//!
//! ```text
//!   Waiting --granted--> Working --a verdict--> TearingDown --guest dead--> Over
//!    |   ^                  |                                                ^
//!    |   +------------------+ the VM was dead, or the system failed          |
//!    |   |                    and tries are left                            |
//!    |   +----not adopted-- Adopting --its VM again--> Working               |
//!    |                          |                                            |
//!    +--cancel------------------+--------------------------------------------+
//! ```
//!
//! A result is only pronounced when the guest is dead: artifacts are out by then, and whatever is delivered afterwards is
//! delivered from the host.

use super::spec::BuildResult;

/// So many VMs in a row may turn out dead when they are claimed before that counts as a failed attempt.
pub const DEAD_VMS_MAX: u16 = 5;

/// Where a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// For a VM.
    Waiting,
    /// For the VM that it had under an earlier daemon.
    Adopting,
    /// In a VM.
    Working,
    /// The verdict is known; the guest is being killed.
    TearingDown(BuildResult, Option<String>),
    /// It has its result.
    Over,
}

/// How the work in one VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The build's own result, with one line that says why.
    Verdict(BuildResult, Option<String>),
    /// The VM did not answer when it was claimed: nothing of the build was done in it.
    DeadVm(String),
    /// The system failed under the build.
    SystemFault(String),
}

impl Outcome {
    /// With its words changed.
    pub fn map_words(self, change: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Verdict(result, why) => Self::Verdict(result, why.as_deref().map(change)),
            Self::DeadVm(why) => Self::DeadVm(change(&why)),
            Self::SystemFault(why) => Self::SystemFault(change(&why)),
        }
    }
}

/// What can happen to a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Granted,
    /// What it had under an earlier daemon is not to be had, for this reason.
    NotAdopted(String),
    WorkEnded(Outcome),
    GuestDead,
    CancelAsked,
    /// Its pool is no more: nothing can run it.
    PoolGone(String),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    None,
    /// Ask the pool for a VM; the VM that was dead costs nothing.
    Claim,
    /// Ask the pool for a VM for one more attempt.
    Retry {
        why: String,
    },
    /// Begin an attempt in the VM that was granted.
    Work,
    /// Go on with an attempt in the VM that was granted again.
    GoOn,
    /// Tell the work to end.
    CancelWork,
    /// Give the VM back and wait until its guest is dead.
    TearDown,
    /// Pronounce the result.
    Finish(BuildResult, Option<String>),
}

/// What a build may still spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Attempts that may still be made after this one.
    pub retries_left: u16,
    /// VMs in a row that were dead when they were claimed.
    pub dead_vms: u16,
    /// Somebody has asked to cancel it.
    pub cancelled: bool,
}

/// An event that does not fit: stale.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} does not fit {state:?}")]
pub struct Refused {
    pub state: State,
    pub event: Event,
}

/// The next state and what to do.
///
/// # Errors
/// [`Refused`] for an event that does not fit; nothing changes then.
pub fn step(state: State, event: Event, budget: Budget) -> Result<(State, Effect), Refused> {
    match (state, event) {
        // ## Waiting => Working | Over
        (State::Waiting, Event::Granted) => Ok((State::Working, Effect::Work)),
        (State::Waiting, Event::CancelAsked) => Ok((State::Over, cancelled())),
        (State::Waiting, Event::PoolGone(why)) => {
            Ok((State::Over, Effect::Finish(BuildResult::Error, Some(why))))
        }
        // ## Adopting => Working | Waiting | TearingDown | Over
        (State::Adopting, Event::Granted) => Ok((State::Working, Effect::GoOn)),
        (State::Adopting, Event::NotAdopted(why)) => Ok(after(Outcome::SystemFault(why), budget)),
        (State::Adopting, Event::CancelAsked) => Ok((State::Over, cancelled())),
        // ## Working => TearingDown | Waiting
        (State::Working, Event::CancelAsked) => Ok((State::Working, Effect::CancelWork)),
        (State::Working, Event::WorkEnded(outcome)) => Ok(after(outcome, budget)),
        // ## TearingDown => Over: for a cancel it is too late
        (State::TearingDown(result, why), Event::GuestDead) => Ok((State::Over, Effect::Finish(result, why))),
        (state @ State::TearingDown(..), Event::CancelAsked) => Ok((state, Effect::None)),
        // ## Over: nothing more
        (State::Over, Event::CancelAsked | Event::GuestDead) => Ok((State::Over, Effect::None)),
        (state, event) => Err(Refused { state, event }),
    }
}

/// Whether a cancel is in time: until the verdict is known.
pub fn can_be_cancelled(state: &State) -> bool {
    match state {
        State::Waiting | State::Adopting | State::Working => true,
        State::TearingDown(..) | State::Over => false,
    }
}

fn after(outcome: Outcome, budget: Budget) -> (State, Effect) {
    let verdict = |result, why| (State::TearingDown(result, why), Effect::TearDown);
    match outcome {
        // Also a verdict that was on its way: whoever cancelled was told that it is in time.
        Outcome::Verdict(..) | Outcome::DeadVm(_) | Outcome::SystemFault(_) if budget.cancelled => {
            verdict(BuildResult::Cancellation, Some(CANCELLED.to_owned()))
        }
        Outcome::Verdict(result, why) => verdict(result, why),
        // The next VM is asked for at once; nobody waits for the dead one's burial.
        Outcome::DeadVm(_) if budget.dead_vms < DEAD_VMS_MAX => (State::Waiting, Effect::Claim),
        Outcome::DeadVm(why) | Outcome::SystemFault(why) if budget.retries_left > 0 => {
            (State::Waiting, Effect::Retry { why })
        }
        Outcome::DeadVm(why) | Outcome::SystemFault(why) => verdict(BuildResult::Error, Some(why)),
    }
}

const CANCELLED: &str = "cancelled";

fn cancelled() -> Effect {
    Effect::Finish(BuildResult::Cancellation, Some(CANCELLED.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(retries_left: u16, dead_vms: u16, cancelled: bool) -> Budget {
        Budget { retries_left, dead_vms, cancelled }
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::Verdict(BuildResult::Success, None)),
            Just(Outcome::Verdict(BuildResult::Failure, Some("step".into()))),
            Just(Outcome::DeadVm("dead".into())),
            Just(Outcome::SystemFault("lost".into())),
        ]
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Granted),
            any_outcome().prop_map(Event::WorkEnded),
            Just(Event::GuestDead),
            Just(Event::CancelAsked),
            Just(Event::NotAdopted("gone".into())),
            Just(Event::PoolGone("gone".into())),
        ]
    }

    proptest! {
        #[test]
        fn a_build_has_one_result_whatever_comes(events in proptest::collection::vec(any_event(), 0..40), retries in 0u16..4, adopting: bool) {
            let mut state = if adopting { State::Adopting } else { State::Waiting };
            let (mut left, mut dead, mut cancelled, mut results) = (retries, 0, false, 0);
            for event in events {
                cancelled |= event == Event::CancelAsked;
                let Ok((next, effect)) = step(state.clone(), event, budget(left, dead, cancelled)) else { continue };
                match effect {
                    Effect::Finish(..) => results += 1,
                    Effect::Retry { .. } => { left -= 1; dead = 0; }
                    Effect::Claim => dead += 1,
                    Effect::None | Effect::Work | Effect::GoOn | Effect::CancelWork | Effect::TearDown => {}
                }
                state = next;
                prop_assert_eq!(results, usize::from(state == State::Over));
            }
        }
    }

    fn ended(outcome: Outcome, budget: Budget) -> (State, Effect) {
        step(State::Working, Event::WorkEnded(outcome), budget).expect("it fits")
    }

    #[test]
    fn a_failing_step_is_the_users_and_is_not_tried_again() {
        let why = Some("step `make` exited with 2".to_owned());
        let (state, effect) = ended(Outcome::Verdict(BuildResult::Failure, why.clone()), budget(9, 0, false));
        assert_eq!(effect, Effect::TearDown);
        let (state, effect) = step(state, Event::GuestDead, budget(9, 0, false)).expect("it fits");
        assert_eq!((state, effect), (State::Over, Effect::Finish(BuildResult::Failure, why)));
    }

    #[test]
    fn the_systems_fault_is_tried_again_while_tries_are_left() {
        let lost = || Outcome::SystemFault("lost".into());
        assert_eq!(
            ended(lost(), budget(1, 0, false)),
            (State::Waiting, Effect::Retry { why: "lost".into() })
        );
        let (state, _) = ended(lost(), budget(0, 0, false));
        assert_eq!(state, State::TearingDown(BuildResult::Error, Some("lost".into())));
        let (state, _) = ended(lost(), budget(1, 0, true));
        assert_eq!(state, State::TearingDown(BuildResult::Cancellation, Some(CANCELLED.into())));
    }

    #[test]
    fn a_cancel_that_was_in_time_wins_over_a_verdict_on_its_way() {
        let success = || Outcome::Verdict(BuildResult::Success, None);
        assert!(can_be_cancelled(&State::Working));
        let (state, _) = ended(success(), budget(0, 0, true));
        assert_eq!(state, State::TearingDown(BuildResult::Cancellation, Some(CANCELLED.into())));
        assert!(!can_be_cancelled(&state), "one verdict is enough");
    }

    #[test]
    fn a_build_goes_on_in_the_vm_that_it_had_or_is_attempted_again_under_its_budget() {
        let adopting = |event, left| step(State::Adopting, event, budget(left, 0, false)).expect("it fits");
        assert_eq!(adopting(Event::Granted, 0), (State::Working, Effect::GoOn));
        let gone = || Event::NotAdopted("gone".into());
        assert_eq!(adopting(gone(), 1), (State::Waiting, Effect::Retry { why: "gone".into() }));
        assert_eq!(adopting(gone(), 0).0, State::TearingDown(BuildResult::Error, Some("gone".into())));
        assert_eq!(adopting(Event::CancelAsked, 1), (State::Over, cancelled()));
    }

    #[test]
    fn a_dead_warm_vm_costs_nothing_but_the_next_one() {
        let dead = || Outcome::DeadVm("no answer".into());
        assert_eq!(ended(dead(), budget(0, 0, false)), (State::Waiting, Effect::Claim));
        let (state, _) = ended(dead(), budget(0, DEAD_VMS_MAX, false));
        assert_eq!(state, State::TearingDown(BuildResult::Error, Some("no answer".into())));
    }
}
