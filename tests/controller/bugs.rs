//! What is wrong with the real controllers, one by one and all at once.

use preheat::build::spec::BuildResult;

use crate::fake_controller::{Bugs, FakeController, Speaks};
use crate::lab::{APP, Lab, app};

/// Failed heartbeats, telemetry and logs hurt no build, and no line is lost or told out of order.
#[tokio::test]
async fn calls_beside_a_build_that_fail_do_not_hurt_it() {
    for speaks in [Speaks::Keyed, Speaks::Tokened] {
        let bugs = Bugs { heartbeats_fail: true, telemetry_fails: true, logs_fail: 2, ..Bugs::default() };
        let controller = FakeController::start(speaks, bugs).await;
        let _lab = Lab::asking(&controller.url(), 1).await;
        let id = controller.submit(app("echo one; sleep 1; echo two; sleep 1; echo three"));
        let build = controller.over(&id).await;
        assert_eq!((build.status.as_str(), build.told), ("completed", 1), "{speaks:?}");
        controller.until("the rest", |book| book.builds[&id].lines().contains(&"three")).await;
        let build = controller.build(&id);
        let lines: Vec<&str> = build.lines().into_iter().filter(|l| !l.starts_with("preheat: ")).collect();
        assert_eq!(lines, ["one", "two", "three"]);
    }
}

/// A build that is cancelled while it waits is offered for ever: it is not built, and a failure clears it.
#[tokio::test]
async fn a_ghost_is_cleared_and_not_built() {
    let bugs = Bugs { ghosts: true, ..Bugs::default() };
    let controller = FakeController::start(Speaks::Keyed, bugs).await;
    let ghost = controller.submit(app("echo boo"));
    controller.book().cancel(&ghost, "failed");
    let id = controller.submit(app("echo"));
    let lab = Lab::asking(&controller.url(), 1).await;
    assert_eq!(controller.over(&id).await.status, "completed");
    let ghost = controller.build(&ghost);
    assert_eq!((ghost.status.as_str(), ghost.told, ghost.fetched), ("failed", 1, 0));
    assert_eq!(ghost.error.as_deref(), Some("Build cancelled by user"), "it says what it said");
    assert_eq!(lab.builds().await.len(), 1);
}

/// The worker is not told of a cancel: it finds out, stops the build, and tells nothing.
#[tokio::test]
async fn a_build_that_is_cancelled_over_there_is_cancelled_here() {
    for (speaks, status) in [(Speaks::Keyed, "failed"), (Speaks::Tokened, "cancelled")] {
        let controller = FakeController::start(speaks, Bugs::default()).await;
        let lab = Lab::asking(&controller.url(), 1).await;
        let id = controller.submit(app("sleep 600"));
        lab.until("running", |builds| builds.iter().any(|b| b.vm.is_some())).await;
        controller.book().cancel(&id, status);
        let builds = lab.until("over", |builds| builds.iter().all(|b| b.result.is_some())).await;
        assert_eq!(builds[0].result, Some(BuildResult::Cancellation), "{speaks:?}");
        let next = controller.submit(app("echo"));
        assert_eq!(controller.over(&next).await.status, "completed");
        assert_eq!((controller.build(&id).status.as_str(), controller.build(&id).told), (status, 0));
    }
}

/// A sweep fails a build that lives. It goes on, and its late success is taken.
#[tokio::test]
async fn a_late_success_is_brought_home_after_a_sweep() {
    let bugs = Bugs { heartbeats_fail: true, ..Bugs::default() };
    let controller = FakeController::start(Speaks::Keyed, bugs).await;
    let lab = Lab::asking(&controller.url(), 1).await;
    let id = controller.submit(app("sleep 3"));
    lab.until("running", |builds| builds.iter().any(|b| b.vm.is_some())).await;
    controller.book().sweep(&id);
    controller.until("completed", |book| book.builds[&id].status == "completed").await;
    let build = controller.build(&id);
    assert_eq!((build.told, build.result.as_deref()), (1, Some(APP.as_bytes())));
}

