//! Faults of the VM runtime, scripted through `tart-qemu`'s fault file.

use nix::sys::signal::{Signal, kill};
use preheat::api::wire::TroubleView;
use preheat::build::spec::BuildResult;

use crate::house::{House, Plan, err, out, until};
use crate::projects::tiny;

fn troubled(faults: &str) -> House {
    let house = Plan::pool(1, 1).variable("PREHEAT__RUNTIME__DEADLINES__QUERY", "5s").build();
    house.faults(faults);
    house.start();
    house
}

fn failures(house: &House, phase: &str, reason: &str) -> Option<f64> {
    house.metric("preheat_vm_failures_total", &[("phase", phase), ("reason", reason)])
}

fn trouble(house: &House) -> Option<TroubleView> {
    house.pools().remove(0).trouble
}

#[test]
fn a_clone_that_fails_twice_is_tried_until_it_works() {
    let house =
        troubled("[[fault]]\nverb = \"clone\"\ntimes = 2\nkind = \"exit\"\ncode = 1\ntext = \"boom\"\n");
    house.whole();
    assert_eq!(failures(&house, "clone", "verb_failed"), Some(2.0));
    assert!(house.said().contains("boom"), "{}", house.said());
    assert_eq!(trouble(&house), None);
}

#[test]
fn a_guest_that_crashes_while_run_exits_zero_is_replaced() {
    let house = troubled("[[fault]]\nverb = \"run\"\ntimes = 1\nkind = \"crash\"\nseconds = 0\n");
    until("the crash to be counted", || {
        house
            .metric("preheat_vm_failures_total", &[("reason", "guest_stopped")])
            .filter(|count| *count >= 1.0)
    });
    house.whole();
    let (build, _) = house.run(&[&tiny(house.dir()), "--pool", "linux", "--step", "echo fine"]);
    assert_eq!(build.attempt, 1, "{build:?}");
}

#[test]
fn a_question_for_an_address_that_hangs_is_killed_and_costs_one_vm() {
    let house = troubled("[[fault]]\nverb = \"ip\"\ntimes = 1\nkind = \"hang\"\n");
    house.whole();
    assert_eq!(failures(&house, "address", "verb_timeout"), Some(1.0));
    let hung: Vec<_> = house.processes().into_iter().filter(|(_, line)| line.contains(" ip ")).collect();
    assert!(hung.is_empty(), "{hung:?}");
}

#[test]
fn a_full_disk_is_shown_with_a_hint_and_served_when_it_is_over() {
    let house = troubled("[[fault]]\nverb = \"clone\"\nkind = \"disk-full\"\n");
    let seen = until("the trouble", || trouble(&house));
    assert_eq!(seen.reason, "disk_full", "{seen:?}");
    assert!(seen.hint.is_some_and(|hint| hint.contains("free disk space")));
    let shown = out(&house.preheat(&["pool"]));
    assert!(shown.contains("hint: free disk space"), "{shown}");
    let id = house.submit(&[&tiny(house.dir()), "--pool", "linux", "--step", "echo fine"]);
    house.when(id, "told why it waits", |view| {
        view.waiting_for.as_deref().is_some_and(|why| why.contains("do not come up"))
    });
    let doctor = house.preheat(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(3), "{}", err(&doctor));
    assert!(out(&doctor).contains("disk_full"), "{}", out(&doctor));
    house.faults("");
    assert_eq!(house.over(id).result, Some(BuildResult::Success));
    house.whole();
    assert_eq!(trouble(&house), None);
}

#[test]
fn a_macos_guest_that_is_refused_names_whose_vms_hold_the_places_and_comes_when_they_are_gone() {
    let house = Plan::macos(1, 1).build();
    let strangers = ["sandbox-a", "sandbox-b"].map(|name| (name, house.strangers_guest("macos", name, &[])));
    house.start();
    let seen = until("the trouble", || trouble(&house));
    assert_eq!(seen.reason, "system_limit", "{seen:?}");
    let id = house.submit(&[&tiny(house.dir()), "--pool", "mac", "--step", "echo fine"]);
    house.when(id, "told whose VMs it waits for", |view| {
        let names = |why: &str| why.contains("sandbox-a, sandbox-b") && why.contains("stop the VMs");
        view.waiting_for.as_deref().is_some_and(names)
    });
    assert_eq!(house.metric("preheat_slots_lost", &[("pool", "mac")]), Some(0.0), "nothing leaked");
    for (name, mut guest) in strangers {
        let stopped = house.tart(&["stop", name]);
        assert!(stopped.status.success(), "{}", err(&stopped));
        guest.wait().expect("ours");
    }
    let view = house.over(id);
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Success), 1), "{view:?}");
    house.whole();
    assert_eq!(trouble(&house), None);
    assert!(["sandbox-a", "sandbox-b"].iter().all(|name| house.listed().contains(&(*name).to_owned())));
}

