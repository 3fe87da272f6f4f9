//! The control connection: one `ssh -M -N` per VM, in the foreground, ours, and killed with its owner.
//!
//! A dial is one process under two limits: a short one until the guest's banner is there (a booting guest behind a
//! user-mode network accepts and says nothing; such a dial is given up and begun again, a little more patiently each
//! time), and a long one from the banner on, since a guest that answers is only slowed down by another beginning.
//!
//! The folder of the control socket is locked for as long as its owner lives; that is how [`sweep`] knows an orphan.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use openssh::Session;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStderr;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Target;
use crate::clock::Deadline;
use crate::runtime::command::{CommandError, Group, Invocation, Streams};
use crate::runtime::{Fault, Reason};

/// Where control sockets live. Not `$TMPDIR`: a socket's path has at most 103 bytes, and macOS' folders use most of them.
const SOCKETS: &str = "/tmp";

/// The names of our folders there begin so.
const PREFIX: &str = "preheat-ssh-";

/// Seconds between two keepalives, and how many may stay without an answer: a frozen guest is found after 12 s, one
/// that is only slow (emulated, busy) is not.
const ALIVE_INTERVAL_S: u32 = 4;
const ALIVE_COUNT_MAX: u32 = 2;

/// From the banner to the open session. An emulated guest needs half a second alone and some in company.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// What is kept of the last lines that ssh printed.
const TEXT_BYTES_MAX: usize = 600;

/// How long asking `ps` may take.
const PS_LIMIT: Duration = Duration::from_secs(5);

/// AES is the fastest where the processor has it, which every Mac has. An emulated guest has not.
const CIPHERS: &str = if cfg!(target_os = "macos") {
    "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr"
} else {
    "chacha20-poly1305@openssh.com,aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr"
};

/// Ours come before the client's own, whose first choice guards against machines that are yet to be built: a guest is reached
/// over its host's own network, for an hour, and an emulated one computes for a quarter of a second on it.
const KEY_EXCHANGES: &str = "^ecdh-sha2-nistp256,curve25519-sha256";

/// Why a dial led nowhere.
#[derive(Debug)]
pub(super) enum Miss {
    /// Nothing was said in time.
    Silent(String),
    /// Nobody listens, or whoever does hung up.
    Closed(String),
    /// Our key was refused.
    Denied(String),
    /// No way there.
    NoRoute(String),
    /// Another dial would be no better: ssh cannot be started.
    Hopeless(Fault),
}

/// An open control connection.
#[derive(Debug)]
pub(super) struct Master {
    pub session: Arc<Session>,
    pub lost: watch::Receiver<Option<Fault>>,
    pub alive: DropGuard,
}

/// Dials once. Cancel-safe: dropped, no process is left. `patience` is for the time until the guest's banner.
pub(super) async fn dial(target: &Target, patience: Duration, deadline: Deadline) -> Result<Master, Miss> {
    let seat = Seat::new().map_err(|e| Miss::Hopeless(cannot_start(&e.to_string())))?;
    let mut group = invocation(target, &seat.socket()).spawn(Streams::Piped).map_err(|e| {
        let reason =
            if matches!(e, CommandError::Missing(_)) { Reason::ProgramMissing } else { Reason::VerbFailed };
        Miss::Hopeless(Fault::new(reason, "ssh connect", e.to_string()))
    })?;
    seat.note(group.pid());
    drop(group.take_stdout());
    let Some(stderr) = group.take_stderr() else {
        return Err(Miss::Hopeless(cannot_start("its stderr is missing")));
    };
    let mut words = Words { lines: BufReader::new(stderr).lines(), text: String::new() };
    let greeted = words.wait_for("Remote protocol version", Deadline::after(patience).min(deadline)).await?;
    if greeted {
        words.wait_for("Entering interactive session", Deadline::after(HANDSHAKE).min(deadline)).await?;
    }
    words.text.clear();
    let session = Arc::new(Session::resume_mux(seat.socket().into_boxed_path(), None));
    let (tell, lost) = watch::channel(None);
    let stop = CancellationToken::new();
    tokio::spawn(watch_over(group, seat, words, tell, stop.clone()));
    Ok(Master { session, lost, alive: stop.drop_guard() })
}

/// Lives as long as the connection or its owner, whichever ends first.
async fn watch_over(
    mut group: Group,
    seat: Seat,
    mut words: Words,
    tell: watch::Sender<Option<Fault>>,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = words.drain() => {}
    }
    // Either it was to stop, or its stderr is closed, which it never does while it lives.
    group.signal(Signal::SIGKILL);
    group.wait().await.ok();
    let text = if words.text.is_empty() { "the connection was closed" } else { &words.text };
    tell.send_replace(Some(Fault::new(Reason::ConnectionLost, "ssh", text)));
    drop(seat);
}

