//! A build's caches, out of a guest and into a later one, as one tar with names relative to the user's home.
//!
//! ```text
//!   take: tar of what is there --> a file of the host, its length and sum; nothing looks into it
//!   put:  the file --> tar -x in a folder below the home's, of this transfer only
//!                        | all of it sent, tar content, the connection whole: the host says so
//!                        v
//!                      each path that the cache may have is moved to its place; what else there is stays where it is
//! ```
//!
//! The tar was written by a guest, which may have been anybody's. What it may do in this guest is what it says in the second
//! step: whatever else it holds was unpacked where nothing looks, by the guest's tar, which does not leave its folder.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::connection::Connection;
use super::link::Link;
use super::script::quote;
use super::transfer::read_text;
use super::wire::{Exec, Status, Wire, write};
use super::{PutCache, TakeCache, TakeError, TakenCache};
use crate::runtime::{Fault, Reason};

/// Read at once, and pieces between the wire and the disk: together they bound our memory.
const PIECE_BYTES: usize = 256 * 1024;
const PIECES_WAITING: usize = 8;

/// What the guest's shell says when none of the paths is there.
const NOTHING_THERE: i32 = 75;

/// What stands before the name of a path that is not there, on the guest's stderr.
const ABSENT: &str = "preheat-absent ";

/// Where transfers unpack, from the user's home: a name begins so.
const FOLDERS: &str = ".preheat/cache-";

/// The word for it.
const PLACE: &[u8] = b"place\n";

const PUT: &str = "restore cache";
const TAKE: &str = "save cache";

/// Puts a cache's tar in. With a fault nothing of it is in its place, or what was there before it is there still, but for a
/// fault in the very last move.
pub(super) async fn put(link: &Link, put: &PutCache) -> Result<u64, Fault> {
    let sent = link.whole(|on, _| async move { put_whole(&on, put).await }.boxed());
    let late = |_| Err(Fault::new(Reason::TransferFailed, PUT, "it was not in the guest in time"));
    timeout_at(put.deadline.instant(), sent).await.unwrap_or_else(late)
}

async fn put_whole(on: &Connection, put: &PutCache) -> Result<u64, Fault> {
    let wire = &on.wire;
    let _turn = wire.take_turn().await;
    // Of its own: what a connection that was lost may still write is nobody's.
    let folder = format!("{FOLDERS}{}", uuid::Uuid::new_v4().simple());
    // It is up by the time that it is told what became of the transfer.
    let placing = wire.open(&in_sh(&place_script(&folder, &put.paths))).await?;
    let unpacking = wire.open(&in_sh(&unpack_script(&folder))).await?;
    let sent = send(wire, unpacking, &put.tar).await;
    let placed = tell(wire, placing, sent.is_ok()).await;
    let bytes = sent?;
    placed.map(|()| bytes)
}

/// Tells what waits whether all of the cache is there, and sees it to its end.
async fn tell(wire: &Wire, mut placing: Exec, whole: bool) -> Result<(), Fault> {
    if let Some(mut stdin) = placing.stdin.take()
        && whole
    {
        // One that is gone shows in its end.
        write(&mut stdin, PLACE).await.ok();
    }
    let (out, err) = (placing.stdout.take(), placing.stderr.take());
    let (_, complaint) = wire.or_lost(async { tokio::join!(read_text(out), read_text(err)) }).await?;
    ended(wire, placing.wait().await, PUT, &complaint).await
}

fn unpack_script(folder: &str) -> String {
    let folder = quote(folder);
    // The modes are the cache's, the owner is whoever logs in.
    format!("cd -- \"$HOME\" && mkdir -p -- {folder} && cd -- {folder} && exec tar -x -p -o -f -")
}

