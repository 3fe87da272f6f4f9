//! Every bound of the configuration, with the reason that an operator who runs into it is told.

use std::time::Duration;

use super::units::ByteSize;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// Tart counts disks in these.
pub const GB: u64 = 1_000_000_000;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// As durations are written: a year of 365.25 days.
const YEAR: u64 = 31_557_600 * SECOND;

/// What a bound counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Count,
    Bytes,
    Millis,
}

/// The smallest and the largest value of a key, both allowed, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    pub min: u64,
    pub max: u64,
    pub unit: Unit,
    /// A fragment that follows "because".
    pub why: &'static str,
}

const fn count(min: u64, max: u64, why: &'static str) -> Bound {
    Bound { min, max, unit: Unit::Count, why }
}

const fn bytes(min: u64, max: u64, why: &'static str) -> Bound {
    Bound { min, max, unit: Unit::Bytes, why }
}

const fn millis(min: u64, max: u64, why: &'static str) -> Bound {
    Bound { min, max, unit: Unit::Millis, why }
}

impl Bound {
    /// Whether `value`, in the bound's unit, is within it.
    pub fn holds(&self, value: u64) -> bool {
        (self.min..=self.max).contains(&value)
    }

    /// One value as it would be written.
    pub fn text(&self, value: u64) -> String {
        match self.unit {
            Unit::Count => value.to_string(),
            Unit::Bytes => ByteSize(value).to_string(),
            Unit::Millis => humantime::format_duration(Duration::from_millis(value)).to_string(),
        }
    }

    /// `from 1 to 512`.
    pub fn range(&self) -> String {
        format!("from {} to {}", self.text(self.min), self.text(self.max))
    }

    /// What may be written, for a mistake: `a whole number from 1 to 512`.
    pub fn allowed(&self) -> String {
        let kind = match self.unit {
            Unit::Count => "a whole number",
            Unit::Bytes => "a size",
            Unit::Millis => "a duration",
        };
        format!("{kind} {}", self.range())
    }
}

/// `host.vms`
pub const HOST_VMS: Bound = count(1, 512, "without a VM nothing is built, and no host runs more");
/// `host.macos_guests`
pub const MACOS_GUESTS: Bound = count(0, 16, "macOS allows two, and a few more with a raised quota");
/// `host.cores`
pub const HOST_CORES: Bound = count(1, 1024, "no host has more");
/// `host.memory`
pub const HOST_MEMORY: Bound = bytes(256 * MIB, 16 * TIB, "with less no VM boots, and no host has more");
/// `host.disk_free_min`
pub const DISK_FREE_MIN: Bound =
    bytes(64 * MIB, 16 * TIB, "with less the journal of builds itself would have no room");
/// `host.disk_free_low`
pub const DISK_FREE_LOW: Bound = bytes(0, 16 * TIB, "0 never brings anything forward, and no disk has more");
/// `host.builds_max`
pub const BUILDS_MAX: Bound = count(1, 10_000, "each holds its source on the disk until it is over");

/// `runtime.deadlines.*`
pub const VERB_DEADLINE: Bound =
    millis(100, HOUR, "a verb needs some time, and a slot must not hang on one for longer");

/// `api.source_max`
pub const SOURCE_MAX: Bound = bytes(KIB, TIB, "a source needs some bytes, and must fit on the disk");

/// `api.source_keep_bytes`
pub const SOURCE_KEEP_BYTES: Bound = bytes(MIB, 1024 * TIB, "a source should fit, and no disk has more");

/// `builds.timeout`, `builds.step_timeout`, and those of a build
pub const BUILD_TIMEOUT: Bound =
    millis(100, 30 * DAY, "a build needs some time, and must not hold a VM for ever");
/// `builds.retries`, and those of a build
pub const RETRIES: Bound = count(0, 10, "what fails that often will fail again");
/// `steps[].retries` of a build
pub const STEP_RETRIES: Bound =
    count(0, 5, "each run holds the VM; what fails that often is not a matter of luck");
/// `builds.kill_grace`
pub const KILL_GRACE: Bound = millis(0, 10 * MINUTE, "a build that was cancelled holds its VM for so long");
/// `stop.drain_timeout`
pub const DRAIN_TIMEOUT: Bound = millis(0, DAY, "whoever stops the daemon waits for its end");
/// `builds.log_max`
pub const LOG_MAX: Bound =
    bytes(64 * KIB, 64 * GIB, "a log should hold a failure's text, and must fit on the disk");
/// `builds.artifacts_max`
pub const ARTIFACTS_MAX: Bound = bytes(MIB, TIB, "artifacts must fit on the disk");
/// `builds.keep`
pub const KEEP: Bound =
    count(1, 100_000, "the last build is always kept, and each one kept takes disk space");
/// `builds.keep_age`, `caches.keep_age`, `log.vm_keep_age`, `api.source_keep_age`
pub const KEEP_AGE: Bound =
    millis(HOUR, 10 * YEAR, "what just ended is asked for, and nothing is kept for ever");
/// `runtime.image_keep_age`
pub const IMAGE_KEEP_AGE: Bound =
    millis(DAY, 10 * YEAR, "an image is pulled for hours, and the program counts its age in days");
/// `builds.keep_bytes`
pub const KEEP_BYTES: Bound = bytes(MIB, 1024 * TIB, "the last build is always kept, and no disk has more");
/// `caches.bytes_max`
pub const CACHES_BYTES_MAX: Bound = bytes(0, 1024 * TIB, "0 B saves no cache, and no disk has more");
/// `caches.entry_max`
pub const CACHE_ENTRY_MAX: Bound =
    bytes(KIB, TIB, "an empty folder takes some bytes, and it must fit on the disk");
