//! The policy as it reads with nothing at hand but the rows: every question looks at all of them. It is slow, and plain
//! enough to be believed; what the daemon runs must decide the same.

use crate::clock::Instant;
use crate::ids::{BuildId, PoolName, SlotId};
use crate::pool::admission::Wait;
use crate::pool::baking::Resuming;
use crate::pool::ledger::{Drain, Ledger, PoolRow, Stage, VmRow};
use crate::pool::policy::Decision;
use crate::telemetry::events::RetireReason;

/// VMs of a pool.
fn of<'a>(ledger: &'a Ledger, pool: &'a PoolName) -> impl Iterator<Item = &'a VmRow> {
    ledger.vms().values().filter(move |vm| vm.name.pool == *pool)
}

/// VMs of a slot.
fn slot_of<'a>(ledger: &'a Ledger, pool: &'a PoolName, slot: SlotId) -> impl Iterator<Item = &'a VmRow> {
    of(ledger, pool).filter(move |vm| vm.name.slot == slot)
}

/// Builds that wait for a pool.
fn waiting_for(ledger: &Ledger, pool: &PoolName) -> usize {
    ledger.waiting().iter().filter(|w| w.pool == *pool).count()
}

/// The next decision, or `None` when all is as it should be for now.
pub fn decide(ledger: &Ledger, now: Instant) -> Option<Decision> {
    if ledger.stopping {
        return None;
    }
    if ledger.draining.is_some() {
        return empty(ledger);
    }
    suspend(ledger, now, true)
        .or_else(|| lease(ledger))
        .or_else(|| clear_away(ledger))
        .or_else(|| start(ledger, now))
        .or_else(|| clone_ahead(ledger, now))
        .or_else(|| make_room(ledger, now))
        .or_else(|| replace_aged(ledger, now))
        .or_else(|| replace_outdated(ledger))
        .or_else(|| shed(ledger))
        .or_else(|| suspend(ledger, now, false))
}

/// When to ask again although nothing happened: a pause is over, a VM has its age.
pub fn wake(ledger: &Ledger, now: Instant) -> Option<Instant> {
    let troubles =
        ledger.pools.values().flat_map(|pool| [pool.trouble.wake(now), pool.baking.wake(now)]).flatten();
    let ages = ledger.vms().values().filter(|vm| vm.stage == Stage::Warm).filter_map(|vm| {
        let max_age = ledger.pools.get(&vm.name.pool)?.max_age;
        Some(vm.warm_since? + max_age)
    });
    let host = ledger.breaker.wake(now).into_iter().chain(ledger.limit.wake(now));
    troubles.chain(host).chain(ages.filter(|at| *at > now)).min()
}

/// What no build has goes; what a build has goes when the build is over.
fn empty(ledger: &Ledger) -> Option<Decision> {
    let vm = ledger.vms().values().find(|vm| vm.idle())?;
    Some(Decision::Remove { vm: vm.name.clone(), why: RetireReason::Drained })
}

/// Who waits longest, and has a warm VM in its pool, gets the one that has been warm for longest; an outdated one only where
/// there is no other.
fn lease(ledger: &Ledger) -> Option<Decision> {
    ledger.waiting().iter().find_map(|waiting| {
        let warm = of(ledger, &waiting.pool).filter(|vm| vm.stage == Stage::Warm);
        let vm = warm.min_by_key(|vm| (is_outdated(ledger, vm), vm.warm_since))?;
        Some(Decision::Lease { vm: vm.name.clone(), build: waiting.build })
    })
}

/// Pools in the order of need: who waits longest first, then the others by name. While the host has trouble, they take turns.
fn by_need(ledger: &Ledger) -> Vec<(&PoolName, &PoolRow)> {
    let mut order: Vec<&PoolName> = Vec::new();
    let waiting = ledger.waiting().iter().map(|w| &w.pool);
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
    slot_of(ledger, pool, slot).any(|vm| vm.holds_permit() && !vm.idle())
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
    let demand = target(ledger, pool, row) + usize::from(rolls(ledger, pool));
    // VMs in slots that the pool no longer has count too.
    let in_use = of(ledger, pool).filter(|vm| vm.holds_permit() && !vm.idle()).count();
    let room = usize::from(row.max).saturating_sub(in_use);
    demand.min(room).min(free_slots(ledger, pool, row).count())
}

/// The VMs that somebody needs.
fn target(ledger: &Ledger, pool: &PoolName, row: &PoolRow) -> usize {
    usize::from(row.warm) + waiting_for(ledger, pool)
}

