//! What is made of failures: whose they are, and what is taken away for them.

use super::{Me, PoolBooks};
use crate::clock;
use crate::ids::PoolName;
use crate::pool::breaker::Verdict;
use crate::pool::ledger::{Stage, VmRow};
use crate::pool::trouble::Trouble;
use crate::runtime::{Fault, FaultKind, Reason, VmName};
use crate::telemetry::events::{ActorRestarted, BreakerOpened, GuestRefused, PoolTroubled};
use crate::vm::actor::Begin;
use crate::vm::state::VmPhase;

/// Whether a VM that should have resumed would have failed as a booted one, too. That it was not reached at an address that its
/// origin had may be its origin's fault; should it be the host's, the next one, which boots, says so.
fn of_the_host(fault: &Fault) -> bool {
    fault.kind() == FaultKind::Host && !matches!(fault.reason, Reason::NoAddress | Reason::NoRoute)
}

impl PoolBooks {
    pub(super) fn trouble(&mut self, pool: &PoolName, change: impl FnOnce(&mut Trouble)) {
        if let Some(row) = self.ledger.pools.get_mut(pool) {
            change(&mut row.trouble);
        }
    }

    pub(super) fn failed(&mut self, me: &Me, vm: &VmName, phase: VmPhase, fault: Fault) {
        self.ledger.failures += 1;
        let text = fault.to_string();
        let golden = self.ledger.vm(vm).and_then(|row| row.origin.clone());
        match phase {
            // The build that has it hears of it through its own connection, or just has; and it may have caused it.
            VmPhase::Leased | VmPhase::Removal | VmPhase::Adoption => {}
            VmPhase::Suspend => self.not_suspended(vm, &fault),
            VmPhase::Suspended => {}
            VmPhase::Warm => self.blame(&vm.pool, Some(vm), fault, true),
            VmPhase::Birth(_) if fault.reason == Reason::SystemLimit && self.ledger.is_macos(vm) => {
                self.refused(vm, &fault);
            }
            VmPhase::Birth(_) => match golden.filter(|_| !of_the_host(&fault)) {
                Some(golden) => self.fell_back(&golden, &fault),
                None => {
                    self.tried(vm, &fault);
                    self.blame(&vm.pool, Some(vm), fault, false);
                }
            },
        }
        self.channels.remove(vm);
        let build = self.ledger.dying(vm);
        self.not_adopted(me, vm, build, &text);
    }

    /// A VM that was made of the image did not come up.
    fn tried(&mut self, vm: &VmName, fault: &Fault) {
        let edition = self.ledger.vm(vm).map(|row| row.edition);
        let pool = self.ledger.pools.get_mut(&vm.pool);
        if let Some(pool) = pool.filter(|pool| Some(pool.edition) == edition) {
            pool.trial.failed(fault);
        }
    }

    /// A fault of the host's is the host's, and opens its breaker; one of the image's or of a guest's is its pool's.
    pub(super) fn blame(&mut self, pool: &PoolName, vm: Option<&VmName>, fault: Fault, while_warm: bool) {
        let now = clock::now();
        match self.ledger.breaker.failed(vm, &fault, now) {
            Verdict::Known => {}
            Verdict::Opened(wait) => {
                if let Some(opened) = self.ledger.breaker.opened() {
                    BreakerOpened { reason: opened.label(), fault: &opened.fault, wait }.emit();
                }
            }
            Verdict::Pool => {
                let Some(row) = self.ledger.pools.get_mut(pool) else { return };
                // The image is looked at again before the next clone.
                if fault.reason == Reason::ImageMissing {
                    row.image = None;
                }
                let wait = row.trouble.failed(fault.clone(), while_warm, now);
                PoolTroubled { pool, fault: &fault, failures: row.trouble.failures(), wait }.emit();
            }
        }
    }

    /// macOS refused a macOS guest: what does run is all that fits for now.
    pub(super) fn refused(&mut self, vm: &VmName, fault: &Fault) {
        let runs = |row: &&VmRow| matches!(row.stage, Stage::Booting | Stage::Warm | Stage::Leased(_));
        let others = self.ledger.vms().values().filter(runs).map(|row| &row.name);
        let others = others.filter(|name| *name != vm && self.ledger.is_macos(name));
        let ours = others.map(ToString::to_string).collect();
        let max = self.ledger.host.macos_guests_max();
        let wait = self.ledger.limit.refused(&vm.pool, fault, &ours, max, clock::now());
        if let Some(met) = self.ledger.limit.met() {
            GuestRefused { pool: &vm.pool, fault: &met.fault, leaked: met.leaked, wait }.emit();
        }
    }

    /// A VM's actor ended. If its VM is still in the books it failed, and another takes its VM away.
    pub(super) async fn vm_actor_ended(&mut self, me: &Me, vm: &VmName, why: &str) {
        self.handles.remove(vm);
        self.channels.remove(vm);
        if self.ledger.vm(vm).is_none() {
            return;
        }
        ActorRestarted { actor: "vm", why }.emit();
        self.ledger.failures += 1;
        let build = self.ledger.dying(vm);
        self.not_adopted(me, vm, build, why);
        if self.spawn_vm(me, vm, Begin::Removal).await.is_err() {
            self.ledger.lost(vm);
        }
    }
}
