//! The channel against a real sshd of this host: started by each test on a loopback port of its own, as the current
//! user, with keys, configuration and home folder of its own. `openssh-server` must be installed.

#![expect(
    clippy::disallowed_methods,
    reason = "tests start an sshd, look at the process table and read the time"
)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use preheat::clock::Deadline;
use preheat::guest::ssh::{SshConnector, sweep_orphans};
use preheat::guest::{Channel, Connector, Ended, Line, Script, Stream, Take, TakeError, Taken, Target};
use preheat::ids::RunId;
use preheat::runtime::{Fault, Reason};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine; nothing waits so long when all is well.
const PATIENT: Duration = Duration::from_secs(60);

/// An sshd with a home folder of its own. Dropped, it is gone with every session of it.
struct Sshd {
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Sshd {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("guest").tempdir().expect("a folder");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|l| l.local_addr())
            .expect("a free port")
            .port();
        for key in ["host", "user", "other"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.path().join(key))
                .status();
            assert!(made.expect("ssh-keygen is installed").success());
        }
        fs::copy(dir.path().join("user.pub"), dir.path().join("authorized")).expect("copied");
        fs::create_dir(dir.path().join("home")).expect("made");
        let at = dir.path().display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nUsePAM no\n\
             StrictModes no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n\
             Subsystem sftp internal-sftp\nSetEnv HOME={at}/home\nPermitUserEnvironment no\n"
        );
        fs::write(dir.path().join("config"), config).expect("written");
        Self { dir, port, child: None }
    }

    fn started() -> Self {
        let mut sshd = Self::new();
        sshd.start();
        sshd
    }

    fn start(&mut self) {
        if nix::unistd::geteuid().is_root() {
            // sshd's own demand, for its separation of privileges.
            fs::create_dir_all("/run/sshd").ok();
        }
        let program = ["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd"]
            .into_iter()
            .find(|p| Path::new(p).exists())
            .expect("openssh-server is installed");
        let log = fs::File::create(self.dir.path().join("log")).expect("made");
        let child = Command::new(program)
            .args(["-D", "-e", "-f"])
            .arg(self.dir.path().join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sshd starts");
        self.child = Some(child);
    }

    fn target(&self) -> Target {
        let user =
            nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("a table").expect("a user").name;
        Target {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: self.port,
            user,
            key: self.dir.path().join("user"),
        }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn work(&self) -> PathBuf {
        let work = self.home().join("work");
        fs::create_dir_all(&work).expect("made");
        work
    }

    async fn channel(&self) -> Arc<dyn Channel> {
        SshConnector.connect(&self.target(), Deadline::after(PATIENT)).await.expect("connected")
    }

    /// The processes that serve connections: sshd's children and theirs.
    fn sessions(&self) -> Vec<i32> {
        let listener = self.child.as_ref().map_or(0, Child::id);
        let table = processes();
        let mut found = vec![i32::try_from(listener).expect("a pid")];
        loop {
            let more: Vec<i32> = table
                .iter()
                .filter(|p| {
                    found.contains(&p.parent) && !found.contains(&p.pid) && p.line.starts_with("sshd")
                })
                .map(|p| p.pid)
                .collect();
            if more.is_empty() {
                return found.split_off(1);
            }
            found.extend(more);
        }
    }

    /// Kills what its sessions run.
    fn kill_commands(&self) {
        let sessions = self.sessions();
        // Where the login is not root's, one sshd of a session is another's child.
        let commands = |p: &Process| sessions.contains(&p.parent) && !sessions.contains(&p.pid);
        for p in processes().into_iter().filter(commands) {
            kill(Pid::from_raw(p.pid), Signal::SIGKILL).ok();
        }
    }

    fn signal_sessions(&self, signal: Signal) {
        for pid in self.sessions() {
            kill(Pid::from_raw(pid), signal).ok();
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.signal_sessions(Signal::SIGKILL);
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

struct Process {
    pid: i32,
    parent: i32,
    line: String,
}

/// Every process that is not a zombie.
fn processes() -> Vec<Process> {
    let out = Command::new("ps").args(["-A", "-ww", "-o", "pid=,ppid=,stat=,args="]).output().expect("ps");
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (pid, parent, stat) = (words.next()?, words.next()?, words.next()?);
        let line = words.collect::<Vec<_>>().join(" ");
        (!stat.starts_with('Z')).then_some(Process {
            pid: pid.parse().ok()?,
            parent: parent.parse().ok()?,
            line,
        })
    };
    String::from_utf8_lossy(&out.stdout).lines().filter_map(parse).collect()
}

fn lives(pid: i32) -> bool {
    processes().iter().any(|p| p.pid == pid)
}

/// Waits for a condition on the world outside, which tells nobody when it changes.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENT, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn script(command: &str) -> Script {
    Script {
        command: command.into(),
        dir: String::new(),
        env: Vec::new(),
        timeout: PATIENT,
        kill_grace: Duration::from_secs(5),
    }
}

/// A run that goes on by itself.
struct Running {
    lines: mpsc::Receiver<Line>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<Result<Ended, Fault>>,
}

fn begin(channel: &Arc<dyn Channel>, script: Script) -> Running {
    let (tell, lines) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let (channel, stop) = (Arc::clone(channel), cancel.clone());
    let task = tokio::spawn(async move { channel.run(&RunId::new(), &script, tell, stop).await });
    Running { lines, cancel, task }
}

impl Running {
    async fn line(&mut self) -> String {
        tokio::time::timeout(PATIENT, self.lines.recv()).await.expect("in time").expect("a line").text
    }

    async fn pid(&mut self) -> i32 {
        self.line().await.trim().parse().expect("a pid")
    }

    async fn ended(mut self) -> (Result<Ended, Fault>, Vec<Line>) {
        let mut lines = Vec::new();
        while let Some(line) = self.lines.recv().await {
            lines.push(line);
        }
        (self.task.await.expect("no panic"), lines)
    }
}

async fn run(channel: &Arc<dyn Channel>, script: Script) -> (Ended, Vec<String>) {
    let (ended, lines) = begin(channel, script).ended().await;
    (ended.expect("it ran"), lines.into_iter().map(|l| l.text).collect())
}

async fn sh(channel: &Arc<dyn Channel>, command: &str) -> (Ended, Vec<String>) {
    run(channel, script(command)).await
}

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
    let of = |s: Stream| lines.iter().filter(|l| l.stream == s).map(|l| l.text.as_str()).collect::<Vec<_>>();
    assert_eq!((of(Stream::Out), of(Stream::Err)), (vec!["out", "no end"], vec!["err"]));
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
    let env = vec![("GIVEN".into(), value.into()), ("LONG".into(), long.clone())];
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
async fn a_run_that_is_dropped_leaves_nothing() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut running = begin(&channel, script("echo $$; exec sleep 1000"));
    let pid = running.pid().await;
    running.task.abort();
    eventually("the step is gone", || !lives(pid)).await;
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
async fn a_killed_sshd_is_noticed_at_once() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut running = begin(&channel, script("echo $$; exec sleep 1000"));
    let pid = running.pid().await;
    let begun = Instant::now();
    sshd.signal_sessions(Signal::SIGKILL);
    let (ended, _) = running.ended().await;
    assert_eq!(ended.expect_err("lost").reason, Reason::ConnectionLost);
    assert_eq!(channel.lost().await.reason, Reason::ConnectionLost);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    eventually("the dead man's switch has fired", || !lives(pid)).await;
    assert_eq!(channel.probe(PATIENT).await.expect_err("gone").reason, Reason::ConnectionLost);
}

#[tokio::test]
async fn a_frozen_guest_is_found_within_fifteen_seconds() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut running = begin(&channel, script("echo $$; exec sleep 1000"));
    running.pid().await;
    sshd.signal_sessions(Signal::SIGSTOP);
    let begun = Instant::now();
    let probed = channel.probe(Duration::from_secs(2)).await;
    assert_eq!(probed.expect_err("frozen").reason, Reason::ProbeFailed);
    let (ended, _) = running.ended().await;
    assert_eq!(ended.expect_err("frozen").reason, Reason::ConnectionLost);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn secrets_are_on_no_argument_list() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let secret = format!("s3cret{}", uuid::Uuid::new_v4().simple());
    let env = vec![("TOKEN".into(), secret.clone())];
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
    assert_eq!(running.task.await.expect("no panic").expect("it ran"), Ended::Exited(0));
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

fn fill(path: &Path, bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_u32;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(bytes)
    .collect();
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, &content).expect("written");
    content
}

