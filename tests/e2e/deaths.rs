//! Guests that die or freeze, in the shared house.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use preheat::api::wire::LogStream;
use preheat::build::spec::BuildResult;
use sha2::{Digest, Sha256};

use crate::house::{HOLD, shared, until};
use crate::projects::{folder, tiny};

#[test]
fn a_build_whose_guest_is_killed_succeeds_on_a_fresh_one() {
    let house = shared();
    let project = tiny(house.dir());
    let id = house.submit(&[&project, "--step", HOLD, "--pool", "linux"]);
    house.printed(id, "begun");
    let first = house.view(id).vm.expect("it has one");
    let vm = house.vms().into_iter().find(|vm| vm.name == first).expect("in the books");
    kill(house.qemu(&vm), Signal::SIGKILL).expect("alive");
    let second = house.when(id, "in its second VM", |view| view.attempt == 2 && view.vm.is_some());
    let second = second.vm.expect("it has one");
    assert_ne!(first, second);
    until("the second begin", || {
        (house.log(id).iter().filter(|line| line.text == "begun").count() == 2).then_some(())
    });
    house.release(&second);
    let build = house.over(id);
    assert_eq!((build.result, build.attempt), (Some(BuildResult::Success), 2), "{build:?}");
    let said = |line: &preheat::api::wire::LogLine| {
        line.stream == LogStream::Sys && line.text.starts_with("attempt 1 failed, and not by your doing")
    };
    assert!(house.log(id).iter().any(said), "{:#?}", house.log(id));
    let again = house.metric("preheat_build_attempts_total", &[("outcome", "again")]);
    assert!(again >= Some(1.0), "{again:?}");
}

#[test]
fn a_killed_warm_guest_is_replaced_and_counted() {
    let house = shared();
    let failures = || house.metric("preheat_vm_failures_total", &[("phase", "warm")]).expect("there");
    let retired = || house.metric("preheat_vms_retired_total", &[("reason", "failed")]).expect("there");
    let before = (failures(), retired());
    let vms = house.whole();
    // The emulator of one, and the owner of the other, which takes its emulator along.
    kill(house.qemu(&vms[0]), Signal::SIGKILL).expect("alive");
    kill(Pid::from_raw(vms[1].pid.expect("it runs").cast_signed()), Signal::SIGKILL).expect("alive");
    until("both to be out of the books", || {
        let names: Vec<_> = house.vms().into_iter().map(|vm| vm.name).collect();
        (!names.contains(&vms[0].name) && !names.contains(&vms[1].name)).then_some(())
    });
    house.whole();
    assert_eq!((failures(), retired()), (before.0 + 2.0, before.1 + 2.0));
    until("the pool to be trusted again", || house.pools()[0].trouble.is_none().then_some(()));
}

#[test]
fn a_frozen_warm_guest_costs_a_build_nothing_but_the_next_warm_vm() {
    let house = shared();
    let mut vms = house.whole();
    vms.sort_by_key(|vm| vm.since_ms);
    // The one that has been warm for longest is the first to be claimed.
    kill(house.qemu(&vms[0]), Signal::SIGSTOP).expect("alive");
    let (build, _) =
        house.run(&[&tiny(house.dir()), "--pool", "linux", "--step", "echo done", "--retries", "0"]);
    assert_eq!((build.result, build.attempt), (Some(BuildResult::Success), 1), "{build:?}");
    assert_eq!(build.vm.as_deref(), Some(vms[1].name.as_str()));
    let whole = house.whole();
    assert!(whole.iter().all(|vm| vm.name != vms[0].name), "the frozen one is gone");
}

/// So large that its way into an emulated guest, and out of it, takes seconds.
const LARGE: usize = 32 << 20;

#[test]
fn a_guest_killed_in_any_phase_costs_the_build_one_attempt() {
    let house = shared();
    let project = folder(house.dir(), "heavy", &[("README", "heavy\n")]);
    // Nothing that a transfer could compress.
    let noise: Vec<u8> = (0..LARGE / 32).flat_map(|n| Sha256::digest(n.to_le_bytes())).collect();
    std::fs::write(project.join("blob"), noise).expect("written");
    let project = project.to_str().expect("text").to_owned();
    for phase in ["source", "step", "artifacts"] {
        house.whole();
        let step = "sleep 1; mkdir out; cp blob out/";
        let id = house.submit(&[&project, "--pool", "linux", "--step", step, "--artifact", "out/*"]);
        let view = house.when(id, phase, |view| view.phases.last().is_some_and(|p| p.phase == phase));
        let first = view.vm.expect("it has one");
        let vm = house.vms().into_iter().find(|vm| vm.name == first).expect("in the books");
        kill(house.qemu(&vm), Signal::SIGKILL).expect("alive");
        let build = house.over(id);
        assert_eq!((build.result, build.attempt), (Some(BuildResult::Success), 2), "{phase}: {build:?}");
        assert_ne!(build.vm, Some(first));
        let taken: Vec<_> = build.artifacts.iter().map(|a| (a.path.as_str(), a.bytes)).collect();
        assert_eq!(taken, [("out/blob", LARGE as u64)]);
    }
}

#[test]
fn a_guest_that_hangs_under_a_step_is_found_and_costs_the_build_one_attempt() {
    let house = shared();
    let id = house.submit(&[&tiny(house.dir()), "--step", HOLD, "--pool", "linux"]);
    house.printed(id, "begun");
    let first = house.view(id).vm.expect("it has one");
    let vm = house.vms().into_iter().find(|vm| vm.name == first).expect("in the books");
    kill(house.qemu(&vm), Signal::SIGSTOP).expect("alive");
    let second = house.when(id, "in its second VM", |view| view.attempt == 2 && view.vm.is_some());
    until("the second begin", || {
        (house.log(id).iter().filter(|line| line.text == "begun").count() == 2).then_some(())
    });
    house.release(second.vm.as_deref().expect("it has one"));
    assert_eq!(house.over(id).result, Some(BuildResult::Success));
    until("the hung guest to be gone", || house.guest(&first).is_empty().then_some(()));
}

#[test]
fn a_connection_that_breaks_under_a_step_is_opened_again_and_no_line_is_lost_or_repeated() {
    let house = shared();
    let step = "for i in $(seq 1 60); do echo line $i; sleep 0.1; done";
    let id = house.submit(&[&tiny(house.dir()), "--step", step, "--pool", "linux"]);
    for line in ["line 5", "line 25"] {
        house.printed(id, line);
        let address = {
            let name = house.view(id).vm.expect("it has one");
            let vm = house.vms().into_iter().find(|vm| vm.name == name).expect("in the books");
            vm.address.expect("it has one")
        };
        let master = |line: &str| line.contains(" -M -N ") && line.contains(&address);
        let masters: Vec<_> = house.processes().into_iter().filter(|(_, line)| master(line)).collect();
        assert_eq!(masters.len(), 1, "{masters:?}");
        kill(masters[0].0, Signal::SIGKILL).expect("alive");
    }
    let build = house.over(id);
    assert_eq!((build.result, build.attempt), (Some(BuildResult::Success), 1), "{build:?}");
    let log = house.log(id);
    let said = log.iter().filter(|line| line.stream == LogStream::Out).map(|line| line.text.clone());
    assert!(said.eq((1..=60).map(|n| format!("line {n}"))), "{log:#?}");
}
