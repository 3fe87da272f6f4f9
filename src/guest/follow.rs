//! A run, followed from its beginning or from any place in it to its end, over as many connections as it takes.
//!
//! ```text
//!   sent to a wrapper -- go, output, exit --------------------------------------> Exited
//!        |  cut: the connection, or the wrapper, is gone                             ^
//!        v                                                                           |
//!   attached (on the next connection, from the last line) -- output, exit ----------'|
//!        |     ^ cut again |        `-- never begun --> sent again, under the same name
//!        |     `-----------'
//!        `-- gone: what it left is no longer there --> fault
//!
//!   cancel, time-out, at any point: stop.sh over a connection, the rest of the output --> Cancelled, TimedOut
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::lines::{Cut, LineSplitter};
use super::link::{Link, REDIAL};
use super::script::{BadScript, Mark, MarkFilter, payload};
use super::wire::{self, Exec, Status, Wire};
use super::wrapper::{BYE, attach_command, stop_command};
use super::{Bounds, Ended, Line, Position, Script, Stream, transfer};
use crate::clock::Deadline;
use crate::ids::RunId;
use crate::runtime::{Fault, Reason};

/// Beyond the step's own grace: how long the guest may take to report the end of a group that is being killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// After a step was killed: how long its last output may take. A process that nobody may kill can hold it open.
const REST_LIMIT: Duration = Duration::from_secs(4);

/// The code of a step that was never begun: what shells use for a command that cannot be executed.
const NOT_BEGUN: i32 = 126;

/// How many wrappers in a row may be gone before they have begun their script.
const BEGINS_MAX: usize = 4;

/// How many followers in a row may be gone on a connection that holds.
const CUTS_MAX: usize = 4;

/// Read at once from each stream.
const PIECE_BYTES: usize = 64 * 1024;

/// Follows one run.
pub(super) struct Follower<'a> {
    link: &'a Link,
    id: &'a RunId,
    lines: mpsc::Sender<Line>,
    out: AtomicU64,
    err: AtomicU64,
    /// It is known to have begun.
    begun: AtomicBool,
}

/// How one reading of a run ended.
#[derive(Debug)]
enum Reading {
    Exited(i32),
    Never,
    Gone,
    /// In the middle.
    Cut,
}

impl<'a> Follower<'a> {
    /// Follows the run `id` from `from` on.
    pub(super) fn new(link: &'a Link, id: &'a RunId, from: Position, lines: mpsc::Sender<Line>) -> Self {
        let (out, err) = (AtomicU64::new(from.out), AtomicU64::new(from.err));
        Self { link, id, lines, out, err, begun: AtomicBool::new(false) }
    }

    /// Begins the run and follows it.
    pub(super) async fn run(self, script: &Script, cancel: CancellationToken) -> Result<Ended, Fault> {
        let bounds = Bounds { timeout: script.timeout, kill_grace: script.kill_grace };
        match payload(self.id, script) {
            Ok(payload) => self.bounded(self.begin(&payload), bounds, &cancel).await,
            Err(bad) => Ok(self.refuse(&bad).await),
        }
    }

    /// Follows a run that somebody began. `None` when nobody did, and nobody can any more.
    pub(super) async fn attach(
        self,
        bounds: Bounds,
        cancel: CancellationToken,
    ) -> Result<Option<Ended>, Fault> {
        let never = AtomicBool::new(false);
        let follow = async {
            let code = self.take_up(None).await?;
            never.store(code.is_none(), Ordering::Relaxed);
            Ok(code.unwrap_or_default())
        };
        let ended = self.bounded(follow, bounds, &cancel).await?;
        Ok((!never.load(Ordering::Relaxed)).then_some(ended))
    }

    fn position(&self) -> Position {
        Position { out: self.out.load(Ordering::Relaxed), err: self.err.load(Ordering::Relaxed) }
    }

