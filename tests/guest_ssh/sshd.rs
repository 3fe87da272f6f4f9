//! An sshd of this host as a guest, and what a test asks of it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use preheat::clock::Deadline;
use preheat::guest::ssh::SshConnector;
use preheat::guest::{Bounds, Channel, Connector, Ended, Line, Position, Script, Stream, Target};
use preheat::ids::RunId;
use preheat::runtime::Fault;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine; nothing waits so long when all is well.
pub const PATIENT: Duration = Duration::from_secs(60);

/// An sshd with a home folder of its own. Dropped, it is gone with every session of it.
pub struct Sshd {
    pub dir: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl Sshd {
    pub fn new() -> Self {
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

    pub fn started() -> Self {
        let mut sshd = Self::new();
        sshd.start();
        sshd
    }

    pub fn start(&mut self) {
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

    pub fn target(&self) -> Target {
        let user =
            nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("a table").expect("a user").name;
        Target {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: self.port,
            user,
            key: self.dir.path().join("user"),
        }
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub fn work(&self) -> PathBuf {
        let work = self.home().join("work");
        fs::create_dir_all(&work).expect("made");
        work
    }

    pub async fn channel(&self) -> Arc<dyn Channel> {
        SshConnector.connect(&self.target(), Deadline::after(PATIENT)).await.expect("connected")
    }

    /// The processes that serve connections: sshd's children and theirs.
    pub fn sessions(&self) -> Vec<i32> {
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
    pub fn kill_commands(&self) {
        let sessions = self.sessions();
        // Where the login is not root's, one sshd of a session is another's child.
        let commands = |p: &Process| sessions.contains(&p.parent) && !sessions.contains(&p.pid);
        for p in processes().into_iter().filter(commands) {
            kill(Pid::from_raw(p.pid), Signal::SIGKILL).ok();
        }
    }

    pub fn signal_sessions(&self, signal: Signal) {
        for pid in self.sessions() {
            kill(Pid::from_raw(pid), signal).ok();
        }
    }
}

impl Sshd {
    /// Stops and continues the whole guest: who listens, and who serves.
    pub fn signal_all(&self, signal: Signal) {
        self.signal_sessions(signal);
        let listener = self.child.as_ref().and_then(|c| i32::try_from(c.id()).ok()).expect("it was started");
        kill(Pid::from_raw(listener), signal).expect("signalled");
    }

    /// The control connections to it.
    pub fn masters(&self) -> Vec<i32> {
        let ours = format!("-p {} ", self.port);
        let is_ours = |p: &Process| p.line.starts_with("ssh ") && p.line.contains(&ours);
        processes().into_iter().filter(is_ours).map(|p| p.pid).collect()
    }

    /// Cuts every control connection at our end.
    pub fn kill_masters(&self) {
        for pid in self.masters() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }

    /// What runs with its home folder: its commands and what they started, as far as it is told (Linux).
    pub fn inhabitants(&self) -> Vec<i32> {
        let home = format!("HOME={}", self.home().display()).into_bytes();
        let lives_there = |pid: &i32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|b| *b == 0).any(|variable| variable == home)
        };
        processes().into_iter().map(|p| p.pid).filter(lives_there).collect()
    }

    /// What the steps of a test wrote into `$HOME/<name>`.
    pub fn noted(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.home().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // A step outlives its connection; a guest's end, which this is, it does not.
        self.signal_sessions(Signal::SIGKILL);
        for pid in self.inhabitants() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub line: String,
}

/// Every process that is not a zombie.
pub fn processes() -> Vec<Process> {
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

pub fn lives(pid: i32) -> bool {
    processes().iter().any(|p| p.pid == pid)
}

/// Waits for a condition on the world outside, which tells nobody when it changes.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENT, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn script(command: &str) -> Script {
    Script {
        command: command.into(),
        dir: String::new(),
        env: Vec::new(),
        timeout: PATIENT,
        kill_grace: Duration::from_secs(5),
    }
}

/// A run that goes on by itself.
pub struct Running {
    pub lines: mpsc::Receiver<Line>,
    pub cancel: CancellationToken,
    pub task: tokio::task::JoinHandle<Result<Option<Ended>, Fault>>,
}

/// Follows a run that somebody began.
pub fn attach(channel: &Arc<dyn Channel>, id: RunId, from: Position) -> Running {
    let (tell, lines) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let (channel, stop) = (Arc::clone(channel), cancel.clone());
    let bounds = Bounds { timeout: PATIENT, kill_grace: Duration::from_secs(5) };
    let task = tokio::spawn(async move { channel.attach(&id, from, bounds, tell, stop).await });
    Running { lines, cancel, task }
}

/// The texts of one stream.
pub fn of(lines: &[Line], stream: Stream) -> Vec<&str> {
    lines.iter().filter(|l| l.stream == stream).map(|l| l.text.as_str()).collect()
}

/// Behind the last of these lines.
pub fn position(lines: &[Line]) -> Position {
    let end = |stream| lines.iter().filter(|l| l.stream == stream).map(|l| l.end).max().unwrap_or(0);
    Position { out: end(Stream::Out), err: end(Stream::Err) }
}

pub fn begin(channel: &Arc<dyn Channel>, script: Script) -> Running {
    begin_as(channel, RunId::new(), script)
}

pub fn begin_as(channel: &Arc<dyn Channel>, id: RunId, script: Script) -> Running {
    let (tell, lines) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let (channel, stop) = (Arc::clone(channel), cancel.clone());
    let task = tokio::spawn(async move { channel.run(&id, &script, tell, stop).await.map(Some) });
    Running { lines, cancel, task }
}

impl Running {
    /// The next `n` lines.
    pub async fn some(&mut self, n: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        while lines.len() < n {
            lines.push(
                tokio::time::timeout(PATIENT, self.lines.recv()).await.expect("in time").expect("a line"),
            );
        }
        lines
    }

    pub async fn line(&mut self) -> String {
        tokio::time::timeout(PATIENT, self.lines.recv()).await.expect("in time").expect("a line").text
    }

    pub async fn pid(&mut self) -> i32 {
        self.line().await.trim().parse().expect("a pid")
    }

    /// How a run that was begun ended, and the lines that came until then.
    pub async fn ended(self) -> (Result<Ended, Fault>, Vec<Line>) {
        let (ended, lines) = self.finished().await;
        (ended.map(|ended| ended.expect("it was begun")), lines)
    }

    /// As [`Running::ended`], for a run that may not have begun.
    pub async fn finished(mut self) -> (Result<Option<Ended>, Fault>, Vec<Line>) {
        let mut lines = Vec::new();
        while let Some(line) = self.lines.recv().await {
            lines.push(line);
        }
        (self.task.await.expect("no panic"), lines)
    }
}

pub async fn run(channel: &Arc<dyn Channel>, script: Script) -> (Ended, Vec<String>) {
    let (ended, lines) = begin(channel, script).ended().await;
    (ended.expect("it ran"), lines.into_iter().map(|l| l.text).collect())
}

pub async fn sh(channel: &Arc<dyn Channel>, command: &str) -> (Ended, Vec<String>) {
    run(channel, script(command)).await
}
