//! Another configuration while the daemon runs.

use std::sync::Mutex;

use super::*;
use crate::api::service::Refused;
use crate::api::wire::ReloadView;
use crate::config::{ByteSize, Mistake, Mistakes, Upload, UploadSink};
use crate::ids::PoolName;

/// What the daemon would read.
type File = Arc<Mutex<Result<Config, Mistakes>>>;

fn loaded(config: Config) -> Loaded {
    Loaded { config, warnings: Vec::new(), settings: Vec::new(), files: Vec::new() }
}

/// A world whose configuration can be changed, and what followers were told.
async fn changeable(warm: u16, max: u16) -> (World, File, Arc<Mutex<Vec<String>>>) {
    let world = world(warm, max).await;
    let file: File = Arc::new(Mutex::new(Ok(Config::clone(&world.config))));
    let (reads, told) = (file.clone(), Arc::new(Mutex::new(Vec::new())));
    let filters = told.clone();
    world.daemon.core.read_anew_from(Source {
        first: loaded(Config::clone(&world.config)),
        read: Arc::new(move || reads.lock().expect("whole").clone().map(loaded)),
        followers: vec![Box::new(move |config| {
            filters.lock().expect("whole").push(config.log.filter.clone());
        })],
    });
    (world, file, told)
}

fn linux() -> PoolName {
    "linux".parse().expect("a name")
}

fn change(file: &File, change: impl FnOnce(&mut Config)) {
    change(file.lock().expect("whole").as_mut().expect("right"));
}

fn change_pool(file: &File, f: impl FnOnce(&mut Pool)) {
    change(file, |config| f(config.pools.get_mut(&linux()).expect("there")));
}

async fn reload(world: &World) -> ReloadView {
    world.daemon.core.reload().await.expect("right")
}

