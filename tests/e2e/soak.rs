//! Builds by the hundred while the daemon and its guests are killed at random: `tests/soak` runs this, with a count, a rate
//! and a seed. Each build must end in one honest result, and nothing may be left over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use preheat::api::wire::{BuildState, BuildView, LogLine, LogStream};
use preheat::build::spec::BuildResult;
use preheat::clock::Deadline;
use preheat::ids::RunId;

use crate::house::{House, Plan, err, out, until, wait_for};
use crate::projects::tiny;

/// Submitted and not yet over, at most: two run, the others wait.
const AT_ONCE: usize = 6;
/// A line every tenth of a second, so that a kill falls between two of them.
const LINES: usize = 20;
/// The exit code of the builds that fail by themselves.
const OWN_FAILURE: i32 = 3;
/// For one build, from its submission to its end: kills on the way cost it attempts.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);

/// A number from the environment, or a default.
fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")))
}

/// Numbers from a seed (splitmix64), so that a run can be repeated as far as a real machine allows.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }
}

/// What a build is to do, and so how it must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    TwoSteps,
    Artifact,
    FailsItself,
}

impl Kind {
    fn any(dice: &mut Dice) -> Self {
        [Self::Plain, Self::TwoSteps, Self::Artifact, Self::FailsItself]
            [usize::try_from(dice.below(4)).expect("small")]
    }

    fn arguments(self) -> Vec<String> {
        let count = |from: usize| {
            format!("for i in $(seq {from} {}); do echo line $i; sleep 0.1; done", from + LINES - 1)
        };
        let steps = match self {
            Self::Plain => vec![count(1)],
            Self::TwoSteps => vec![count(1), count(1 + LINES)],
            Self::Artifact => vec![format!("{}; mkdir -p out; seq 1 1000 > out/numbers", count(1))],
            Self::FailsItself => vec![format!("{}; exit {OWN_FAILURE}", count(1))],
        };
        let mut arguments: Vec<String> =
            steps.into_iter().flat_map(|step| ["--step".to_owned(), step]).collect();
        if self == Self::Artifact {
            arguments.extend(["--artifact", "out/*"].map(str::to_owned));
        }
        arguments
    }

    fn lines(self) -> Vec<String> {
        let steps = if self == Self::TwoSteps { 2 } else { 1 };
        (1..=LINES * steps).map(|n| format!("line {n}")).collect()
    }

    fn result(self) -> BuildResult {
        if self == Self::FailsItself { BuildResult::Failure } else { BuildResult::Success }
    }
}

/// What was done to the house.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kill {
    Daemon,
    Emulator,
    Owner,
    Freeze,
    Connection,
}

/// What the run was and what it came to.
#[derive(Debug, Default)]
struct Tally {
    kills: BTreeMap<Kill, usize>,
    results: BTreeMap<String, usize>,
    attempts: usize,
    reattached: usize,
}

/// Everything that is shared by the one who submits and the one who kills.
struct Soak {
    house: House,
    share: PathBuf,
    submitted: Mutex<BTreeMap<u64, Kind>>,
    done: AtomicBool,
}

#[test]
#[ignore = "takes an hour: tests/soak runs it"]
fn builds_end_in_one_honest_result_while_the_daemon_and_guests_are_killed() {
    let (builds, every, seed) = (asked("SOAK_BUILDS", 200), asked("SOAK_EVERY", 20), asked("SOAK_SEED", 1));
    let soak = Soak::open();
    let mut dice = Dice(seed);
    let submissions = dice.below(u64::MAX);
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        scope.spawn(|| soak.submit_all(usize::try_from(builds).expect("a count"), Dice(submissions)));
        soak.kill_until_done(Duration::from_secs(every), &mut dice, &mut tally);
    });
    soak.settle();
    soak.judge(&mut tally);
    let mut report = String::new();
    for (kill, count) in &tally.kills {
        write!(report, "{kill:?} {count}, ").ok();
    }
    let text = format!(
        "soak: {builds} builds, seed {seed}; kills: {report}results: {:?}; attempts: {}; went on in their VM: {}\n",
        tally.results, tally.attempts, tally.reattached
    );
    std::io::stderr().write_all(text.as_bytes()).expect("said");
}

