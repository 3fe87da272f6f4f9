//! Trees and files in and out.

use std::io::{self, BufReader, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use openssh_sftp_client::{Sftp, SftpOptions};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{timeout, timeout_at};

use super::connection::{Connection, Receiver};
use super::globs::{Globs, Verdict};
use super::link::Link;
use super::pick::pick;
use super::receive::{Pieces, Sink, receive_tar};
use super::script::quote;
use super::wire::{Exec, Status, Wire, text_of};
use super::wrapper::{GO, receive_again_command, receive_command};
use super::{Take, TakeError, Taken, WORK_DIR};
use crate::clock::Deadline;
use crate::runtime::{Fault, Reason};

/// What is kept of the output of a command of ours.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// The longest list of files: some hundred thousand names.
const LISTING_BYTES_MAX: usize = 64 << 20;

/// From here on a file is read by itself over SFTP, many requests at once; smaller ones share a tar stream. A multiple of
/// 512, which is `find`'s unit.
const LARGE_BYTES: u64 = 8 << 20;

/// One SFTP read: what OpenSSH's server gives at most.
const READ_BYTES: u64 = 255 << 10;

/// SFTP reads under way at once.
const READS_MAX: usize = 16;

/// Pieces between the wire and the disk: with [`PIECE_BYTES`] this bounds our memory.
const PIECES_WAITING: usize = 8;

/// Read from a stream at once.
const PIECE_BYTES: usize = 256 * 1024;

/// SFTP's own close waits for ever when a handle is still alive.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(2);

const TAKE: &str = "take artifacts";

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
    String::from_utf8_lossy(&read_bytes(stream, ANSWER_BYTES_MAX).await).into_owned()
}

/// Reads a stream to its end and keeps its first `max` bytes.
async fn read_bytes(stream: Option<impl AsyncRead + Unpin>, max: usize) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let (mut kept, mut piece) = (Vec::new(), vec![0; 32 * 1024]);
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        let room = max.saturating_sub(kept.len());
        kept.extend_from_slice(&piece[..n.min(room)]);
    }
    kept
}

/// Streams a tar file into the guest's work folder. What is cut off by the loss of its connection is sent again, over
/// what had come.
pub(super) async fn put_tree(link: &Link, tar: &Path, deadline: Deadline) -> Result<u64, Fault> {
    let late = |_| Err(source_fault("the source was not in the guest in time".into()));
    link.is_used();
    let sent = link.whole(|on, before| async move { put_all(&on, tar, before > 0).await }.boxed());
    timeout_at(deadline.instant(), sent).await.unwrap_or_else(late)
}

async fn put_all(connection: &Connection, tar: &Path, again: bool) -> Result<u64, Fault> {
    let wire = &connection.wire;
    let _turn = wire.take_turn().await;
    // One that stands by takes the tree; should it be dead, another one does.
    let waiting = if again { None } else { connection.take_receiver() };
    if let Some(receiver) = waiting
        && let Some(bytes) = send_tree(wire, receiver, tar).await?
    {
        return Ok(bytes);
    }
    let exec = wire.open(&if again { receive_again_command() } else { receive_command() }).await?;
    match send_tree(wire, Receiver { exec, going: false }, tar).await? {
        Some(bytes) => Ok(bytes),
        None => Err(wire.blame("the connection ended while source was sent".into()).await),
    }
}

