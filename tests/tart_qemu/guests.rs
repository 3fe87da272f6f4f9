//! The life of a guest: run, reach, stop, die.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::Stdio;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use sha2::{Digest, Sha256};

use crate::bed::{Home, answer, is_dead, ssh, until};

/// Who holds the lock of `config.json`, as a client of Tart asks.
fn lock_owner(home: &Home, name: &str) -> i32 {
    let file =
        OpenOptions::new().read(true).write(true).open(home.vm(name).join("config.json")).expect("a config");
    let mut probe = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_GETLK(&mut probe)).expect("a lock");
    probe.l_pid
}

#[test]
fn a_guest_is_cloned_run_reached_and_stopped() {
    let home = Home::with_guests(1);
    home.ok(&["clone", "linux", "a"]);
    home.ok(&["set", "a", "--disk-size", "40"]);
    let mut guest = home.run("a", &[]);
    let ip = home.ok(&["ip", "a", "--wait", "120"]).trim_end().to_owned();
    assert_eq!(
        guest.ssh(
            "id -un; sudo id -u; cd /tmp && echo 'int main(){return 0;}' > x.c && make -s x && ./x; echo $?"
        ),
        "admin\n0\n0\n"
    );
    assert_eq!(ip, guest.address());
    assert_eq!(lock_owner(&home, "a"), guest.pid());

    assert_eq!(home.json(&["get", "a", "--format", "json"])["State"], "running");
    let again = home.tart(&["run", "a"]);
    assert_eq!((again.code, again.err.trim_end()), (2, "VM \"a\" is already running!"));
    let delete = home.tart(&["delete", "a"]);
    assert_eq!((delete.code, delete.err.trim_end()), (1, "VM \"a\" is running"));
    exec_is_transparent(&home);
    until("the file system has grown with its disk", || {
        let bytes = guest.ssh("df -B1 --output=size / | tail -n 1");
        bytes.trim().parse::<u64>().is_ok_and(|bytes| bytes > 35_000_000_000)
    });

    home.ok(&["stop", "a"]);
    assert_eq!(guest.exit(), 0);
    assert!(guest.said().contains("Stopping VM..."), "{}", guest.said());
    assert_eq!(lock_owner(&home, "a"), 0);
    assert_eq!(ssh(&ip, "2222", "true").code, 255);
    assert_eq!(home.ok(&["ip", "a"]).trim_end(), ip, "a dead VM still has its lease");
    home.ok(&["delete", "a"]);
    assert!(!home.vm("a").exists());
}

