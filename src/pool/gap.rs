//! How long a slot stands empty that need not: from its guest's death to its next guest's process, where that one was cloned
//! and wanted at the death. So the start must follow in the same turn of the pool; what starts later waited for something
//! else.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::ids::{PoolName, SlotId};
use crate::runtime::VmName;

/// Deaths of this turn, and starts that followed on one.
#[derive(Debug, Default)]
pub struct Gaps {
    died: BTreeMap<(PoolName, SlotId), Instant>,
    starting: BTreeMap<VmName, Instant>,
}

impl Gaps {
    /// A VM's guest died at `at`, and that is heard in this turn.
    pub fn died(&mut self, vm: &VmName, at: Instant) {
        self.starting.remove(vm);
        self.died.insert((vm.pool.clone(), vm.slot), at);
    }

    /// A VM is started in this turn.
    pub fn granted(&mut self, vm: &VmName) {
        if let Some(at) = self.died.remove(&(vm.pool.clone(), vm.slot)) {
            self.starting.insert(vm.clone(), at);
        }
    }

    /// The turn is over.
    pub fn turn_over(&mut self) {
        self.died.clear();
    }

    /// A VM's process exists since `at`: the gap before it, if there was one.
    pub fn started(&mut self, vm: &VmName, at: Instant) -> Option<Duration> {
        self.starting.remove(vm).map(|died| at.saturating_duration_since(died))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::ids::Generation;

    fn vm(slot: u16, generation: u64) -> VmName {
        let pool = "linux".parse().expect("a name");
        VmName { pool, slot: SlotId(slot), generation: Generation(generation) }
    }

    #[test]
    fn a_gap_is_where_the_next_guest_was_ready_and_wanted_when_the_old_one_died() {
        let (mut gaps, now, ms) = (Gaps::default(), clock::now(), Duration::from_millis(1));
        gaps.died(&vm(0, 1), now);
        gaps.granted(&vm(0, 3));
        gaps.turn_over();
        assert_eq!(gaps.started(&vm(0, 3), now + 7 * ms), Some(7 * ms));
        assert_eq!(gaps.started(&vm(0, 3), now + 8 * ms), None, "once");

        gaps.died(&vm(0, 3), now);
        gaps.granted(&vm(1, 4));
        gaps.turn_over();
        gaps.granted(&vm(0, 5));
        assert_eq!(gaps.started(&vm(1, 4), now + ms), None, "it is another slot's");
        assert_eq!(gaps.started(&vm(0, 5), now + ms), None, "nobody wanted it, or it was not cloned yet");
    }

    #[test]
    fn a_vm_that_dies_before_it_runs_ends_no_gap() {
        let (mut gaps, now) = (Gaps::default(), clock::now());
        gaps.died(&vm(0, 1), now);
        gaps.granted(&vm(0, 2));
        gaps.turn_over();
        gaps.died(&vm(0, 2), now);
        assert_eq!(gaps.started(&vm(0, 2), now), None);
    }
}