/// Sends the tree to a receiver. `None` when that was killed.
async fn send_tree(wire: &Wire, receiver: Receiver, tar: &Path) -> Result<Option<u64>, Fault> {
    let Receiver { mut exec, going } = receiver;
    let unreadable = |e: io::Error| source_fault(format!("{}: {e}", tar.display()));
    let mut file = File::open(tar).await.map_err(unreadable)?;
    let stdin = exec.stdin.take();
    let send = async {
        let Some(mut stdin) = stdin else { return Ok(0) };
        // One that does not take it says why on its stderr.
        if !going {
            stdin.write_all(GO).await.ok();
        }
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let mut bytes = 0;
        while file.read_buf(&mut piece).await? > 0 {
            bytes += piece.len() as u64;
            if stdin.write_all(&piece).await.is_err() {
                break;
            }
            piece.clear();
        }
        Ok(bytes)
    };
    let (out, err) = (exec.stdout.take(), exec.stderr.take());
    let (sent, _, complaints) =
        wire.or_lost(async { tokio::join!(send, read_text(out), read_text(err)) }).await?;
    let bytes = sent.map_err(unreadable)?;
    match exec.wait().await {
        Status::Code(0) => Ok(Some(bytes)),
        Status::Code(code) => Err(complaint(&complaints, code)),
        Status::Killed => Ok(None),
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

/// Takes files out: a few [as they are](pick), else a listing, then one tar stream of all small files, then each large file by itself. When its connection
/// is lost, it begins again.
pub(super) async fn take(link: &Link, take: &Take) -> Result<Vec<Taken>, TakeError> {
    let taken = link.whole(|on, before| {
        async move {
            if before > 0 {
                empty(&take.into).await.map_err(TakeError::Host)?;
            }
            take_all(&on, take).await
        }
        .boxed()
    });
    match timeout_at(take.deadline.instant(), taken).await {
        Ok(taken) => taken,
        Err(_) => Err(Fault::new(Reason::TransferFailed, TAKE, "the artifacts were not out in time").into()),
    }
}

/// Removes what is in a folder of ours.
async fn empty(folder: &Path) -> io::Result<()> {
    tokio::fs::remove_dir_all(folder).await?;
    tokio::fs::create_dir(folder).await
}

async fn take_all(on: &Connection, take: &Take) -> Result<Vec<Taken>, TakeError> {
    if take.globs.is_empty() {
        return Ok(Vec::new());
    }
    let globs = Globs::new(&take.globs).map_err(|glob| TakeError::Missing { glob })?;
    let (wire, _turn) = (&on.wire, on.wire.take_turn().await);
    let sink = Arc::new(Sink::new(&take.into, take.bytes_max));
    if let Some(taken) = pick(on, &globs, &sink).await? {
        return Ok(taken);
    }
    let found = list(wire, &globs).await?;
    if let Some(glob) = globs.unmatched(found.files.iter().map(|f| f.name.as_str())) {
        return Err(TakeError::Missing { glob });
    }
    let (large, small): (Vec<_>, Vec<_>) = found.files.into_iter().partition(|f| f.large);
    let small: Vec<String> = small.into_iter().map(|f| f.name).collect();
    let mut taken = if small.is_empty() { Vec::new() } else { take_small(wire, small, &sink).await? };
    if !large.is_empty() {
        taken.extend(take_large(wire, &found.folder, &large, &sink).await?);
    }
    taken.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(taken)
}

/// A file that is meant by the globs.
#[derive(Debug)]
struct Found {
    name: String,
    large: bool,
}

#[derive(Debug)]
struct Listing {
    /// The work folder's absolute path in the guest.
    folder: String,
    files: Vec<Found>,
}

/// Lists what the globs mean. Only plain files count: no symbolic link is followed, neither on the way to a root nor below
/// it, and none is taken. So a link out of the work folder leads nowhere, and in an app's bundle the files behind its links
/// come, under their own names.
async fn list(wire: &Wire, globs: &Globs) -> Result<Listing, TakeError> {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let mut exec = wire.open(&in_sh(&list_script(&globs.roots(), &nonce))).await?;
    exec.stdin = None;
    let (stdout, stderr) = (exec.stdout.take(), exec.stderr.take());
    let read = async { tokio::join!(read_bytes(stdout, LISTING_BYTES_MAX + 1), read_text(stderr)) };
    let (bytes, complaint) = wire.or_lost(read).await?;
    exec.wait().await;
    if bytes.len() > LISTING_BYTES_MAX {
        return Err(failed(format!("the list of files is longer than {LISTING_BYTES_MAX} bytes")).into());
    }
    match parse_listing(&bytes, &nonce, globs)? {
        Some(listing) => Ok(listing),
        None if complaint.is_empty() => Err(wire.blame("the list of files was cut off".into()).await.into()),
        None => Err(failed(format!("the list of files was cut off: {}", complaint.trim())).into()),
    }
}

/// Large files are named twice in a row: a size test and a second print are all that every `find` has in common.
fn list_script(roots: &[String], nonce: &str) -> String {
    let mut text =
        format!("cd -P -- \"$HOME/{WORK_DIR}\" || exit 1\nprintf '{nonce}\\000%s\\000' \"$PWD\"\nset --\n");
    for root in roots {
        let above: Vec<String> =
            root.match_indices('/').map(|(at, _)| quote(&format!("./{}", &root[..at]))).collect();
        for folder in &above {
            text += &format!("[ -L {folder} ] || ");
        }
        let root = if root == "." { ".".into() } else { quote(&format!("./{root}")) };
        text += &format!("[ ! -e {root} ] || set -- \"$@\" {root}\n");
    }
    let blocks = LARGE_BYTES / 512 - 1;
    text += &format!(
        "[ $# = 0 ] || find \"$@\" -type f -print0 -size +{blocks} -print0\nprintf '{nonce}\\000'\n"
    );
    text
}

/// `None` when the list has no end.
fn parse_listing(bytes: &[u8], nonce: &str, globs: &Globs) -> Result<Option<Listing>, TakeError> {
    // A profile's chatter may stand before it.
    let Some(start) = bytes.windows(nonce.len()).position(|w| w == nonce.as_bytes()) else { return Ok(None) };
    let mut names = bytes[start + nonce.len()..].split(|b| *b == 0).skip(1);
    let Some(folder) = names.next().map(|f| String::from_utf8_lossy(f).into_owned()) else { return Ok(None) };
    let mut files: Vec<Found> = Vec::new();
    let mut last: &[u8] = b"";
    for name in names {
        if name == nonce.as_bytes() {
            return Ok(Some(Listing { folder, files }));
        }
        let repeated = name == last;
        last = name;
        match globs.judge(name.strip_prefix(b"./").unwrap_or(name)) {
            Verdict::No => {}
            Verdict::Hostile(path) => return Err(TakeError::Hostile { path }),
            Verdict::Yes(_) if repeated => files.last_mut().into_iter().for_each(|f| f.large = true),
            Verdict::Yes(name) => files.push(Found { name, large: false }),
        }
    }
    Ok(None)
}

/// All small files in one stream. `xargs` may run several tars; their streams follow each other.
async fn take_small(wire: &Wire, names: Vec<String>, sink: &Arc<Sink>) -> Result<Vec<Taken>, TakeError> {
    let script = format!("cd -P -- \"$HOME/{WORK_DIR}\" && COPYFILE_DISABLE=1 exec xargs -0 tar -c -f -");
    let mut exec = wire.open(&in_sh(&script)).await?;
    let list: Vec<u8> = names.iter().flat_map(|n| [b"./", n.as_bytes(), b"\0"].concat()).collect();
    let (stdin, stdout, stderr) = (exec.stdin.take(), exec.stdout.take(), exec.stderr.take());
    let (pieces, from) = mpsc::channel(PIECES_WAITING);
    let sink = Arc::clone(sink);
    let receiving = tokio::task::spawn_blocking(move || {
        receive_tar(BufReader::with_capacity(PIECE_BYTES, Pieces { from, at: Bytes::new() }), &names, &sink)
    });
    let ask = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(&list).await.ok();
        }
    };
    let moved = wire.or_lost(async { tokio::join!(ask, pump(stdout, pieces), read_text(stderr)) }).await;
    let received = receiving.await.map_err(|e| TakeError::Host(io::Error::other(e)))?;
    let ((), (), complaint) = moved?;
    exec.wait().await;
    received.map_err(|error| match error {
        TakeError::Guest(mut fault) if !complaint.is_empty() => {
            fault.text =
                format!("{}: {}", fault.text, complaint.lines().take(3).collect::<Vec<_>>().join("; "));
            TakeError::Guest(fault)
        }
        error @ (TakeError::Missing { .. }
        | TakeError::TooLarge { .. }
        | TakeError::Hostile { .. }
        | TakeError::Host(_)
        | TakeError::Guest(_)) => error,
    })
}