/// `caches.timeout`
pub const CACHES_TIMEOUT: Bound =
    millis(SECOND, 2 * HOUR, "a cache needs some time, and a build holds its VM meanwhile");
/// `log.vm_keep`
pub const VM_KEEP: Bound =
    count(1, 100_000, "the last one is always kept, and each one kept takes disk space");
/// `log.vm_keep_bytes`
pub const VM_KEEP_BYTES: Bound =
    bytes(64 * KIB, TIB, "a log should hold a failure's text, and must fit on the disk");

/// `pool.*.warm`
pub const POOL_WARM: Bound = count(0, 512, "no host runs more VMs");
/// `pool.*.max`
pub const POOL_MAX: Bound = count(1, 512, "a pool without a VM serves nobody, and no host runs more");
/// `pool.*.cpu`
pub const POOL_CPU: Bound = count(1, 256, "a VM needs a core, and no host has more to give");
/// `pool.*.memory`
pub const POOL_MEMORY: Bound = bytes(256 * MIB, 4 * TIB, "with less no guest boots, and no host has more");
/// `pool.*.disk`
pub const POOL_DISK: Bound = bytes(GB, 65_535 * GB, "Tart counts disks in GB, up to 65535");
/// `pool.*.port`
pub const POOL_PORT: Bound = count(1, 65_535, "it is a TCP port");
/// `pool.*.boot_timeout`
pub const BOOT_TIMEOUT: Bound =
    millis(100, HOUR, "a guest needs some time to boot, and holds its slot while it does");
/// `pool.*.probe_timeout`
pub const PROBE_TIMEOUT: Bound =
    millis(100, 5 * MINUTE, "a guest needs some time to answer, and a build waits for the answer");
/// `pool.*.probe_interval`
pub const PROBE_INTERVAL: Bound =
    millis(100, HOUR, "each probe costs the guest some work, and a dead VM is found by the next one");
/// `pool.*.warmup_timeout`
pub const WARMUP_TIMEOUT: Bound = millis(100, 24 * HOUR, "the VM cannot be used while its warm-up runs");
/// `pool.*.resume_timeout`
pub const RESUME_TIMEOUT: Bound =
    millis(100, HOUR, "a guest needs some time to resume, and one that takes longer than a boot is no gain");
/// `pool.*.max_age`
pub const MAX_AGE: Bound =
    millis(SECOND, 30 * DAY, "a VM is used up when it is replaced, and clocks and leases go stale");

/// `controllers[].lanes`
pub const CONTROLLER_LANES: Bound = count(1, 64, "each is a worker that waits for a build, and holds one");
/// `controllers[].poll_interval`
pub const POLL_INTERVAL: Bound =
    millis(500, 10 * MINUTE, "a build waits for so long, and a controller forgets who does not ask");
/// `controllers[].heartbeat_interval`
pub const HEARTBEAT_INTERVAL: Bound =
    millis(500, 100 * SECOND, "a controller gives a build up after two minutes without one");

/// The largest configuration file that is read.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// The longest text of one line: a name, a path, a URL, an argument.
pub const TEXT_BYTES_MAX: usize = 4096;
/// The longest `pool.*.warmup`.
pub const WARMUP_BYTES_MAX: usize = 64 << 10;
/// The longest list: arguments, networks.
pub const LIST_MAX: usize = 256;
/// The longest name of an upload.
pub const UPLOAD_NAME_BYTES_MAX: usize = 64;
/// Uploads at most.
pub const UPLOADS_MAX: usize = 32;
/// Pipelines of an operator at most.
pub const PIPELINES_MAX: usize = 64;
/// The longest name of a pipeline.
pub const PIPELINE_NAME_BYTES_MAX: usize = 64;
/// Facts that a pool provides, and needs of a build.
pub const FACTS_MAX: usize = 32;
/// Controllers at most.
pub const CONTROLLERS_MAX: usize = 16;
/// Pools at most.
pub const POOLS_MAX: usize = 256;

/// The largest `.preheat.toml` that is read.
pub const PROJECT_FILE_BYTES_MAX: usize = 256 << 10;
/// The longest name of a project.
pub const PROJECT_NAME_BYTES_MAX: usize = 128;
/// Steps of one build.
pub const STEPS_MAX: usize = 256;
/// The longest name of a step.
pub const STEP_NAME_BYTES_MAX: usize = 128;
/// The longest command of a step; it goes to the guest's shell as it is.
pub const COMMAND_BYTES_MAX: usize = 128 << 10;
/// Variables of one build, and secrets of one build.
pub const VARIABLES_MAX: usize = 512;
/// The longest name of a variable or a secret.
pub const VARIABLE_NAME_BYTES_MAX: usize = 256;
/// The longest value of a variable or a secret: a certificate in base64 fits.
pub const VARIABLE_VALUE_BYTES_MAX: usize = 64 << 10;
/// Artifact globs of one build.
pub const ARTIFACTS_PER_BUILD_MAX: usize = 256;
/// Caches of one build: each costs the guest a few processes.
pub const CACHES_MAX: usize = 16;
/// Paths of one cache; they are part of a command.
pub const CACHE_PATHS_MAX: usize = 32;
/// The longest path of a cache: thirty-two of them fit into a command.
pub const CACHE_PATH_BYTES_MAX: usize = 512;
/// Beginnings of keys that one cache falls back to.
pub const RESTORE_KEYS_MAX: usize = 10;
/// Globs in the keys of all caches of one build: each is held against every name of a source.
pub const CACHE_GLOBS_MAX: usize = 64;
/// The longest key, its values in it: it is a line of the log.
pub const CACHE_KEY_BYTES_MAX: usize = 512;
