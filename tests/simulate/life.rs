//! One seed from beginning to end: lives of the daemon in one world, each killed, stopped or, the last one, drained.

use std::collections::BTreeMap;
use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use preheat::api::service::Service;
use preheat::blocking;
use preheat::build::actor::BuildContext;
use preheat::clock;
use preheat::config::{Config, Loaded};
use preheat::jitter;
use preheat::pool::snapshot::PoolSnapshot;
use preheat::runtime::ListedState;
use preheat::store::Store;
use preheat::supervisor::reload::Source;
use preheat::supervisor::{Daemon, Outside};
use preheat::telemetry::export;
use tokio::time::{sleep, timeout};

use crate::clients;
use crate::dice::Dice;
use crate::host::Host;
use crate::operators;
use crate::plan::{self, End, Machine, Settings};
use crate::step::Step;
use crate::traces;
use crate::verdict;
use crate::world::{Bounds, Vm, World};

/// Whatever is left to do must be done within this time of an undisturbed life.
pub const DRAINED_WITHIN: Duration = Duration::from_secs(12 * 3600);

/// What a drain says that came to its end.
const DRAINED: &str = "everything that ran is over";

/// How often it is looked whether nothing is left to do.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A life that is to be killed at an event that does not come, because an operator drained it, ends after this.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// VMs that are not ours, which nobody may touch.
pub const FOREIGN: [(&str, ListedState); 3] = [
    ("somebodys", ListedState::Running),
    ("golden", ListedState::Suspended),
    ("preheat-odd", ListedState::Stopped),
];

/// What a seed came to.
pub struct Outcome {
    pub seed: u64,
    /// The first invariant that broke, and what led to it.
    pub broken: Option<(String, Vec<String>)>,
    /// Of everything that happened, and when.
    pub fingerprint: u64,
    pub builds: u64,
    pub results: BTreeMap<String, u64>,
    pub counts: BTreeMap<(Step, &'static str), u64>,
    pub kills: u64,
    pub stops: u64,
    pub jumps: u64,
    pub adopted: u64,
    pub orders: BTreeMap<&'static str, u64>,
    /// In the world's time.
    pub took: Duration,
}

/// Plays a seed.
pub fn play(seed: u64, settings: Settings, verbose: bool) -> Outcome {
    let mut dice = Dice::new(seed);
    jitter::seed(seed);
    let shm = Path::new("/dev/shm");
    let home = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    let home = home.expect("a folder");
    let machine = plan::machine(&mut dice);
    let text = plan::config(&mut dice, machine);
    let jobs = plan::jobs(&mut dice, settings);
    plan::leave_caches(home.path(), &jobs);
    let ends = plan::lives(&mut dice);
    let bounds = Bounds { vms: usize::try_from(machine.vms).expect("few"), macos_guests: plan::MACOS_GUESTS };
    let world = Arc::new(World::new(dice, settings, bounds, jobs, text));
    world.lock().verbose = verbose;
    for (name, state) in FOREIGN {
        world.lock().insert(name, false, state);
    }
    let (mut kills, mut stops, mut played) = (0, 0, None);
    for end in ends {
        match end {
            End::KilledAt(_) | End::KilledAfter(_) => kills += 1,
            End::Stopped(_) | End::Ended(_, None) => stops += 1,
            End::Ended(_, Some(_)) => {
                stops += 1;
                kills += 1;
            }
            End::Drained => world.lock().rate = 0.0,
        }
        // Whoever starts it sees to it that its file is right.
        std::fs::write(plan::file(home.path()), &world.lock().config).expect("written");
        let loaded = plan::read(home.path()).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        for folder in [loaded.config.home.spool(), loaded.config.home.builds()] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        live(&world, machine, &loaded, end);
        verdict::of_journal(&mut world.lock(), &loaded.config);
        verdict::of_files(&mut world.lock(), home.path());
        played = Some(loaded.config);
        if world.lock().broken.is_some() {
            break;
        }
    }
    let mut inner = world.lock();
    if let (None, Some(config)) = (&inner.broken, &played) {
        verdict::at_the_end(&mut inner, config);
    }
    let mut results = BTreeMap::new();
    for (result, _) in inner.results.values() {
        *results.entry(result.clone()).or_default() += 1;
    }
    Outcome {
        seed,
        broken: inner.broken.clone().map(|text| (text, inner.recent())),
        fingerprint: inner.fingerprint(),
        builds: inner.results.len() as u64,
        results,
        counts: inner.counts.clone(),
        kills,
        stops,
        jumps: inner.jumps,
        adopted: inner.adopted,
        orders: inner.orders.clone(),
        took: inner.now(),
    }
}

/// One life, and the time until the next.
fn live(world: &Arc<World>, machine: Machine, loaded: &Loaded, end: End) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let lived = runtime.block_on(async {
        let began = clock::now();
        world.begin_life(match end {
            End::KilledAt(event) => Some(event),
            End::KilledAfter(_) | End::Stopped(_) | End::Ended(..) | End::Drained => None,
        });
        blocking::simulate_disk(Some(world.clone()));
        tokio::select! {
            biased;
            () = world.killed() => {}
            () = daemon(world, machine, loaded, end) => {}
        }
        began.elapsed()
    });
    // Nothing that ends now may reach the world: that is how a killed process ends.
    world.kill();
    drop(runtime);
    blocking::simulate_disk(None);
    clock::simulate_wall(None);
    let pause = {
        let mut inner = world.lock();
        if inner.dice.chance(0.3) { inner.dice.millis(0, 900_000) } else { inner.dice.millis(0, 5000) }
    };
    world.end_life(lived, pause);
}

