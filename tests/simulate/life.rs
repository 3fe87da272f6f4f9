//! One seed from beginning to end: lives of the daemon in one world, each killed, stopped or, the last one, drained.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use preheat::api::service::Service;
use preheat::blocking;
use preheat::build::actor::BuildContext;
use preheat::clock;
use preheat::config::Config;
use preheat::jitter;
use preheat::pool::snapshot::PoolSnapshot;
use preheat::runtime::ListedState;
use preheat::store::Store;
use preheat::supervisor::{Daemon, Outside};
use preheat::telemetry::export;
use tokio::time::{sleep, timeout};

use crate::clients;
use crate::dice::Dice;
use crate::host::Host;
use crate::plan::{self, End, Settings};
use crate::step::Step;
use crate::verdict;
use crate::world::{Bounds, World};

/// Whatever is left to do must be done within this time of an undisturbed life.
const DRAINED_WITHIN: Duration = Duration::from_secs(12 * 3600);

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
    let config = plan::config(&mut dice, home.path());
    let jobs = plan::jobs(&mut dice, settings);
    let ends = plan::lives(&mut dice);
    let bounds = Bounds { vms: config.host.vms.into(), macos_guests: config.host.macos_guests.into() };
    let world = Arc::new(World::new(dice, settings, bounds, jobs));
    world.lock().verbose = verbose;
    for (name, state) in FOREIGN {
        world.lock().insert(name, false, state);
    }
    let (mut kills, mut stops) = (0, 0);
    for end in ends {
        match end {
            End::KilledAt(_) | End::KilledAfter(_) => kills += 1,
            End::Stopped(_) => stops += 1,
            End::Drained => world.lock().rate = 0.0,
        }
        live(&world, &config, end);
        verdict::of_journal(&mut world.lock(), &config);
        if world.lock().broken.is_some() {
            break;
        }
    }
    let mut inner = world.lock();
    if inner.broken.is_none() {
        verdict::at_the_end(&mut inner, &config);
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
        took: inner.now(),
    }
}

/// One life, and the time until the next.
fn live(world: &Arc<World>, config: &Arc<Config>, end: End) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let lived = runtime.block_on(async {
        let began = clock::now();
        world.begin_life(match end {
            End::KilledAt(event) => Some(event),
            End::KilledAfter(_) | End::Stopped(_) | End::Drained => None,
        });
        blocking::simulate_disk(Some(world.clone()));
        tokio::select! {
            biased;
            () = world.killed() => {}
            () = daemon(world, config, end) => {}
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

async fn daemon(world: &Arc<World>, config: &Arc<Config>, end: End) {
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
    clients::come(world, &service);
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
        End::Drained => {
            daemon.stop().await;
            let inner = world.lock();
            let left: Vec<String> = inner.vms.keys().cloned().collect();
            drop(inner);
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
            if timeout(DRAINED_WITHIN, drained(world, daemon)).await.is_err() {
                world.lock().note("not drained, and killed".into());
            }
        }
        End::KilledAfter(time) | End::Stopped(time) => sleep(time).await,
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
        sleep(Duration::from_secs(7)).await;
    }
}

/// What holds of every state of the pool that it shows.
fn of_snapshot(world: &World, snapshot: &PoolSnapshot) {
    let mut inner = world.lock();
    let mut builds = BTreeMap::new();
    for vm in &snapshot.vms {
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
