//! Suspended VMs: made of a warm one, kept over restarts, thrown away with the first VM that does not resume from them as it
//! should.

use super::{Failed, GoldenNote, Me, PoolBooks, expect};
use crate::clock::{self, UnixMillis};
use crate::pool::ledger::{Golden, Stage};
use crate::runtime::{Fault, VmName};
use crate::telemetry::events::{GoldenFailed, GoldenMade, ResumeFellBack, RetireReason};
use crate::vm::actor::Begin;
use crate::vm::handle::VmCommand;

impl PoolBooks {
    /// Those of an earlier daemon come into the books before anything is decided from them.
    pub(super) async fn keep_all(&mut self, me: &Me) -> Result<(), Failed> {
        for Golden { vm, key } in std::mem::take(&mut self.args.keep) {
            self.ledger.keep(&vm, &key, UnixMillis::now());
            self.spawn_vm(me, &vm, Begin::Keeping).await?;
        }
        Ok(self.ledger.audit()?)
    }

    pub(super) fn suspend(&mut self, vm: &VmName) {
        // Nobody else may hold a way into a guest whose state is saved.
        self.channels.remove(vm);
        self.ledger.suspend(vm);
        self.command(vm, VmCommand::Suspend);
    }

    pub(super) fn suspended(&mut self, vm: &VmName) {
        let key = self.ledger.suspended(vm);
        expect(key.is_some(), vm, "suspended");
        let Some(key) = key else { return };
        GoldenMade { vm }.emit();
        (self.args.note_golden)(GoldenNote::Made(Golden { vm: vm.clone(), key }));
        // Its slot resumes from now on: what would boot there has come too late.
        for cold in self.ledger.not_begun(&vm.pool, vm.slot) {
            self.remove(&cold, RetireReason::Outdated);
        }
    }

    pub(super) fn not_suspended(&mut self, vm: &VmName, fault: &Fault) {
        GoldenFailed { vm, fault }.emit();
        self.pause_baking(vm);
    }

    /// Whatever it was, the next VM of the slot boots.
    pub(super) fn fell_back(&mut self, golden: &VmName, fault: &Fault) {
        ResumeFellBack { pool: &golden.pool, golden, fault }.emit();
        self.pause_baking(golden);
        if self.ledger.vm(golden).is_some_and(|row| row.stage == Stage::Golden) {
            self.remove(golden, RetireReason::Failed);
        }
    }

    fn pause_baking(&mut self, vm: &VmName) {
        if let Some(pool) = self.ledger.pools.get_mut(&vm.pool) {
            pool.baking.failed(clock::now());
        }
    }

    pub(super) fn forget_golden(&self, vm: &VmName) {
        if self.ledger.vm(vm).is_some_and(|row| row.key.is_some()) {
            (self.args.note_golden)(GoldenNote::Gone(vm.clone()));
        }
    }
}
