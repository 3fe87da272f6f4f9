//! Files out of the guest: a few small ones [as they are](super::pick), else a listing, then a tar stream of the small ones from the very shell that listed them, then the
//! large ones.
//!
//! ```text
//!   host                                    guest: one shell
//!    |  <-- nonce, zstd?, folder, names, nonce -- |   find
//!    |  -- record size, form, names ------------> |   (what the globs mean; nothing else is asked for)
//!    |  <------------- tar ---------------------- |   xargs tar, through zstd if that is quicker
//! ```
//!
//! Small files share the stream. Large ones come in a stream too, the small ones' if there are any, or over SFTP, many requests
//! at once: whichever is quicker in guests of this kind.

use std::io::{self, BufReader, Read, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use openssh_sftp_client::{Sftp, SftpOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::connection::Connection;
use super::globs::{Globs, Verdict};
use super::link::Link;
use super::pace::{self, Freight, Pace, Way};
use super::pick::pick;
use super::receive::{Pieces, Sink, receive_tar};
use super::script::quote;
use super::transfer::{PIECE_BYTES, PIECES_WAITING, read_text};
use super::wire::{Exec, Wire, text_of};
use super::wrapper::{TREE_RECORD_BLOCKS, tar_records};
use super::{Take, TakeError, Taken, WORK_DIR};
use crate::clock::now;
use crate::runtime::{Fault, Reason};

/// The longest list of files: some hundred thousand names.
const LISTING_BYTES_MAX: usize = 64 << 20;

/// From here on a file counts as large. A multiple of 512, which is `find`'s unit.
const LARGE_BYTES: u64 = 8 << 20;

/// From here on a file is no trifle; a multiple of 512 as well.
const SOME_BYTES: u64 = 64 << 10;

/// What a smaller file is taken for where all of them are added up.
const TRIFLE_BYTES: u64 = 2 << 10;

/// From here on an archive may be padded to a long record.
const LONG_RECORDS_BYTES: u64 = 4 << 20;

/// tar's own record.
const RECORD_BLOCKS: u32 = 20;

/// One command line of `xargs`: fewer tars for many files, and still less than any system's limit.
const COMMAND_BYTES: u32 = 500_000;

/// The guest's compressor: what is computed there is dear.
const ZSTD: &str = "zstd -q -c --fast=3";

/// The longest window of a compressed stream that we make room for, as a power of two.
const WINDOW_LOG_MAX: u32 = 23;

/// One SFTP read: what OpenSSH's server gives at most.
const READ_BYTES: u64 = 255 << 10;

/// SFTP reads under way at once.
const READS_MAX: usize = 16;

/// SFTP's own close waits for ever when a handle is still alive.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(2);

const TAKE: &str = "take artifacts";

/// Takes files out. When its connection is lost, it begins again.
pub(super) async fn take(link: &Link, take: &Take) -> Result<Vec<Taken>, TakeError> {
    let taken = link.whole(|on, before| {
        async move {
            if before > 0 {
                empty(&take.into).await.map_err(TakeError::Host)?;
            }
            take_all(&on, take, &link.pace).await
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

async fn take_all(on: &Connection, take: &Take, pace: &Pace) -> Result<Vec<Taken>, TakeError> {
    if take.globs.is_empty() {
        return Ok(Vec::new());
    }
    let globs = Globs::new(&take.globs).map_err(|glob| TakeError::Missing { glob })?;
    let (wire, _turn) = (&on.wire, on.wire.take_turn().await);
    let sink = Arc::new(Sink::new(&take.into, take.bytes_max));
    if let Some(taken) = pick(on, &globs, &sink).await? {
        return Ok(taken);
    }
    let (found, lister) = list(wire, &globs).await?;
    if let Some(glob) = globs.unmatched(found.files.iter().map(|f| f.name.as_str())) {
        return Err(TakeError::Missing { glob });
    }
    let (mut large, mut small): (Vec<_>, Vec<_>) =
        found.files.into_iter().partition(|f| f.size == Size::Large);
    let way = if large.is_empty() { Way::Usual } else { pace.choose(Freight::LargeOut) };
    if way == Way::Usual && !small.is_empty() {
        // Another stream would cost another shell.
        small.append(&mut large);
    }
    let (mut lister, mut taken) = (Some(lister), Vec::new());
    if !small.is_empty()
        && let Some(lister) = lister.take()
    {
        taken.extend(take_small(wire, lister, small, &sink, pace).await?);
    }
    if !large.is_empty() {
        let begun = now();
        let more = take_large(wire, way, lister, &found.folder, large, &sink).await?;
        pace.note(Freight::LargeOut, way, more.iter().map(|t| t.bytes).sum(), begun.elapsed());
        taken.extend(more);
    }
    taken.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(taken)
}

/// What `find` says of a file's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Trifle,
    Some,
    Large,
}

impl Size {
    fn larger(self) -> Self {
        match self {
            Self::Trifle => Self::Some,
            Self::Some | Self::Large => Self::Large,
        }
    }

    fn bytes_about(self) -> u64 {
        match self {
            Self::Trifle => TRIFLE_BYTES,
            Self::Some => SOME_BYTES,
            Self::Large => LARGE_BYTES,
        }
    }
}

/// A file that is meant by the globs.
#[derive(Debug)]
struct Found {
    name: String,
    size: Size,
}

/// What they are taken for together.
fn about(files: &[Found]) -> u64 {
    files.iter().map(|file| file.size.bytes_about()).sum()
}

#[derive(Debug)]
struct Listing {
    /// The work folder's absolute path in the guest.
    folder: String,
    files: Vec<Found>,
}

/// The shell that made a listing, and waits for what is to come of it. Dropped, it goes.
struct Lister {
    exec: Exec,
    complaint: AbortOnDropHandle<String>,
    /// Whether it can compress.
    zstd: bool,
}

/// Lists what the globs mean. Only plain files count: no symbolic link is followed, neither on the way to a root nor below
/// it, and none is taken. So a link out of the work folder leads nowhere, and in an app's bundle the files behind its links
/// come, under their own names.
async fn list(wire: &Wire, globs: &Globs) -> Result<(Listing, Lister), TakeError> {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let (bytes, whole, mut lister) = begin(wire, &take_script(&globs.roots(), &nonce), &nonce).await?;
    if bytes.len() > LISTING_BYTES_MAX {
        return Err(failed(format!("the list of files is longer than {LISTING_BYTES_MAX} bytes")).into());
    }
    if whole && let Some((zstd, listing)) = parse_listing(&bytes, &nonce, globs)? {
        lister.zstd = zstd;
        return Ok((listing, lister));
    }
    let complaint = wire.or_lost(lister.complaint).await?.unwrap_or_default();
    if complaint.is_empty() {
        return Err(wire.blame("the list of files was cut off".into()).await.into());
    }
    Err(failed(format!("the list of files was cut off: {}", complaint.trim())).into())
}

/// Begins a script that lists: what it said, whether that is whole, and the shell.
async fn begin(wire: &Wire, script: &str, nonce: &str) -> Result<(Vec<u8>, bool, Lister), TakeError> {
    let mut exec = wire.open(&in_sh(script)).await?;
    let complaint = AbortOnDropHandle::new(tokio::spawn(read_text(exec.stderr.take())));
    let (mut bytes, mut whole) = (Vec::new(), false);
    if let Some(stdout) = exec.stdout.as_mut() {
        whole = wire.or_lost(read_listing(stdout, nonce, &mut bytes)).await?;
    }
    Ok((bytes, whole, Lister { exec, complaint, zstd: false }))
}

/// Reads up to the nonce's second time, behind which nothing comes before it is asked for. `false` when that does not come.
async fn read_listing(from: &mut (impl AsyncRead + Unpin), nonce: &str, bytes: &mut Vec<u8>) -> bool {
    let (mut seen, mut times) = (0, 0);
    let end = [nonce.as_bytes(), b"\0"].concat();
    while bytes.len() <= LISTING_BYTES_MAX {
        bytes.reserve(PIECE_BYTES);
        if !matches!(from.read_buf(bytes).await, Ok(1..)) {
            return false;
        }
        while let Some(at) = bytes[seen..].windows(end.len()).position(|w| w == end) {
            seen += at + end.len();
            times += 1;
        }
        if times >= 2 {
            return true;
        }
        seen = seen.max(bytes.len().saturating_sub(end.len() - 1));
    }
    false
}

/// Files are named once, twice or three times in a row, by size: a size test and another print are all that every `find` has
/// in common.
fn take_script(roots: &[String], nonce: &str) -> String {
    let mut text = format!(
        "cd -P -- \"$HOME/{WORK_DIR}\" || exit 1\nz=\n! command -v zstd >/dev/null || z=zstd\n\
         printf '{nonce}\\000%s\\000%s\\000' \"$z\" \"$PWD\"\nset --\n"
    );
    for root in roots {
        let above: Vec<String> =
            root.match_indices('/').map(|(at, _)| quote(&format!("./{}", &root[..at]))).collect();
        for folder in &above {
            text += &format!("[ -L {folder} ] || ");
        }
        let root = if root == "." { ".".into() } else { quote(&format!("./{root}")) };
        text += &format!("[ ! -e {root} ] || set -- \"$@\" {root}\n");
    }
    let (some, large) = (SOME_BYTES / 512 - 1, LARGE_BYTES / 512 - 1);
    text += &format!(
        "[ $# = 0 ] || find \"$@\" -type f -print0 -size +{some} -print0 -size +{large} -print0\n\
         printf '{nonce}\\000'\nread -r blocks how || exit 0\n{}\n\
         if [ \"$how\" = zstd ]; then xargs -0 -s {COMMAND_BYTES} tar -c $b -f - | {ZSTD}; exit; fi\n\
         exec xargs -0 -s {COMMAND_BYTES} tar -c $b -f -\n",
        tar_records("$blocks")
    );
    text
}

/// With it, whether the guest can compress. `None` when the list has no end.
fn parse_listing(bytes: &[u8], nonce: &str, globs: &Globs) -> Result<Option<(bool, Listing)>, TakeError> {
    // A profile's chatter may stand before it.
    let Some(start) = bytes.windows(nonce.len()).position(|w| w == nonce.as_bytes()) else { return Ok(None) };
    let mut names = bytes[start + nonce.len()..].split(|b| *b == 0).skip(1);
    let zstd = names.next().is_some_and(|word| word == b"zstd");
    let Some(folder) = names.next().map(|f| String::from_utf8_lossy(f).into_owned()) else { return Ok(None) };
    let mut files: Vec<Found> = Vec::new();
    let mut last: &[u8] = b"";
    for name in names {
        if name == nonce.as_bytes() {
            return Ok(Some((zstd, Listing { folder, files })));
        }
        let repeated = name == last;
        last = name;
        match globs.judge(name.strip_prefix(b"./").unwrap_or(name)) {
            Verdict::No => {}
            Verdict::Hostile(path) => return Err(TakeError::Hostile { path }),
            Verdict::Yes(_) if repeated => {
                files.last_mut().into_iter().for_each(|f| f.size = f.size.larger());
            }
            Verdict::Yes(name) => files.push(Found { name, size: Size::Trifle }),
        }
    }
    Ok(None)
}

/// Files in one stream, compressed where that was found to be quicker.
async fn take_small(
    wire: &Wire,
    lister: Lister,
    files: Vec<Found>,
    sink: &Arc<Sink>,
    pace: &Pace,
) -> Result<Vec<Taken>, TakeError> {
    let weighs = lister.zstd && about(&files) >= pace::BYTES_MIN / 2;
    let way = if weighs { pace.choose(Freight::SmallOut) } else { Way::Usual };
    let begun = now();
    let taken = take_stream(wire, lister, files, sink, way).await?;
    if weighs {
        pace.note(Freight::SmallOut, way, taken.iter().map(|t| t.bytes).sum(), begun.elapsed());
    }
    Ok(taken)
}

/// A tar stream of these files. `xargs` may run several tars; their streams follow each other.
async fn take_stream(
    wire: &Wire,
    lister: Lister,
    files: Vec<Found>,
    sink: &Arc<Sink>,
    way: Way,
) -> Result<Vec<Taken>, TakeError> {
    let Lister { mut exec, complaint, .. } = lister;
    // The archive is padded to a whole record.
    let blocks = if about(&files) >= LONG_RECORDS_BYTES { TREE_RECORD_BLOCKS } else { RECORD_BLOCKS };
    let names: Vec<String> = files.into_iter().map(|f| f.name).collect();
    let mut asked = format!("{blocks} {}\n", if way == Way::Other { "zstd" } else { "tar" }).into_bytes();
    names.iter().for_each(|n| asked.extend([b"./", n.as_bytes(), b"\0"].concat()));
    let (stdin, stdout) = (exec.stdin.take(), exec.stdout.take());
    let (pieces, from) = mpsc::channel(PIECES_WAITING);
    let sink = Arc::clone(sink);
    let receiving = tokio::task::spawn_blocking(move || {
        let pieces = Pieces { from, at: Bytes::new() };
        match way {
            Way::Usual => receive_from(pieces, &names, &sink),
            Way::Other => {
                let mut plain = zstd::Decoder::new(pieces).map_err(TakeError::Host)?;
                plain.window_log_max(WINDOW_LOG_MAX).map_err(TakeError::Host)?;
                receive_from(plain, &names, &sink)
            }
        }
    });
    let ask = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(&asked).await.ok();
        }
    };
    let moved =
        wire.or_lost(async { tokio::join!(ask, pump(stdout, pieces), complaint.map(Result::ok)) }).await;
    let received = receiving.await.map_err(|e| TakeError::Host(io::Error::other(e)))?;
    let ((), (), complaint) = moved?;
    let complaint = complaint.unwrap_or_default();
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

fn receive_from(stream: impl Read, names: &[String], sink: &Sink) -> Result<Vec<Taken>, TakeError> {
    receive_tar(BufReader::with_capacity(PIECE_BYTES, stream), names, sink)
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

/// Large files in a stream from the shell that listed them, or apart.
async fn take_large(
    wire: &Wire,
    way: Way,
    lister: Option<Lister>,
    folder: &str,
    files: Vec<Found>,
    sink: &Arc<Sink>,
) -> Result<Vec<Taken>, TakeError> {
    match (way, lister) {
        (Way::Usual, Some(lister)) => take_stream(wire, lister, files, sink, Way::Usual).await,
        // Where it was the other way's turn, or small files had the shell.
        (Way::Usual | Way::Other, _) => take_apart(wire, folder, &files, sink).await,
    }
}

/// Large files one after the other, each as many reads in flight.
async fn take_apart(
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
        let mut incoming = sink.begin(&name, executable)?;
        let mut missing = bytes;
        while let Some(piece) = from.blocking_recv() {
            missing = missing.saturating_sub(piece.len() as u64);
            incoming.write(&piece)?;
        }
        if missing > 0 {
            return Err(failed(format!("`{name}` was cut off {missing} bytes before its end")).into());
        }
        Ok(incoming.finish())
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
