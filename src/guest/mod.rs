//! The port into a guest: what a VM's birth and a build need of it. `ssh` is the real one; `runtime::sim` brings its own.
//! Nothing above this folder knows SSH, tar or a shell.

mod cache;
mod connection;
mod follow;
mod fresh;
mod globs;
pub(crate) mod heads;
mod health;
pub mod lines;
mod link;
mod master;
mod pace;
mod pick;
mod receive;
pub mod script;
mod signing;
pub mod ssh;
mod takeout;
pub mod transfer;
mod wire;
mod wrapper;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::clock::Deadline;
use crate::ids::RunId;
use crate::runtime::Fault;
use crate::signing::Kit;
pub use fresh::Fresh;

/// Where a guest answers and as whom.
#[derive(Debug, Clone)]
pub struct Target {
    pub address: IpAddr,
    pub port: u16,
    pub user: String,
    pub key: PathBuf,
}

/// Which of a process's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Out,
    Err,
}

/// One line that a step printed, without its end; split where it is longer than [`lines::LINE_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub stream: Stream,
    pub text: String,
    /// Bytes of its stream from the run's beginning up to the end of this line, its line end included.
    pub end: u64,
    /// Whether it has no end of its own: the stream's next line goes on with it.
    pub split: bool,
}

/// How far the two outputs of a run have been read, in bytes from their beginning. It lies behind a whole line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    pub out: u64,
    pub err: u64,
}

/// The bounds of a run that was begun before.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// What is left of the script's time.
    pub timeout: Duration,
    /// As in [`Script::kill_grace`].
    pub kill_grace: Duration,
}

/// A command for the guest's login shell. Nothing of it appears in an argument list, on the host or in the guest.
#[derive(Debug, Clone)]
pub struct Script {
    /// What the shell is to run.
    pub command: String,
    /// Relative to [`WORK_DIR`], or absolute.
    pub dir: String,
    /// Variables, secrets among them: the values are wiped when they are dropped, and print as `[REDACTED]`.
    pub env: Vec<(String, SecretString)>,
    pub timeout: Duration,
    /// Between TERM and KILL for the whole process group.
    pub kill_grace: Duration,
}

/// How a script ended. After each of them no process of it is left in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself. A death by signal N is 128 + N, as shells have it.
    Exited(i32),
    /// Its time was over and it was killed.
    TimedOut,
    /// It was cancelled and killed.
    Cancelled,
}

/// The folder in the guest that holds a build's source, relative to the user's home. One VM serves one build, so it has
/// one name, and paths in compilers' caches stay the same.
pub const WORK_DIR: &str = "work";

/// What to take out of a guest.
#[derive(Debug, Clone)]
pub struct Take {
    /// Relative to [`WORK_DIR`]; `*`, `**`, `?`, `[..]`, `{a,b}`.
    pub globs: Vec<String>,
    /// The folder on the host that receives them; it exists and is empty.
    pub into: PathBuf,
    /// For all of them together.
    pub bytes_max: u64,
    pub deadline: Deadline,
}

/// A file that was taken out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Relative to [`WORK_DIR`], `/` between its parts.
    pub path: String,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// Why nothing, or not all, was taken out.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// A glob matched no file: the user's fault.
    #[error("`{glob}` matches no file of the build")]
    Missing { glob: String },
    /// More than the limit: the user's fault.
    #[error("artifacts are larger than {max} bytes together")]
    TooLarge { max: u64 },
    /// The guest named a path that leaves the folder, or is no plain file.
    #[error("the guest sent `{path}`, which is not a plain file below the work folder")]
    Hostile { path: String },
    /// The host could not write it.
    #[error("cannot write artifacts")]
    Host(#[source] std::io::Error),
    /// The guest or the way to it failed.
    #[error(transparent)]
    Guest(#[from] Fault),
}

/// A cache on its way into a guest.
#[derive(Debug, Clone)]
pub struct PutCache {
    /// An uncompressed tar of this host, as a guest wrote it.
    pub tar: PathBuf,
    /// What of it comes to its place: relative to the user's home, in plain parts.
    pub paths: Vec<String>,
    pub deadline: Deadline,
}

/// A cache to be taken out of a guest.
#[derive(Debug, Clone)]
pub struct TakeCache {
    /// Relative to the user's home, in plain parts.
    pub paths: Vec<String>,
    /// The file on the host that it is written to.
    pub into: PathBuf,
    pub bytes_max: u64,
    pub deadline: Deadline,
}

/// A cache that was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenCache {
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    /// Those of the paths that were not there.
    pub absent: Vec<String>,
}

/// How a guest is at one moment. What it does not say is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// Of all its processors together, since the look before.
    pub cpu_percent: Option<u8>,
    /// Used and all, in bytes.
    pub memory: Option<(u64, u64)>,
    /// Used and free, in bytes, where the work is.
    pub disk: Option<(u64, u64)>,
}

