//! Configuration, from text to [`Config`]; everything else takes [`Config`] as true.
//!
//! ```text
//! default.toml < preheat.toml < hosts/<hostname>.toml < PREHEAT__..      load: which, and where they are
//!       |             |                |                   |
//!       +-- file: one Layer each, with the place of every key --+        syntax, line and column
//!                              |
//!                        walk: key by key, found: value by value         types, unknown keys
//!          validate, pools, pipelines: sections; rules: texts; limits: bounds
//!                              |
//!            Config  or  mistake: every one of them                      show prints the first, changes compares two
//! ```

pub mod changes;
pub mod controllers;
pub mod file;
pub mod found;
pub mod limits;
pub mod live;
pub mod load;
pub mod mistake;
pub mod pipelines;
mod pools;
pub(crate) mod rules;
pub mod show;
pub mod units;
pub mod validate;
pub mod walk;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::ids::PoolName;
use crate::images::generation::{self, Which};
use crate::pipelines::Pipelines;
pub use controllers::Controller;
pub use live::Live;
pub use load::{Inputs, Loaded};
pub use mistake::{Mistake, Mistakes, Origin};
pub use units::ByteSize;

/// The folders of an installation, all below `$PREHEAT_HOME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// An installation at `path`, which must be absolute.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }
    /// `$PREHEAT_HOME` itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// The operator's file.
    pub fn config_file(&self) -> PathBuf {
        self.0.join("preheat.toml")
    }
    /// The journal (SQLite).
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal.sqlite")
    }
    /// Sources that were received and whose build has not ended.
    pub fn spool(&self) -> PathBuf {
        self.0.join("spool")
    }
    /// Sources that were sent and may be asked for again, one folder each.
    pub fn trees(&self) -> PathBuf {
        self.0.join("trees")
    }
    /// One folder a build: log, artifacts.
    pub fn builds(&self) -> PathBuf {
        self.0.join("builds")
    }
    /// What builds left for the next ones of their projects.
    pub fn caches(&self) -> PathBuf {
        self.0.join("caches")
    }
    /// What `tart run` printed, one file a VM.
    pub fn vm_logs(&self) -> PathBuf {
        self.0.join("logs").join("vms")
    }
    /// Held locked by the daemon that owns this installation.
    pub fn lock(&self) -> PathBuf {
        self.0.join("daemon.lock")
    }
    /// What is known of images' generations: a file each, which whoever made one wrote.
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }
    /// The pool's own `TART_HOME`.
    pub fn tart(&self) -> PathBuf {
        self.0.join("tart")
    }
}

/// The whole configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub home: Home,
    pub host: Host,
    pub runtime: RuntimeConfig,
    pub api: Api,
    pub builds: Builds,
    pub caches: Caches,
    pub stop: Stop,
    pub pools: BTreeMap<PoolName, Pool>,
    pub pipelines: Pipelines,
    pub uploads: Vec<Upload>,
    pub controllers: Vec<Controller>,
    pub log: Log,
}

/// Bounds over all pools together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Running VMs.
    pub vms: u16,
    /// Running macOS guests: Apple allows two.
    pub macos_guests: u16,
    /// Virtual cores of running VMs that set `cpu`; `None` does not bound them.
    pub cores: Option<u16>,
    /// Memory of running VMs; `None` does not bound it.
    pub memory: Option<ByteSize>,
    /// Under this much free space on `$PREHEAT_HOME`'s volume no build is accepted and no VM is cloned.
    pub disk_free_min: ByteSize,
    /// Under this much, what is over and delivered goes before its time.
    pub disk_free_low: ByteSize,
    /// Builds that may wait or run at once; the next is refused.
    pub builds_max: u16,
}

/// The program that runs VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// `tart`, `tart-qemu`, or a path.
    pub program: String,
    /// The pool's own `TART_HOME`.
    pub tart_home: PathBuf,
    /// A pulled image that nothing was cloned from for longer goes.
    pub image_keep_age: Duration,
    pub deadlines: VerbDeadlines,
}

/// How long each verb may take before it is killed with its process group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerbDeadlines {
    pub clone: Duration,
    pub set: Duration,
    pub stop: Duration,
    pub delete: Duration,
    /// `list`, `get`, `--version`.
    pub query: Duration,
}

/// The HTTP side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    pub listen: SocketAddr,
    /// The largest source that is taken in.
    pub source_max: ByteSize,
    /// Sources that are kept by their names, together; `None` keeps none.
    pub source_keep_bytes: Option<ByteSize>,
    /// And since they were last used.
    pub source_keep_age: Duration,
    /// A file with the token that every call must carry; needed where `listen` is not loopback.
    pub token_file: Option<PathBuf>,
}

