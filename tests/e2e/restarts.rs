//! A daemon that ends and is started again: no build is lost, none has two results, and what is not ours stays.

use nix::sys::signal::Signal;
use preheat::api::wire::{BuildList, BuildState, BuildView, LogStream};
use preheat::build::spec::BuildResult;

use crate::house::{HOLD, House, Plan, err, until};
use crate::projects::tiny;

fn begun(house: &House, id: u64) -> usize {
    house.log(id).iter().filter(|line| line.text == "begun").count()
}

/// One running build, one that waits, and a VM that somebody cloned by hand.
fn a_daemon_at_work() -> (House, u64, u64) {
    let house = Plan::pool(1, 1).open();
    let cloned = house.tart(&["clone", "linux", "mine"]);
    assert!(cloned.status.success(), "{}", err(&cloned));
    house.whole();
    let project = tiny(house.dir());
    let running = house.submit(&[&project, "--step", HOLD, "--pool", "linux"]);
    house.printed(running, "begun");
    let queued = house.submit(&[&project, "--step", "echo second", "--pool", "linux"]);
    assert_eq!(house.view(queued).state, BuildState::Queued);
    (house, running, queued)
}

/// `times`: how often the running one begins in all.
fn both_end_once(house: &House, running: u64, queued: u64, times: usize) {
    until("the build to begin again", || (begun(house, running) == times).then_some(()));
    house.release(house.view(running).vm.as_deref().expect("it has one"));
    for id in [running, queued] {
        let build = house.over(id);
        assert_eq!(build.result, Some(BuildResult::Success), "{build:?}");
        let ends = house.log(id).iter().filter(|l| l.stream == LogStream::Sys && l.text == "success").count();
        assert_eq!(ends, 1, "{:#?}", house.log(id));
    }
    assert_eq!(house.get::<BuildList>("builds").builds.len(), 2);
    clean(house);
}

fn clean(house: &House) {
    house.whole();
    let mut expected: Vec<String> = house.vms().into_iter().map(|vm| vm.name).collect();
    expected.extend(["linux", "mine"].map(str::to_owned));
    expected.sort();
    assert_eq!(house.listed(), expected, "orphans are gone, and what is not ours is still there");
}

#[test]
fn a_daemon_that_was_stopped_goes_on_with_its_builds() {
    let (house, running, queued) = a_daemon_at_work();
    assert_eq!(house.end(Signal::SIGTERM), Some(0), "{}", house.said());
    assert_eq!(house.listed(), ["linux", "mine"], "its VMs go with it");
    until("every process to be gone", || house.processes().is_empty().then_some(()));
    house.start();
    both_end_once(&house, running, queued, 2);
}

#[test]
fn a_daemon_that_was_killed_goes_on_with_its_builds_and_clears_its_orphans() {
    let (house, running, queued) = a_daemon_at_work();
    let before = house.view(running);
    let vm = before.vm.clone().expect("it has one");
    let ahead = until("the next VM to be cloned ahead", || {
        house.vms().into_iter().find(|row| row.state == "configured").map(|row| row.name)
    });
    house.end(Signal::SIGKILL);
    let left = house.listed();
    assert!(left.contains(&vm) && left.contains(&ahead), "nobody was there to take them away");
    house.start();
    both_end_once(&house, running, queued, 1);
    let after = house.view(running);
    assert_eq!((after.vm, after.attempt), (Some(vm), before.attempt), "it went on where it was");
    assert!(!house.listed().contains(&ahead));
    assert_eq!(house.metric("preheat_vms_adopted_total", &[("result", "adopted")]), Some(1.0));
}

/// Killed again and again while it prints: the same step, and its log as if nothing had happened.
#[test]
fn a_step_goes_on_while_its_daemon_is_killed_and_each_line_is_there_once() {
    const LINES: usize = 100;
    let house = Plan::pool(1, 1).open();
    assert!(house.tart(&["clone", "linux", "mine"]).status.success());
    house.whole();
    let step =
        format!("for i in $(seq {LINES}); do echo line $i; echo error $i >&2; sleep 0.3; done; exit 3");
    let id = house.submit(&[&tiny(house.dir()), "--step", &step, "--pool", "linux"]);
    house.printed(id, "line 1");
    let vm = house.view(id).vm;
    for kill in 1..=3 {
        house.end(Signal::SIGKILL);
        house.start();
        assert_eq!(house.view(id).vm, vm, "after kill {kill}");
        let seen = house.log(id).len();
        until("more lines", || (house.log(id).len() > seen + 4).then_some(()));
    }
    let build = house.over(id);
    assert_eq!((build.result, build.attempt), (Some(BuildResult::Failure), 1), "{build:?}");
    assert_eq!(build.vm, vm);
    assert!(build.reason.as_deref().is_some_and(|why| why.ends_with("exited with 3")), "{build:?}");
    let log = house.log(id);
    for (stream, word) in [(LogStream::Out, "line"), (LogStream::Err, "error")] {
        let texts: Vec<&str> =
            log.iter().filter(|line| line.stream == stream).map(|line| line.text.as_str()).collect();
        let expected: Vec<String> = (1..=LINES).map(|n| format!("{word} {n}")).collect();
        assert_eq!(texts, expected, "each line once, in its order");
    }
    let ends = log.iter().filter(|l| l.stream == LogStream::Sys && l.text.starts_with("failure"));
    assert_eq!(ends.count(), 1, "{log:#?}");
    clean(&house);
}

/// Needs no word from the guest but its files, which are there still.
#[test]
fn artifacts_that_a_killed_daemon_was_taking_out_come_out_of_the_same_vm() {
    const BYTES: u64 = 150 << 20;
    let house = Plan::pool(1, 1).open();
    assert!(house.tart(&["clone", "linux", "mine"]).status.success());
    house.whole();
    let project = tiny(house.dir());
    // A hole: quickly made in the guest, and long on its way out.
    let make =
        format!("mkdir out; dd if=/dev/zero of=out/big bs=1048576 count=0 seek={}; echo made", BYTES >> 20);
    let id = house.submit(&[&project, "--step", &make, "--artifact", "out/*", "--pool", "linux"]);
    let taking = |view: &BuildView| {
        view.phases.last().is_some_and(|phase| phase.phase == "artifacts" && phase.took_ms.is_none())
    };
    let vm = house.when(id, "at its artifacts", taking).vm.expect("it has one");
    let owner = house.vms().into_iter().find(|row| row.name == vm).and_then(|row| row.pid);
    house.end(Signal::SIGKILL);
    house.start();
    let adopted = house.when(id, "going on", |view| view.state == BuildState::Running);
    assert_eq!(adopted.vm.as_ref(), Some(&vm));
    until("the VM's process to be found again", || {
        let found = house.vms().into_iter().find(|row| row.name == vm).and_then(|row| row.pid);
        (found.is_some() && found == owner).then_some(())
    });

    let build = house.over(id);
    assert_eq!((build.result, build.attempt), (Some(BuildResult::Success), 1), "{build:?}");
    assert_eq!(build.vm, Some(vm));
    assert_eq!(build.artifacts.iter().map(|artifact| artifact.bytes).collect::<Vec<_>>(), [BYTES]);
    let phases: Vec<&str> = build.phases.iter().map(|phase| phase.phase.as_str()).collect();
    assert_eq!(phases, ["queue", "probe", "source", "step", "artifacts", "teardown"]);
    assert_eq!(house.log(id).iter().filter(|line| line.text == "made").count(), 1);
    assert_eq!(house.metric("preheat_vms_adopted_total", &[("result", "adopted")]), Some(1.0));
    clean(&house);
}