#[tokio::test(start_paused = true)]
async fn a_mistake_changes_nothing_and_is_named() {
    let (world, file, told) = changeable(1, 2).await;
    world.until_warm(1).await;
    let before = world.warm_names();
    let mistakes = ["one", "two"].map(|text| Mistake::of("preheat.toml", text).hint("mend it")).to_vec();
    *file.lock().expect("whole") = Err(Mistakes(mistakes));
    let refused = world.daemon.core.reload().await.expect_err("wrong");
    let wanted = vec![
        "preheat.toml: one\n    hint: mend it".to_owned(),
        "preheat.toml: two\n    hint: mend it".to_owned(),
    ];
    assert_eq!(refused.view().mistakes, wanted);
    assert_eq!(world.daemon.core.status().config.mistakes, wanted);
    assert_eq!((world.warm_names(), told.lock().expect("whole").len()), (before, 0));
    assert_eq!(*world.daemon.context.config.get(), *world.config);
    *file.lock().expect("whole") = Ok(Config::clone(&world.config));
    assert_eq!(reload(&world).await, ReloadView::default(), "nothing differs");
    assert!(world.daemon.core.status().config.mistakes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_live_is_followed_by_the_next_decision_everywhere() {
    let (world, file, told) = changeable(1, 2).await;
    world.until_warm(1).await;
    let before = world.warm_names();
    let sink = world.dir.path().join("sink");
    change(&file, |config| {
        config.host.builds_max = 1;
        config.log.filter = "debug".into();
        config.api.source_max = ByteSize(7 << 20);
        config.stop.drain_timeout = Duration::from_secs(77);
        config.uploads.push(Upload { name: "new".into(), sink: UploadSink::Folder { path: sink.clone() } });
    });
    change_pool(&file, |pool| (pool.warm, pool.probe_timeout) = (2, Duration::from_secs(9)));
    let view = reload(&world).await;
    let applied: Vec<_> = view.changes.iter().map(|c| (c.key.as_str(), c.applies.as_str())).collect();
    assert_eq!(
        applied,
        [
            ("host.builds_max", "live"),
            ("api.source_max", "live"),
            ("stop.drain_timeout", "live"),
            ("upload", "live"),
            ("log.filter", "live"),
            ("pool.linux.warm", "live"),
            ("pool.linux.probe_timeout", "live"),
        ]
    );
    assert_eq!(*told.lock().expect("whole"), ["debug"]);
    world.until_warm(2).await;
    assert!(before.iter().all(|vm| world.warm_names().contains(vm)), "what was warm stays");
    let place = world.daemon.core.admit(None).expect("one place");
    assert!(matches!(world.daemon.core.admit(None), Err(Refused::QueueFull { max: 1 })));
    drop(place);
    assert!(world.daemon.core.admit(None).is_ok());
    let id = world.submit("echo", |_| {}).await;
    world.over(id).await;
    assert!(sink.join(id.to_string()).join("result.json").is_file(), "also to a sink that was added");
}

#[tokio::test(start_paused = true)]
async fn another_image_rolls_the_idle_and_leaves_what_runs() {
    let (world, file, _) = changeable(1, 3).await;
    world.until_warm(1).await;
    let running = world.submit("sleep 300", |_| {}).await;
    let view = view_until(&world.daemon, running, "in its step", |v| phases(v).contains(&"step")).await;
    world.until_warm(1).await;
    let old = world.warm_names();
    change_pool(&file, |pool| pool.image = "linux-2".into());
    let applied = reload(&world).await.changes.remove(0);
    assert_eq!((applied.key.as_str(), applied.applies.as_str()), ("pool.linux.image", "new_vms"));
    let mut never_empty = true;
    let rolled = |s: &PoolSnapshot| {
        let warm: Vec<_> = s.vms.iter().filter(|vm| vm.state == "warm").collect();
        never_empty &= !warm.is_empty();
        warm.iter().all(|vm| !old.contains(&vm.name)) && s.vms.iter().all(|vm| !old.contains(&vm.name))
    };
    timeout(EVENTUALLY, world.daemon.context.pool.until(rolled)).await.expect("rolled");
    assert!(never_empty, "the old one stayed until the new one was warm");
    assert!(world.sim.history().iter().any(|(_, what)| what == "linux-2"), "{:?}", world.sim.history());
    let over = world.over(running).await;
    assert_eq!((over.result, over.vm, over.attempt), (Some(BuildResult::Success), view.vm, 1));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_not_there_does_not_empty_the_pool() {
    let (world, file, _) = changeable(1, 2).await;
    world.until_warm(1).await;
    let old = world.warm_names();
    world.sim.always(Step::Image, Behaviour::Err(Reason::ImageMissing));
    change_pool(&file, |pool| pool.image = "typo".into());
    reload(&world).await;
    world.until("in trouble", |s| s.pools[0].trouble.is_some()).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.warm_names(), old);
    world.sim.always(Step::Image, Behaviour::Ok);
    change_pool(&file, |pool| pool.image = "linux".into());
    reload(&world).await;
    world
        .until("rolled", |s| s.pools[0].trouble.is_none() && s.vms.iter().all(|vm| !old.contains(&vm.name)))
        .await;
    world.until_warm(1).await;
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_restart_is_named_each_time_and_stays_as_it_was() {
    let (world, file, _) = changeable(0, 1).await;
    change(&file, |config| {
        config.api.listen = ([127, 0, 0, 1], 9).into();
        config.runtime.program = "other".into();
        config.log.json = true;
        config.api.token_file = Some("token".into());
        config.runtime.tart_home = "/elsewhere".into();
    });
    for _ in 0..2 {
        let view = reload(&world).await;
        assert!(view.changes.iter().all(|c| c.applies == "restart"), "{view:?}");
        assert_eq!(view.changes.len(), 5);
        assert_eq!(*world.daemon.context.config.get(), *world.config);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_comes_and_another_goes_with_the_builds_that_wait_for_it() {
    let (world, file, _) = changeable(1, 1).await;
    world.until_warm(1).await;
    let running = world.submit("sleep 300", |_| {}).await;
    view_until(&world.daemon, running, "in its step", |v| phases(v).contains(&"step")).await;
    let waiting = world.submit("echo", |_| {}).await;
    view_until(&world.daemon, waiting, "waited", |v| v.waiting_for.is_some()).await;
    let other: PoolName = "other".parse().expect("a name");
    change(&file, |config| {
        let pool = config.pools.remove(&linux()).expect("there");
        config.pools.insert(other.clone(), pool);
    });
    let view = reload(&world).await;
    assert_eq!(
        (view.pools_added, view.pools_removed, view.builds_ended),
        (vec!["other".into()], vec!["linux".into()], 1)
    );
    let over = world.over(waiting).await;
    assert_eq!(over.result, Some(BuildResult::Error));
    assert_eq!(over.reason.as_deref(), Some("there is no pool `linux` any more"));
    assert_eq!(world.over(running).await.result, Some(BuildResult::Success), "what runs goes on");
    let gone = |s: &PoolSnapshot| s.vms.iter().all(|vm| vm.pool == "other");
    world.until("without a VM of the old pool", gone).await;
    let id = world.submit("echo", |spec| spec.pool = other).await;
    assert_eq!(world.over(id).await.result, Some(BuildResult::Success));
    let late = world.submit("echo", |_| {}).await;
    assert_eq!(
        world.over(late).await.result,
        Some(BuildResult::Error),
        "nobody waits for a pool that is not there"
    );
}

/// An attempt that fails after its pool was removed does not wait for ever.
#[tokio::test(start_paused = true)]
async fn a_build_that_would_be_attempted_again_in_a_pool_that_is_gone_ends() {
    let (world, file, _) = changeable(1, 1).await;
    world.until_warm(1).await;
    let id = world.submit("sleep 300", |_| {}).await;
    let view = view_until(&world.daemon, id, "in its step", |v| phases(v).contains(&"step")).await;
    change(&file, |config| config.pools.clear());
    reload(&world).await;
    world.sim.kill_guest(&view.vm.expect("it has one"));
    let over = world.over(id).await;
    assert_eq!(over.reason.as_deref(), Some("there is no pool `linux` any more"));
    world.until("empty", |s| s.vms.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn lowered_bounds_kill_nothing() {
    let (world, file, _) = changeable(2, 2).await;
    world.until_warm(2).await;
    let mut running = Vec::new();
    for _ in 0..2 {
        running.push(world.submit("sleep 60", |_| {}).await);
    }
    for id in &running {
        view_until(&world.daemon, *id, "in its step", |v| phases(v).contains(&"step")).await;
    }
    change(&file, |config| config.host.vms = 1);
    reload(&world).await;
    let third = world.submit("echo", |_| {}).await;
    for id in running.into_iter().chain([third]) {
        let view = world.over(id).await;
        assert_eq!((view.result, view.attempt), (Some(BuildResult::Success), 1));
    }
    let settled = world.until_warm(1).await;
    assert_eq!(settled.vms.iter().filter(|vm| vm.state != "configured").count(), 1, "{:#?}", settled.vms);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_drains_follows_too_and_one_that_stops_does_not() {
    let (mut world, file, _) = changeable(1, 2).await;
    world.until_warm(1).await;
    world.daemon.core.drain().await.expect("begun");
    change_pool(&file, |pool| pool.warm = 2);
    reload(&world).await;
    world.until("empty", |s| s.vms.is_empty()).await;
    world.daemon.core.resume().await.expect("it goes on");
    world.until_warm(2).await;
    world.daemon.drain(std::future::pending::<()>()).await;
    assert!(matches!(world.daemon.core.reload().await, Err(Refused::Stopping)));
}