    /// `follow` to its end, or ends the run: on a cancel, and when its time is over.
    async fn bounded(
        &self,
        follow: impl Future<Output = Result<i32, Fault>>,
        bounds: Bounds,
        cancel: &CancellationToken,
    ) -> Result<Ended, Fault> {
        let deadline = Deadline::after(bounds.timeout);
        let mut follow = Box::pin(self.link.or_over(follow));
        let stopped = tokio::select! {
            biased;
            code = &mut follow => return code.map(Ended::Exited),
            () = cancel.cancelled() => Ended::Cancelled,
            () = tokio::time::sleep_until(deadline.instant()) => Ended::TimedOut,
        };
        // What is not known to have begun must not be begun behind the back of what stops it.
        let mut follow = self.begun.load(Ordering::Relaxed).then_some(follow);
        let limit = bounds.kill_grace + KILL_LIMIT + REDIAL;
        let mut stop = pin!(timeout(limit, self.stop(bounds.kill_grace)));
        let stop = loop {
            let Some(reading) = &mut follow else { break stop.await };
            tokio::select! {
                biased;
                stop = &mut stop => break stop,
                _ = reading => follow = None,
            }
        };
        stop.map_err(|_| unconfirmed())??;
        if let Some(reading) = &mut follow {
            timeout(REST_LIMIT, reading).await.ok();
        }
        Ok(stopped)
    }

    /// Sends the script to one wrapper after the other until one has begun it, and follows it.
    async fn begin(&self, payload: &[u8]) -> Result<i32, Fault> {
        self.link.is_used();
        let mut lost: Option<Arc<Connection>> = None;
        for _ in 0..BEGINS_MAX {
            let connection = self.link.up(lost.as_ref()).await?;
            let _turn = connection.wire.take_turn().await;
            let wrapper = connection.wrapper(self.id).await;
            let read = match wrapper {
                Ok(wrapper) => self.read(&connection, wrapper, Some(payload)).await?,
                Err(_) if connection.wire.is_lost() => Reading::Cut,
                Err(fault) => return Err(fault),
            };
            match read {
                Reading::Exited(code) => return Ok(code),
                Reading::Never | Reading::Gone | Reading::Cut => {}
            }
            lost = connection.wire.is_lost().then_some(connection);
            if let Some(code) = self.take_up(lost.clone()).await? {
                return Ok(code);
            }
            if self.begun.load(Ordering::Relaxed) {
                return Err(self.gone());
            }
        }
        let text = "the guest ended our shell before the step began";
        Err(Fault::new(Reason::ConnectionLost, "run step", text))
    }

    /// Follows from where we are, on a connection other than `lost`. `None` when the run was never begun.
    async fn take_up(&self, mut lost: Option<Arc<Connection>>) -> Result<Option<i32>, Fault> {
        let mut cuts = 0;
        loop {
            let connection = self.link.up(lost.as_ref()).await?;
            let opened = connection.wire.open(&attach_command(self.id, self.position())).await;
            let read = match opened {
                Ok(exec) => self.read(&connection, exec, None).await?,
                Err(_) if connection.wire.is_lost() => Reading::Cut,
                Err(fault) => return Err(fault),
            };
            match read {
                Reading::Exited(code) => return Ok(Some(code)),
                Reading::Never => return Ok(None),
                Reading::Gone => return Err(self.gone()),
                Reading::Cut if connection.wire.is_lost() => (lost, cuts) = (Some(connection), 0),
                Reading::Cut if cuts < CUTS_MAX => cuts += 1,
                Reading::Cut => {
                    let text = "the guest ends whatever is to follow the step";
                    return Err(Fault::new(Reason::ConnectionLost, "follow step", text));
                }
            }
        }
    }

    fn gone(&self) -> Fault {
        let text = format!("what the run {} left in the guest is no longer there", self.id.as_str());
        Fault::new(Reason::ConnectionLost, "follow step", text)
    }

    /// Reads what a wrapper, or whoever follows it, says.
    async fn read(&self, on: &Connection, mut exec: Exec, payload: Option<&[u8]>) -> Result<Reading, Fault> {
        let wire = &on.wire;
        let mut stdin = exec.stdin.take();
        let (stdout, stderr) = (exec.stdout.take(), exec.stderr.take());
        let send = async {
            if let (Some(stdin), Some(payload)) = (&mut stdin, payload) {
                // A wrapper that is gone shows in its outputs.
                wire::write(stdin, payload).await.ok();
            }
        };
        let outputs = async {
            tokio::join!(
                self.relay(stdout, Stream::Out, &self.out),
                self.relay(stderr, Stream::Err, &self.err),
                send
            )
        };
        let Ok((out, err, ())) = wire.or_lost(outputs).await else { return Ok(Reading::Cut) };
        let (Some(out), Some(err)) = (out, err) else { return Ok(Reading::Cut) };
        match out.mark {
            Mark::Never => Ok(Reading::Never),
            Mark::Gone => Ok(Reading::Gone),
            Mark::Go => Ok(Reading::Cut),
            Mark::Exit(code) => {
                if let Some(mut stdin) = stdin {
                    wire::write(&mut stdin, BYE).await.ok();
                }
                self.confirm(wire, exec, (out.rest, err.rest)).await?;
                on.note_over(self.id);
                Ok(Reading::Exited(code))
            }
        }
    }

