//! VMs that resume from a suspended one of their slot, with real saved states of real guests.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use preheat::api::wire::VmView;
use preheat::clock::UnixMillis;

use crate::house::{House, Plan, err, out, until};
use crate::projects::tiny;

/// What one guest says of itself: its time when it was asked, what it drew, the host key that its sshd shows.
const WHO: &str = "date +%s; od -An -tx1 -N16 /dev/urandom; od -An -tx1 -N16 /dev/random; \
                   ssh-keyscan -p 22 127.0.0.1 2>/dev/null | cut -d' ' -f2-; ls ~/.preheat/fresh 2>&1; true";

/// The VMs, when as many are suspended and warm as should be.
fn settled(house: &House, warm: usize, suspended: usize) -> (Vec<VmView>, Vec<VmView>) {
    until(&format!("{warm} warm and {suspended} suspended"), || {
        let (golden, others): (Vec<_>, Vec<_>) =
            house.vms().into_iter().partition(|vm| vm.state == "suspended");
        let whole = golden.len() == suspended && others.len() == warm;
        (whole && others.iter().all(|vm| vm.state == "warm")).then_some((others, golden))
    })
}

fn booted(house: &House, path: &str) -> f64 {
    house.metric("preheat_vm_boot_seconds_count", &[("path", path)]).unwrap_or(0.0)
}

fn fallbacks(house: &House, reason: &str) -> f64 {
    house.metric("preheat_resume_fallbacks_total", &[("reason", reason)]).unwrap_or(0.0)
}

#[test]
fn each_resumed_guest_has_its_own_clock_randomness_and_host_keys() {
    // Real virtualisation gives a resumed guest nothing of its own.
    let house = Plan::resuming(2, 2).variable("TART_QEMU_STALE_RESUME", "1").open();
    settled(&house, 2, 2);
    let (mut drawn, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..4 {
        let (build, _) = house.run(&[&tiny(house.dir()), "--pool", "mac", "--step", WHO]);
        let now = UnixMillis::now().0.unsigned_abs() / 1000;
        let lines: Vec<String> = house.log(build.id.0).into_iter().map(|line| line.text).collect();
        let at = lines.iter().position(|line| line.parse::<u64>().is_ok()).expect("a time");
        let theirs: u64 = lines[at].parse().expect("a time");
        assert!(now.abs_diff(theirs) < 60, "{theirs} at {now}: a saved clock would be minutes behind by now");
        for line in &lines[at + 1..at + 3] {
            assert!(drawn.insert(line.clone()), "two guests drew {line}");
        }
        let key = lines[at + 3..].iter().find(|line| line.starts_with("ssh-ed25519 ")).expect("a key");
        assert!(keys.insert(key.clone()), "two guests have the host key {key}");
        assert!(lines.iter().any(|line| line.contains("No such file")), "what waited is gone: {lines:?}");
    }
    settled(&house, 2, 2);
    assert!(booted(&house, "resume") >= 6.0 && booted(&house, "cold") <= 3.0, "{}", house.metrics());
    assert_eq!(house.metric("preheat_resume_fallbacks_total", &[]), Some(0.0));
}

#[test]
fn a_state_that_is_refused_costs_one_vm_and_its_slot_boots_and_is_suspended_anew() {
    let house = Plan::resuming(1, 1).open();
    let (_, golden) = settled(&house, 1, 1);
    house.faults("[[fault]]\nverb = \"run\"\ntimes = 1\nkind = \"refuse-restore\"\n");
    house.run(&[&tiny(house.dir()), "--pool", "mac", "--step", "true"]);
    until("the fallback to be counted", || (fallbacks(&house, "restore_refused") == 1.0).then_some(()));
    until("the slot to boot", || (booted(&house, "cold") == 2.0).then_some(()));
    until("what is suspended to be another", || {
        let suspended: Vec<_> = house.vms().into_iter().filter(|vm| vm.state == "suspended").collect();
        (suspended.len() == 1 && suspended[0].name != golden[0].name).then_some(())
    });
    assert!(!house.listed().contains(&golden[0].name));
}

#[test]
fn a_state_that_is_dropped_without_a_word_is_noticed() {
    let house = Plan::resuming(1, 1).and("resume_timeout = \"40s\"\n").open();
    let (_, golden) = settled(&house, 1, 1);
    // Somebody else runs a clone of it: its address is taken, and Tart boots the next one.
    let drained = house.preheat(&["drain", "--wait"]);
    assert!(drained.status.success(), "{}", err(&drained));
    let flags = ["--no-audio", "--no-clipboard", "--suspendable"];
    let mut other = house.strangers_guest(&golden[0].name, "strange", &flags);
    let resumed = house.preheat(&["resume"]);
    assert!(resumed.status.success(), "{}", err(&resumed));
    until("the fallback to be counted", || (fallbacks(&house, "state_lost") >= 1.0).then_some(()));
    until("the slot to boot", || (booted(&house, "cold") >= 2.0).then_some(()));
    let stopped = house.tart(&["stop", "strange"]);
    assert!(stopped.status.success(), "{}", err(&stopped));
    other.wait().expect("it ends");
}

#[test]
fn what_is_suspended_outlives_a_restart_and_a_kill_of_the_daemon() {
    let house = Plan::resuming(1, 1).open();
    let (_, golden) = settled(&house, 1, 1);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        house.end(signal);
        house.start();
        let (_, now) = settled(&house, 1, 1);
        assert_eq!(now[0].name, golden[0].name);
        assert_eq!((booted(&house, "resume"), booted(&house, "cold")), (1.0, 0.0), "after {signal}");
    }
    let listed = out(&house.tart(&["get", &golden[0].name, "--format", "json"]));
    assert!(listed.contains("\"State\" : \"suspended\"") || listed.contains("suspended"), "{listed}");
}
