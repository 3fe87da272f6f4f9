//! Runs that outlive their connection, and connections that are opened again.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use preheat::guest::{Channel, Ended, Line, Position, Stream};
use preheat::ids::RunId;
use preheat::runtime::{Fault, Reason};

use crate::sshd::{
    PATIENT, Sshd, attach, begin, begin_as, eventually, lives, of, position, processes, run, script, sh,
};

/// Prints for about two seconds on both streams, with ends of every kind, and says in a file that it ran.
const CHATTER: &str = "echo ran >>~/ran; i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo \"out $i\"; \
     printf 'err %s\\r\\n' $i >&2; printf '%s %%\\r' $i; sleep 0.01; done; printf 'no end'; exit 5";

fn chatter_out() -> Vec<String> {
    let mut lines: Vec<String> = (1..=200).flat_map(|i| [format!("out {i}"), format!("{i} %")]).collect();
    lines.push("no end".into());
    lines
}

fn chatter_err() -> Vec<String> {
    (1..=200).map(|i| format!("err {i}")).collect()
}

fn assert_chatter(lines: &[Line]) {
    assert_eq!(of(lines, Stream::Out), chatter_out());
    assert_eq!(of(lines, Stream::Err), chatter_err());
}

/// A step that says its id and waits for a file.
const WAITER: &str = "echo $$; until [ -e ~/gate ]; do sleep 0.05; done; echo over; exit 3";

fn open_gate(sshd: &Sshd) {
    fs::write(sshd.home().join("gate"), "").expect("written");
}

#[tokio::test]
async fn a_cut_connection_costs_no_line_and_no_second_run() {
    for cut in [Sshd::kill_masters, |sshd: &Sshd| sshd.signal_sessions(Signal::SIGKILL)] {
        let sshd = Sshd::started();
        let channel = sshd.channel().await;
        let mut running = begin_as(&channel, channel.reserve(), script(CHATTER));
        let mut lines = running.some(40).await;
        cut(&sshd);
        lines.extend(running.some(200).await);
        cut(&sshd);
        let (ended, rest) = running.ended().await;
        lines.extend(rest);
        assert_eq!(ended.expect("it ran"), Ended::Exited(5));
        assert_chatter(&lines);
        assert_eq!(sshd.noted("ran"), ["ran"]);
        assert_eq!(sh(&channel, "echo next").await, (Ended::Exited(0), vec!["next".into()]));
    }
}

#[tokio::test]
async fn another_daemon_goes_on_where_the_first_one_stopped() {
    let sshd = Sshd::started();
    for seen in [0, 1, 2, 3, 150] {
        fs::remove_file(sshd.home().join("ran")).ok();
        let channel = sshd.channel().await;
        let id = channel.reserve();
        let mut running = begin_as(&channel, id.clone(), script(CHATTER));
        let mut lines = running.some(seen.max(1)).await;
        lines.truncate(seen);
        running.task.abort();
        drop((running, channel));
        let channel = sshd.channel().await;
        let (ended, rest) = attach(&channel, id, position(&lines)).ended().await;
        lines.extend(rest);
        assert_eq!(ended.expect("it ran"), Ended::Exited(5));
        assert_chatter(&lines);
        assert_eq!(sshd.noted("ran"), ["ran"]);
    }
}

#[tokio::test]
async fn a_run_that_ended_unheard_is_heard_later_and_more_than_once() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let id = RunId::new();
    let command =
        "sleep 1000 >/dev/null 2>&1 & echo $!; until [ -e ~/gate ]; do sleep 0.05; done; echo over; exit 3";
    let mut running = begin_as(&channel, id.clone(), script(command));
    let seen = running.some(1).await;
    let left: i32 = seen[0].text.parse().expect("a pid");
    running.task.abort();
    drop((running, channel));
    eventually("nobody is connected", || sshd.sessions().is_empty()).await;
    open_gate(&sshd);
    eventually("what the step left behind is gone", || !lives(left)).await;
    let channel = sshd.channel().await;
    for _ in 0..2 {
        let (ended, lines) = attach(&channel, id.clone(), position(&seen)).ended().await;
        assert_eq!((ended.expect("it ran"), of(&lines, Stream::Out)), (Ended::Exited(3), vec!["over"]));
    }
    let (_, lines) = attach(&channel, id, Position::default()).ended().await;
    assert_eq!(lines[..1], seen[..]);
}

