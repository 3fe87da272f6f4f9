//! Which generation of its image a pool has: chosen, gone back from, and the same after a restart.

use super::*;
use crate::api::service::Refused;
use crate::api::wire::{GenerationState, ImageView};

/// A world with one warm VM of `linux-g1`, beside which there is `linux-g2`.
async fn two_generations() -> World {
    let sim = Sim::new();
    for image in ["linux-g1", "linux-g2"] {
        sim.plant(image, ListedState::Stopped);
    }
    let world = world_with(sim, |config| {
        let pool = Pool { warm: 1, max: 2, ..testing::pool("linux") };
        config.pools.insert("linux".parse().expect("a name"), pool);
    })
    .await;
    world.daemon.core.use_image("linux", Some(1)).await.expect("it is there");
    world.until("proven", |s| s.pools[0].generation == Some(1) && s.pools[0].trial.proven).await;
    world.until_warm(1).await;
    image_until(&world, "good", |image| state(image, 1) == GenerationState::Current).await;
    world
}

fn state(image: &ImageView, generation: u32) -> GenerationState {
    let found = image.generations.iter().find(|g| g.generation == Some(generation));
    found.expect("it is there").state
}

/// Looks again whenever the clock has moved.
async fn image_until(world: &World, what: &str, condition: impl Fn(&ImageView) -> bool) -> ImageView {
    let look = async {
        loop {
            let image = world.daemon.core.images().await.expect("listed").remove(0);
            if condition(&image) {
                return image;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(EVENTUALLY, look).await.unwrap_or_else(|_| panic!("never {what}"))
}

#[tokio::test(start_paused = true)]
async fn another_generation_rolls_the_pool_while_the_one_before_serves_and_a_rollback_goes_back() {
    let world = two_generations().await;
    let old = world.warm_names();
    let image = world.daemon.core.use_image("linux", Some(2)).await.expect("it is there");
    assert_eq!((image.base.as_str(), &image.pools[..]), ("linux-g2", &["linux".to_owned()][..]));
    assert_eq!((state(&image, 1), state(&image, 2)), (GenerationState::Before, GenerationState::Trying));
    let mut never_empty = true;
    let rolled = |s: &PoolSnapshot| {
        let warm: Vec<_> = s.vms.iter().filter(|vm| vm.state == "warm").collect();
        never_empty &= !warm.is_empty();
        s.pools[0].trial.proven && s.vms.iter().all(|vm| !old.contains(&vm.name)) && !warm.is_empty()
    };
    timeout(EVENTUALLY, world.daemon.context.pool.until(rolled)).await.expect("rolled");
    assert!(never_empty, "the old one stayed until the new one was warm");
    assert_eq!(world.daemon.core.pools()[0].image, "linux-g2");
    image_until(&world, "good", |image| state(image, 2) == GenerationState::Current).await;

    let image = world.daemon.core.roll_image_back("linux").await.expect("one is left");
    assert_eq!((image.base.as_str(), state(&image, 1)), ("linux-g1", GenerationState::Current));
    // Whoever comes during the roll-over is served at once.
    let newer = world.warm_names();
    let id = world.submit("echo", |_| {}).await;
    let view = world.over(id).await;
    assert_eq!((view.result, view.claim), (Some(BuildResult::Success), Some(Claim::Hit)));
    world.until("back", |s| s.vms.iter().all(|vm| !newer.contains(&vm.name))).await;
    world.until_warm(1).await;
    assert!(matches!(world.daemon.core.roll_image_back("linux").await, Err(Refused::NothingBefore(_))));
    let unknown = world.daemon.core.use_image("linux", Some(7)).await;
    assert!(matches!(unknown, Err(Refused::ImageUnknown { vm }) if vm == "linux-g7"));
}

#[tokio::test(start_paused = true)]
async fn a_generation_whose_vms_do_not_come_up_is_gone_back_from_and_says_why() {
    let world = two_generations().await;
    let old = world.warm_names();
    world.sim.always(Step::Connect, Behaviour::Err(Reason::SshAuth));
    world.daemon.core.use_image("linux", Some(2)).await.expect("it is there");
    let image = image_until(&world, "gone back from", |image| image.base == "linux-g1").await;
    assert_eq!((state(&image, 1), state(&image, 2)), (GenerationState::Current, GenerationState::Failed));
    let why = image.generations[1].why.clone().expect("a reason");
    assert!(why.contains("as scripted"), "{why}");
    assert_eq!(world.warm_names(), old, "what was warm serves all the while");
    world.sim.always(Step::Connect, Behaviour::Ok);
    world.until("rolled", |s| s.pools[0].trial.proven && s.pools[0].trouble.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_chosen_holds_after_a_restart_and_over_a_reload() {
    let world = two_generations().await;
    world.daemon.core.use_image("linux", Some(2)).await.expect("it is there");
    let World { daemon, sim, config, dir: _dir } = world;
    daemon.stop().await;
    let daemon = start(&config, &sim).await;
    assert_eq!(daemon.core.pools()[0].image, "linux-g2");
    let loaded =
        |config: Config| Loaded { config, warnings: Vec::new(), settings: Vec::new(), files: Vec::new() };
    let read = Config::clone(&config);
    daemon.core.read_anew_from(Source {
        first: loaded(read.clone()),
        read: Arc::new(move || Ok(loaded(read.clone()))),
        followers: Vec::new(),
    });
    assert!(daemon.core.reload().await.expect("right").changes.is_empty());
    assert_eq!(daemon.core.pools()[0].image, "linux-g2");
    assert_eq!(
        daemon.context.config.get().pools.values().next().map(Pool::base).as_deref(),
        Some("linux-g2")
    );
    let image = daemon.core.images().await.expect("listed").remove(0);
    assert_eq!(state(&image, 1), GenerationState::Before, "the last good one is known still");
}

#[tokio::test(start_paused = true)]
async fn where_nobody_has_chosen_the_newest_generation_is_taken_when_there_is_no_vm_of_the_name() {
    let sim = Sim::new();
    sim.script(Step::Image, [Behaviour::Err(Reason::ImageMissing)]);
    for image in ["linux-g2", "linux-g10", "linux-g1"] {
        sim.plant(image, ListedState::Stopped);
    }
    let world = world_with(sim, |config| {
        config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
    })
    .await;
    world.until("adopted", |s| s.pools[0].generation == Some(10)).await;
    world.until_warm(1).await;
    let id = world.submit("echo", |_| {}).await;
    assert_eq!(world.over(id).await.result, Some(BuildResult::Success));
}
