//! What must hold after every move.
//!
//! [`Ledger::audit`] reads every row, and is what tests and debug builds do. [`Ledger::audit_changes`] reads those that changed, and is as
//! strong: a row can only be changed in a way that notes it, so what held of the others when it was last asked holds still;
//! and what is a sum over all rows is added up here a second time, from what each row that changed was when it was last
//! read and what it is now, whatever moves there were in between.

use std::collections::BTreeMap;

use super::index::Marks;
use super::{Changes, Counts, Index, Ledger, Load, Permit, Stage, VmRow};
use crate::ids::PoolName;
use crate::runtime::VmName;

/// What the rows were when they were last read, and their sums.
#[derive(Debug, Default)]
pub(super) struct Audited {
    rows: BTreeMap<VmName, (Marks, Load)>,
    sum: Load,
    counts: BTreeMap<PoolName, Counts>,
}

impl Audited {
    /// Reads a row again.
    fn read(&mut self, name: &VmName, marks: Marks, load: Option<Load>) {
        let row = load.map(|load| (marks, load));
        let old = match row {
            Some(row) => self.rows.insert(name.clone(), row),
            None => self.rows.remove(name),
        };
        let (old_marks, old_load) = old.unwrap_or_default();
        self.sum = less(plus(self.sum, load.unwrap_or_default()), old_load);
        self.counts.entry(name.pool.clone()).or_default().moved(&old_marks, &marks);
    }
}

impl Ledger {
    /// What must hold after every move; the text says what does not.
    ///
    /// # Errors
    /// The first invariant that is broken.
    pub fn audit(&self) -> Result<(), String> {
        let mut sum = Load::default();
        for row in self.vms.values() {
            sum = plus(sum, load(row));
            self.audit_row(row)?;
        }
        self.audit_sum(sum)?;
        self.waiting.audit()?;
        let counted = Index::of(&self.pools, &self.vms);
        if counted != self.index {
            return Err(format!("the rows count up to {counted:?}, the index says {:?}", self.index));
        }
        Ok(())
    }

    /// The same after these changes, if they are all there were since it was last asked.
    ///
    /// # Errors
    /// The first invariant that is broken.
    pub fn audit_changes(&mut self, changes: &Changes) -> Result<(), String> {
        for name in &changes.vms {
            let row = self.vms.get(name);
            row.map_or(Ok(()), |row| self.audit_row(row))?;
            if !self.index.holds(name, row, super::slot_of(&self.vms, name)) {
                return Err(format!("the index does not have {name} where its row says that it is"));
            }
            self.audited.read(name, self.index.marks(row), row.map(load));
        }
        for pool in changes.vms.iter().map(|name| &name.pool) {
            let counted = self.audited.counts.get(pool).copied().unwrap_or_default();
            let says = self.index.tally(pool).map(|tally| tally.counts).unwrap_or_default();
            if counted != says {
                return Err(format!("the VMs of `{pool}` count up to {counted:?}, the index says {says:?}"));
            }
            if counted.all() == 0 {
                self.audited.counts.remove(pool);
            }
        }
        self.audit_sum(self.audited.sum)?;
        if cfg!(debug_assertions) { self.audit() } else { Ok(()) }
    }

    fn audit_row(&self, row: &VmRow) -> Result<(), String> {
        let runs = matches!(row.stage, Stage::Booting | Stage::Warm | Stage::Leased(_) | Stage::Suspending);
        if runs && row.permit.is_none() {
            return Err(format!("{} runs without a permit", row.name));
        }
        if row.stage == Stage::Golden && row.permit.is_some() {
            return Err(format!("{} is suspended and has a permit", row.name));
        }
        let same_slot = self.slot(&row.name.pool, row.name.slot);
        if row.holds_permit() && same_slot.filter(|vm| vm.holds_permit()).count() > 1 {
            return Err(format!("slot {} of `{}` is booked twice", row.name.slot, row.name.pool));
        }
        Ok(())
    }

    fn audit_sum(&self, sum: Load) -> Result<(), String> {
        if sum != self.host.used {
            return Err(format!("permits sum up to {sum:?}, the host says {:?}", self.host.used));
        }
        if sum.vms > self.host.granted.vms || sum.macos_guests > self.host.granted.macos_guests {
            return Err(format!("more runs than may: {sum:?}"));
        }
        Ok(())
    }
}

fn load(row: &VmRow) -> Load {
    row.permit.as_ref().map_or_else(Load::default, |Permit(load)| *load)
}

fn plus(a: Load, b: Load) -> Load {
    Load {
        vms: a.vms + b.vms,
        macos_guests: a.macos_guests + b.macos_guests,
        cores: a.cores.saturating_add(b.cores),
        memory_mib: a.memory_mib.saturating_add(b.memory_mib),
    }
}

fn less(a: Load, b: Load) -> Load {
    Load {
        vms: a.vms - b.vms,
        macos_guests: a.macos_guests - b.macos_guests,
        cores: a.cores - b.cores,
        memory_mib: a.memory_mib - b.memory_mib,
    }
}
