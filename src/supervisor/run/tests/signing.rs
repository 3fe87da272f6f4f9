//! Builds that sign: when, over a restart, and what a guest that hangs or fails in it comes to.

use super::*;
use crate::api::wire::FailureKind;
use crate::runtime::Reason;

fn signs(spec: &mut BuildSpec) {
    spec.signing = Some(testing::signer());
}

fn phases(view: &BuildView) -> Vec<&str> {
    view.phases.iter().map(|phase| phase.phase.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_build_signs_between_its_source_and_its_artifacts_and_leaves_nothing_in_the_guest() {
    let world = world(1, 1).await;
    let id = world
        .submit("echo keychainpass", |spec| {
            signs(spec);
            spec.artifacts = vec!["app".into()];
        })
        .await;
    let view = world.over(id).await;
    assert_eq!(view.result, Some(BuildResult::Success), "{view:?}");
    let all = ["queue", "probe", "source", "signing", "step", "signing_removal", "artifacts", "teardown"];
    assert_eq!(phases(&view), all);
    let lines: Vec<_> = log::read(log_path(&world.config, id), 0, None).map(|line| line.text).collect().await;
    assert!(lines[0].starts_with("signing as Apple Distribution: Acme"), "{lines:?}");
    assert!(lines.contains(&"***".to_owned()), "its passwords are masked: {lines:?}");
    assert!(world.daemon.context.store.secrets(id).await.is_err(), "it went with the result");
}

#[tokio::test(start_paused = true)]
async fn a_build_that_waits_signs_after_a_restart() {
    let world = world(0, 1).await;
    world.sim.always(Step::Connect, Behaviour::Never);
    let id = world.submit("echo", signs).await;
    let World { daemon, sim, config, dir } = world;
    daemon.stop().await;
    sim.always(Step::Connect, Behaviour::Ok);
    let daemon = start(&config, &sim).await;
    assert_eq!(over(&daemon, id).await.result, Some(BuildResult::Success));
    assert_eq!((sim.count(Step::Sign), sim.count(Step::Unsign)), (1, 1));
    drop(dir);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_hangs_while_it_signs_is_a_timeout_that_names_the_step() {
    let world = world(1, 1).await;
    world.sim.always(Step::Sign, Behaviour::Never);
    let id = world.submit("echo", signs).await;
    let view = world.over(id).await;
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Timeout), 1), "{view:?}");
    assert_eq!(view.reason.as_deref(), Some("signing: `import` in the guest took longer than 1m"));
    assert_eq!(view.failure.map(|failure| failure.kind), Some(FailureKind::Signing));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_lost_while_it_signs_costs_an_attempt_and_what_does_not_go_costs_nothing() {
    let world = world(1, 1).await;
    world.sim.script(Step::Sign, [Behaviour::Err(Reason::ConnectionLost)]);
    world.sim.always(Step::Unsign, Behaviour::Err(Reason::ConnectionLost));
    let id = world.submit("echo", signs).await;
    let view = world.over(id).await;
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Success), 2), "{view:?}");
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_certificate_does_not_open_after_a_restart_ends_and_says_so() {
    let world = world(0, 1).await;
    world.sim.always(Step::Connect, Behaviour::Never);
    let id = world.submit("echo", signs).await;
    let World { daemon, sim, config, dir } = world;
    daemon.stop().await;
    std::fs::remove_file(dir.path().join("keys/journal.key")).expect("removed");
    let daemon = start(&config, &sim).await;
    let view = over(&daemon, id).await;
    assert_eq!(view.result, Some(BuildResult::Error));
    let reason = view.reason.expect("a reason");
    assert!(reason.contains("its certificate and profiles are lost"), "{reason}");
}
