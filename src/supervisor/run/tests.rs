//! The whole daemon but its HTTP side against the simulated runtime, under paused time: every step of a VM's life and of a
//! build's with every ending, and what each must come to.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::timeout;

use super::*;
use crate::api::service::Service;
use crate::api::wire::{BuildState, BuildView, Claim};
use crate::build::actor::log_path;
use crate::build::log;
use crate::build::spec::{BuildResult, BuildSpec, Step as BuildStep};
use crate::config::Pool;
use crate::ids::BuildId;
use crate::runtime::sim::{Behaviour, Sim, Step};
use crate::runtime::{ListedState, Reason};
use crate::signing::vault;
use crate::store::BuildRecord;
use crate::testing;

mod caches;
mod cancelling;
mod crashes;
mod draining;
mod health;
mod images;
mod reasons;
mod reloading;
mod resuming;
mod retries;
mod secrets;
mod signing;

/// Longer than anything may take, in virtual time.
const EVENTUALLY: Duration = Duration::from_secs(3600);

struct World {
    daemon: Daemon,
    sim: Sim,
    config: Arc<Config>,
    dir: tempfile::TempDir,
}

/// A daemon with one pool `linux`.
async fn world(warm: u16, max: u16) -> World {
    world_with(Sim::new(), |config| {
        config.pools.insert("linux".parse().expect("a name"), Pool { warm, max, ..testing::pool("linux") });
    })
    .await
}

async fn world_with(sim: Sim, change: impl FnOnce(&mut Config)) -> World {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = testing::config();
    config.home = crate::config::Home::new(dir.path().to_owned());
    change(&mut config);
    let config = Arc::new(config);
    let daemon = start(&config, &sim).await;
    World { daemon, sim, config, dir }
}

async fn start(config: &Arc<Config>, sim: &Sim) -> Daemon {
    for folder in [config.home.spool(), config.home.builds()] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    let store = Store::open(&config.home.journal()).expect("a journal");
    let outside = Outside {
        runtime: Arc::new(sim.clone()),
        connector: Arc::new(sim.clone()),
        courier: Arc::new(Sinks),
    };
    let found = clear_up(config, sim, &store).await.expect("cleared");
    Daemon::start(config.clone(), store, outside, export::install(), found).await.expect("it starts")
}

impl World {
    async fn until(&self, what: &str, condition: impl Fn(&PoolSnapshot) -> bool) -> Arc<PoolSnapshot> {
        let waited = timeout(EVENTUALLY, self.daemon.context.pool.until(&condition)).await;
        waited.unwrap_or_else(|_| {
            panic!("never {what}: {:#?}\n{:?}", self.daemon.context.pool.snapshot(), self.sim.history())
        })
    }

    async fn until_warm(&self, count: usize) -> Arc<PoolSnapshot> {
        self.until("warm", |s| s.vms.iter().filter(|vm| vm.state == "warm").count() == count).await
    }

    async fn submit(&self, command: &str, change: impl FnOnce(&mut BuildSpec)) -> BuildId {
        submit(&self.daemon, &self.config, command, change).await
    }

    async fn over(&self, id: BuildId) -> BuildView {
        over(&self.daemon, id).await
    }

    fn warm_names(&self) -> Vec<String> {
        let snapshot = self.daemon.context.pool.snapshot();
        snapshot.vms.iter().filter(|vm| vm.state == "warm").map(|vm| vm.name.clone()).collect()
    }
}

/// With a value for each secret that the build names: twice its name, in small letters.
async fn submit(
    daemon: &Daemon,
    config: &Config,
    command: &str,
    change: impl FnOnce(&mut BuildSpec),
) -> BuildId {
    let step = BuildStep {
        name: "step".into(),
        command: command.into(),
        dir: String::new(),
        timeout: Duration::from_secs(600),
        retries: 0,
    };
    let mut spec = BuildSpec {
        project: "p".into(),
        pool: "linux".parse().expect("a name"),
        pipeline: None,
        said: Vec::new(),
        steps: vec![step],
        env: BTreeMap::new(),
        secrets: Vec::new(),
        signing: None,
        artifacts: Vec::new(),
        caches: Vec::new(),
        timeout: Duration::from_secs(3600),
        retries: 2,
    };
    change(&mut spec);
    let source = format!("{}.tar", uuid::Uuid::new_v4());
    std::fs::write(config.home.spool().join(&source), "tar").expect("written");
    let value = |name: &String| (name.clone(), name.to_lowercase().repeat(2).into());
    let mut secrets: Values = spec.secrets.iter().map(value).collect();
    if spec.signing.is_some() {
        vault::keep(testing::signing(), &mut secrets);
    }
    let secrets = Arc::new(secrets);
    let record = BuildRecord::received(spec, source, UnixMillis::now());
    let record = daemon.context.store.insert(record, secrets.clone()).await.expect("on disk");
    let id = record.id;
    let arguments = BuildArguments {
        context: daemon.context.clone(),
        record,
        secrets,
        go_on: false,
        ticket: daemon.core.place(),
    };
    daemon.supervisor.build(arguments);
    id
}

