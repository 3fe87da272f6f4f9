//! What to do next, from the books alone. One decision at a time: the caller performs it, which changes the books, and asks
//! again until there is nothing to do. Every decision makes progress, so that ends.
//!
//! While the pool is drained, that is only to take away what no build has. Else the order is the policy: serve who waits; start what is prepared, waiting pools first; clone ahead; make room for who
//! waits; replace what is old or outdated; shed what is too much.

mod roll;

use super::ledger::{Ledger, PoolRow, Stage, VmRow};
use crate::clock::Instant;
use crate::ids::{BuildId, PoolName, SlotId};
use crate::runtime::VmName;
use crate::telemetry::events::RetireReason;

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Give the VM to the build.
    Lease { vm: VmName, build: BuildId },
    /// Let the prepared VM run.
    Start { vm: VmName },
    /// Clone a VM for the slot.
    Clone { pool: PoolName, slot: SlotId },
    /// Take the VM away.
    Remove { vm: VmName, why: RetireReason },
}

/// The next decision, or `None` when all is as it should be for now.
pub fn decide(ledger: &Ledger, now: Instant) -> Option<Decision> {
    if ledger.stopping {
        return None;
    }
    if ledger.draining.is_some() {
        return empty(ledger);
    }
    lease(ledger)
        .or_else(|| roll::clear_away(ledger))
        .or_else(|| start(ledger, now))
        .or_else(|| clone_ahead(ledger, now))
        .or_else(|| make_room(ledger, now))
        .or_else(|| replace_aged(ledger, now))
        .or_else(|| roll::replace_outdated(ledger))
        .or_else(|| shed(ledger))
}

/// When to ask again although nothing happened: a pause is over, a VM has its age.
pub fn wake(ledger: &Ledger, now: Instant) -> Option<Instant> {
    let troubles = ledger.pools.values().filter_map(|pool| pool.trouble.wake(now));
    let ages = ledger.vms.values().filter(|vm| vm.stage == Stage::Warm).filter_map(|vm| {
        let max_age = ledger.pools.get(&vm.name.pool)?.max_age;
        Some(vm.warm_since? + max_age)
    });
    let host = ledger.breaker.wake(now).into_iter().chain(ledger.limit.wake(now));
    troubles.chain(host).chain(ages.filter(|at| *at > now)).min()
}

/// What no build has goes; what a build has goes when the build is over.
fn empty(ledger: &Ledger) -> Option<Decision> {
    let vm = ledger.vms.values().find(|vm| vm.idle())?;
    Some(Decision::Remove { vm: vm.name.clone(), why: RetireReason::Drained })
}

/// Who waits longest, and has a warm VM in its pool, gets the one that has been warm for longest; an outdated one only where
/// there is no other.
fn lease(ledger: &Ledger) -> Option<Decision> {
    ledger.waiting.iter().find_map(|waiting| {
        let warm = ledger.of(&waiting.pool).filter(|vm| vm.stage == Stage::Warm);
        let vm = warm.min_by_key(|vm| (roll::is_outdated(ledger, vm), vm.warm_since))?;
        Some(Decision::Lease { vm: vm.name.clone(), build: waiting.build })
    })
}

/// Pools in the order of need: who waits longest first, then the others by name. While the host has trouble, they take turns.
fn by_need(ledger: &Ledger) -> Vec<(&PoolName, &PoolRow)> {
    let mut order: Vec<&PoolName> = Vec::new();
    let waiting = ledger.waiting.iter().map(|w| &w.pool);
    for name in waiting.chain(ledger.pools.keys()) {
        if !order.contains(&name) {
            order.push(name);
        }
    }
    order.sort_by_key(|name| ledger.breaker.last() == Some(*name));
    order.into_iter().filter_map(|name| ledger.pools.get_key_value(name)).collect()
}

/// Whether a slot's running VM is a build's, or is on its way out, or is lost.
fn occupied(ledger: &Ledger, pool: &PoolName, slot: SlotId) -> bool {
    ledger.slot(pool, slot).any(|vm| vm.holds_permit() && !vm.idle())
}

fn free_slots<'a>(
    ledger: &'a Ledger,
    pool: &'a PoolName,
    row: &PoolRow,
) -> impl Iterator<Item = SlotId> + 'a {
    (0..row.max).map(SlotId).filter(move |slot| !occupied(ledger, pool, *slot))
}

/// How many idle VMs the pool should have: its target, one for each build that waits, and one more while an outdated VM
/// waits for its successor; as far as its slots go.
fn wanted(ledger: &Ledger, pool: &PoolName, row: &PoolRow) -> usize {
    let demand = target(ledger, pool, row) + usize::from(roll::rolls(ledger, pool));
    // VMs in slots that the pool no longer has count too.
    let in_use = ledger.of(pool).filter(|vm| vm.holds_permit() && !vm.idle()).count();
    let room = usize::from(row.max).saturating_sub(in_use);
    demand.min(room).min(free_slots(ledger, pool, row).count())
}

/// The VMs that somebody needs.
fn target(ledger: &Ledger, pool: &PoolName, row: &PoolRow) -> usize {
    usize::from(row.warm) + ledger.waiting_for(pool)
}

/// Idle VMs that run or boot.
fn up(ledger: &Ledger, pool: &PoolName) -> usize {
    ledger.of(pool).filter(|vm| matches!(vm.stage, Stage::Booting | Stage::Warm)).count()
}

/// VMs that are being cloned or booted: with trouble there is one at a time.
fn coming_up(ledger: &Ledger, pool: &PoolName) -> usize {
    ledger.of(pool).filter(|vm| matches!(vm.stage, Stage::Preparing | Stage::Booting)).count()
}

