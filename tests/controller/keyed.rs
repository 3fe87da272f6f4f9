//! The dialect with one key for all.

use preheat::api::wire::ControllerState;
use preheat::build::spec::BuildResult;

use crate::fake_controller::{Bugs, FakeController, KEY, Speaks};
use crate::lab::{APP, Lab, app};

#[tokio::test]
async fn a_build_is_claimed_built_and_brought_home_with_its_log() {
    let controller = FakeController::start(Speaks::Keyed, Bugs::default()).await;
    let lab = Lab::asking(&controller.url(), 1).await;
    let id = controller.submit(app("echo one; echo ; echo three; sleep 1"));
    controller.over(&id).await;
    controller.until("the whole log", |book| book.builds[&id].lines().contains(&"three")).await;
    let build = controller.build(&id);
    assert_eq!((build.status.as_str(), build.error), ("completed", None));
    assert_eq!(build.result.as_deref(), Some(APP.as_bytes()), "the app, and not the log beside it");
    assert_eq!((build.told, build.fetched), (1, 1));
    assert!(build.heartbeats > 0);
    let lines: Vec<&str> = build.log.iter().map(|(_, line)| line.as_str()).collect();
    let steps: Vec<&str> = lines.iter().filter(|l| !l.starts_with("preheat: ")).copied().collect();
    assert_eq!(steps, ["one", " ", "three"], "in order, and none lost: {lines:?}");
    let ours = lab.builds().await;
    assert_eq!(ours.len(), 1);
    assert_eq!(ours[0].result, Some(BuildResult::Success));
}

#[tokio::test]
async fn two_lanes_are_two_workers_and_build_at_once() {
    let controller = FakeController::start(Speaks::Keyed, Bugs::default()).await;
    let lab = Lab::asking(&controller.url(), 2).await;
    let ids = [(); 2].map(|()| controller.submit(app("sleep 2")));
    controller.until("two at once", |book| book.active.len() == 2).await;
    lab.until("two running", |builds| builds.iter().filter(|b| b.vm.is_some()).count() == 2).await;
    let stands = lab.until_stands("busy", |c| c.busy == 2).await;
    assert_eq!((stands.state, stands.lanes), (ControllerState::Connected, 2));
    for id in ids {
        let build = controller.over(&id).await;
        assert_eq!((build.status.as_str(), build.told), ("completed", 1));
    }
    assert_eq!(controller.book().workers.len(), 2);
}

#[tokio::test]
async fn a_failure_is_told_with_its_reason() {
    let controller = FakeController::start(Speaks::Keyed, Bugs::default()).await;
    let _lab = Lab::asking(&controller.url(), 1).await;
    let id = controller.submit(app("echo begun; exit 3"));
    let build = controller.over(&id).await;
    assert_eq!((build.status.as_str(), build.told, build.result), ("failed", 1, None));
    let error = build.error.expect("a reason");
    assert!(error.starts_with("user") && error.contains('3'), "{error}");
}

#[tokio::test]
async fn a_source_that_is_none_is_refused_with_the_reason_in_its_log() {
    let controller = FakeController::start(Speaks::Keyed, Bugs::default()).await;
    let lab = Lab::asking(&controller.url(), 1).await;
    let id = controller.submit(b"PK\x03\x04 and then nothing".to_vec());
    let build = controller.over(&id).await;
    let error = build.error.clone().expect("a reason");
    assert!(error.starts_with("user: the source cannot be used"), "{error}");
    assert!(build.lines().iter().any(|line| line.contains("the source cannot be used")), "{build:?}");
    assert!(lab.builds().await.is_empty());
}

#[tokio::test]
async fn a_build_without_an_artifact_is_no_success() {
    let controller = FakeController::start(Speaks::Keyed, Bugs::default()).await;
    let _lab = Lab::asking(&controller.url(), 1).await;
    let id = controller.submit(crate::fake_controller::zipped(&[(".preheat.toml", "steps = [\"echo\"]\n")]));
    let build = controller.over(&id).await;
    let error = build.error.expect("a reason");
    assert!(build.status == "failed" && error.contains("no artifact"), "{error}");
}

#[tokio::test]
async fn a_wrong_key_is_told_and_a_new_one_is_taken_without_a_restart() {
    let controller = FakeController::start(Speaks::Keyed, Bugs::default()).await;
    let mut lab = Lab::closed(&controller.url(), 1);
    lab.write_key("not-the-key-at-all", 0o600);
    lab.start().await;
    let stands = lab.until_stands("refused", |c| c.state == ControllerState::Failing).await;
    assert!(stands.error.expect("why").contains("Invalid API key"));
    lab.write_key(KEY, 0o644);
    let stands =
        lab.until_stands("open to others", |c| c.error.as_ref().is_some_and(|e| e.contains("644"))).await;
    assert!(stands.error.expect("why").contains("is open to others"));
    lab.write_key(KEY, 0o600);
    lab.until_stands("connected", |c| c.state == ControllerState::Connected && c.error.is_none()).await;
    let id = controller.submit(app("echo"));
    assert_eq!(controller.over(&id).await.status, "completed");
}

#[tokio::test]
async fn a_worker_that_is_not_known_any_more_registers_anew() {
    let controller = FakeController::start(Speaks::Keyed, Bugs::default()).await;
    let _lab = Lab::asking(&controller.url(), 1).await;
    controller.until("registered", |book| book.workers.len() == 1).await;
    controller.book().workers.clear();
    let id = controller.submit(app("echo"));
    assert_eq!(controller.over(&id).await.status, "completed");
}

#[tokio::test]
async fn a_drained_daemon_asks_for_nothing_and_goes_on_when_it_is_resumed() {
    let controller = FakeController::start(Speaks::Keyed, Bugs::default()).await;
    let lab = Lab::asking(&controller.url(), 1).await;
    controller.until("registered", |book| book.called("poll") > 0).await;
    lab.set_draining(true).await;
    controller.until("unregistered", |book| book.called("unregister") == 1).await;
    let id = controller.submit(app("echo"));
    let asked = controller.book().called("poll");
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(controller.book().called("poll"), asked);
    assert_eq!(controller.build(&id).status, "pending");
    lab.set_draining(false).await;
    assert_eq!(controller.over(&id).await.status, "completed");
    assert_eq!(
        controller.book().called("unregister"),
        1,
        "it is not known over there, and that does no harm"
    );
}