/// Looks again whenever the pool or the clock has moved.
async fn view_until(
    daemon: &Daemon,
    id: BuildId,
    what: &str,
    condition: impl Fn(&BuildView) -> bool,
) -> BuildView {
    let look = async {
        loop {
            let view = daemon.core.build(id).await.expect("it is known");
            if condition(&view) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let looked = timeout(EVENTUALLY, look).await;
    match looked {
        Ok(view) => view,
        Err(_) => panic!("build {id} never {what}: {:?}", daemon.core.build(id).await),
    }
}

async fn over(daemon: &Daemon, id: BuildId) -> BuildView {
    view_until(daemon, id, "ended", |view| view.state == BuildState::Done).await
}

fn phases(view: &BuildView) -> Vec<&str> {
    view.phases.iter().map(|phase| phase.phase.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_warm_vm_serves_at_once_is_taken_away_and_replaced() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    let used = world.warm_names();
    let id = world.submit("echo hello", |_| {}).await;
    let view = world.over(id).await;
    assert_eq!((view.result, view.claim, view.attempt), (Some(BuildResult::Success), Some(Claim::Hit), 1));
    assert_eq!(view.vm.as_ref(), used.first());
    assert_eq!(phases(&view), ["queue", "probe", "source", "step", "teardown"]);
    world.until_warm(1).await;
    assert_ne!(world.warm_names(), used);
    world.until("gone", |s| s.vms.iter().all(|vm| Some(&vm.name) != used.first())).await;
    assert_eq!(world.sim.running_most(), 1);
    let log = crate::build::actor::log_path(&world.config, id);
    let text = std::fs::read_to_string(log).expect("a log");
    assert!(text.contains("\"hello\"") && text.contains("success"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn two_run_a_third_waits_and_is_told_for_what() {
    let world = world(2, 2).await;
    world.until_warm(2).await;
    let first = world.submit("sleep 60", |_| {}).await;
    let second = world.submit("sleep 60", |_| {}).await;
    for id in [first, second] {
        view_until(&world.daemon, id, "ran", |v| v.state == BuildState::Running).await;
    }
    let third = world.submit("echo", |_| {}).await;
    let view = view_until(&world.daemon, third, "waited", |v| v.waiting_for.is_some()).await;
    assert_eq!(view.waiting_for.as_deref(), Some("a slot of pool `linux`: all 2 are in use"));
    let third = world.over(third).await;
    assert_eq!((third.result, third.claim), (Some(BuildResult::Success), Some(Claim::Miss)));
    for id in [first, second] {
        assert_eq!(world.over(id).await.result, Some(BuildResult::Success));
    }
    assert_eq!(world.sim.running_most(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_guest_is_killed_succeeds_on_a_fresh_vm() {
    let world = world(1, 2).await;
    world.until_warm(1).await;
    let id = world.submit("sleep 30; echo done", |_| {}).await;
    let view = view_until(&world.daemon, id, "in its step", |v| phases(v).contains(&"step")).await;
    let first = view.vm.expect("it has a VM");
    world.sim.kill_guest(&first);
    let view = world.over(id).await;
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Success), 2));
    assert_ne!(view.vm, Some(first));
}

#[tokio::test(start_paused = true)]
async fn a_build_without_retries_ends_as_the_systems_error() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    let id = world.submit("sleep 30", |spec| spec.retries = 0).await;
    let view = view_until(&world.daemon, id, "in its step", |v| phases(v).contains(&"step")).await;
    world.sim.kill_guest(&view.vm.expect("it has a VM"));
    let view = world.over(id).await;
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Error), 1));
    assert!(view.reason.expect("a reason").contains("the guest is gone"));
}

#[tokio::test(start_paused = true)]
async fn a_warm_vm_that_dies_is_replaced() {
    let world = world(2, 2).await;
    world.until_warm(2).await;
    let victim = world.warm_names()[0].clone();
    world.sim.kill_guest(&victim);
    world.until("replaced", |s| s.vms.iter().all(|vm| vm.name != victim)).await;
    let snapshot = world.until_warm(2).await;
    assert_eq!(snapshot.pools[0].trouble, None, "one death is no trouble");
}

#[tokio::test(start_paused = true)]
async fn a_warm_vm_that_is_dead_when_claimed_costs_only_the_next_one() {
    let world = world(2, 2).await;
    world.until_warm(2).await;
    world.sim.script(Step::Probe, [Behaviour::Never]);
    let id = world.submit("echo", |spec| spec.retries = 0).await;
    let view = world.over(id).await;
    assert_eq!((view.result, view.claim, view.attempt), (Some(BuildResult::Success), Some(Claim::Hit), 1));
}

#[tokio::test(start_paused = true)]
async fn an_idle_vm_that_does_not_answer_its_probe_is_replaced() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    let first = world.warm_names()[0].clone();
    world.sim.script(Step::Probe, [Behaviour::Ok, Behaviour::Never]);
    world.until("replaced", |s| s.vms.iter().all(|vm| vm.name != first)).await;
    world.until_warm(1).await;
}

/// Every step of a birth and of a removal, with every ending: the pool comes back, nothing is left over, and no slot is lost.
#[tokio::test(start_paused = true)]
async fn whatever_step_fails_the_pool_comes_back() {
    let steps =
        [Step::Clone, Step::Configure, Step::Start, Step::Address, Step::Connect, Step::Delete, Step::Kill];
    let endings =
        [Behaviour::Err(Reason::VerbFailed), Behaviour::Slow(Duration::from_secs(20)), Behaviour::Never];
    for step in steps {
        for ending in endings.clone() {
            let world = world(1, 1).await;
            world.until_warm(1).await;
            let what = format!("{step:?} {ending:?}");
            world.sim.script(step, [ending]);
            let id = world.submit("echo", |_| {}).await;
            assert_eq!(world.over(id).await.result, Some(BuildResult::Success), "{what}");
            world.until_warm(1).await;
            assert_eq!(world.sim.running_most(), 1, "{what}");
            let id = world.submit("echo", |_| {}).await;
            assert_eq!(world.over(id).await.result, Some(BuildResult::Success), "{what}");
        }
    }
}

/// Every step of a build, with every ending.
#[tokio::test(start_paused = true)]
async fn whatever_step_of_a_build_fails_it_ends_well_on_another_vm() {
    for step in [Step::Probe, Step::PutTree, Step::Run, Step::Take] {
        let faults = [Behaviour::Err(Reason::ConnectionLost), Behaviour::Slow(Duration::from_secs(1))];
        for ending in faults {
            let world = world(1, 1).await;
            world.until_warm(1).await;
            world.sim.script(step, [ending.clone()]);
            let id = world.submit("echo", |spec| spec.artifacts = vec!["a".into()]).await;
            let view = world.over(id).await;
            assert_eq!(view.result, Some(BuildResult::Success), "{step:?} {ending:?}: {view:?}");
            assert_eq!(view.artifacts.len(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_boot_that_always_fails_backs_off_is_shown_and_mends() {
    let sim = Sim::new();
    sim.always(Step::Connect, Behaviour::Err(Reason::SshTimeout));
    let world = world_with(sim, |config| {
        config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
    })
    .await;
    let failing = |s: &PoolSnapshot| s.pools[0].trouble.as_ref().is_some_and(|t| t.failures >= 6);
    let snapshot = world.until("in trouble", failing).await;
    assert_eq!(snapshot.pools[0].trouble.as_ref().map(|t| t.reason.as_str()), Some("ssh_timeout"));
    let (before, began) = (world.sim.count(Step::Clone), crate::clock::now());
    tokio::time::sleep(Duration::from_secs(600)).await;
    let clones = world.sim.count(Step::Clone) - before;
    assert!(clones <= 14, "{clones} clones in {:?}", began.elapsed());
    world.sim.always(Step::Connect, Behaviour::Ok);
    world.until("mended", |s| s.pools[0].trouble.is_none()).await;
    world.until_warm(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_without_its_image_says_so_and_serves_when_it_comes() {
    let sim = Sim::new();
    sim.always(Step::Image, Behaviour::Err(Reason::ImageMissing));
    let world = world_with(sim, |config| {
        config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
    })
    .await;
    let id = world.submit("echo", |_| {}).await;
    let waits = |v: &BuildView| v.waiting_for.as_ref().is_some_and(|w| w.contains("do not come up"));
    view_until(&world.daemon, id, "waited for the image", waits).await;
    assert_eq!(world.sim.count(Step::Clone), 0);
    world.sim.always(Step::Image, Behaviour::Ok);
    assert_eq!(world.over(id).await.result, Some(BuildResult::Success));
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_cannot_be_deleted_is_quarantined_and_its_slot_serves_on() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    world.sim.script(Step::Delete, [const { Behaviour::Err(Reason::VerbFailed) }; 3]);
    let first = world.warm_names()[0].clone();
    let id = world.submit("echo", |_| {}).await;
    world.over(id).await;
    let quarantined = |s: &PoolSnapshot| s.vms.iter().any(|vm| vm.name == first && vm.state == "quarantined");
    world.until("quarantined", quarantined).await;
    world.until_warm(1).await;
    world.until("gone", |s| s.vms.iter().all(|vm| vm.name != first)).await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_die_keeps_its_slot_and_is_counted_as_lost() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    world.sim.always(Step::Kill, Behaviour::Err(Reason::VerbTimeout));
    world.sim.always(Step::Stop, Behaviour::Err(Reason::VerbTimeout));
    let id = world.submit("echo", |_| {}).await;
    assert_eq!(world.over(id).await.result, Some(BuildResult::Success), "the build does not pay for it");
    world.until("quarantined", |s| s.vms.iter().any(|vm| vm.state == "quarantined")).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.sim.running_most(), 1, "no second guest in a slot that may still be in use");
    world.sim.always(Step::Stop, Behaviour::Ok);
    world.until("whole again", |s| s.vms.iter().all(|vm| vm.state == "warm")).await;
}

#[tokio::test(start_paused = true)]
async fn a_build_can_be_cancelled_while_it_waits_and_while_it_runs() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    let running = world.submit("sleep 300", |_| {}).await;
    view_until(&world.daemon, running, "in its step", |v| phases(v).contains(&"step")).await;
    let waiting = world.submit("echo", |_| {}).await;
    view_until(&world.daemon, waiting, "waited", |v| v.waiting_for.is_some()).await;
    for id in [waiting, running] {
        world.daemon.core.cancel(id).await.expect("taken");
        assert_eq!(world.over(id).await.result, Some(BuildResult::Cancellation));
        assert!(world.daemon.core.cancel(id).await.is_err(), "it is over");
    }
    world.until_warm(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_steps_failure_is_the_users_and_a_late_one_is_a_timeout() {
    let world = world(1, 1).await;
    let failed = world.submit("exit 3", |_| {}).await;
    let view = world.over(failed).await;
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Failure), 1));
    assert_eq!(view.reason.as_deref(), Some("step `step` exited with 3"));
    let late = world.submit("sleep 100", |spec| spec.steps[0].timeout = Duration::from_secs(5)).await;
    let view = world.over(late).await;
    assert_eq!(view.result, Some(BuildResult::Timeout));
    assert_eq!(view.reason.as_deref(), Some("step `step` took longer than 5s"));
    let long = world.submit("sleep 100", |spec| spec.timeout = Duration::from_secs(7)).await;
    let view = world.over(long).await;
    assert_eq!(view.reason.as_deref(), Some("the build took longer than 7s"));
}

#[tokio::test(start_paused = true)]
async fn builds_survive_a_restart_and_what_is_not_ours_is_still_there() {
    let world = world(1, 1).await;
    world.sim.plant("somebodys", ListedState::Running);
    world.until_warm(1).await;
    let running = world.submit("sleep 100", |_| {}).await;
    view_until(&world.daemon, running, "in its step", |v| phases(v).contains(&"step")).await;
    let waiting = world.submit("echo", |_| {}).await;
    view_until(&world.daemon, waiting, "waited", |v| v.waiting_for.is_some()).await;
    let World { daemon, sim, config, dir } = world;
    daemon.stop().await;
    assert_eq!(sim.names(), ["somebodys"]);
    let daemon = start(&config, &sim).await;
    for id in [running, waiting] {
        assert_eq!(over(&daemon, id).await.result, Some(BuildResult::Success), "{id}");
    }
    assert!(sim.names().contains(&"somebodys".to_owned()));
    drop(dir);
}

#[tokio::test(start_paused = true)]
async fn a_restart_clears_orphans_of_ours_away_and_reuses_no_name() {
    let sim = Sim::new();
    for (name, state) in [
        ("preheat-linux-0-41", ListedState::Running),
        ("preheat-old-3-7", ListedState::Stopped),
        ("preheat-odd", ListedState::Stopped),
        ("golden", ListedState::Suspended),
    ] {
        sim.plant(name, state);
    }
    let world = world_with(sim, |config| {
        config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
    })
    .await;
    world.until_warm(1).await;
    assert_eq!(world.sim.names(), ["golden", "preheat-linux-0-42", "preheat-odd"]);
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_pool_is_gone_after_a_restart_ends_and_says_so() {
    let world = world(0, 1).await;
    world.sim.always(Step::Connect, Behaviour::Never);
    let id = world.submit("echo", |_| {}).await;
    let World { daemon, sim, config, dir } = world;
    daemon.stop().await;
    let mut config = Config::clone(&config);
    config.pools.clear();
    let daemon = start(&Arc::new(config), &sim).await;
    let view = over(&daemon, id).await;
    assert_eq!(view.reason.as_deref(), Some("there is no pool `linux` any more"));
    drop(dir);
}

mod faults;
