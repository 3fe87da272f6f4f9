//! What the daemon costs and tells while nobody uses it.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::house::{Plan, err, out, until};

/// All of it, over the time below.
const TICKS_MAX: u64 = 20;
const LOOK: Duration = Duration::from_secs(10);
const RESIDENT_KIB_MAX: u64 = 40 << 10;

#[test]
fn images_that_nobody_uses_are_pruned_by_age_and_local_ones_stay() {
    let house = Plan::pool(0, 1).open();
    let pruned = || {
        let labels = [("verb", "prune"), ("result", "ok")];
        house.metric("preheat_runtime_verb_duration_seconds_count", &labels).filter(|count| *count >= 1.0)
    };
    until("the first look for old images", pruned);
    assert!(house.listed().contains(&"linux".to_owned()));
}

#[test]
fn every_series_is_there_at_zero_before_the_first_build() {
    let house = Plan::bare("[pool.linux]\nimage = \"nowhere\"\n[pool.mac]\nimage = \"nowhere\"\n").open();
    let mut wanted = Vec::new();
    for pool in ["linux", "mac"] {
        for result in ["hit", "miss"] {
            wanted.push(("preheat_claims_total", vec![("pool", pool), ("result", result)]));
        }
        for result in ["success", "failure", "error", "timeout", "cancellation"] {
            wanted.push(("preheat_builds_total", vec![("pool", pool), ("result", result)]));
            wanted.push(("preheat_build_duration_seconds_count", vec![("pool", pool), ("result", result)]));
        }
        for state in ["cloning", "warm", "leased", "quarantined"] {
            wanted.push(("preheat_vms", vec![("pool", pool), ("state", state)]));
        }
        for path in ["cold", "resume"] {
            wanted.push(("preheat_vm_boot_seconds_count", vec![("pool", pool), ("path", path)]));
        }
        wanted.push(("preheat_queue_depth", vec![("pool", pool)]));
        wanted.push(("preheat_pool_oldest_not_ready_timestamp_seconds", vec![("pool", pool)]));
        wanted.push(("preheat_vms_retired_total", vec![("pool", pool), ("reason", "failed")]));
    }
    for phase in ["queue", "probe", "source", "step", "artifacts", "teardown", "upload"] {
        wanted.push(("preheat_build_phase_seconds_count", vec![("phase", phase)]));
    }
    for phase in ["clone", "address", "connect", "warm", "leased", "removal"] {
        for reason in ["disk_full", "guest_stopped", "probe_failed"] {
            wanted.push(("preheat_vm_failures_total", vec![("phase", phase), ("reason", reason)]));
        }
    }
    for (name, labels) in wanted {
        assert_eq!(house.metric(name, &labels), Some(0.0), "{name} {labels:?}");
    }
    let Ok(checked) =
        assert_cmd::Command::new("promtool").args(["check", "metrics"]).write_stdin(house.metrics()).output()
    else {
        return; // Not installed here.
    };
    assert!(checked.status.success(), "{}{}", out(&checked), err(&checked));
}

fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("a number")).sum()
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("there");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}

#[test]
fn a_daemon_with_two_warm_vms_is_small_and_still() {
    let release = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release/preheat");
    let plan = Plan::pool(2, 2);
    let house = if release.is_file() { plan.program(release.clone()) } else { plan }.open();
    house.whole();
    let before = ticks(house.pid());
    std::thread::sleep(LOOK);
    let (spent, kib) = (ticks(house.pid()) - before, resident_kib(house.pid()));
    let kind = if release.is_file() || !cfg!(debug_assertions) { "release" } else { "debug" };
    writeln!(std::io::stderr(), "idle, {kind}: {kib} KiB resident, {spent} ticks in {LOOK:?}").ok();
    assert!(spent <= TICKS_MAX, "{spent} ticks in {LOOK:?}");
    assert!(kind == "debug" || kib < RESIDENT_KIB_MAX, "{kib} KiB");
}
