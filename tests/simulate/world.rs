//! What outlives the daemon: VMs and what runs in them, sinks and what they received, the clocks. All of it is data: what a
//! guest has printed by now follows from the time, so it goes on while no daemon lives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, pending};
use preheat::clock::{self, Instant, UnixMillis};
use preheat::guest::{Line, Stream};
use preheat::ids::{BuildId, RunId};
use preheat::runtime::{Fault, ListedState, Parsed, Reason, VmName};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::plan::{Job, Settings};
use crate::step::{Fate, Step, fate};

/// The wall clock's time at the world's beginning, in milliseconds.
const EPOCH: i64 = 1_750_000_000_000;

/// Events that are kept to be shown beside a failure.
const EVENTS_SHOWN: usize = 80;

/// One world, and the daemon's life in it.
pub struct World {
    inner: Mutex<Inner>,
    killed: Notify,
}

/// Which VMs a host may run.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub vms: usize,
    pub macos_guests: usize,
}

pub struct Inner {
    pub dice: Dice,
    pub rate: f64,
    pub bounds: Bounds,
    pub vms: BTreeMap<String, Vm>,
    /// VMs that are gone.
    pub past: BTreeMap<String, Vm>,
    pub jobs: Vec<Client>,
    pub received: BTreeMap<(String, BuildId), Received>,
    /// Results as the journal had them first.
    pub results: BTreeMap<u64, (String, Option<String>)>,
    pub sinks_down_until: Duration,
    /// The configuration's file, as it was last without a mistake.
    pub config: String,
    /// Whether the daemon said that it is drained. `None`: it did not get to it.
    pub drained: Option<bool>,
    /// An operator has something in mind yet.
    pub operated: bool,
    /// Orders of operators, by their outcome.
    pub orders: BTreeMap<&'static str, u64>,
    pub counts: BTreeMap<(Step, &'static str), u64>,
    pub jumps: u64,
    pub adopted: u64,
    /// The first invariant that broke.
    pub broken: Option<String>,
    pub verbose: bool,
    pub life: u32,
    /// The daemon was told to stop: it may hang up on everybody.
    pub stopping: bool,
    kill_at: Option<u64>,
    dead: bool,
    events: u64,
    base: Duration,
    origin: Option<Instant>,
    wall_offset: i64,
    history: DefaultHasher,
    recent: VecDeque<String>,
}

/// A VM, ours or somebody's.
#[derive(Clone)]
pub struct Vm {
    pub state: ListedState,
    pub macos: bool,
    pub address: IpAddr,
    /// The life of the daemon that started it.
    pub started_in: Option<u32>,
    /// Cancelled when the guest dies.
    pub dead: CancellationToken,
    pub dies_at: Option<Duration>,
    pub died_at: Option<Duration>,
    pub sources: u32,
    /// The project whose script ran in it.
    pub project: Option<String>,
    pub runs: BTreeMap<RunId, Run>,
    pub taken: bool,
    /// What waits in it to be given what is its own; it is in the memory of all that resume from it.
    pub ready: bool,
    /// It goes on from another one's memory.
    pub resumed: bool,
    /// It was given what is its own.
    pub fresh: bool,
    /// Whose cache it was given.
    pub cache: Option<String>,
}

/// A script that was begun in a guest.
#[derive(Debug, Clone)]
pub struct Run {
    pub command: String,
    pub began: Duration,
    /// When each line is printed, from the beginning.
    pub lines: Vec<(Duration, Line)>,
    pub takes: Duration,
    pub code: i32,
    /// Killed from outside.
    pub killed_at: Option<Duration>,
}

/// What a user knows of a build.
#[derive(Debug, Clone)]
pub struct Client {
    pub job: Job,
    pub state: Sent,
    pub cancelled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    No,
    /// The daemon has it, or has not: no answer came yet.
    UnderWay,
    Accepted(BuildId),
    /// The daemon died before it answered.
    Unknown,
}

/// A delivery that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub text: String,
    /// The life in which the sink's answer reached the daemon.
    pub answered_in: Option<u32>,
}

