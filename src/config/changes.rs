//! What differs between two configurations, and what it takes to apply it. Every field is taken apart by name, so that a new
//! key does not compile until somebody has decided.

use super::{Api, Builds, Caches, Config, Host, Log, Network, Pool, RuntimeConfig, Stop, VerbDeadlines};
use crate::ids::PoolName;

/// What it takes to apply a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Applies {
    /// The next decision follows it.
    Live,
    /// Idle VMs of the pool are replaced; VMs in use end as they began.
    NewVms,
    /// The daemon must be restarted.
    Restart,
}

impl Applies {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::NewVms => "new_vms",
            Self::Restart => "restart",
        }
    }
}

/// One key that differs; [`super::Loaded::value`] has what it was and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    pub applies: Applies,
    /// The pool, where it is about one.
    pub pool: Option<PoolName>,
}

/// Everything that differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub changed: Vec<Change>,
    pub pools_added: Vec<PoolName>,
    /// Their idle VMs go at once, those in use when their build is over.
    pub pools_removed: Vec<PoolName>,
}

impl Changes {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.pools_added.is_empty() && self.pools_removed.is_empty()
    }

    /// Keys that do not apply before the daemon is restarted.
    pub fn need_restart(&self) -> impl Iterator<Item = &Change> {
        self.changed.iter().filter(|c| c.applies == Applies::Restart)
    }

    /// Whether a key, or what is below it, does not apply before the daemon is restarted.
    pub fn is_held_back(&self, key: &str) -> bool {
        self.need_restart().any(|c| {
            key.strip_prefix(&c.key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    /// Pools whose idle VMs must be replaced, each once.
    pub fn pools_to_roll(&self) -> Vec<PoolName> {
        let rolled = self.changed.iter().filter(|c| c.applies == Applies::NewVms);
        let mut pools: Vec<PoolName> = rolled.filter_map(|c| c.pool.clone()).collect();
        pools.dedup();
        pools
    }

    fn note<T: PartialEq>(&mut self, at: &str, name: &str, sides: (&T, &T), applies: Applies) {
        let (old, new) = sides;
        if old != new {
            let key = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
            self.changed.push(Change { key, applies, pool: None });
        }
    }
}

/// Compares two configurations.
pub fn diff(old: &Config, new: &Config) -> Changes {
    use Applies::{Live, Restart};
    let mut changes = Changes::default();
    let Config {
        home,
        host,
        runtime,
        api,
        builds,
        caches,
        stop,
        pools,
        pipelines,
        uploads,
        controllers,
        log,
    } = old;
    changes.note("", "home", (home, &new.home), Restart);
    of_host(&mut changes, host, &new.host);
    of_runtime(&mut changes, runtime, &new.runtime);
    let Api { listen, source_max, source_keep_bytes, source_keep_age, token_file } = api;
    changes.note("api", "listen", (listen, &new.api.listen), Restart);
    changes.note("api", "source_max", (source_max, &new.api.source_max), Live);
    changes.note("api", "source_keep_bytes", (source_keep_bytes, &new.api.source_keep_bytes), Live);
    changes.note("api", "source_keep_age", (source_keep_age, &new.api.source_keep_age), Live);
    changes.note("api", "token_file", (token_file, &new.api.token_file), Restart);
    of_builds(&mut changes, builds, &new.builds);
    of_caches(&mut changes, caches, &new.caches);
    let Stop { drain_timeout } = stop;
    changes.note("stop", "drain_timeout", (drain_timeout, &new.stop.drain_timeout), Live);
    changes.note("", "pipelines", (pipelines, &new.pipelines), Live);
    changes.note("", "upload", (uploads, &new.uploads), Live);
    // A lane has a build in hand for an hour, and is a worker that somebody else counts on.
    changes.note("", "controllers", (controllers, &new.controllers), Restart);
    of_log(&mut changes, log, &new.log);
    for (name, pool) in pools {
        match new.pools.get(name) {
            Some(now) => of_pool(&mut changes, name, pool, now),
            None => changes.pools_removed.push(name.clone()),
        }
    }
    changes.pools_added = new.pools.keys().filter(|name| !pools.contains_key(name)).cloned().collect();
    changes
}

/// The configuration that is put into force when `new` was read while `old` is: what needs a restart stays as it was.
pub fn held_back(old: &Config, new: Config) -> Config {
    let mut now = new;
    now.home.clone_from(&old.home);
    now.runtime.program.clone_from(&old.runtime.program);
    now.runtime.tart_home.clone_from(&old.runtime.tart_home);
    now.api.listen = old.api.listen;
    now.api.token_file.clone_from(&old.api.token_file);
    now.log.json = old.log.json;
    now.log.file.clone_from(&old.log.file);
    now.controllers.clone_from(&old.controllers);
    now
}

fn of_log(changes: &mut Changes, old: &Log, new: &Log) {
    let Log { filter, json, file, vm_keep, vm_keep_age, vm_keep_bytes } = old;
    changes.note("log", "filter", (filter, &new.filter), Applies::Live);
    changes.note("log", "json", (json, &new.json), Applies::Restart);
    changes.note("log", "file", (file, &new.file), Applies::Restart);
    changes.note("log", "vm_keep", (vm_keep, &new.vm_keep), Applies::Live);
    changes.note("log", "vm_keep_age", (vm_keep_age, &new.vm_keep_age), Applies::Live);
    changes.note("log", "vm_keep_bytes", (vm_keep_bytes, &new.vm_keep_bytes), Applies::Live);
}

fn of_host(changes: &mut Changes, old: &Host, new: &Host) {
    let Host { vms, macos_guests, cores, memory, disk_free_min, disk_free_low, builds_max } = old;
    changes.note("host", "vms", (vms, &new.vms), Applies::Live);
    changes.note("host", "macos_guests", (macos_guests, &new.macos_guests), Applies::Live);
    changes.note("host", "cores", (cores, &new.cores), Applies::Live);
    changes.note("host", "memory", (memory, &new.memory), Applies::Live);
    changes.note("host", "disk_free_min", (disk_free_min, &new.disk_free_min), Applies::Live);
    changes.note("host", "disk_free_low", (disk_free_low, &new.disk_free_low), Applies::Live);
    changes.note("host", "builds_max", (builds_max, &new.builds_max), Applies::Live);
}

fn of_runtime(changes: &mut Changes, old: &RuntimeConfig, new: &RuntimeConfig) {
    let RuntimeConfig { program, tart_home, image_keep_age, deadlines } = old;
    changes.note("runtime", "image_keep_age", (image_keep_age, &new.image_keep_age), Applies::Live);
    changes.note("runtime", "program", (program, &new.program), Applies::Restart);
    changes.note("runtime", "tart_home", (tart_home, &new.tart_home), Applies::Restart);
    let VerbDeadlines { clone, set, stop, delete, query } = deadlines;
    let (at, new) = ("runtime.deadlines", &new.deadlines);
    changes.note(at, "clone", (clone, &new.clone), Applies::Live);
    changes.note(at, "set", (set, &new.set), Applies::Live);
    changes.note(at, "stop", (stop, &new.stop), Applies::Live);
    changes.note(at, "delete", (delete, &new.delete), Applies::Live);
    changes.note(at, "query", (query, &new.query), Applies::Live);
}

fn of_builds(changes: &mut Changes, old: &Builds, new: &Builds) {
    let Builds {
        timeout,
        step_timeout,
        retries,
        kill_grace,
        guest_health,
        log_max,
        artifacts_max,
        keep,
        keep_age,
        keep_bytes,
    } = old;
    changes.note("builds", "timeout", (timeout, &new.timeout), Applies::Live);
    changes.note("builds", "step_timeout", (step_timeout, &new.step_timeout), Applies::Live);
    changes.note("builds", "retries", (retries, &new.retries), Applies::Live);
    changes.note("builds", "kill_grace", (kill_grace, &new.kill_grace), Applies::Live);
    changes.note("builds", "guest_health", (guest_health, &new.guest_health), Applies::Live);
    changes.note("builds", "log_max", (log_max, &new.log_max), Applies::Live);
    changes.note("builds", "artifacts_max", (artifacts_max, &new.artifacts_max), Applies::Live);
    changes.note("builds", "keep", (keep, &new.keep), Applies::Live);
    changes.note("builds", "keep_age", (keep_age, &new.keep_age), Applies::Live);
    changes.note("builds", "keep_bytes", (keep_bytes, &new.keep_bytes), Applies::Live);
}

fn of_caches(changes: &mut Changes, old: &Caches, new: &Caches) {
    let Caches { bytes_max, entry_max, keep_age, timeout } = old;
    changes.note("caches", "bytes_max", (bytes_max, &new.bytes_max), Applies::Live);
    changes.note("caches", "entry_max", (entry_max, &new.entry_max), Applies::Live);
    changes.note("caches", "keep_age", (keep_age, &new.keep_age), Applies::Live);
    changes.note("caches", "timeout", (timeout, &new.timeout), Applies::Live);
}

/// What a VM is made of needs new VMs; what is decided about VMs is live.
fn of_pool(changes: &mut Changes, name: &PoolName, old: &Pool, new: &Pool) {
    use Applies::{Live, NewVms};
    let at = &format!("pool.{name}");
    let before = changes.changed.len();
    let Pool { image, warm, max, cpu, memory, disk, user, key, port, network, provides, .. } = old;
    changes.note(at, "image", (image, &new.image), NewVms);
    changes.note(at, "warm", (warm, &new.warm), Live);
    changes.note(at, "max", (max, &new.max), Live);
    changes.note(at, "cpu", (cpu, &new.cpu), NewVms);
    changes.note(at, "memory", (memory, &new.memory), NewVms);
    changes.note(at, "disk", (disk, &new.disk), NewVms);
    changes.note(at, "user", (user, &new.user), NewVms);
    changes.note(at, "key", (key, &new.key), NewVms);
    changes.note(at, "port", (port, &new.port), NewVms);
    changes.note(at, "network", (network, &new.network), network_applies(network, &new.network));
    changes.note(at, "provides", (provides, &new.provides), Live);
    of_pool_times(changes, at, old, new);
    for change in changes.changed.iter_mut().skip(before) {
        change.pool = Some(name.clone());
    }
}

fn of_pool_times(changes: &mut Changes, at: &str, old: &Pool, new: &Pool) {
    use Applies::{Live, NewVms};
    let Pool {
        image: _,
        // Chosen, and not configured: `supervisor::images` rolls the pool.
        generation: _,
        warm: _,
        max: _,
        cpu: _,
        memory: _,
        disk: _,
        user: _,
        key: _,
        port: _,
        network: _,
        provides: _,
        boot_timeout,
        probe_timeout,
        probe_interval,
        warmup,
        warmup_timeout,
        max_age,
        run_args,
        resume,
        resume_timeout,
    } = old;
    changes.note(at, "boot_timeout", (boot_timeout, &new.boot_timeout), Live);
    changes.note(at, "probe_timeout", (probe_timeout, &new.probe_timeout), Live);
    changes.note(at, "probe_interval", (probe_interval, &new.probe_interval), Live);
    changes.note(at, "warmup", (warmup, &new.warmup), NewVms);
    changes.note(at, "warmup_timeout", (warmup_timeout, &new.warmup_timeout), Live);
    changes.note(at, "max_age", (max_age, &new.max_age), Live);
    changes.note(at, "run_args", (run_args, &new.run_args), NewVms);
    changes.note(at, "resume", (resume, &new.resume), NewVms);
    changes.note(at, "resume_timeout", (resume_timeout, &new.resume_timeout), Live);
}

/// How an address is found concerns only VMs that have none yet.
fn network_applies(old: &Network, new: &Network) -> Applies {
    match (old, new) {
        (Network::Bridged { interface: a, .. }, Network::Bridged { interface: b, .. }) if a == b => {
            Applies::Live
        }
        (Network::Nat | Network::Softnet { .. } | Network::Bridged { .. }, _) => Applies::NewVms,
    }
}
