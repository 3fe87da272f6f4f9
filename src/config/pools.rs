//! The pools: each key of a pool from its own section, else from `[pool_defaults]`, and what must hold between them.

use std::collections::BTreeMap;

use config::ValueKind;

use super::file::Table;
use super::found::{Found, Refusal, plain, variable_text};
use super::limits as bound;
use super::rules::{self, Folders, from_where};
use super::validate::{NONE, path};
use super::walk::{Section, Walk};
use super::{ByteSize, Config, Host, Network, Pool, Resolver};
use crate::ids::PoolName;
use crate::runtime::vm_name::{Parsed, VmName};

const DEFAULTS: &str = "pool_defaults";
const MIB: u64 = 1 << 20;
/// The word for "as the image has it".
pub const IMAGE: &str = "image";

/// Checks `[pool_defaults]` by itself: what is wrong there is told once, and not again for each pool.
pub fn defaults(walk: &mut Walk, table: Table, folders: &Folders) {
    let mut s = walk.section(DEFAULTS, table);
    let _ = s.text_if("image", IMAGE_ALLOWED, rules::image);
    let _ = shape(&mut s, folders, None);
    let _ = network(&mut s, None);
    let _ = provides(&mut s);
    s.end();
}

/// Every pool.
pub fn pools(
    mut section: Section<'_>,
    defaults: &Table,
    folders: &Folders,
    host: Option<&Host>,
) -> Option<BTreeMap<PoolName, Pool>> {
    let entries = section.entries();
    if entries.len() > bound::POOLS_MAX {
        let text = format!("found {} pools, allowed are {}", entries.len(), bound::POOLS_MAX);
        section.walk().wrong("pool", Refusal::says(text));
        return None;
    }
    let mut pools = Some(BTreeMap::new());
    for (name, value) in entries {
        let key = section.key(&name);
        let pool = named(section.walk(), &name, &key, value.kind, (defaults, folders, host));
        pools = pools.zip(pool).map(|(mut all, (name, pool))| {
            all.insert(name, pool);
            all
        });
    }
    pools
}

type Around<'a> = (&'a Table, &'a Folders, Option<&'a Host>);

fn named(
    walk: &mut Walk,
    name: &str,
    key: &str,
    kind: ValueKind,
    around: Around<'_>,
) -> Option<(PoolName, Pool)> {
    let (defaults, ..) = around;
    let parsed = name.parse::<PoolName>();
    if let Err(e) = &parsed {
        let refusal = Refusal::says(format!("the name of a pool is wrong: {e}"));
        let near = name.to_ascii_lowercase().replace('_', "-");
        let near = near.parse::<PoolName>().map(|near| format!("did you mean `{near}`?"));
        walk.wrong(key, near.into_iter().fold(refusal, Refusal::hint));
    }
    let ValueKind::Table(table) = kind else {
        let refusal = Refusal::says("allowed is a table with the keys of a pool");
        walk.wrong(
            key,
            refusal.hint(format!("keys of all pools belong in [{DEFAULTS}]; a pool is [pool.<name>]")),
        );
        return None;
    };
    let mut section = walk.section(key, table.clone()).with_base(DEFAULTS, defaults.clone());
    let pool = pool(&mut section, &table, around);
    section.end();
    Some((parsed.ok()?, pool?))
}

const IMAGE_ALLOWED: &str = "the name of an image, without spaces and not beginning with `-`";

fn pool(s: &mut Section<'_>, own: &Table, around: Around<'_>) -> Option<Pool> {
    let (defaults, folders, host) = around;
    let image = s.text("image", IMAGE_ALLOWED, rules::image);
    let shaped = shape(s, folders, Some(host));
    let network = network(s, Some((own, defaults)));
    let provides = provides(s);
    Some(Pool { image: image?, network: network?, provides: provides?, ..shaped? })
}