impl World {
    pub fn new(dice: Dice, settings: Settings, bounds: Bounds, jobs: Vec<Job>, config: String) -> Self {
        let client = |job| Client { job, state: Sent::No, cancelled: false };
        let inner = Inner {
            dice,
            rate: settings.rate,
            bounds,
            vms: BTreeMap::new(),
            past: BTreeMap::new(),
            jobs: jobs.into_iter().map(client).collect(),
            received: BTreeMap::new(),
            results: BTreeMap::new(),
            sinks_down_until: Duration::ZERO,
            config,
            drained: Some(false),
            operated: false,
            orders: BTreeMap::new(),
            counts: BTreeMap::new(),
            jumps: 0,
            adopted: 0,
            broken: None,
            verbose: false,
            life: 0,
            stopping: false,
            kill_at: None,
            dead: false,
            events: 0,
            base: Duration::ZERO,
            origin: None,
            wall_offset: 0,
            history: DefaultHasher::new(),
            recent: VecDeque::new(),
        };
        Self { inner: Mutex::new(inner), killed: Notify::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A daemon begins to live. `kill_at`: the event in the middle of which it is killed.
    pub fn begin_life(&self, kill_at: Option<u64>) {
        let mut inner = self.lock();
        inner.life += 1;
        inner.dead = false;
        inner.stopping = false;
        inner.kill_at = kill_at.map(|after| inner.events + after);
        inner.origin = Some(clock::now());
        inner.set_wall();
        let life = inner.life;
        inner.note(format!("life {life} begins"));
    }

    /// It is over; nobody lives for `pause`.
    pub fn end_life(&self, lived: Duration, pause: Duration) {
        let mut inner = self.lock();
        inner.base += lived + pause;
        inner.origin = None;
        inner.dead = true;
        for client in &mut inner.jobs {
            if client.state == Sent::UnderWay {
                client.state = Sent::Unknown;
            }
        }
        inner.settle();
    }

    pub fn kill(&self) {
        self.lock().die();
        self.killed.notify_one();
    }

    /// Kills the daemon in the middle of an event to come.
    pub fn kill_at(&self, after: u64) {
        let mut inner = self.lock();
        inner.kill_at = Some(inner.events + after);
    }

    /// Resolves when the daemon was killed.
    pub async fn killed(&self) {
        loop {
            let told = self.killed.notified();
            if self.lock().dead {
                return;
            }
            told.await;
        }
    }

    pub fn dead(&self) -> bool {
        self.lock().dead
    }

    /// Nothing happens any more once the daemon is dead.
    pub async fn alive(&self) {
        if self.lock().dead {
            self.killed.notify_one();
            pending::<()>().await;
        }
    }

    /// One step is asked for: rolls what becomes of it, and may kill the daemon on the way.
    pub async fn event(&self, step: Step, name: &str) -> Fate {
        let fate = self.lock().event(step, name);
        match fate {
            Some(fate) => fate,
            None => {
                self.killed.notify_one();
                pending().await
            }
        }
    }

    /// Does a step that takes at most `limit`: waits, then has its effect, or fails.
    pub async fn act<T>(
        &self,
        step: Step,
        name: &str,
        limit: Duration,
        effect: impl FnOnce(&mut Inner) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (after, done, fault) = match self.event(step, name).await {
            Fate::Ok { after } if after <= limit => {
                sleep(after).await;
                return self.effect(effect).await;
            }
            Fate::Ok { .. } => (limit, false, late(step)),
            Fate::Fails { reason, after, done } => {
                (after, done, Fault::new(reason, format!("simulated {step:?}"), "it was to fail"))
            }
            Fate::Hangs { after, done } => {
                sleep(limit.saturating_sub(after) / 2).await;
                (limit / 2, done, late(step))
            }
        };
        sleep(after.min(limit)).await;
        if done {
            self.effect(effect).await.ok();
        }
        self.alive().await;
        Err(fault)
    }

    async fn effect<T>(&self, effect: impl FnOnce(&mut Inner) -> Result<T, Fault>) -> Result<T, Fault> {
        self.alive().await;
        let mut inner = self.lock();
        inner.settle();
        let done = effect(&mut inner);
        inner.check();
        if inner.dead {
            self.killed.notify_one();
        }
        done
    }

    pub fn now(&self) -> Duration {
        self.lock().now()
    }

    /// Sleeps until the world's time is `at`.
    pub async fn until(&self, at: Duration) {
        let left = at.saturating_sub(self.now());
        sleep(left).await;
    }
}

fn late(step: Step) -> Fault {
    let reason = match step {
        Step::Address => Reason::NoAddress,
        Step::Connect => Reason::SshTimeout,
        Step::Probe => Reason::ProbeFailed,
        Step::Restore => Reason::StateLost,
        Step::GetReady => Reason::SuspendFailed,
        Step::Freshen => Reason::NotFresh,
        Step::PutTree | Step::PutCache | Step::Run | Step::Attach | Step::Take | Step::TakeCache => {
            Reason::ConnectionLost
        }
        Step::Clone
        | Step::Configure
        | Step::Start
        | Step::Adopt
        | Step::Suspend
        | Step::State
        | Step::Kill
        | Step::Stop
        | Step::Delete
        | Step::List
        | Step::Image
        | Step::Deliver
        | Step::Disk => Reason::VerbTimeout,
    };
    Fault::new(reason, format!("simulated {step:?}"), "its time was over")
}

impl preheat::blocking::Disk for World {
    fn turn(self: std::sync::Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Fate::Ok { after } = self.event(Step::Disk, "").await {
                sleep(after).await;
            }
            self.alive().await;
        })
    }

