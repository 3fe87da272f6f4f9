//! The dialect with tokens.

use crate::fake_controller::{Bugs, FakeController, Speaks};
use crate::lab::{APP, Lab, app};

#[tokio::test]
async fn a_build_is_brought_home_by_its_own_token_and_told_once() {
    let controller = FakeController::start(Speaks::Tokened, Bugs { flips: true, ..Bugs::default() }).await;
    let _lab = Lab::asking(&controller.url(), 1).await;
    let id = controller.submit(app("echo one; sleep 1; echo two"));
    controller.over(&id).await;
    controller.until("the whole log", |book| book.builds[&id].lines().contains(&"two")).await;
    let build = controller.build(&id);
    assert_eq!((build.status.as_str(), build.told), ("completed", 1));
    assert_eq!(build.result.as_deref(), Some(APP.as_bytes()));
    let lines: Vec<&str> = build.lines().into_iter().filter(|l| !l.starts_with("preheat: ")).collect();
    assert_eq!(lines, ["one", "two"]);
    let next = controller.submit(app("echo"));
    assert_eq!(controller.over(&next).await.status, "completed");
    let book = controller.book();
    assert_eq!(
        (book.called("artifact"), book.called("upload")),
        (2, 0),
        "no success is told beside the file"
    );
    assert_eq!(
        (book.called("vm-ready"), book.called("vm-status")),
        (0, 0),
        "which would show the token to all"
    );
}

#[tokio::test]
async fn a_token_that_is_too_old_is_replaced_under_the_workers_name() {
    let controller = FakeController::start(Speaks::Tokened, Bugs::default()).await;
    let _lab = Lab::asking(&controller.url(), 1).await;
    controller.until("asked", |book| book.called("poll") > 0).await;
    controller.book().workers.values_mut().for_each(|token| *token = "another".into());
    let id = controller.submit(app("echo"));
    assert_eq!(controller.over(&id).await.status, "completed");
    assert_eq!(controller.book().workers.len(), 1);
}

#[tokio::test]
async fn the_workers_token_is_kept_alive_while_it_builds() {
    let controller = FakeController::start(Speaks::Tokened, Bugs::default()).await;
    let lab = Lab::asking(&controller.url(), 1).await;
    let id = controller.submit(app("sleep 4"));
    lab.until("running", |builds| builds.iter().any(|b| b.vm.is_some())).await;
    let asked = controller.book().called("poll");
    controller.until("asked meanwhile", |book| book.called("poll") > asked + 1).await;
    assert!(!controller.build(&id).over());
    // Swept or not: what is offered while the lane is busy goes back to the queue.
    let other = controller.submit(app("echo"));
    controller.book().active.clear();
    controller.until("given back", |book| book.abandoned.contains(&other)).await;
    for id in [id, other] {
        let build = controller.over(&id).await;
        assert_eq!((build.status.as_str(), build.told), ("completed", 1));
    }
}

#[tokio::test]
async fn a_result_whose_token_is_too_old_goes_the_other_way() {
    let bugs = Bugs { job_tokens_expire: true, flips: true, ..Bugs::default() };
    let controller = FakeController::start(Speaks::Tokened, bugs).await;
    let _lab = Lab::asking(&controller.url(), 1).await;
    let id = controller.submit(app("echo"));
    let build = controller.over(&id).await;
    assert_eq!(
        (build.status.as_str(), build.told, build.result.as_deref()),
        ("completed", 1, Some(APP.as_bytes()))
    );
}

#[tokio::test]
async fn a_job_whose_offer_was_lost_goes_back() {
    let controller = FakeController::start(Speaks::Tokened, Bugs::default()).await;
    let mut lab = Lab::asking(&controller.url(), 1).await;
    controller.until("asked", |book| book.called("poll") > 0).await;
    lab.cut().await;
    let id = controller.submit(app("echo"));
    {
        let mut book = controller.book();
        let worker = book.workers.keys().next().cloned().expect("one");
        book.queue.clear();
        let build = book.of(&id);
        (build.status, build.worker) = ("assigned".into(), Some(worker));
    }
    lab.start().await;
    assert_eq!(controller.over(&id).await.status, "completed");
    assert_eq!(controller.book().abandoned, [id]);
}
