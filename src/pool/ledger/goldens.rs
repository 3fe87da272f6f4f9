//! Suspended VMs in the books, and those that are cloned from them.

use super::{Ledger, Stage, VmRow, slot_of};
use crate::clock::UnixMillis;
use crate::ids::{Generation, PoolName, SlotId};
use crate::pool::baking::Resuming;
use crate::pool::trial::Trial;
use crate::runtime::{ImageInfo, VmName};
use crate::vm::state::VmStateName;

/// A suspended VM, and what its state depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Golden {
    pub vm: VmName,
    pub key: String,
}

impl Ledger {
    /// What a VM of the slot is cloned from, if its state is worth something still.
    pub fn golden(&self, pool: &PoolName, slot: SlotId) -> Option<&VmRow> {
        let row = self.pools.get(pool)?;
        self.slot(pool, slot).find(|vm| vm.stage == Stage::Golden && is_current(vm, &row.resuming))
    }

    /// The state of a warm VM is to be saved. False when it is not warm.
    pub fn suspend(&mut self, name: &VmName) -> bool {
        self.advance(name, Stage::Warm, Stage::Suspending)
    }

    /// It is saved, and its guest is gone: the slot is free, and resumes from now on. Returns what the state depends on, or
    /// nothing when the books did not expect that.
    pub fn suspended(&mut self, name: &VmName) -> Option<String> {
        let pool = self.pools.get_mut(&name.pool)?;
        // Known while it was warm; should that have changed meanwhile, it is outdated at once.
        let key = match &pool.resuming {
            Resuming::On(key) => key.clone(),
            Resuming::Off | Resuming::Unknown => String::new(),
        };
        let permit = self.change(name, |row| {
            row.advance(Stage::Suspending, Stage::Golden).then(|| {
                row.key = Some(key.clone());
                (row.address, row.pid) = (None, None);
                row.permit.take()
            })
        })??;
        permit.into_iter().for_each(|permit| self.host.give_back(permit));
        if let Some(pool) = self.pools.get_mut(&name.pool) {
            pool.baking.baked(name.slot);
        }
        Some(key)
    }

    /// Writes a golden VM down that an earlier daemon made.
    pub fn keep(&mut self, name: &VmName, key: &str, at: UnixMillis) {
        self.enter(VmRow {
            name: name.clone(),
            stage: Stage::Golden,
            origin: None,
            key: Some(key.to_owned()),
            edition: self.pools.get(&name.pool).map_or(0, |row| row.edition),
            permit: None,
            state: VmStateName::Suspended,
            state_since: at,
            warm_since: None,
            born: at,
            address: None,
            pid: None,
        });
        self.next_generation = self.next_generation.max(Generation(name.generation.0 + 1));
    }

    /// What is known of a pool's image from now on. With other content than before, VMs that were made of it are outdated.
    pub fn note_image(&mut self, pool: &PoolName, image: ImageInfo, resuming: Resuming) {
        let Some(row) = self.pools.get_mut(pool) else { return };
        if row.image.as_ref().is_some_and(|known| known.identity != image.identity) {
            self.newest_edition += 1;
            row.edition = self.newest_edition;
            row.trial = Trial::default();
        }
        if row.image.as_ref() == Some(&image) && row.resuming == resuming {
            return;
        }
        (row.image, row.resuming) = (Some(image), resuming);
        self.count_again();
    }

    /// How a VM that is warm now came up.
    pub(super) fn note_birth(&mut self, name: &VmName) {
        let Some(vm) = self.vms.get(name) else { return };
        let (resumed, edition) = (vm.origin.is_some(), vm.edition);
        let Some(pool) = self.pools.get_mut(&name.pool) else { return };
        if pool.edition == edition {
            pool.trial.warmed();
        }
        match resumed {
            true => pool.baking.resumed(),
            false => pool.baking.booted(name.slot),
        }
    }

    /// VMs of the slot that were cloned from the image and have not begun to run.
    pub fn not_begun(&self, pool: &PoolName, slot: SlotId) -> Vec<VmName> {
        let name = VmName { pool: pool.clone(), slot, generation: Generation(0) };
        let rows = slot_of(&self.vms, &name);
        let cold =
            rows.filter(|vm| matches!(vm.stage, Stage::Preparing | Stage::Prepared) && vm.origin.is_none());
        cold.map(|vm| vm.name.clone()).collect()
    }
}

/// Whether a golden VM's state is worth something in a pool. What is not known yet is believed.
pub(super) fn is_current(vm: &VmRow, resuming: &Resuming) -> bool {
    match resuming {
        Resuming::On(key) => vm.key.as_ref() == Some(key),
        Resuming::Unknown => true,
        Resuming::Off => false,
    }
}