#[tokio::test]
async fn a_run_whose_end_was_heard_can_be_heard_again() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let id = channel.reserve();
    let (ended, lines) = begin_as(&channel, id.clone(), script("echo a; echo b; exit 9")).ended().await;
    assert_eq!(ended.expect("it ran"), Ended::Exited(9));
    drop(channel);
    let channel = sshd.channel().await;
    let (ended, rest) = attach(&channel, id, position(&lines[..1])).ended().await;
    assert_eq!((ended.expect("it ran"), &rest[..]), (Ended::Exited(9), &lines[1..]));
}

#[tokio::test]
async fn a_run_that_was_dropped_goes_on_and_can_be_ended() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let id = RunId::new();
    let mut running = begin_as(&channel, id.clone(), script("echo $$; (setsid sleep 1000 &); sleep 1000"));
    let seen = running.some(1).await;
    let pid = seen[0].text.parse().expect("a pid");
    running.task.abort();
    let again = attach(&channel, id, position(&seen));
    channel.probe(PATIENT).await.expect("answers");
    assert!(lives(pid));
    again.cancel.cancel();
    assert_eq!(again.ended().await.0.expect("it ran"), Ended::Cancelled);
    assert!(!lives(pid));
    let home = sshd.inhabitants();
    let sleepers: Vec<String> = processes()
        .into_iter()
        .filter(|p| home.contains(&p.pid) && p.line == "sleep 1000")
        .map(|p| p.line)
        .collect();
    assert_eq!(sleepers, Vec::<String>::new());
}

#[tokio::test]
async fn a_run_that_never_began_is_told_so_and_never_begins() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let (ended, lines) = attach(&channel, RunId::new(), Position::default()).finished().await;
    assert_eq!((ended.expect("answered"), lines.len()), (None, 0));

    // The script is on its way into a wrapper that does not read it yet.
    let first = sshd.channel().await;
    let id = first.reserve();
    let is_wrapper =
        |line: &str| line.starts_with("/bin/sh -c") && line.ends_with(&format!("preheat {}", id.as_str()));
    let wrapper = processes().into_iter().find(|p| is_wrapper(&p.line)).expect("it stands by").pid;
    // With all that it is made of.
    killpg(Pid::from_raw(wrapper), Signal::SIGSTOP).expect("stopped");
    let running = begin_as(&first, id.clone(), script("echo ran >>~/ran"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    running.task.abort();
    drop((running, first));
    let (ended, _) = attach(&channel, id.clone(), Position::default()).finished().await;
    assert_eq!(ended.expect("answered"), None);
    killpg(Pid::from_raw(wrapper), Signal::SIGCONT).expect("continued");
    eventually("the wrapper is gone", || !lives(wrapper)).await;
    assert_eq!(sshd.noted("ran"), Vec::<String>::new());

    // Who was told so may begin it.
    let (ended, _) = begin_as(&channel, id, script("echo ran >>~/ran")).ended().await;
    assert_eq!((ended.expect("it ran"), sshd.noted("ran")), (Ended::Exited(0), vec!["ran".to_owned()]));
}

#[tokio::test]
async fn a_wrapper_that_dies_while_nobody_follows_is_found() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let id = RunId::new();
    let mut running = begin_as(&channel, id.clone(), script("echo $$; echo $PPID; exec sleep 1000"));
    let (pid, wrapper) = (running.pid().await, running.pid().await);
    running.task.abort();
    drop((running, channel));
    eventually("nobody is connected", || sshd.sessions().is_empty()).await;
    assert!(lives(pid));
    let channel = sshd.channel().await;
    let following = attach(&channel, id, Position::default());
    channel.probe(PATIENT).await.expect("answers");
    kill(Pid::from_raw(wrapper), Signal::SIGKILL).expect("killed");
    let (ended, lines) = following.ended().await;
    assert_eq!(ended.expect("it ran"), Ended::Exited(137));
    assert_eq!(lines.len(), 2);
    assert!(!lives(pid));
}

#[tokio::test]
async fn a_cancel_reaches_a_step_whose_connection_was_cut() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let command = "trap 'echo cleaned; exit' TERM; echo $$; setsid sleep 1000 & sleep 1000 & wait";
    let mut running = begin(&channel, script(command));
    let pid = running.pid().await;
    sshd.kill_masters();
    running.cancel.cancel();
    let (ended, lines) = running.ended().await;
    assert_eq!(ended.expect("it ran"), Ended::Cancelled);
    assert_eq!(of(&lines, Stream::Out), ["cleaned"]);
    assert!(!lives(pid));
    let home = sshd.inhabitants();
    assert!(!processes().iter().any(|p| home.contains(&p.pid) && p.line == "sleep 1000"));
}