    fn dead(&self) -> bool {
        World::dead(self)
    }
}

impl Inner {
    pub fn now(&self) -> Duration {
        self.base + self.origin.map_or(Duration::ZERO, |origin| origin.elapsed())
    }

    fn set_wall(&self) {
        let passed = i64::try_from(self.now().as_millis()).expect("not for ever");
        clock::simulate_wall(Some(UnixMillis(EPOCH + passed + self.wall_offset)));
    }

    fn die(&mut self) {
        if !self.dead {
            self.note("the daemon is killed".into());
        }
        self.dead = true;
    }

    /// `None`: the daemon is dead, and nothing comes of it.
    fn event(&mut self, step: Step, name: &str) -> Option<Fate> {
        if self.dead {
            return None;
        }
        self.events += 1;
        self.settle();
        let (fate, word) = fate(&mut self.dice, step, self.rate);
        *self.counts.entry((step, word)).or_default() += 1;
        self.happened(step, name, fate);
        self.jump();
        if self.kill_at.is_some_and(|at| self.events >= at) {
            self.die();
            return None;
        }
        self.check();
        Some(fate)
    }

    fn happened(&mut self, step: Step, name: &str, fate: Fate) {
        let now = self.now();
        (now, step as u8, name).hash(&mut self.history);
        if self.recent.len() == EVENTS_SHOWN {
            self.recent.pop_front();
        }
        let quiet = step == Step::Disk && !self.verbose;
        if !quiet {
            self.note(format!("{step:?} {name} {fate:?}"));
        }
    }

    /// Writes a line into the history.
    pub fn note(&mut self, text: String) {
        text.hash(&mut self.history);
        if self.recent.len() == EVENTS_SHOWN {
            self.recent.pop_front();
        }
        self.recent.push_back(format!("{:>12.3} {text}", self.now().as_secs_f64()));
    }

    /// Of everything that happened, and when.
    pub fn fingerprint(&self) -> u64 {
        self.history.finish()
    }

    pub fn recent(&self) -> Vec<String> {
        self.recent.iter().cloned().collect()
    }

    /// Rarely the wall clock jumps by up to an hour, to and fro.
    fn jump(&mut self) {
        if self.rate > 0.0 && self.dice.chance(self.rate / 200.0) {
            let by = i64::try_from(self.dice.between(0, 7_200_000)).expect("small") - 3_600_000;
            self.wall_offset += by;
            self.jumps += 1;
            self.set_wall();
            self.note(format!("the wall clock jumps by {by} ms"));
        }
    }

