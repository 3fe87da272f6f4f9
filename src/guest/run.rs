//! One run of a script over a wrapper that is up.
//!
//! ```text
//!   sent -- go --> running -- exit & end --> draining -- all output, or DRAIN --> switch closed --> Exited
//!     |               |-- cancel, time-out --> switch closed --> grace, KILL --> Cancelled, TimedOut
//!     |               `-- output ends without an exit: the wrapper was killed --> Exited(137), or the connection is lost
//!     `-- output ends before go: this wrapper was dead already; another one may take the script
//! ```
//!
//! sshd reports the end of stdout when nobody in the guest holds either stream any more; ssh reports the end of stderr
//! with the end of the whole command. So stdout's end is what a drain waits for.

use std::pin::pin;
use std::time::Duration;

use openssh::ChildStdin;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::lines::LineSplitter;
use super::script::{BadScript, Mark, MarkFilter, Payload};
use super::ssh::{self, Exec, Status, Wire};
use super::{Ended, Line, Stream};
use crate::clock::Deadline;
use crate::runtime::{Fault, Reason};

/// After a step's shell ended: how long processes that it left behind may go on printing before they are killed. Long
/// enough for a `tee` to write its last, short enough not to be waited for by people.
const DRAIN: Duration = Duration::from_secs(2);

/// Beyond the step's own grace: how long the guest may take to report the end of a group that is being killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The code of a step whose wrapper was killed with it: 128 + KILL.
const KILLED: i32 = 137;

/// The code of a step that was never begun: what shells use for a command that cannot be executed.
const NOT_BEGUN: i32 = 126;

/// Read at once from each stream.
const PIECE_BYTES: usize = 64 * 1024;

/// The times of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub deadline: Deadline,
    pub grace: Duration,
}

/// A run in progress. Dropped, it closes the switch, and the guest kills the step.
pub(super) struct Run<'a> {
    wire: &'a Wire,
    exec: Exec,
    payload: &'a Payload,
    times: Times,
    lines: &'a mpsc::Sender<Line>,
    cancel: &'a CancellationToken,
}

/// What ended the part in which the step runs.
enum Turn {
    /// The step's shell ended.
    Ended { code: i32, alone: bool },
    /// Both outputs are closed, and nobody said why.
    Silence,
    /// It is to end.
    Stop(Ended),
}

/// What is known from the marks.
#[derive(Debug, Default)]
struct Seen {
    go: bool,
    end: bool,
    exit: Option<(i32, bool)>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        wire: &'a Wire,
        exec: Exec,
        payload: &'a Payload,
        times: Times,
        lines: &'a mpsc::Sender<Line>,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self { wire, exec, payload, times, lines, cancel }
    }

    /// Runs it. `None` when the wrapper was gone before it had begun the script.
    pub(super) async fn finish(self) -> Result<Option<Ended>, Fault> {
        let Self { wire, mut exec, payload, times, lines, cancel } = self;
        let mut switch = exec.stdin.take();
        let (tell, mut marks) = mpsc::unbounded_channel();
        let closed = CancellationToken::new();
        let out =
            relay(exec.stdout.take(), Stream::Out, MarkFilter::new(&payload.nonce), lines, tell.clone());
        let err = relay(exec.stderr.take(), Stream::Err, MarkFilter::new(&payload.nonce), lines, tell);
        let out = async {
            out.await;
            closed.cancel();
        };
        let mut outputs = pin!(async { tokio::join!(out, err) });
        let mut seen = Seen::default();

        let turn = {
            let sent = send(&mut switch, payload);
            let mut running = pin!(async {
                // A wrapper that is gone shows in its outputs.
                sent.await.ok();
                follow(&mut marks, &mut seen).await
            });
            let mut outputs_open = true;
            loop {
                tokio::select! {
                    biased;
                    turn = &mut running => break turn,
                    _ = &mut outputs, if outputs_open => outputs_open = false,
                    () = cancel.cancelled() => break Turn::Stop(Ended::Cancelled),
                    () = tokio::time::sleep_until(times.deadline.instant()) => break Turn::Stop(Ended::TimedOut),
                    fault = wire.lost(), if outputs_open => return Err(fault),
                }
            }
        };
        let mut outputs = Outputs { all: outputs, done: matches!(turn, Turn::Silence) };
        match turn {
            Turn::Ended { code, alone } => {
                outputs.wait_or(if alone { Duration::ZERO } else { DRAIN }, closed.cancelled()).await;
                drop(switch);
                if closed.is_cancelled() {
                    outputs.wait(KILL_LIMIT).await;
                }
                confirm(wire, exec, KILL_LIMIT).await?;
                Ok(Some(Ended::Exited(code)))
            }
            Turn::Stop(ended) => {
                drop(switch);
                let limit = Deadline::after(times.grace + KILL_LIMIT);
                outputs.wait(limit.left()).await;
                confirm(wire, exec, limit.left().max(Duration::from_secs(1))).await?;
                Ok(Some(ended))
            }
            Turn::Silence => {
                let status = timeout(KILL_LIMIT, exec.wait()).await;
                match (seen.go, status) {
                    (false, _) => Ok(None),
                    (true, Ok(Status::Code(code))) => Ok(Some(Ended::Exited(code))),
                    (true, Ok(Status::Killed)) => killed(wire).await.map(Some),
                    (true, Err(_)) => Err(unconfirmed()),
                }
            }
        }
    }
}

