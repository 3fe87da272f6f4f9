//! What the policy asks about the rows, kept at hand: how many there are of a kind, which slot is the next one that is free,
//! which VM has been warm for longest. Each move of a VM changes only what that VM and its slot are part of, so that a
//! decision costs the same in books of ten slots and of ten thousand.
//!
//! Nothing here is a fact of its own: all of it follows from the rows, and [`Index::of`] says how. The audit holds it to that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::goldens::is_current;
use super::{PoolRow, Stage, VmRow};
use crate::clock::{Instant, UnixMillis};
use crate::ids::{Generation, PoolName, SlotId};
use crate::pool::baking::Resuming;
use crate::runtime::VmName;
use crate::vm::state::VmStateName;

/// A VM within its pool.
pub type Place = (SlotId, Generation);

/// Editions count up from 0: this one no pool gets to.
const NO_EDITION: u32 = u32::MAX;

/// Everything that is kept at hand.
#[derive(Debug, Default, PartialEq)]
pub struct Index {
    pools: BTreeMap<PoolName, Tally>,
    /// Idle VMs.
    idle: BTreeSet<VmName>,
    /// Idle VMs in slots that their pool no longer has, and outdated ones that are not warm; golden ones whose state is
    /// worth nothing any more.
    strays: BTreeSet<VmName>,
    /// VMs that are dying.
    dying: usize,
    /// VMs whose state is being saved.
    suspending: usize,
}

/// What is kept of one pool.
#[derive(Debug, PartialEq)]
pub struct Tally {
    /// As the pool's row says.
    max: u16,
    edition: u32,
    resuming: Resuming,
    pub counts: Counts,
    /// Warm VMs of the pool's edition by age, the oldest first.
    fresh: BTreeSet<(Instant, Place)>,
    /// The other warm ones.
    outdated: BTreeSet<(Instant, Place)>,
    outdated_places: BTreeSet<Place>,
    /// Booting and warm VMs: which of them boot, which are outdated, since when they are there.
    up: BTreeSet<(bool, bool, UnixMillis, Place)>,
    /// VMs that are cloned or booted now.
    coming: BTreeSet<(UnixMillis, Place)>,
    /// Slots with a VM.
    slots: BTreeMap<SlotId, Slot>,
    /// Slots of the pool that a VM has which is not idle.
    occupied: usize,
    /// Slots of the pool that no VM has, idle or not.
    vacant: BTreeSet<SlotId>,
    /// Slots of the pool that are in use and have no successor.
    bare: BTreeSet<SlotId>,
    /// Slots with a prepared VM, which no VM has that may run.
    startable: BTreeSet<SlotId>,
    /// Slots with a successor that only an outdated VM is in the way of, or none.
    yielding: BTreeSet<SlotId>,
    /// Slots in which a VM of the pool's edition comes up that nothing is in the way of.
    renewing: usize,
    /// Slots of the pool with a warm VM that booted, and nothing to resume from.
    bakeable: BTreeSet<SlotId>,
    faces: Arc<Vec<Option<VmStateName>>>,
}

/// How many VMs of a pool there are of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// They run, or may run.
    pub permits: usize,
    /// Those of them that are not idle.
    pub in_use: usize,
    pub dying: usize,
    /// Lost ones that may still run.
    pub quarantined: usize,
    states: [usize; VmStateName::ALL.len()],
}

impl Counts {
    /// VMs whose actor last said that they are in this state.
    pub fn state(&self, state: VmStateName) -> usize {
        self.states[state as usize]
    }

    /// All of them.
    pub fn all(&self) -> usize {
        self.states.iter().sum()
    }

    pub(super) fn moved(&mut self, old: &Marks, new: &Marks) {
        recount(&mut self.permits, old.permit, new.permit);
        recount(&mut self.in_use, old.in_use, new.in_use);
        recount(&mut self.dying, old.dying, new.dying);
        recount(&mut self.quarantined, old.quarantined, new.quarantined);
        if old.state != new.state {
            old.state.into_iter().for_each(|state| self.states[state as usize] -= 1);
            new.state.into_iter().for_each(|state| self.states[state as usize] += 1);
        }
    }
}

/// What one row is counted as. The default is that of a row that is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marks {
    state: Option<VmStateName>,
    permit: bool,
    in_use: bool,
    dying: bool,
    suspending: bool,
    quarantined: bool,
    idle: bool,
    stray: bool,
    fresh: Option<(Instant, Place)>,
    outdated: Option<(Instant, Place)>,
    up: Option<(bool, bool, UnixMillis, Place)>,
    coming: Option<(UnixMillis, Place)>,
}

