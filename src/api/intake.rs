//! A body on its way to the disk, under bounds on its size and on how slow it may be.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout_at;

use super::error::ApiError;
use crate::clock::Deadline;
use crate::config::ByteSize;

/// Why a body ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// More came than was granted.
    TooLarge,
    /// Nothing came for too long, or all of it took too long.
    Slow,
    /// The client is gone.
    Broken,
}

/// What may still be read of one body. A parser between it and us buffers what it cannot place yet (a preamble, a
/// part's head), so the bound lies before the parser; and it hides our errors, so the reason is kept here.
#[derive(Debug)]
pub struct Meter {
    left: AtomicU64,
    cut: OnceLock<Cut>,
}

impl Meter {
    /// With `granted` bytes.
    pub fn new(granted: u64) -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(granted), cut: OnceLock::new() })
    }

    /// Grants `more` bytes.
    pub fn grant(&self, more: u64) {
        self.left.fetch_add(more, Ordering::Relaxed);
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = |left: u64| left.checked_sub(bytes as u64);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// What to answer when reading has failed; `otherwise` is the parser's own reason.
    pub fn error(&self, what: &str, otherwise: impl Into<String>) -> ApiError {
        match self.cut.get() {
            Some(Cut::TooLarge) => ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the {what} is too large"),
            ),
            Some(Cut::Slow) => ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_slow",
                format!("the {what} came too slowly and was given up"),
            ),
            Some(Cut::Broken) => ApiError::malformed(format!("the {what} broke off")),
            None => ApiError::malformed(otherwise),
        }
    }
}

/// `body` under `meter`: a piece at least every `idle`, and all of it by `deadline`.
pub fn metered(
    body: Body,
    meter: Arc<Meter>,
    idle: Duration,
    deadline: Deadline,
) -> BoxStream<'static, io::Result<Bytes>> {
    let read = move |body: Option<axum::body::BodyDataStream>| {
        let meter = Arc::clone(&meter);
        async move {
            let mut body = body?;
            let limit = deadline.min(Deadline::after(idle));
            let cut = match timeout_at(limit.instant(), body.next()).await {
                Ok(None) => return None,
                Ok(Some(Ok(piece))) if meter.take(piece.len()) => return Some((Ok(piece), Some(body))),
                Ok(Some(Ok(_))) => Cut::TooLarge,
                Ok(Some(Err(_))) => Cut::Broken,
                Err(_) => Cut::Slow,
            };
            meter.cut.set(cut).ok();
            Some((Err(io::Error::other("the body was cut")), None))
        }
    };
    stream::unfold(Some(body.into_data_stream()), read).boxed()
}

/// A source on its way to the disk. Dropped, nothing of it is left.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    path: tempfile::TempPath,
    bytes: u64,
    max: ByteSize,
}

impl Incoming {
    /// A fresh file in `spool`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(spool: &Path, max: ByteSize) -> Result<Self, ApiError> {
        let made = tempfile::Builder::new().prefix("incoming-").tempfile_in(spool);
        let (file, path) = made.map_err(|e| disk(spool, &e))?.into_parts();
        Ok(Self { file: File::from_std(file), path, bytes: 0, max })
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// When the source gets larger than the bound, or the disk does not take it.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        self.bytes += piece.len() as u64;
        if self.bytes > self.max.0 {
            return Err(source_too_large(self.max));
        }
        self.file.write_all(piece).await.map_err(|e| disk(&self.path, &e))
    }

    /// All of it is in its file. It need not outlive a crash: what does is the plain tar that is made of it, and that is
    /// synced before the build is accepted (`archive::normalise`).
    ///
    /// # Errors
    /// When nothing came, or the disk does not take it.
    pub async fn finish(mut self) -> Result<tempfile::TempPath, ApiError> {
        if self.bytes == 0 {
            return Err(ApiError::malformed("the source is empty")
                .hint("send an archive: tar, tar.gz, tar.zst or zip"));
        }
        self.file.flush().await.map_err(|e| disk(&self.path, &e))?;
        Ok(self.path)
    }
}

/// The source is over `api.source_max`.
pub fn source_too_large(max: ByteSize) -> ApiError {
    ApiError::too_large("source", max)
        .hint("leave what is not needed out of it (.gitignore), or raise `api.source_max` in the daemon's preheat.toml")
}

fn disk(path: &Path, error: &io::Error) -> ApiError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "disk_low", "the daemon's disk is full")
            .hint("free disk space on the daemon's host");
    }
    ApiError::internal(format!("cannot write `{}`: {error}", path.display()))
}