/// Hands a stream over in pieces until it ends or nobody takes them.
async fn pump(stream: Option<impl AsyncRead + Unpin>, to: mpsc::Sender<Bytes>) {
    let Some(mut stream) = stream else { return };
    loop {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        match stream.read_buf(&mut piece).await {
            Ok(1..) if to.send(piece.freeze()).await.is_ok() => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Large files one after the other, each as many reads in flight.
async fn take_large(
    wire: &Wire,
    folder: &str,
    files: &[Found],
    sink: &Arc<Sink>,
) -> Result<Vec<Taken>, TakeError> {
    let opened = wire.or_lost(Sftp::from_clonable_session(wire.session(), SftpOptions::default())).await?;
    let sftp = match opened {
        Ok(sftp) => sftp,
        Err(error) => return Err(wire.blame(text_of(&error)).await.into()),
    };
    let mut taken = Vec::new();
    for file in files {
        taken.push(wire.or_lost(fetch(wire, &sftp, folder, &file.name, sink)).await??);
    }
    // Every handle is gone by now; were one not, this would never end.
    timeout(CLOSE_LIMIT, sftp.close()).await.ok();
    Ok(taken)
}

pub(super) async fn fetch(
    wire: &Wire,
    sftp: &Sftp,
    folder: &str,
    name: &str,
    sink: &Arc<Sink>,
) -> Result<Taken, TakeError> {
    let blame = async |error: openssh_sftp_client::Error| TakeError::Guest(wire.blame(text_of(&error)).await);
    let mut file = match sftp.open(Path::new(folder).join(name)).await {
        Ok(file) => file,
        Err(error) => return Err(blame(error).await),
    };
    let facts = match file.metadata().await {
        Ok(facts) => facts,
        Err(error) => return Err(blame(error).await),
    };
    let bytes = facts.len().unwrap_or(0);
    if !facts.file_type().is_none_or(|t| t.is_file()) {
        return Err(TakeError::Hostile { path: name.into() });
    }
    sink.allow(bytes)?;
    let executable = facts
        .permissions()
        .is_some_and(|p| p.execute_by_owner() || p.execute_by_group() || p.execute_by_other());
    let (pieces, mut from) = mpsc::channel::<Bytes>(PIECES_WAITING);
    let (sink, name) = (Arc::clone(sink), name.to_owned());
    let writing = tokio::task::spawn_blocking(move || {
        let mut incoming = sink.begin(&name)?;
        let mut missing = bytes;
        while let Some(piece) = from.blocking_recv() {
            missing = missing.saturating_sub(piece.len() as u64);
            incoming.write(&piece)?;
        }
        if missing > 0 {
            return Err(failed(format!("`{name}` was cut off {missing} bytes before its end")).into());
        }
        incoming.finish(executable)
    });
    let read = read_pipelined(&file, bytes, pieces).await;
    drop(file);
    let written = writing.await.map_err(|e| TakeError::Host(io::Error::other(e)))?;
    match (read, written) {
        (Err(error), Ok(_) | Err(TakeError::Guest(_))) => Err(blame(error).await),
        (_, written) => written,
    }
}

/// Reads in order with many requests under way, so that the way to the guest and back is paid once.
async fn read_pipelined(
    file: &openssh_sftp_client::file::File,
    bytes: u64,
    to: mpsc::Sender<Bytes>,
) -> Result<(), openssh_sftp_client::Error> {
    let (mut asked, mut reads) = (0_u64, FuturesOrdered::new());
    loop {
        while asked < bytes && reads.len() < READS_MAX {
            let n = READ_BYTES.min(bytes - asked);
            let (at, mut handle) = (asked, file.clone());
            asked += n;
            reads.push_back(async move {
                handle.seek(SeekFrom::Start(at)).await?;
                let n = usize::try_from(n).unwrap_or(0);
                handle.read_all(n, BytesMut::with_capacity(n)).await
            });
        }
        let Some(piece) = reads.next().await else { return Ok(()) };
        if to.send(piece?.freeze()).await.is_err() {
            // The writer gave up, and says why.
            return Ok(());
        }
    }
}

fn failed(text: String) -> Fault {
    Fault::new(Reason::TransferFailed, TAKE, text)
}

fn in_sh(script: &str) -> String {
    format!("exec /bin/sh -c {}", quote(script))
}