struct Out {
    dir: tempfile::TempDir,
    taken: Result<Vec<Taken>, TakeError>,
}

async fn take(channel: &Arc<dyn Channel>, globs: &[&str], bytes_max: u64) -> Out {
    let dir = tempfile::tempdir().expect("a folder");
    let globs = globs.iter().map(|g| (*g).to_owned()).collect();
    let take = Take { globs, into: dir.path().to_owned(), bytes_max, deadline: Deadline::after(PATIENT) };
    let taken = channel.take(&take).await;
    Out { dir, taken }
}

impl Out {
    fn names(&self) -> Vec<&str> {
        self.taken.as_ref().expect("taken").iter().map(|t| t.path.as_str()).collect()
    }
}

#[tokio::test]
async fn a_tree_of_three_thousand_files_goes_in() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let dir = tempfile::tempdir().expect("a folder");
    for i in 0..3_000 {
        fill(&dir.path().join(format!("tree/{}/file {i}", i % 50)), 100 + i % 700);
    }
    let tar_path = dir.path().join("tree.tar");
    let mut tar = tar::Builder::new(fs::File::create(&tar_path).expect("made"));
    tar.append_dir_all(".", dir.path().join("tree")).expect("packed");
    tar.finish().expect("packed");
    let sent = channel.put_tree(&tar_path, Deadline::after(PATIENT)).await.expect("sent");
    assert_eq!(sent, fs::metadata(&tar_path).expect("there").len());
    let differ =
        Command::new("diff").arg("-r").arg(dir.path().join("tree")).arg(sshd.home().join("work")).status();
    assert!(differ.expect("diff").success());

    fs::write(&tar_path, vec![b'x'; 4096]).expect("written");
    let fault = channel.put_tree(&tar_path, Deadline::after(PATIENT)).await.expect_err("no tar");
    assert!(fault.text.contains("tar in the guest ended with"), "{fault}");
    let fault =
        channel.put_tree(&dir.path().join("absent"), Deadline::after(PATIENT)).await.expect_err("absent");
    assert!(fault.text.contains("absent"), "{fault}");
}

