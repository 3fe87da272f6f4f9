//! The command line as a user has it: the real program against a real HTTP side.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;

use common::{Ending, Fake, LONG, Server, project};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use preheat::api::token::Token;
use preheat::api::wire::*;
use preheat::build::spec::BuildResult;
use preheat::clock::UnixMillis;
use preheat::ids::BuildId;
use secrecy::ExposeSecret as _;

const PREHEAT: &str = env!("CARGO_BIN_EXE_preheat");

/// A folder to work in, with a project `app`.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    project(dir.path());
    dir
}

fn command(url: &str, dir: &Path, args: &[&str]) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::new(PREHEAT);
    command
        .current_dir(dir)
        .env("PREHEAT_URL", url)
        .env("HOME", dir)
        .env_remove("PREHEAT_HOME")
        .args(args)
        .timeout(LONG);
    command
}

async fn done(mut command: assert_cmd::Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("no panic")
}

async fn preheat(server: &Server, dir: &Path, args: &[&str]) -> Output {
    done(command(&server.url, dir, args)).await
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

async fn with_artifacts(artifacts: &[(&str, &[u8])]) -> (Arc<Fake>, Server) {
    let fake = Fake::new();
    let own = artifacts.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec()));
    fake.artifacts.lock().expect("whole").extend(own);
    let server = Server::start(&fake).await;
    (fake, server)
}

