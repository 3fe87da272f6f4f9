//! VMs that resume: each step of suspending one and of resuming from it, with every ending, comes to a warm pool.

use super::*;

fn resuming(warm: u16, max: u16) -> impl FnOnce(&mut Config) {
    move |config| {
        let pool = Pool { warm, max, resume: true, ..testing::pool("macos") };
        config.pools.insert("linux".parse().expect("a name"), pool);
    }
}

impl World {
    fn in_state(&self, state: &str) -> Vec<String> {
        let snapshot = self.daemon.context.pool.snapshot();
        snapshot.vms.iter().filter(|vm| vm.state == state).map(|vm| vm.name.clone()).collect()
    }

    /// So many are warm, so many suspended, and nothing moves.
    async fn until_settled(&self, warm: usize, suspended: usize) {
        let count = |s: &PoolSnapshot, state: &str| s.vms.iter().filter(|vm| vm.state == state).count();
        let settled = |s: &PoolSnapshot| {
            count(s, "warm") == warm && count(s, "suspended") == suspended && s.vms.len() == warm + suspended
        };
        self.until(&format!("{warm} warm, {suspended} suspended"), settled).await;
    }

    async fn build(&self) -> BuildView {
        let id = self.submit("echo", |_| {}).await;
        let view = self.over(id).await;
        assert_eq!(view.result, Some(BuildResult::Success));
        view
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_boots_once_and_each_vm_after_that_resumes() {
    let world = world_with(Sim::new(), resuming(2, 2)).await;
    world.until_settled(2, 2).await;
    let golden = world.in_state("suspended");
    assert_eq!(world.sim.count(Step::Configure), 2, "what resumes is set to nothing");
    for _ in 0..4 {
        world.build().await;
    }
    world.until_settled(2, 2).await;
    assert_eq!(world.in_state("suspended"), golden);
    assert_eq!((world.sim.count(Step::Configure), world.sim.count(Step::Suspend)), (2, 2));
    assert_eq!(
        world.sim.count(Step::Freshen),
        6,
        "each is given what is its own: {:#?}",
        world.sim.history()
    );
    assert!(world.sim.running_most() <= 2, "Apple's limit holds while VMs are suspended too");
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_in_a_resume_costs_one_vm_and_what_it_was_cloned_from() {
    let steps = [Step::Restore, Step::Address, Step::Freshen, Step::Start, Step::Connect, Step::State];
    for step in steps {
        for behaviour in
            [Behaviour::Err(Reason::StateLost), Behaviour::Slow(Duration::from_secs(90)), Behaviour::Never]
        {
            let world = world_with(Sim::new(), resuming(1, 1)).await;
            world.until_settled(1, 1).await;
            let golden = world.in_state("suspended");
            world.sim.script(step, [behaviour.clone()]);
            world.build().await;
            // The pause after a failure is a minute.
            tokio::time::sleep(Duration::from_secs(400)).await;
            world.until_settled(1, 1).await;
            // A clone and a process may take their time; a guest that holds a slot may not.
            let slow = matches!(behaviour, Behaviour::Slow(_));
            let in_time = slow && matches!(step, Step::Start | Step::State);
            assert_eq!(world.in_state("suspended") == golden, in_time, "{step:?} {behaviour:?}");
            let booted = if in_time { 1 } else { 2 };
            assert_eq!(world.sim.count(Step::Configure), booted, "{step:?} {behaviour:?}: once for it");
            world.build().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_cannot_be_suspended_is_replaced_and_that_is_not_tried_again_at_once() {
    for step in [Step::GetReady, Step::Suspend, Step::State] {
        for behaviour in [Behaviour::Err(Reason::SuspendFailed), Behaviour::Never] {
            let sim = Sim::new();
            sim.script(step, [behaviour.clone()]);
            let world = world_with(sim, resuming(1, 1)).await;
            // Suspending has as long as a boot.
            world.until("it failed", |s| s.failures > 0).await;
            let failed_at = world.sim.count(step);
            world.until_settled(1, 0).await;
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert_eq!(world.sim.count(step), failed_at, "{step:?} {behaviour:?}: a pause");
            world.until_settled(1, 1).await;
            world.build().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_suspended_outlives_the_daemon_and_what_is_not_written_down_goes() {
    let mut world = world_with(Sim::new(), resuming(1, 1)).await;
    world.until_settled(1, 1).await;
    let golden = world.in_state("suspended");
    let World { daemon, .. } = world;
    daemon.stop().await;
    assert_eq!(world.sim.names(), golden, "only it is left");
    world.sim.plant("preheat-linux-0-99", ListedState::Suspended);
    world.daemon = start(&world.config, &world.sim).await;
    world.until_settled(1, 1).await;
    assert_eq!(world.in_state("suspended"), golden);
    assert_eq!(world.sim.count(Step::Configure), 1, "nothing had to boot again");
    assert!(!world.sim.names().contains(&"preheat-linux-0-99".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_image_with_other_content_is_noticed_and_nothing_resumes_from_the_old_one() {
    let world = world_with(Sim::new(), resuming(2, 2)).await;
    world.until_settled(2, 2).await;
    let (golden, warm) = (world.in_state("suspended"), world.warm_names());
    world.sim.replace_images("another");
    let renewed =
        |s: &PoolSnapshot| s.vms.iter().all(|vm| !golden.contains(&vm.name) && !warm.contains(&vm.name));
    world.until("renewed", renewed).await;
    world.until_settled(2, 2).await;
    world.build().await;
}

#[tokio::test(start_paused = true)]
async fn a_suspended_vm_that_vanishes_is_made_anew() {
    let world = world_with(Sim::new(), resuming(1, 1)).await;
    world.until_settled(1, 1).await;
    let golden = world.in_state("suspended");
    world.sim.vanish(&golden[0]);
    world.until("noticed", |s| s.vms.iter().all(|vm| vm.name != golden[0])).await;
    world.build().await;
    world.until_settled(1, 1).await;
    assert_ne!(world.in_state("suspended"), golden);
}

#[tokio::test(start_paused = true)]
async fn draining_empties_the_host_and_keeps_what_is_suspended() {
    let world = world_with(Sim::new(), resuming(1, 1)).await;
    world.until_settled(1, 1).await;
    world.daemon.core.drain().await.expect("begun");
    world.until_settled(0, 1).await;
    assert_eq!(world.daemon.core.status().state, crate::api::wire::DaemonState::Drained);
}

#[tokio::test(start_paused = true)]
async fn a_linux_image_boots_whatever_the_configuration_says() {
    let world = world_with(Sim::new(), |config| {
        let pool = Pool { resume: true, ..testing::pool("linux") };
        config.pools.insert("linux".parse().expect("a name"), pool);
    })
    .await;
    world.until_warm(1).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.sim.count(Step::Suspend), 0);
}