/// What one slot is, with all its VMs. The default is that of an empty one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Slot {
    occupied: bool,
    idle: bool,
    bare: bool,
    startable: bool,
    yielding: bool,
    renewing: bool,
    bakeable: bool,
    face: Option<VmStateName>,
}

impl Tally {
    fn new(max: u16, edition: u32, resuming: Resuming) -> Self {
        Self {
            max,
            edition,
            resuming,
            counts: Counts::default(),
            fresh: BTreeSet::new(),
            outdated: BTreeSet::new(),
            outdated_places: BTreeSet::new(),
            up: BTreeSet::new(),
            coming: BTreeSet::new(),
            slots: BTreeMap::new(),
            occupied: 0,
            vacant: (0..max).map(SlotId).collect(),
            bare: BTreeSet::new(),
            startable: BTreeSet::new(),
            yielding: BTreeSet::new(),
            renewing: 0,
            bakeable: BTreeSet::new(),
            faces: Arc::new(vec![None; max.into()]),
        }
    }

    /// Warm VMs.
    pub fn warm(&self) -> usize {
        self.fresh.len() + self.outdated.len()
    }

    /// Idle VMs that run or boot.
    pub fn up(&self) -> usize {
        self.up.len()
    }

    /// VMs that boot.
    pub fn booting(&self) -> usize {
        self.up() - self.warm()
    }

    /// VMs that are being cloned or booted.
    pub fn coming(&self) -> usize {
        self.coming.len()
    }

    /// Since when the VM that has been coming up for longest does.
    pub fn coming_since(&self) -> Option<UnixMillis> {
        self.coming.first().map(|(born, _)| *born)
    }

    /// The VM that has been warm for longest; an outdated one only where there is no other.
    pub fn warmest(&self) -> Option<Place> {
        self.fresh.first().map(|(_, place)| *place).or_else(|| self.oldest_outdated())
    }

    /// Whether a warm VM is outdated.
    pub fn rolls(&self) -> bool {
        !self.outdated.is_empty()
    }

    /// The outdated VM that has been warm for longest.
    pub fn oldest_outdated(&self) -> Option<Place> {
        self.outdated.first().map(|(_, place)| *place)
    }

    /// The first slot with an outdated VM that is warm.
    pub fn first_outdated(&self) -> Option<SlotId> {
        self.outdated_places.first().map(|(slot, _)| *slot)
    }

    /// The first of the VMs that have been warm since `then` or longer.
    pub fn first_warm_since(&self, then: Instant) -> Option<Place> {
        let old = |warm: &BTreeSet<(Instant, Place)>| {
            warm.iter().take_while(|(since, _)| *since <= then).map(|(_, place)| *place).min()
        };
        [old(&self.fresh), old(&self.outdated)].into_iter().flatten().min()
    }

    /// Since when the oldest of the VMs is warm that got warm after `then`.
    pub fn warm_after(&self, then: Option<Instant>) -> Option<Instant> {
        let next = |warm: &BTreeSet<(Instant, Place)>| {
            let after = then.map(|then| (then, (SlotId(u16::MAX), Generation(u64::MAX))));
            let next = match after {
                Some(after) => warm.range(after..).find(|at| **at > after),
                None => warm.first(),
            };
            next.map(|(since, _)| *since)
        };
        [next(&self.fresh), next(&self.outdated)].into_iter().flatten().min()
    }

    /// The idle VM that is up and can be missed most easily: one that boots, an outdated one, the youngest.
    pub fn most_dispensable(&self) -> Option<Place> {
        self.up.last().map(|(.., place)| *place)
    }

    /// The idle VM that is up and was born first.
    pub fn first_born(&self) -> Option<(UnixMillis, Place)> {
        let first = |boots, outdated| {
            let from = (boots, outdated, UnixMillis(i64::MIN), (SlotId(0), Generation(0)));
            let (b, o, born, place) = self.up.range(from..).next()?;
            (*b == boots && *o == outdated).then_some((*born, *place))
        };
        let groups = [first(false, false), first(false, true), first(true, false), first(true, true)];
        groups.into_iter().flatten().min()
    }

    /// Slots of the pool that no VM has which is in use, dying or lost.
    pub fn free(&self) -> usize {
        usize::from(self.max) - self.occupied
    }

    /// Those of them with an idle VM.
    pub fn filled(&self) -> usize {
        self.free() - self.vacant.len()
    }

    /// The first slot without any VM of its own.
    pub fn first_vacant(&self) -> Option<SlotId> {
        self.vacant.first().copied()
    }

    /// The first slot whose VM is in use and has no successor.
    pub fn first_bare(&self) -> Option<SlotId> {
        self.bare.first().copied()
    }

    /// The first slot with a prepared VM and none that may run.
    pub fn first_startable(&self) -> Option<SlotId> {
        self.startable.first().copied()
    }