impl Soak {
    fn open() -> Self {
        let house = Plan::pool(2, 2).and("probe_timeout = \"10s\"\n").build();
        let share = house.dir().join("share");
        std::fs::create_dir(&share).expect("made");
        house.configure(&format!(
            "[pool.linux]\nimage = \"linux\"\nwarm = 2\nmax = 2\nport = 2222\n[builds]\nretries = 10\nkeep = 10000\n\
             [[upload]]\nname = \"share\"\nkind = \"folder\"\npath = \"{}\"\n",
            share.display()
        ));
        let cloned = house.tart(&["clone", "linux", "mine"]);
        assert!(cloned.status.success(), "{}", err(&cloned));
        house.start();
        house.whole();
        Self { house, share, submitted: Mutex::default(), done: AtomicBool::new(false) }
    }

    fn known(&self) -> BTreeMap<u64, Kind> {
        self.submitted.lock().expect("whole").clone()
    }

    /// The journal's view, or `None` while no daemon answers.
    fn look(&self, id: u64) -> Option<BuildView> {
        let url = format!("{}/api/v1/builds/{id}", self.house.url());
        let answer = wait_for(async { reqwest::get(url).await?.error_for_status()?.text().await }).ok()?;
        serde_json::from_str(&answer).ok()
    }

