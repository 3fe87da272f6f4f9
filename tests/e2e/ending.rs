//! How a daemon with real guests ends, by real signals, and how it is emptied for maintenance.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use preheat::api::wire::{BuildState, DaemonState, StatusView};
use preheat::build::spec::BuildResult;

use crate::house::{HOLD, House, Plan, err, until};
use crate::projects::tiny;

fn signal(house: &House, signal: Signal) {
    kill(Pid::from_raw(house.pid().cast_signed()), signal).expect("alive");
}

fn says(house: &House, words: &str) {
    until(words, || house.said().contains(words).then_some(()));
}

/// One build that runs until it is released, and one that waits.
fn at_work(config: &str) -> (House, u64, u64) {
    let house = Plan::pool(1, 1).and(config).open();
    house.whole();
    let project = tiny(house.dir());
    let running = house.submit(&[&project, "--step", HOLD, "--pool", "linux"]);
    house.printed(running, "begun");
    let waiting = house.submit(&[&project, "--step", "echo second", "--pool", "linux"]);
    (house, running, waiting)
}

#[test]
fn the_first_signal_lets_the_running_build_finish_and_takes_no_more() {
    let (house, running, waiting) = at_work("[stop]\ndrain_timeout = \"10m\"\n");
    signal(&house, Signal::SIGTERM);
    says(&house, "daemon draining");
    let refused = house.preheat(&["submit", &tiny(house.dir()), "--step", "true", "--pool", "linux"]);
    assert_eq!(refused.status.code(), Some(3), "{}", err(&refused));
    assert!(err(&refused).contains("the daemon is stopping"), "{}", err(&refused));
    assert_eq!(house.get::<StatusView>("status").state, DaemonState::Stopping);
    assert_eq!(house.view(running).state, BuildState::Running, "it goes on");
    house.release(house.view(running).vm.as_deref().expect("it has one"));
    assert_eq!(house.ended(), Some(0), "{}", house.said());
    assert_eq!(house.listed(), ["linux"], "no VM is left");
    house.start();
    let view = house.over(running);
    assert_eq!(
        (view.result, view.attempt),
        (Some(BuildResult::Success), 1),
        "it ended before the daemon did"
    );
    assert_eq!(house.over(waiting).result, Some(BuildResult::Success), "it was taken up");
}

#[test]
fn the_second_signal_stops_at_once_and_takes_the_vms_away() {
    let (house, running, _) = at_work("[stop]\ndrain_timeout = \"10m\"\n");
    signal(&house, Signal::SIGTERM);
    says(&house, "daemon draining");
    signal(&house, Signal::SIGINT);
    assert_eq!(house.ended(), Some(0), "{}", house.said());
    assert!(house.said().contains("a second signal came"), "{}", house.said());
    assert_eq!(house.listed(), ["linux"], "no VM is left");
    until("every process to be gone", || house.processes().is_empty().then_some(()));
    house.start();
    until("the build to begin again", || (house.view(running).state == BuildState::Running).then_some(()));
    house.printed(running, "begun");
    until("its VM", || house.view(running).vm.map(|vm| house.release(&vm)));
    assert_eq!(house.over(running).result, Some(BuildResult::Success));
}

#[test]
fn a_signal_while_vms_are_taken_away_exits_and_the_next_start_clears_up() {
    let (house, running, _) = at_work("[stop]\ndrain_timeout = \"0s\"\n");
    // The VM's files are not deleted for now, so taking it away takes its time.
    house.faults("[[fault]]\nverb = \"delete\"\ntimes = 100\nkind = \"hang\"\n");
    signal(&house, Signal::SIGTERM);
    says(&house, "daemon stopping");
    signal(&house, Signal::SIGTERM);
    assert_eq!(house.ended(), Some(143), "{}", house.said());
    assert!(house.listed().len() > 1, "what it had no time for is still there");
    // The verb that hung has lost the one who would have killed it in time.
    let hung = house.processes().into_iter().filter(|(_, line)| line.contains(" delete "));
    hung.for_each(|(pid, _)| kill(pid, Signal::SIGKILL).expect("it hangs"));
    house.faults("");
    house.start();
    house.printed(running, "begun");
    until("its VM", || house.view(running).vm.map(|vm| house.release(&vm)));
    assert_eq!(house.over(running).result, Some(BuildResult::Success));
    house.whole();
}

#[test]
fn a_drained_daemon_has_no_vm_and_goes_on_when_it_is_told() {
    let (house, running, waiting) = at_work("");
    let drain = house.beside(&["drain", "--wait", "--timeout", "4m"]);
    until("draining", || (house.get::<StatusView>("status").state == DaemonState::Draining).then_some(()));
    house.release(house.view(running).vm.as_deref().expect("it has one"));
    let drained = drain.join().expect("no panic");
    assert_eq!(drained.status.code(), Some(0), "{}", err(&drained));
    assert_eq!(house.view(running).result, Some(BuildResult::Success));
    assert_eq!(
        (house.view(waiting).state, house.listed().as_slice()),
        (BuildState::Queued, &["linux".to_owned()][..])
    );
    assert!(house.metrics().contains("\npreheat_draining 1\n"));
    let resumed = house.preheat(&["resume"]);
    assert_eq!(resumed.status.code(), Some(0), "{}", err(&resumed));
    assert_eq!(house.over(waiting).result, Some(BuildResult::Success));
}