/// Idle VMs that run or boot.
fn up(ledger: &Ledger, pool: &PoolName) -> usize {
    of(ledger, pool).filter(|vm| matches!(vm.stage, Stage::Booting | Stage::Warm)).count()
}

/// VMs that are being cloned or booted: with trouble there is one at a time.
fn coming_up(ledger: &Ledger, pool: &PoolName) -> usize {
    of(ledger, pool).filter(|vm| matches!(vm.stage, Stage::Preparing | Stage::Booting)).count()
}

/// The prepared VM that would be started next in a pool that wants one more.
fn startable<'a>(ledger: &'a Ledger, pool: &'a PoolName, row: &PoolRow, now: Instant) -> Option<&'a VmRow> {
    if up(ledger, pool) >= wanted(ledger, pool, row) || !row.trouble.allows(now, coming_up(ledger, pool)) {
        return None;
    }
    let refused = row.load().macos_guests > 0 && !ledger.limit.allows(ledger.host.macos_guests_used(), now);
    let full = of(ledger, pool).filter(|vm| vm.holds_permit()).count() >= usize::from(row.max);
    if full || refused || !ledger.breaker.allows(now) {
        return None;
    }
    of(ledger, pool).find(|vm| {
        vm.stage == Stage::Prepared && !slot_of(ledger, pool, vm.name.slot).any(VmRow::holds_permit)
    })
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
            .or_else(|| slot_to_renew(ledger, pool))?;
        Some(Decision::Clone { pool: pool.clone(), slot })
    })
}

/// A free slot without a VM, while fewer are idle than wanted.
fn slot_to_fill(ledger: &Ledger, pool: &PoolName, row: &PoolRow) -> Option<SlotId> {
    let has_idle = |slot: &SlotId| slot_of(ledger, pool, *slot).any(VmRow::idle);
    let idle = free_slots(ledger, pool, row).filter(has_idle).count();
    if idle >= wanted(ledger, pool, row) {
        return None;
    }
    free_slots(ledger, pool, row).find(|slot| !has_idle(slot))
}

/// A slot whose VM is in use and that has no successor yet. A clone takes no slot, so it is made now, while the build runs.
fn slot_to_succeed(ledger: &Ledger, pool: &PoolName, row: &PoolRow) -> Option<SlotId> {
    let troubled = row.trouble.current().is_some() || ledger.breaker.opened().is_some();
    if usize::from(row.warm) + waiting_for(ledger, pool) == 0 || troubled {
        return None;
    }
    (0..row.max).map(SlotId).find(|slot| {
        let in_use = |vm: &VmRow| matches!(vm.stage, Stage::Leased(_) | Stage::Dying) && vm.holds_permit();
        slot_of(ledger, pool, *slot).any(in_use) && !slot_of(ledger, pool, *slot).any(VmRow::idle)
    })
}

/// A pool's build waits, its VM is prepared, and only the host's bounds are in the way: an idle VM of a pool for which
/// nobody waits gives its place. One at a time: while something is dying, its place is awaited.
fn make_room(ledger: &Ledger, now: Instant) -> Option<Decision> {
    if ledger.vms().values().any(|vm| vm.stage == Stage::Dying) {
        return None;
    }
    let hungry = by_need(ledger).into_iter().find(|(pool, row)| {
        waiting_for(ledger, pool) > up(ledger, pool)
            && startable(ledger, pool, row, now).is_some()
            && ledger.host.fits(row.load()).is_err()
    })?;
    let spare = ledger.vms().values().filter(|vm| {
        matches!(vm.stage, Stage::Booting | Stage::Warm)
            && vm.name.pool != *hungry.0
            && waiting_for(ledger, &vm.name.pool) == 0
    });
    let vm = spare.min_by_key(|vm| vm.born)?;
    Some(Decision::Remove { vm: vm.name.clone(), why: RetireReason::Evicted })
}

/// One at a time, and not while somebody waits or another VM of the pool is coming up.
fn replace_aged(ledger: &Ledger, now: Instant) -> Option<Decision> {
    ledger.vms().values().find_map(|vm| {
        let row = ledger.pools.get(&vm.name.pool)?;
        let aged = vm.stage == Stage::Warm && now >= vm.warm_since? + row.max_age;
        let busy = waiting_for(ledger, &vm.name.pool) > 0 || coming_up(ledger, &vm.name.pool) > 0;
        (aged && !busy).then(|| Decision::Remove { vm: vm.name.clone(), why: RetireReason::Aged })
    })
}

