//! Trees and files in and out.

use std::io;
use std::path::Path;

use openssh::Stdio;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout_at;

use super::ssh::{Exec, Status, Wire};
use super::{Take, TakeError, Taken, WORK_DIR};
use crate::clock::Deadline;
use crate::runtime::{Fault, Reason};

/// What is kept of the output of a command of ours.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

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

/// Reads a stream to its end and keeps its beginning.
pub(super) async fn read_text(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut kept, mut piece) = (Vec::new(), vec![0; 8 * 1024]);
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        let room = ANSWER_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&piece[..n.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Streams a tar file into the guest's work folder. ssh itself reads the file, so that no byte passes through us.
pub(super) async fn put_tree(wire: &Wire, tar: &Path, deadline: Deadline) -> Result<u64, Fault> {
    let failed = |text: String| Fault::new(Reason::VerbFailed, "put source", text);
    let file = std::fs::File::open(tar).map_err(|e| failed(format!("{}: {e}", tar.display())))?;
    let bytes = file.metadata().map_err(|e| failed(e.to_string()))?.len();
    let stdin = || file.try_clone().map_or_else(|_| Stdio::null(), Stdio::from);
    let sent = timeout_at(deadline.instant(), async {
        let _turn = wire.take_turn().await;
        let mut exec = wire.spawn(&unpack_command(), stdin).await?;
        let answer = read_all(wire, &mut exec).await?;
        match exec.wait().await {
            Status::Code(0) => Ok(bytes),
            Status::Code(code) => Err(failed(complaint(&answer.err, code))),
            Status::Killed => Err(wire.blame("the connection ended while source was sent".into()).await),
        }
    });
    sent.await
        .unwrap_or_else(|_| Err(failed(format!("{bytes} bytes of source were not in the guest in time"))))
}

/// Owner and group are not the archive's: in the guest everything is the user's.
fn unpack_command() -> String {
    format!(
        "exec /bin/sh -c 'mkdir -p \"$HOME/{WORK_DIR}\" && cd \"$HOME/{WORK_DIR}\" && exec tar -x -o -f -'"
    )
}

fn complaint(stderr: &str, code: i32) -> String {
    if stderr.contains("No space left on device") || stderr.contains("Disk quota exceeded") {
        return "the guest's disk is full: give the pool a larger `disk`, or send less".into();
    }
    let first: Vec<&str> = stderr.lines().take(3).collect();
    format!("tar in the guest ended with {code}: {}", first.join("; "))
}

/// Takes files out.
pub(super) async fn take(_wire: &Wire, _take: &Take) -> Result<Vec<Taken>, TakeError> {
    Err(TakeError::Host(io::Error::other("not yet")))
}
