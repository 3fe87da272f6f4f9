//! What everybody else may know of the pool: one value, published whole, with a generation that only grows.

use std::collections::BTreeMap;

use super::admission;
use super::ledger::{Ledger, VmRow};
use crate::api::wire::{PoolView, TroubleView, VmView};
use crate::clock::{Instant, UnixMillis};
use crate::config::Config;
use crate::ids::{BuildId, PoolName};
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
            trouble: self.trouble.clone(),
        }
    }
}

/// Reads the books.
pub fn of(ledger: &Ledger, config: &Config, generation: u64, now: Instant, wall: UnixMillis) -> PoolSnapshot {
    let pools = config.pools.iter().filter_map(|(name, pool)| {
        let row = ledger.pools.get(name)?;
        let trouble = row.trouble.current().map(|current| TroubleView {
            reason: current.fault.reason.as_str().to_owned(),
            text: current.fault.to_string(),
            hint: current.fault.reason.hint().map(str::to_owned),
            failures: current.failures,
            next_try_ms: UnixMillis(
                wall.0
                    + i64::try_from(current.next_try.saturating_duration_since(now).as_millis()).unwrap_or(0),
            ),
        });
        let mut counts = BTreeMap::new();
        for vm in ledger.of(name) {
            *counts.entry(vm.state).or_insert(0) += 1;
        }
        Some(PoolState {
            name: name.clone(),
            image: pool.image.clone(),
            warm: row.warm,
            max: row.max,
            waiting: u16::try_from(ledger.waiting_for(name)).unwrap_or(u16::MAX),
            trouble,
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
    }
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
    use super::ledger::Stage;
    matches!(vm.stage, Stage::Preparing | Stage::Booting)
}

fn vm_view(vm: &VmRow) -> VmView {
    use super::ledger::Stage;
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
