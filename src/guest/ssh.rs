//! The channel over one SSH control connection: the connector, and how a command is opened over it.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use openssh::{Child, ChildStderr, ChildStdin, ChildStdout, Session, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::master::{self, Master, Miss};
use super::{
    Bounds, Channel, Connector, Ended, Line, Position, Script, Take, TakeError, Taken, Target, run, script,
    transfer,
};
use crate::clock::{Deadline, now};
use crate::ids::RunId;
use crate::runtime::{Fault, Reason};

/// Commands at once over one connection. sshd's `MaxSessions` is 10, a slot is free a little after its command's end, and
/// each of the two that stand by has one.
const CHANNELS_MAX: usize = 6;

/// How long a refused channel is asked for again, and at what interval.
const REFUSED_LIMIT: Duration = Duration::from_secs(5);
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// Waiting for a banner: the first dial's patience, and its limit as it grows by a quarter each time. A dial that is given
/// up costs a booting guest a process, so they are few.
const PATIENCE_MIN: Duration = Duration::from_millis(300);
const PATIENCE_MAX: Duration = Duration::from_secs(4);

/// Between two dials that were turned away at once; grows by a third each time.
const PAUSE_MIN: Duration = Duration::from_millis(40);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A refused key is believed when it was refused twice so far apart: sshd may be up before the user's keys are.
const DENIED_PAUSE: Duration = Duration::from_secs(2);

/// For the first command after the handshake.
const FIRST_COMMAND: Duration = Duration::from_secs(20);

/// A new standby is made when a step has had this long for itself: its fork is not to slow down the step's first output.
const STANDBY_DELAY: Duration = Duration::from_millis(300);

/// After a command's streams broke: how long its cause, the loss of the connection, may take to show.
pub(super) const LOSS_SHOWS: Duration = Duration::from_secs(1);

/// Opens channels over SSH.
#[derive(Debug, Clone, Copy, Default)]
pub struct SshConnector;

/// Ends what a killed daemon of this user left: its control connections and their folders. For the daemon's start.
/// Returns how many folders were removed.
pub async fn sweep_orphans() -> usize {
    master::sweep().await
}

/// A control socket's path, as long as it gets: systems bound it.
pub fn longest_socket_path() -> std::path::PathBuf {
    master::longest_socket_path()
}

impl Connector for SshConnector {
    fn connect<'a>(
        &'a self,
        target: &'a Target,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, Fault>> {
        async move { Ok(Arc::new(connect(target, deadline).await?) as Arc<dyn Channel>) }.boxed()
    }
}

async fn connect(target: &Target, deadline: Deadline) -> Result<SshChannel, Fault> {
    let (mut patience, mut pause) = (PATIENCE_MIN, PAUSE_MIN);
    let mut denied = false;
    let mut last = Fault::new(Reason::SshTimeout, "ssh connect", "no answer in time");
    while deadline.left() > Duration::ZERO {
        let again_after = match attempt(target, patience, deadline).await {
            Ok(channel) => return Ok(channel),
            Err(Miss::Hopeless(fault)) => return Err(fault),
            Err(Miss::Denied(text)) => {
                last = Fault::new(Reason::SshAuth, "ssh connect", text);
                if denied {
                    return Err(last);
                }
                denied = true;
                DENIED_PAUSE
            }
            Err(miss) => {
                denied = false;
                let (reason, text, quick) = match miss {
                    Miss::NoRoute(text) => (Reason::NoRoute, text, true),
                    Miss::Closed(text) => (Reason::SshTimeout, text, true),
                    Miss::Silent(text) | Miss::Denied(text) => (Reason::SshTimeout, text, false),
                    Miss::Hopeless(fault) => return Err(fault),
                };
                last = Fault::new(reason, "ssh connect", text);
                patience = (patience * 5 / 4).min(PATIENCE_MAX);
                if quick {
                    pause = (pause * 4 / 3).min(PAUSE_MAX);
                    pause
                } else {
                    Duration::ZERO
                }
            }
        };
        sleep(again_after.min(deadline.left())).await;
    }
    if last.reason == Reason::SshAuth {
        // Refused once only: that is not enough to blame the image.
        last.reason = Reason::SshTimeout;
    }
    Err(last)
}

