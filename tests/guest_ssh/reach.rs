//! Reaching a guest, and leaving it.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use preheat::clock::Deadline;
use preheat::guest::ssh::{SshConnector, sweep_orphans};
use preheat::guest::{Connector, Ended, Target};
use preheat::runtime::Reason;

use crate::sshd::{PATIENT, Sshd, begin, eventually, processes, script, sh};

#[tokio::test]
async fn a_standby_that_was_killed_is_replaced() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    sshd.kill_commands();
    assert_eq!(sh(&channel, "echo once").await, (Ended::Exited(0), vec!["once".into()]));
}

#[tokio::test]
async fn a_guest_is_greeted_through_the_shell_that_waits_and_without_it() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    for _ in 0..3 {
        channel.greet(PATIENT).await.expect("answered");
    }
    assert_eq!(sh(&channel, "echo once").await, (Ended::Exited(0), vec!["once".into()]));
    channel.greet(PATIENT).await.expect("answered without a standby");
    let channel = sshd.channel().await;
    sshd.kill_commands();
    channel.greet(PATIENT).await.expect("a dead standby is no dead guest");
    let channel = sshd.channel().await;
    sshd.signal_sessions(Signal::SIGSTOP);
    let fault = channel.greet(Duration::from_millis(500)).await.expect_err("frozen");
    assert_eq!(fault.reason, Reason::ProbeFailed);
}

#[tokio::test]
async fn a_guest_that_comes_up_late_is_reached() {
    let mut sshd = Sshd::new();
    let target = sshd.target();
    let connecting =
        tokio::spawn(async move { SshConnector.connect(&target, Deadline::after(PATIENT)).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!connecting.is_finished());
    sshd.start();
    connecting.await.expect("no panic").expect("connected");
}

#[tokio::test]
async fn what_kept_us_from_connecting_is_named() {
    let sshd = Sshd::started();
    let wrong = Target { key: sshd.dir.path().join("other"), ..sshd.target() };
    let begun = Instant::now();
    let fault = SshConnector.connect(&wrong, Deadline::after(PATIENT)).await.map(drop).expect_err("refused");
    assert_eq!(fault.reason, Reason::SshAuth, "{fault}");
    assert!(fault.text.contains("Permission denied"), "{fault}");
    assert!(begun.elapsed() > Duration::from_secs(2), "one refusal is not believed");

    // A port where somebody accepts and is silent, as a user-mode network does for a guest that boots.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let mute = Target { port, ..sshd.target() };
    let fault = SshConnector.connect(&mute, Deadline::after(Duration::from_secs(2))).await.map(drop);
    assert_eq!(fault.expect_err("silent").reason, Reason::SshTimeout);
    drop(silent);
    let fault = SshConnector.connect(&mute, Deadline::after(Duration::from_secs(1))).await.map(drop);
    let fault = fault.expect_err("closed");
    assert_eq!(fault.reason, Reason::SshTimeout);
    assert!(fault.text.contains("refused"), "{fault}");
}

#[tokio::test]
async fn a_handshake_that_is_never_answered_ends_in_its_time() {
    let sshd = Sshd::started();
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let mute = Target { port: silent.local_addr().expect("an address").port(), ..sshd.target() };
    let connected =
        tokio::time::timeout(PATIENT, SshConnector.connect(&mute, Deadline::after(Duration::from_secs(1))));
    let fault = connected.await.expect("an end").map(drop).expect_err("nobody answers");
    assert_eq!(fault.reason, Reason::SshTimeout);
}

#[tokio::test]
async fn no_ssh_is_left_after_a_drop() {
    let sshd = Sshd::started();
    let ours = format!("-p {} ", sshd.port);
    let count =
        || processes().iter().filter(|p| p.line.starts_with("ssh ") && p.line.contains(&ours)).count();
    let channel = sshd.channel().await;
    let running = begin(&channel, script("sleep 1000"));
    assert_eq!(count(), 1);
    running.task.abort();
    drop(running);
    drop(channel);
    eventually("the master is gone", || count() == 0).await;
    eventually("its sessions are gone", || sshd.sessions().is_empty()).await;

    let (target, deadline) = (sshd.target(), Deadline::after(PATIENT));
    for wait_ms in [0, 1, 5, 20, 80] {
        let connecting = SshConnector.connect(&target, deadline);
        tokio::time::timeout(Duration::from_millis(wait_ms), connecting).await.ok();
    }
    eventually("no dial that was dropped is left", || count() == 0).await;
    sweep_orphans().await;
}
