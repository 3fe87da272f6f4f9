//! Failures on request: the file named by `TART_QEMU_FAULTS` scripts them per verb and VM.
//!
//! ```toml
//! [[fault]]
//! verb = "clone"        # or a list of verbs; absent: every verb
//! vm = "preheat-*"      # glob over the VM's name (a clone's new name); absent: every VM
//! after = 1             # let the first one pass
//! times = 2             # then strike twice; absent: for ever
//! kind = "exit"         # hang | exit | disk-full | crash | freeze | no-ip | stale-ip | refuse-restore | leak-slot | slow-boot
//! code = 1              # exit
//! text = "boom"         # exit
//! seconds = 3           # crash, freeze: so long after the guest's network is up; slow-boot: so much later
//! ip = "127.0.0.99"     # stale-ip
//! ```
//!
//! Counters live beside the file (`<file>.counters`), so that they hold across processes.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::{Failure, Outcome};
use crate::lock;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Hang,
    Exit,
    DiskFull,
    Crash,
    Freeze,
    NoIp,
    StaleIp,
    RefuseRestore,
    LeakSlot,
    SlowBoot,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Verbs {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    verb: Option<Verbs>,
    vm: Option<String>,
    kind: Kind,
    #[serde(default)]
    after: u64,
    times: Option<u64>,
    code: Option<u8>,
    text: Option<String>,
    #[serde(default)]
    seconds: f64,
    ip: Option<Ipv4Addr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    #[serde(default)]
    fault: Vec<Entry>,
}

/// A fault that strikes now.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub code: u8,
    pub text: String,
    pub seconds: f64,
    pub ip: Option<Ipv4Addr>,
}

pub struct Faults {
    path: PathBuf,
    entries: Vec<(String, Entry)>,
}

const VERBS: &[&str] = &[
    "clone", "run", "stop", "suspend", "delete", "list", "get", "set", "ip", "rename", "pull", "exec", "fqn",
    "prune",
];

impl Faults {
    /// No file, no faults. A file with a mistake in it is refused, whatever the verb.
    pub fn load() -> Outcome<Option<Self>> {
        let Some(path) = std::env::var_os("TART_QEMU_FAULTS").filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let path = PathBuf::from(path);
        let bad = |why: String| Failure::Faults(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(&path).map_err(|error| bad(error.to_string()))?;
        let script: Script = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let mut entries = Vec::new();
        for (index, entry) in script.fault.into_iter().enumerate() {
            check(&entry).map_err(|why| bad(format!("fault {}: {why}", index + 1)))?;
            let key = Sha256::digest(format!("{index} {entry:?}"));
            entries.push((key.iter().take(8).map(|byte| format!("{byte:02x}")).collect(), entry));
        }
        Ok(Some(Self { path, entries }))
    }

    /// The faults that strike this verb on this VM, each counted.
    pub fn strike(&self, verb: &str, vm: &str) -> Outcome<Vec<Fault>> {
        let fail = |error: std::io::Error| Failure::Faults(format!("counters: {error}"));
        let counters = PathBuf::from(format!("{}.counters", self.path.display()));
        let _held = lock::exclusive(&self.path).map_err(fail)?;
        let mut counts = read_counters(&counters);
        let mut struck = Vec::new();
        for (key, entry) in &self.entries {
            if !matches(entry, verb, vm) {
                continue;
            }
            let seen = counts.entry(key.clone()).or_insert(0);
            *seen += 1;
            if *seen > entry.after && entry.times.is_none_or(|times| *seen <= entry.after + times) {
                struck.push(Fault {
                    kind: entry.kind,
                    code: entry.code.unwrap_or(1),
                    text: entry.text.clone().unwrap_or_default(),
                    seconds: entry.seconds,
                    ip: entry.ip,
                });
            }
        }
        fs::write(&counters, serde_json::to_vec(&counts).expect("a map serialises")).map_err(fail)?;
        Ok(struck)
    }
}

fn read_counters(path: &Path) -> BTreeMap<String, u64> {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn check(entry: &Entry) -> Result<(), String> {
    let verbs: &[String] = match &entry.verb {
        None => &[],
        Some(Verbs::One(verb)) => std::slice::from_ref(verb),
        Some(Verbs::Many(verbs)) => verbs,
    };
    if let Some(unknown) = verbs.iter().find(|verb| !VERBS.contains(&verb.as_str())) {
        return Err(format!("unknown verb `{unknown}`; one of {}", VERBS.join(", ")));
    }
    if !(0.0..=86_400.0).contains(&entry.seconds) {
        return Err(format!("seconds = {} is out of range; 0 to 86400", entry.seconds));
    }
    if let Some(pattern) = &entry.vm {
        globset::Glob::new(pattern).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn matches(entry: &Entry, verb: &str, vm: &str) -> bool {
    let verb_fits = match &entry.verb {
        None => true,
        Some(Verbs::One(wanted)) => wanted == verb,
        Some(Verbs::Many(wanted)) => wanted.iter().any(|wanted| wanted == verb),
    };
    let pattern = entry.vm.as_deref().unwrap_or("*");
    verb_fits && globset::Glob::new(pattern).is_ok_and(|glob| glob.compile_matcher().is_match(vm))
}
