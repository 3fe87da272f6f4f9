//! How a build's guest is, with real guests: figures over the open connection, and a disk that a step fills.

use preheat::build::spec::BuildResult;

use crate::house::{Plan, until};
use crate::projects::tiny;

const GIB: u64 = 1 << 30;

#[test]
fn a_guests_figures_are_shown_while_it_builds_and_a_disk_that_a_step_fills_is_named() {
    let house = Plan::pool(1, 1).and("[builds]\nretries = 0\n").open();
    house.whole();
    let project = tiny(house.dir());
    // It keeps its processor busy, and then takes all of its disk but some megabytes.
    let step = "end=$(($(date +%s) + 14)); while [ $(date +%s) -lt $end ]; do :; done; \
                fallocate -l $(($(df --output=avail -k . | tail -n 1) - 10000))K filler; sleep 7; exit 3";
    let id = house.submit(&[&project, "--step", step, "--pool", "linux"]);
    let guest = house.when(id, "looked at", |view| view.guest.is_some()).guest.expect("there");
    assert!(guest.cpu_percent > 10 && guest.cpu_percent <= 100, "{guest:?}");
    assert!(
        guest.memory_total_bytes > GIB / 4 && guest.memory_used_bytes < guest.memory_total_bytes,
        "{guest:?}"
    );
    assert!(guest.disk_free_bytes > 0 && guest.disk_used_bytes > 0, "{guest:?}");
    let slot = [("pool", "linux"), ("slot", "0")];
    let figure = |name: &str| house.metric(name, &slot).expect("the series is there");
    assert!(figure("preheat_guest_memory_bytes") == guest.memory_total_bytes as f64);
    assert!(figure("preheat_guest_disk_free_bytes") > 0.0);

    let over = house.over(id);
    assert_eq!(over.result, Some(BuildResult::Failure));
    let reason = over.reason.expect("a reason");
    assert!(reason.contains("exited with 3"), "{reason}");
    assert!(reason.contains("the guest's disk is nearly full"), "{reason}");
    let said =
        house.log(id).into_iter().filter(|line| line.text.starts_with("warning: the guest's disk")).count();
    assert_eq!(said, 1);
    assert_eq!(house.metric("preheat_guest_disk_low_total", &[("pool", "linux")]), Some(1.0));
    until("the slot's figures to be gone", || (figure("preheat_guest_memory_bytes") == 0.0).then_some(()));
}