/// Waits for the word, then moves each path out of `folder` to its place. Where a folder is already, as in an image that
/// brings one along, the cache's files are laid over it; anything else makes way. Without the word nothing is moved. What is
/// left in the folder, and in those of transfers that broke off, would take the room of what the steps make; mostly it is
/// nothing, and a process is dear in an emulated guest.
fn place_script(folder: &str, paths: &[String]) -> String {
    let mut text = format!(
        "clear() {{ rm -rf ./{FOLDERS}* 2>/dev/null || {{ chmod -R u+rwx ./{FOLDERS}*; rm -rf ./{FOLDERS}*; }}; }}\n\
         place() {{\n\
         if [ ! -e \"$2\" ] && [ ! -L \"$2\" ]; then mv -- \"$1\" \"$2\"\n\
         elif [ -d \"$1\" ] && [ ! -L \"$1\" ] && [ -d \"$2\" ]; then left=1\n\
         (cd -P -- \"$1\" && tar -c -f - .) | (cd -- \"$2\" && tar -x -p -o -f -)\n\
         else rm -rf -- \"$2\" && mv -- \"$1\" \"$2\"; fi\n\
         }}\n\
         cd -- \"$HOME\" || exit 1\nrc=0 left= word=\nread -r word\n\
         [ \"$word\" = place ] || {{ clear; exit 1; }}\n"
    );
    for path in paths {
        let (from, to) = (quote(&format!("./{folder}/{path}")), quote(&format!("./{path}")));
        let above = path.rsplit_once('/').map_or(String::new(), |(above, _)| {
            let above = quote(&format!("./{above}"));
            format!("{{ [ -d {above} ] || mkdir -p -- {above}; }} && ")
        });
        // A link on the way to it would be the tar's, and lead anywhere.
        let direct =
            above_of(folder, path).iter().map(|above| format!("[ ! -L {above} ] && ")).collect::<String>();
        text += &format!(
            "if {direct}{{ [ -e {from} ] || [ -L {from} ]; }}; then {above}place {from} {to} || rc=1; fi\n"
        );
    }
    text += "[ -z \"$left\" ] && [ $rc = 0 ] || clear\nexit $rc\n";
    text
}

/// The folders above `path` in `folder`, quoted.
fn above_of(folder: &str, path: &str) -> Vec<String> {
    path.match_indices('/').map(|(at, _)| quote(&format!("./{folder}/{}", &path[..at]))).collect()
}

async fn send(wire: &Wire, mut exec: Exec, tar: &Path) -> Result<u64, Fault> {
    let unreadable =
        |e: std::io::Error| Fault::new(Reason::TransferFailed, PUT, format!("{}: {e}", tar.display()));
    let mut file = File::open(tar).await.map_err(unreadable)?;
    let stdin = exec.stdin.take();
    let sending = async {
        let Some(mut stdin) = stdin else { return Ok((0, false)) };
        let (mut piece, mut bytes) = (BytesMut::with_capacity(PIECE_BYTES), 0);
        while file.read_buf(&mut piece).await? > 0 {
            bytes += piece.len() as u64;
            if stdin.write_all(&piece).await.is_err() {
                // Its tar says why on its stderr, and how it ended.
                return Ok((bytes, false));
            }
            piece.clear();
        }
        Ok((bytes, stdin.flush().await.is_ok()))
    };
    let (out, err) = (exec.stdout.take(), exec.stderr.take());
    let (sent, _, complaint) =
        wire.or_lost(async { tokio::join!(sending, read_text(out), read_text(err)) }).await?;
    let (bytes, whole) = sent.map_err(unreadable)?;
    ended(wire, exec.wait().await, PUT, &complaint).await?;
    if whole { Ok(bytes) } else { Err(wire.blame("the guest did not take all of the cache".into()).await) }
}

fn in_sh(script: &str) -> String {
    format!("exec /bin/sh -c {}", quote(script))
}

async fn ended(wire: &Wire, status: Status, doing: &'static str, complaint: &str) -> Result<(), Fault> {
    match status {
        Status::Code(0) => Ok(()),
        Status::Code(code) => Err(complaint_of(doing, code, complaint)),
        Status::Killed => Err(wire.blame(format!("the guest ended what was to {doing}")).await),
    }
}

fn complaint_of(doing: &'static str, code: i32, complaint: &str) -> Fault {
    if complaint.contains("No space left on device") || complaint.contains("Disk quota exceeded") {
        let text = "the guest's disk is full: give the pool a larger `disk`, or cache less";
        return Fault::new(Reason::GuestDiskFull, doing, text);
    }
    let first: Vec<&str> = complaint.lines().filter(|line| !line.starts_with(ABSENT)).take(3).collect();
    Fault::new(
        Reason::TransferFailed,
        doing,
        format!("tar in the guest ended with {code}: {}", first.join("; ")),
    )
}