/// More run idle than are wanted: a build was cancelled while its VM booted. What only lies on the disk may lie.
fn shed(ledger: &Ledger) -> Option<Decision> {
    ledger.pools.iter().find_map(|(pool, row)| {
        if up(ledger, pool) <= wanted(ledger, pool, row) {
            return None;
        }
        let idle = of(ledger, pool).filter(|vm| matches!(vm.stage, Stage::Booting | Stage::Warm));
        let vm = idle.max_by_key(|vm| (vm.stage == Stage::Booting, is_outdated(ledger, vm), vm.born))?;
        Some(Decision::Remove { vm: vm.name.clone(), why: RetireReason::Surplus })
    })
}

/// Whether the VM is made from what its pool no longer is made from.
pub fn is_outdated(ledger: &Ledger, vm: &VmRow) -> bool {
    ledger.pools.get(&vm.name.pool).is_none_or(|row| row.edition != vm.edition)
}

/// Whether a warm VM of the pool waits for its successor.
fn rolls(ledger: &Ledger, pool: &PoolName) -> bool {
    outdated(ledger, pool).next().is_some()
}

fn outdated<'a>(ledger: &'a Ledger, pool: &'a PoolName) -> impl Iterator<Item = &'a VmRow> {
    of(ledger, pool).filter(|vm| vm.stage == Stage::Warm && is_outdated(ledger, vm))
}

/// A warm VM of a slot that has nothing to resume from, where nobody waits, or where it is overdue although somebody does.
fn suspend(ledger: &Ledger, now: Instant, overdue: bool) -> Option<Decision> {
    let suspending = ledger.vms().values().any(|vm| vm.stage == Stage::Suspending);
    if ledger.disk_low || suspending || ledger.breaker.opened().is_some() {
        return None;
    }
    ledger.pools.iter().find_map(|(pool, row)| {
        let on = matches!(row.resuming, Resuming::On(_));
        let waited_for = waiting_for(ledger, pool) > 0;
        if !on || row.trouble.current().is_some() || !row.baking.allows(now) || waited_for != overdue {
            return None;
        }
        let slot = (0..row.max).map(SlotId).find(|slot| {
            let has = |test: &dyn Fn(&VmRow) -> bool| slot_of(ledger, pool, *slot).any(test);
            let booted =
                |vm: &VmRow| vm.stage == Stage::Warm && vm.origin.is_none() && !is_outdated(ledger, vm);
            let due = !overdue || row.baking.overdue(*slot);
            due && has(&booted) && !has(&|vm| vm.stage == Stage::Golden)
        })?;
        let vm = slot_of(ledger, pool, slot).find(|vm| vm.stage == Stage::Warm)?;
        Some(Decision::Suspend { vm: vm.name.clone() })
    })
}

/// Idle VMs in slots that are no more, and outdated ones that are not warm; what was suspended and is worth nothing.
fn clear_away(ledger: &Ledger) -> Option<Decision> {
    let vm = ledger.vms().values().filter(|vm| vm.idle() || vm.stage == Stage::Golden).find(|vm| {
        let slots = ledger.pools.get(&vm.name.pool).map_or(0, |row| row.max);
        let worthless = match vm.stage {
            Stage::Golden => match ledger.pools.get(&vm.name.pool).map(|row| &row.resuming) {
                Some(Resuming::On(key)) => vm.key.as_ref() != Some(key),
                Some(Resuming::Unknown) => false,
                Some(Resuming::Off) | None => true,
            },
            Stage::Warm => false,
            Stage::Preparing | Stage::Prepared | Stage::Booting => is_outdated(ledger, vm),
            Stage::Leased(_) | Stage::Suspending | Stage::Dying | Stage::Deleting | Stage::Lost => false,
        };
        vm.name.slot.0 >= slots || worthless
    })?;
    Some(Decision::Remove { vm: vm.name.clone(), why: RetireReason::Outdated })
}

/// The slot of an outdated VM, for its successor, while nothing fresh of the pool is there to take a place. What waits behind
/// a build, or behind a VM that is lost, may wait for long.
fn slot_to_renew(ledger: &Ledger, pool: &PoolName) -> Option<SlotId> {
    let blocks = |vm: &VmRow| vm.holds_permit() && matches!(vm.stage, Stage::Leased(_) | Stage::Lost);
    let fresh = |vm: &VmRow| {
        let blocked = slot_of(ledger, pool, vm.name.slot).any(blocks);
        vm.idle() && vm.stage != Stage::Warm && !is_outdated(ledger, vm) && !blocked
    };
    if of(ledger, pool).any(fresh) {
        return None;
    }
    Some(outdated(ledger, pool).next()?.name.slot)
}