fn exec_is_transparent(home: &Home) {
    let exec = home.tart(&["exec", "a", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((exec.code, exec.out.as_str(), exec.err.as_str()), (7, "out\n", "err\n"));
    // The next is there before the guest has seen the last one go; and more at once than there are ports.
    (0..5).for_each(|_| drop(home.ok(&["exec", "a", "true"])));
    let at_once: Vec<_> =
        (0..6).map(|_| home.command(&["exec", "a", "true"]).spawn().expect("it runs")).collect();
    assert!(at_once.into_iter().all(|mut child| child.wait().expect("a child").success()));
    let mut child = home
        .command(&["exec", "-i", "a", "sha256sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tart-qemu runs");
    // More than any queue on the way holds.
    let bytes = vec![b'x'; 3 << 20];
    child.stdin.take().expect("a pipe").write_all(&bytes).expect("it reads");
    let output = answer(&child.wait_with_output().expect("it ends"));
    let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(output.out.starts_with(&sum), "{}{}", output.out, output.err);
    assert!(home.ok(&["ip", "a", "--resolver", "agent", "--wait", "60"]).starts_with("127."));
    let tty = home.tart(&["exec", "-t", "a", "tty"]);
    assert!(tty.out.starts_with("/dev/pts/"), "{}", tty.out);
}

#[test]
fn a_clone_keeps_the_data_of_a_modified_vm_whose_source_is_gone() {
    let home = Home::with_guests(2);
    home.ok(&["clone", "linux", "a"]);
    let mut guest = home.run("a", &[]);
    guest.ssh("echo first > mark; sync");
    // Cloned while it runs: the guest's own writes go on elsewhere.
    home.ok(&["clone", "a", "live"]);
    guest.ssh("echo second > mark; sync");
    home.ok(&["stop", "a"]);
    assert_eq!(guest.exit(), 0);
    home.ok(&["clone", "a", "later"]);
    home.ok(&["delete", "a", "linux"]);
    let live = home.run("live", &[]);
    let later = home.run("later", &[]);
    assert_eq!(live.ssh("cat mark"), "first\n");
    assert_eq!(later.ssh("cat mark"), "second\n");
    assert_ne!(live.address(), later.address());
}

#[test]
fn killing_run_takes_qemu_along() {
    let home = Home::with_guests(1);
    let mut guest = home.run("linux", &[]);
    let qemu = guest.qemu();
    guest.signal(Signal::SIGKILL);
    assert_eq!(guest.exit(), -1);
    until("QEMU is gone", || is_dead(qemu));
    assert_eq!(home.json(&["get", "linux", "--format", "json"])["State"], "stopped");

    let mut guest = home.run("linux", &[]);
    let qemu = guest.qemu();
    guest.signal(Signal::SIGTERM);
    assert_eq!(guest.exit(), -1, "SIGTERM is a default death");
    until("QEMU is gone", || is_dead(qemu));
}

#[test]
fn a_guest_that_ends_by_itself_ends_run_with_0() {
    let home = Home::with_guests(1);
    let mut guest = home.run("linux", &[]);
    guest.ssh("true");
    guest.signal(Signal::SIGUSR2);
    assert_eq!(guest.exit(), 0);
    let said = guest.said();
    assert!(said.contains("Requesting guest OS to stop..."), "{said}");
    assert!(said.trim_end().ends_with("guest has stopped the virtual machine"), "{said}");

    let mut guest = home.run("linux", &[]);
    guest.ssh("true");
    kill(Pid::from_raw(guest.qemu()), Signal::SIGKILL).expect("QEMU is there");
    assert_eq!(guest.exit(), 0, "a crash too");
    assert!(
        guest.said().contains("guest has stopped the virtual machine due to error: "),
        "{}",
        guest.said()
    );
}

#[test]
fn a_kernel_panic_is_a_crash() {
    let home = Home::with_guests(1);
    let mut guest = home.run("linux", &[]);
    guest.ssh("sudo sh -c '(sleep 0.2; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &'");
    assert_eq!(guest.exit(), 0);
    assert!(guest.said().contains("due to error: "), "{}", guest.said());
}

#[test]
fn the_third_macos_guest_is_refused() {
    let home = Home::with_guests(3);
    for name in ["m1", "m2", "m3"] {
        home.ok(&["clone", "macos", name]);
    }
    let first = home.run("m1", &[]);
    let second = home.run("m2", &[]);
    assert_ne!(first.address(), second.address());
    let third = home.tart(&["run", "m3", "--no-graphics"]);
    assert_eq!(
        (third.code, third.err.trim_end()),
        (1, "The number of VMs exceeds the system limit (other running VMs: m1, m2)")
    );
    let linux = home.run("linux", &[]);
    assert!(linux.address().starts_with("127."), "a Linux guest takes no slot");
    home.ok(&["stop", "m1"]);
    assert!(home.run("m3", &[]).address().starts_with("127."));
}

#[test]
fn two_homes_never_share_an_address() {
    let (one, other) = (Home::with_guests(2), Home::empty());
    let from = one.vm("linux");
    std::fs::rename(&from, one.vm("same")).expect("a rename");
    one.ok(&["clone", "same", "a"]);
    one.ok(&["clone", "same", "b"]);
    std::fs::rename(one.vm("b"), other.vm("b")).expect("a rename");
    let (a, b) = (one.run("a", &[]), other.run("b", &[]));
    assert_ne!(a.address(), b.address());
}

#[test]
fn what_means_nothing_here_is_said() {
    let home = Home::with_guests(1);
    let flags = ["--dir", "/tmp", "--net-softnet-allow=10.0.0.0/8", "--vnc", "--no-audio", "--no-clipboard"];
    let guest = home.run("linux", &flags);
    guest.address();
    for text in ["--dir: ", "--net-softnet: ", "--net-softnet-allow: ", "--vnc: "] {
        assert!(guest.said().contains(text), "{text}: {}", guest.said());
    }
}