    /// The first slot with a successor that only an outdated VM is in the way of, or none.
    pub fn first_yielding(&self) -> Option<SlotId> {
        self.yielding.first().copied()
    }

    /// Whether a VM of the pool's edition comes up that nothing is in the way of.
    pub fn renews(&self) -> bool {
        self.renewing > 0
    }

    /// Slots with a warm VM that booted, and nothing to resume from.
    pub fn bakeable(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.bakeable.iter().copied()
    }

    /// The state of each slot's VM; the one that runs counts before its successor.
    pub fn faces(&self) -> &Arc<Vec<Option<VmStateName>>> {
        &self.faces
    }

    pub(super) fn marks(&self, row: &VmRow) -> Marks {
        let place = (row.name.slot, row.name.generation);
        let (permit, idle, outdated) = (row.holds_permit(), row.idle(), row.edition != self.edition);
        let (boots, warm) = (row.stage == Stage::Booting, row.stage == Stage::Warm);
        let since = row.warm_since.filter(|_| warm).map(|since| (since, place));
        Marks {
            state: Some(row.state),
            permit,
            in_use: permit && !idle,
            dying: row.stage == Stage::Dying,
            suspending: row.stage == Stage::Suspending,
            quarantined: permit && row.stage == Stage::Lost,
            idle,
            stray: match row.stage == Stage::Golden {
                true => row.name.slot.0 >= self.max || !is_current(row, &self.resuming),
                false => idle && (row.name.slot.0 >= self.max || (!warm && outdated)),
            },
            fresh: since.filter(|_| !outdated),
            outdated: since.filter(|_| outdated),
            up: (boots || warm).then_some((boots, outdated, row.born, place)),
            coming: (boots || row.stage == Stage::Preparing).then_some((row.born, place)),
        }
    }

    fn moved(&mut self, old: &Marks, new: &Marks) {
        self.counts.moved(old, new);
        replace(&mut self.fresh, old.fresh, new.fresh);
        replace(&mut self.outdated, old.outdated, new.outdated);
        let place = |marks: &Marks| marks.outdated.map(|(_, place)| place);
        replace(&mut self.outdated_places, place(old), place(new));
        replace(&mut self.up, old.up, new.up);
        replace(&mut self.coming, old.coming, new.coming);
    }

    /// Reads a slot's rows.
    fn look<'a>(&self, rows: impl Iterator<Item = &'a VmRow> + Clone) -> Slot {
        let any = |test: &dyn Fn(&VmRow) -> bool| rows.clone().any(test);
        let outdated = |row: &VmRow| row.edition != self.edition;
        let holder = rows.clone().find(|row| row.holds_permit());
        let idle = any(&VmRow::idle);
        let in_use = |row: &VmRow| matches!(row.stage, Stage::Leased(_) | Stage::Dying) && row.holds_permit();
        let blocks = |row: &VmRow| matches!(row.stage, Stage::Leased(_) | Stage::Lost) && row.holds_permit();
        let comes = |row: &VmRow| row.idle() && row.stage != Stage::Warm && !outdated(row);
        Slot {
            occupied: any(&|row| row.holds_permit() && !row.idle()),
            idle,
            bare: any(&in_use) && !idle,
            startable: holder.is_none() && any(&|row| row.stage == Stage::Prepared),
            yielding: any(&|row| row.stage == Stage::Prepared && !outdated(row))
                && holder.is_none_or(|row| row.stage == Stage::Warm && outdated(row)),
            renewing: any(&comes) && !any(&blocks),
            bakeable: matches!(self.resuming, Resuming::On(_))
                && any(&|row| row.stage == Stage::Warm && row.origin.is_none() && !outdated(row))
                && !any(&|row| matches!(row.stage, Stage::Suspending | Stage::Golden)),
            face: rows.clone().max_by_key(|row| (row.holds_permit(), row.born)).map(|row| row.state),
        }
    }

    fn look_again<'a>(&mut self, id: SlotId, rows: impl Iterator<Item = &'a VmRow> + Clone) {
        let new = self.look(rows);
        let old = match new.face {
            Some(_) => self.slots.insert(id, new),
            // Nobody is there.
            None => self.slots.remove(&id),
        };
        let old = old.unwrap_or_default();
        if old == new {
            return;
        }
        if id.0 < self.max {
            recount(&mut self.occupied, old.occupied, new.occupied);
            let vacant = |slot: Slot| !slot.occupied && !slot.idle;
            replace_one(&mut self.vacant, id, vacant(old), vacant(new));
            replace_one(&mut self.bare, id, old.bare, new.bare);
            replace_one(&mut self.bakeable, id, old.bakeable, new.bakeable);
            if old.face != new.face {
                Arc::make_mut(&mut self.faces)[usize::from(id.0)] = new.face;
            }
        }
        replace_one(&mut self.startable, id, old.startable, new.startable);
        replace_one(&mut self.yielding, id, old.yielding, new.yielding);
        recount(&mut self.renewing, old.renewing, new.renewing);
    }
}