    /// What was to happen by now has happened.
    pub fn settle(&mut self) {
        let now = self.now();
        let due: Vec<String> = self
            .vms
            .iter()
            .filter(|(_, vm)| vm.state == ListedState::Running && vm.dies_at.is_some_and(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            self.note(format!("the guest of {name} dies"));
            self.power_off(&name);
        }
    }

    pub fn insert(&mut self, name: &str, macos: bool, state: ListedState) {
        let number = u32::try_from(self.vms.len() + self.past.len()).expect("few");
        let [_, high, middle, low] = number.to_be_bytes();
        let vm = Vm {
            state,
            macos,
            address: IpAddr::V4(Ipv4Addr::new(10, high, middle, low)),
            started_in: None,
            dead: CancellationToken::new(),
            dies_at: None,
            died_at: None,
            sources: 0,
            project: None,
            runs: BTreeMap::new(),
            taken: false,
            ready: false,
            resumed: false,
            fresh: false,
            cache: None,
        };
        self.vms.insert(name.to_owned(), vm);
    }

    pub fn power_off(&mut self, name: &str) {
        let now = self.now();
        if let Some(vm) = self.vms.get_mut(name).filter(|vm| vm.state == ListedState::Running) {
            vm.state = ListedState::Stopped;
            vm.died_at = Some(vm.dies_at.filter(|at| *at <= now).unwrap_or(now));
            vm.dead.cancel();
        }
    }

    pub fn violation(&mut self, text: String) {
        if self.broken.is_none() {
            self.note(format!("BROKEN: {text}"));
            self.broken = Some(text);
        }
        // What comes after it proves nothing.
        self.dead = true;
    }

    /// What holds after every event.
    fn check(&mut self) {
        let mut slots = BTreeSet::new();
        let (mut running, mut macos, mut twice) = (0, 0, None);
        for (name, vm) in &self.vms {
            // What an earlier daemon left running is no booking of this one.
            if vm.state != ListedState::Running || vm.started_in != Some(self.life) {
                continue;
            }
            running += 1;
            macos += usize::from(vm.macos);
            if let Parsed::Ours(VmName { pool, slot, .. }) = VmName::parse(name)
                && !slots.insert((pool, slot))
            {
                twice = Some(name.clone());
            }
        }
        if let Some(name) = twice {
            self.violation(format!("the slot of {name} is booked twice"));
        }
        if running > self.bounds.vms || macos > self.bounds.macos_guests {
            self.violation(format!("{running} VMs run, {macos} of them macOS: more than {:?}", self.bounds));
        }
    }
}

impl Vm {
    /// Whether a run came to its end by itself, and with what.
    pub fn exited(&self, run: &Run, now: Duration) -> Option<i32> {
        let end = run.began + run.takes;
        let cut = [self.died_at, run.killed_at].into_iter().flatten().min();
        (end <= now && cut.is_none_or(|cut| end <= cut)).then_some(run.code)
    }
}

impl Run {
    /// A small shell: `echo TEXT`, `sleep MILLISECONDS`, `exit CODE`, separated by `;`. It knows the variable `TOKEN`.
    pub fn of(command: &str, token: Option<&str>, began: Duration) -> Self {
        let mut run = Self {
            command: command.to_owned(),
            began,
            lines: Vec::new(),
            takes: Duration::from_millis(1),
            code: 0,
            killed_at: None,
        };
        let mut end = 0;
        for part in command.split(';').map(str::trim) {
            let (verb, rest) = part.split_once(' ').unwrap_or((part, ""));
            match verb {
                "echo" => {
                    let text = rest.replace("$TOKEN", token.unwrap_or_default());
                    end += text.len() as u64 + 1;
                    run.lines.push((run.takes, Line { stream: Stream::Out, text, end, split: false }));
                }
                "sleep" => run.takes += Duration::from_millis(rest.parse().unwrap_or(0)),
                "exit" => {
                    run.code = rest.parse().unwrap_or(2);
                    break;
                }
                _ => {}
            }
        }
        run
    }
}