/// Why a guest cannot sign. `step` is what was being done: the verb of the guest's `security`, for most.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The guest's own tools refused.
    #[error("`{step}` in the guest ended with {code}: {said}")]
    Refused { step: &'static str, code: i32, said: String, hint: Option<&'static str> },
    /// It did not end in time.
    #[error("`{step}` in the guest took longer than {}", humantime::format_duration(*.limit))]
    TimedOut { step: &'static str, limit: Duration },
    /// The guest or the way to it failed.
    #[error(transparent)]
    Guest(#[from] Fault),
}

/// Opens channels.
pub trait Connector: Send + Sync + 'static {
    /// One attempt after the other until a full handshake and a command have been answered, or the deadline has passed.
    /// Cancel-safe: dropped, it leaves no process behind.
    fn connect<'a>(
        &'a self,
        target: &'a Target,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, Fault>>;

    /// As [`connect`](Connector::connect), into a guest that was resumed from a state that others resume from too. The
    /// first thing that it does is to take what is its own: the time, randomness, host keys. It was made ready for that
    /// by [`Channel::make_ready_to_resume`] before its state was saved.
    fn connect_resumed<'a>(
        &'a self,
        target: &'a Target,
        fresh: &'a Fresh,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, Fault>>;
}

/// An open connection into one guest. Dropping the last reference closes it.
pub trait Channel: Send + Sync {
    /// A full command, answered: a frozen guest does not pass.
    fn probe(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>>;

    /// A word from the shell that waits for the first script: it costs the guest next to nothing, and a frozen one does
    /// not pass. Where none waits, it is a [probe](Channel::probe).
    fn greet(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        self.probe(limit)
    }

    /// Nothing of the user's runs in the guest until the next script: whatever that and the source will need is started now.
    /// Done in no time; what it starts comes up by itself.
    fn make_ready(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    /// Streams an uncompressed tar file into [`WORK_DIR`], which it makes. Returns the bytes sent.
    fn put_tree<'a>(&'a self, tar: &'a Path, deadline: Deadline) -> BoxFuture<'a, Result<u64, Fault>>;

    /// The name for the next run that begins the quickest. Any other name is as good, and a little slower.
    fn reserve(&self) -> RunId {
        RunId::new()
    }

    /// Runs a script; its lines go to `lines` as they appear. When it returns with how it ended, every line that was printed
    /// has been sent, and no process of the script is left. The run outlives the connection, and it outlives this future:
    /// with a fault, or dropped, it may go on in the guest, and [`attach`](Channel::attach) finds it by its name.
    fn run<'a>(
        &'a self,
        id: &'a RunId,
        script: &'a Script,
        lines: mpsc::Sender<Line>,
        cancel: CancellationToken,
    ) -> BoxFuture<'a, Result<Ended, Fault>>;

    /// Takes up a run that was begun before: its lines behind `from` go to `lines`, those that were printed meanwhile and
    /// those that come. `None` when the script never began, so that it may be run. As [`run`](Channel::run) otherwise.
    fn attach<'a>(
        &'a self,
        id: &'a RunId,
        from: Position,
        bounds: Bounds,
        lines: mpsc::Sender<Line>,
        cancel: CancellationToken,
    ) -> BoxFuture<'a, Result<Option<Ended>, Fault>>;

    /// Takes files out.
    fn take<'a>(&'a self, take: &'a Take) -> BoxFuture<'a, Result<Vec<Taken>, TakeError>>;

    /// Leaves something in the guest that waits for what it will be given when it is resumed. Its state may be saved when
    /// the connection is closed.
    fn make_ready_to_resume(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>>;

    /// Puts a cache to its places in the guest. With a fault what was there before is there still, as far as can be.
    /// Returns the bytes sent.
    fn put_cache<'a>(&'a self, put: &'a PutCache) -> BoxFuture<'a, Result<u64, Fault>>;

    /// Takes a cache out, into one file. [`TakeError::Missing`] when none of its paths is there.
    fn take_cache<'a>(&'a self, take: &'a TakeCache) -> BoxFuture<'a, Result<TakenCache, TakeError>>;

    /// Looks at how the guest is, `every` so often and whenever it is hurried, and sends what it sees. It costs the guest next
    /// to nothing, and returns when nobody listens or the guest says nothing.
    fn watch<'a>(
        &'a self,
        every: Duration,
        hurry: &'a Notify,
        looks: mpsc::Sender<Look>,
    ) -> BoxFuture<'a, ()>;

    /// Lets the guest sign: a keychain of this build alone with the certificate and its key, the profiles where the guest's
    /// tools look for them. None of the passwords, nor the key, is ever an argument, or lies in a file in the clear. Done
    /// again, it begins anew.
    fn install_signing<'a>(
        &'a self,
        kit: &'a Kit,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<(), SignError>>;

    /// Sees to it that what is run next can sign: to a Mac each connection is a session of its own, in which a keychain is
    /// locked until it is unlocked. Done in no time where the connection is the same. Returns the keychain's path.
    fn unlock_signing<'a>(
        &'a self,
        kit: &'a Kit,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<String, SignError>>;

    /// Takes away what [`install_signing`](Channel::install_signing) put in. What is not there is no error.
    fn remove_signing<'a>(&'a self, kit: &'a Kit, deadline: Deadline)
    -> BoxFuture<'a, Result<(), SignError>>;

    /// Resolves when the guest can be reached no more: a connection that merely broke is opened again before that.
    fn lost(&self) -> BoxFuture<'static, Fault>;

    /// The guest is dead: whatever waits for it ends with `why`, and nothing is tried again.
    fn abandon(&self, why: Fault);
}
