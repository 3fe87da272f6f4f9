//! One breaker for the host. What is wrong with the host is wrong for every pool, so it is found out once and tried once:
//! exactly one VM of one pool at a time, with growing pauses.
//!
//! ```text
//!            a fault of the host's, or too many of any kind
//!   Closed ---------------------------------------------------> Open <-----------------+
//!     ^                                                          | the pause is over,  | it fails, or only
//!     |                                                          v one VM begins       | its clone is ready
//!     +---- a VM gets warm, or fails by its own or its image's HalfOpen ---------------+
//! ```
//!
//! A clone that is ready proves little and takes no slot, so it ends its probe without a verdict; the start that follows
//! is a probe of its own.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;
use crate::ids::PoolName;
use crate::runtime::{Fault, FaultKind, Reason, VmName};

/// The first pause: long enough that a verb's hiccup is over, short enough that nobody waits for it.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
/// A host is mended by a person, and a probe costs a clone: one in five minutes is slow enough, and soon enough after.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// No address and no route are what one dead guest looks like too: the host is blamed when so many in a row say it.
const SUSPICIONS: u32 = 3;
/// Failures of any kind are counted over this long: a boot takes less, so that a loop of failing boots is seen whole.
const WINDOW: Duration = Duration::from_secs(60);
/// At least so many failures within [`WINDOW`] are borne, and on a larger host [`PER_VM`] for each of its VMs.
const FAILURES_MIN: usize = 10;
/// A host that slept, or whose network was gone, loses every VM once, and some of their successors.
const PER_VM: usize = 2;

/// Whether VMs may be born on this host.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    /// How often it opened since a VM last proved itself.
    streak: u32,
    suspicions: u32,
    /// A VM got warm since it last opened.
    proved: bool,
    /// The pool of the last probe, whose turn is last now: should the host be well, its image may not be.
    last: Option<PoolName>,
    recent: VecDeque<Instant>,
    failures_max: usize,
}

#[derive(Debug, Clone)]
enum State {
    Closed,
    Open(Opened),
    HalfOpen(Opened, VmName),
}

/// Why it is open.
#[derive(Debug, Clone)]
pub struct Opened {
    pub fault: Fault,
    pub cause: Cause,
    /// How often it opened, with every probe that failed.
    pub failures: u32,
    pub next_try: Instant,
}

/// What opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A fault of the host's.
    Fault,
    /// Too many failures of whatever kind.
    Intensity,
}

impl Opened {
    /// The word for the metric's label: the reason of the fault, or that there were too many.
    pub fn label(&self) -> &'static str {
        match self.cause {
            Cause::Fault => self.fault.reason.as_str(),
            Cause::Intensity => INTENSITY,
        }
    }
}

/// The label of [`Cause::Intensity`].
pub const INTENSITY: &str = "restart_intensity";

/// The breaker's states, as a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BreakerState {
    #[default]
    Closed,
    Open,
    HalfOpen,
}

impl BreakerState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Whose a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The pool's: the host is well, or not to blame.
    Pool,
    /// The host's: it opened, or opened again, for so long.
    Opened(Duration),
    /// The host's, and known already.
    Known,
}

impl Breaker {
    /// For a host of so many VMs.
    pub fn new(vms: u16) -> Self {
        Self {
            state: State::Closed,
            streak: 0,
            suspicions: 0,
            proved: true,
            last: None,
            recent: VecDeque::new(),
            failures_max: FAILURES_MIN.max(usize::from(vms) * PER_VM),
        }
    }