/// Defaults and bounds of builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Builds {
    /// For a whole build, when it does not say.
    pub timeout: Duration,
    /// For one step, when it does not say.
    pub step_timeout: Duration,
    /// How often a build is attempted again after a fault of the system, when it does not say.
    pub retries: u16,
    /// Between asking a step's processes to end and killing them.
    pub kill_grace: Duration,
    /// Guests are looked at while steps run.
    pub guest_health: bool,
    pub log_max: ByteSize,
    pub artifacts_max: ByteSize,
    /// Ended builds that are kept, newest first.
    pub keep: u32,
    /// And of them those that ended less than this ago.
    pub keep_age: Duration,
    /// All of them together; `None` does not bound them.
    pub keep_bytes: Option<ByteSize>,
}

/// What builds leave for the next ones of their projects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caches {
    /// All of them together; 0 saves none.
    pub bytes_max: ByteSize,
    /// One of them.
    pub entry_max: ByteSize,
    /// One that was not restored for longer goes.
    pub keep_age: Duration,
    /// For all that one build restores, and again for all that it saves.
    pub timeout: Duration,
}

/// How the daemon ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// From the first signal to stop: so long builds that run may go on to their end.
    pub drain_timeout: Duration,
}

/// How a VM reaches the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "mode")]
pub enum Network {
    /// Tart's default: shared NAT.
    Nat,
    /// Isolated, with exceptions as CIDR blocks.
    Softnet { allow: Vec<String>, block: Vec<String> },
    /// On the host's network.
    Bridged { interface: String, resolver: Resolver },
}

/// How the address of a VM is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolver {
    Dhcp,
    Arp,
    Agent,
}

/// VMs of one image and one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub image: String,
    /// What the image's name means: it is chosen while the daemon runs, and no key.
    pub generation: Which,
    /// VMs kept ready.
    pub warm: u16,
    /// Running VMs at most; also the number of slots.
    pub max: u16,
    pub cpu: Option<u16>,
    pub memory: Option<ByteSize>,
    pub disk: Option<ByteSize>,
    pub user: String,
    pub key: PathBuf,
    pub port: u16,
    pub network: Network,
    /// What builds can ask for: names and versions.
    pub provides: BTreeMap<String, String>,
    /// From `run` to an answered command.
    pub boot_timeout: Duration,
    /// For one probe: a full command over the open connection.
    pub probe_timeout: Duration,
    /// Between probes of an idle warm VM.
    pub probe_interval: Duration,
    /// A script that runs in each fresh VM before it counts as warm.
    pub warmup: Option<String>,
    pub warmup_timeout: Duration,
    /// A warm VM older than this is replaced.
    pub max_age: Duration,
    /// Further arguments of `tart run`.
    pub run_args: Vec<String>,
    /// VMs are resumed from a saved state where the image can be, instead of booted.
    pub resume: bool,
    /// From `run` to a resumed guest that answers. One that is later is booted instead.
    pub resume_timeout: Duration,
}

impl Pool {
    /// The VM that is cloned.
    pub fn base(&self) -> String {
        generation::vm(&self.image, self.generation)
    }

    /// An argument that shares a folder with the guest: its state cannot be saved.
    pub fn shares_a_folder(&self) -> bool {
        self.run_args.iter().any(|arg| arg == "--dir" || arg.starts_with("--dir="))
    }
}

/// Where finished builds are delivered to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    pub name: String,
    pub sink: UploadSink,
}

/// The kinds of sinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadSink {
    /// Artifacts and `result.json` are copied to `<path>/<build>/`, which appears whole or not at all.
    Folder { path: PathBuf },
    /// Each artifact is PUT to `<url>/<build>/<path>`, then `result.json`.
    Http { url: String, token_file: Option<PathBuf> },
}

/// What the daemon logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A `tracing` filter, as `info` or `preheat=debug`.
    pub filter: String,
    /// One JSON object a line instead of text.
    pub json: bool,
    /// Where it goes; `None` is stderr.
    pub file: Option<PathBuf>,
    /// What gone VMs printed: so many files are kept, newest first.
    pub vm_keep: u32,
    /// And of them those that were written to less than this ago.
    pub vm_keep_age: Duration,
    /// All of them together; `None` does not bound them.
    pub vm_keep_bytes: Option<ByteSize>,
}

#[cfg(test)]
mod tests;
