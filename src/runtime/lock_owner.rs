//! Whose a running VM is: Tart holds an fcntl lock on the VM's `config.json` for as long as its guest runs, so the holder
//! of the lock is the VM's process. That finds the process again after a restart of the daemon, and nothing else does:
//! a name in a list of processes proves nothing, and an id that was written down may be another process's by now.
//!
//! The lock belongs to a process, and closing *any* descriptor of the file in it drops the lock: the holder must never
//! look here. We are never the holder.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};
use tokio::time::{sleep, timeout};

use super::{Fault, Reason, RunProcess};
use crate::clock::Deadline;

/// The first pause between two looks at a lock; it doubles.
const LOOK_FIRST: Duration = Duration::from_millis(10);
/// And is not longer than this: so late is the end of a guest noticed that is not our child's. Its connection tells sooner.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// While it is being killed a slot waits for its end, and that does not take long.
const LOOK_KILLED: Duration = Duration::from_millis(5);

/// The process that holds the lock of `config`; `None` when nobody does, or when there is no such VM.
///
/// # Errors
/// When the file cannot be opened for reading and writing, without which nothing can be said: never take that for `None`.
pub fn owner(config: &Path) -> io::Result<Option<Pid>> {
    let file = match OpenOptions::new().read(true).write(true).open(config) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    // The kinds are wider than their field on Linux, and as wide on a Mac.
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_GETLK(&mut lock))?;
    if lock.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(None);
    }
    // A holder in another PID namespace, or of a lock that belongs to no process.
    if lock.l_pid <= 0 {
        return Err(io::Error::other("its lock is held by a process that cannot be seen from here"));
    }
    Ok(Some(Pid::from_raw(lock.l_pid)))
}

/// A VM's process that an earlier daemon started: not our child, but the holder of the VM's lock.
#[derive(Debug)]
pub struct Adopted {
    config: PathBuf,
    pid: Pid,
    /// Asks nicely first, for this long.
    grace: Duration,
    /// What the end of the process means; its exit code is its parent's to know.
    meaning: fn(&Path) -> Fault,
    log: PathBuf,
}

impl Adopted {
    /// The process that runs the VM of `config` now. `log` is where it prints, and `meaning` reads its end from there.
    ///
    /// # Errors
    /// As [`owner`].
    pub fn find(
        config: PathBuf,
        log: PathBuf,
        grace: Duration,
        meaning: fn(&Path) -> Fault,
    ) -> io::Result<Option<Self>> {
        Ok(owner(&config)?.map(|pid| Self { config, pid, grace, meaning, log }))
    }

    /// Whether it holds the lock. Not to be able to look proves nothing, so it counts as held.
    fn holds(&self) -> bool {
        owner(&self.config).map_or(true, |owner| owner == Some(self.pid))
    }

    /// Looks at growing pauses, none longer than `longest`. Cancel-safe.
    async fn released(&self, longest: Duration) {
        let mut pause = LOOK_FIRST.min(longest);
        while self.holds() {
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// To its whole group when it leads one, as those do that we started; else to it alone. Only while it holds the lock:
    /// its id may be another process's afterwards.
    fn signal(&self, signal: Signal) -> Result<(), Errno> {
        if !self.holds() {
            return Ok(());
        }
        let sent = match getpgid(Some(self.pid)) {
            Ok(group) if group == self.pid => killpg(group, signal),
            Ok(_) | Err(_) => kill(self.pid, signal),
        };
        // Gone in between.
        sent.or_else(|errno| if errno == Errno::ESRCH { Ok(()) } else { Err(errno) })
    }
}

impl RunProcess for Adopted {
    fn ended(&mut self) -> BoxFuture<'_, Fault> {
        async move {
            self.released(LOOK_MAX).await;
            (self.meaning)(&self.log)
        }
        .boxed()
    }

    fn kill(&mut self, deadline: Deadline) -> BoxFuture<'_, Result<(), Fault>> {
        async move {
            let refused = |errno: Errno| Fault::new(Reason::VerbFailed, "kill tart run", errno.to_string());
            self.signal(Signal::SIGINT).map_err(refused)?;
            if timeout(self.grace.min(deadline.left()), self.released(LOOK_KILLED)).await.is_ok() {
                return Ok(());
            }
            self.signal(Signal::SIGKILL).map_err(refused)?;
            let late = || Fault::new(Reason::VerbTimeout, "kill tart run", "the process does not go");
            timeout(deadline.left().max(Duration::from_secs(1)), self.released(LOOK_KILLED))
                .await
                .map_err(|_| late())
        }
        .boxed()
    }