/// The prepared VM that would be started next in a pool that wants one more.
fn startable<'a>(ledger: &'a Ledger, pool: &'a PoolName, row: &PoolRow, now: Instant) -> Option<&'a VmRow> {
    if up(ledger, pool) >= wanted(ledger, pool, row) || !row.trouble.allows(now, coming_up(ledger, pool)) {
        return None;
    }
    let refused = row.load().macos_guests > 0 && !ledger.limit.allows(ledger.host.macos_guests_used(), now);
    let full = ledger.of(pool).filter(|vm| vm.holds_permit()).count() >= usize::from(row.max);
    if full || refused || !ledger.breaker.allows(now) {
        return None;
    }
    ledger
        .of(pool)
        .find(|vm| vm.stage == Stage::Prepared && !ledger.slot(pool, vm.name.slot).any(VmRow::holds_permit))
}

fn start(ledger: &Ledger, now: Instant) -> Option<Decision> {
    by_need(ledger).into_iter().find_map(|(pool, row)| {
        let vm = startable(ledger, pool, row, now)?;
        ledger.host.fits(row.load()).ok()?;
        Some(Decision::Start { vm: vm.name.clone() })
    })
}

fn clone_ahead(ledger: &Ledger, now: Instant) -> Option<Decision> {
    if ledger.disk_low || !ledger.breaker.allows(now) {
        return None;
    }
    by_need(ledger).into_iter().find_map(|(pool, row)| {
        if row.image.is_none() || !row.trouble.allows(now, coming_up(ledger, pool)) {
            return None;
        }
        let slot = slot_to_fill(ledger, pool, row)
            .or_else(|| slot_to_succeed(ledger, pool, row))
            .or_else(|| roll::slot_to_renew(ledger, pool))?;
        Some(Decision::Clone { pool: pool.clone(), slot })
    })
}

/// A free slot without a VM, while fewer are idle than wanted.
fn slot_to_fill(ledger: &Ledger, pool: &PoolName, row: &PoolRow) -> Option<SlotId> {
    let has_idle = |slot: &SlotId| ledger.slot(pool, *slot).any(VmRow::idle);
    let idle = free_slots(ledger, pool, row).filter(has_idle).count();
    if idle >= wanted(ledger, pool, row) {
        return None;
    }
    free_slots(ledger, pool, row).find(|slot| !has_idle(slot))
}

/// A slot whose VM is in use and that has no successor yet. A clone takes no slot, so it is made now, while the build runs.
fn slot_to_succeed(ledger: &Ledger, pool: &PoolName, row: &PoolRow) -> Option<SlotId> {
    let troubled = row.trouble.current().is_some() || ledger.breaker.opened().is_some();
    if usize::from(row.warm) + ledger.waiting_for(pool) == 0 || troubled {
        return None;
    }
    (0..row.max).map(SlotId).find(|slot| {
        let in_use = |vm: &VmRow| matches!(vm.stage, Stage::Leased(_) | Stage::Dying) && vm.holds_permit();
        ledger.slot(pool, *slot).any(in_use) && !ledger.slot(pool, *slot).any(VmRow::idle)
    })
}

/// A pool's build waits, its VM is prepared, and only the host's bounds are in the way: an idle VM of a pool for which
/// nobody waits gives its place. One at a time: while something is dying, its place is awaited.
fn make_room(ledger: &Ledger, now: Instant) -> Option<Decision> {
    if ledger.vms.values().any(|vm| vm.stage == Stage::Dying) {
        return None;
    }
    let hungry = by_need(ledger).into_iter().find(|(pool, row)| {
        ledger.waiting_for(pool) > up(ledger, pool)
            && startable(ledger, pool, row, now).is_some()
            && ledger.host.fits(row.load()).is_err()
    })?;
    let spare = ledger.vms.values().filter(|vm| {
        matches!(vm.stage, Stage::Booting | Stage::Warm)
            && vm.name.pool != *hungry.0
            && ledger.waiting_for(&vm.name.pool) == 0
    });
    let vm = spare.min_by_key(|vm| vm.born)?;
    Some(Decision::Remove { vm: vm.name.clone(), why: RetireReason::Evicted })
}

/// One at a time, and not while somebody waits or another VM of the pool is coming up.
fn replace_aged(ledger: &Ledger, now: Instant) -> Option<Decision> {
    ledger.vms.values().find_map(|vm| {
        let row = ledger.pools.get(&vm.name.pool)?;
        let aged = vm.stage == Stage::Warm && now >= vm.warm_since? + row.max_age;
        let busy = ledger.waiting_for(&vm.name.pool) > 0 || coming_up(ledger, &vm.name.pool) > 0;
        (aged && !busy).then(|| Decision::Remove { vm: vm.name.clone(), why: RetireReason::Aged })
    })
}

/// More run idle than are wanted: a build was cancelled while its VM booted. What only lies on the disk may lie.
fn shed(ledger: &Ledger) -> Option<Decision> {
    ledger.pools.iter().find_map(|(pool, row)| {
        if up(ledger, pool) <= wanted(ledger, pool, row) {
            return None;
        }
        let idle = ledger.of(pool).filter(|vm| matches!(vm.stage, Stage::Booting | Stage::Warm));
        let vm =
            idle.max_by_key(|vm| (vm.stage == Stage::Booting, roll::is_outdated(ledger, vm), vm.born))?;
        Some(Decision::Remove { vm: vm.name.clone(), why: RetireReason::Surplus })
    })
}

#[cfg(test)]
mod tests;