    /// Its state's name.
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open(_) => BreakerState::Open,
            State::HalfOpen(..) => BreakerState::HalfOpen,
        }
    }

    /// Why it is not closed.
    pub fn opened(&self) -> Option<&Opened> {
        match &self.state {
            State::Closed => None,
            State::Open(opened) | State::HalfOpen(opened, _) => Some(opened),
        }
    }

    /// The pool whose turn is last, while it is not closed.
    pub fn last(&self) -> Option<&PoolName> {
        self.opened().and(self.last.as_ref())
    }

    /// Whether one more VM may begin: its clone, or its start.
    pub fn allows(&self, now: Instant) -> bool {
        match &self.state {
            State::Closed => true,
            State::Open(opened) => now >= opened.next_try,
            State::HalfOpen(..) => false,
        }
    }

    /// When it next may, if that is later than `now`.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        match &self.state {
            State::Open(opened) => Some(opened.next_try).filter(|next| *next > now),
            State::Closed | State::HalfOpen(..) => None,
        }
    }

    /// A VM begins. Where the breaker is open, it is the probe.
    pub fn begun(&mut self, vm: &VmName) {
        if let State::Open(opened) = &self.state {
            self.last = Some(vm.pool.clone());
            self.state = State::HalfOpen(opened.clone(), vm.clone());
        }
    }

    /// The VM is as far as it gets for now, or it goes without having failed: whatever it was to prove is open still.
    pub fn ended(&mut self, vm: &VmName) {
        if let State::HalfOpen(opened, probe) = &self.state
            && probe == vm
        {
            self.state = State::Open(opened.clone());
        }
    }

    /// A VM got warm: the host works.
    pub fn warmed(&mut self) {
        self.state = State::Closed;
        self.suspicions = 0;
        self.proved = true;
    }

    /// A VM that is warm answered. Since one got warm after the last trouble, that is forgotten; one that was warm all the
    /// while proves nothing.
    pub fn mended(&mut self) {
        if self.proved {
            self.streak = 0;
        }
    }

    /// The VM runtime's program answered a question; where it was missing, it is there again.
    pub fn answered(&mut self) {
        if self.opened().is_some_and(|o| o.cause == Cause::Fault && o.fault.reason == Reason::ProgramMissing)
        {
            self.state = State::Closed;
        }
    }

    /// Something failed: a VM that was on its way or warm, or a question about an image.
    pub fn failed(&mut self, vm: Option<&VmName>, fault: &Fault, now: Instant) -> Verdict {
        self.recent.retain(|at| now.saturating_duration_since(*at) <= WINDOW);
        self.recent.push_back(now);
        let hosts = self.blames_the_host(fault);
        let known = if hosts { Verdict::Known } else { Verdict::Pool };
        match &self.state {
            State::Closed if hosts => self.open(fault.clone(), Cause::Fault, now),
            State::Closed if self.recent.len() > self.failures_max => {
                self.open(fault.clone(), Cause::Intensity, now)
            }
            State::Closed => Verdict::Pool,
            // Not a VM: asking is a probe that costs nothing, so what it says before its time is no news.
            State::Open(opened) if vm.is_none() && hosts && now >= opened.next_try => {
                self.open(fault.clone(), Cause::Fault, now)
            }
            // It was on its way when the breaker opened.
            State::Open(_) => known,
            State::HalfOpen(_, probe) if Some(probe) != vm => known,
            State::HalfOpen(opened, _) => match (opened.cause, fault.kind()) {
                // So far the host did what it should: this one is the pool's.
                (Cause::Fault, FaultKind::Guest | FaultKind::Image) => {
                    self.state = State::Closed;
                    Verdict::Pool
                }
                (_, FaultKind::Host) => self.open(fault.clone(), Cause::Fault, now),
                (Cause::Fault, FaultKind::Transient)
                | (Cause::Intensity, FaultKind::Transient | FaultKind::Guest | FaultKind::Image) => {
                    let (first, cause) = (opened.fault.clone(), opened.cause);
                    self.open(if cause == Cause::Fault { first } else { fault.clone() }, cause, now)
                }
            },
        }
    }

    fn blames_the_host(&mut self, fault: &Fault) -> bool {
        if fault.kind() != FaultKind::Host {
            return false;
        }
        if !matches!(fault.reason, Reason::NoAddress | Reason::NoRoute) {
            return true;
        }
        self.suspicions = self.suspicions.saturating_add(1);
        self.suspicions >= SUSPICIONS
    }

    fn open(&mut self, fault: Fault, cause: Cause, now: Instant) -> Verdict {
        self.streak = self.streak.saturating_add(1);
        self.proved = false;
        let pause = pause(self.streak);
        self.state = State::Open(Opened { fault, cause, failures: self.streak, next_try: now + pause });
        Verdict::Opened(pause)
    }
}

/// The pause after so many failures. Without jitter: there is one host, and nobody to be in step with.
pub fn pause(failures: u32) -> Duration {
    PAUSE_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests;
