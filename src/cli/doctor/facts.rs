//! What `doctor` has seen. Plain values, so that every verdict can be tested without the host that has the fault.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::api::wire::TroubleView;
use crate::config::ByteSize;
use crate::runtime::{Fault, ImageInfo};

/// Everything.
#[derive(Debug)]
pub struct Facts {
    /// Or every mistake of it.
    pub config: Result<Configured, Vec<String>>,
    /// `ssh -V`, or why not.
    pub ssh: Result<String, String>,
    /// Files that this process may have open; `None` is without a bound.
    pub descriptors: Option<u64>,
    pub host: HostFacts,
}

/// What can only be looked for with a configuration.
#[derive(Debug)]
pub struct Configured {
    pub pools: usize,
    pub home: HomeFacts,
    pub program: String,
    pub version: Result<String, Fault>,
    pub images: Vec<ImageFacts>,
    pub keys: Vec<KeyFacts>,
    pub listen: SocketAddr,
    pub port: Port,
    /// Of a running daemon: pools that are in trouble.
    pub troubles: Vec<(String, TroubleView)>,
    pub control_socket: PathBuf,
}

/// `$PREHEAT_HOME`.
#[derive(Debug)]
pub struct HomeFacts {
    pub path: PathBuf,
    pub writable: Result<(), String>,
    pub free: Option<ByteSize>,
    pub free_min: ByteSize,
}

/// A pool's image.
#[derive(Debug)]
pub struct ImageFacts {
    pub pool: String,
    pub image: String,
    pub found: Result<ImageInfo, Fault>,
}

/// A pool's key.
#[derive(Debug)]
pub struct KeyFacts {
    pub pool: String,
    pub path: PathBuf,
    /// Its permissions, or why they are not known.
    pub mode: Result<u32, String>,
}

/// Who is at `api.listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// Nobody: it can be taken.
    Free,
    /// A daemon of ours.
    Ours,
    /// Somebody else, or nobody may listen there.
    Taken { why: String, hint: String },
}

/// What differs between hosts.
#[derive(Debug)]
pub enum HostFacts {
    Mac(MacFacts),
    Linux(LinuxFacts),
}

/// A Mac.
#[derive(Debug)]
pub struct MacFacts {
    /// `launchctl print gui/<uid>` succeeded: somebody is logged in on the screen.
    pub session: bool,
    /// The login keychain is unlocked, or why that is not known to be.
    pub keychain: Result<(), String>,
    /// `DHCPLeaseTimeSecs` of bootpd; `None` is the default of a day.
    pub dhcp_lease_s: Option<u64>,
    /// The major version of macOS.
    pub version: Option<u32>,
    pub root: bool,
    /// Minutes until the Mac sleeps; 0 is never.
    pub sleep_min: Option<u64>,
}

/// A Linux host, where VMs are QEMU's.
#[derive(Debug)]
pub struct LinuxFacts {
    /// QEMU's version, or why there is none.
    pub qemu: Result<String, String>,
    /// `/dev/kvm` can be opened, or why not.
    pub kvm: Result<(), String>,
}
