//! Caches of builds under the daemon: who finds whose, and that neither a restore nor a save, however it ends, decides a build.

use super::crashes::{at_work, log};
use super::*;
use crate::api::service::Refused;
use crate::api::wire::{CacheEntryView, CacheRestore, CacheSave, LogStream};
use crate::cache::Cache;

fn cache(key: &str, restore_keys: &[&str]) -> Cache {
    let restore_keys = restore_keys.iter().map(|key| (*key).to_owned()).collect();
    Cache { key: key.into(), restore_keys, paths: vec!["Pods".into(), "~/.pods".into()] }
}

impl World {
    async fn built(&self, key: &str, change: impl FnOnce(&mut BuildSpec)) -> BuildView {
        let id = self
            .submit("echo hello", |spec| {
                spec.caches = vec![cache(key, &["pods-"])];
                change(spec);
            })
            .await;
        self.over(id).await
    }

    fn kept(&self) -> Vec<CacheEntryView> {
        self.daemon.core.caches()
    }

    /// What lies in the folder of caches.
    fn files(&self) -> usize {
        std::fs::read_dir(self.config.home.caches()).map_or(0, Iterator::count)
    }

    fn says(&self, id: BuildId, text: &str) -> bool {
        let lines = log(&self.config, id);
        lines.iter().any(|line| line.stream == LogStream::Sys && line.text.contains(text))
    }
}