#[test]
fn a_leaked_slot_is_told_with_its_remedy() {
    let house = Plan::macos(2, 2).build();
    house.faults("[[fault]]\nverb = \"run\"\nvm = \"preheat-mac-0-*\"\ntimes = 1\nkind = \"leak-slot\"\n");
    house.start();
    let vms = house.whole();
    let leaks = vms.iter().find(|vm| vm.slot == 0).expect("the first slot's");
    kill(house.qemu(leaks), Signal::SIGKILL).expect("it runs");
    let lost = || house.metric("preheat_slots_lost", &[("pool", "mac"), ("reason", "slot_leaked")]);
    until("the slot to be counted as lost", || lost().filter(|slots| *slots == 1.0));
    let seen = trouble(&house).expect("told");
    assert_eq!(seen.reason, "slot_leaked", "{seen:?}");
    let remedy = |hint: String| hint.contains("kill the process com.apple.Virtualization.VirtualMachine");
    assert!(seen.hint.is_some_and(remedy));
    let shown = out(&house.preheat(&["pool"]));
    assert!(shown.contains("1 of 2 macOS guests run") && shown.contains("hint: "), "{shown}");
    let (build, _) = house.run(&[&tiny(house.dir()), "--pool", "mac", "--step", "echo fine"]);
    assert_eq!(build.attempt, 1, "the other slot serves: {build:?}");

    let mark = std::fs::read_dir(house.home().join("tart/slots")).expect("slots").flatten();
    for mark in mark.filter(|file| file.file_name().to_string_lossy().starts_with("leaked-")) {
        std::fs::remove_file(mark.path()).expect("the mark of the leak");
    }
    house.whole();
    assert_eq!((lost(), trouble(&house)), (Some(0.0), None));
}

#[test]
fn an_address_of_a_vm_that_is_no_more_costs_one_vm_and_no_build() {
    let plan = Plan::pool(1, 1).and("boot_timeout = \"40s\"\n");
    let house = plan.build();
    // Nobody listens there; `tart ip` goes on saying so for this VM.
    house.faults(
        "[[fault]]\nverb = \"ip\"\nvm = \"preheat-linux-0-1\"\nkind = \"stale-ip\"\nip = \"127.0.0.99\"\n",
    );
    house.start();
    let id = house.submit(&[&tiny(house.dir()), "--pool", "linux", "--step", "echo fine"]);
    let view = house.over(id);
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Success), 1), "{view:?}");
    assert_eq!(failures(&house, "connect", "ssh_timeout"), Some(1.0), "{}", house.said());
    house.whole();
    let failed = house.metric("preheat_vm_failures_total", &[]);
    assert_eq!((failed, trouble(&house)), (Some(1.0), None), "one VM and no more");
}

/// The verbs that the daemon runs to their end, in groups: a new VM needs the first, a restart over a running VM the others.
const AT_A_BIRTH: [&str; 5] = ["clone", "set", "ip", "delete", "list"];
const AT_A_START: [&str; 2] = ["get", "stop"];

fn hangs(verb: &str) -> String {
    format!("[[fault]]\nverb = \"{verb}\"\ntimes = 1\nkind = \"hang\"\n")
}

/// Since the daemon's start.
fn timeouts(house: &House, verb: &str) -> f64 {
    let name = "preheat_runtime_verb_duration_seconds_count";
    house.metric(name, &[("verb", verb), ("result", "timeout")]).unwrap_or(0.0)
}

/// A verb that hung is counted, nothing of it is left, and the pool is whole again.
fn gets_over(house: &House, verb: &str, before: f64) {
    until(&format!("a hung `{verb}` to be killed"), || (timeouts(house, verb) > before).then_some(()));
    house.whole();
    until(&format!("no `{verb}` to be left"), || {
        let word = format!("tart-qemu {verb} ");
        (!house.processes().iter().any(|(_, line)| line.contains(&word))).then_some(())
    });
}

#[test]
fn each_verb_that_hangs_is_killed_in_its_time_and_the_pool_comes_back() {
    // Without a shape of its own a VM needs no `set`.
    let mut plan = Plan::pool(1, 1).and("boot_timeout = \"40s\"\ncpu = 1\n");
    for verb in ["CLONE", "SET", "STOP", "DELETE", "QUERY"] {
        plan = plan.variable(&format!("PREHEAT__RUNTIME__DEADLINES__{verb}"), "5s");
    }
    let house = plan.open();
    for verb in AT_A_BIRTH {
        let vm = house.whole().remove(0);
        let before = timeouts(&house, verb);
        house.faults(&hangs(verb));
        kill(house.qemu(&vm), Signal::SIGKILL).expect("it runs");
        gets_over(&house, verb, before);
    }

    // `run` lasts as long as its guest: one that hangs is a guest that never has an address.
    let vm = house.whole().remove(0);
    house.faults(&hangs("run"));
    kill(house.qemu(&vm), Signal::SIGKILL).expect("it runs");
    let failed = || failures(&house, "address", "no_address").filter(|count| *count >= 1.0);
    until("the VM that does not boot to be given up", failed);
    let alive: Vec<_> = house.whole().into_iter().filter_map(|vm| vm.pid).collect();
    let word = "tart-qemu run ";
    let runs: Vec<_> = house.processes().into_iter().filter(|(_, line)| line.contains(word)).collect();
    assert!(runs.iter().all(|(pid, _)| alive.contains(&pid.as_raw().cast_unsigned())), "{runs:?}");

    let mut orphans = Vec::new();
    for verb in AT_A_START {
        orphans.push(house.whole().remove(0).name);
        house.end(Signal::SIGKILL);
        house.faults(&hangs(verb));
        house.start();
        gets_over(&house, verb, 0.0);
    }
    let gone = || orphans.iter().all(|orphan| !house.listed().contains(orphan));
    until("the janitor's next round", || gone().then_some(()));
    let (build, _) = house.run(&[&tiny(house.dir()), "--pool", "linux", "--step", "echo fine"]);
    assert_eq!(build.attempt, 1, "{build:?}");
}