    fn submit_all(&self, builds: usize, mut dice: Dice) {
        let project = tiny(self.house.dir());
        let mut open: BTreeMap<u64, Deadline> = BTreeMap::new();
        while self.known().len() < builds || !open.is_empty() {
            open.retain(|id, deadline| {
                assert!(!deadline.left().is_zero(), "build {id} does not end: {:?}", self.look(*id));
                self.look(*id).is_none_or(|view| view.result.is_none())
            });
            if self.known().len() < builds && open.len() < AT_ONCE {
                let kind = Kind::any(&mut dice);
                if let Some(id) = self.submit(&project, kind) {
                    self.submitted.lock().expect("whole").insert(id, kind);
                    open.insert(id, Deadline::after(BUILD_LIMIT));
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        self.done.store(true, Ordering::SeqCst);
    }

    /// `None` when the daemon was not there, or went away before it answered.
    fn submit(&self, project: &str, kind: Kind) -> Option<u64> {
        let arguments = kind.arguments();
        let all: Vec<&str> = ["submit", project, "--pool", "linux"]
            .into_iter()
            .chain(arguments.iter().map(String::as_str))
            .collect();
        let output = self.house.preheat(&all);
        output.status.success().then(|| out(&output).trim().parse().expect("a number"))
    }

    fn kill_until_done(&self, every: Duration, dice: &mut Dice, tally: &mut Tally) {
        let mut next = Deadline::after(every);
        while !self.done.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(100));
            if next.left().is_zero() {
                let kill = self.kill_one(dice);
                *tally.kills.entry(kill).or_default() += 1;
                next = Deadline::after(every);
            }
        }
    }

    fn kill_one(&self, dice: &mut Dice) -> Kill {
        let vms: Vec<_> = self.house.vms().into_iter().filter(|vm| vm.pid.is_some()).collect();
        let what = match dice.below(8) {
            0 | 1 if !vms.is_empty() => Kill::Emulator,
            2 if !vms.is_empty() => Kill::Owner,
            3 if !vms.is_empty() => Kill::Freeze,
            4 => Kill::Connection,
            _ => Kill::Daemon,
        };
        let victim =
            (!vms.is_empty()).then(|| &vms[usize::try_from(dice.below(vms.len() as u64)).expect("small")]);
        // A process that is gone already was killed by somebody else: as good.
        match (what, victim) {
            (Kill::Emulator, Some(vm)) => kill(self.house.qemu(vm), Signal::SIGKILL).ok(),
            (Kill::Freeze, Some(vm)) => kill(self.house.qemu(vm), Signal::SIGSTOP).ok(),
            (Kill::Owner, Some(vm)) => {
                let owner = vm.pid.expect("filtered").cast_signed();
                kill(nix::unistd::Pid::from_raw(owner), Signal::SIGKILL).ok()
            }
            (Kill::Connection, _) => {
                let masters: Vec<_> =
                    self.house.processes().into_iter().filter(|(_, line)| line.contains(" -M -N ")).collect();
                masters.first().and_then(|(pid, _)| kill(*pid, Signal::SIGKILL).ok())
            }
            (Kill::Daemon | Kill::Emulator | Kill::Owner | Kill::Freeze, _) => {
                self.house.end(Signal::SIGKILL);
                // Down for a while, sometimes: guests go on without it.
                std::thread::sleep(Duration::from_millis(dice.below(4000)));
                self.house.start();
                Some(())
            }
        };
        what
    }

    /// Nobody is killed any more: everything comes to rest.
    fn settle(&self) {
        until("every build to be over and delivered", || {
            let open = self.known().into_keys().any(|id| self.house.view(id).state != BuildState::Done);
            (!open).then_some(())
        });
        let mut expected: BTreeSet<String> = self.house.whole().into_iter().map(|vm| vm.name).collect();
        expected.extend(["linux", "mine"].map(str::to_owned));
        until("nothing but the pool and what is not ours to be left", || {
            (self.house.listed().into_iter().collect::<BTreeSet<_>>() == expected).then_some(())
        });
        let spool = std::fs::read_dir(self.house.home().join("spool")).expect("there").flatten().count();
        assert_eq!(spool, 0, "sources of builds that are over");
    }

    fn judge(&self, tally: &mut Tally) {
        for (id, kind) in self.known() {
            let (view, log) = (self.house.view(id), self.house.log(id));
            let result = view.result.expect("over");
            *tally.results.entry(result.as_str().to_owned()).or_default() += 1;
            tally.attempts += usize::from(view.attempt);
            assert_eq!(result, kind.result(), "{kind:?} {view:?}\n{log:#?}");
            one_honest_log(id, kind, &view, &log);
            tally.reattached += usize::from(
                log.iter().any(|l| l.stream == LogStream::Sys && l.text.contains("the build goes on in")),
            );
            delivered_once(&self.share.join(id.to_string()), &view, kind);
        }
    }
}

/// Numbered without a gap, one end, and in the attempt that counts each line once and in order.
fn one_honest_log(id: u64, kind: Kind, view: &BuildView, log: &[LogLine]) {
    let numbers: Vec<u64> = log.iter().map(|line| line.n).collect();
    assert_eq!(numbers, (1..=log.len() as u64).collect::<Vec<_>>(), "build {id}");
    let end = match &view.reason {
        Some(reason) => format!("{}: {reason}", view.result.expect("over").as_str()),
        None => view.result.expect("over").as_str().to_owned(),
    };
    let ends = log.iter().filter(|line| line.stream == LogStream::Sys && line.text == end).count();
    assert_eq!(ends, 1, "build {id}: {log:#?}");
    let mut runs: Vec<_> = Vec::new();
    for line in log.iter().filter(|line| line.stream == LogStream::Out) {
        if !runs.contains(&line.run) {
            runs.push(line.run.clone());
        }
    }
    for run in &runs {
        let ends: Vec<_> = of(log, run.as_ref()).map(|line| line.end).collect();
        assert!(ends.is_sorted_by(|a, b| a < b), "build {id}: a line of run {run:?} twice: {log:#?}");
    }
    let last = runs.len().saturating_sub(if kind == Kind::TwoSteps { 2 } else { 1 });
    let said: Vec<&str> =
        runs[last..].iter().flat_map(|run| of(log, run.as_ref())).map(|line| line.text.as_str()).collect();
    assert_eq!(said, kind.lines(), "build {id}: {log:#?}");
}

/// What a run printed.
fn of<'a>(log: &'a [LogLine], run: Option<&'a RunId>) -> impl Iterator<Item = &'a LogLine> {
    log.iter().filter(move |line| line.stream == LogStream::Out && line.run.as_ref() == run)
}

/// One folder with the same result, and the artifacts whole.
fn delivered_once(folder: &Path, view: &BuildView, kind: Kind) {
    let json = std::fs::read(folder.join("result.json")).expect("delivered");
    let delivered: BuildView = serde_json::from_slice(&json).expect("a build");
    assert_eq!((delivered.id, delivered.result, delivered.attempt), (view.id, view.result, view.attempt));
    if kind == Kind::Artifact {
        let numbers = std::fs::read_to_string(folder.join("out/numbers")).expect("delivered");
        assert!(numbers.lines().map(str::to_owned).eq((1..=1000).map(|n| n.to_string())), "{numbers}");
    }
}
