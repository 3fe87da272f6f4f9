//! What everybody else may know of the pool: one value, published whole, with a generation that only grows.

use std::collections::BTreeMap;

use super::admission;
use super::breaker::BreakerState;
use super::ledger::{Ledger, PoolRow, Stage, VmRow};
use crate::api::wire::{PoolView, TroubleScope, TroubleView, VmView};
use crate::clock::{Instant, UnixMillis};
use crate::config::Config;
use crate::ids::{BuildId, PoolName};
use crate::runtime::Fault;
use crate::vm::state::VmStateName;

/// The pool at one moment.
#[derive(Debug, Clone, Default)]
pub struct PoolSnapshot {
    pub generation: u64,
    pub pools: Vec<PoolState>,
    pub vms: Vec<VmView>,
    /// What each waiting build waits for.
    pub waiting: BTreeMap<BuildId, String>,
    pub oldest_waiting: Option<UnixMillis>,
    /// Of the host.
    pub breaker: BreakerState,
    /// VMs that failed, and removals, since the start.
    pub failures: u64,
    /// Nothing is leased or started, and idle VMs go.
    pub draining: bool,
}

impl PoolSnapshot {
    /// VMs that exist and can be removed. What is quarantined is lost until somebody mends it, and nobody should wait for it.
    pub fn present(&self) -> usize {
        self.vms.iter().filter(|vm| vm.state != VmStateName::Quarantined.as_str()).count()
    }

    /// Whether a build has a VM.
    pub fn serves(&self) -> bool {
        self.vms.iter().any(|vm| vm.build.is_some())
    }
}

/// One pool at one moment.
#[derive(Debug, Clone)]
pub struct PoolState {
    pub name: PoolName,
    pub image: String,
    pub warm: u16,
    pub max: u16,
    pub waiting: u16,
    pub trouble: Option<TroubleView>,
    /// Slots whose guest could not be ended.
    pub quarantined: u16,
    /// Slots that macOS refuses although nobody holds them.
    pub leaked: u16,
    /// The state of each slot's VM; `None` is an empty slot. The VM that runs counts before its successor.
    pub slots: Vec<Option<VmStateName>>,
    /// Since when the VM that has been coming up for longest does.
    pub oldest_not_ready: Option<UnixMillis>,
    counts: BTreeMap<VmStateName, usize>,
}

impl PoolState {
    /// VMs in a state.
    pub fn count(&self, state: VmStateName) -> usize {
        self.counts.get(&state).copied().unwrap_or(0)
    }

    /// As it goes over HTTP.
    pub fn view(&self) -> PoolView {
        let counts = VmStateName::ALL.map(|state| (state.as_str().to_owned(), self.count(state)));
        PoolView {
            name: self.name.to_string(),
            image: self.image.clone(),
            warm_target: self.warm,
            max: self.max,
            vms: counts.into_iter().map(|(name, n)| (name, u16::try_from(n).unwrap_or(u16::MAX))).collect(),
            waiting: self.waiting,
            lost: self.quarantined.saturating_add(self.leaked),
            trouble: self.trouble.clone(),
        }
    }
}

/// Reads the books.
pub fn of(ledger: &Ledger, config: &Config, generation: u64, now: Instant, wall: UnixMillis) -> PoolSnapshot {
    let pools = config.pools.iter().filter_map(|(name, pool)| {
        let row = ledger.pools.get(name)?;
        let in_ms = |at: Instant| i64::try_from(at.saturating_duration_since(now).as_millis()).unwrap_or(0);
        let trouble = trouble(ledger, row, |at| UnixMillis(wall.0.saturating_add(in_ms(at))));
        let mut counts = BTreeMap::new();
        for vm in ledger.of(name) {
            *counts.entry(vm.state).or_insert(0) += 1;
        }
        Some(PoolState {
            name: name.clone(),
            image: pool.image.clone(),
            warm: row.warm,
            max: row.max,
            waiting: count(ledger.waiting_for(name)),
            trouble,
            quarantined: count(
                ledger.of(name).filter(|vm| vm.stage == Stage::Lost && vm.holds_permit()).count(),
            ),
            leaked: leaked(ledger, name),
            slots: slots(ledger, name, row.max),
            oldest_not_ready: ledger.of(name).filter(|vm| coming_up(vm)).map(|vm| vm.born).min(),
            counts,
        })
    });
    PoolSnapshot {
        generation,
        pools: pools.collect(),
        vms: ledger.vms.values().map(vm_view).collect(),
        waiting: ledger
            .waiting
            .iter()
            .filter_map(|w| Some((w.build, admission::waits_for(ledger, w.build, now)?.to_string())))
            .collect(),
        oldest_waiting: ledger.waiting.iter().map(|w| w.since).min(),
        draining: ledger.draining.is_some(),
        breaker: ledger.breaker.state(),
        failures: ledger.failures,
    }
}

fn count(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// Slots that leaked are the host's; they are shown where they were missed.
fn leaked(ledger: &Ledger, pool: &PoolName) -> u16 {
    let met = ledger.limit.met().filter(|met| met.pool == *pool);
    met.map_or(0, |met| u16::try_from(met.leaked).unwrap_or(u16::MAX))
}

/// The host's trouble before the pool's: it is the one to mend first.
fn trouble(ledger: &Ledger, row: &PoolRow, wall: impl Fn(Instant) -> UnixMillis) -> Option<TroubleView> {
    let view = |fault: &Fault, failures, next_try, scope| TroubleView {
        reason: fault.reason.as_str().to_owned(),
        text: fault.to_string(),
        hint: fault.reason.hint().map(str::to_owned),
        failures,
        next_try_ms: wall(next_try),
        scope,
    };
    let met = ledger.limit.met().filter(|_| row.load().macos_guests > 0);
    let host = ledger.breaker.opened().map(|o| (&o.fault, o.failures, o.next_try));
    let host = host.or(met.map(|m| (&m.fault, m.failures, m.next_try)));
    let host = host.map(|(fault, failures, next)| view(fault, failures, next, TroubleScope::Host));
    let pools = row.trouble.current().map(|c| view(&c.fault, c.failures, c.next_try, TroubleScope::Pool));
    host.or(pools)
}

fn slots(ledger: &Ledger, pool: &PoolName, max: u16) -> Vec<Option<VmStateName>> {
    (0..max)
        .map(|slot| {
            let vms = ledger.slot(pool, crate::ids::SlotId(slot));
            vms.max_by_key(|vm| (vm.holds_permit(), vm.born)).map(|vm| vm.state)
        })
        .collect()
}

fn coming_up(vm: &VmRow) -> bool {
    matches!(vm.stage, Stage::Preparing | Stage::Booting)
}

fn vm_view(vm: &VmRow) -> VmView {
    VmView {
        name: vm.name.to_string(),
        pool: vm.name.pool.to_string(),
        slot: vm.name.slot.0,
        state: vm.state.as_str().to_owned(),
        since_ms: vm.state_since,
        address: vm.address.map(|a| a.to_string()),
        build: match vm.stage {
            Stage::Leased(build) => Some(build),
            Stage::Preparing | Stage::Prepared | Stage::Booting | Stage::Warm => None,
            Stage::Dying | Stage::Deleting | Stage::Lost => None,
        },
        pid: vm.pid,
    }
}
