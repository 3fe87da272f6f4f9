//! What everybody else may know of the pool: one value, published whole, with a generation that only grows.
//!
//! It shares with the one before it what did not change, so that it costs what did: a VM's view is made when its row
//! changed, a pool's queue when another build waits.

use std::collections::BTreeMap;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use super::admission::{self, Waits};
use super::breaker::BreakerState;
use super::ledger::{Changes, Counts, Ledger, PoolRow, Stage, Standing, VmRow};
use super::trial::Trial;
use crate::api::wire::{PoolView, TroubleScope, TroubleView, VmView};
use crate::clock::{Instant, UnixMillis};
use crate::config::{self, Config};
use crate::ids::{BuildId, PoolName};
use crate::images::generation::{self, Which};
use crate::runtime::{Fault, VmName};
use crate::vm::state::VmStateName;

/// The pool at one moment.
#[derive(Debug, Clone, Default)]
pub struct PoolSnapshot {
    pub generation: u64,
    pub pools: Vec<PoolState>,
    pub vms: VmViews,
    pub oldest_waiting: Option<UnixMillis>,
    /// Of the host.
    pub breaker: BreakerState,
    /// VMs that failed, and removals, since the start.
    pub failures: u64,
    /// Nothing is leased or started, and idle VMs go.
    pub draining: bool,
}

impl PoolSnapshot {
    /// VMs that exist and would go. What is quarantined is lost until somebody mends it, and nobody should wait for it; what is
    /// suspended takes nothing but disk space and is there to stay.
    pub fn present(&self) -> usize {
        let stay = [VmStateName::Quarantined, VmStateName::Suspended].map(VmStateName::as_str);
        self.vms.iter().filter(|vm| !stay.contains(&vm.state.as_str())).count()
    }

    /// Whether a build has a VM.
    pub fn serves(&self) -> bool {
        self.vms.iter().any(|vm| vm.build.is_some())
    }

    /// What a build waits for; `None` when it does not wait.
    pub fn waits_for(&self, build: BuildId) -> Option<String> {
        self.pools.iter().find_map(|pool| {
            let ahead = pool.queue.iter().position(|waiting| *waiting == build)?;
            Some(pool.waits.behind(ahead).to_string())
        })
    }
}

/// Every VM, by its name.
#[derive(Clone, Default)]
pub struct VmViews(RedBlackTreeMapSync<VmName, Arc<VmView>>);

impl VmViews {
    /// All, by pool, slot and generation.
    pub fn iter(&self) -> impl Iterator<Item = &VmView> {
        self.0.values().map(Arc::as_ref)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.size()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for VmViews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// One pool at one moment.
#[derive(Debug, Clone)]
pub struct PoolState {
    pub name: PoolName,
    /// As it is configured.
    pub image: String,
    /// What that means.
    pub generation: Which,
    /// How VMs of it come up.
    pub trial: Trial,
    pub warm: u16,
    pub max: u16,
    pub waiting: u16,
    pub trouble: Option<TroubleView>,
    /// Slots whose guest could not be ended.
    pub quarantined: u16,
    /// Slots that macOS refuses although nobody holds them.
    pub leaked: u16,
    /// The state of each slot's VM; `None` is an empty slot. The VM that runs counts before its successor.
    pub slots: Arc<Vec<Option<VmStateName>>>,
    /// Since when the VM that has been coming up for longest does.
    pub oldest_not_ready: Option<UnixMillis>,
    counts: Counts,
    /// Who waits, in order, and for what.
    queue: Arc<[BuildId]>,
    waits: Waits,
}

impl PoolState {
    /// VMs in a state.
    pub fn count(&self, state: VmStateName) -> usize {
        self.counts.state(state)
    }

    /// As it goes over HTTP.
    pub fn view(&self) -> PoolView {
        let counts = VmStateName::ALL.map(|state| (state.as_str().to_owned(), self.count(state)));
        PoolView {
            name: self.name.to_string(),
            image: generation::vm(&self.image, self.generation),
            warm_target: self.warm,
            max: self.max,
            vms: counts.into_iter().map(|(name, n)| (name, u16::try_from(n).unwrap_or(u16::MAX))).collect(),
            waiting: self.waiting,
            lost: self.quarantined.saturating_add(self.leaked),
            trouble: self.trouble.clone(),
        }
    }
}

/// Makes snapshots of the same books, one after the other.
#[derive(Default)]
pub struct Publisher {
    generation: u64,
    vms: VmViews,
    /// Of pools for which somebody waits.
    queues: BTreeMap<PoolName, Arc<[BuildId]>>,
}

impl Publisher {
    /// Reads the books; `changes` are all there were since it last did.
    pub fn publish(
        &mut self,
        ledger: &Ledger,
        changes: &Changes,
        config: &Config,
        now: Instant,
        wall: UnixMillis,
    ) -> PoolSnapshot {
        self.generation += 1;
        for name in &changes.vms {
            match ledger.vm(name) {
                Some(row) => self.vms.0.insert_mut(name.clone(), Arc::new(vm_view(row))),
                None => {
                    self.vms.0.remove_mut(name);
                }
            }
        }
        for pool in &changes.waiting {
            let queue: Arc<[BuildId]> = ledger.waiting().of(pool).collect();
            if queue.is_empty() {
                self.queues.remove(pool);
            } else {
                self.queues.insert(pool.clone(), queue);
            }
        }
        let pools = config
            .pools
            .iter()
            .filter_map(|(name, pool)| Some(self.pool(ledger, ledger.standing(name)?, pool, now, wall)));
        PoolSnapshot {
            generation: self.generation,
            pools: pools.collect(),
            vms: self.vms.clone(),
            oldest_waiting: ledger.waiting().iter().next().map(|w| w.since),
            draining: ledger.draining.is_some(),
            breaker: ledger.breaker.state(),
            failures: ledger.failures,
        }
    }

    fn pool(
        &self,
        ledger: &Ledger,
        pool: Standing<'_>,
        config: &config::Pool,
        now: Instant,
        wall: UnixMillis,
    ) -> PoolState {
        let in_ms = |at: Instant| i64::try_from(at.saturating_duration_since(now).as_millis()).unwrap_or(0);
        PoolState {
            name: pool.name.clone(),
            image: config.image.clone(),
            generation: config.generation,
            trial: pool.row.trial.clone(),
            warm: pool.row.warm,
            max: pool.row.max,
            waiting: count(pool.waiting),
            trouble: trouble(ledger, pool.row, |at| UnixMillis(wall.0.saturating_add(in_ms(at)))),
            quarantined: count(pool.tally.counts.quarantined),
            leaked: leaked(ledger, pool.name),
            slots: pool.tally.faces().clone(),
            oldest_not_ready: pool.tally.coming_since(),
            counts: pool.tally.counts,
            queue: self.queues.get(pool.name).cloned().unwrap_or_default(),
            waits: admission::waits(ledger, pool, now),
        }
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
            Stage::Suspending | Stage::Golden => None,
            Stage::Dying | Stage::Deleting | Stage::Lost => None,
        },
        pid: vm.pid,
    }
}
