//! What the policy decided, done: leases, starts, clones, removals.

use std::sync::Arc;

use super::{Failed, Me, PoolBooks, PoolMessage};
use crate::clock::{Instant, UnixMillis};
use crate::ids::BuildId;
use crate::pool::handle::{Lease, LeaseEvent, PoolHandle};
use crate::pool::ledger::Stage;
use crate::pool::policy::Decision;
use crate::runtime::VmName;
use crate::telemetry::events::{RetireReason, VmCreated};
use crate::vm::actor::{self as vm_actor, Begin, VmArguments};
use crate::vm::handle::{Reporter, VmCommand};
use crate::vm::state::VmStateName;

impl PoolBooks {
    pub(super) async fn perform(
        &mut self,
        me: &Me,
        decision: Decision,
        claiming: Option<BuildId>,
        now: Instant,
    ) -> Result<(), Failed> {
        match decision {
            Decision::Lease { vm, build } => self.lease(me, &vm, build, claiming == Some(build), now),
            Decision::Start { vm } => {
                if !self.ledger.grant(&vm) {
                    return Err(format!("{vm} cannot be started although the policy says so").into());
                }
                self.gaps.granted(&vm);
                self.command(&vm, VmCommand::GrantSlot);
            }
            Decision::Clone { pool, slot } => {
                let vm = self.ledger.register(&pool, slot, UnixMillis::now());
                (self.args.note_generation)(vm.generation);
                VmCreated { vm: &vm }.emit();
                self.args.chronicle.vm(&vm, VmStateName::Cloning.as_str(), None);
                self.spawn_vm(me, &vm, Begin::Birth).await?;
            }
            Decision::Suspend { vm } => self.suspend(&vm),
            Decision::Remove { vm, why } => self.remove(&vm, why),
        }
        Ok(())
    }

    pub(super) fn lease(&mut self, me: &Me, vm: &VmName, build: BuildId, at_once: bool, now: Instant) {
        let Some(channel) = self.channels.remove(vm) else { return self.remove(vm, RetireReason::Failed) };
        let Some(waiting) = self.ledger.lease(vm, build) else { return };
        self.command(vm, VmCommand::Lease);
        self.args.chronicle.vm(vm, VmStateName::Leased.as_str(), Some(build));
        let lease = Lease {
            vm: vm.clone(),
            channel,
            at_once,
            waited: now.saturating_duration_since(waiting.asked),
            build,
            pool: PoolHandle::new(me.clone(), self.args.publish.subscribe()),
        };
        // Nobody to take it: dropping the lease brings the VM back, and away.
        if let Some(lessee) = self.lessees.get(&build) {
            lessee(LeaseEvent::Granted(lease));
        }
    }

    pub(super) async fn spawn_vm(&mut self, me: &Me, vm: &VmName, begin: Begin) -> Result<(), Failed> {
        let (told, chronicle) = (me.clone(), self.args.chronicle.clone());
        let report: Reporter = Arc::new(move |vm, report| {
            chronicle.heard(vm, &report);
            told.cast(PoolMessage::Vm(vm.clone(), report)).ok();
        });
        let arguments = VmArguments {
            recipe: self.recipe(vm).ok_or("a pool that is not configured")?,
            runtime: self.args.runtime.clone(),
            connector: self.args.connector.clone(),
            report,
            begin,
        };
        let handle = vm_actor::spawn(arguments, me.get_cell()).await?;
        self.handles.insert(vm.clone(), handle);
        Ok(())
    }

    pub(super) fn command(&self, vm: &VmName, command: VmCommand) {
        if let Some(handle) = self.handles.get(vm) {
            handle.command(command);
        }
    }

    pub(super) fn returned(&mut self, vm: &VmName, build: BuildId) {
        if let Some(lessee) = self.lessees.remove(&build) {
            self.mourners.insert(vm.clone(), lessee);
        }
        self.remove(vm, RetireReason::Used);
        if !self.handles.contains_key(vm) {
            self.mourn(vm);
        }
    }

    pub(super) fn remove(&mut self, vm: &VmName, why: RetireReason) {
        self.channels.remove(vm);
        self.ledger.dying(vm);
        if let Some(handle) = self.handles.get(vm) {
            handle.command(VmCommand::Remove(why));
        }
    }

    pub(super) fn mourn(&mut self, vm: &VmName) {
        if let Some(lessee) = self.mourners.remove(vm) {
            lessee(LeaseEvent::GuestDead(vm.clone()));
        }
    }

    pub(super) fn stop_all(&mut self) {
        self.ledger.stopping = true;
        self.images_asked.clear();
        // What the next daemon can resume from stays.
        let going = self.ledger.vms().values().filter(|vm| vm.stage != Stage::Golden);
        let names: Vec<VmName> = going.map(|vm| vm.name.clone()).collect();
        for vm in names {
            self.remove(&vm, RetireReason::Stopping);
        }
    }
}