/// One dial, and one command over it: the standby's greeting.
async fn attempt(target: &Target, patience: Duration, deadline: Deadline) -> Result<SshChannel, Miss> {
    let Master { session, lost, alive } = master::dial(target, patience, deadline).await?;
    let wire = Wire { session, permits: Arc::new(Semaphore::new(CHANNELS_MAX)), lost };
    let limit = Deadline::after(FIRST_COMMAND).min(deadline);
    let mut standby = wire.open(&script::wrapper_command()).await.map_err(|f| Miss::Closed(f.text))?;
    let Some(stderr) = standby.stderr.as_mut() else { return Err(Miss::Closed("no stderr".into())) };
    match timeout_at(limit.instant(), wire.or_lost(said(stderr, script::READY))).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return Err(Miss::Closed("the guest's /bin/sh does not run our wrapper".into())),
        Ok(Err(fault)) => return Err(Miss::Closed(fault.text)),
        Err(_) => return Err(Miss::Silent("a first command was not answered in time".into())),
    }
    // It is up by the time that a build has a source; nobody waits for it here.
    let receiver = wire.open(&transfer::receive_command()).await.map_err(|f| Miss::Closed(f.text))?;
    let (standby, receiver) = (Mutex::new(Some(standby)), Mutex::new(Some(receiver)));
    Ok(SshChannel { inner: Arc::new(Inner { wire, standby, receiver, _alive: alive }) })
}

/// Reads until `words` have come; `false` when the stream ends before.
async fn said(stream: &mut ChildStderr, words: &[u8]) -> bool {
    let mut seen = Vec::new();
    let mut piece = [0; 512];
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        seen.extend_from_slice(&piece[..n]);
        if seen.windows(words.len()).any(|w| w == words) {
            return true;
        }
        // Chatter of a profile, however much of it.
        seen.drain(..seen.len().saturating_sub(words.len()));
    }
    false
}

/// An open connection into one guest.
#[derive(Debug)]
pub struct SshChannel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    wire: Wire,
    /// A wrapper that is up and waits for its script, so that a step need not wait for a shell. Closed, it goes.
    standby: Mutex<Option<Exec>>,
    /// A shell that is up and waits for the source.
    receiver: Mutex<Option<Exec>>,
    _alive: tokio_util::sync::DropGuard,
}

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

fn failed(text: &str) -> Fault {
    Fault::new(Reason::ProbeFailed, "probe", text)
}

/// Whether a waiting wrapper answers.
async fn asked(standby: &mut Exec) -> bool {
    let (Some(stdin), Some(stderr)) = (standby.stdin.as_mut(), standby.stderr.as_mut()) else { return false };
    let (question, answer) = script::question(&uuid::Uuid::new_v4().simple().to_string());
    write(stdin, &question).await.is_ok() && said(stderr, &answer).await
}

