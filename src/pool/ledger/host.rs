//! What the host can bear, and what of it is in use. A permit is the only way to use any of it.

use crate::config;

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
pub struct Permit(pub(super) Load);

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
    pub(super) used: Load,
    /// What the bounds were when what is in use was granted: lowering a bound stops nothing that runs.
    pub(super) granted: Load,
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

    pub(super) fn take(&mut self, load: Load) -> Option<Permit> {
        self.fits(load).ok()?;
        self.used.vms += load.vms;
        self.used.macos_guests += load.macos_guests;
        self.used.cores = self.used.cores.saturating_add(load.cores);
        self.used.memory_mib = self.used.memory_mib.saturating_add(load.memory_mib);
        Some(Permit(load))
    }

    pub(super) fn give_back(&mut self, permit: Permit) {
        let Permit(load) = permit;
        self.used.vms -= load.vms;
        self.used.macos_guests -= load.macos_guests;
        self.used.cores -= load.cores;
        self.used.memory_mib -= load.memory_mib;
        self.note_granted();
    }
}
