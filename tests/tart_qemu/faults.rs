//! The fault file: each kind strikes where and as often as it says.

use crate::bed::{Home, ssh, until};

#[test]
fn a_fault_strikes_as_often_as_it_says() {
    let home = Home::with_guests(0).with_faults(
        "[[fault]]\nverb = 'clone'\nvm = 'a*'\nafter = 1\ntimes = 2\nkind = 'exit'\ncode = 3\ntext = 'boom'\n",
    );
    let codes: Vec<i32> = (0..5).map(|_| home.tart(&["clone", "linux", "a"]).code).collect();
    assert_eq!(codes, [0, 3, 3, 0, 0]);
    let home = home.with_faults("[[fault]]\nverb = 'clone'\nkind = 'disk-full'\ntimes = 1\n");
    let full = home.tart(&["clone", "linux", "b"]);
    assert_eq!(full.code, 1);
    assert!(
        full.err.contains("isn’t enough space") && full.err.contains("No space left on device"),
        "{}",
        full.err
    );
    assert_eq!(home.tart(&["clone", "linux", "b"]).code, 0);
}

#[test]
fn a_fault_file_with_a_mistake_is_refused() {
    for (text, word) in [
        ("[[fault]]\nkind = 'exit'\nverbs = 'clone'\n", "verbs"),
        ("[[fault]]\nkind = 'explode'\n", "explode"),
        ("[[fault]]\nkind = 'exit'\nverb = 'fly'\n", "fly"),
        ("[[faults]]\n", "faults"),
    ] {
        let answer = Home::with_guests(0).with_faults(text).tart(&["list"]);
        assert_eq!(answer.code, 64, "{text}");
        assert!(answer.err.starts_with("TART_QEMU_FAULTS: ") && answer.err.contains(word), "{}", answer.err);
    }
}

#[test]
fn a_verb_that_hangs_hangs() {
    let home = Home::with_guests(0).with_faults("[[fault]]\nverb = ['clone', 'run']\nkind = 'hang'\n");
    let mut clone = home.command(&["clone", "linux", "a"]).spawn().expect("tart-qemu runs");
    // A hung `run` holds its lock, has no guest and does not listen.
    let mut run = home.run("linux", &[]);
    until("the lock is held", || home.json(&["get", "linux", "--format", "json"])["Running"] == true);
    assert!(clone.try_wait().expect("a child").is_none());
    home.ok(&["stop", "linux", "--timeout", "1"]);
    assert_eq!(run.exit(), -1, "SIGKILL is what ends it");
    clone.kill().expect("a child");
    clone.wait().expect("a child");
    assert!(!home.vm("a").exists());
}

#[test]
fn an_address_can_be_stale_or_missing() {
    let home = Home::with_guests(1).with_faults(
        "[[fault]]\nverb = 'ip'\nvm = 'macos'\nkind = 'stale-ip'\nip = '127.0.9.9'\n[[fault]]\nverb = 'ip'\nvm = 'linux'\nkind = 'no-ip'\n",
    );
    assert_eq!(home.ok(&["ip", "macos"]), "127.0.9.9\n");
    let guest = home.run("linux", &[]);
    guest.ssh("true");
    let answer = home.tart(&["ip", "linux"]);
    assert_eq!((answer.code, answer.err.trim_end()), (1, "no IP address found"));
}

#[test]
fn a_guest_crashes_while_run_exits_0() {
    let home = Home::with_guests(1).with_faults("[[fault]]\nverb = 'run'\nkind = 'crash'\n");
    let mut guest = home.run("linux", &[]);
    assert_eq!(guest.exit(), 0);
    assert!(
        guest.said().contains("guest has stopped the virtual machine due to error: "),
        "{}",
        guest.said()
    );
}

#[test]
fn a_frozen_guest_accepts_and_says_nothing() {
    let home = Home::with_guests(1).with_faults("[[fault]]\nverb = 'run'\nkind = 'freeze'\nseconds = 0.0\n");
    let mut guest = home.run("linux", &[]);
    let ip = home.ok(&["ip", "linux", "--wait", "120"]);
    assert_eq!(ssh(ip.trim_end(), "2222", "true").code, 255);
    assert_eq!(home.json(&["get", "linux", "--format", "json"])["Running"], true);
    home.ok(&["stop", "linux"]);
    assert_eq!(guest.exit(), 0);
}

#[test]
fn a_slot_leaks_until_the_host_is_restarted() {
    let home = Home::with_guests(2)
        .with_faults("[[fault]]\nverb = 'run'\nvm = 'm1'\nkind = 'leak-slot'\ntimes = 1\n");
    for name in ["m1", "m2", "m3"] {
        home.ok(&["clone", "macos", name]);
    }
    let mut guest = home.run("m1", &[]);
    guest.ssh("true");
    home.ok(&["stop", "m1"]);
    assert_eq!(guest.exit(), 0);
    let second = home.run("m2", &[]);
    second.address();
    let third = home.tart(&["run", "m3"]);
    assert_eq!((third.code, third.err.contains("(other running VMs: m2)")), (1, true), "{}", third.err);
    std::fs::remove_file(home.path().join("slots/leaked-0")).expect("the mark of the leak");
    home.run("m3", &[]).address();
}

#[test]
fn a_boot_can_be_slow_and_a_restore_refused() {
    let home = Home::with_guests(1).with_faults(
        "[[fault]]\nverb = 'run'\nvm = 'linux'\nkind = 'slow-boot'\nseconds = 2\n[[fault]]\nverb = 'run'\nvm = 'copy'\nkind = 'refuse-restore'\n",
    );
    let slow = home.run("linux", &[]);
    assert!(slow.ssh("cat /proc/cmdline").contains("tart.delay=2"));
    drop(slow);
    home.ok(&["clone", "macos", "golden"]);
    let mut guest = home.run("golden", &["--suspendable"]);
    guest.ssh("true");
    home.ok(&["suspend", "golden"]);
    assert_eq!(guest.exit(), 0);
    home.ok(&["clone", "golden", "copy"]);
    let answer = home.tart(&["run", "copy", "--no-graphics"]);
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains("VZErrorDomain Code=12"), "{}", answer.err);
}
