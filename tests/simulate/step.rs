//! What the daemon can ask of the world, how long that takes, and how it can fail.

use std::time::Duration;

use preheat::runtime::Reason;

use crate::dice::Dice;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Clone,
    Configure,
    Start,
    Adopt,
    Restore,
    Suspend,
    State,
    Address,
    Connect,
    GetReady,
    Freshen,
    Probe,
    PutTree,
    PutCache,
    Run,
    Attach,
    Take,
    TakeCache,
    Kill,
    Stop,
    Delete,
    List,
    Image,
    Deliver,
    Disk,
}

impl Step {
    pub const ALL: [Self; 25] = [
        Self::Clone,
        Self::Configure,
        Self::Start,
        Self::Adopt,
        Self::Restore,
        Self::Suspend,
        Self::State,
        Self::Address,
        Self::Connect,
        Self::GetReady,
        Self::Freshen,
        Self::Probe,
        Self::PutTree,
        Self::PutCache,
        Self::Run,
        Self::Attach,
        Self::Take,
        Self::TakeCache,
        Self::Kill,
        Self::Stop,
        Self::Delete,
        Self::List,
        Self::Image,
        Self::Deliver,
        Self::Disk,
    ];

    /// How long it takes when all is well, in milliseconds.
    pub fn usual(self) -> (u64, u64) {
        match self {
            Self::Clone => (100, 3000),
            Self::Configure | Self::Start | Self::Adopt => (10, 200),
            Self::Address | Self::Connect => (500, 12_000),
            Self::Restore | Self::Suspend | Self::GetReady => (100, 4000),
            Self::Probe | Self::Run | Self::Attach | Self::Freshen => (1, 60),
            Self::PutTree | Self::PutCache | Self::Take | Self::TakeCache | Self::Deliver => (10, 2000),
            Self::Kill | Self::Stop | Self::Delete => (20, 1500),
            Self::List | Self::Image | Self::State => (20, 300),
            Self::Disk => (0, 3),
        }
    }

    /// And when it is slow.
    pub fn slow(self) -> (u64, u64) {
        match self {
            Self::Disk => (50, 2000),
            Self::Probe => (1000, 12_000),
            Self::Clone
            | Self::Configure
            | Self::Start
            | Self::Adopt
            | Self::Restore
            | Self::Suspend
            | Self::State
            | Self::Address
            | Self::Connect
            | Self::GetReady
            | Self::Freshen
            | Self::PutTree
            | Self::PutCache
            | Self::Run
            | Self::Attach
            | Self::Take
            | Self::TakeCache
            | Self::Kill
            | Self::Stop
            | Self::Delete
            | Self::List
            | Self::Image
            | Self::Deliver => (5000, 45_000),
        }
    }

    /// How it fails.
    fn reasons(self) -> &'static [Reason] {
        match self {
            Self::Clone => {
                &[Reason::VerbFailed, Reason::DiskFull, Reason::ImageMissing, Reason::ImageUnusable]
            }
            Self::Configure => &[Reason::VerbFailed, Reason::ImageUnusable],
            Self::Start => &[Reason::VerbFailed, Reason::SystemLimit, Reason::HostKey, Reason::GuestStopped],
            Self::Address => &[Reason::NoAddress, Reason::NotRunning, Reason::VerbFailed],
            Self::Connect => &[Reason::SshTimeout, Reason::SshAuth, Reason::NoRoute],
            Self::Probe => &[Reason::ProbeFailed, Reason::ConnectionLost],
            Self::Restore => &[Reason::StateLost, Reason::RestoreRefused],
            Self::Suspend | Self::GetReady => &[Reason::SuspendFailed, Reason::VerbFailed],
            Self::State => &[Reason::VerbFailed, Reason::VmMissing],
            Self::Freshen => &[Reason::NotFresh, Reason::ConnectionLost],
            Self::PutTree | Self::PutCache | Self::Run | Self::Attach | Self::Take | Self::TakeCache => {
                &[Reason::ConnectionLost]
            }
            Self::Adopt
            | Self::Kill
            | Self::Stop
            | Self::Delete
            | Self::List
            | Self::Deliver
            | Self::Disk => &[Reason::VerbFailed],
            Self::Image => &[Reason::VerbFailed, Reason::ImageMissing, Reason::ImageUnusable],
        }
    }
}

/// What becomes of one doing of a step.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    Ok {
        after: Duration,
    },
    /// It says that it failed; `done` says whether it had its effect all the same.
    Fails {
        reason: Reason,
        after: Duration,
        done: bool,
    },
    /// It hangs until whoever asked gives it up. Its effect may come at `after`.
    Hangs {
        after: Duration,
        done: bool,
    },
}

/// Rolls it, and the word for it. `rate` is the probability of anything but the usual.
pub fn fate(dice: &mut Dice, step: Step, rate: f64) -> (Fate, &'static str) {
    let (low, high) = step.usual();
    let usual = dice.millis(low, high);
    if !dice.chance(rate) {
        return (Fate::Ok { after: usual }, "ok");
    }
    let (low, high) = step.slow();
    let (slow, done, kind) = (dice.millis(low, high), dice.chance(0.5), dice.between(0, 2));
    match (kind, step) {
        // The disk of a simulation gives no wrong answers: it is late.
        (0, _) | (_, Step::Disk) => (Fate::Ok { after: slow }, "slow"),
        (1, _) => (Fate::Fails { reason: dice.pick(step.reasons()), after: usual, done }, "error"),
        (_, _) => (Fate::Hangs { after: usual, done }, "never"),
    }
}
