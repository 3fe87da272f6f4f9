//! What the HTTP side needs of the daemon, and nothing more. `supervisor::core` is the real one.

use std::path::PathBuf;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::timeline::ChromeTrace;
use super::wire::{
    ArtifactView, BuildView, CacheEntryView, ErrorView, ImageView, LogLine, PoolView, ReloadView, StatusView,
    SubmitSpec, VmView,
};
use crate::ids::{BuildId, TreeId};

/// A place in the daemon for one build, held while its source is received. Dropped, it is given back.
#[must_use]
#[derive(Debug)]
pub struct Ticket(pub tokio::sync::OwnedSemaphorePermit);

/// Why the daemon did not do what it was asked. One value feeds the HTTP answer, the command line's text and its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// As many builds as may wait or run at once are there.
    #[error("{max} builds wait or run already, and no more are taken")]
    QueueFull { max: u16 },
    /// The daemon is going down.
    #[error("the daemon is stopping")]
    Stopping,
    /// An operator drained the daemon.
    #[error("the daemon is drained and takes no builds")]
    Draining,
    /// The disk is nearly full.
    #[error("{free} bytes are free on the disk of `{folder}`, and builds need {min}")]
    DiskLow { free: u64, min: u64, folder: PathBuf },
    /// The disk would be nearly full with the source on it.
    #[error(
        "the source has {bytes} bytes, {free} are free on the disk of `{folder}`, and builds need {min} beside it"
    )]
    DiskTooSmall { bytes: u64, free: u64, min: u64, folder: PathBuf },
    /// No pool has the name.
    #[error("there is no pool `{pool}`; there is {known}")]
    PoolUnknown { pool: String, known: String },
    /// The request, the project's file or both are wrong: every mistake found, one a line.
    #[error("the build is not complete: {}", mistakes.join("; "))]
    BadSpec { mistakes: Vec<String>, hint: Option<String> },
    /// What it is to sign with does not do: every mistake found.
    #[error("the build cannot be signed: {}", mistakes.join("; "))]
    BadSigning { mistakes: Vec<String>, hint: Option<String> },
    /// The archive cannot be read or is hostile.
    #[error("the source cannot be used: {text}")]
    BadSource { text: String, hint: Option<String> },
    /// The configuration that was read anew has mistakes.
    #[error("the configuration has {} mistake(s), and the one before stays in force", mistakes.len())]
    BadConfig { mistakes: Vec<String> },
    /// No such build.
    #[error("there is no build {0}")]
    BuildUnknown(BuildId),
    /// No such artifact.
    #[error("build {id} has no artifact `{path}`")]
    ArtifactUnknown { id: BuildId, path: String },
    /// No such cache.
    #[error("there is no cache `{0}`")]
    CacheUnknown(String),
    /// The image has no such generation.
    #[error("there is no image `{vm}`")]
    ImageUnknown { vm: String },
    /// No generation of the image that was good before is there.
    #[error(
        "there is nothing to roll `{0}` back to: no earlier generation of it that came up is there any more"
    )]
    NothingBefore(String),
    /// No tree is kept under the name.
    #[error("the tree {0} is not here")]
    TreeUnknown(TreeId),
    /// Too late to cancel.
    #[error("build {0} is over: its result stands, and it cannot be cancelled any more")]
    BuildOver(BuildId),
    /// Not the caller's fault.
    #[error("the daemon failed: {0}")]
    Internal(String),
}

impl Refused {
    /// The word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::QueueFull { .. } => "queue_full",
            Self::Stopping => "stopping",
            Self::Draining => "draining",
            Self::DiskLow { .. } | Self::DiskTooSmall { .. } => "disk_low",
            Self::PoolUnknown { .. } => "pool_unknown",
            Self::BadSpec { .. } => "bad_spec",
            Self::BadSigning { .. } => "bad_signing",
            Self::BadSource { .. } => "bad_source",
            Self::BadConfig { .. } => "bad_config",
            Self::TreeUnknown(_) => "tree_unknown",
            Self::BuildUnknown(_) => "build_unknown",
            Self::ArtifactUnknown { .. } => "artifact_unknown",
            Self::CacheUnknown(_) => "cache_unknown",
            Self::ImageUnknown { .. } => "image_unknown",
            Self::NothingBefore(_) => "nothing_before",
            Self::BuildOver(_) => "build_over",
            Self::Internal(_) => "internal",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::QueueFull { .. } => Some("wait and try again, or raise `host.builds_max`".into()),
            Self::Stopping => Some("try again when it is back".into()),
            Self::Draining => Some("`preheat resume` lets it go on".into()),
            Self::DiskLow { .. } | Self::DiskTooSmall { .. } => {
                Some("free disk space, or lower `host.disk_free_min`".into())
            }
            Self::PoolUnknown { .. } => Some("name one with --pool or in .preheat.toml".into()),
            Self::BadSpec { hint, .. } | Self::BadSigning { hint, .. } | Self::BadSource { hint, .. } => {
                hint.clone()
            }
            Self::BadConfig { .. } => Some(
                "correct it and reload; `preheat config check` on the daemon's host checks it first".into(),
            ),
            Self::BuildUnknown(_) => Some("`preheat builds` lists them".into()),
            Self::ArtifactUnknown { id, .. } => Some(format!("`preheat artifacts {id}` lists them")),
            Self::CacheUnknown(_) => Some("`preheat cache list` lists them".into()),
            Self::ImageUnknown { .. } | Self::NothingBefore(_) => {
                Some("`preheat image list` lists what there is; vm-setup/mac-image makes another".into())
            }
            Self::BuildOver(_) => None,
            Self::TreeUnknown(_) => Some("send it: the form's part `source`, behind `tree`".into()),
            Self::Internal(_) => Some("the daemon's log says more".into()),
        }
    }

    /// As it goes over HTTP.
    pub fn view(&self) -> ErrorView {
        let mistakes = match self {
            Self::BadConfig { mistakes } => mistakes.clone(),
            Self::QueueFull { .. }
            | Self::Stopping
            | Self::Draining
            | Self::DiskLow { .. }
            | Self::DiskTooSmall { .. } => Vec::new(),
            Self::PoolUnknown { .. }
            | Self::BadSpec { .. }
            | Self::BadSigning { .. }
            | Self::BadSource { .. } => Vec::new(),
            Self::BuildUnknown(_) | Self::ArtifactUnknown { .. } | Self::BuildOver(_) => Vec::new(),
            Self::ImageUnknown { .. } | Self::NothingBefore(_) => Vec::new(),
            Self::CacheUnknown(_) | Self::TreeUnknown(_) | Self::Internal(_) => Vec::new(),
        };
        ErrorView { code: self.code().into(), message: self.to_string(), hint: self.hint(), mistakes }
    }
}

