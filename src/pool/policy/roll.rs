//! VMs that the configuration has left behind: of an edition of their pool that is no more, or in a slot that it no longer
//! has. What nobody can use yet goes at once. A warm VM goes when its successor is warm, so that the pool is not empty
//! meanwhile; where no slot or no place on the host is left for that, when its successor is cloned and waits for its place.
//! While the pool has trouble what is warm stays: a broken image does not empty a pool that worked.

use super::{Decision, target};
use crate::ids::{PoolName, SlotId};
use crate::pool::ledger::{Ledger, PoolRow, Stage, VmRow};
use crate::telemetry::events::RetireReason;

/// Whether the VM is made from what its pool no longer is made from.
pub(super) fn is_outdated(ledger: &Ledger, vm: &VmRow) -> bool {
    ledger.pools.get(&vm.name.pool).is_none_or(|row| row.edition != vm.edition)
}

/// Whether a warm VM of the pool waits for its successor.
pub(super) fn rolls(ledger: &Ledger, pool: &PoolName) -> bool {
    outdated(ledger, pool).next().is_some()
}

fn outdated<'a>(ledger: &'a Ledger, pool: &'a PoolName) -> impl Iterator<Item = &'a VmRow> {
    ledger.of(pool).filter(|vm| vm.stage == Stage::Warm && is_outdated(ledger, vm))
}

/// Idle VMs in slots that are no more, and outdated ones that are not warm.
pub(super) fn clear_away(ledger: &Ledger) -> Option<Decision> {
    let vm = ledger.vms.values().filter(|vm| vm.idle()).find(|vm| {
        let slots = ledger.pools.get(&vm.name.pool).map_or(0, |row| row.max);
        vm.name.slot.0 >= slots || (vm.stage != Stage::Warm && is_outdated(ledger, vm))
    })?;
    Some(Decision::Remove { vm: vm.name.clone(), why: RetireReason::Outdated })
}

/// The slot of an outdated VM, for its successor, while nothing fresh of the pool is there to take a place. What waits behind
/// a build, or behind a VM that is lost, may wait for long.
pub(super) fn slot_to_renew(ledger: &Ledger, pool: &PoolName) -> Option<SlotId> {
    let blocks = |vm: &VmRow| vm.holds_permit() && matches!(vm.stage, Stage::Leased(_) | Stage::Lost);
    let fresh = |vm: &VmRow| {
        let blocked = ledger.slot(pool, vm.name.slot).any(blocks);
        vm.idle() && vm.stage != Stage::Warm && !is_outdated(ledger, vm) && !blocked
    };
    if ledger.of(pool).any(fresh) {
        return None;
    }
    Some(outdated(ledger, pool).next()?.name.slot)
}

/// One that can go: more are warm than are needed, or its successor waits for its place.
pub(super) fn replace_outdated(ledger: &Ledger) -> Option<Decision> {
    ledger.pools.iter().find_map(|(pool, row)| {
        let vm = surplus(ledger, pool, row).or_else(|| in_the_way(ledger, pool, row))?;
        Some(Decision::Remove { vm: vm.name.clone(), why: RetireReason::Outdated })
    })
}

fn surplus<'a>(ledger: &'a Ledger, pool: &'a PoolName, row: &PoolRow) -> Option<&'a VmRow> {
    let warm = ledger.of(pool).filter(|vm| vm.stage == Stage::Warm).count();
    if warm <= target(ledger, pool, row) {
        return None;
    }
    outdated(ledger, pool).min_by_key(|vm| vm.warm_since)
}

/// One at a time: not while another VM of the pool comes up or goes.
fn in_the_way<'a>(ledger: &'a Ledger, pool: &'a PoolName, row: &PoolRow) -> Option<&'a VmRow> {
    let moving = |vm: &VmRow| matches!(vm.stage, Stage::Booting | Stage::Dying);
    if row.trouble.current().is_some() || ledger.of(pool).any(moving) {
        return None;
    }
    let waits = |vm: &&VmRow| vm.stage == Stage::Prepared && !is_outdated(ledger, vm);
    ledger.of(pool).filter(waits).find_map(|successor| {
        let holder = ledger.slot(pool, successor.name.slot).find(|vm| vm.holds_permit());
        match holder {
            Some(holder) => Some(holder).filter(|vm| vm.stage == Stage::Warm && is_outdated(ledger, vm)),
            None => outdated(ledger, pool).min_by_key(|vm| vm.warm_since),
        }
    })
}
