//! How a build's guest is while it runs: figures, one warning, and a word beside a failure that it may explain.

use super::crashes::{at_work, log};
use super::*;
use crate::api::wire::{GuestView, LogStream};
use crate::guest::Look;

const GB: u64 = 1_000_000_000;

/// A guest of a hundred gigabytes.
fn with_free(free: u64) -> Look {
    Look { cpu_percent: Some(42), memory: Some((3 * GB, 8 * GB)), disk: Some((100 * GB - free, free)) }
}

fn warnings(world: &World, id: BuildId) -> usize {
    let ours = log(&world.config, id).into_iter().filter(|line| line.stream == LogStream::Sys);
    ours.filter(|line| line.text.starts_with("warning: the guest's disk is nearly full")).count()
}

#[tokio::test(start_paused = true)]
async fn a_running_build_shows_how_its_guest_is_and_a_full_disk_is_said_once_and_beside_the_failure() {
    let world = world(1, 1).await;
    world.sim.guests_look(with_free(50 * GB));
    let id = world.submit("sleep 60; exit 7", |_| {}).await;
    let seen = view_until(&world.daemon, id, "its guest", |view| view.guest.is_some()).await;
    let guest = seen.guest.expect("looked at");
    let GuestView { cpu_percent, memory_total_bytes, disk_free_bytes, .. } = guest;
    assert_eq!((cpu_percent, memory_total_bytes, disk_free_bytes), (42, 8 * GB, 50 * GB));
    assert_eq!(warnings(&world, id), 0);

    world.sim.guests_look(with_free(2 * GB));
    let low = |view: &BuildView| view.guest.is_some_and(|guest| guest.disk_free_bytes == 2 * GB);
    view_until(&world.daemon, id, "a low disk", low).await;
    let over = world.over(id).await;
    assert_eq!(over.result, Some(BuildResult::Failure));
    let reason = over.reason.expect("a reason");
    assert_eq!(
        reason,
        "step `step` exited with 7; the guest's disk is nearly full: 2.00 GB of 100.00 GB free"
    );
    assert_eq!(warnings(&world, id), 1, "however often it is looked at");
}

#[tokio::test(start_paused = true)]
async fn a_build_that_fails_before_it_was_looked_at_is_looked_at_then() {
    let world = world(1, 1).await;
    world.sim.guests_look(with_free(0));
    let id = world.submit("exit 1", |_| {}).await;
    let reason = world.over(id).await.reason.expect("a reason");
    assert!(reason.ends_with("the guest's disk is nearly full: 0 B of 100.00 GB free"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_says_nothing_costs_nothing_but_the_figures() {
    let world = world(1, 1).await;
    for (command, result) in [("sleep 60", BuildResult::Success), ("exit 1", BuildResult::Failure)] {
        let id = world.submit(command, |_| {}).await;
        let view = world.over(id).await;
        assert_eq!((view.result, view.guest), (Some(result), None));
    }
}

#[tokio::test(start_paused = true)]
async fn guests_are_not_looked_at_where_the_configuration_says_so() {
    let world = world_with(Sim::new(), |config| {
        config.builds.guest_health = false;
        config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
    })
    .await;
    world.sim.guests_look(with_free(0));
    let id = world.submit("sleep 60; exit 1", |_| {}).await;
    let view = world.over(id).await;
    assert_eq!((view.guest, view.reason.as_deref()), (None, Some("step `step` exited with 1")));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_a_build_goes_on_in_after_a_crash_is_looked_at_again() {
    let world = at_work().await;
    world.sim.guests_look(with_free(50 * GB));
    let id = world.submit("sleep 300", |_| {}).await;
    let free = |bytes: u64| move |view: &BuildView| view.guest.is_some_and(|g| g.disk_free_bytes == bytes);
    view_until(&world.daemon, id, "looked at", free(50 * GB)).await;
    let world = world.crash().await.start().await;
    world.sim.guests_look(with_free(40 * GB));
    view_until(&world.daemon, id, "looked at again", free(40 * GB)).await;
    let over = world.over(id).await;
    assert_eq!((over.result, over.attempt), (Some(BuildResult::Success), 1));
}