/// The daemon, as HTTP sees it.
pub trait Service: Send + Sync + 'static {
    /// Asks for a place before a body of so many bytes is read, as far as it says how many.
    fn admit(&self, bytes: Option<u64>) -> Result<Ticket, Refused>;

    /// Where a body is to be received: a folder on the same file system as the journal.
    fn spool(&self) -> PathBuf;

    /// Takes a build whose source lies in `source` (any supported archive format; the file is taken over). When this
    /// returns `Ok`, the build is on disk.
    fn accept<'a>(
        &'a self,
        ticket: Ticket,
        spec: SubmitSpec,
        source: tempfile::TempPath,
    ) -> BoxFuture<'a, Result<BuildView, Refused>>;

    /// As [`accept`](Self::accept), of a source whose tree has a name: with the plain tar of it, which may be kept, or
    /// without, in the hope that it was. A daemon that keeps nothing need not do anything for it.
    fn accept_tree<'a>(
        &'a self,
        ticket: Ticket,
        spec: SubmitSpec,
        tree: TreeId,
        source: Option<tempfile::TempPath>,
    ) -> BoxFuture<'a, Result<BuildView, Refused>> {
        match source {
            Some(source) => self.accept(ticket, spec, source),
            None => Box::pin(std::future::ready(Err(Refused::TreeUnknown(tree)))),
        }
    }

    /// Builds, newest first.
    fn builds(&self, limit: u32) -> BoxFuture<'_, Result<Vec<BuildView>, Refused>>;

    /// One build.
    fn build(&self, id: BuildId) -> BoxFuture<'_, Result<BuildView, Refused>>;

    /// Where a build's time went, so far.
    fn trace(&self, id: BuildId) -> BoxFuture<'_, Result<ChromeTrace, Refused>>;

    /// Cancels a build; the answer comes when the request is on disk, not when the build has ended.
    fn cancel(&self, id: BuildId) -> BoxFuture<'_, Result<(), Refused>>;

    /// The log from line `after` + 1 on. With `follow` the stream goes on until the build is over; a line comes once.
    fn log(
        &self,
        id: BuildId,
        after: u64,
        follow: bool,
    ) -> BoxFuture<'_, Result<BoxStream<'static, LogLine>, Refused>>;

    /// An artifact, and its file on this host.
    fn artifact<'a>(
        &'a self,
        id: BuildId,
        path: &'a str,
    ) -> BoxFuture<'a, Result<(ArtifactView, PathBuf), Refused>>;

    /// Every cache, the last used first.
    fn caches(&self) -> Vec<CacheEntryView>;

    /// Removes a cache.
    fn remove_cache<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<CacheEntryView, Refused>>;

    /// Every image, with its generations.
    fn images(&self) -> BoxFuture<'_, Result<Vec<ImageView>, Refused>>;

    /// The image means this generation from now on; `None` is the VM of its name. Pools of it are rolled over behind the
    /// answer's back.
    fn use_image<'a>(
        &'a self,
        name: &'a str,
        generation: Option<u32>,
    ) -> BoxFuture<'a, Result<ImageView, Refused>>;

    /// The image means again what it meant before, as far as that came up and is still there.
    fn roll_image_back<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ImageView, Refused>>;

    /// Every pool.
    fn pools(&self) -> Vec<PoolView>;

    /// Every VM of ours.
    fn vms(&self) -> Vec<VmView>;

    /// What the daemon does as a whole.
    fn status(&self) -> StatusView;

    /// Takes no more builds, begins none, and takes away VMs that no build has; a restart does not end that. The answer
    /// comes when that has begun. Asked again, the answer is the same.
    fn drain(&self) -> BoxFuture<'_, Result<StatusView, Refused>>;

    /// Goes on after [`drain`](Self::drain).
    fn resume(&self) -> BoxFuture<'_, Result<StatusView, Refused>>;

    /// Reads the configuration anew and puts it into force, as far as that goes without a restart. With a mistake in it,
    /// nothing changes.
    fn reload(&self) -> BoxFuture<'_, Result<ReloadView, Refused>>;

    /// Whether builds are served: the daemon is neither drained nor stopping. An `Err` says why not.
    fn ready(&self) -> Result<(), String>;

    /// The metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}