fn cannot_start(why: &str) -> Fault {
    Fault::new(Reason::VerbFailed, "ssh connect", why)
}

fn invocation(target: &Target, socket: &Path) -> Invocation {
    let options = [
        "BatchMode=yes".to_owned(),
        "PreferredAuthentications=publickey".to_owned(),
        "IdentitiesOnly=yes".to_owned(),
        "IdentityAgent=none".to_owned(),
        "ControlPersist=no".to_owned(),
        // A VM is new each time and reached over the host's own network; its key means nothing.
        "StrictHostKeyChecking=no".to_owned(),
        "UserKnownHostsFile=/dev/null".to_owned(),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        "CheckHostIP=no".to_owned(),
        "UpdateHostKeys=no".to_owned(),
        "Compression=no".to_owned(),
        format!("ServerAliveInterval={ALIVE_INTERVAL_S}"),
        format!("ServerAliveCountMax={ALIVE_COUNT_MAX}"),
        format!("Ciphers={CIPHERS}"),
        format!("KexAlgorithms={KEY_EXCHANGES}"),
        // Its words are how we follow it; no configuration or environment of ours is among them.
        "LogLevel=DEBUG1".to_owned(),
    ];
    Invocation::new("ssh")
        .args(["-M", "-N", "-T", "-F", "/dev/null", "-S"])
        .arg(socket)
        .args(["-p", &target.port.to_string(), "-l", &target.user, "-i"])
        .arg(&target.key)
        .args(options.iter().flat_map(|o| ["-o", o.as_str()]))
        .args(["--", &target.address.to_string()])
}

/// What ssh says on its stderr.
struct Words {
    lines: Lines<BufReader<ChildStderr>>,
    /// The last lines that were meant for people.
    text: String,
}

impl Words {
    /// Reads on until `phrase` is said.
    async fn wait_for(&mut self, phrase: &str, deadline: Deadline) -> Result<bool, Miss> {
        loop {
            match timeout_at(deadline.instant(), self.next()).await {
                Ok(Some(line)) if line.contains(phrase) => return Ok(true),
                Ok(Some(_)) => {}
                Ok(None) => return Err(self.verdict()),
                Err(_) => return Err(Miss::Silent(format!("no answer in time (waited for: {phrase})"))),
            }
        }
    }

    async fn drain(&mut self) {
        while self.next().await.is_some() {}
    }

    async fn next(&mut self) -> Option<String> {
        let line = self.lines.next_line().await.ok()??;
        let chatter = line.is_empty()
            || line.starts_with("debug1:")
            || line.starts_with("OpenSSH_")
            || line.starts_with("Authenticated to ")
            || line.starts_with("Warning: Permanently added");
        if !chatter && line.len() <= TEXT_BYTES_MAX {
            if self.text.len() + line.len() > TEXT_BYTES_MAX {
                self.text.clear();
            } else if !self.text.is_empty() {
                self.text.push_str("; ");
            }
            self.text.push_str(line.trim());
        }
        Some(line)
    }

    fn verdict(&self) -> Miss {
        let text =
            if self.text.is_empty() { "ssh ended without a word".to_owned() } else { self.text.clone() };
        classify(text)
    }
}

fn classify(text: String) -> Miss {
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if has(&["Permission denied", "Too many authentication failures", "UNPROTECTED PRIVATE KEY"]) {
        Miss::Denied(text)
    } else if has(&["No route to host", "Network is unreachable", "Host is down"]) {
        Miss::NoRoute(text)
    } else if has(&["timed out"]) {
        Miss::Silent(text)
    } else {
        Miss::Closed(text)
    }
}

/// A folder for one control socket, locked while we live.
#[derive(Debug)]
struct Seat {
    dir: TempDir,
    _lock: File,
}

impl Seat {
    fn new() -> std::io::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(8)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(SOCKETS)?;
        // Locked before it has the name that a sweep looks for.
        let new = dir.path().join("lock.new");
        let lock = File::create(&new)?;
        lock.lock()?;
        fs::rename(new, dir.path().join("lock"))?;
        Ok(Self { dir, _lock: lock })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Notes the master, so that a later daemon can end it. Without the note it ends by keepalive at the latest.
    fn note(&self, pid: u32) {
        fs::write(self.dir.path().join("pid"), pid.to_string()).ok();
    }
}

