//! VMs that the configuration has left behind: of an edition of their pool that is no more, or in a slot that it no longer
//! has. What nobody can use yet goes at once. A warm VM goes when its successor is warm, so that the pool is not empty
//! meanwhile; where no slot or no place on the host is left for that, when its successor is cloned and waits for its place.
//! While the pool has trouble what is warm stays: a broken image does not empty a pool that worked.

use super::{Decision, named, target};
use crate::ids::SlotId;
use crate::pool::ledger::{Ledger, Stage, Standing};
use crate::runtime::VmName;
use crate::telemetry::events::RetireReason;

/// Idle VMs in slots that are no more, and outdated ones that are not warm.
pub(super) fn clear_away(ledger: &Ledger) -> Option<Decision> {
    Some(Decision::Remove { vm: ledger.index().first_stray()?.clone(), why: RetireReason::Outdated })
}

/// The slot of an outdated VM, for its successor, while nothing fresh of the pool is there to take a place. What waits behind
/// a build, or behind a VM that is lost, may wait for long.
pub(super) fn slot_to_renew(pool: Standing<'_>) -> Option<SlotId> {
    if pool.tally.renews() {
        return None;
    }
    pool.tally.first_outdated()
}

/// One that can go: more are warm than are needed, or its successor waits for its place.
pub(super) fn replace_outdated(ledger: &Ledger) -> Option<Decision> {
    ledger.standings().filter(|pool| pool.tally.rolls()).find_map(|pool| {
        let vm = surplus(pool).or_else(|| in_the_way(ledger, pool))?;
        Some(Decision::Remove { vm, why: RetireReason::Outdated })
    })
}

fn surplus(pool: Standing<'_>) -> Option<VmName> {
    if pool.tally.warm() <= target(pool) {
        return None;
    }
    Some(named(pool.name, pool.tally.oldest_outdated()?))
}

/// One at a time: not while another VM of the pool comes up or goes.
fn in_the_way(ledger: &Ledger, pool: Standing<'_>) -> Option<VmName> {
    let moving = pool.tally.booting() > 0 || pool.tally.counts.dying > 0;
    if pool.row.trouble.current().is_some() || moving {
        return None;
    }
    let slot = pool.tally.first_yielding()?;
    let holder = ledger.slot(pool.name, slot).find(|vm| vm.stage == Stage::Warm);
    holder.map(|vm| vm.name.clone()).or_else(|| Some(named(pool.name, pool.tally.oldest_outdated()?)))
}