#[tokio::test]
async fn an_idle_channel_is_opened_again() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    for cut in [Sshd::kill_masters, |sshd: &Sshd| sshd.signal_sessions(Signal::SIGKILL)] {
        let before = sshd.masters();
        cut(&sshd);
        eventually("another connection", || sshd.masters().iter().any(|pid| !before.contains(pid))).await;
        channel.greet(PATIENT).await.expect("answers");
        assert_eq!(sh(&channel, "echo once").await, (Ended::Exited(0), vec!["once".into()]));
    }
    assert_eq!(sshd.masters().len(), 1);
}

#[tokio::test]
async fn however_many_wait_for_a_connection_there_is_one_dial() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut all = Vec::new();
    for _ in 0..5 {
        let mut running = begin(&channel, script(WAITER));
        running.pid().await;
        all.push(running);
    }
    let before = sshd.masters();
    sshd.kill_masters();
    eventually("another connection", || sshd.masters().iter().any(|pid| !before.contains(pid))).await;
    open_gate(&sshd);
    for running in all {
        let (ended, lines) = running.ended().await;
        assert_eq!((ended.expect("it ran"), of(&lines, Stream::Out)), (Ended::Exited(3), vec!["over"]));
    }
    assert_eq!(sshd.masters().len(), 1);
}

#[tokio::test]
async fn a_connection_that_freezes_is_replaced_within_fifteen_seconds() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut running = begin(&channel, script(WAITER));
    running.pid().await;
    let frozen = sshd.sessions();
    let before = sshd.masters();
    let begun = Instant::now();
    sshd.signal_sessions(Signal::SIGSTOP);
    let probed = channel.probe(Duration::from_secs(2)).await;
    assert_eq!(probed.expect_err("frozen").reason, Reason::ProbeFailed);
    eventually("another connection", || sshd.masters().iter().any(|pid| !before.contains(pid))).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    open_gate(&sshd);
    let (ended, lines) = running.ended().await;
    assert_eq!((ended.expect("it ran"), of(&lines, Stream::Out)), (Ended::Exited(3), vec!["over"]));
    for pid in frozen {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
}

#[tokio::test]
async fn a_guest_that_freezes_is_given_up_in_bounded_time() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut running = begin(&channel, script("echo $$; exec sleep 1000"));
    running.pid().await;
    sshd.signal_all(Signal::SIGSTOP);
    let (ended, _) = tokio::time::timeout(Duration::from_secs(45), running.ended()).await.expect("bounded");
    assert_eq!(ended.expect_err("frozen").reason, Reason::ConnectionLost);
    let fault = channel.lost().await;
    assert!(fault.text.contains("not reached again within 15s"), "{fault}");
    assert_eq!(channel.probe(PATIENT).await.expect_err("gone").reason, Reason::ConnectionLost);
    sshd.signal_all(Signal::SIGCONT);
}

#[tokio::test]
async fn whoever_waits_for_an_abandoned_guest_waits_no_longer() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut running = begin(&channel, script("echo $$; exec sleep 1000"));
    running.pid().await;
    // Frozen, so that nothing but the word can end it.
    sshd.signal_all(Signal::SIGSTOP);
    let lost = channel.lost();
    channel.abandon(Fault::new(Reason::GuestStopped, "run", "it crashed"));
    channel.abandon(Fault::new(Reason::ConnectionLost, "ssh", "a later word"));
    let (ended, _) = tokio::time::timeout(Duration::from_secs(5), running.ended()).await.expect("at once");
    assert_eq!(ended.expect_err("dead").reason, Reason::GuestStopped);
    assert_eq!(lost.await.reason, Reason::GuestStopped);
    let never = run(&channel, script("true"));
    assert!(
        tokio::time::timeout(Duration::from_secs(5), tokio::spawn(never_runs(channel.clone()))).await.is_ok()
    );
    drop(never);
    eventually("no connection is left", || sshd.masters().is_empty()).await;
    sshd.signal_all(Signal::SIGCONT);
}

async fn never_runs(channel: Arc<dyn Channel>) {
    let ended = begin(&channel, script("true")).ended().await.0;
    assert_eq!(ended.expect_err("dead").reason, Reason::GuestStopped);
}
