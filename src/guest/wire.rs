//! One SSH control connection, and how a command is opened over it.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use openssh::{Child, ChildStderr, ChildStdin, ChildStdout, Session, Stdio};
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::clock::Deadline;
use crate::runtime::{Fault, Reason};

/// Commands at once over one connection. sshd's `MaxSessions` is 10, a slot is free a little after its command's end, and
/// each of the three that stand by has one.
const CHANNELS_MAX: usize = 5;

/// How long a refused channel is asked for again, and at what interval.
const REFUSED_LIMIT: Duration = Duration::from_secs(5);
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// After a command's streams broke: how long its cause, the loss of the connection, may take to show.
pub(super) const LOSS_SHOWS: Duration = Duration::from_secs(1);

/// What opens commands.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    session: Arc<Session>,
    permits: Arc<Semaphore>,
    lost: watch::Receiver<Option<Fault>>,
}

/// An open command. Its streams are read to their end before it is waited for: the library drops what is unread then.
#[derive(Debug)]
pub(super) struct Exec {
    child: Child<Arc<Session>>,
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
}

/// How a command ended, as sshd says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Code(i32),
    /// By a signal, or with its connection.
    Killed,
}

impl Wire {
    /// Over `session`, whose end `lost` tells.
    pub(super) fn new(session: Arc<Session>, lost: watch::Receiver<Option<Fault>>) -> Self {
        Self { session, permits: Arc::new(Semaphore::new(CHANNELS_MAX)), lost }
    }

    /// Whether the connection is known to be gone.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.borrow().is_some() || self.lost.has_changed().is_err()
    }

    /// The library's own view of the connection.
    pub(super) fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session)
    }

    /// Opens `command` with three pipes.
    pub(super) async fn open(&self, command: &str) -> Result<Exec, Fault> {
        let limit = Deadline::after(REFUSED_LIMIT);
        loop {
            let mut remote = Arc::clone(&self.session).arc_raw_command(command);
            remote.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let error = match self.or_lost(remote.spawn()).await? {
                Ok(mut child) => {
                    let (stdin, stdout, stderr) =
                        (child.stdin().take(), child.stdout().take(), child.stderr().take());
                    return Ok(Exec { child, stdin, stdout, stderr });
                }
                Err(error) => text_of(&error),
            };
            if !error.contains("open refused") || limit.left() == Duration::ZERO {
                return Err(self.blame(error).await);
            }
            sleep(REFUSED_PAUSE).await;
        }
    }

    /// Waits for a place among the commands that may be open at once. A standby waits apart from them.
    pub(super) async fn take_turn(&self) -> OwnedSemaphorePermit {
        match Arc::clone(&self.permits).acquire_owned().await {
            Ok(permit) => permit,
            // It is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// The answer, or the loss of the connection, which some answers never survive.
    pub(super) async fn or_lost<T>(&self, answer: impl Future<Output = T>) -> Result<T, Fault> {
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            fault = self.lost() => Err(fault),
        }
    }

    pub(super) fn lost(&self) -> BoxFuture<'static, Fault> {
        let mut lost = self.lost.clone();
        async move {
            match lost.wait_for(Option::is_some).await.map(|fault| fault.clone()) {
                Ok(Some(fault)) => fault,
                Ok(None) | Err(_) => Fault::new(Reason::ConnectionLost, "ssh", "the connection was closed"),
            }
        }
        .boxed()
    }

    /// The fault behind `text`: a lost connection shows in many ways before it shows as itself.
    pub(super) async fn blame(&self, text: String) -> Fault {
        match timeout(LOSS_SHOWS, self.lost()).await {
            Ok(fault) => fault,
            Err(_) => Fault::new(Reason::ConnectionLost, "ssh", text),
        }
    }
}

impl Exec {
    /// Waits for the end. Only after both outputs were read to theirs.
    pub(super) async fn wait(self) -> Status {
        let Self { child, stdin, .. } = self;
        let ended = child.wait().await;
        drop(stdin);
        match ended {
            // No signal comes this way.
            Ok(status) => status.code().map_or(Status::Killed, Status::Code),
            // The library takes 127 for a fault of its own.
            Err(openssh::Error::Remote(_)) => Status::Code(127),
            Err(_) => Status::Killed,
        }
    }
}

/// An error with all its causes: the library hides what happened in them.
pub(super) fn text_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        let more = c.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = c.source();
    }
    text
}

/// Writes all of `bytes` and leaves the stream open.
pub(super) async fn write(stdin: &mut ChildStdin, bytes: &[u8]) -> std::io::Result<()> {
    stdin.write_all(bytes).await?;
    stdin.flush().await
}
