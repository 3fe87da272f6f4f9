//! The books: which VM is in which slot, which build has which VM, who waits, and what of the host is in use.
//!
//! A slot holds at most one VM that has a permit (it runs, or may run) and at most one successor that is cloned ahead and
//! waits. A VM's way through the books:
//!
//! ```text
//!   Preparing -> Prepared -(permit)-> Booting -> Warm -> Leased
//!       |            |                   |         |        |
//!       +------------+---------+---------+---------+--------+
//!                              v
//!                            Dying -(permit back)-> Deleting -> gone
//!                              |                       |
//!                              +--------> Lost <-------+
//! ```
//!
//! A warm VM that no build has may be suspended instead, for others of its slot to be cloned from: a golden one.
//!
//! ```text
//!   Warm -> Suspending -(permit back)-> Golden -> Dying
//! ```
//!
//! A VM that a build had under an earlier daemon comes into the books as `Leased`, with its permit, or not at all.
//!
//! A permit is a token: it is made by [`Host::take`], moved, and given back once. `Lost` keeps the permit when the guest
//! may still be alive: lost capacity is counted as lost.
//!
//! A row is changed in one place, [`Ledger::change`], which keeps `index` in step and notes what changed: for the audit, and
//! for whoever publishes.

mod audit;
mod goldens;
mod host;
mod index;
mod queue;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

pub use goldens::Golden;
pub use host::{Host, HostFull, Load, Permit};
pub use index::{Counts, Index, Place, Tally};
pub use queue::Queue;

use super::baking::{Baking, Resuming};
use super::breaker::Breaker;
use super::limit::MacosLimit;
use super::trial::Trial;
use super::trouble::Trouble;
use crate::clock::{Instant, UnixMillis};
use crate::config;
use crate::ids::{BuildId, Generation, PoolName, SlotId};
use crate::runtime::{GuestOs, ImageInfo, VmName};
use crate::vm::state::VmStateName;
use audit::Audited;

/// Where a VM is in the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Preparing,
    Prepared,
    Booting,
    Warm,
    Leased(BuildId),
    /// Its state is being saved.
    Suspending,
    /// Its state is saved: others of its slot are cloned from it.
    Golden,
    Dying,
    Deleting,
    Lost,
}

/// A VM's row.
#[derive(Debug)]
pub struct VmRow {
    pub name: VmName,
    pub stage: Stage,
    /// The pool's edition that it was made from.
    pub edition: u32,
    permit: Option<Permit>,
    /// What its actor last said, for the snapshot.
    pub state: VmStateName,
    /// Since when it is in that state, for people.
    pub state_since: UnixMillis,
    /// When it got warm, for its age.
    pub warm_since: Option<Instant>,
    /// When its boot or clone began, for people.
    pub born: UnixMillis,
    pub address: Option<IpAddr>,
    pub pid: Option<u32>,
    /// The golden VM that it was cloned from, and resumes as; else it boots.
    pub origin: Option<VmName>,
    /// Of a golden VM: what its state depends on.
    pub key: Option<String>,
}

impl VmRow {
    /// Whether it runs, or may run.
    pub fn holds_permit(&self) -> bool {
        self.permit.is_some()
    }

    fn advance(&mut self, from: Stage, to: Stage) -> bool {
        let moved = self.stage == from;
        if moved {
            self.stage = to;
        }
        moved
    }

    /// Idle or on its way to it: not a build's, and not going.
    pub fn idle(&self) -> bool {
        matches!(self.stage, Stage::Preparing | Stage::Prepared | Stage::Booting | Stage::Warm)
    }
}

/// A pool's row.
#[derive(Debug)]
pub struct PoolRow {
    pub warm: u16,
    pub max: u16,
    pub max_age: Duration,
    /// Changes with what a VM is made from; VMs of another edition are outdated.
    pub edition: u32,
    /// It is no longer configured: it has no slots, and is forgotten with its last VM.
    pub closed: bool,
    cpu: Option<u16>,
    memory_mib: Option<u64>,
    /// Unknown until the runtime was asked; without it nothing is cloned.
    pub image: Option<ImageInfo>,
    /// Of what the pool's image means now.
    pub trial: Trial,
    pub trouble: Trouble,
    pub resuming: Resuming,
    pub baking: Baking,
}

impl PoolRow {
    pub(super) fn new(pool: &config::Pool, edition: u32) -> Self {
        Self {
            warm: pool.warm,
            max: pool.max,
            max_age: pool.max_age,
            edition,
            closed: false,
            cpu: pool.cpu,
            memory_mib: pool.memory.map(|m| m.0 >> 20),
            image: None,
            trial: Trial::default(),
            trouble: Trouble::default(),
            resuming: match pool.resume && !pool.shares_a_folder() {
                true => Resuming::Unknown,
                false => Resuming::Off,
            },
            baking: Baking::default(),
        }
    }

