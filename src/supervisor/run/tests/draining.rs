//! Draining, for maintenance and for the end, and the end itself.

use super::*;
use crate::api::service::Refused;
use crate::api::wire::DaemonState;

/// In its step, in a VM.
async fn in_step(world: &World, command: &str) -> BuildId {
    let id = world.submit(command, |_| {}).await;
    view_until(&world.daemon, id, "in its step", |v| phases(v).contains(&"step")).await;
    id
}

fn refuses(world: &World) -> String {
    world.daemon.core.admit(None).map(drop).expect_err("it takes no builds").code().to_owned()
}

async fn drained(world: &World) {
    let state = || world.daemon.core.status().state;
    world.until("drained", |_| state() == DaemonState::Drained).await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_daemon_finishes_what_runs_keeps_what_waits_and_has_no_vm() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    let running = in_step(&world, "sleep 60").await;
    let waiting = world.submit("echo", |_| {}).await;
    let status = world.daemon.core.drain().await.expect("begun");
    assert_eq!((status.state, status.builds_running), (DaemonState::Draining, 1));
    assert_eq!(refuses(&world), "draining");
    assert_eq!(world.daemon.core.ready(), Err("the daemon is drained and takes no builds".into()));
    let view = view_until(&world.daemon, waiting, "told", |v| v.waiting_for.is_some()).await;
    assert_eq!(view.waiting_for.as_deref(), Some("`preheat resume`: the daemon is drained"));
    assert_eq!(world.over(running).await.result, Some(BuildResult::Success));
    drained(&world).await;
    assert_eq!(world.sim.names(), Vec::<String>::new());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let status = world.daemon.core.status();
    assert_eq!((status.state, status.builds_waiting, status.vms), (DaemonState::Drained, 1, 0));
    assert!(world.daemon.context.pool.snapshot().draining, "which the metric is set from");
    world.daemon.core.resume().await.expect("it goes on");
    assert_eq!(world.over(waiting).await.result, Some(BuildResult::Success));
    world.until_warm(1).await;
    assert!(world.daemon.core.admit(None).is_ok());
}

