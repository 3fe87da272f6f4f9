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
//! A VM that a build had under an earlier daemon comes into the books as `Leased`, with its permit, or not at all.
//!
//! A permit is a token: it is made by [`Host::take`], moved, and given back once. `Lost` keeps the permit when the guest
//! may still be alive: lost capacity is counted as lost.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::breaker::Breaker;
use super::limit::MacosLimit;
use super::trouble::Trouble;
use crate::clock::{Instant, UnixMillis};
use crate::config;
use crate::ids::{BuildId, Generation, PoolName, SlotId};
use crate::runtime::{GuestOs, ImageInfo, VmName};
use crate::vm::state::VmStateName;

/// What one running VM takes of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    pub vms: u32,
    pub macos_guests: u32,
    pub cores: u32,
    pub memory_mib: u64,
}

/// Leave to run one VM. It is not `Clone`: dropping it loses capacity, so it is moved back with [`Host::give_back`].
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub struct Permit(Load);

/// What keeps a VM from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostFull {
    Vms { max: u32 },
    MacosGuests { max: u32 },
    Cores { max: u32 },
    Memory { max_mib: u64 },
}

/// The host's bounds, and what is in use.
#[derive(Debug)]
pub struct Host {
    max: Load,
    used: Load,
    /// What the bounds were when what is in use was granted: lowering a bound stops nothing that runs.
    granted: Load,
}

impl Host {
    /// From the configuration. What it does not bound is bounded by the type.
    pub fn new(config: &config::Host) -> Self {
        let mut host = Self { max: Load::default(), used: Load::default(), granted: Load::default() };
        host.bound(config);
        host
    }

    /// Takes other bounds over. What runs goes on, and nothing starts until it fits again.
    pub fn bound(&mut self, config: &config::Host) {
        self.max = Load {
            vms: config.vms.into(),
            macos_guests: config.macos_guests.into(),
            cores: config.cores.map_or(u32::MAX, u32::from),
            memory_mib: config.memory.map_or(u64::MAX, |m| m.0 >> 20),
        };
        self.note_granted();
    }

    fn note_granted(&mut self) {
        self.granted.vms = self.max.vms.max(self.used.vms);
        self.granted.macos_guests = self.max.macos_guests.max(self.used.macos_guests);
    }

    /// Whether one more VM of this load may run.
    ///
    /// # Errors
    /// The first bound that is in the way.
    pub fn fits(&self, load: Load) -> Result<(), HostFull> {
        let Load { vms, macos_guests, cores, memory_mib } = self.max;
        if self.used.vms + load.vms > vms {
            return Err(HostFull::Vms { max: vms });
        }
        if load.macos_guests > 0 && self.used.macos_guests + load.macos_guests > macos_guests {
            return Err(HostFull::MacosGuests { max: macos_guests });
        }
        if self.used.cores.saturating_add(load.cores) > cores {
            return Err(HostFull::Cores { max: cores });
        }
        if self.used.memory_mib.saturating_add(load.memory_mib) > memory_mib {
            return Err(HostFull::Memory { max_mib: memory_mib });
        }
        Ok(())
    }

    /// macOS guests that may run.
    pub fn macos_guests_max(&self) -> u32 {
        self.max.macos_guests
    }

    /// macOS guests that run, or may run.
    pub fn macos_guests_used(&self) -> u32 {
        self.used.macos_guests
    }

    fn take(&mut self, load: Load) -> Option<Permit> {
        self.fits(load).ok()?;
        self.used.vms += load.vms;
        self.used.macos_guests += load.macos_guests;
        self.used.cores = self.used.cores.saturating_add(load.cores);
        self.used.memory_mib = self.used.memory_mib.saturating_add(load.memory_mib);
        Some(Permit(load))
    }

    fn give_back(&mut self, permit: Permit) {
        let Permit(load) = permit;
        self.used.vms -= load.vms;
        self.used.macos_guests -= load.macos_guests;
        self.used.cores -= load.cores;
        self.used.memory_mib -= load.memory_mib;
        self.note_granted();
    }
}

/// Where a VM is in the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Preparing,
    Prepared,
    Booting,
    Warm,
    Leased(BuildId),
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
    pub address: Option<std::net::IpAddr>,
    pub pid: Option<u32>,
}