    /// What one of its VMs takes of the host. Only what the configuration sets or the image says is counted.
    pub fn load(&self) -> Load {
        let image = self.image.as_ref();
        Load {
            vms: 1,
            macos_guests: u32::from(image.is_some_and(|i| i.os == GuestOs::Darwin)),
            cores: self.cpu.or(image.map(|i| i.cpus)).unwrap_or(0).into(),
            memory_mib: self.memory_mib.or(image.map(|i| i.memory_mib)).unwrap_or(0),
        }
    }
}

/// A VM that runs since before this daemon did, and the build that had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    pub vm: VmName,
    pub build: BuildId,
    /// Of the VM's pool: what the VM takes of the host is not known without it.
    pub image: ImageInfo,
}

/// A build that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub build: BuildId,
    pub pool: PoolName,
    pub since: UnixMillis,
    pub asked: Instant,
}

/// Why the pool is emptied: nothing is leased or started, idle VMs go, VMs in use stay until their build is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// An operator asked for it, and will ask to go on.
    Asked,
    /// The daemon will end.
    Ending,
}

/// What is not as it was when it was last asked for.
#[derive(Debug, Default)]
pub struct Changes {
    pub vms: BTreeSet<VmName>,
    /// Pools for which other builds wait.
    pub waiting: BTreeSet<PoolName>,
}

/// A pool's row, and what is counted of it.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    pub name: &'a PoolName,
    pub row: &'a PoolRow,
    pub tally: &'a Tally,
    /// Builds that wait for it.
    pub waiting: usize,
}

/// The books.
#[derive(Debug)]
pub struct Ledger {
    pub host: Host,
    pub pools: BTreeMap<PoolName, PoolRow>,
    vms: BTreeMap<VmName, VmRow>,
    waiting: Queue,
    index: Index,
    changed: BTreeSet<VmName>,
    audited: Audited,
    /// No VM is cloned or started any more.
    pub stopping: bool,
    /// Set while the pool is emptied.
    pub draining: Option<Drain>,
    /// The disk is nearly full: no VM is cloned.
    pub disk_low: bool,
    /// Stops births on a host that is at fault.
    pub breaker: Breaker,
    /// What is left of macOS's slots.
    pub limit: MacosLimit,
    /// VMs that failed, and removals: who clears up looks when it changes.
    pub failures: u64,
    next_generation: Generation,
    pub(super) newest_edition: u32,
}

impl Ledger {
    /// Empty books. `first` is greater than every generation that was ever used.
    pub fn new(config: &config::Config, first: Generation) -> Self {
        let pools = config.pools.iter().map(|(name, pool)| (name.clone(), PoolRow::new(pool, 0)));
        let (pools, vms) = (pools.collect(), BTreeMap::new());
        Self {
            host: Host::new(&config.host),
            index: Index::of(&pools, &vms),
            pools,
            vms,
            waiting: Queue::default(),
            changed: BTreeSet::new(),
            audited: Audited::default(),
            stopping: false,
            draining: None,
            disk_low: false,
            breaker: Breaker::new(config.host.vms),
            limit: MacosLimit::default(),
            failures: 0,
            next_generation: first,
            newest_edition: 0,
        }
    }

    /// Every VM's row.
    pub fn vms(&self) -> &BTreeMap<VmName, VmRow> {
        &self.vms
    }

    /// A VM's row.
    pub fn vm(&self, name: &VmName) -> Option<&VmRow> {
        self.vms.get(name)
    }

    /// A VM's row, by its place in a pool.
    pub fn at(&self, pool: &PoolName, (slot, generation): Place) -> Option<&VmRow> {
        self.vms.get(&VmName { pool: pool.clone(), slot, generation })
    }