/// Both outputs, of which the end is reached once.
struct Outputs<F> {
    all: F,
    done: bool,
}

impl<F: Future + Unpin> Outputs<F> {
    async fn wait(&mut self, limit: Duration) {
        self.wait_or(limit, std::future::pending()).await;
    }

    /// Goes on reading until both have ended, `early` says that it is enough, or the limit.
    async fn wait_or(&mut self, limit: Duration, early: impl Future<Output = ()>) {
        if !self.done {
            let ended = timeout(limit, async {
                tokio::select! {
                    biased;
                    _ = &mut self.all => true,
                    () = early => false,
                }
            });
            self.done = ended.await.unwrap_or(false);
        }
    }
}

async fn send(switch: &mut Option<ChildStdin>, payload: &Payload) -> std::io::Result<()> {
    match switch {
        Some(stdin) => ssh::write(stdin, &payload.bytes).await,
        None => Ok(()),
    }
}

/// Follows the marks to the end of the step's shell, or to the end of both outputs.
async fn follow(marks: &mut mpsc::UnboundedReceiver<Mark>, seen: &mut Seen) -> Turn {
    while let Some(mark) = marks.recv().await {
        match mark {
            Mark::Go => seen.go = true,
            Mark::End => seen.end = true,
            Mark::Exit { code, alone } => seen.exit = Some((code, alone)),
        }
        // Both: then all that the shell itself printed has been sent.
        if let (true, Some((code, alone))) = (seen.end, seen.exit) {
            return Turn::Ended { code, alone };
        }
    }
    match seen.exit {
        Some((code, alone)) => Turn::Ended { code, alone },
        None => Turn::Silence,
    }
}

/// Waits for the wrapper's end, which comes after its group's.
async fn confirm(wire: &Wire, exec: Exec, limit: Duration) -> Result<(), Fault> {
    tokio::select! {
        biased;
        ended = timeout(limit, exec.wait()) => ended.map(drop).map_err(|_| unconfirmed()),
        fault = wire.lost() => Err(fault),
    }
}

fn unconfirmed() -> Fault {
    Fault::new(Reason::ConnectionLost, "kill step", "the guest did not report the step's end in time")
}

/// The wrapper was killed: by its own step, or because the connection is gone.
async fn killed(wire: &Wire) -> Result<Ended, Fault> {
    match timeout(ssh::LOSS_SHOWS, wire.lost()).await {
        Ok(fault) => Err(fault),
        Err(_) => Ok(Ended::Exited(KILLED)),
    }
}

/// Passes one output on, line by line, and its marks, each after the lines before it.
async fn relay(
    stream: Option<impl AsyncRead + Unpin>,
    kind: Stream,
    mut filter: MarkFilter,
    lines: &mpsc::Sender<Line>,
    tell: mpsc::UnboundedSender<Mark>,
) {
    let Some(mut stream) = stream else { return };
    let mut splitter = LineSplitter::default();
    let mut piece = vec![0; PIECE_BYTES];
    // When nobody listens any more it is still read, or the step would stand still on a full pipe.
    let pass = async |texts: Vec<String>| {
        for text in texts {
            lines.send(Line { stream: kind, text, end: 0 }).await.ok();
        }
    };
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        let (bytes, marks) = filter.push(&piece[..n]);
        pass(splitter.push(&bytes)).await;
        for mark in marks {
            if !matches!(mark, Mark::Go) {
                // The shell is gone, and with it the rest of a line that it began.
                pass(splitter.finish().into_iter().collect()).await;
            }
            tell.send(mark).ok();
        }
    }
    pass(splitter.push(&filter.finish())).await;
    pass(splitter.finish().into_iter().collect()).await;
}

/// Answers for a script that is not even sent.
pub(super) async fn refuse(bad: &BadScript, lines: &mpsc::Sender<Line>) -> Ended {
    lines.send(Line { stream: Stream::Err, text: format!("preheat: {bad}"), end: 0 }).await.ok();
    Ended::Exited(NOT_BEGUN)
}
