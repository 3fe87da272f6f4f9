//! What a fault costs: a host's stops births everywhere but for one probe, an image's its pool, macOS's limit its slots.

use super::*;
use crate::api::wire::TroubleScope;
use crate::pool::breaker::BreakerState;

fn two_pools(config: &mut Config) {
    for name in ["linux", "other"] {
        config
            .pools
            .insert(name.parse().expect("a name"), Pool { warm: 1, max: 2, ..testing::pool("linux") });
    }
}

/// Whether clones of both pools were tried, and how many clones there were, in `span`.
async fn clones_in(world: &World, span: Duration) -> usize {
    let before = world.sim.count(Step::Clone);
    tokio::time::sleep(span).await;
    world.sim.count(Step::Clone) - before
}

#[tokio::test(start_paused = true)]
async fn a_host_that_fails_is_probed_slowly_and_comes_back() {
    let sim = Sim::new();
    sim.always(Step::Clone, Behaviour::Err(Reason::DiskFull));
    let world = world_with(sim, two_pools).await;
    let open = |s: &PoolSnapshot| s.breaker == BreakerState::Open && s.vms.is_empty();
    world.until("open", open).await;
    let id = world.submit("echo", |_| {}).await;
    let waits = |v: &BuildView| v.waiting_for.as_ref().is_some_and(|w| w.contains("the host, on which"));
    let view = view_until(&world.daemon, id, "waited for the host", waits).await;
    assert!(view.waiting_for.is_some_and(|w| w.contains("hint: free disk space")));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let snapshot = world.until("open", open).await;
    for pool in &snapshot.pools {
        let trouble = pool.trouble.as_ref().expect("shown for each pool");
        assert_eq!((trouble.scope, trouble.reason.as_str()), (TroubleScope::Host, "disk_full"));
    }
    let clones = clones_in(&world, Duration::from_secs(3000)).await;
    assert!((9..=11).contains(&clones), "one probe in five minutes for both pools together: {clones}");
    world.sim.always(Step::Clone, Behaviour::Ok);
    assert_eq!(world.over(id).await.result, Some(BuildResult::Success));
    let whole = world.until_warm(2).await;
    assert_eq!(whole.breaker, BreakerState::Closed);
    assert!(whole.pools.iter().all(|pool| pool.trouble.is_none()));
}