    /// VMs of a pool.
    pub fn of<'a>(&'a self, pool: &PoolName) -> impl Iterator<Item = &'a VmRow> + Clone + use<'a> {
        range(&self.vms, pool, SlotId(0), SlotId(u16::MAX))
    }

    /// VMs of a slot.
    pub fn slot<'a>(
        &'a self,
        pool: &PoolName,
        slot: SlotId,
    ) -> impl Iterator<Item = &'a VmRow> + Clone + use<'a> {
        range(&self.vms, pool, slot, slot)
    }

    /// A pool that there is.
    pub fn standing<'a>(&'a self, pool: &PoolName) -> Option<Standing<'a>> {
        let (name, row) = self.pools.get_key_value(pool)?;
        Some(Standing { name, row, tally: self.index.tally(pool)?, waiting: self.waiting.count(pool) })
    }

    /// Every pool, by its name.
    pub fn standings(&self) -> impl Iterator<Item = Standing<'_>> {
        self.pools.keys().filter_map(|name| self.standing(name))
    }

    /// What is kept at hand of the rows.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Builds that wait.
    pub fn waiting(&self) -> &Queue {
        &self.waiting
    }

    /// What changed since it was last taken.
    pub fn take_changes(&mut self) -> Changes {
        Changes { vms: std::mem::take(&mut self.changed), waiting: self.waiting.take_changed() }
    }

    /// A build asks for a VM: its place is where `since` says, also when what it was given was dead and it asks again.
    pub fn claim(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    /// A build waits no more.
    pub fn withdraw(&mut self, build: BuildId) {
        self.waiting.remove(build);
    }

    /// A new VM is written down, before anything of it exists.
    pub fn register(&mut self, pool: &PoolName, slot: SlotId, at: UnixMillis) -> VmName {
        let name = VmName { pool: pool.clone(), slot, generation: self.next_generation };
        self.next_generation = Generation(self.next_generation.0 + 1);
        let row = VmRow {
            name: name.clone(),
            stage: Stage::Preparing,
            origin: self.golden(pool, slot).map(|golden| golden.name.clone()),
            key: None,
            edition: self.pools.get(pool).map_or(0, |row| row.edition),
            permit: None,
            state: VmStateName::Cloning,
            state_since: at,
            warm_since: None,
            born: at,
            address: None,
            pid: None,
        };
        self.enter(row);
        self.breaker.begun(&name);
        name
    }

    /// Writes a VM down that runs already, as the VM of the build that had it under an earlier daemon.
    ///
    /// # Errors
    /// Why it has no place here any more: it is not in the books then.
    pub fn adopt(&mut self, adoption: &Adoption, at: UnixMillis) -> Result<(), String> {
        let Adoption { vm: name, build, image } = adoption;
        let Some(pool) = self.pools.get_mut(&name.pool) else {
            return Err(format!("there is no pool `{}` any more", name.pool));
        };
        if name.slot.0 >= pool.max {
            return Err(format!("pool `{}` has no slot {} any more", name.pool, name.slot));
        }
        pool.image = Some(image.clone());
        let (load, edition) = (pool.load(), pool.edition);
        let leased = |row: &VmRow| row.stage == Stage::Leased(*build);
        if self.slot(&name.pool, name.slot).any(VmRow::holds_permit) || self.vms.values().any(leased) {
            return Err(format!("slot {} of `{}` or build {build} has a VM already", name.slot, name.pool));
        }
        let Some(permit) = self.host.take(load) else {
            return Err("the host's bounds have no room for it any more".into());
        };
        let row = VmRow {
            name: name.clone(),
            stage: Stage::Leased(*build),
            origin: None,
            key: None,
            edition,
            permit: Some(permit),
            state: VmStateName::Adopting,
            state_since: at,
            warm_since: None,
            born: at,
            address: None,
            pid: None,
        };
        self.enter(row);
        self.next_generation = self.next_generation.max(Generation(name.generation.0 + 1));
        Ok(())
    }

    /// The clone is ready. False when the books did not expect that.
    pub fn prepared(&mut self, name: &VmName) -> bool {
        self.breaker.ended(name);
        self.advance(name, Stage::Preparing, Stage::Prepared)
    }

    /// Gives a prepared VM leave to run. False when the host is full or the VM is not prepared.
    pub fn grant(&mut self, name: &VmName) -> bool {
        let Some(load) = self.pools.get(&name.pool).map(PoolRow::load) else { return false };
        if self.vms.get(name).is_none_or(|row| row.stage != Stage::Prepared) {
            return false;
        }
        let Some(permit) = self.host.take(load) else { return false };
        self.change(name, |row| {
            row.permit = Some(permit);
            row.stage = Stage::Booting;
        });
        self.breaker.begun(name);
        true
    }

    /// The VM is warm. False when the books did not expect that.
    pub fn warmed(&mut self, name: &VmName, now: Instant) -> bool {
        let moved = self.change(name, |row| {
            let moved = row.advance(Stage::Booting, Stage::Warm);
            if moved {
                row.warm_since = Some(now);
            }
            moved
        });
        if moved == Some(true) {
            self.note_birth(name);
            self.breaker.warmed();
            if self.is_macos(name) {
                self.limit.warmed(self.host.macos_guests_used());
            }
        }
        moved == Some(true)
    }

    /// Gives a warm VM to a build that waits. `None` when either is not so.
    pub fn lease(&mut self, name: &VmName, build: BuildId) -> Option<Waiting> {
        self.waiting.get(build)?;
        if !self.advance(name, Stage::Warm, Stage::Leased(build)) {
            return None;
        }
        self.waiting.remove(build)
    }

    /// The VM is going: asked to, or by itself. Returns the build that had it.
    pub fn dying(&mut self, name: &VmName) -> Option<BuildId> {
        self.breaker.ended(name);
        let build = match self.vms.get(name)?.stage {
            Stage::Leased(build) => Some(build),
            Stage::Preparing | Stage::Prepared | Stage::Booting | Stage::Warm => None,
            Stage::Suspending | Stage::Golden => None,
            Stage::Dying | Stage::Deleting | Stage::Lost => return None,
        };
        self.change(name, |row| row.stage = Stage::Dying);
        build
    }

    /// Its guest is dead: the slot is free.
    pub fn guest_dead(&mut self, name: &VmName) {
        let permit = self.change(name, |row| {
            row.stage = Stage::Deleting;
            row.permit.take()
        });
        if let Some(permit) = permit.flatten() {
            self.host.give_back(permit);
        }
    }

    /// Nothing of it is left.
    pub fn gone(&mut self, name: &VmName) {
        self.guest_dead(name);
        let old = self.index.marks(self.vms.get(name));
        if self.vms.remove(name).is_some() {
            self.index.moved(name, &old, None, slot_of(&self.vms, name));
            self.changed.insert(name.clone());
        }
    }

    /// It could not be removed. It keeps its permit, if it still has one.
    pub fn lost(&mut self, name: &VmName) {
        self.change(name, |row| row.stage = Stage::Lost);
    }

    /// What its actor said of its state.
    pub fn note_state(&mut self, name: &VmName, state: VmStateName, at: UnixMillis) {
        self.change(name, |row| (row.state, row.state_since) = (state, at));
    }

    /// Which process runs it.
    pub fn note_pid(&mut self, name: &VmName, pid: Option<u32>) {
        self.change(name, |row| row.pid = pid);
    }

    /// Where it answers.
    pub fn note_address(&mut self, name: &VmName, address: IpAddr) {
        self.change(name, |row| row.address = Some(address));
    }

    /// Whether the VM is a macOS guest, as far as its image is known.
    pub fn is_macos(&self, name: &VmName) -> bool {
        self.pools.get(&name.pool).is_some_and(|row| row.load().macos_guests > 0)
    }

    fn advance(&mut self, name: &VmName, from: Stage, to: Stage) -> bool {
        self.change(name, |row| row.advance(from, to)) == Some(true)
    }

    fn enter(&mut self, row: VmRow) {
        let name = row.name.clone();
        self.vms.insert(name.clone(), row);
        let marks = index::Marks::default();
        self.index.moved(&name, &marks, self.vms.get(&name), slot_of(&self.vms, &name));
        self.changed.insert(name);
    }

    /// The only way to a row.
    fn change<T>(&mut self, name: &VmName, act: impl FnOnce(&mut VmRow) -> T) -> Option<T> {
        let old = self.index.marks(self.vms.get(name));
        let done = act(self.vms.get_mut(name)?);
        self.index.moved(name, &old, self.vms.get(name), slot_of(&self.vms, name));
        self.changed.insert(name.clone());
        Some(done)
    }

    /// Reads the rows again, where a pool's row says otherwise than before what becomes of its VMs.
    pub(super) fn count_again(&mut self) {
        self.index = Index::of(&self.pools, &self.vms);
    }

    /// Closed pools go with their last VM.
    pub fn forget_closed(&mut self) {
        let Self { pools, index, .. } = self;
        pools.retain(|name, row| {
            let stays = !row.closed || index.tally(name).is_some_and(|tally| tally.counts.all() > 0);
            if !stays {
                index.forget(name);
            }
            stays
        });
    }
}

/// Rows of the slots from `first` to `last` of a pool: names are in the order of pool, slot and generation.
fn range<'a>(
    vms: &'a BTreeMap<VmName, VmRow>,
    pool: &PoolName,
    first: SlotId,
    last: SlotId,
) -> impl Iterator<Item = &'a VmRow> + Clone + use<'a> {
    let name = |slot, generation| VmName { pool: pool.clone(), slot, generation };
    vms.range(name(first, Generation(0))..=name(last, Generation(u64::MAX))).map(|(_, row)| row)
}

fn slot_of<'a>(
    vms: &'a BTreeMap<VmName, VmRow>,
    name: &VmName,
) -> impl Iterator<Item = &'a VmRow> + Clone + use<'a> {
    range(vms, &name.pool, name.slot, name.slot)
}