/// Every key but `image` and `network`, which the defaults read differently. `host` is there for a pool, and not for the
/// defaults: what must hold between keys must hold in each pool.
fn shape(s: &mut Section<'_>, folders: &Folders, host: Option<Option<&Host>>) -> Option<Pool> {
    let warm = s.count("warm", &bound::POOL_WARM);
    let max = s.count("max", &bound::POOL_MAX);
    let cpu = s.count_or("cpu", &bound::POOL_CPU, IMAGE);
    let memory = s.size_or("memory", &bound::POOL_MEMORY, MIB, IMAGE);
    let disk = s.size_or("disk", &bound::POOL_DISK, bound::GB, IMAGE);
    let user = s.text("user", "a name without spaces, `@` and `:`, not beginning with `-`", rules::user);
    let key = path(s, "key", folders);
    let port = s.count("port", &bound::POOL_PORT);
    let boot_timeout = s.duration("boot_timeout", &bound::BOOT_TIMEOUT);
    let probe_timeout = s.duration("probe_timeout", &bound::PROBE_TIMEOUT);
    let probe_interval = s.duration("probe_interval", &bound::PROBE_INTERVAL);
    let warmup = s.text("warmup", "a shell script, or \"none\"", rules::script);
    let warmup_timeout = s.duration("warmup_timeout", &bound::WARMUP_TIMEOUT);
    let max_age = s.duration("max_age", &bound::MAX_AGE);
    let resume = s.flag("resume");
    let resume_timeout = s.duration("resume_timeout", &bound::RESUME_TIMEOUT);
    let run_args = s.list("run_args", "an argument of `tart run`", rules::run_arg);
    if let Some(host) = host {
        cross_checks(s, (warm, max), (cpu.flatten(), memory.flatten()), host);
    }
    Some(Pool {
        image: String::new(),
        generation: None,
        network: Network::Nat,
        provides: BTreeMap::new(),
        warm: warm?,
        max: max?,
        cpu: cpu?,
        memory: memory?,
        disk: disk?,
        user: user?,
        key: key?,
        port: port?,
        boot_timeout: boot_timeout?,
        probe_timeout: probe_timeout?,
        probe_interval: probe_interval?,
        warmup: Some(warmup?).filter(|script| script != NONE),
        warmup_timeout: warmup_timeout?,
        max_age: max_age?,
        run_args: run_args?,
        resume: resume?,
        resume_timeout: resume_timeout?,
    })
}

/// What a pool says of its VMs: names that an operator chooses. It is shown as it was written, as one.
fn provides(s: &mut Section<'_>) -> Option<BTreeMap<String, String>> {
    const ALLOWED: &str =
        "a table of names and what there is of each, as { xcode = \"26.2\", macos = \"tahoe\" }";
    let read = |found: &Found| {
        let ValueKind::Table(table) = &found.kind else { return Err(Refusal::usual()) };
        if table.len() > bound::FACTS_MAX {
            let text = format!("found {} facts, allowed are {}", table.len(), bound::FACTS_MAX);
            return Err(Refusal::says(text));
        }
        let fact = |(name, value): (&String, &config::Value)| {
            let text = variable_text(value).ok_or_else(Refusal::usual)?;
            plain(&text)?;
            Ok((name.clone(), text))
        };
        table.iter().map(fact).collect::<Result<BTreeMap<_, _>, Refusal>>()
    };
    let write = |facts: &BTreeMap<String, String>| {
        toml::Value::Table(facts.iter().map(|(name, fact)| (name.clone(), fact.as_str().into())).collect())
    };
    s.required("provides", ALLOWED, read, write)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nat,
    Softnet,
    Bridged,
}

const MODES: [(&str, Mode); 3] = [("nat", Mode::Nat), ("softnet", Mode::Softnet), ("bridged", Mode::Bridged)];
const RESOLVERS: [(&str, Resolver); 3] =
    [("dhcp", Resolver::Dhcp), ("arp", Resolver::Arp), ("agent", Resolver::Agent)];
const KEYS_OF_MODES: [(&str, Mode); 4] = [
    ("allow", Mode::Softnet),
    ("block", Mode::Softnet),
    ("interface", Mode::Bridged),
    ("resolver", Mode::Bridged),
];

