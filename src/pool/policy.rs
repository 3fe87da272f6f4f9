//! What to do next, from the books alone. One decision at a time: the caller performs it, which changes the books, and asks
//! again until there is nothing to do. Every decision makes progress, so that ends.
//!
//! While the pool is drained, that is only to take away what no build has. Else the order is the policy: serve who waits;
//! start what is prepared, waiting pools first; clone ahead; make room for who waits; replace what is old or outdated; shed
//! what is too much; suspend a VM for others to resume from. That comes first where it is overdue.
//!
//! It reads no rows to find one: what it looks for is in the ledger's index. `tests/oracle.rs` is the same policy as it reads
//! with nothing but the rows.

mod roll;

use super::ledger::{Ledger, Place, Stage, Standing, VmRow};
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
    /// Save the warm VM's state, for others of its slot to be cloned from.
    Suspend { vm: VmName },
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
    suspend_overdue(ledger, now)
        .or_else(|| lease(ledger))
        .or_else(|| roll::clear_away(ledger))
        .or_else(|| start(ledger, now))
        .or_else(|| clone_ahead(ledger, now))
        .or_else(|| make_room(ledger, now))
        .or_else(|| replace_aged(ledger, now))
        .or_else(|| roll::replace_outdated(ledger))
        .or_else(|| shed(ledger))
        .or_else(|| suspend(ledger, now))
}

/// When to ask again although nothing happened: a pause is over, a VM has its age.
pub fn wake(ledger: &Ledger, now: Instant) -> Option<Instant> {
    let pools = ledger.standings().flat_map(|pool| {
        let max_age = pool.row.max_age;
        let next = pool.tally.warm_after(now.checked_sub(max_age)).map(|since| since + max_age);
        pool.row.trouble.wake(now).into_iter().chain(pool.row.baking.wake(now)).chain(next)
    });
    pools.chain(ledger.breaker.wake(now)).chain(ledger.limit.wake(now)).min()
}

fn named(pool: &PoolName, (slot, generation): Place) -> VmName {
    VmName { pool: pool.clone(), slot, generation }
}

/// What no build has goes; what a build has goes when the build is over.
fn empty(ledger: &Ledger) -> Option<Decision> {
    Some(Decision::Remove { vm: ledger.index().first_idle()?.clone(), why: RetireReason::Drained })
}

/// Who waits longest, and has a warm VM in its pool, gets the one that has been warm for longest; an outdated one only where
/// there is no other.
fn lease(ledger: &Ledger) -> Option<Decision> {
    ledger.waiting().heads().find_map(|(pool, build)| {
        let place = ledger.index().tally(pool)?.warmest()?;
        Some(Decision::Lease { vm: named(pool, place), build })
    })
}

/// Pools in the order of need: who waits longest first, then the others by name. While the host has trouble, they take turns.
fn by_need(ledger: &Ledger) -> impl Iterator<Item = Standing<'_>> {
    let last = ledger.breaker.last();
    let waits = ledger.waiting().heads().filter_map(|(pool, _)| ledger.standing(pool));
    let others = ledger.standings().filter(|pool| pool.waiting == 0);
    let turns = waits.chain(others).filter(move |pool| Some(pool.name) != last);
    turns.chain(last.and_then(|name| ledger.standing(name)))
}

/// How many idle VMs the pool should have: its target, one for each build that waits, and one more while an outdated VM
/// waits for its successor; as far as its slots go.
fn wanted(pool: Standing<'_>) -> usize {
    let demand = target(pool) + usize::from(pool.tally.rolls());
    // VMs in slots that the pool no longer has count too.
    let room = usize::from(pool.row.max).saturating_sub(pool.tally.counts.in_use);
    demand.min(room).min(pool.tally.free())
}

/// The VMs that somebody needs.
fn target(pool: Standing<'_>) -> usize {
    usize::from(pool.row.warm) + pool.waiting
}

/// Whether the pool's trouble lets one more come up: with trouble there is one at a time.
fn untroubled(pool: Standing<'_>, now: Instant) -> bool {
    pool.row.trouble.allows(now, pool.tally.coming())
}

/// The prepared VM that would be started next in a pool that wants one more.
fn startable<'a>(ledger: &'a Ledger, pool: Standing<'a>, now: Instant) -> Option<&'a VmRow> {
    let slot = pool.tally.first_startable()?;
    if pool.tally.up() >= wanted(pool) || !untroubled(pool, now) {
        return None;
    }
    let refused =
        pool.row.load().macos_guests > 0 && !ledger.limit.allows(ledger.host.macos_guests_used(), now);
    let full = pool.tally.counts.permits >= usize::from(pool.row.max);
    if full || refused || !ledger.breaker.allows(now) {
        return None;
    }
    ledger.slot(pool.name, slot).find(|vm| vm.stage == Stage::Prepared)
}