/// A started command that a test talks to.
struct Running {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Running {
    #[expect(
        clippy::disallowed_methods,
        reason = "the program under test is signalled and read while it runs"
    )]
    fn start(url: &str, dir: &Path, args: &[&str]) -> Self {
        let mut child = std::process::Command::new(PREHEAT)
            .current_dir(dir)
            .env("PREHEAT_URL", url)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("read");
        line
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("alive");
    }

    /// Its code, the rest of its stdout, its stderr.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).expect("read");
        self.child.stderr.take().expect("piped").read_to_string(&mut err).expect("read");
        (self.child.wait().expect("ended").code(), out, err)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_streams_the_steps_sums_up_and_brings_the_artifacts() {
    let (fake, server) = with_artifacts(&[("out/app.zip", b"the app"), ("log.txt", b"fine")]).await;
    let dir = workplace();
    let args = ["run", "app", "--pool", "linux", "--step", "make", "--env", "A=1", "--timeout", "90s"];
    let output = preheat(&server, dir.path(), &args).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    // What the steps wrote to stdout, and nothing else.
    assert_eq!(out(&output), "one\n");
    let said = err(&output);
    assert!(said.contains("two\n"), "{said}");
    let summary = said.split("build 1: success").nth(1).expect("a summary");
    let at = |word: &str| summary.find(word).unwrap_or_else(|| panic!("`{word}` is missing in {summary}"));
    let places = ["queue", "vm ", "source", "step make", "artifacts", "total"].map(at);
    assert!(places.is_sorted(), "{summary}");
    assert!(summary.contains("(hit: it was warm)") && summary.contains("1.5 s"), "{summary}");
    assert_eq!(std::fs::read(dir.path().join("preheat-out/1/out/app.zip")).expect("there"), b"the app");
    assert_eq!(std::fs::read(dir.path().join("preheat-out/1/log.txt")).expect("there"), b"fine");
    let specs = fake.specs.lock().expect("whole");
    assert_eq!((specs[0].steps[0].command.as_str(), specs[0].env["A"].as_str()), ("make", "1"));
    let source = fake.sources.lock().expect("whole")[0].clone();
    let mut tar = tar::Archive::new(source.as_slice());
    let names: Vec<_> = tar
        .entries()
        .expect("a tar")
        .map(|e| e.expect("whole").path().expect("named").into_owned())
        .collect();
    assert!(names.iter().any(|n| n.ends_with("Makefile")), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_says_how_the_build_ended() {
    let (fake, server) = with_artifacts(&[]).await;
    let dir = workplace();
    let cases = [
        (BuildResult::Success, 0),
        (BuildResult::Failure, 1),
        (BuildResult::Error, 3),
        (BuildResult::Cancellation, 4),
        (BuildResult::Timeout, 5),
    ];
    for (result, code) in cases {
        *fake.ending.lock().expect("whole") = Ending::Ends(result);
        let output = preheat(&server, dir.path(), &["run", "app"]).await;
        assert_eq!(output.status.code(), Some(code), "{result:?}: {}", err(&output));
        let reason = result != BuildResult::Success;
        assert_eq!(err(&output).contains("step `make` exited with 2"), reason, "{}", err(&output));
    }
    assert!(!dir.path().join("preheat-out").exists(), "a folder without an artifact is not made");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_json_stdout_is_one_object() {
    let (_fake, server) = with_artifacts(&[("a", b"x")]).await;
    let dir = workplace();
    let output = preheat(&server, dir.path(), &["run", "app", "--json", "--out", "result"]).await;
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(value["result"], "success");
    assert_eq!(value["out"], "result");
    assert_eq!(value["artifacts"][0]["path"], "a");
    assert!(err(&output).contains("one\n"), "the log goes to stderr");
    for args in
        [&["builds", "--json"][..], &["pool", "--json"], &["vms", "--json"], &["artifacts", "1", "--json"]]
    {
        let output = preheat(&server, dir.path(), args).await;
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("one object");
    }
    let output = preheat(&server, dir.path(), &["run", "app", "--json", "--pool", "none"]).await;
    let body: ErrorBody = serde_json::from_slice(&output.stdout).expect("an error's shape");
    assert_eq!((body.error.code.as_str(), output.status.code()), ("pool_unknown", Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_artifact_is_found_and_not_left_behind() {
    let (fake, server) = with_artifacts(&[("a.bin", b"right")]).await;
    *fake.corrupt.lock().expect("whole") = true;
    let dir = workplace();
    let output = preheat(&server, dir.path(), &["run", "app"]).await;
    assert_eq!(output.status.code(), Some(3));
    assert!(err(&output).contains("`a.bin` of build 1 came damaged"), "{}", err(&output));
    let left = std::fs::read_dir(dir.path().join("preheat-out/1")).expect("there").count();
    assert_eq!(left, 0, "nothing of it stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_that_would_leave_the_folder_is_refused() {
    let (_fake, server) = with_artifacts(&[("fine", b"x"), ("../evil", b"x")]).await;
    let dir = workplace();
    let output = preheat(&server, dir.path(), &["run", "app"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", err(&output));
    assert!(!dir.path().join("preheat-out").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executable_stays_one() {
    use std::os::unix::fs::PermissionsExt;
    let (fake, server) = with_artifacts(&[("tool", b"#!/bin/sh\n")]).await;
    let id = fake.add();
    fake.end(id, BuildResult::Success);
    let file = fake.dir.path().join("artifacts/1/tool");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).expect("set");
    let dir = workplace();
    let output = preheat(&server, dir.path(), &["artifacts", "1", "--out", "got"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let mode = std::fs::metadata(dir.path().join("got/tool")).expect("there").permissions().mode();
    assert_eq!(mode & 0o100, 0o100);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_it_says_how_to_start_one() {
    let free = preheat::api::bind(([127, 0, 0, 1], 0).into()).await.expect("a port");
    let url = format!("http://{}", free.local_addr().expect("bound"));
    drop(free);
    let dir = workplace();
    for args in [
        &["run", "app"][..],
        &["submit", "app"],
        &["builds"],
        &["logs", "1"],
        &["cancel", "1"],
        &["ssh", "1"],
    ] {
        let output = done(command(&url, dir.path(), args)).await;
        assert_eq!(output.status.code(), Some(3), "{args:?}");
        let said = err(&output);
        assert!(
            said.contains("error: no daemon answers at")
                && said.contains("hint: start it with `preheat serve`"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_ends_in_two_with_a_hint() {
    let (_fake, server) = with_artifacts(&[]).await;
    let dir = workplace();
    let cases: [(&[&str], &str); 9] = [
        (&["run", "nowhere"], "there is no folder or archive `nowhere`"),
        (&["run", "app", "--pool", "none"], "there is no pool `none`"),
        (&["run", "app", "--secret", "PREHEAT_TEST_UNSET"], "`PREHEAT_TEST_UNSET`, which is not set"),
        (&["run", "app", "--timeout", "soon"], "--timeout"),
        (&["run"], "required"),
        (&["builds", "--limit", "0"], "--limit"),
        (&["logs", "9"], "there is no build 9"),
        (&["builds", "--url", "ftp://x"], "cannot be the daemon's address"),
        (&["builds", "--token-file", "none"], "cannot read the token file"),
    ];
    for (args, words) in cases {
        let output = preheat(&server, dir.path(), args).await;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        assert!(err(&output).contains(words), "{args:?}: {}", err(&output));
        assert!(out(&output).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secrets_value_comes_from_the_environment_and_is_not_shown() {
    let (fake, server) = with_artifacts(&[]).await;
    let dir = workplace();
    let mut run = command(&server.url, dir.path(), &["run", "app", "--secret", "KEY"]);
    run.env("KEY", "hunter2");
    let output = done(run).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(fake.specs.lock().expect("whole")[0].secrets["KEY"].expose_secret(), "hunter2");
    assert!(!err(&output).contains("hunter2") && !out(&output).contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_prints_the_number_and_leaves() {
    let (fake, server) = with_artifacts(&[]).await;
    *fake.ending.lock().expect("whole") = Ending::Hangs;
    let dir = workplace();
    std::fs::write(dir.path().join("app.tar.gz"), b"archive").expect("written");
    let output = preheat(&server, dir.path(), &["submit", "app.tar.gz"]).await;
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), "1\n"), "{}", err(&output));
    assert_eq!(fake.sources.lock().expect("whole")[0], b"archive");
    let output = preheat(&server, dir.path(), &["cancel", "1"]).await;
    assert_eq!(output.status.code(), Some(0));
    let output = preheat(&server, dir.path(), &["cancel", "1"]).await;
    assert_eq!((output.status.code(), err(&output).contains("build 1 is over")), (Some(2), true));
    let output = preheat(&server, dir.path(), &["logs", "1"]).await;
    assert_eq!((out(&output).as_str(), err(&output).as_str()), ("one\n", "two\npreheat: three\n"));
    let output = preheat(&server, dir.path(), &["builds"]).await;
    assert!(out(&output).contains("cancellation"), "{}", out(&output));
    let output = preheat(&server, dir.path(), &["pool"]).await;
    assert!(out(&output).contains("2/2") && out(&output).contains("hint: look at DHCP"), "{}", out(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_interrupt_cancels_and_the_end_is_waited_for() {
    let (fake, server) = with_artifacts(&[]).await;
    *fake.ending.lock().expect("whole") = Ending::Hangs;
    let dir = workplace();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut run = Running::start(&server.url, dir.path(), &["run", "app"]);
        let (code, said) = tokio::task::spawn_blocking(move || {
            assert_eq!(run.line(), "one\n");
            run.signal(signal);
            let (code, _, said) = run.end();
            (code, said)
        })
        .await
        .expect("no panic");
        assert_eq!(code, Some(4), "{said}");
        assert!(said.contains("cancelling build") && said.contains(": cancellation"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_interrupt_leaves_at_once() {
    let (fake, server) = with_artifacts(&[]).await;
    *fake.ending.lock().expect("whole") = Ending::Hangs;
    *fake.deaf.lock().expect("whole") = true;
    let dir = workplace();
    let mut run = Running::start(&server.url, dir.path(), &["run", "app"]);
    let (run, fake) = tokio::task::spawn_blocking(move || {
        assert_eq!(run.line(), "one\n");
        run.signal(Signal::SIGINT);
        (run, fake)
    })
    .await
    .expect("no panic");
    fake.until(BuildId(1), |view| view.reason.as_deref() == Some("cancel was asked for")).await;
    run.signal(Signal::SIGINT);
    let (code, _, said) = tokio::task::spawn_blocking(move || run.end()).await.expect("no panic");
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("build 1 is being cancelled") && said.contains("preheat logs 1"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_daemon_costs_no_line_and_repeats_none() {
    let fake = Fake::new();
    *fake.ending.lock().expect("whole") = Ending::Hangs;
    let dir = workplace();
    let mut server = Server::start(&fake).await;
    let mut run = Running::start(&server.url, dir.path(), &["run", "app"]);
    for restart in 0..3 {
        run = tokio::task::spawn_blocking(move || {
            assert_eq!(
                run.line(),
                if restart == 0 { "one\n".to_owned() } else { format!("after {restart}\n") }
            );
            run
        })
        .await
        .expect("no panic");
        let address = server.address;
        server.stop().await;
        fake.print(BuildId(1), LogStream::Out, &format!("after {}", restart + 1));
        server = Server::with(&fake, address, |_| {}).await;
    }
    fake.end(BuildId(1), BuildResult::Success);
    let (code, rest, said) = tokio::task::spawn_blocking(move || run.end()).await.expect("no panic");
    assert_eq!((code, rest.as_str()), (Some(0), "after 3\n"), "{said}");
    assert!(said.contains("trying again") && said.contains("connected again"), "{said}");
    assert_eq!(said.matches("two\n").count(), 1, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stays_away_is_given_up() {
    let (fake, server) = with_artifacts(&[]).await;
    *fake.ending.lock().expect("whole") = Ending::Hangs;
    let dir = workplace();
    let mut run = Running::start(&server.url, dir.path(), &["run", "app", "--reconnect", "500ms"]);
    let run = tokio::task::spawn_blocking(move || {
        assert_eq!(run.line(), "one\n");
        run
    })
    .await
    .expect("no panic");
    server.stop().await;
    let (code, _, said) = tokio::task::spawn_blocking(move || run.end()).await.expect("no panic");
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("`preheat logs -f 1` takes it up again"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_build_says_what_it_waits_for() {
    let (fake, server) = with_artifacts(&[]).await;
    *fake.ending.lock().expect("whole") = Ending::Hangs;
    let dir = workplace();
    let mut run = Running::start(&server.url, dir.path(), &["run", "app"]);
    let said = tokio::task::spawn_blocking(move || {
        let mut err = BufReader::new(run.child.stderr.take().expect("piped"));
        let mut said = String::new();
        while !said.contains("waiting for a slot of pool linux") {
            assert!(err.read_line(&mut said).expect("read") > 0, "{said}");
        }
        run.child.kill().expect("alive");
        run.child.wait().expect("ended");
        said
    });
    assert!(said.await.expect("no panic").contains("build 1 (app on linux)"));
    drop(fake);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_sent_and_its_lack_is_explained() {
    let token = "0123456789abcdef0123456789abcdef";
    let server =
        Server::with(&Fake::new(), ([127, 0, 0, 1], 0).into(), |o| o.token = Token::new(token)).await;
    let dir = workplace();
    std::fs::write(dir.path().join("token"), format!("{token}\n")).expect("written");
    let output = preheat(&server, dir.path(), &["builds", "--token-file", "token"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let output = preheat(&server, dir.path(), &["builds"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("--token-file"), "{}", err(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_names_what_is_not_there() {
    let (fake, server) = with_artifacts(&[]).await;
    fake.vms.lock().expect("whole").push(VmView {
        name: "preheat-linux-0-1".into(),
        pool: "linux".into(),
        slot: 0,
        state: "starting".into(),
        since_ms: UnixMillis(0),
        address: None,
        build: None,
        pid: None,
    });
    let dir = workplace();
    for (vm, code, words) in [("7", 2, "build 7 has no VM"), ("preheat-linux-0-1", 3, "has no address yet")] {
        let output = preheat(&server, dir.path(), &["ssh", vm]).await;
        assert_eq!(
            (output.status.code(), err(&output).contains(words)),
            (Some(code), true),
            "{}",
            err(&output)
        );
    }
    assert!(out(&preheat(&server, dir.path(), &["vms"]).await).contains("starting"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_daemon_is_said_to_be_none() {
    let other = wiremock::MockServer::start().await;
    let dir = workplace();
    let output = done(command(&other.uri(), dir.path(), &["builds"])).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("may not be preheat"), "{}", err(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_does_not_end_the_build() {
    let (fake, server) = with_artifacts(&[]).await;
    *fake.ending.lock().expect("whole") = Ending::Hangs;
    let dir = workplace();
    let mut run = Running::start(&server.url, dir.path(), &["run", "app"]);
    let run = tokio::task::spawn_blocking(move || {
        assert_eq!(run.line(), "one\n");
        drop(run.child.stderr.take());
        let Running { child, out } = run;
        drop(out);
        child
    });
    let mut run = run.await.expect("no panic");
    fake.print(BuildId(1), LogStream::Out, "more");
    fake.end(BuildId(1), BuildResult::Success);
    let status = tokio::task::spawn_blocking(move || run.wait().expect("ended")).await.expect("no panic");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn the_help_shows_examples_and_exit_codes() {
    let help = assert_cmd::Command::new(PREHEAT).arg("--help").output().expect("it runs");
    for words in ["Examples:", "preheat run ./my-app", "Exit codes:", "PREHEAT_URL"] {
        assert!(out(&help).contains(words), "{words}");
    }
    assert_eq!(help.status.code(), Some(0));
}
