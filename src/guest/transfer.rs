//! A tree into the guest: one tar stream into a tar that waits for it.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::Bytes;
use futures::FutureExt;
use openssh::ChildStdout;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::connection::{Connection, Receiver};
use super::link::Link;
use super::pace::{self, Freight, Pace, Way};
use super::wire::{Exec, Status, Wire};
use super::wrapper::{GO, RECEIVES, RECEIVES_ZSTD, receive_again_command, receive_command};
use crate::clock::{Deadline, now};
use crate::runtime::{Fault, Reason};

/// What is kept of the output of a command of ours.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Pieces between the wire and the disk: with [`PIECE_BYTES`] this bounds our memory.
pub(super) const PIECES_WAITING: usize = 8;

/// Read from a stream at once.
pub(super) const PIECE_BYTES: usize = 256 * 1024;

/// What the host's processor makes of a tree while the guest's is busy with the one before it.
const ZSTD_LEVEL: i32 = 3;

/// Pieces of a tree that are compressed to see whether it is worth it.
const SAMPLES: u64 = 16;
const SAMPLE_BYTES: usize = 64 * 1024;

/// It is, if so much is left of them at most.
const SHRUNK_TENTHS_MAX: usize = 7;

/// Both outputs of a command, lossy UTF-8, the first [`ANSWER_BYTES_MAX`] bytes of each.
#[derive(Debug)]
pub(super) struct Answer {
    pub out: String,
    pub err: String,
}

/// Reads both outputs to their ends, which must happen before the command is waited for.
pub(super) async fn read_all(wire: &Wire, exec: &mut Exec) -> Result<Answer, Fault> {
    let (out, err) = (exec.stdout.take(), exec.stderr.take());
    let (out, err) = wire.or_lost(async { tokio::join!(read_text(out), read_text(err)) }).await?;
    Ok(Answer { out, err })
}