/// As [`super::ssh::longest_socket_path`].
pub fn longest_socket_path() -> std::path::PathBuf {
    std::path::Path::new(SOCKETS).join(format!("{PREFIX}XXXXXX")).join("s")
}

/// Ends the masters that a killed daemon of this user left behind, and removes their folders. Returns how many folders.
/// A folder that somebody holds, or that is not ours, is not touched.
pub async fn sweep() -> usize {
    let mut swept = 0;
    let Ok(found) = fs::read_dir(SOCKETS) else { return 0 };
    for entry in found.flatten() {
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(PREFIX)) && sweep_one(&entry.path()).await
        {
            swept += 1;
        }
    }
    swept
}

async fn sweep_one(dir: &Path) -> bool {
    let ours = fs::symlink_metadata(dir)
        .is_ok_and(|m| m.is_dir() && m.uid() == nix::unistd::geteuid().as_raw() && m.mode() & 0o077 == 0);
    // A folder whose lock is not there yet is being made.
    let Some(lock) = ours.then(|| File::open(dir.join("lock")).ok()).flatten() else { return false };
    if lock.try_lock().is_err() {
        return false;
    }
    let pid = fs::read_to_string(dir.join("pid")).ok().and_then(|p| p.parse::<i32>().ok());
    if let Some(pid) = pid.filter(|p| *p > 1)
        && is_master(pid, &dir.join("s")).await
    {
        killpg(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    fs::remove_dir_all(dir).is_ok()
}

/// Process ids are used again: it is the master only if it names its socket.
async fn is_master(pid: i32, socket: &Path) -> bool {
    let ps =
        Invocation::new("ps").args(["-ww", "-o", "command=", "-p", &pid.to_string()]).output(PS_LIMIT).await;
    ps.is_ok_and(|out| out.stdout.contains(&*socket.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_says_is_told_apart() {
        let denied = "admin@127.0.0.1: Permission denied (publickey).";
        assert!(matches!(classify(denied.into()), Miss::Denied(_)));
        let no_route = "ssh: connect to host 192.168.64.9 port 22: No route to host";
        assert!(matches!(classify(no_route.into()), Miss::NoRoute(_)));
        let silent = "ssh: connect to host 192.168.64.9 port 22: Operation timed out";
        assert!(matches!(classify(silent.into()), Miss::Silent(_)));
        for closed in [
            "Connection refused",
            "kex_exchange_identification: Connection closed by remote host",
            "reset by peer",
        ] {
            assert!(matches!(classify(closed.into()), Miss::Closed(_)), "{closed}");
        }
    }

    #[test]
    fn a_control_sockets_path_fits_with_what_ssh_adds_to_it() {
        let seat = Seat::new().expect("a folder");
        // While it binds, ssh adds a dot and 16 characters. macOS takes 103 bytes.
        assert!(seat.socket().as_os_str().len() + 17 <= 103);
    }

    #[tokio::test]
    async fn a_sweep_spares_what_is_held_and_what_is_not_ours() {
        let held = Seat::new().expect("a folder");
        let bare = tempfile::Builder::new().prefix(PREFIX).tempdir_in(SOCKETS).expect("a folder");
        assert!(!sweep_one(held.dir.path()).await && !sweep_one(bare.path()).await);
        let Seat { dir, _lock: lock } = held;
        drop(lock);
        assert!(sweep_one(dir.path()).await);
        assert!(!dir.path().exists() && bare.path().exists());
    }

    #[tokio::test]
    async fn a_sweep_ends_a_master_that_its_daemon_left_behind_and_nobody_else() {
        let seat = Seat::new().expect("a folder");
        let sleeper = |word: &Path| {
            let invocation = Invocation::new("sh").args(["-c", "sleep 1000; :"]).arg(word);
            invocation.spawn(Streams::Null).expect("started")
        };
        let mut master = sleeper(&seat.socket());
        let mut stranger = sleeper(Path::new("stranger"));
        seat.note(stranger.pid());
        let Seat { dir, _lock: lock } = seat;
        drop(lock);
        assert!(sweep_one(dir.path()).await, "the folder goes in any case");
        assert!(tokio::time::timeout(Duration::from_millis(300), stranger.wait()).await.is_err());

        fs::create_dir(dir.path()).expect("made");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).expect("set");
        fs::write(dir.path().join("pid"), master.pid().to_string()).expect("written");
        fs::write(dir.path().join("lock"), "").expect("written");
        assert!(sweep_one(dir.path()).await);
        tokio::time::timeout(PS_LIMIT, master.wait()).await.expect("it was killed").expect("reaped");
    }
}
