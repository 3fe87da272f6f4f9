//! A step that its user lets run again: in the same VM, each run in its own right, also over a crash.

use super::crashes::{at_work, log};
use super::*;
use crate::api::wire::LogStream;

fn flaky(runs: usize, retries: u16) -> impl FnOnce(&mut BuildSpec) {
    move |spec| {
        let step = testing::step("test", &format!("echo run; sleep 10; flaky {runs}; echo fine"));
        spec.steps = vec![BuildStep { retries, ..step }, testing::step("after", "echo after")];
        spec.retries = 0;
    }
}

fn said(world: &World, id: BuildId, stream: LogStream) -> Vec<String> {
    let lines = log(&world.config, id).into_iter();
    lines.filter(|line| line.stream == stream).map(|line| line.text).collect()
}

fn exit_codes(view: &BuildView) -> Vec<(Option<&str>, Option<i32>)> {
    let steps = view.phases.iter().filter(|phase| phase.phase == "step");
    steps.map(|phase| (phase.step.as_deref(), phase.exit_code)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_step_that_may_fail_is_run_again_in_its_vm_until_it_does_not() {
    let world = world(1, 1).await;
    let id = world.submit("", flaky(2, 3)).await;
    let view = world.over(id).await;
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Success), 1), "{view:?}");
    let (test, after) = (Some("test"), Some("after"));
    assert_eq!(exit_codes(&view), [(test, Some(2)), (test, Some(2)), (test, Some(0)), (after, Some(0))]);
    assert_eq!(said(&world, id, LogStream::Out), ["run", "run", "run", "fine", "after"]);
    let words = said(&world, id, LogStream::Sys);
    for n in [1, 2] {
        let line = format!("step `test` exited with 2; it is run again ({n} of 3)");
        assert_eq!(words.iter().filter(|text| **text == line).count(), 1, "{words:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_as_often_as_it_may_fails_the_build() {
    let world = world(1, 1).await;
    for (retries, runs) in [(0, 1), (2, 3)] {
        let id = world.submit("", flaky(9, retries)).await;
        let view = world.over(id).await;
        assert_eq!(view.result, Some(BuildResult::Failure));
        assert_eq!(view.reason.as_deref(), Some("step `test` exited with 2"));
        assert_eq!(exit_codes(&view).len(), runs);
    }
}

#[tokio::test(start_paused = true)]
async fn neither_a_time_out_nor_a_cancel_runs_a_step_again() {
    let world = world(1, 1).await;
    let late = |spec: &mut BuildSpec| {
        flaky(9, 5)(spec);
        spec.steps[0].timeout = Duration::from_secs(5);
    };
    let id = world.submit("", late).await;
    let view = world.over(id).await;
    assert_eq!((view.result, exit_codes(&view).len()), (Some(BuildResult::Timeout), 1));

    let id = world.submit("", flaky(9, 5)).await;
    let second = |v: &BuildView| exit_codes(v).len() == 2;
    view_until(&world.daemon, id, "in its second run", second).await;
    world.daemon.core.cancel(id).await.expect("in time");
    let view = world.over(id).await;
    assert_eq!((view.result, exit_codes(&view).len()), (Some(BuildResult::Cancellation), 2));
}

#[tokio::test(start_paused = true)]
async fn a_crash_in_a_run_or_between_two_neither_adds_a_run_nor_takes_one_away() {
    for seconds in [1, 5, 9, 10, 11, 15, 19, 20, 21, 25, 31] {
        let world = at_work().await;
        let id = world.submit("", flaky(9, 2)).await;
        let before = world.until_in(id, "step").await;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let world = world.crash().await.start().await;
        let view = world.over(id).await;
        assert_eq!(
            (view.result, view.attempt),
            (Some(BuildResult::Failure), 1),
            "after {seconds} s: {view:?}"
        );
        assert_eq!(view.vm, before.vm);
        assert_eq!(exit_codes(&view), [(Some("test"), Some(2)); 3], "after {seconds} s");
        assert_eq!(said(&world, id, LogStream::Out), ["run"; 3], "after {seconds} s");
        assert_eq!(phases(&view), ["queue", "probe", "source", "step", "step", "step", "teardown"]);
        let again = said(&world, id, LogStream::Sys).into_iter().filter(|text| text.contains("run again"));
        assert_eq!(again.count(), 2, "after {seconds} s");
        world.clean().await;
    }
}
