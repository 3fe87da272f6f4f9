//! What stands by for a claim: the login shell, the receiver of the source, the SFTP server.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use preheat::clock::Deadline;
use preheat::guest::{Channel, Ended, Script, Stream, Take};

use crate::sshd::{
    PATIENT, Sshd, attach, begin, begin_as, eventually, lives, of, position, processes, run, script, sh,
};

const PROFILE: &str = "echo in >>~/logins; echo hello; echo hello >&2; export FROM_PROFILE=first\n";

/// A channel whose login shell is past its profile and waits.
async fn logged_in(sshd: &Sshd) -> Arc<dyn Channel> {
    fs::write(sshd.home().join(".profile"), PROFILE).expect("written");
    let channel = sshd.channel().await;
    channel.make_ready().await;
    eventually("the shell has read its profile", || sshd.noted("logins") == ["in"]).await;
    channel
}

#[tokio::test]
async fn a_shell_that_waited_is_the_steps_shell_and_the_next_step_has_its_own() {
    let sshd = Sshd::started();
    let channel = logged_in(&sshd).await;
    channel.make_ready().await;
    channel.greet(PATIENT).await.expect("answers");
    let id = channel.reserve();
    let command = "echo $FROM_PROFILE ${PREHEAT_STEP_DIR-}${PREHEAT_STEP_BYTES-}${PREHEAT_STEP-}; pwd; cat; \
         ls /dev/fd/ | grep -c '^[4-9]$'; echo 'export FROM_PROFILE=second' >>~/.profile; echo err >&2";
    let (ended, lines) = begin_as(&channel, id, script(command)).ended().await;
    assert_eq!(ended.expect("it ran"), Ended::Exited(0));
    let work = sshd.home().join("work").display().to_string();
    // What the profile prints is nobody's, and of our own files the step has none open.
    assert_eq!(of(&lines, Stream::Out), ["first", work.as_str(), "0"]);
    assert_eq!(of(&lines, Stream::Err), ["err"]);
    assert_eq!(sshd.noted("logins"), ["in"], "no second login");
    let (_, lines) = sh(&channel, "echo $FROM_PROFILE").await;
    assert_eq!((lines, sshd.noted("logins").len()), (vec!["second".to_owned()], 2));
}

#[tokio::test]
async fn a_long_script_and_its_secrets_reach_a_shell_that_waited_on_no_argument_list() {
    let sshd = Sshd::started();
    let channel = logged_in(&sshd).await;
    let secret = format!("s3cret{}", "0123456789abcdef".repeat(4_000));
    let env = vec![("TOKEN".into(), secret.clone().into())];
    let step =
        Script { env, ..script("echo ${#TOKEN}; until [ -e ~/gate ]; do sleep 0.05; done; echo over") };
    let mut running = begin_as(&channel, channel.reserve(), step);
    assert_eq!(running.line().await, secret.len().to_string());
    let holder = processes().into_iter().find(|p| p.line.contains(&secret[..40]));
    assert_eq!(holder.map(|p| p.line), None);
    fs::write(sshd.home().join("gate"), "").expect("written");
    assert_eq!(running.ended().await.0.expect("it ran"), Ended::Exited(0));
    assert_eq!(sshd.noted("logins"), ["in"]);
}

#[tokio::test]
async fn a_shell_that_did_not_wait_is_started_again_with_its_text() {
    for profile in ["echo in >>~/logins; [ -e ~/again ] || { touch ~/again; exit 3; }\n", PROFILE] {
        let sshd = Sshd::started();
        fs::write(sshd.home().join(".profile"), profile).expect("written");
        let channel = sshd.channel().await;
        channel.make_ready().await;
        eventually("the shell has read its profile", || sshd.noted("logins") == ["in"]).await;
        let waits = |line: &str| line.contains("PREHEAT_STEP_BYTES") && !line.starts_with("/bin/sh -c");
        let home = sshd.inhabitants();
        for p in processes().iter().filter(|p| home.contains(&p.pid) && waits(&p.line)) {
            kill(Pid::from_raw(p.pid), Signal::SIGKILL).ok();
            eventually("it is gone", || !lives(p.pid)).await;
        }
        let (ended, lines) =
            begin_as(&channel, channel.reserve(), script("echo ran >>~/ran; echo here; exit 4"))
                .ended()
                .await;
        assert_eq!(ended.expect("it ran"), Ended::Exited(4), "{profile}");
        assert_eq!((of(&lines, Stream::Out), sshd.noted("ran")), (vec!["here"], vec!["ran".to_owned()]));
    }
}