/// Takes a cache out. [`TakeError::Missing`] when none of its paths is there.
pub(super) async fn take(link: &Link, take: &TakeCache) -> Result<TakenCache, TakeError> {
    let taken = link.whole(|on, _| async move { take_whole(&on, take).await }.boxed());
    let late = || Fault::new(Reason::TransferFailed, TAKE, "it was not out in time");
    timeout_at(take.deadline.instant(), taken).await.unwrap_or_else(|_| Err(late().into()))
}

/// The paths that are there, in one tar; those that are not are named on stderr. What lies behind a link is not the cache's.
fn take_script(paths: &[String]) -> String {
    let mut text = String::from("cd -P -- \"$HOME\" || exit 1\nset --\n");
    for path in paths {
        let path = quote(&format!("./{path}"));
        text += &format!(
            "if [ -e {path} ] || [ -L {path} ]; then set -- \"$@\" {path}; \
             else printf '%s%s\\n' '{ABSENT}' {path} >&2; fi\n"
        );
    }
    text += &format!("[ $# != 0 ] || exit {NOTHING_THERE}\nCOPYFILE_DISABLE=1 exec tar -c -f - \"$@\"\n");
    text
}

async fn take_whole(on: &Connection, take: &TakeCache) -> Result<TakenCache, TakeError> {
    let wire = &on.wire;
    let _turn = wire.take_turn().await;
    let mut exec = wire.open(&in_sh(&take_script(&take.paths))).await?;
    exec.stdin = None;
    let (stdout, stderr) = (exec.stdout.take(), exec.stderr.take());
    let (pieces, from) = mpsc::channel(PIECES_WAITING);
    let (into, max) = (take.into.clone(), take.bytes_max);
    let writing = tokio::task::spawn_blocking(move || write_down(&into, from, max));
    let moved = wire.or_lost(async { tokio::join!(pump(stdout, pieces), read_text(stderr)) }).await;
    let written = writing.await.map_err(|e| TakeError::Host(std::io::Error::other(e)))?;
    let ((), complaint) = moved?;
    // Its reader has left where it was too much: how tar took that does not matter.
    let (bytes, sha256) = written?;
    let absent = absent(&complaint, &take.paths);
    match exec.wait().await {
        Status::Code(NOTHING_THERE) if absent.len() == take.paths.len() => {
            Err(TakeError::Missing { glob: take.paths.join("`, `") })
        }
        status @ (Status::Code(_) | Status::Killed) => {
            ended(wire, status, TAKE, &complaint).await?;
            Ok(TakenCache { bytes, sha256, absent })
        }
    }
}

/// Those of `paths` that the guest named as absent.
fn absent(complaint: &str, paths: &[String]) -> Vec<String> {
    let named: Vec<&str> =
        complaint.lines().filter_map(|line| line.strip_prefix(ABSENT)?.strip_prefix("./")).collect();
    paths.iter().filter(|path| named.contains(&path.as_str())).cloned().collect()
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

/// Writes a file anew, up to `max` bytes: its length and sum.
fn write_down(into: &Path, mut from: mpsc::Receiver<Bytes>, max: u64) -> Result<(u64, String), TakeError> {
    use std::io::Write as _;
    let mut file = std::fs::File::create(into).map_err(TakeError::Host)?;
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    while let Some(piece) = from.blocking_recv() {
        bytes += piece.len() as u64;
        if bytes > max {
            return Err(TakeError::TooLarge { max });
        }
        hash.update(&piece);
        file.write_all(&piece).map_err(TakeError::Host)?;
    }
    let sha256 = hash.finalize().iter().fold(String::with_capacity(64), |mut text, b| {
        use std::fmt::Write as _;
        write!(text, "{b:02x}").ok();
        text
    });
    Ok((bytes, sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_named_absent() {
        let paths = ["work/Pods".to_owned(), ".cocoapods".to_owned()];
        let said = "motd\npreheat-absent ./.cocoapods\npreheat-absent ./other\ntar: chatter\n";
        assert_eq!(absent(said, &paths), [".cocoapods"]);
    }

    #[test]
    fn a_path_is_one_word_in_the_guest_whatever_is_in_it() {
        let path = "work/it's $(x) `y`".to_owned();
        for script in [take_script(std::slice::from_ref(&path)), place_script("f", &[path])] {
            assert!(script.contains(r"it'\''s $(x) `y`'"), "{script}");
        }
    }
}
