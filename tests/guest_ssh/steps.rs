//! Steps: their codes, lines and ends.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use preheat::guest::{Ended, Position, Script, Stream};

use crate::sshd::{PATIENT, Sshd, begin, lives, of, position, processes, run, script, sh};

#[tokio::test]
async fn codes_are_exact_and_lines_are_whole() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    for (command, code) in [
        ("true", 0),
        ("exit 7", 7),
        ("exit 127", 127),
        ("exit 255", 255),
        ("no-such-command-anywhere", 127),
        ("kill -KILL $$", 137),
        ("sh -c 'kill -TERM $$'", 143),
        ("kill -TERM 0", 143),
        ("kill -KILL 0", 137),
    ] {
        assert_eq!(sh(&channel, command).await.0, Ended::Exited(code), "{command}");
    }
    let (_, lines) = begin(&channel, script("echo out; echo err >&2; printf 'no end'")).ended().await;
    assert_eq!(of(&lines, Stream::Out), ["out", "no end"]);
    assert_eq!(of(&lines, Stream::Err), ["err"]);
    assert_eq!(position(&lines), Position { out: 10, err: 4 });
    channel.probe(PATIENT).await.expect("answers");
    let begun = Instant::now();
    assert_eq!(sh(&channel, "echo quick").await.0, Ended::Exited(0));
    assert!(
        begun.elapsed() < Duration::from_millis(1_500),
        "a step that leaves nobody behind is not drained"
    );
}

#[tokio::test]
async fn a_step_runs_in_its_folder_with_its_variables_and_nothing_to_read() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let work = sshd.home().join("work");
    let (ended, lines) = sh(&channel, "pwd; cat; echo \"${PREHEAT_STEP-none}\"").await;
    assert_eq!((ended, lines), (Ended::Exited(0), vec![work.display().to_string(), "none".into()]));

    fs::create_dir_all(work.join("a dir/'quoted'")).expect("made");
    fs::write(sshd.home().join(".profile"), "export FROM_PROFILE=yes GIVEN=profile\n").expect("written");
    let value = "it's\n\"$HOME\" `x` \\ ä";
    let long = "0123456789abcdef".repeat(4_000);
    let env = vec![("GIVEN".into(), value.into()), ("LONG".into(), long.clone().into())];
    let dir = "a dir/'quoted'".into();
    let command = "pwd\necho \"$GIVEN\"\necho $FROM_PROFILE ${#LONG}".into();
    let (ended, lines) = run(&channel, Script { env, dir, ..script("") }.with(command)).await;
    assert_eq!(ended, Ended::Exited(0), "{lines:?}");
    let here = work.join("a dir/'quoted'").display().to_string();
    assert_eq!(lines, [here.as_str(), "it's", "\"$HOME\" `x` \\ ä", &format!("yes {}", long.len())]);

    let (ended, lines) = run(&channel, Script { dir: "not/there".into(), ..script("echo no") }).await;
    assert_eq!(ended, Ended::Exited(1));
    assert!(lines.len() == 1 && lines[0].contains("`not/there` is no folder"), "{lines:?}");
}

trait With {
    fn with(self, command: String) -> Self;
}

impl With for Script {
    fn with(self, command: String) -> Self {
        Self { command, ..self }
    }
}

#[tokio::test]
async fn a_time_out_kills_a_step_that_ignores_term_after_its_grace() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let step = script("trap '' TERM; echo $$; sh -c 'echo $$; while :; do sleep 1; done'; :");
    let step = Script { timeout: Duration::from_secs(1), kill_grace: Duration::from_millis(700), ..step };
    let begun = Instant::now();
    let mut running = begin(&channel, step);
    let pids = [running.pid().await, running.pid().await];
    let (ended, _) = running.ended().await;
    assert_eq!(ended.expect("it ran"), Ended::TimedOut);
    assert!(!pids.into_iter().any(lives), "when run returns, nothing is left");
    assert!(begun.elapsed() > Duration::from_millis(1_600), "the grace was given");
    assert_eq!(sh(&channel, "echo still here").await.1, ["still here"]);
}