/// Reads a stream to its end and keeps its beginning as text.
pub(super) async fn read_text(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut kept, mut piece) = (Vec::new(), vec![0; 32 * 1024]);
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        let room = ANSWER_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&piece[..n.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Streams a tar file into the guest's work folder. What is cut off by the loss of its connection is sent again, over
/// what had come.
pub(super) async fn put_tree(link: &Link, tar: &Path, deadline: Deadline) -> Result<u64, Fault> {
    let late = |_| Err(source_fault("the source was not in the guest in time".into()));
    link.is_used();
    let path = tar.to_owned();
    // What cannot be read is told where it is sent.
    let shrinks = tokio::task::spawn_blocking(move || shrinks(&path).unwrap_or(false)).await.unwrap_or(false);
    let pace = shrinks.then_some(&*link.pace);
    let sent = link.whole(|on, before| async move { put_all(&on, tar, before > 0, pace).await }.boxed());
    timeout_at(deadline.instant(), sent).await.unwrap_or_else(late)
}

/// Sends it as it is, unless `pace` says that it gets there sooner compressed.
async fn put_all(
    connection: &Connection,
    tar: &Path,
    again: bool,
    pace: Option<&Pace>,
) -> Result<u64, Fault> {
    let wire = &connection.wire;
    let _turn = wire.take_turn().await;
    let way = pace.map_or(Way::Usual, |pace| pace.choose(Freight::TreeIn));
    let begun = now();
    // One that stands by takes the tree; should it be dead, another one does.
    // Its tar may run already, and then it takes a plain one.
    let waiting = if again { None } else { connection.take_receiver() };
    let waiting = waiting.filter(|receiver| way == Way::Usual || !receiver.going);
    let mut sent = match waiting {
        Some(receiver) => send_tree(wire, receiver, tar, way).await?,
        None => None,
    };
    if sent.is_none() {
        let exec = wire.open(&if again { receive_again_command() } else { receive_command() }).await?;
        sent = send_tree(wire, Receiver { exec, going: false }, tar, way).await?;
    }
    let Some((bytes, way)) = sent else {
        return Err(wire.blame("the connection ended while source was sent".into()).await);
    };
    if let Some(pace) = pace.filter(|_| !again) {
        pace.note(Freight::TreeIn, way, bytes, begun.elapsed());
    }
    Ok(bytes)
}

/// Sends the tree to a receiver; the tree's bytes, and how they went. `None` when the receiver was killed.
async fn send_tree(
    wire: &Wire,
    receiver: Receiver,
    tar: &Path,
    mut way: Way,
) -> Result<Option<(u64, Way)>, Fault> {
    let Receiver { mut exec, going } = receiver;
    if way == Way::Other && !wire.or_lost(takes_zstd(exec.stdout.as_mut())).await? {
        way = Way::Usual;
    }
    let stdin = exec.stdin.take();
    let (pieces, mut from) = mpsc::channel::<Bytes>(PIECES_WAITING);
    let path = tar.to_owned();
    let reading = tokio::task::spawn_blocking(move || match way {
        Way::Usual => read_tree(&path, Outgoing(pieces)),
        Way::Other => {
            let mut packed = zstd::Encoder::new(Outgoing(pieces), ZSTD_LEVEL)?;
            let bytes = read_tree(&path, &mut packed)?;
            packed.finish()?.flush()?;
            Ok(bytes)
        }
    });
    let send = async move {
        let Some(mut stdin) = stdin else { return };
        // One that does not take it says why on its stderr.
        if !going {
            stdin.write_all(if way == Way::Usual { GO } else { b"zstd\n" }).await.ok();
        }
        while let Some(piece) = from.recv().await {
            if stdin.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    let (out, err) = (exec.stdout.take(), exec.stderr.take());
    let ((), _, complaints) =
        wire.or_lost(async { tokio::join!(send, read_text(out), read_text(err)) }).await?;
    let read = reading.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    let status = exec.wait().await;
    let bytes = match read {
        Ok(bytes) => bytes,
        // The receiver wanted no more of it.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(e) => return Err(source_fault(format!("{}: {e}", tar.display()))),
    };
    match status {
        Status::Code(0) => Ok(Some((bytes, way))),
        Status::Code(code) => Err(complaint(&complaints, code)),
        Status::Killed => Ok(None),
    }
}

/// What a receiver says first. A profile's chatter may stand before it.
async fn takes_zstd(stdout: Option<&mut ChildStdout>) -> bool {
    let Some(stdout) = stdout else { return false };
    let mut said = Vec::new();
    while said.iter().filter(|b| **b == RECEIVES).count() < 2 && said.len() < ANSWER_BYTES_MAX {
        if !matches!(stdout.read_buf(&mut said).await, Ok(1..)) {
            return false;
        }
    }
    said.windows(RECEIVES_ZSTD.len()).any(|words| words == RECEIVES_ZSTD)
}

fn read_tree(tar: &Path, mut into: impl Write) -> io::Result<u64> {
    let mut file = std::fs::File::open(tar)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut piece)?;
        if n == 0 {
            return Ok(bytes);
        }
        bytes += n as u64;
        into.write_all(&piece[..n])?;
    }
}

/// Whether a tree gets much smaller when it is compressed, as far as pieces from all over it tell.
fn shrinks(tar: &Path) -> io::Result<bool> {
    let mut file = std::fs::File::open(tar)?;
    let bytes = file.metadata()?.len();
    if bytes < pace::BYTES_MIN {
        return Ok(false);
    }
    let (mut before, mut after) = (0, 0);
    let mut piece = vec![0; SAMPLE_BYTES];
    for n in 0..SAMPLES {
        file.seek(SeekFrom::Start(bytes / SAMPLES * n))?;
        let len = file.read(&mut piece)?;
        before += len;
        after += zstd::bulk::compress(&piece[..len], 1)?.len();
    }
    Ok(after * 10 < before * SHRUNK_TENTHS_MAX)
}

/// Pieces on their way from code that blocks to the wire.
struct Outgoing(mpsc::Sender<Bytes>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        self.0.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn source_fault(text: String) -> Fault {
    Fault::new(Reason::TransferFailed, "put source", text)
}

fn complaint(stderr: &str, code: i32) -> Fault {
    if stderr.contains("No space left on device") || stderr.contains("Disk quota exceeded") {
        let text = "the guest's disk is full: give the pool a larger `disk`, or send less";
        return Fault::new(Reason::GuestDiskFull, "put source", text);
    }
    let first: Vec<&str> = stderr.lines().take(3).collect();
    source_fault(format!("tar in the guest ended with {code}: {}", first.join("; ")))
}