impl VmRow {
    /// Whether it runs, or may run.
    pub fn holds_permit(&self) -> bool {
        self.permit.is_some()
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
    pub trouble: Trouble,
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
            trouble: Trouble::default(),
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

/// The books.
#[derive(Debug)]
pub struct Ledger {
    pub host: Host,
    pub pools: BTreeMap<PoolName, PoolRow>,
    pub vms: BTreeMap<VmName, VmRow>,
    pub waiting: VecDeque<Waiting>,
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
        Self {
            host: Host::new(&config.host),
            pools: pools.collect(),
            vms: BTreeMap::new(),
            waiting: VecDeque::new(),
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

    /// VMs of a pool.
    pub fn of<'a>(&'a self, pool: &'a PoolName) -> impl Iterator<Item = &'a VmRow> {
        self.vms.values().filter(move |vm| vm.name.pool == *pool)
    }

    /// VMs of a slot.
    pub fn slot<'a>(&'a self, pool: &'a PoolName, slot: SlotId) -> impl Iterator<Item = &'a VmRow> {
        self.of(pool).filter(move |vm| vm.name.slot == slot)
    }

    /// Builds that wait for a pool.
    pub fn waiting_for(&self, pool: &PoolName) -> usize {
        self.waiting.iter().filter(|w| w.pool == *pool).count()
    }

    /// A build asks for a VM.
    pub fn claim(&mut self, waiting: Waiting) {
        if !self.waiting.iter().any(|w| w.build == waiting.build) {
            self.waiting.push_back(waiting);
        }
    }

    /// A build goes on waiting, at its old place: what it was given was dead.
    pub fn reclaim(&mut self, waiting: Waiting) {
        self.claim(waiting);
        self.waiting.make_contiguous().sort_by_key(|w| (w.since, w.build));
    }

    /// A build waits no more.
    pub fn withdraw(&mut self, build: BuildId) {
        self.waiting.retain(|w| w.build != build);
    }

    /// A new VM is written down, before anything of it exists.
    pub fn register(&mut self, pool: &PoolName, slot: SlotId, at: UnixMillis) -> VmName {
        let name = VmName { pool: pool.clone(), slot, generation: self.next_generation };
        self.next_generation = Generation(self.next_generation.0 + 1);
        let row = VmRow {
            name: name.clone(),
            stage: Stage::Preparing,
            edition: self.pools.get(pool).map_or(0, |row| row.edition),
            permit: None,
            state: VmStateName::Cloning,
            state_since: at,
            warm_since: None,
            born: at,
            address: None,
            pid: None,
        };
        self.vms.insert(name.clone(), row);
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
            edition,
            permit: Some(permit),
            state: VmStateName::Adopting,
            state_since: at,
            warm_since: None,
            born: at,
            address: None,
            pid: None,
        };
        self.vms.insert(name.clone(), row);
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
        let Some(row) = self.vms.get_mut(name).filter(|row| row.stage == Stage::Prepared) else {
            return false;
        };
        let Some(permit) = self.host.take(load) else { return false };
        row.permit = Some(permit);
        row.stage = Stage::Booting;
        self.breaker.begun(name);
        true
    }

    /// The VM is warm. False when the books did not expect that.
    pub fn warmed(&mut self, name: &VmName, now: Instant) -> bool {
        let moved = self.advance(name, Stage::Booting, Stage::Warm);
        if let Some(row) = self.vms.get_mut(name).filter(|_| moved) {
            row.warm_since = Some(now);
        }
        if moved {
            self.breaker.warmed();
            if self.is_macos(name) {
                self.limit.warmed(self.host.macos_guests_used());
            }
        }
        moved
    }

    /// Gives a warm VM to a build that waits. `None` when either is not so.
    pub fn lease(&mut self, name: &VmName, build: BuildId) -> Option<Waiting> {
        let at = self.waiting.iter().position(|w| w.build == build)?;
        if !self.advance(name, Stage::Warm, Stage::Leased(build)) {
            return None;
        }
        self.waiting.remove(at)
    }

    /// The VM is going: asked to, or by itself. Returns the build that had it.
    pub fn dying(&mut self, name: &VmName) -> Option<BuildId> {
        self.breaker.ended(name);
        let row = self.vms.get_mut(name)?;
        let build = match row.stage {
            Stage::Leased(build) => Some(build),
            Stage::Preparing | Stage::Prepared | Stage::Booting | Stage::Warm => None,
            Stage::Dying | Stage::Deleting | Stage::Lost => return None,
        };
        row.stage = Stage::Dying;
        build
    }

    /// Its guest is dead: the slot is free.
    pub fn guest_dead(&mut self, name: &VmName) {
        let Some(row) = self.vms.get_mut(name) else { return };
        row.stage = Stage::Deleting;
        if let Some(permit) = row.permit.take() {
            self.host.give_back(permit);
        }
    }

    /// Nothing of it is left.
    pub fn gone(&mut self, name: &VmName) {
        self.guest_dead(name);
        self.vms.remove(name);
    }

    /// It could not be removed. It keeps its permit, if it still has one.
    pub fn lost(&mut self, name: &VmName) {
        if let Some(row) = self.vms.get_mut(name) {
            row.stage = Stage::Lost;
        }
    }

    /// What its actor said of its state.
    pub fn note_state(&mut self, name: &VmName, state: VmStateName, at: UnixMillis) {
        if let Some(row) = self.vms.get_mut(name) {
            row.state = state;
            row.state_since = at;
        }
    }

    /// Whether the VM is a macOS guest, as far as its image is known.
    pub fn is_macos(&self, name: &VmName) -> bool {
        self.pools.get(&name.pool).is_some_and(|row| row.load().macos_guests > 0)
    }

    fn advance(&mut self, name: &VmName, from: Stage, to: Stage) -> bool {
        match self.vms.get_mut(name).filter(|row| row.stage == from) {
            Some(row) => {
                row.stage = to;
                true
            }
            None => false,
        }
    }

    /// What must hold after every move; the text says what does not.
    ///
    /// # Errors
    /// The first invariant that is broken.
    pub fn audit(&self) -> Result<(), String> {
        let mut sum = Load::default();
        for row in self.vms.values() {
            if let Some(Permit(load)) = &row.permit {
                sum.vms += load.vms;
                sum.macos_guests += load.macos_guests;
                sum.cores = sum.cores.saturating_add(load.cores);
                sum.memory_mib = sum.memory_mib.saturating_add(load.memory_mib);
            }
            let runs = matches!(row.stage, Stage::Booting | Stage::Warm | Stage::Leased(_));
            if runs && row.permit.is_none() {
                return Err(format!("{} runs without a permit", row.name));
            }
            let same_slot = self.slot(&row.name.pool, row.name.slot);
            if row.holds_permit() && same_slot.filter(|vm| vm.holds_permit()).count() > 1 {
                return Err(format!("slot {} of `{}` is booked twice", row.name.slot, row.name.pool));
            }
        }
        if sum != self.host.used {
            return Err(format!("permits sum up to {sum:?}, the host says {:?}", self.host.used));
        }
        if sum.vms > self.host.granted.vms || sum.macos_guests > self.host.granted.macos_guests {
            return Err(format!("more runs than may: {sum:?}"));
        }
        Ok(())
    }
}