fn succeeded(view: &BuildView) {
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Success), 1), "{view:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_build_saves_the_next_one_of_its_project_and_pool_finds() {
    let world = at_work().await;
    let first = world.built("pods-1", |_| {}).await;
    succeeded(&first);
    let phases_with = |after: &str| {
        let all = ["queue", "probe", "source", "cache_restore", "step", "cache_save", "teardown"];
        all.into_iter().filter(|phase| *phase != after).collect::<Vec<_>>()
    };
    assert_eq!(phases(&first), phases_with(""));
    assert_eq!(first.caches[0].restore, CacheRestore::Miss);
    assert_eq!(first.caches[0].saved.as_ref().map(|saved| saved.result), Some(CacheSave::Saved));
    assert!(world.says(first.id, "cache pods-1: miss") && world.says(first.id, "cache pods-1: saved, 15 B"));

    let second = world.built("pods-1", |_| {}).await;
    succeeded(&second);
    assert_eq!(phases(&second), phases_with("cache_save"), "an exact hit is not saved again");
    assert_eq!((second.caches[0].restore, second.caches[0].bytes), (CacheRestore::Hit, 15));
    assert!(world.says(second.id, "cache pods-1: hit, 15 B in"));

    let third = world.built("pods-2", |_| {}).await;
    assert_eq!(third.caches[0].restore, CacheRestore::Prefix);
    assert_eq!(third.caches[0].from.as_deref(), Some("pods-1"));
    assert!(world.says(third.id, "cache pods-2: restored from pods-1, 15 B"));
    let keys: Vec<String> = world.kept().into_iter().map(|entry| entry.key).collect();
    assert!(keys.contains(&"pods-1".to_owned()) && keys.contains(&"pods-2".to_owned()), "{keys:?}");

    let other = world.built("pods-1", |spec| spec.project = "other".into()).await;
    assert_eq!(other.caches[0].restore, CacheRestore::Miss, "another project's is not to be had");
    assert_eq!((world.sim.count(Step::PutCache), world.sim.count(Step::TakeCache)), (2, 3));
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_build_that_does_not_succeed_saves_nothing() {
    let world = at_work().await;
    let id = world.submit("exit 1", |spec| spec.caches = vec![cache("pods-1", &[])]).await;
    assert_eq!(world.over(id).await.result, Some(BuildResult::Failure));
    world.sim.script(Step::Take, [Behaviour::Err(Reason::TransferFailed)]);
    let id = world
        .submit("echo", |spec| {
            spec.caches = vec![cache("pods-1", &[])];
            (spec.artifacts, spec.retries) = (vec!["a".into()], 0);
        })
        .await;
    assert_eq!(world.over(id).await.result, Some(BuildResult::Error));
    assert_eq!((world.sim.count(Step::TakeCache), world.kept().len(), world.files()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_fails_is_a_miss_however_it_fails() {
    for behaviour in [
        Behaviour::Err(Reason::TransferFailed),
        Behaviour::Err(Reason::GuestDiskFull),
        Behaviour::Slow(Duration::from_secs(3000)),
        Behaviour::Never,
    ] {
        let world = at_work().await;
        world.built("pods-1", |_| {}).await;
        world.sim.script(Step::PutCache, [behaviour.clone()]);
        let view = world.built("pods-1", |_| {}).await;
        succeeded(&view);
        assert_eq!(view.caches[0].restore, CacheRestore::Failed, "{behaviour:?}");
        assert!(world.says(view.id, "cache pods-1: miss: it could not be restored"), "{behaviour:?}");
        assert_eq!(world.kept().len(), 1, "it may do for the next one");
        world.clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_cache_is_a_miss_and_is_made_anew() {
    let world = at_work().await;
    world.built("pods-1", |_| {}).await;
    let tar = world.config.home.caches().join(format!("{}.tar", world.kept()[0].id));
    std::fs::write(&tar, "Pods\n~/.podz....").expect("as long, and something else");
    let view = world.built("pods-1", |_| {}).await;
    succeeded(&view);
    assert_eq!(view.caches[0].restore, CacheRestore::Failed);
    assert!(world.says(view.id, "what was saved is damaged, and was removed"));
    assert_eq!(world.sim.count(Step::PutCache), 0, "no byte of it reached a guest");
    assert_eq!(view.caches[0].saved.as_ref().map(|saved| saved.result), Some(CacheSave::Saved));
    assert_eq!(world.built("pods-1", |_| {}).await.caches[0].restore, CacheRestore::Hit);
    assert_eq!((world.kept().len(), world.files()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_save_that_fails_never_fails_the_build() {
    for behaviour in [
        Behaviour::Err(Reason::TransferFailed),
        Behaviour::Err(Reason::ConnectionLost),
        Behaviour::Slow(Duration::from_secs(3000)),
        Behaviour::Never,
    ] {
        let world = at_work().await;
        world.sim.script(Step::TakeCache, [behaviour.clone()]);
        let view = world.built("pods-1", |_| {}).await;
        succeeded(&view);
        let saved = view.caches[0].saved.as_ref().expect("it was tried");
        assert_eq!(saved.result, CacheSave::Failed, "{behaviour:?}");
        assert!(world.says(view.id, "cache pods-1: not saved: "), "{behaviour:?}");
        assert_eq!((world.kept().len(), world.files()), (0, 0), "{behaviour:?}");
        world.clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_too_large_is_not_saved_and_says_which_bound_it_was() {
    let world = world_with(Sim::new(), |config| {
        config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
        config.caches.entry_max = crate::config::ByteSize(14);
    })
    .await;
    let view = world.built("pods-1", |_| {}).await;
    succeeded(&view);
    assert!(world.says(view.id, "not saved: it is larger than 14 B (caches.entry_max)"));
    assert_eq!((world.kept().len(), world.files()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_dies_while_its_cache_is_saved_takes_no_success_along() {
    let world = at_work().await;
    world.sim.script(Step::TakeCache, [Behaviour::Slow(Duration::from_secs(60))]);
    let id = world.submit("echo", |spec| spec.caches = vec![cache("pods-1", &[])]).await;
    let view = world.until_in(id, "cache_save").await;
    world.sim.kill_guest(&view.vm.expect("it has one"));
    let view = world.over(id).await;
    succeeded(&view);
    assert_eq!(world.sim.count(Step::Run), 1);
    assert_eq!((world.kept().len(), world.files()), (0, 0));
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_is_taken_while_a_cache_is_restored_and_only_ends_the_saving_of_one() {
    let slow = || Behaviour::Slow(Duration::from_secs(300));
    let world = at_work().await;
    world.built("pods-1", |_| {}).await;
    world.sim.script(Step::PutCache, [slow()]);
    let id = world.submit("echo", |spec| spec.caches = vec![cache("pods-1", &[])]).await;
    world.until_in(id, "cache_restore").await;
    world.daemon.core.cancel(id).await.expect("taken");
    assert_eq!(world.over(id).await.result, Some(BuildResult::Cancellation));

    world.sim.script(Step::TakeCache, [slow()]);
    let id = world.submit("echo", |spec| spec.caches = vec![cache("pods-2", &[])]).await;
    world.until_in(id, "cache_save").await;
    let begun = crate::clock::now();
    assert!(matches!(world.daemon.core.cancel(id).await, Err(Refused::BuildOver(_))), "its result stands");
    let view = world.over(id).await;
    succeeded(&view);
    assert!(begun.elapsed() < Duration::from_secs(200), "and nobody waits for the rest of its cache");
    assert!(world.says(id, "not saved: the build was cancelled while it saved"));
    assert_eq!(world.kept().len(), 1);
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_in_a_restore_costs_a_vm_and_no_retry() {
    let world = at_work().await;
    world.built("pods-1", |_| {}).await;
    world.sim.script(Step::PutCache, [Behaviour::Slow(Duration::from_secs(30))]);
    let with_cache = |spec: &mut BuildSpec| {
        spec.caches = vec![cache("pods-1", &[])];
        spec.retries = 0;
    };
    let id = world.submit("echo", with_cache).await;
    let before = world.until_in(id, "cache_restore").await;
    let world = world.crash().await.start().await;
    let view = world.over(id).await;
    succeeded(&view);
    assert_ne!(view.vm, before.vm);
    assert_eq!(view.caches[0].restore, CacheRestore::Hit, "the shelf outlives the daemon");
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_a_cache_is_saved_loses_no_success_and_leaves_no_piece() {
    let world = at_work().await;
    world.sim.script(Step::TakeCache, [Behaviour::Slow(Duration::from_secs(60))]);
    let id = world
        .submit("echo", |spec| {
            spec.caches = vec![cache("pods-1", &[])];
            (spec.artifacts, spec.retries) = (vec!["a".into()], 0);
        })
        .await;
    world.until_in(id, "cache_save").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let fallen = world.crash().await;
    let world = fallen.start().await;
    let view = world.over(id).await;
    succeeded(&view);
    assert_eq!(view.artifacts.len(), 1);
    assert!(view.phases.iter().all(|phase| phase.took_ms.is_some()), "{:?}", view.phases);
    assert_eq!(world.sim.count(Step::Run), 1, "no step ran twice");
    assert_eq!((world.kept().len(), world.files()), (0, 0));
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_removes_a_cache_and_a_build_makes_it_again() {
    let world = at_work().await;
    world.built("pods-1", |_| {}).await;
    let kept = world.kept().remove(0);
    assert_eq!((kept.project.as_str(), kept.key.as_str(), kept.bytes), ("p", "pods-1", 15));
    assert_eq!(kept.paths, ["Pods", "~/.pods"]);
    let removed = world.daemon.core.remove_cache(&kept.id).await.expect("there");
    assert_eq!((removed, world.files()), (kept.clone(), 0));
    let again = world.daemon.core.remove_cache(&kept.id).await;
    assert!(matches!(again, Err(Refused::CacheUnknown(_))));
    let view = world.built("pods-1", |_| {}).await;
    assert_eq!(view.caches[0].restore, CacheRestore::Miss);
    assert_eq!(world.kept().len(), 1);
}
