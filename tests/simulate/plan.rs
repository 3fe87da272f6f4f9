//! What a seed asks of a daemon: its configuration, the builds and when they come, and how each life ends.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use preheat::cache::shelf::{Content, Scope, Shelf};
use preheat::clock::UnixMillis;
use preheat::config::file::Env;
use preheat::config::load::{self, Inputs};
use preheat::config::{Home, Loaded, Mistakes};
use preheat::ids::BuildId;
use sha2::{Digest as _, Sha256};

use crate::dice::Dice;

/// How much of what.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Builds of one seed.
    pub builds: u64,
    /// The probability of a fault at each step.
    pub rate: f64,
}

/// A build, as its user knows it.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name, by which guests know it.
    pub project: String,
    pub pool: &'static str,
    pub arrives: Duration,
    /// The commands of its steps, and the time-out of each.
    pub steps: Vec<(String, Duration)>,
    pub artifacts: Vec<String>,
    /// It has a cache.
    pub cached: bool,
    pub retries: u16,
    /// Cancelled so long after it was accepted.
    pub cancel: Option<Duration>,
    /// The value of its `TOKEN`.
    pub secret: Option<String>,
    /// Somebody follows its log.
    pub followed: bool,
}

/// What each secret begins with, and nothing else.
pub const SECRET: &str = "s3cret-";

/// The glob that no guest has a file for.
pub const MISSING: &str = "missing.bin";

pub fn jobs(dice: &mut Dice, settings: Settings) -> Vec<Job> {
    let mut arrives = Duration::ZERO;
    (0..settings.builds)
        .map(|number| {
            // In bursts: most come with the one before.
            arrives += if dice.chance(0.5) { dice.millis(0, 200) } else { dice.millis(1000, 60_000) };
            job(dice, number, arrives)
        })
        .collect()
}

fn job(dice: &mut Dice, number: u64, arrives: Duration) -> Job {
    let secret = dice.chance(0.2).then(|| format!("{SECRET}{number}-{:x}", dice.roll()));
    let steps = (0..dice.between(1, 3)).map(|_| step(dice, secret.is_some())).collect();
    let mut artifacts: Vec<String> = Vec::new();
    if dice.chance(0.6) {
        artifacts.push("app.bin".into());
    }
    if dice.chance(0.03) {
        artifacts.push(MISSING.into());
    }
    Job {
        project: format!("job-{number}"),
        pool: if dice.chance(0.6) { "linux" } else { "mac" },
        arrives,
        steps,
        artifacts,
        cached: dice.chance(0.5),
        retries: dice.pick(&[0, 1, 2, 2, 3, 5]),
        cancel: dice.chance(0.06).then(|| dice.millis(0, 90_000)),
        secret,
        followed: dice.chance(0.3),
    }
}

/// What earlier builds of every second project left on the host's disk: a cache that says whose it is.
pub fn leave_caches(home: &Path, jobs: &[Job]) {
    let shelf = Shelf::open(Home::new(home.to_owned()).caches());
    for job in jobs.iter().filter(|job| job.cached).step_by(2) {
        let partial = shelf.begin().expect("a place");
        std::fs::write(partial.path(), &job.project).expect("written");
        let sha256: String = Sha256::digest(&job.project).iter().map(|byte| format!("{byte:02x}")).collect();
        let content = Content { bytes: job.project.len() as u64, sha256: &sha256 };
        let scope = Scope { project: &job.project, pool: job.pool, paths: &["cached".to_owned()] };
        shelf.keep(partial, content, &scope, "key-old", (BuildId(1), UnixMillis(1))).expect("kept");
    }
}