/// The network of a pool. One that says its mode stands for itself; one that does not adds to the default's.
fn network(s: &mut Section<'_>, layers: Option<(&Table, &Table)>) -> Option<Network> {
    let key = s.key("network");
    let (Some(mut table), false) = s.raw_table("network", "{ mode = \"softnet\" }") else { return None };
    let mut base = Table::new();
    if let Some((own, defaults)) = layers
        && !table.contains_key("mode")
        && own.contains_key("network")
        && let Some(ValueKind::Table(default)) = defaults.get("network").map(|v| v.kind.clone())
    {
        base = default;
    }
    let inherited = layers.is_some_and(|(own, _)| !own.contains_key("network"));
    if inherited {
        base = std::mem::take(&mut table);
    }
    drop_outranked(s.walk(), &key, &mut table);
    drop_outranked(s.walk(), &format!("{DEFAULTS}.network"), &mut base);
    let path = format!("{DEFAULTS}.network");
    let mut n = s.walk().section(&key, table).with_base(&path, base);
    if inherited {
        n.forgive_missing();
    }
    let mode = n.choice("mode", &MODES, None);
    let Some(mode) = mode else {
        n.silently();
        return None;
    };
    let network = of_mode(&mut n, mode);
    misplaced(&mut n, mode);
    n.end();
    network
}

/// Keys of another mode that a lower layer set belong to the network that a higher layer replaced.
fn drop_outranked(walk: &Walk, key: &str, table: &mut Table) {
    let mode = walk.origin(&format!("{key}.mode")).rank();
    let chosen = table.get("mode").and_then(|v| v.clone().into_string().ok());
    let chosen = MODES.iter().find(|(word, _)| Some(*word) == chosen.as_deref()).map(|(_, mode)| *mode);
    for (name, of) in KEYS_OF_MODES {
        let below = walk.origin(&format!("{key}.{name}")).rank() < mode;
        if chosen.is_some_and(|chosen| chosen != of) && below {
            table.remove(name);
        }
    }
}

fn of_mode(n: &mut Section<'_>, mode: Mode) -> Option<Network> {
    match mode {
        Mode::Nat => Some(Network::Nat),
        Mode::Softnet => {
            let allow = n.list("allow", "an IPv4 network such as \"10.0.0.0/8\"", rules::cidr);
            let block = n.list("block", "an IPv4 network such as \"10.0.0.0/8\"", rules::cidr);
            Some(Network::Softnet { allow: allow?, block: block? })
        }
        Mode::Bridged => {
            let interface =
                n.text("interface", "the name of an interface, such as \"en0\"", rules::interface);
            let resolver = n.choice("resolver", &RESOLVERS, Some(Resolver::Dhcp));
            Some(Network::Bridged { interface: interface?, resolver: resolver? })
        }
    }
}

/// Keys of another mode.
fn misplaced(n: &mut Section<'_>, mode: Mode) {
    for (name, of) in KEYS_OF_MODES {
        if of != mode && n.has(name) {
            let word = MODES.iter().find(|(_, m)| *m == of).map_or("", |(word, _)| *word);
            let key = n.key(name);
            n.knows(name);
            let refusal = Refusal::says(format!("is a key of mode \"{word}\" only"));
            n.walk().wrong(&key, refusal.hint(format!("add mode = \"{word}\", or take it out")));
        }
    }
}

