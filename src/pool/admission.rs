//! What a build waits for, from the books alone, in words that an operator can act on.

use std::fmt;

use super::ledger::{Drain, HostFull, Ledger, Standing};
use crate::clock::Instant;
use crate::ids::BuildId;

/// Why a build has no VM yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// A VM is coming up for it.
    Booting { pool: String },
    /// Others of its pool come first.
    Ahead { pool: String, ahead: usize },
    /// Every slot of the pool is in use.
    SlotsBusy { pool: String, max: u16 },
    /// A bound of the host is reached.
    Host(HostFull),
    /// The pool's VMs fail to come up.
    Trouble { pool: String, fault: String, seconds: u64 },
    /// VMs of no pool come up on this host.
    HostTrouble { fault: String, hint: Option<&'static str>, seconds: u64 },
    /// macOS refuses one more macOS guest.
    MacosLimit { fault: String, hint: Option<&'static str>, seconds: u64 },
    /// The disk is nearly full.
    DiskLow,
    /// The image is being looked at.
    Image { pool: String },
    /// An operator drained the daemon.
    Draining,
    /// The daemon stops.
    Stopping,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Booting { pool } => write!(f, "a VM of pool `{pool}` that is coming up"),
            Self::Ahead { pool, ahead: 1 } => write!(f, "a VM of pool `{pool}`; 1 build is ahead"),
            Self::Ahead { pool, ahead } => write!(f, "a VM of pool `{pool}`; {ahead} builds are ahead"),
            Self::SlotsBusy { pool, max } => write!(f, "a slot of pool `{pool}`: all {max} are in use"),
            Self::Host(HostFull::Vms { max }) => write!(f, "a place on the host: {max} VMs run (host.vms)"),
            Self::Host(HostFull::MacosGuests { max }) => {
                write!(f, "a place on the host: {max} macOS guests run (host.macos_guests)")
            }
            Self::Host(HostFull::Cores { max }) => write!(f, "cores of the host: at most {max} (host.cores)"),
            Self::Host(HostFull::Memory { max_mib }) => {
                write!(f, "memory of the host: at most {max_mib} MiB (host.memory)")
            }
            Self::Trouble { pool, fault, seconds } => {
                write!(f, "pool `{pool}`, whose VMs do not come up: {fault}; next try in {seconds} s")
            }
            Self::HostTrouble { fault, hint, seconds } => {
                write!(f, "the host, on which VMs do not come up: {fault}; next try in {seconds} s")?;
                hint.map_or(Ok(()), |hint| write!(f, "; hint: {hint}"))
            }
            Self::MacosLimit { fault, hint, seconds } => {
                write!(f, "a place for a macOS guest: {fault}; next try in {seconds} s")?;
                hint.map_or(Ok(()), |hint| write!(f, "; hint: {hint}"))
            }
            Self::DiskLow => f.write_str("disk space: less is free than host.disk_free_min"),
            Self::Image { pool } => write!(f, "the image of pool `{pool}` to be looked at"),
            Self::Draining => f.write_str("`preheat resume`: the daemon is drained"),
            Self::Stopping => f.write_str("the next start: the daemon is stopping"),
        }
    }
}

/// What the builds of one pool wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    pool: String,
    /// All of them for the same.
    all: Option<Wait>,
    /// VMs that come up, or are about to be given: so many of the first wait for one.
    coming: usize,
    /// The first one, where none comes up.
    first: Wait,
}

impl Waits {
    /// What the build waits for that so many others of its pool are before.
    pub fn behind(&self, ahead: usize) -> Wait {
        let pool = || self.pool.clone();
        match &self.all {
            Some(wait) => wait.clone(),
            None if self.coming > ahead => Wait::Booting { pool: pool() },
            None if ahead > 0 => Wait::Ahead { pool: pool(), ahead },
            None => self.first.clone(),
        }
    }
}

/// What the builds of a pool wait for.
pub fn waits(ledger: &Ledger, pool: Standing<'_>, now: Instant) -> Waits {
    Waits {
        pool: pool.name.to_string(),
        all: for_all(ledger, pool, now),
        coming: pool.tally.up(),
        first: for_first(ledger, pool, now),
    }
}

/// What `build` waits for; `None` when it does not wait.
pub fn waits_for(ledger: &Ledger, build: BuildId, now: Instant) -> Option<Wait> {
    let ahead = ledger.waiting().ahead(build)?;
    let pool = ledger.standing(&ledger.waiting().get(build)?.pool)?;
    Some(waits(ledger, pool, now).behind(ahead))
}

fn for_all(ledger: &Ledger, pool: Standing<'_>, now: Instant) -> Option<Wait> {
    let seconds = |next_try: Instant| next_try.saturating_duration_since(now).as_secs();
    if ledger.stopping {
        return Some(Wait::Stopping);
    }
    match ledger.draining {
        Some(Drain::Asked) => return Some(Wait::Draining),
        Some(Drain::Ending) => return Some(Wait::Stopping),
        None => {}
    }
    if let Some(opened) = ledger.breaker.opened() {
        return Some(Wait::HostTrouble {
            fault: opened.fault.to_string(),
            hint: opened.fault.reason.hint(),
            seconds: seconds(opened.next_try),
        });
    }
    let name = pool.name.to_string();
    if let Some(trouble) = pool.row.trouble.current() {
        let (fault, seconds) = (trouble.fault.to_string(), seconds(trouble.next_try));
        return Some(Wait::Trouble { pool: name, fault, seconds });
    }
    pool.row.image.is_none().then_some(Wait::Image { pool: name })
}

fn for_first(ledger: &Ledger, pool: Standing<'_>, now: Instant) -> Wait {
    let (name, row) = (pool.name.to_string(), pool.row);
    if pool.tally.counts.permits >= usize::from(row.max) {
        return Wait::SlotsBusy { pool: name, max: row.max };
    }
    let met = ledger.limit.met().filter(|_| row.load().macos_guests > 0);
    if let Some(met) = met.filter(|_| !ledger.limit.allows(ledger.host.macos_guests_used(), now)) {
        return Wait::MacosLimit {
            fault: met.fault.to_string(),
            hint: met.fault.reason.hint(),
            seconds: met.next_try.saturating_duration_since(now).as_secs(),
        };
    }
    if let Err(full) = ledger.host.fits(row.load()) {
        return Wait::Host(full);
    }
    if ledger.disk_low { Wait::DiskLow } else { Wait::Booting { pool: name } }
}
