//! A cancel in every phase of a build: one result, and the VM and its slot come back.

use super::*;
use crate::api::service::Refused;
use crate::config::{Upload, UploadSink};

/// What was asked for: a cancel that was taken ends in `cancellation`, and everything is as before.
async fn ends_as_cancelled(world: &World, id: BuildId, what: &str) {
    world.daemon.core.cancel(id).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    let view = world.over(id).await;
    assert_eq!(view.result, Some(BuildResult::Cancellation), "{what}: {view:?}");
    assert!(matches!(world.daemon.core.cancel(id).await, Err(Refused::BuildOver(_))), "{what}");
    let vm = view.vm;
    let gone = |s: &PoolSnapshot| s.vms.iter().all(|row| Some(&row.name) != vm.as_ref());
    world.until("its VM gone", gone).await;
    let next = world.submit("echo", |_| {}).await;
    assert_eq!(world.over(next).await.result, Some(BuildResult::Success), "{what}: its slot is free");
    assert_eq!(world.sim.running_most(), 1, "{what}");
    let text = std::fs::read_to_string(crate::build::actor::log_path(&world.config, id)).expect("a log");
    assert_eq!(text.matches("\"cancellation").count(), 1, "{what}: said once: {text}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_is_taken_in_every_phase_that_comes_before_the_verdict() {
    let slow = || Behaviour::Slow(Duration::from_secs(60));
    for (phase, step) in [
        ("queue", Step::Connect),
        ("probe", Step::Probe),
        ("source", Step::PutTree),
        ("step", Step::Run),
        ("artifacts", Step::Take),
    ] {
        let sim = Sim::new();
        if phase == "queue" {
            sim.script(step, [slow()]);
        }
        let world = world_with(sim, |config| {
            config.pools.insert("linux".parse().expect("a name"), Pool { max: 1, ..testing::pool("linux") });
        })
        .await;
        if phase != "queue" {
            world.until_warm(1).await;
            world.sim.script(step, [slow()]);
        }
        let id = world.submit("echo", |spec| spec.artifacts = vec!["a".into()]).await;
        let in_phase = |v: &BuildView| v.phases.last().is_some_and(|p| p.phase == phase);
        view_until(&world.daemon, id, phase, in_phase).await;
        ends_as_cancelled(&world, id, phase).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_in_the_pause_before_another_attempt_is_taken() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    world.sim.script(Step::Run, [Behaviour::Err(Reason::ConnectionLost)]);
    let id = world.submit("echo", |_| {}).await;
    let pausing = |v: &BuildView| v.state == BuildState::Queued && phases(v).contains(&"step");
    view_until(&world.daemon, id, "failed once", pausing).await;
    ends_as_cancelled(&world, id, "pause").await;
}

#[tokio::test(start_paused = true)]
async fn after_the_verdict_it_is_too_late_and_the_result_stands() {
    let world = world(1, 1).await;
    world.until_warm(1).await;
    world.sim.script(Step::Kill, [Behaviour::Slow(Duration::from_secs(10))]);
    let id = world.submit("echo", |_| {}).await;
    view_until(&world.daemon, id, "torn down", |v| phases(v).contains(&"teardown")).await;
    let late = world.daemon.core.cancel(id).await;
    assert!(matches!(late, Err(Refused::BuildOver(_))), "{late:?}");
    let view = world.over(id).await;
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Success), 1));
    world.until_warm(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_artifacts_are_on_their_way_is_over() {
    let dir = tempfile::tempdir().expect("a folder");
    // Not a folder, so the delivery fails and stays owed.
    let path = dir.path().join("file");
    std::fs::write(&path, "").expect("written");
    let world = world_with(Sim::new(), |config| {
        config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
        config.uploads.push(Upload { name: "share".into(), sink: UploadSink::Folder { path } });
    })
    .await;
    let id = world.submit("echo", |_| {}).await;
    view_until(&world.daemon, id, "uploading", |v| v.state == BuildState::Uploading).await;
    assert!(matches!(world.daemon.core.cancel(id).await, Err(Refused::BuildOver(_))));
    let view = world.daemon.core.build(id).await.expect("known");
    assert_eq!(view.result, Some(BuildResult::Success));
}
