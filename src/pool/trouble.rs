//! How a pool behaves while its VMs fail: the first failure costs nothing, then the pauses double, and while there is
//! trouble one VM at a time is tried. A VM that gets warm ends it. An image whose every VM fails in the same way is poisoned:
//! it gets the slowest probe at once, which is also how a mended image is found. Tart has no stamp that says that an image
//! is another one, and one VM in five minutes costs less than one that could be wrong.

use std::time::Duration;

use crate::clock::Instant;
use crate::runtime::{Fault, FaultKind, Reason};

/// The first pause, after the second failure in a row.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// A guest or a verb that fails may work the next time: not longer than a minute.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// An image that is broken is mended by a person: one slow probe.
const PAUSE_MAX_SLOW: Duration = Duration::from_secs(300);
/// The first pause for them.
const PAUSE_FIRST_SLOW: Duration = Duration::from_secs(5);

/// So many faults of an image in a row are no accident.
const POISONED_AFTER: u32 = 3;

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
        let pause = if poisons(&fault, failures) { PAUSE_MAX_SLOW } else { pause(fault.kind(), failures) };
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

/// Whether so many failures in a row make the image poisoned. One that is missing cannot be: it comes any moment.
fn poisons(fault: &Fault, failures: u32) -> bool {
    let broken = fault.kind() == FaultKind::Image && fault.reason != Reason::ImageMissing;
    broken && failures >= POISONED_AFTER
}

/// The pause after so many failures in a row.
pub fn pause(kind: FaultKind, failures: u32) -> Duration {
    let (first, most) = match kind {
        // The host's breaker has slow pauses of its own; here the host is only suspected.
        FaultKind::Transient | FaultKind::Guest | FaultKind::Host => (PAUSE_FIRST, PAUSE_MAX),
        FaultKind::Image => (PAUSE_FIRST_SLOW, PAUSE_MAX_SLOW),
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
        FaultKind::Transient | FaultKind::Guest | FaultKind::Host => 1,
        FaultKind::Image => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_or_to_five() {
        let seconds = |kind| (1..=10).map(|n| pause(kind, n).as_secs()).collect::<Vec<_>>();
        assert_eq!(seconds(FaultKind::Guest), [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(seconds(FaultKind::Image), [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]);
        assert_eq!(pause(FaultKind::Image, u32::MAX).as_secs(), 300);
    }

    fn fail(trouble: &mut Trouble, reason: Reason, while_warm: bool, now: Instant) -> Duration {
        trouble.failed(Fault::new(reason, "test", "as scripted"), while_warm, now)
    }

    #[test]
    fn a_poisoned_image_gets_one_slow_probe_until_a_vm_of_it_gets_warm() {
        let (mut trouble, now) = (Trouble::default(), crate::clock::now());
        let pauses = [(); 4].map(|()| fail(&mut trouble, Reason::WarmupFailed, false, now).as_secs());
        assert_eq!(pauses, [5, 10, 300, 300]);
        assert!(!trouble.allows(now + PAUSE_MAX_SLOW - Duration::from_secs(1), 0));
        assert!(trouble.allows(now + PAUSE_MAX_SLOW, 0) && !trouble.allows(now + PAUSE_MAX_SLOW, 1));
        trouble.warmed();
        assert!(trouble.current().is_none() && trouble.allows(now, 5));
    }

    #[derive(Debug, Clone)]
    enum Move {
        Fail(Reason, bool),
        Warm,
        Mend,
        Wait(u16),
    }

    fn any_move() -> impl Strategy<Value = Move> {
        let reason = proptest::sample::select(Reason::ALL.to_vec());
        prop_oneof![
            3 => (reason, any::<bool>()).prop_map(|(reason, warm)| Move::Fail(reason, warm)),
            1 => Just(Move::Warm),
            1 => Just(Move::Mend),
            1 => (0_u16..400).prop_map(Move::Wait),
        ]
    }

    proptest! {
        #[test]
        fn a_pool_always_comes_back(moves in proptest::collection::vec(any_move(), 0..100)) {
            let (mut trouble, mut now) = (Trouble::default(), crate::clock::now());
            for next in moves {
                match next {
                    Move::Fail(reason, warm) => {
                        prop_assert!(fail(&mut trouble, reason, warm, now) <= PAUSE_MAX_SLOW);
                    }
                    Move::Warm => trouble.warmed(),
                    Move::Mend => trouble.mended(),
                    Move::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                }
                prop_assert!(trouble.allows(now + PAUSE_MAX_SLOW, 0), "one try after the longest pause");
                prop_assert!(trouble.current().is_none() || !trouble.allows(now + PAUSE_MAX_SLOW, 1), "and one only");
            }
            trouble.mended();
            prop_assert!(trouble.allows(now, 10));
        }
    }
}
