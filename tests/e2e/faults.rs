//! Faults of the VM runtime, scripted through `tart-qemu`'s fault file.

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