#[tokio::test]
async fn a_cancel_gives_term_first_and_kills_the_whole_tree() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut running = begin(
        &channel,
        script(
            "(sleep 1000 & echo $!; exec >/dev/null 2>&1; wait) & (setsid sh -c 'echo $$; exec sleep 1000' &) \n\
             sh -c 'echo $$; (trap \"\" TERM; exec sleep 1000) & wait' & \n\
             trap 'echo cleaned; exit 0' TERM; wait; wait; wait",
        ),
    );
    let pids = [running.pid().await, running.pid().await, running.pid().await];
    running.cancel.cancel();
    let (ended, lines) = running.ended().await;
    assert_eq!(ended.expect("it ran"), Ended::Cancelled);
    assert!(lines.iter().any(|l| l.text == "cleaned"), "{lines:?}");
    assert_eq!(pids.into_iter().find(|p| lives(*p)), None);
}

#[tokio::test]
async fn a_background_child_that_holds_the_output_does_not_hang_the_step() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let begun = Instant::now();
    let mut running = begin(&channel, script("sleep 1000 & echo $!; exit 3"));
    let pid = running.pid().await;
    let (ended, _) = running.ended().await;
    assert_eq!(ended.expect("it ran"), Ended::Exited(3));
    assert!(!lives(pid));
    assert!(begun.elapsed() < Duration::from_secs(20));
    // And a silent one is not left either.
    let mut running = begin(&channel, script("sleep 1000 >/dev/null 2>&1 & echo $!"));
    let pid = running.pid().await;
    assert_eq!(running.ended().await.0.expect("it ran"), Ended::Exited(0));
    assert!(!lives(pid));
}

#[tokio::test]
async fn secrets_are_on_no_argument_list() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let secret = format!("s3cret{}", uuid::Uuid::new_v4().simple());
    let env = vec![("TOKEN".into(), secret.clone().into())];
    let command = format!("echo $TOKEN; echo {secret} >/dev/null; read -r _ <\"$HOME/gate\"; echo end");
    let made = Command::new("mkfifo").arg(sshd.home().join("gate")).status();
    assert!(made.expect("mkfifo").success());
    let mut running = begin(&channel, Script { env, ..script(&command) });
    assert_eq!(running.line().await, secret);
    let holder = processes().into_iter().find(|p| p.line.contains(&secret));
    assert_eq!(holder.map(|p| p.line), None);
    fs::write(sshd.home().join("gate"), "go\n").expect("opened");
    assert_eq!(running.ended().await.0.expect("it ran"), Ended::Exited(0));
}

#[tokio::test]
async fn much_output_is_complete_and_in_order() {
    const LINES: usize = 1_000_000;
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    // 64 bytes a line, 64 MB together.
    let command = format!("seq -f '%08.0f' 1 {LINES} | sed 's/$/ {}/'", "x".repeat(54));
    let mut running = begin(&channel, script(&command));
    let mut count = 0_usize;
    while let Some(line) = running.lines.recv().await {
        count += 1;
        assert_eq!(line.text.len(), 63);
        assert_eq!(line.text[..8].parse(), Ok(count));
        if count.is_multiple_of(100_000) {
            // A slow reader is waited for.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(running.task.await.expect("no panic").expect("it ran"), Some(Ended::Exited(0)));
    assert_eq!(count, LINES);
}

#[tokio::test]
async fn more_commands_than_a_session_allows_take_turns() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let runs = (0..30).map(|i| {
        let channel = Arc::clone(&channel);
        async move { sh(&channel, &format!("echo {i}; exit {i}")).await }
    });
    for (i, (ended, lines)) in futures::future::join_all(runs).await.into_iter().enumerate() {
        assert_eq!((ended, lines), (Ended::Exited(i32::try_from(i).expect("small")), vec![i.to_string()]));
    }
}

#[tokio::test]
async fn a_step_may_open_its_outputs_by_name_and_loses_nothing() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let command = "echo 1; echo 2 >/dev/stdout; echo a >&2; echo b >/dev/stderr; echo c | tee /dev/stderr >/dev/null; echo 3";
    let (ended, lines) = begin(&channel, script(command)).ended().await;
    assert_eq!(ended.expect("it ran"), Ended::Exited(0));
    assert_eq!(of(&lines, Stream::Out), ["1", "2", "3"]);
    assert_eq!(of(&lines, Stream::Err), ["a", "b", "c"]);
}

#[tokio::test]
async fn a_step_that_kills_who_waits_for_it_is_over() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut running = begin(&channel, script("echo $$; kill -KILL $PPID; exec sleep 1000"));
    let pid = running.pid().await;
    assert_eq!(running.ended().await.0.expect("it ran"), Ended::Exited(137));
    assert!(!lives(pid));
}