    /// Waits for the end of whoever said that the step is over: the rest of its group ends before it.
    async fn confirm(
        &self,
        wire: &Wire,
        exec: Exec,
        (mut out, mut err): (impl AsyncRead + Unpin, impl AsyncRead + Unpin),
    ) -> Result<(), Fault> {
        let ended = timeout(KILL_LIMIT, async {
            let (mut nowhere, mut neither) = (tokio::io::sink(), tokio::io::sink());
            let rest = tokio::join!(
                tokio::io::copy(&mut out, &mut nowhere),
                tokio::io::copy(&mut err, &mut neither)
            );
            drop(rest);
            exec.wait().await
        });
        match wire.or_lost(ended).await {
            // Lost: the wrapper sees that too, and ends what is left.
            Ok(Ok(Status::Code(_) | Status::Killed)) | Err(_) => Ok(()),
            Ok(Err(_)) => Err(unconfirmed()),
        }
    }

    /// Passes one output on, line by line, up to the mark that ends it. `None` when the output ends without one.
    async fn relay<R: AsyncRead + Unpin>(
        &self,
        stream: Option<R>,
        kind: Stream,
        position: &AtomicU64,
    ) -> Option<Last<R>> {
        let mut stream = stream?;
        let mut filter = MarkFilter::new(self.id);
        let mut splitter = LineSplitter::behind(position.load(Ordering::Relaxed));
        let mut piece = vec![0; PIECE_BYTES];
        // When nobody listens any more it is still read, or the step would stand still on a full pipe.
        let pass = async |cuts: Vec<Cut>| {
            for Cut { text, end, split } in cuts {
                self.lines.send(Line { stream: kind, text, end, split }).await.ok();
                position.store(end, Ordering::Relaxed);
            }
        };
        while let Ok(n @ 1..) = stream.read(&mut piece).await {
            let (bytes, marks) = filter.push(&piece[..n]);
            pass(splitter.push(&bytes)).await;
            for mark in marks {
                match mark {
                    Mark::Go => self.begun.store(true, Ordering::Relaxed),
                    Mark::Exit(_) => {
                        // Nothing follows: what has no end is a line too.
                        pass(splitter.finish().into_iter().collect()).await;
                        return Some(Last { mark, rest: stream });
                    }
                    Mark::Never | Mark::Gone => return Some(Last { mark, rest: stream }),
                }
            }
        }
        None
    }

    /// Ends the run, or sees to it that it never begins.
    async fn stop(&self, grace: Duration) -> Result<(), Fault> {
        let command = stop_command(self.id, grace);
        self.link.whole(|on, _| stop_over(on, command.clone()).boxed()).await
    }

    /// Answers for a script that is not even sent.
    async fn refuse(&self, bad: &BadScript) -> Ended {
        let text = format!("preheat: {bad}");
        self.lines.send(Line { stream: Stream::Err, text, end: 0, split: false }).await.ok();
        Ended::Exited(NOT_BEGUN)
    }
}

async fn stop_over(on: Arc<Connection>, command: String) -> Result<(), Fault> {
    let _turn = on.wire.take_turn().await;
    let mut exec = on.wire.open(&command).await?;
    exec.stdin = None;
    transfer::read_all(&on.wire, &mut exec).await?;
    match exec.wait().await {
        Status::Code(0) => Ok(()),
        Status::Code(_) => Err(unconfirmed()),
        Status::Killed => Err(on.wire.blame("the guest ended what was to kill the step".into()).await),
    }
}

/// The mark that ended an output, and the output.
struct Last<R> {
    mark: Mark,
    rest: R,
}

fn unconfirmed() -> Fault {
    Fault::new(Reason::ConnectionLost, "kill step", "the guest did not report the step's end in time")
}