/// What is on the host but what the next daemon can resume from.
fn left_behind(world: &World, config: &Config) -> Vec<String> {
    let kept = verdict::suspended(config);
    let stays = |(name, vm): &(&String, &Vm)| vm.state == ListedState::Suspended && kept.contains(*name);
    let inner = world.lock();
    inner.vms.iter().filter(|row| !stays(row)).map(|(name, _)| name.clone()).collect()
}

async fn daemon(world: &Arc<World>, machine: Machine, loaded: &Loaded, end: End) {
    let config = Arc::new(loaded.config.clone());
    let store = match Store::open(&config.home.journal()) {
        Ok(store) => store,
        Err(error) => return world.lock().violation(format!("the journal does not open: {error}")),
    };
    let host = Host { world: world.clone(), deadlines: config.runtime.deadlines.clone() };
    let outside = Outside {
        runtime: Arc::new(host.clone()),
        connector: Arc::new(host.clone()),
        courier: Arc::new(host),
    };
    let begun = Daemon::begin(config.clone(), store, outside, export::install()).await;
    let mut daemon = match begun {
        Ok(daemon) => daemon,
        Err(error) => return world.lock().violation(format!("the daemon does not start: {error}")),
    };
    let service: Arc<dyn Service> = daemon.core.clone();
    let home = config.home.path().to_owned();
    let read = Arc::new(move || plan::read(&home));
    daemon.core.read_anew_from(Source { first: loaded.clone(), read, followers: Vec::new() });
    clients::come(world, &service);
    operators::come(world, &service, daemon.context.config.clone(), machine, end == End::Drained);
    let (context, pool) = (daemon.context.clone(), daemon.context.pool.clone());
    let (watching, sinks) = (world.clone(), world.clone());
    tokio::spawn(async move {
        pool.until(|snapshot| {
            of_snapshot(&watching, snapshot);
            false
        })
        .await;
    });
    if end != End::Drained {
        tokio::spawn(async move { sinks_go_down(&sinks).await });
    }
    tokio::select! {
        biased;
        why = daemon.broke() => world.lock().violation(format!("the daemon broke: {why}")),
        () = until(world, &context, end) => {}
    }
    world.lock().stopping = true;
    match end {
        End::Stopped(_) => daemon.stop().await,
        End::Ended(_, cut) => {
            if let Some(after) = cut {
                world.kill_at(after);
            }
            daemon.drain(pending::<()>()).await;
            daemon.stop().await;
        }
        End::Drained => {
            let why = daemon.drain(pending::<()>()).await;
            if why != DRAINED {
                world.lock().violation(format!("with nothing to do it ended its drain so: {why}"));
            }
            traces::are_whole(world, &service).await;
            daemon.stop().await;
            let left = left_behind(world, &config);
            if left.len() != FOREIGN.len() {
                world.lock().violation(format!("after a stop there are {left:?}"));
            }
        }
        End::KilledAt(_) | End::KilledAfter(_) => world.kill(),
    }
}

/// In one life of three the sinks are down for ten minutes.
async fn sinks_go_down(world: &World) {
    let after = {
        let mut inner = world.lock();
        inner.dice.chance(0.3).then(|| inner.dice.millis(0, 120_000))
    };
    if let Some(after) = after {
        sleep(after).await;
        let mut inner = world.lock();
        inner.sinks_down_until = inner.now() + Duration::from_secs(600);
        inner.note("the sinks are down".into());
    }
}

async fn until(world: &Arc<World>, daemon: &BuildContext, end: End) {
    match end {
        End::KilledAt(_) => {
            // Where the events run out, it is killed when it has nothing to do.
            if timeout(IDLE_MAX, drained(world, daemon)).await.is_err() {
                world.lock().note("not drained, and killed".into());
            }
        }
        End::KilledAfter(time) | End::Stopped(time) | End::Ended(time, _) => sleep(time).await,
        End::Drained => {
            if timeout(DRAINED_WITHIN, drained(world, daemon)).await.is_err() {
                let why = verdict::left_to_do(world, daemon).await.unwrap_or_default();
                world.lock().violation(format!("not drained after {DRAINED_WITHIN:?}: {why}"));
            }
        }
    }
}

async fn drained(world: &Arc<World>, daemon: &BuildContext) {
    while verdict::left_to_do(world, daemon).await.is_some() {
        sleep(LOOK_EVERY).await;
    }
}

/// What holds of every state of the pool that it shows.
fn of_snapshot(world: &World, snapshot: &PoolSnapshot) {
    let mut inner = world.lock();
    let mut builds = BTreeMap::new();
    for vm in snapshot.vms.iter() {
        let project = inner.vms.get(&vm.name).and_then(|vm| vm.project.clone());
        if let (Some(project), "warm") = (project, vm.state.as_str()) {
            inner.violation(format!("{} is offered again after {project}", vm.name));
        }
        if let Some(build) = vm.build
            && let Some(other) = builds.insert(build, vm.name.clone())
        {
            inner.violation(format!("build {build} has {other} and {}", vm.name));
        }
    }
}