    fn pid(&self) -> Option<u32> {
        u32::try_from(self.pid.as_raw()).ok()
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "the lock must be held by a process that is no child of the daemon's code"
)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Holds the lock of the file that `LOCK_FILE` names until it is killed; not a test of its own.
    #[test]
    #[ignore = "the process that the tests below start"]
    fn hold() {
        let Some(path) = std::env::var_os("LOCK_FILE") else { return };
        let file = OpenOptions::new().read(true).write(true).open(path).expect("it opens");
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(file.as_fd(), FcntlArg::F_SETLK(&lock)).expect("locked");
        std::io::Write::write_all(&mut std::io::stderr(), b"locked\n").expect("said");
        std::thread::sleep(Duration::from_secs(600));
    }

    struct Holder(Child);

    impl Holder {
        fn of(config: &Path, shell: &str) -> Self {
            let test = std::env::current_exe().expect("this test");
            let mut child = Command::new("sh")
                .args(["-c", shell])
                .env("LOCK_FILE", config)
                .env("TEST", test)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("it starts");
            let said = BufReader::new(child.stderr.take().expect("piped")).lines();
            let locked = said.map_while(Result::ok).any(|line| line.contains("locked"));
            assert!(locked, "the holder did not lock");
            Self(child)
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(self.0.id().cast_signed())
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    const PLAIN: &str = r#"exec "$TEST" --exact runtime::lock_owner::tests::hold --ignored --nocapture"#;
    /// An ignored signal stays ignored over `exec`.
    const STUBBORN: &str =
        r#"trap '' INT; exec "$TEST" --exact runtime::lock_owner::tests::hold --ignored --nocapture"#;

    fn config() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("config.json");
        std::fs::write(&path, "{}").expect("written");
        (dir, path)
    }

    fn meaning(_: &Path) -> Fault {
        Fault::new(Reason::GuestStopped, "tart run", "it ended")
    }

    fn adopted(config: &Path, grace: Duration) -> Adopted {
        let found = Adopted::find(config.to_owned(), "log".into(), grace, meaning);
        found.expect("it can be seen").expect("somebody holds it")
    }

    #[test]
    fn the_owner_is_the_process_that_holds_the_lock_and_nobody_else() {
        let (_dir, config) = config();
        assert_eq!(owner(&config).expect("seen"), None, "nobody holds it");
        assert_eq!(owner(&config.with_file_name("none")).expect("seen"), None, "there is no such VM");
        let holder = Holder::of(&config, PLAIN);
        assert_eq!(owner(&config).expect("seen"), Some(holder.pid()));
        assert_eq!(owner(&config).expect("seen"), Some(holder.pid()), "looking does not drop it");
        drop(holder);
        assert_eq!(owner(&config).expect("seen"), None);
    }

    #[test]
    fn a_config_that_cannot_be_opened_for_writing_is_an_error_and_not_a_vm_that_is_stopped() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(owner(dir.path()).is_err());
    }

    #[tokio::test]
    async fn the_end_of_a_process_that_is_not_our_child_is_noticed() {
        let (_dir, config) = config();
        let holder = Holder::of(&config, PLAIN);
        let mut process = adopted(&config, Duration::ZERO);
        assert_eq!(process.pid(), Some(holder.0.id()));
        assert!(timeout(Duration::from_millis(100), process.ended()).await.is_err(), "it lives");
        drop(holder);
        assert_eq!(process.ended().await.reason, Reason::GuestStopped);
    }

    #[tokio::test]
    async fn it_is_killed_and_the_lock_is_free_afterwards_also_when_it_ignores_the_power_cut() {
        for (shell, grace) in [(PLAIN, Duration::from_secs(60)), (STUBBORN, Duration::from_millis(50))] {
            let (_dir, config) = config();
            let _holder = Holder::of(&config, shell);
            let mut process = adopted(&config, grace);
            process.kill(Deadline::after(Duration::from_secs(60))).await.expect("killed");
            assert_eq!(owner(&config).expect("seen"), None);
        }
    }

    /// Its id may be another process's: whoever lost the lock is not signalled.
    #[tokio::test]
    async fn a_process_that_does_not_hold_the_lock_is_left_alone() {
        let (_dir, config) = config();
        let (_other, another) = self::config();
        let mut holder = Holder::of(&another, PLAIN);
        let mut stale =
            Adopted { config, pid: holder.pid(), grace: Duration::ZERO, meaning, log: "log".into() };
        stale.kill(Deadline::after(Duration::from_secs(5))).await.expect("nothing to do");
        assert!(holder.0.try_wait().expect("ours").is_none(), "it lives");
    }
}
