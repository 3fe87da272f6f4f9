//! Saved state: what survives, what is refused, what is lost without a word.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use crate::bed::{Guest, Home};

const REFUSED: &str = "Error Domain=VZErrorDomain Code=12 \"The virtual machine failed to restore with error “invalid argument”.\"";

fn suspended_golden(home: &Home) {
    home.ok(&["clone", "macos", "golden"]);
    let mut guest = home.run("golden", &["--suspendable"]);
    // Years off, so that a resumed guest is right only if somebody sets it right.
    guest.ssh("echo kept > mark; sync; touch /tmp/in-memory; sudo date -s 2020-01-01 > /dev/null");
    home.ok(&["suspend", "golden"]);
    assert_eq!(guest.exit(), 0);
    assert!(
        guest.said().contains("snapshot created successfully! shutting down the VM..."),
        "{}",
        guest.said()
    );
    assert_eq!(home.json(&["get", "golden", "--format", "json"])["State"], "suspended");
}

fn seconds_off(guest: &Guest<'_>) -> f64 {
    let theirs: f64 = guest.ssh("date +%s.%N").trim().parse().expect("a time");
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs_f64();
    (ours - theirs).abs()
}

#[test]
fn resumed_clones_have_their_own_clock_and_entropy() {
    let home = Home::with_guests(2);
    suspended_golden(&home);
    let mut drawn = Vec::new();
    for name in ["one", "two"] {
        home.ok(&["clone", "golden", name]);
        assert_eq!(home.mac(name), home.mac("golden"));
        let mut guest = home.run(name, &["--suspendable"]);
        drawn.push(guest.ssh("cat mark; ls /tmp/in-memory; head -c 16 /dev/urandom | od -An -tx1"));
        assert!(seconds_off(&guest) < 60.0, "an emulated handshake may take seconds; a stale clock is years");
        let said = guest.said();
        let (restoring, resuming) =
            (said.find("restoring VM state from a snapshot..."), said.find("resuming VM..."));
        assert!(restoring.is_some() && resuming > restoring, "{said}");
        assert!(!home.vm(name).join("state.vzvmsave").exists(), "a state is used once");
        home.ok(&["stop", name]);
        assert_eq!(guest.exit(), 0);
    }
    assert!(drawn.iter().all(|text| text.starts_with("kept\n/tmp/in-memory\n")), "{drawn:?}");
    assert_ne!(drawn[0], drawn[1], "two resumed clones draw different numbers");
    a_second_clone_loses_its_state_without_a_word(&home);
}

fn a_second_clone_loses_its_state_without_a_word(home: &Home) {
    home.ok(&["clone", "golden", "three"]);
    home.ok(&["clone", "golden", "four"]);
    let first = home.run("three", &["--suspendable"]);
    first.ssh("true");
    let second = home.run("four", &["--suspendable"]);
    assert_eq!(second.ssh("cat mark; ls /tmp/in-memory || true"), "kept\n");
    assert!(second.said().contains("Resetting VM to assign a new MAC address..."), "{}", second.said());
    assert_ne!(home.mac("four"), home.mac("golden"));
    assert_ne!(first.address(), second.address());
}

#[test]
fn a_state_of_another_shape_is_refused_and_kept() {
    let home = Home::with_guests(1);
    suspended_golden(&home);
    home.ok(&["clone", "golden", "a"]);
    home.ok(&["set", "a", "--memory", "768"]);
    for (name, flags) in [("a", vec!["--suspendable"]), ("golden", vec!["--suspendable", "--no-clipboard"])] {
        let mut arguments = vec!["run", name, "--no-graphics"];
        arguments.extend(flags);
        let answer = home.tart(&arguments);
        assert_eq!(answer.code, 1, "{name}");
        assert!(answer.err.contains(REFUSED), "{}", answer.err);
        assert!(home.vm(name).join("state.vzvmsave").exists(), "{name}");
    }
    // A state that is damaged is refused by QEMU, and nothing is left running.
    std::fs::copy(home.vm("golden").join("state.vzvmsave"), home.path().join("whole")).expect("a copy");
    let whole = std::fs::read(home.path().join("whole")).expect("a state");
    std::fs::remove_file(home.vm("golden").join("state.vzvmsave")).expect("a file");
    std::fs::write(home.vm("golden").join("state.vzvmsave"), &whole[..whole.len() / 2]).expect("a file");
    let answer = home.tart(&["run", "golden", "--no-graphics", "--suspendable"]);
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains(REFUSED), "{}", answer.err);
}

#[test]
fn a_guest_that_cannot_be_suspended_dies_of_it() {
    let home = Home::with_guests(1);
    let mut guest = home.run("linux", &[]);
    guest.address();
    guest.signal(Signal::SIGUSR1);
    assert_eq!(guest.exit(), 1);
    assert!(guest.said().contains("Failed to suspend the VM: "), "{}", guest.said());
}