/// A process has no lock in its first moments, so that `stop` would find nothing to stop.
#[tokio::test(start_paused = true)]
async fn a_vm_that_goes_while_its_process_is_being_started_goes_by_its_process() {
    let sim = Sim::new();
    sim.script(Step::Start, [Behaviour::Slow(Duration::from_secs(2))]);
    let world = world_with(sim, |config| {
        let pool = Pool { warm: 1, max: 1, ..testing::pool("linux") };
        config.pools.insert("linux".parse().expect("a name"), pool);
    })
    .await;
    world.until("being started", |s| s.vms.iter().any(|vm| vm.state == "starting")).await;
    world.daemon.core.drain().await.expect("begun");
    drained(&world).await;
    assert_eq!(
        (world.sim.count(Step::Kill), world.sim.count(Step::Stop)),
        (1, 0),
        "{:?}",
        world.sim.history()
    );
    assert_eq!(world.sim.names(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_restart_does_not_end_a_drain() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    world.daemon.core.drain().await.expect("begun");
    let waiting = world.submit("echo", |_| {}).await;
    drained(&world).await;
    let World { daemon, sim, config, dir } = world;
    daemon.stop().await;
    let daemon = start(&config, &sim).await;
    let world = World { daemon, sim, config, dir };
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.daemon.core.status().state, DaemonState::Drained);
    assert_eq!((refuses(&world).as_str(), world.sim.names().len()), ("draining", 0));
    world.daemon.core.resume().await.expect("it goes on");
    assert_eq!(world.over(waiting).await.result, Some(BuildResult::Success));
    let World { daemon, sim, config, dir } = world;
    daemon.stop().await;
    let daemon = start(&config, &sim).await;
    assert_eq!(daemon.core.status().state, DaemonState::Serving);
    drop(dir);
}

/// A VM that is on its way up, at each step of its birth, is not left behind by a drain.
#[tokio::test(start_paused = true)]
async fn whatever_step_a_birth_is_in_a_drain_takes_it_away() {
    for step in [Step::Clone, Step::Configure, Step::Start, Step::Address, Step::Connect] {
        let sim = Sim::new();
        sim.always(step, Behaviour::Slow(Duration::from_secs(5)));
        let world = world_with(sim, |config| {
            config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
        })
        .await;
        let begun = |_: &PoolSnapshot| world.sim.count(step) > 0;
        world.until("coming up", begun).await;
        world.daemon.core.drain().await.expect("begun");
        drained(&world).await;
        assert_eq!(world.sim.names(), Vec::<String>::new(), "{step:?}");
        world.daemon.core.resume().await.expect("it goes on");
        world.until_warm(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_fails_while_the_daemon_drains_waits_for_the_resume() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    let id = in_step(&world, "sleep 60").await;
    world.daemon.core.drain().await.expect("begun");
    let vm = world.daemon.core.build(id).await.expect("known").vm.expect("it has a VM");
    world.sim.kill_guest(&vm);
    drained(&world).await;
    let view = world.daemon.core.build(id).await.expect("known");
    assert_eq!((view.state, view.result), (BuildState::Queued, None));
    world.daemon.core.resume().await.expect("it goes on");
    assert_eq!(world.over(id).await.result, Some(BuildResult::Success));
}

#[tokio::test(start_paused = true)]
async fn the_end_lets_a_running_build_go_on_and_takes_the_idle_vm_at_once() {
    let mut world = world(1, 2).await;
    world.until_warm(1).await;
    let running = in_step(&world, "sleep 5").await;
    world.until_warm(1).await;
    let waiting = world.submit("sleep 5", |_| {}).await;
    view_until(&world.daemon, waiting, "begun", |v| v.state == BuildState::Running).await;
    let third = world.submit("echo", |_| {}).await;
    let why = world.daemon.drain(std::future::pending::<()>()).await;
    assert_eq!(why, "everything that ran is over");
    for id in [running, waiting] {
        assert_eq!(world.daemon.core.build(id).await.expect("known").result, Some(BuildResult::Success));
    }
    assert_eq!(refuses(&world), "stopping");
    assert!(matches!(world.daemon.core.resume().await, Err(Refused::Stopping)), "the end is not taken back");
    assert_eq!(world.daemon.core.status().state, DaemonState::Stopping);
    let view = world.daemon.core.build(third).await.expect("known");
    assert_eq!(view.waiting_for.as_deref(), Some("the next start: the daemon is stopping"));
    let World { daemon, sim, config, dir } = world;
    daemon.stop().await;
    assert_eq!(sim.names(), Vec::<String>::new());
    let daemon = start(&config, &sim).await;
    assert_eq!(over(&daemon, third).await.result, Some(BuildResult::Success));
    assert_eq!(
        daemon.core.status().state,
        DaemonState::Serving,
        "an end is no drain that is to be remembered"
    );
    drop(dir);
}

#[tokio::test(start_paused = true)]
async fn a_build_that_outlasts_the_deadline_or_a_second_signal_is_attempted_again_by_the_next_start() {
    for cut in [None, Some(Duration::from_secs(1))] {
        let mut world = world(1, 1).await;
        world.until_warm(1).await;
        let id = in_step(&world, "sleep 100").await;
        let began = crate::clock::now();
        let signal = async {
            match cut {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        let why = world.daemon.drain(signal).await;
        let (wanted, least) = match cut {
            Some(after) => ("a second signal came", after),
            None => ("`stop.drain_timeout` is over", world.config.stop.drain_timeout),
        };
        assert_eq!(why, wanted);
        assert!(began.elapsed() >= least);
        let World { daemon, sim, config, dir } = world;
        daemon.stop().await;
        assert_eq!(sim.names(), Vec::<String>::new(), "VMs are taken away all the same");
        let daemon = start(&config, &sim).await;
        assert_eq!(over(&daemon, id).await.result, Some(BuildResult::Success));
        drop(dir);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_a_delivery_that_is_due_and_not_for_one_that_failed() {
    let sink = tempfile::tempdir().expect("a folder");
    for whole in [true, false] {
        let path = if whole { sink.path().join("there") } else { sink.path().join("file/below") };
        std::fs::write(sink.path().join("file"), "no folder").expect("written");
        let upload = crate::config::Upload {
            name: "share".into(),
            sink: crate::config::UploadSink::Folder { path: path.clone() },
        };
        let mut world = world_with(Sim::new(), |config| {
            config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
            config.uploads.push(upload);
        })
        .await;
        world.until_warm(1).await;
        let id = in_step(&world, "sleep 5").await;
        let why = world.daemon.drain(std::future::pending::<()>()).await;
        assert_eq!(why, "everything that ran is over");
        assert_eq!(path.join(id.to_string()).join("result.json").is_file(), whole);
        let owed = world.daemon.context.store.owed().await.expect("read");
        assert_eq!(owed.len(), usize::from(!whole), "what failed stays in the outbox");
    }
}