fn step(dice: &mut Dice, secret: bool) -> (String, Duration) {
    let mut command = String::new();
    for line in 0..dice.between(0, 4) {
        write!(command, "echo line {line} {}; ", dice.between(0, 999)).expect("a string");
        if secret && dice.chance(0.5) {
            command.push_str("echo it is $TOKEN, of all words; ");
        }
        if dice.chance(0.6) {
            write!(command, "sleep {}; ", dice.between(1, 20_000)).expect("a string");
        }
    }
    if dice.chance(0.05) {
        write!(command, "sleep {}; ", dice.between(60_000, 900_000)).expect("a string");
    }
    let code = if dice.chance(0.05) { dice.between(1, 3) } else { 0 };
    write!(command, "exit {code}").expect("a string");
    let timeout = if dice.chance(0.04) { dice.millis(500, 10_000) } else { Duration::from_secs(1800) };
    (command, timeout)
}

/// What no operator changes: VMs of the host, and of its pools.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub vms: u64,
    linux: u64,
    mac: u64,
}

pub const MACOS_GUESTS: usize = 2;

pub fn machine(dice: &mut Dice) -> Machine {
    let (linux, mac) = (dice.between(1, 3), dice.between(1, 2));
    Machine { vms: dice.between(1, linux + mac), linux, mac }
}

/// A configuration as an operator would write it.
pub fn config(dice: &mut Dice, machine: Machine) -> String {
    let Machine { vms, linux, mac } = machine;
    let (linux, mac) = (dice.between(1, linux), dice.between(1, mac));
    let linux_warm = dice.between(0, linux.min(vms));
    let mac_warm = dice.between(0, mac.min(vms - linux_warm));
    let warmup = if dice.chance(0.3) { "warmup = \"echo warm\"" } else { "" };
    format!(
        "[host]\nvms = {vms}\nmacos_guests = {MACOS_GUESTS}\nbuilds_max = {builds}\n\
         disk_free_min = \"64 MiB\"\ndisk_free_low = \"0 B\"\n\
         [stop]\ndrain_timeout = \"{drain}s\"\n\
         [builds]\nkeep = 100000\n\
         [pool.linux]\nimage = \"linux\"\nwarm = {linux_warm}\nmax = {linux}\n{warmup}\n\
         [pool.mac]\nimage = \"macos\"\nwarm = {mac_warm}\nmax = {mac}\nmax_age = \"{age}s\"\n\
         [[upload]]\nname = \"share\"\nkind = \"folder\"\npath = \"/nonexistent/share\"\n\
         [[upload]]\nname = \"store\"\nkind = \"folder\"\npath = \"/nonexistent/store\"\n",
        builds = dice.pick(&[5, 20, 1000]),
        drain = dice.pick(&[1, 10, 1200]),
        age = dice.pick(&[120, 600, 43_200]),
    )
}

/// Where an operator writes it.
pub fn file(home: &Path) -> PathBuf {
    home.join("preheat.toml")
}

/// Reads it as the daemon does.
pub fn read(home: &Path) -> Result<Loaded, Mistakes> {
    load::load(&Inputs {
        home: Home::new(home.to_owned()),
        file: Some(file(home)),
        hostname: String::new(),
        env: Env::from_iter([("HOME", home.as_os_str())]),
    })
}

/// How a life of the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// `kill -9` in the middle of the event with this number.
    KilledAt(u64),
    /// `kill -9` after so long.
    KilledAfter(Duration),
    /// It is told to stop after so long.
    Stopped(Duration),
    /// It is told to end after so long, drains and stops; some are killed so many events later.
    Ended(Duration, Option<u64>),
    /// When nothing is left to do.
    Drained,
}

/// The lives of one seed, the last of which has no faults.
pub fn lives(dice: &mut Dice) -> Vec<End> {
    let mut ends = Vec::new();
    for _ in 0..dice.between(0, 6) {
        ends.push(match dice.between(0, 9) {
            0 => End::Stopped(dice.millis(0, 300_000)),
            3 => {
                let cut = dice.chance(0.5).then(|| dice.between(1, 100));
                End::Ended(dice.millis(0, 300_000), cut)
            }
            1 => End::KilledAfter(dice.millis(0, 600_000)),
            2 => End::KilledAt(dice.between(1, 60)),
            _ => End::KilledAt(dice.between(1, 2500)),
        });
    }
    ends.push(End::Drained);
    ends
}