#[tokio::test(start_paused = true)]
async fn while_the_host_is_at_fault_there_is_never_more_than_one_vm_on_its_way() {
    let sim = Sim::new();
    sim.always(Step::Start, Behaviour::Err(Reason::HostKey));
    let world = world_with(sim, two_pools).await;
    world.until("open", |s| s.breaker == BreakerState::Open).await;
    let before = world.sim.history().len();
    tokio::time::sleep(Duration::from_secs(6000)).await;
    let (mut on_its_way, mut pools) = (None, BTreeSet::new());
    for (step, name) in world.sim.history().split_off(before) {
        match step {
            Step::Clone => {
                pools.insert(crate::runtime::sim::ours(std::slice::from_ref(&name))[0].pool.clone());
                assert_eq!(on_its_way.replace(name), None, "two at once");
            }
            Step::Delete => on_its_way = on_its_way.filter(|vm| *vm != name),
            Step::Configure | Step::Start | Step::Stop | Step::List | Step::Image | Step::Kill => {}
            Step::Adopt | Step::Address | Step::Connect | Step::Probe => {}
            Step::Restore | Step::Suspend | Step::State | Step::GetReady | Step::Freshen => {}
            Step::PutTree | Step::PutCache | Step::Run | Step::Attach => {}
            Step::Take | Step::TakeCache | Step::Sign | Step::Unlock | Step::Unsign => {}
        }
    }
    assert_eq!(pools.len(), 2, "it may be one pool that stands in the way");
    world.sim.always(Step::Start, Behaviour::Ok);
    world.until_warm(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_program_that_is_missing_is_found_when_it_is_installed() {
    let sim = Sim::new();
    sim.always(Step::Image, Behaviour::Err(Reason::ProgramMissing));
    let world = world_with(sim, two_pools).await;
    world.until("open", |s| s.breaker == BreakerState::Open).await;
    world.sim.always(Step::Image, Behaviour::Ok);
    world.until_warm(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_image_does_not_stop_the_others() {
    let world = world_with(Sim::new(), |config| {
        two_pools(config);
        let pool = config.pools.get_mut(&"other".parse().expect("a name")).expect("it is there");
        pool.warmup = Some("exit 1".into());
    })
    .await;
    let poisoned = |s: &PoolSnapshot| s.pools[1].trouble.as_ref().is_some_and(|t| t.failures >= 4);
    let snapshot = world.until("poisoned", poisoned).await;
    let trouble = snapshot.pools[1].trouble.clone().expect("shown");
    assert_eq!((trouble.scope, trouble.reason.as_str()), (TroubleScope::Pool, "warmup_failed"));
    assert!(trouble.hint.is_some_and(|hint| hint.contains("warmup")));
    assert_eq!((snapshot.breaker, &snapshot.pools[0].trouble), (BreakerState::Closed, &None));
    let clones = clones_in(&world, Duration::from_secs(3000)).await;
    assert!((9..=11).contains(&clones), "one slow probe: {clones}");
    let id = world.submit("echo", |_| {}).await;
    assert_eq!(world.over(id).await.result, Some(BuildResult::Success), "in the other pool");
}

#[tokio::test(start_paused = true)]
async fn a_vm_whose_warm_up_runs_out_of_time_is_not_offered() {
    let world = world_with(Sim::new(), |config| {
        let pool = Pool {
            warmup: Some("sleep 100".into()),
            warmup_timeout: Duration::from_secs(50),
            ..testing::pool("linux")
        };
        config.pools.insert("linux".parse().expect("a name"), pool);
    })
    .await;
    let id = world.submit("echo", |_| {}).await;
    let troubled = |s: &PoolSnapshot| s.pools[0].trouble.as_ref().is_some_and(|t| t.failures >= 3);
    let snapshot = world.until("troubled", troubled).await;
    let trouble = snapshot.pools[0].trouble.clone().expect("shown");
    assert_eq!(trouble.reason, "warmup_failed");
    assert!(trouble.text.contains("not done within 50s"), "{}", trouble.text);
    let view = world.daemon.core.build(id).await.expect("known");
    assert_eq!((view.state, view.claim), (BuildState::Queued, None), "no such VM was offered");
    assert_eq!(world.sim.count(Step::PutTree), 0);
}

fn mac_pool(config: &mut Config) {
    config.pools.insert("mac".parse().expect("a name"), Pool { warm: 2, max: 2, ..testing::pool("macos") });
}

#[tokio::test(start_paused = true)]
async fn a_leaked_slot_is_counted_as_lost_the_other_one_serves_and_it_comes_back() {
    let sim = Sim::new();
    let world = world_with(sim, mac_pool).await;
    world.until_warm(2).await;
    let victim = world.warm_names()[0].clone();
    world.sim.always(Step::Start, Behaviour::Err(Reason::SystemLimit));
    world.sim.kill_guest(&victim);
    let lost = world.until("lost", |s| s.pools[0].leaked == 1).await;
    let trouble = lost.pools[0].trouble.as_ref().expect("shown");
    assert_eq!((trouble.scope, trouble.reason.as_str()), (TroubleScope::Host, "slot_leaked"));
    assert!(
        trouble.hint.as_ref().is_some_and(|hint| hint.contains("com.apple.Virtualization.VirtualMachine"))
    );
    assert_eq!(lost.pools[0].view().lost, 1);
    assert_eq!(lost.breaker, BreakerState::Closed, "what fits may run");
    let before = world.sim.count(Step::Start);
    tokio::time::sleep(Duration::from_secs(3000)).await;
    let starts = world.sim.count(Step::Start) - before;
    assert!((5..=20).contains(&starts), "a slow probe: {starts}");
    world.sim.always(Step::Start, Behaviour::Ok);
    let whole = world.until_warm(2).await;
    assert_eq!((whole.pools[0].leaked, &whole.pools[0].trouble), (0, &None));
}

#[tokio::test(start_paused = true)]
async fn with_one_slot_leaked_builds_go_on_in_the_other_at_once() {
    let sim = Sim::new();
    let world = world_with(sim, mac_pool).await;
    world.until_warm(2).await;
    let victim = world.warm_names()[0].clone();
    world.sim.script(Step::Start, [Behaviour::Err(Reason::SystemLimit)]);
    world.sim.kill_guest(&victim);
    world.until("lost", |s| s.pools[0].leaked == 1).await;
    for _ in 0..3 {
        let id = world.submit("echo", |spec| spec.pool = "mac".parse().expect("a name")).await;
        assert_eq!(world.over(id).await.result, Some(BuildResult::Success));
    }
    assert!(world.sim.running_most() <= 2);
}

#[tokio::test(start_paused = true)]
async fn an_orphan_that_a_failure_leaves_is_gone_soon_after_and_not_a_minute_later() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    // Rounds begin a minute after the last one; this is just behind one.
    tokio::time::sleep(Duration::from_secs(61)).await;
    world.sim.plant("preheat-linux-7-1", ListedState::Running);
    world.sim.plant("somebodys-own", ListedState::Running);
    world.sim.plant("preheat-mine", ListedState::Stopped);
    world.sim.kill_guest(&world.warm_names()[0]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let left = world.sim.names();
    assert!(!left.contains(&"preheat-linux-7-1".to_owned()), "{left:?}");
    assert!(left.contains(&"somebodys-own".to_owned()) && left.contains(&"preheat-mine".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_failing_pool_does_not_make_the_janitor_run_in_circles() {
    let sim = Sim::new();
    sim.always(Step::Connect, Behaviour::Err(Reason::SshTimeout));
    let world = world_with(sim, two_pools).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let lists = world.sim.count(Step::List);
    assert!((10..=130).contains(&lists), "at most one in five seconds: {lists}");
}

#[tokio::test(start_paused = true)]
async fn a_vm_whose_files_vanished_is_replaced() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    let first = world.warm_names()[0].clone();
    world.sim.vanish(&first);
    world.until("replaced", |s| s.vms.iter().all(|vm| vm.name != first)).await;
    world.until_warm(1).await;
}

#[tokio::test(start_paused = true)]
async fn ended_builds_go_by_count_and_what_is_owed_or_newest_stays() {
    let world = world_with(Sim::new(), |config| {
        config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
        config.builds.keep = 1;
        config.uploads.push(crate::config::Upload {
            name: "nowhere".into(),
            sink: crate::config::UploadSink::Folder { path: "/dev/null/not-a-folder".into() },
        });
    })
    .await;
    let owed = world.submit("echo", |_| {}).await;
    let ended = |v: &BuildView| v.result.is_some();
    view_until(&world.daemon, owed, "ended", ended).await;
    // Two more, of which nothing is owed.
    let mut others = Vec::new();
    for _ in 0..2 {
        let id = world.submit("echo", |_| {}).await;
        view_until(&world.daemon, id, "ended", ended).await;
        for delivery in world.daemon.context.store.owed().await.expect("read") {
            if delivery.build == id {
                world.daemon.context.store.delivered(delivery.id).await.expect("written");
            }
        }
        others.push(id);
    }
    let stray = world.config.home.builds().join("4711");
    std::fs::create_dir_all(&stray).expect("made");
    let there = |id: BuildId| crate::build::actor::folder(&world.config, id).is_dir();
    let look = async {
        while there(others[0]) || stray.is_dir() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(EVENTUALLY, look).await.expect("the older one and the stray go");
    assert!(there(owed), "it is not delivered");
    assert!(there(others[1]), "the newest");
    assert!(world.daemon.core.build(others[0]).await.is_err(), "the journal has forgotten it");
}
