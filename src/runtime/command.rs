//! Children. Each has a session and a process group of its own, so that a signal to the daemon's group does not reach it,
//! is given a deadline, and is killed by group: a verb's helpers do not outlive the verb.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use process_wrap::tokio::{ChildWrapper, CommandWrap, ProcessSession};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::time::timeout;

/// What is read of a verb's stdout and of its stderr. `tart list` of a thousand VMs is 150 kB.
pub const OUTPUT_BYTES_MAX: u64 = 4 << 20;

/// After a child ended, how long its pipes may stay open: a helper that inherited them (softnet does) never closes them.
const PIPE_DRAIN: Duration = Duration::from_secs(1);

/// A command to be run.
#[derive(Debug, Clone)]
pub struct Invocation {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Added to our own environment.
    pub env: Vec<(OsString, OsString)>,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    /// Lossy UTF-8, at most [`OUTPUT_BYTES_MAX`].
    pub stdout: String,
    /// Lossy UTF-8, at most [`OUTPUT_BYTES_MAX`].
    pub stderr: String,
}

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such program.
    #[error("`{0}` is not installed or not on the PATH")]
    Missing(PathBuf),
    /// It could not be started or waited for.
    #[error("cannot run `{program}`")]
    Io {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It was killed at its deadline.
    #[error("`{program}` did not end within {limit:?} and was killed")]
    Timeout { program: PathBuf, limit: Duration },
}

/// How a child's three streams are set.
#[derive(Debug)]
pub enum Streams {
    /// Nothing in; both outputs as pipes.
    Piped,
    /// All three as pipes.
    PipedWithInput,
    /// Nothing in, and both outputs to a file: for a child that outlives us.
    File(File),
    /// Nothing in and nothing out.
    Null,
}

/// A child and its group. Dropped, the whole group is killed, unless it was [released](Group::release).
#[derive(Debug)]
pub struct Group {
    child: Box<dyn ChildWrapper>,
    pgid: Pid,
    armed: bool,
}

impl Invocation {
    /// `program` without arguments.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`CommandError::Missing`] when there is no such program, [`CommandError::Io`] when it cannot be started.
    pub fn spawn(&self, streams: Streams) -> Result<Group, CommandError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => CommandError::Missing(self.program.clone()),
            _ => CommandError::Io { program: self.program.clone(), source },
        };
        let [stdin, stdout, stderr] = streams.stdio().map_err(failed)?;
        let mut command = CommandWrap::with_new(&self.program, |c| {
            c.args(&self.args).envs(self.env.iter().cloned()).stdin(stdin).stdout(stdout).stderr(stderr);
        });
        command.wrap(ProcessSession);
        let child = command.spawn().map_err(failed)?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let pgid = id.map(Pid::from_raw).ok_or_else(|| failed(io::Error::other("it ended at once")))?;
        Ok(Group { child, pgid, armed: true })
    }

    /// Runs it to its end and returns what it printed. Cancel-safe: dropped, the group is killed.
    ///
    /// # Errors
    /// As [`Invocation::spawn`], and [`CommandError::Timeout`] after `limit`; the group is dead then.
    pub async fn output(&self, limit: Duration) -> Result<Output, CommandError> {
        let mut group = self.spawn(Streams::Piped)?;
        let (out, err) = (group.take_stdout(), group.take_stderr());
        let read = async { tokio::join!(read_bounded(out), read_bounded(err)) };
        tokio::pin!(read);
        let ended = timeout(limit, async {
            let mut pipes = None;
            let status = tokio::select! {
                biased;
                status = group.wait() => status,
                both = &mut read => { pipes = Some(both); group.wait().await }
            };
            let (stdout, stderr) = match pipes {
                Some(both) => both,
                None => timeout(PIPE_DRAIN, &mut read).await.unwrap_or_default(),
            };
            status.map(|status| Output { status, stdout, stderr })
        });
        match ended.await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(source)) => Err(CommandError::Io { program: self.program.clone(), source }),
            Err(_) => Err(CommandError::Timeout { program: self.program.clone(), limit }),
        }
    }
}

impl Streams {
    fn stdio(self) -> io::Result<[Stdio; 3]> {
        Ok(match self {
            Self::Piped => [Stdio::null(), Stdio::piped(), Stdio::piped()],
            Self::PipedWithInput => [Stdio::piped(), Stdio::piped(), Stdio::piped()],
            Self::File(file) => [Stdio::null(), file.try_clone()?.into(), file.into()],
            Self::Null => [Stdio::null(), Stdio::null(), Stdio::null()],
        })
    }
}

impl Group {
    /// The leader's process id, which is also the group's.
    pub fn pid(&self) -> u32 {
        self.pgid.as_raw().unsigned_abs()
    }

    /// The leader's input, once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin().take()
    }

    /// The leader's output, once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout().take()
    }

    /// The leader's errors, once.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr().take()
    }

    /// Waits for the leader. Cancel-safe.
    ///
    /// # Errors
    /// When the system cannot wait for it.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        // What is left of the group is a helper that lost its leader.
        self.signal(Signal::SIGKILL);
        self.armed = false;
        Ok(status)
    }

    /// Signals the whole group; a group that is gone is no error.
    pub fn signal(&self, signal: Signal) {
        if self.armed {
            killpg(self.pgid, signal).ok();
        }
    }

    /// Lets the group live on when this is dropped.
    pub fn release(&mut self) {
        self.armed = false;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

async fn read_bounded(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut bytes = Vec::new();
    (&mut pipe).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await.ok();
    // Beyond the limit it is read and dropped, or the child would stand still on a full pipe.
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await.ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Invocation {
        Invocation::new("sh").args(["-c", script])
    }

    #[tokio::test]
    async fn output_is_complete_and_the_code_is_passed_on() {
        let out = sh("echo out; echo err >&2; exit 7").output(Duration::from_secs(20)).await.expect("it ran");
        assert_eq!(
            (out.stdout.as_str(), out.stderr.as_str(), out.status.code()),
            ("out\n", "err\n", Some(7))
        );
    }

    #[tokio::test]
    async fn a_hung_verb_is_killed_with_its_whole_group() {
        let dir = tempfile::tempdir().expect("a folder");
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
        let ended = sh(&script).output(Duration::from_millis(500)).await;
        assert!(matches!(ended, Err(CommandError::Timeout { .. })), "{ended:?}");
        let helper: i32 = std::fs::read_to_string(&pid_file).expect("written").trim().parse().expect("a pid");
        for _ in 0..200 {
            if gone_or_zombie(helper) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the helper {helper} lives");
    }

    /// An orphan that nobody has reaped yet still answers signal 0, so ask for its state.
    fn gone_or_zombie(pid: i32) -> bool {
        let asked = std::process::Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output();
        asked.map_or(true, |out| out.stdout.is_empty() || out.stdout.starts_with(b"Z"))
    }

    #[tokio::test]
    async fn a_helper_that_keeps_the_pipe_open_does_not_hold_up_the_verb() {
        let out =
            sh("(trap '' HUP; sleep 600) & echo done").output(Duration::from_secs(20)).await.expect("it ran");
        assert!(out.status.success());
    }

    #[tokio::test]
    async fn a_missing_program_is_told_apart() {
        let ended = Invocation::new("/no/such/program").output(Duration::from_secs(1)).await;
        assert!(matches!(ended, Err(CommandError::Missing(_))), "{ended:?}");
    }
}
