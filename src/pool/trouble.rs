//! How a pool behaves while its VMs fail: the first failure costs nothing, then the pauses double, and while there is
//! trouble one VM at a time is tried. A VM that gets warm ends it.

use std::time::Duration;

use crate::clock::Instant;
use crate::runtime::{Fault, FaultKind};

/// The first pause, after the second failure in a row.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// A guest or a verb that fails may work the next time: not longer than a minute.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// An image or a host that is broken is mended by a person: one slow probe.
const PAUSE_MAX_SLOW: Duration = Duration::from_secs(300);
/// The first pause for them.
const PAUSE_FIRST_SLOW: Duration = Duration::from_secs(5);

/// Failures in a row, and when the next try may be.
#[derive(Debug, Clone, Default)]
pub struct Trouble {
    current: Option<Current>,
}

/// Trouble that there is.
#[derive(Debug, Clone)]
pub struct Current {
    pub fault: Fault,
    pub failures: u32,
    pub next_try: Instant,
    /// The last VM failed after it had been warm, so a VM that gets warm proves nothing.
    while_warm: bool,
}

impl Trouble {
    /// One more failure: of a VM that was coming up, or of one that was warm. Returns the pause.
    pub fn failed(&mut self, fault: Fault, while_warm: bool, now: Instant) -> Duration {
        let failures = self.failures().saturating_add(1);
        let pause = pause(fault.kind(), failures);
        self.current = Some(Current { fault, failures, next_try: now + pause, while_warm });
        pause
    }

    /// A VM got warm: that mends failures to come up.
    pub fn warmed(&mut self) {
        self.current.take_if(|current| !current.while_warm);
    }

    /// A VM answered while it was warm, or served a build: that mends everything.
    pub fn mended(&mut self) {
        self.current = None;
    }

    /// The trouble that there is. A first failure that costs nothing is none: a guest may die.
    pub fn current(&self) -> Option<&Current> {
        self.current.as_ref().filter(|c| c.failures > free(c.fault.kind()))
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.current.as_ref().map_or(0, |c| c.failures)
    }

    /// Whether a VM may be cloned or started: always without trouble, else alone and after the pause.
    pub fn allows(&self, now: Instant, coming_up: usize) -> bool {
        self.current().is_none_or(|c| now >= c.next_try && coming_up == 0)
    }

    /// When it next may, if that is later than `now`.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        self.current.as_ref().map(|c| c.next_try).filter(|next| *next > now)
    }
}

/// The pause after so many failures in a row.
pub fn pause(kind: FaultKind, failures: u32) -> Duration {
    let (first, most) = match kind {
        FaultKind::Transient | FaultKind::Guest => (PAUSE_FIRST, PAUSE_MAX),
        FaultKind::Image | FaultKind::Host => (PAUSE_FIRST_SLOW, PAUSE_MAX_SLOW),
    };
    if failures <= free(kind) {
        return Duration::ZERO;
    }
    let doublings = (failures - free(kind) - 1).min(16);
    first.saturating_mul(1 << doublings).min(most)
}

/// How many failures in a row cost nothing: what is broken for good is not tried again at once.
fn free(kind: FaultKind) -> u32 {
    match kind {
        FaultKind::Transient | FaultKind::Guest => 1,
        FaultKind::Image | FaultKind::Host => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_or_to_five() {
        let seconds = |kind| (1..=10).map(|n| pause(kind, n).as_secs()).collect::<Vec<_>>();
        assert_eq!(seconds(FaultKind::Guest), [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(seconds(FaultKind::Host), [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]);
        assert_eq!(pause(FaultKind::Host, u32::MAX).as_secs(), 300);
    }
}