#[tokio::test]
async fn the_source_goes_in_whatever_became_of_its_folder_and_its_receiver() {
    let sshd = Sshd::started();
    let dir = tempfile::tempdir().expect("a folder");
    let tar_path = dir.path().join("tree.tar");
    fill(&dir.path().join("tree/file"), 100);
    let mut tar = tar::Builder::new(fs::File::create(&tar_path).expect("made"));
    tar.append_dir_all(".", dir.path().join("tree")).expect("packed");
    tar.finish().expect("packed");

    let channel = sshd.channel().await;
    let replaced = sh(&channel, "cd && rm -rf work && mkdir -p work").await;
    assert_eq!(replaced.0, Ended::Exited(0));
    channel.put_tree(&tar_path, Deadline::after(PATIENT)).await.expect("sent");
    assert!(sshd.home().join("work/file").exists());

    let channel = sshd.channel().await;
    fs::remove_dir_all(sshd.home().join("work")).expect("removed");
    sshd.kill_commands();
    channel.put_tree(&tar_path, Deadline::after(PATIENT)).await.expect("sent");
    assert!(sshd.home().join("work/file").exists());
}

#[tokio::test]
async fn artifacts_come_out_as_they_are() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let work = sshd.work();
    let large = fill(&work.join("out/big one.ipa"), (20 << 20) + 12_345);
    let edge = fill(&work.join("out/edge.ipa"), 8 << 20);
    let small = fill(&work.join("out/deep/er/small.txt"), 1_000);
    fill(&work.join("out/empty"), 0);
    fill(&work.join("other/no"), 10);
    fs::set_permissions(work.join("out/big one.ipa"), fs::Permissions::from_mode(0o750)).expect("set");
    fs::set_permissions(work.join("out/deep/er/small.txt"), fs::Permissions::from_mode(0o700)).expect("set");
    let out = take(&channel, &["out/**/*.ipa", "out/**/small.txt", "*/empty", "-no", "out"], 1 << 30).await;
    assert!(matches!(&out.taken, Err(TakeError::Missing { glob }) if glob == "-no"), "{:?}", out.taken);
    let out = take(&channel, &["out/**/*.ipa", "out/**/small.txt", "*/empty"], 1 << 30).await;
    assert_eq!(out.names(), ["out/big one.ipa", "out/deep/er/small.txt", "out/edge.ipa", "out/empty"]);
    for (name, content, executable) in [
        ("out/big one.ipa", large, true),
        ("out/edge.ipa", edge, false),
        ("out/deep/er/small.txt", small, true),
    ] {
        assert!(fs::read(out.dir.path().join(name)).expect("there") == content, "{name}");
        let mode = fs::metadata(out.dir.path().join(name)).expect("there").permissions().mode();
        assert_eq!(mode & 0o111 != 0, executable, "{name}");
        let sum = Command::new("sha256sum").arg(work.join(name)).output().expect("sha256sum").stdout;
        let told = out.taken.as_ref().expect("taken").iter().find(|t| t.path == name).expect("listed");
        assert!(String::from_utf8_lossy(&sum).starts_with(&told.sha256));
        assert_eq!(told.bytes, content.len() as u64);
    }
    let too_large = take(&channel, &["out"], 8 << 20).await;
    assert!(matches!(too_large.taken, Err(TakeError::TooLarge { .. })), "{:?}", too_large.taken);
    let left: Vec<_> =
        fs::read_dir(too_large.dir.path()).expect("there").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with(".preheat")), "{left:?}");
}