fn start(ledger: &Ledger, now: Instant) -> Option<Decision> {
    by_need(ledger).find_map(|pool| {
        let vm = startable(ledger, pool, now)?;
        ledger.host.fits(pool.row.load()).ok()?;
        Some(Decision::Start { vm: vm.name.clone() })
    })
}

fn clone_ahead(ledger: &Ledger, now: Instant) -> Option<Decision> {
    if ledger.disk_low || !ledger.breaker.allows(now) {
        return None;
    }
    by_need(ledger).find_map(|pool| {
        if pool.row.image.is_none() || !untroubled(pool, now) {
            return None;
        }
        let slot = slot_to_fill(pool)
            .or_else(|| slot_to_succeed(ledger, pool))
            .or_else(|| roll::slot_to_renew(pool))?;
        Some(Decision::Clone { pool: pool.name.clone(), slot })
    })
}

/// A free slot without a VM, while fewer are idle than wanted.
fn slot_to_fill(pool: Standing<'_>) -> Option<SlotId> {
    if pool.tally.filled() >= wanted(pool) {
        return None;
    }
    pool.tally.first_vacant()
}

/// A slot whose VM is in use and that has no successor yet. A clone takes no slot, so it is made now, while the build runs.
fn slot_to_succeed(ledger: &Ledger, pool: Standing<'_>) -> Option<SlotId> {
    let troubled = pool.row.trouble.current().is_some() || ledger.breaker.opened().is_some();
    if target(pool) == 0 || troubled {
        return None;
    }
    pool.tally.first_bare()
}

/// A pool's build waits, its VM is prepared, and only the host's bounds are in the way: an idle VM of a pool for which
/// nobody waits gives its place. One at a time: while something is dying, its place is awaited.
fn make_room(ledger: &Ledger, now: Instant) -> Option<Decision> {
    if ledger.index().dying() > 0 {
        return None;
    }
    let hungry = by_need(ledger).find(|pool| {
        pool.waiting > pool.tally.up()
            && startable(ledger, *pool, now).is_some()
            && ledger.host.fits(pool.row.load()).is_err()
    })?;
    let spare = ledger.standings().filter(|pool| pool.name != hungry.name && pool.waiting == 0);
    let first_born = spare.filter_map(|pool| {
        let (born, place) = pool.tally.first_born()?;
        Some((born, named(pool.name, place)))
    });
    let (_, vm) = first_born.min()?;
    Some(Decision::Remove { vm, why: RetireReason::Evicted })
}

/// One at a time, and not while somebody waits or another VM of the pool is coming up.
fn replace_aged(ledger: &Ledger, now: Instant) -> Option<Decision> {
    ledger.standings().filter(|pool| pool.waiting == 0 && pool.tally.coming() == 0).find_map(|pool| {
        let place = pool.tally.first_warm_since(now.checked_sub(pool.row.max_age)?)?;
        Some(Decision::Remove { vm: named(pool.name, place), why: RetireReason::Aged })
    })
}

/// More run idle than are wanted: a build was cancelled while its VM booted. What only lies on the disk may lie.
fn shed(ledger: &Ledger) -> Option<Decision> {
    ledger.standings().find_map(|pool| {
        if pool.tally.up() <= wanted(pool) {
            return None;
        }
        let vm = named(pool.name, pool.tally.most_dispensable()?);
        Some(Decision::Remove { vm, why: RetireReason::Surplus })
    })
}

/// Nobody waits for the pool, so nobody misses the VM until it has resumed as another.
fn suspend(ledger: &Ledger, now: Instant) -> Option<Decision> {
    suspendable(ledger, now, |pool| if pool.waiting == 0 { pool.tally.bakeable().next() } else { None })
}

/// Somebody always waits for the pool, so that its slots would boot for ever.
fn suspend_overdue(ledger: &Ledger, now: Instant) -> Option<Decision> {
    suspendable(ledger, now, |pool| {
        let overdue = |slot: &SlotId| pool.waiting > 0 && pool.row.baking.overdue(*slot);
        pool.tally.bakeable().find(overdue)
    })
}

/// One at a time on the host, and only where all is well: it takes disk and processor time from those that work.
fn suspendable(
    ledger: &Ledger,
    now: Instant,
    which: impl Fn(Standing<'_>) -> Option<SlotId>,
) -> Option<Decision> {
    if ledger.disk_low || ledger.index().suspending() > 0 || ledger.breaker.opened().is_some() {
        return None;
    }
    let well = |pool: &Standing<'_>| pool.row.trouble.current().is_none() && pool.row.baking.allows(now);
    ledger.standings().filter(well).find_map(|pool| {
        let slot = which(pool)?;
        let vm = ledger.slot(pool.name, slot).find(|vm| vm.stage == Stage::Warm)?;
        Some(Decision::Suspend { vm: vm.name.clone() })
    })
}

#[cfg(test)]
mod tests;