impl Index {
    /// As the rows say.
    pub(super) fn of(pools: &BTreeMap<PoolName, PoolRow>, vms: &BTreeMap<VmName, VmRow>) -> Self {
        let mut index = Self::default();
        for (name, row) in pools {
            index.pools.insert(name.clone(), Tally::new(row.max, row.edition, row.resuming.clone()));
        }
        for row in vms.values() {
            index.moved(&row.name, &Marks::default(), Some(row), super::slot_of(vms, &row.name));
        }
        index
    }

    /// What is kept of a pool.
    pub fn tally(&self, pool: &PoolName) -> Option<&Tally> {
        self.pools.get(pool)
    }

    /// The first idle VM.
    pub fn first_idle(&self) -> Option<&VmName> {
        self.idle.first()
    }

    /// The first VM, idle or golden, that nobody can use any more.
    pub fn first_stray(&self) -> Option<&VmName> {
        self.strays.first()
    }

    /// VMs that are dying.
    pub fn dying(&self) -> usize {
        self.dying
    }

    /// VMs whose state is being saved.
    pub fn suspending(&self) -> usize {
        self.suspending
    }

    /// Forgets a pool that has no row any more.
    pub(super) fn forget(&mut self, pool: &PoolName) {
        self.pools.remove(pool);
    }

    pub(super) fn marks(&self, row: Option<&VmRow>) -> Marks {
        let Some(row) = row else { return Marks::default() };
        // Of a pool that is not there all is outdated.
        self.pools
            .get(&row.name.pool)
            .map_or_else(|| Tally::new(0, NO_EDITION, Resuming::Off).marks(row), |tally| tally.marks(row))
    }

    /// A VM is in the books as `new` now, or no more; and these are its slot's rows.
    pub(super) fn moved<'a>(
        &mut self,
        name: &VmName,
        old: &Marks,
        new: Option<&VmRow>,
        slot: impl Iterator<Item = &'a VmRow> + Clone,
    ) {
        let marks = self.marks(new);
        if !self.pools.contains_key(&name.pool) {
            self.pools.insert(name.pool.clone(), Tally::new(0, NO_EDITION, Resuming::Off));
        }
        if let Some(tally) = self.pools.get_mut(&name.pool) {
            tally.moved(old, &marks);
            tally.look_again(name.slot, slot);
        }
        recount(&mut self.dying, old.dying, marks.dying);
        recount(&mut self.suspending, old.suspending, marks.suspending);
        if old.idle != marks.idle {
            replace_one(&mut self.idle, name.clone(), old.idle, marks.idle);
        }
        if old.stray != marks.stray {
            replace_one(&mut self.strays, name.clone(), old.stray, marks.stray);
        }
    }

    /// Whether a VM is everywhere where its row says that it is, and its slot is what its rows say.
    pub(super) fn holds<'a>(
        &self,
        name: &VmName,
        row: Option<&VmRow>,
        slot: impl Iterator<Item = &'a VmRow> + Clone,
    ) -> bool {
        let marks = self.marks(row);
        let Some(tally) = self.pools.get(&name.pool) else { return row.is_none() };
        let seen = tally.look(slot);
        tally.slots.get(&name.slot).copied().unwrap_or_default() == seen
            && tally.startable.contains(&name.slot) == seen.startable
            && tally.yielding.contains(&name.slot) == seen.yielding
            && tally.bakeable.contains(&name.slot) == (seen.bakeable && name.slot.0 < tally.max)
            && marks.fresh.is_none_or(|at| tally.fresh.contains(&at))
            && marks.outdated.is_none_or(|at| tally.outdated.contains(&at))
            && marks.up.is_none_or(|at| tally.up.contains(&at))
            && marks.coming.is_none_or(|at| tally.coming.contains(&at))
            && self.idle.contains(name) == marks.idle
            && self.strays.contains(name) == marks.stray
    }
}

fn recount(count: &mut usize, old: bool, new: bool) {
    *count = *count + usize::from(new) - usize::from(old);
}

fn replace<T: Ord>(set: &mut BTreeSet<T>, old: Option<T>, new: Option<T>) {
    if old != new {
        old.map(|old| set.remove(&old));
        set.extend(new);
    }
}

fn replace_one<T: Ord>(set: &mut BTreeSet<T>, it: T, old: bool, new: bool) {
    match (old, new) {
        (false, true) => drop(set.insert(it)),
        (true, false) => drop(set.remove(&it)),
        (true, true) | (false, false) => {}
    }
}