/// A result that was stored and answered with an error is not brought a second time.
#[tokio::test]
async fn a_result_that_arrived_is_told_once_whatever_the_answer_was() {
    for speaks in [Speaks::Keyed, Speaks::Tokened] {
        for command in ["echo", "exit 3"] {
            let bugs = Bugs { results_fail_after: 1, flips: true, ..Bugs::default() };
            let controller = FakeController::start(speaks, bugs).await;
            let mut lab = Lab::asking(&controller.url(), 1).await;
            let id = controller.submit(app(command));
            let build = controller.over(&id).await;
            // The next build comes when the lane is done with this one.
            let next = controller.submit(app("echo"));
            assert_eq!(controller.over(&next).await.status, "completed");
            let again = controller.build(&id);
            assert_eq!((again.status, again.told), (build.status, 1), "{speaks:?} {command}");
            lab.cut().await;
        }
    }
}

/// One that was not stored is brought until it is.
#[tokio::test]
async fn a_result_that_did_not_arrive_is_brought_again() {
    for speaks in [Speaks::Keyed, Speaks::Tokened] {
        let bugs = Bugs { results_fail_before: 3, ..Bugs::default() };
        let controller = FakeController::start(speaks, bugs).await;
        let _lab = Lab::asking(&controller.url(), 1).await;
        let id = controller.submit(app("echo"));
        let build = controller.over(&id).await;
        assert_eq!((build.status.as_str(), build.told), ("completed", 1), "{speaks:?}");
        assert_eq!(controller.book().bugs.results_fail_before, 0);
    }
}

/// A build that has its success already is never made a failure by a late word of ours.
#[tokio::test]
async fn a_failure_does_not_spoil_a_success_that_is_there() {
    let controller = FakeController::start(Speaks::Keyed, Bugs::default()).await;
    let mut lab = Lab::asking(&controller.url(), 1).await;
    let id = controller.submit(app("sleep 1; exit 3"));
    lab.until("running", |builds| builds.iter().any(|b| b.vm.is_some())).await;
    // Another worker's result, which nothing checks.
    controller.book().result(&id, Some(b"anothers".to_vec()), None);
    let next = controller.submit(app("echo"));
    assert_eq!(controller.over(&next).await.status, "completed");
    let build = controller.build(&id);
    assert_eq!((build.status.as_str(), build.told), ("completed", 1));
    lab.cut().await;
}

/// Everything at once.
#[tokio::test]
async fn with_every_bug_at_once_each_build_ends_right() {
    let bugs = Bugs {
        heartbeats_fail: true,
        telemetry_fails: true,
        ghosts: true,
        results_fail_after: 1,
        logs_fail: 1,
        ..Bugs::default()
    };
    let controller = FakeController::start(Speaks::Keyed, bugs).await;
    let ghost = controller.submit(app("echo boo"));
    controller.book().cancel(&ghost, "failed");
    let lab = Lab::asking(&controller.url(), 2).await;
    let swept = controller.submit(app("sleep 3"));
    let cancelled = controller.submit(app("sleep 600"));
    lab.until("running", |builds| builds.iter().filter(|b| b.vm.is_some()).count() == 2).await;
    controller.book().sweep(&swept);
    controller.book().cancel(&cancelled, "failed");
    let failing = controller.submit(app("exit 3"));
    controller.until("the late success", |book| book.builds[&swept].status == "completed").await;
    assert_eq!(controller.over(&failing).await.status, "failed");
    let last = controller.submit(app("echo"));
    assert_eq!(controller.over(&last).await.status, "completed");
    lab.until("all over", |builds| builds.iter().all(|b| b.result.is_some())).await;
    for (id, status, told) in [
        (&ghost, "failed", 1),
        (&swept, "completed", 1),
        (&cancelled, "failed", 0),
        (&failing, "failed", 1),
        (&last, "completed", 1),
    ] {
        let build = controller.build(id);
        assert_eq!((build.status.as_str(), build.told), (status, told), "{id}: {build:?}");
    }
    assert_eq!(controller.build(&cancelled).error.as_deref(), Some("Build cancelled by user"));
}