/// One that can go: more are warm than are needed, or its successor waits for its place.
fn replace_outdated(ledger: &Ledger) -> Option<Decision> {
    ledger.pools.iter().find_map(|(pool, row)| {
        let vm = surplus(ledger, pool, row).or_else(|| in_the_way(ledger, pool, row))?;
        Some(Decision::Remove { vm: vm.name.clone(), why: RetireReason::Outdated })
    })
}

fn surplus<'a>(ledger: &'a Ledger, pool: &'a PoolName, row: &PoolRow) -> Option<&'a VmRow> {
    let warm = of(ledger, pool).filter(|vm| vm.stage == Stage::Warm).count();
    if warm <= target(ledger, pool, row) {
        return None;
    }
    outdated(ledger, pool).min_by_key(|vm| vm.warm_since)
}

/// One at a time: not while another VM of the pool comes up or goes.
fn in_the_way<'a>(ledger: &'a Ledger, pool: &'a PoolName, row: &PoolRow) -> Option<&'a VmRow> {
    let moving = |vm: &VmRow| matches!(vm.stage, Stage::Booting | Stage::Dying);
    if row.trouble.current().is_some() || of(ledger, pool).any(moving) {
        return None;
    }
    let waits = |vm: &&VmRow| vm.stage == Stage::Prepared && !is_outdated(ledger, vm);
    of(ledger, pool).filter(waits).find_map(|successor| {
        let holder = slot_of(ledger, pool, successor.name.slot).find(|vm| vm.holds_permit());
        match holder {
            Some(holder) => Some(holder).filter(|vm| vm.stage == Stage::Warm && is_outdated(ledger, vm)),
            None => outdated(ledger, pool).min_by_key(|vm| vm.warm_since),
        }
    })
}

/// What `build` waits for; `None` when it does not wait.
pub fn waits_for(ledger: &Ledger, build: BuildId, now: Instant) -> Option<Wait> {
    let at = ledger.waiting().iter().position(|w| w.build == build)?;
    let name = &ledger.waiting().iter().nth(at)?.pool;
    let row = ledger.pools.get(name)?;
    let pool = name.to_string();
    if ledger.stopping {
        return Some(Wait::Stopping);
    }
    match ledger.draining {
        Some(Drain::Asked) => return Some(Wait::Draining),
        Some(Drain::Ending) => return Some(Wait::Stopping),
        None => {}
    }
    if let Some(opened) = ledger.breaker.opened() {
        return Some(Wait::HostTrouble {
            fault: opened.fault.to_string(),
            hint: opened.fault.reason.hint(),
            seconds: opened.next_try.saturating_duration_since(now).as_secs(),
        });
    }
    if let Some(trouble) = row.trouble.current() {
        let seconds = trouble.next_try.saturating_duration_since(now).as_secs();
        return Some(Wait::Trouble { pool, fault: trouble.fault.to_string(), seconds });
    }
    if row.image.is_none() {
        return Some(Wait::Image { pool });
    }
    let ahead = ledger.waiting().iter().take(at).filter(|w| w.pool == *name).count();
    let coming = |stage: Stage| matches!(stage, Stage::Booting | Stage::Warm);
    if of(ledger, name).filter(|vm| coming(vm.stage)).count() > ahead {
        return Some(Wait::Booting { pool });
    }
    if ahead > 0 {
        return Some(Wait::Ahead { pool, ahead });
    }
    let running = of(ledger, name).filter(|vm| vm.holds_permit()).count();
    if running >= usize::from(row.max) {
        return Some(Wait::SlotsBusy { pool, max: row.max });
    }
    let met = ledger.limit.met().filter(|_| row.load().macos_guests > 0);
    if let Some(met) = met.filter(|_| !ledger.limit.allows(ledger.host.macos_guests_used(), now)) {
        return Some(Wait::MacosLimit {
            fault: met.fault.to_string(),
            hint: met.fault.reason.hint(),
            seconds: met.next_try.saturating_duration_since(now).as_secs(),
        });
    }
    if let Err(full) = ledger.host.fits(row.load()) {
        return Some(Wait::Host(full));
    }
    if ledger.disk_low {
        return Some(Wait::DiskLow);
    }
    Some(Wait::Booting { pool })
}
