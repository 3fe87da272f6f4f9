//! When a slot's VM is suspended for others of the slot to resume from, and how long is waited after it failed, or after what
//! resumed from it did.
//!
//! That costs the slot one suspension and one resume, once: less than the boot of which it spares each VM after it. So it is
//! done as soon as nobody waits; and where somebody always does, when the slot has booted so often in a row that it is plain
//! that it will again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::ids::SlotId;

/// The first pause after a failure. It doubles: what does not resume on this host will not in a minute either, and each try
/// costs the slot a boot.
const PAUSE_FIRST: Duration = Duration::from_secs(60);
/// And is not longer than this, so that a host that was mended is found again.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// A slot that booted so often in a row while builds waited is suspended although one waits.
const BOOTS_IN_A_ROW: u32 = 2;

/// What a pool's VMs are made from can be saved and restored, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resuming {
    /// The configuration or the image says no.
    Off,
    /// Not known until the runtime was asked for the image.
    Unknown,
    /// Yes, and this is what a saved state depends on.
    On(String),
}

/// How suspending goes in a pool.
#[derive(Debug, Clone, Default)]
pub struct Baking {
    failures: u32,
    next_try: Option<Instant>,
    /// Boots of each slot since it last had something to resume from.
    boots: BTreeMap<SlotId, u32>,
}

impl Baking {
    /// Suspending failed, or resuming did. Returns the pause.
    pub fn failed(&mut self, now: Instant) -> Duration {
        let pause = PAUSE_FIRST.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.next_try = Some(now + pause);
        pause
    }

    /// A VM resumed: whatever was wrong is no more.
    pub fn resumed(&mut self) {
        (self.failures, self.next_try) = (0, None);
    }

    /// A VM of the slot booted.
    pub fn booted(&mut self, slot: SlotId) {
        *self.boots.entry(slot).or_default() += 1;
    }

    /// The slot has something to resume from.
    pub fn baked(&mut self, slot: SlotId) {
        self.boots.remove(&slot);
    }

    /// Whether a VM may be suspended now.
    pub fn allows(&self, now: Instant) -> bool {
        self.next_try.is_none_or(|next| now >= next)
    }

    /// Whether the slot's VM is suspended although a build waits for it.
    pub fn overdue(&self, slot: SlotId) -> bool {
        self.boots.get(&slot).is_some_and(|boots| *boots > BOOTS_IN_A_ROW)
    }

    /// When it next may, if that is later than `now`.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        self.next_try.filter(|next| *next > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn pauses_grow_up_to_an_hour_and_a_resumed_vm_ends_them() {
        let (mut baking, now) = (Baking::default(), clock::now());
        assert!(baking.allows(now));
        let pauses: Vec<u64> = (0..8).map(|_| baking.failed(now).as_secs()).collect();
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert!(!baking.allows(now) && baking.allows(now + PAUSE_MAX));
        assert_eq!(baking.wake(now), Some(now + PAUSE_MAX));
        baking.resumed();
        assert!(baking.allows(now));
    }

    #[test]
    fn a_slot_that_boots_again_and_again_is_overdue_until_it_has_something_to_resume_from() {
        let mut baking = Baking::default();
        let slot = SlotId(0);
        for boot in 1..=3 {
            baking.booted(slot);
            assert_eq!(baking.overdue(slot), boot == 3);
        }
        assert!(!baking.overdue(SlotId(1)));
        baking.baked(slot);
        assert!(!baking.overdue(slot));
    }
}
