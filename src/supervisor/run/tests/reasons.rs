//! Why a build failed, as whoever submitted it is told.

use super::crashes::{at_work, log};
use super::*;
use crate::api::wire::{AppKind, FailureKind};
use crate::build::app;

fn failing(command: &'static str) -> impl FnOnce(&mut BuildSpec) {
    move |spec| {
        spec.steps =
            vec![testing::step("before", "echo error: not this one"), testing::step("test", command)];
        spec.retries = 0;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_step_is_told_by_what_it_printed_and_without_its_secrets() {
    let world = world(1, 1).await;
    let spec = |spec: &mut BuildSpec| {
        failing("echo error: no keykey in here; echo that was it; exit 3")(spec);
        spec.secrets = vec!["KEY".into()];
    };
    let id = world.submit("", spec).await;
    let view = world.over(id).await;
    assert_eq!(view.reason.as_deref(), Some("step `test` exited with 3"));
    let failure = view.failure.expect("it failed");
    assert_eq!((failure.kind, failure.step.as_deref()), (FailureKind::User, Some("test")));
    assert_eq!(failure.message, "error: no *** in here");
    assert_eq!(failure.lines, ["error: no *** in here"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_step_said_before_a_crash_still_says_why_it_failed() {
    let world = at_work().await;
    let id = world.submit("", failing("echo error: early; sleep 20; echo late; exit 3")).await;
    world.until_in(id, "step").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let world = world.crash().await.start().await;
    let view = world.over(id).await;
    assert_eq!(view.attempt, 1);
    assert_eq!(view.failure.map(|failure| failure.message).as_deref(), Some("error: early"));
}

#[tokio::test(start_paused = true)]
async fn every_end_but_a_good_one_has_a_kind() {
    let world = world(1, 1).await;
    let late = |spec: &mut BuildSpec| {
        failing("echo downloading; sleep 60")(spec);
        spec.steps[1].timeout = Duration::from_secs(5);
    };
    let view = world.over(world.submit("", late).await).await;
    let failure = view.failure.expect("it failed");
    assert_eq!(
        (failure.kind, failure.lines.as_slice()),
        (FailureKind::Timeout, &["downloading".to_owned()][..])
    );
    assert_eq!(Some(failure.message), view.reason);
    let good = world.over(world.submit("echo fine", |_| {}).await).await;
    assert_eq!((good.result, good.failure), (Some(BuildResult::Success), None));
}

#[tokio::test(start_paused = true)]
async fn what_was_chosen_for_a_build_is_the_beginning_of_its_log() {
    let world = world(1, 1).await;
    let chosen = |spec: &mut BuildSpec| {
        spec.pipeline = Some("expo".into());
        spec.said = vec!["pipeline expo: as the request says".into()];
    };
    let id = world.submit("echo fine", chosen).await;
    assert_eq!(world.over(id).await.pipeline.as_deref(), Some("expo"));
    let lines = log(&world.config, id);
    assert_eq!(lines[0].text, "pipeline expo: as the request says");
}

/// The simulated guest writes a glob's own text under its name.
#[tokio::test(start_paused = true)]
async fn an_app_that_is_none_fails_its_build_with_the_reason() {
    assert_eq!(app::kind("app.ipa"), Some(AppKind::Ipa));
    let world = world(1, 1).await;
    let id = world.submit("echo fine", |spec| spec.artifacts = vec!["app.ipa".into()]).await;
    let view = world.over(id).await;
    assert_eq!((view.result, view.artifacts.len()), (Some(BuildResult::Failure), 0));
    let why = "artifact `app.ipa` is no ipa: it is no zip archive";
    assert!(view.reason.as_deref().is_some_and(|reason| reason.starts_with(why)), "{:?}", view.reason);
    assert_eq!(view.failure.map(|failure| failure.kind), Some(FailureKind::User));
}
