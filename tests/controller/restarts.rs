//! Either side ends in the middle of a build, and starts again: one result.

use preheat::build::spec::BuildResult;

use crate::fake_controller::{Bugs, FakeController, Speaks};
use crate::lab::{APP, Lab, app};

const BOTH: [Speaks; 2] = [Speaks::Keyed, Speaks::Tokened];

#[tokio::test]
async fn a_daemon_that_is_started_again_goes_on_with_the_job() {
    for speaks in BOTH {
        let controller = FakeController::start(speaks, Bugs::default()).await;
        let mut lab = Lab::asking(&controller.url(), 1).await;
        let id = controller.submit(app("echo one; sleep 2; echo two"));
        controller.until("its log", |book| book.builds[&id].lines().contains(&"one")).await;
        lab.cut().await;
        assert!(!controller.build(&id).over());
        lab.start().await;
        let build = controller.over(&id).await;
        assert_eq!((build.status.as_str(), build.told, build.fetched), ("completed", 1, 1), "{speaks:?}");
        assert_eq!(build.result.as_deref(), Some(APP.as_bytes()));
        let builds = lab.builds().await;
        assert_eq!((builds.len(), builds[0].result), (1, Some(BuildResult::Success)));
        assert!(build.lines().contains(&"two"), "{build:?}");
        assert_eq!(controller.book().workers.len(), 1, "it is the worker that it was");
    }
}

#[tokio::test]
async fn a_controller_that_is_away_for_a_while_gets_the_result_and_the_log() {
    for speaks in BOTH {
        let mut controller = FakeController::start(speaks, Bugs::default()).await;
        let lab = Lab::asking(&controller.url(), 1).await;
        let id = controller.submit(app("echo one; sleep 2; echo two"));
        controller.until("its log", |book| book.builds[&id].lines().contains(&"one")).await;
        controller.stop().await;
        lab.until("over", |builds| builds.iter().all(|b| b.result.is_some())).await;
        controller.start_again().await;
        let build = controller.over(&id).await;
        assert_eq!((build.status.as_str(), build.told), ("completed", 1), "{speaks:?}");
        // The result does not wait for long for what could not be told before.
        controller.until("the rest", |book| book.builds[&id].lines().contains(&"two")).await;
        let build = controller.build(&id);
        let lines: Vec<&str> = build.lines().into_iter().filter(|l| !l.starts_with("preheat: ")).collect();
        assert_eq!(lines, ["one", "two"]);
    }
}

#[tokio::test]
async fn a_result_outlives_the_daemon_that_could_not_bring_it_home() {
    for speaks in BOTH {
        let mut controller = FakeController::start(speaks, Bugs::default()).await;
        let mut lab = Lab::asking(&controller.url(), 1).await;
        let id = controller.submit(app("sleep 1"));
        lab.until("running", |builds| builds.iter().any(|b| b.vm.is_some())).await;
        controller.stop().await;
        lab.until("over", |builds| builds.iter().all(|b| b.result.is_some())).await;
        lab.cut().await;
        controller.start_again().await;
        lab.start().await;
        let build = controller.over(&id).await;
        assert_eq!((build.status.as_str(), build.told, build.fetched), ("completed", 1, 1), "{speaks:?}");
        assert_eq!(lab.builds().await.len(), 1);
    }
}

/// A crash between a result's arrival and our note of it.
#[tokio::test]
async fn a_result_that_is_there_is_not_brought_by_the_next_daemon() {
    for speaks in BOTH {
        let controller = FakeController::start(speaks, Bugs { flips: true, ..Bugs::default() }).await;
        let mut lab = Lab::asking(&controller.url(), 1).await;
        let id = controller.submit(app("echo"));
        controller.over(&id).await;
        let next = controller.submit(app("echo"));
        controller.over(&next).await;
        lab.cut().await;
        let journal = rusqlite::Connection::open(lab.journal()).expect("the journal");
        let sql = "UPDATE controller_jobs SET ended_ms = NULL, outcome = NULL WHERE job = ?1";
        assert_eq!(journal.execute(sql, [&id]).expect("changed"), 1);
        lab.start().await;
        let last = controller.submit(app("echo"));
        assert_eq!(controller.over(&last).await.status, "completed");
        let build = controller.build(&id);
        assert_eq!((build.status.as_str(), build.told), ("completed", 1), "{speaks:?}");
    }
}

/// A crash between the acceptance of a build and our note of which it is.
#[tokio::test]
async fn a_build_is_found_again_by_the_job_that_it_names() {
    for speaks in BOTH {
        let controller = FakeController::start(speaks, Bugs::default()).await;
        let mut lab = Lab::asking(&controller.url(), 1).await;
        let id = controller.submit(app("sleep 2"));
        lab.until("running", |builds| builds.iter().any(|b| b.vm.is_some())).await;
        lab.cut().await;
        let journal = rusqlite::Connection::open(lab.journal()).expect("the journal");
        let sql = "UPDATE controller_jobs SET build = NULL, token = NULL WHERE job = ?1";
        assert_eq!(journal.execute(sql, [&id]).expect("changed"), 1);
        lab.start().await;
        let build = controller.over(&id).await;
        assert_eq!((build.status.as_str(), build.told, build.fetched), ("completed", 1, 1), "{speaks:?}");
        assert_eq!(lab.builds().await.len(), 1);
    }
}

/// A crash before a job was accepted: one dialect offers it again, in the other it goes back.
#[tokio::test]
async fn a_job_that_was_not_accepted_yet_is_built_all_the_same() {
    for speaks in BOTH {
        let controller = FakeController::start(speaks, Bugs::default()).await;
        let mut lab = Lab::asking(&controller.url(), 1).await;
        controller.until("registered", |book| book.called("poll") > 0).await;
        lab.cut().await;
        let id = controller.submit(app("echo"));
        {
            let mut book = controller.book();
            let worker = book.workers.keys().next().cloned().expect("one");
            book.queue.clear();
            let build = book.of(&id);
            (build.status, build.worker) = ("assigned".into(), Some(worker.clone()));
            book.active.insert(worker, id.clone());
        }
        let journal = rusqlite::Connection::open(lab.journal()).expect("the journal");
        let sql = "INSERT INTO controller_jobs (controller, job, lane, taken_ms) VALUES ('mesh', ?1, 0, 1)";
        journal.execute(sql, [&id]).expect("written");
        lab.start().await;
        let build = controller.over(&id).await;
        assert_eq!((build.status.as_str(), build.told), ("completed", 1), "{speaks:?}");
        let given_back = usize::from(speaks == Speaks::Tokened);
        assert_eq!(controller.book().abandoned.len(), given_back);
    }
}

#[tokio::test]
async fn a_daemon_that_is_told_to_end_brings_home_what_it_has_and_leaves() {
    for speaks in BOTH {
        let controller = FakeController::start(speaks, Bugs::default()).await;
        let mut lab = Lab::asking(&controller.url(), 1).await;
        let id = controller.submit(app("sleep 2"));
        lab.until("running", |builds| builds.iter().any(|b| b.vm.is_some())).await;
        lab.end().await;
        let build = controller.build(&id);
        assert_eq!((build.status.as_str(), build.told), ("completed", 1), "{speaks:?}");
        assert_eq!(controller.book().called("unregister"), 1);
    }
}