/// What must hold between the keys of a pool, and between a pool and its host.
fn cross_checks(
    s: &mut Section<'_>,
    (warm, max): (Option<u16>, Option<u16>),
    (cpu, memory): (Option<u16>, Option<ByteSize>),
    host: Option<&Host>,
) {
    let mut wrong = |name: &str, text: String, hint: &str| {
        // Said where the pool's value was set, or at the pool itself when it was not.
        let key = s.key(name);
        s.walk().wrong(&key, Refusal::says(text).hint(hint));
    };
    if let (Some(warm), Some(max)) = (warm, max)
        && warm > max
    {
        let text = format!("found {warm}, allowed is at most `max`, which is {max}");
        wrong("warm", text, "raise `max`, or lower `warm`");
    }
    if let (Some(cpu), Some(cores)) = (cpu, host.and_then(|h| h.cores))
        && cpu > cores
    {
        let text = format!("found {cpu}, allowed is at most `host.cores`, which is {cores}");
        wrong("cpu", text, "no VM of this pool could ever start: raise `host.cores`, or lower `cpu`");
    }
    if let (Some(memory), Some(all)) = (memory, host.and_then(|h| h.memory))
        && memory > all
    {
        let text = format!("found \"{memory}\", allowed is at most `host.memory`, which is \"{all}\"");
        wrong("memory", text, "no VM of this pool could ever start: raise `host.memory`, or lower `memory`");
    }
}

/// What is allowed and surely not meant.
pub fn warn(walk: &mut Walk, config: &Config) {
    if config.pools.is_empty() {
        let refusal = Refusal::says("there is none, so no build can run");
        walk.warn("pool", refusal.hint("write a section [pool.<name>] with an `image` into preheat.toml"));
    }
    for (name, pool) in &config.pools {
        warn_of_pool(walk, &format!("pool.{name}"), pool, &config.host);
    }
    let host = &config.host;
    let warm: u64 = config.pools.values().map(|p| u64::from(p.warm)).sum();
    if warm > u64::from(host.vms) {
        let text =
            format!("is {}, and the pools keep {warm} VMs warm: they can never be warm at once", host.vms);
        walk.warn("host.vms", Refusal::says(text).hint("raise `host.vms`, or lower `warm` of a pool"));
    }
    let cores: u64 = config.pools.values().map(|p| u64::from(p.warm) * u64::from(p.cpu.unwrap_or(0))).sum();
    if let Some(all) = host.cores
        && cores > u64::from(all)
    {
        let text = format!(
            "is {all}, and the warm VMs of all pools have {cores} cores: they can never be warm at once"
        );
        walk.warn("host.cores", Refusal::says(text).hint("raise `host.cores`, or lower `warm` of a pool"));
    }
    let memory = |p: &Pool| p.memory.map_or(0, |m| m.0).saturating_mul(u64::from(p.warm));
    let memory = config.pools.values().map(memory).fold(0, u64::saturating_add);
    if let Some(all) = host.memory
        && memory > all.0
    {
        let used = ByteSize(memory);
        let text =
            format!("is {all}, and the warm VMs of all pools have {used}: they can never be warm at once");
        walk.warn("host.memory", Refusal::says(text).hint("raise `host.memory`, or lower `warm` of a pool"));
    }
}

fn warn_of_pool(walk: &mut Walk, key: &str, pool: &Pool, host: &Host) {
    if pool.max > host.vms {
        let place = from_where(&walk.effective("host.vms"));
        let text =
            format!("is {}, and `host.vms` is {} ({place}): so many never run at once", pool.max, host.vms);
        walk.warn(&format!("{key}.max"), Refusal::says(text));
    }
    if pool.probe_timeout > pool.probe_interval {
        let text = "is longer than `probe_interval`: a slow VM is always being probed";
        walk.warn(&format!("{key}.probe_timeout"), Refusal::says(text));
    }
    if pool.max_age <= pool.boot_timeout {
        let text = "is no longer than `boot_timeout`: a VM may be too old when it is ready";
        walk.warn(&format!("{key}.max_age"), Refusal::says(text));
    }
    if pool.resume && pool.shares_a_folder() {
        let text = "shares a folder, so the state of a VM cannot be saved and each is booted";
        let refusal = Refusal::says(text).hint("set `resume = false`, or take `--dir` out");
        walk.warn(&format!("{key}.run_args"), refusal);
    }
    if VmName::parse(&pool.image) == Parsed::Malformed {
        let text = "begins like the names of our VMs, and will be reported as a malformed one";
        walk.warn(&format!("{key}.image"), Refusal::says(text).hint("rename the image: `tart rename`"));
    }
}