#[tokio::test]
async fn a_step_of_a_shell_that_waited_is_taken_up_after_a_cut_to_the_byte() {
    let sshd = Sshd::started();
    let channel = logged_in(&sshd).await;
    let id = channel.reserve();
    let command = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo out $i; echo err $i >&2; sleep 0.02; done";
    let mut running = begin_as(&channel, id.clone(), script(command));
    let mut lines = running.some(20).await;
    sshd.kill_masters();
    lines.extend(running.some(20).await);
    running.task.abort();
    drop((running, channel));
    let channel = sshd.channel().await;
    let (ended, rest) = attach(&channel, id, position(&lines)).ended().await;
    lines.extend(rest);
    assert_eq!(ended.expect("it ran"), Ended::Exited(0));
    assert_eq!(of(&lines, Stream::Out), (1..=60).map(|i| format!("out {i}")).collect::<Vec<_>>());
    assert_eq!(of(&lines, Stream::Err), (1..=60).map(|i| format!("err {i}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_cancel_ends_a_step_of_a_shell_that_waited_with_its_whole_tree() {
    let sshd = Sshd::started();
    let channel = logged_in(&sshd).await;
    let command = "trap 'echo cleaned; exit' TERM; echo $$; setsid sleep 1000 & sleep 1000 & wait";
    let mut running = begin_as(&channel, channel.reserve(), script(command));
    let pid = running.pid().await;
    running.cancel.cancel();
    let (ended, lines) = running.ended().await;
    assert_eq!(ended.expect("it ran"), Ended::Cancelled);
    assert_eq!(of(&lines, Stream::Out), ["cleaned"]);
    assert!(!lives(pid));
    let home = sshd.inhabitants();
    assert!(!processes().iter().any(|p| home.contains(&p.pid) && p.line == "sleep 1000"));
}

#[tokio::test]
async fn nothing_that_stands_by_outlives_its_connection() {
    let sshd = Sshd::started();
    let channel = logged_in(&sshd).await;
    drop(channel);
    eventually("nobody lives there", || sshd.inhabitants().is_empty()).await;
}

#[tokio::test]
async fn the_source_and_the_artifacts_pass_whether_what_stood_by_lives_or_not() {
    for kills in [false, true] {
        let sshd = Sshd::started();
        let dir = tempfile::tempdir().expect("a folder");
        let tar_path = dir.path().join("tree.tar");
        let mut tar = tar::Builder::new(fs::File::create(&tar_path).expect("made"));
        let mut head = tar::Header::new_gnu();
        head.set_size(5);
        head.set_mode(0o644);
        tar.append_data(&mut head, "app/file", b"text\n".as_slice()).expect("packed");
        tar.finish().expect("packed");
        let channel = logged_in(&sshd).await;
        if kills {
            sshd.kill_commands();
        }
        channel.put_tree(&tar_path, Deadline::after(PATIENT)).await.expect("sent");
        assert_eq!(fs::read(sshd.work().join("app/file")).expect("there"), b"text\n");
        if kills {
            sshd.kill_commands();
        }
        let into = dir.path().join("out");
        fs::create_dir(&into).expect("made");
        let globs = vec!["app/file".to_owned()];
        let take = Take { globs, into, bytes_max: 100, deadline: Deadline::after(PATIENT) };
        let taken = channel.take(&take).await.expect("taken");
        assert_eq!((taken.len(), taken[0].bytes), (1, 5));
        assert_eq!(fs::read(take.into.join("app/file")).expect("there"), b"text\n");
    }
}

#[tokio::test]
async fn a_time_out_holds_for_a_shell_whose_profile_never_ends() {
    let sshd = Sshd::started();
    fs::write(sshd.home().join(".profile"), "echo in >>~/logins; exec sleep 1000\n").expect("written");
    let channel = sshd.channel().await;
    channel.make_ready().await;
    eventually("it reads its profile", || sshd.noted("logins") == ["in"]).await;
    channel.greet(PATIENT).await.expect("the guest answers all the same");
    let step = Script { timeout: Duration::from_secs(1), ..script("echo ran >>~/ran") };
    let (ended, _) = begin_as(&channel, channel.reserve(), step).ended().await;
    assert_eq!(ended.expect("it ended"), Ended::TimedOut);
    assert_eq!(sshd.noted("ran"), Vec::<String>::new());
    fs::write(sshd.home().join(".profile"), "").expect("written");
    assert_eq!(run(&channel, script("echo next")).await, (Ended::Exited(0), vec!["next".into()]));
    assert_eq!(begin(&channel, script("exit 2")).ended().await.0.expect("it ran"), Ended::Exited(2));
}