#[tokio::test]
async fn many_small_artifacts_come_as_one() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let work = sshd.work();
    for i in 0..3_000 {
        fill(&work.join(format!("out/a folder with a long name/{}/{i}", i % 40)), i % 900);
    }
    fs::hard_link(work.join("out/a folder with a long name/1/1"), work.join("out/linked")).expect("linked");
    let out = take(&channel, &["out"], 1 << 30).await;
    assert_eq!(out.names().len(), 3_001);
    let differ =
        Command::new("diff").arg("-r").arg(work.join("out")).arg(out.dir.path().join("out")).status();
    assert!(differ.expect("diff").success());
}

#[tokio::test]
async fn names_and_links_that_would_do_harm_do_none() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let work = sshd.work();
    fill(&work.join("out/fine"), 5);
    fill(&work.join("out/-rf"), 5);
    fill(&work.join("out/it's $(x) \"q\""), 5);
    fill(&sshd.home().join("outside/secret"), 5);
    symlink("/etc/passwd", work.join("out/link")).expect("linked");
    symlink("fine", work.join("out/inner")).expect("linked");
    symlink(sshd.home().join("outside"), work.join("out/dir")).expect("linked");
    symlink(sshd.home().join("outside"), work.join("away")).expect("linked");
    let fifo = Command::new("mkfifo").arg(work.join("out/fifo")).status();
    assert!(fifo.expect("mkfifo").success());
    let out = take(&channel, &["out", "out/*"], 1 << 20).await;
    assert_eq!(out.names(), ["out/-rf", "out/fine", "out/it's $(x) \"q\""]);
    for glob in ["away/secret", "away/*", "out/dir/secret", "out/link", "../outside/secret", "/etc/passwd"] {
        let out = take(&channel, &["out/fine", glob], 1 << 20).await;
        assert!(
            matches!(&out.taken, Err(TakeError::Missing { glob: g }) if g == glob),
            "{glob} {:?}",
            out.taken
        );
    }
    fill(&work.join("bad/two\nlines"), 5);
    let out = take(&channel, &["bad/*"], 1 << 20).await;
    assert!(
        matches!(&out.taken, Err(TakeError::Hostile { path }) if path.contains("two\\nlines")),
        "{:?}",
        out.taken
    );
}