impl Inner {
    fn standby(&self) -> std::sync::MutexGuard<'_, Option<Exec>> {
        self.standby.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a new standby a little later, if the channel still lives then.
    fn restock(self: &Arc<Self>) {
        let inner: Weak<Self> = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep(STANDBY_DELAY).await;
            let Some(inner) = inner.upgrade() else { return };
            if inner.standby().is_none()
                && let Ok(exec) = inner.wire.open(&script::wrapper_command()).await
            {
                inner.standby().get_or_insert(exec);
            }
        });
    }

    async fn run(
        self: &Arc<Self>,
        script: &Script,
        lines: mpsc::Sender<Line>,
        cancel: CancellationToken,
    ) -> Result<Ended, Fault> {
        let _turn = self.wire.take_turn().await;
        let payload = match script::Payload::new(script) {
            Ok(payload) => payload,
            Err(bad) => return Ok(run::refuse(&bad, &lines).await),
        };
        let times = run::Times { deadline: Deadline::after(script.timeout), grace: script.kill_grace };
        let standby = self.standby().take();
        self.restock();
        if let Some(exec) = standby {
            let attempt = run::Run::new(&self.wire, exec, &payload, times, &lines, &cancel);
            if let Some(ended) = attempt.finish().await? {
                return Ok(ended);
            }
            // The standby was dead before it had read the script.
        }
        let exec = self.wire.open(&script::wrapper_command()).await?;
        let attempt = run::Run::new(&self.wire, exec, &payload, times, &lines, &cancel);
        match attempt.finish().await? {
            Some(ended) => Ok(ended),
            None => {
                let fault = self.wire.blame("the guest ended our shell before the step began".into()).await;
                Err(fault)
            }
        }
    }

    /// Asks the standby; one that is dead, which its step may have done to it, is no word of the guest.
    async fn greet(&self, limit: Duration) -> Result<(), Fault> {
        let limit = Deadline::after(limit);
        let standby = self.standby().take();
        if let Some(mut exec) = standby {
            let answered = timeout_at(limit.instant(), self.wire.or_lost(asked(&mut exec))).await;
            match answered.map_err(|_| failed("the waiting shell did not answer in time"))?? {
                true => {
                    self.standby().get_or_insert(exec);
                    return Ok(());
                }
                false => drop(exec),
            }
        }
        self.probe(limit.left()).await
    }

    async fn probe(&self, limit: Duration) -> Result<(), Fault> {
        let begun = now();
        let answered = timeout(limit, async {
            let _turn = self.wire.take_turn().await;
            let nonce = uuid::Uuid::new_v4().simple().to_string();
            // `echo` is in every shell: one fork for the guest, no program.
            let mut exec = self.wire.open(&format!("echo {nonce}")).await?;
            let answer = transfer::read_all(&self.wire, &mut exec).await?;
            match exec.wait().await {
                Status::Code(0) if answer.out.contains(&nonce) => Ok(()),
                status @ (Status::Code(_) | Status::Killed) => {
                    Err(failed(&format!("a command came back with {status:?} and {:?}", answer.err)))
                }
            }
        });
        answered.await.unwrap_or_else(|_| Err(failed(&format!("no answer within {:?}", begun.elapsed()))))
    }
}

impl Channel for SshChannel {
    fn probe(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        self.inner.probe(limit).boxed()
    }

    fn greet(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        self.inner.greet(limit).boxed()
    }

    fn put_tree<'a>(
        &'a self,
        tar: &'a std::path::Path,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<u64, Fault>> {
        let waiting = self.inner.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        transfer::put_tree(&self.inner.wire, waiting, tar, deadline).boxed()
    }

    fn run<'a>(
        &'a self,
        _id: &'a RunId,
        script: &'a Script,
        lines: mpsc::Sender<Line>,
        cancel: CancellationToken,
    ) -> BoxFuture<'a, Result<Ended, Fault>> {
        self.inner.run(script, lines, cancel).boxed()
    }

    fn attach<'a>(
        &'a self,
        _id: &'a RunId,
        _from: Position,
        _bounds: Bounds,
        _lines: mpsc::Sender<Line>,
        _cancel: CancellationToken,
    ) -> BoxFuture<'a, Result<Option<Ended>, Fault>> {
        async { Err(Fault::new(Reason::ConnectionLost, "attach", "not there yet")) }.boxed()
    }

    fn abandon(&self, _why: Fault) {}

    fn take<'a>(&'a self, take: &'a Take) -> BoxFuture<'a, Result<Vec<Taken>, TakeError>> {
        transfer::take(&self.inner.wire, take).boxed()
    }

    fn lost(&self) -> BoxFuture<'static, Fault> {
        self.inner.wire.lost()
    }
}

/// Writes all of `bytes` and leaves the stream open.
pub(super) async fn write(stdin: &mut ChildStdin, bytes: &[u8]) -> std::io::Result<()> {
    stdin.write_all(bytes).await?;
    stdin.flush().await
}
