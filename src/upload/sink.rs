//! Where a result is delivered to. Delivering twice is harmless, so a sink that failed half-way is simply tried again, and so
//! is one of which a crash forgot that it has the result: a folder that is there whole is left as it is, and a PUT puts the same
//! bytes at the same URL (`<url>/<build>/<file>`; build numbers are never used twice). The outbox has one row a build and sink.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH};
use tokio_util::io::ReaderStream;

use crate::api::wire::BuildView;
use crate::config::{Upload, UploadSink};

/// For one file over HTTP. A gigabyte at 5 MB/s.
const FILE_LIMIT: Duration = Duration::from_secs(300);
/// To connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Why a result was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The file system said no.
    #[error("`{path}`: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The server, or the way to it.
    #[error("{0}")]
    Http(String),
}

/// Who brings a result to its sink.
pub trait Courier: Send + Sync + 'static {
    /// Delivers one build: its artifacts from `artifacts`, and `result.json`. With an error it may be tried again.
    fn deliver<'a>(
        &'a self,
        upload: &'a Upload,
        build: &'a BuildView,
        artifacts: &'a Path,
    ) -> BoxFuture<'a, Result<(), SinkError>>;
}

/// The sinks that a configuration can name.
#[derive(Debug, Clone, Copy)]
pub struct Sinks;

impl Courier for Sinks {
    fn deliver<'a>(
        &'a self,
        upload: &'a Upload,
        build: &'a BuildView,
        artifacts: &'a Path,
    ) -> BoxFuture<'a, Result<(), SinkError>> {
        match &upload.sink {
            UploadSink::Folder { path } => to_folder(path, build, artifacts).boxed(),
            UploadSink::Http { url, token_file } => {
                to_http(url, token_file.as_deref(), build, artifacts).boxed()
            }
        }
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> SinkError + '_ {
    move |source| SinkError::Io { path: path.to_owned(), source }
}

fn result_json(build: &BuildView) -> Vec<u8> {
    serde_json::to_vec_pretty(build).unwrap_or_default()
}

/// Beside its final place first, so that `<path>/<build>/` appears whole or not at all.
async fn to_folder(path: &Path, build: &BuildView, artifacts: &Path) -> Result<(), SinkError> {
    let (partial, whole) = (path.join(format!(".{}.partial", build.id)), path.join(build.id.to_string()));
    if tokio::fs::try_exists(&whole).await.unwrap_or(false) {
        return Ok(());
    }
    tokio::fs::remove_dir_all(&partial).await.ok();
    tokio::fs::create_dir_all(&partial).await.map_err(io(&partial))?;
    for artifact in &build.artifacts {
        let to = partial.join(&artifact.path);
        let parent = to.parent().unwrap_or(&partial);
        tokio::fs::create_dir_all(parent).await.map_err(io(parent))?;
        tokio::fs::copy(artifacts.join(&artifact.path), &to).await.map_err(io(&to))?;
    }
    let json = partial.join("result.json");
    tokio::fs::write(&json, result_json(build)).await.map_err(io(&json))?;
    tokio::fs::rename(&partial, &whole).await.map_err(io(&whole))
}

async fn to_http(
    url: &str,
    token_file: Option<&Path>,
    build: &BuildView,
    artifacts: &Path,
) -> Result<(), SinkError> {
    let client = reqwest::Client::builder().connect_timeout(CONNECT_LIMIT).timeout(FILE_LIMIT).build();
    let client = client.map_err(|e| SinkError::Http(e.to_string()))?;
    let token = match token_file {
        Some(path) => Some(tokio::fs::read_to_string(path).await.map_err(io(path))?.trim().to_owned()),
        None => None,
    };
    let base = format!("{}/{}", url.trim_end_matches('/'), build.id);
    let put = |name: &str| {
        let request = client.put(format!("{base}/{}", encode_path(name)));
        match &token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    };
    for artifact in &build.artifacts {
        let path = artifacts.join(&artifact.path);
        let file = tokio::fs::File::open(&path).await.map_err(io(&path))?;
        let body = reqwest::Body::wrap_stream(ReaderStream::with_capacity(file, 256 * 1024));
        send(put(&artifact.path).header(CONTENT_LENGTH, artifact.bytes).body(body)).await?;
    }
    send(put("result.json").header("content-type", "application/json").body(result_json(build))).await
}

async fn send(request: reqwest::RequestBuilder) -> Result<(), SinkError> {
    let answer = request.send().await.map_err(|e| SinkError::Http(whole_text(&e)))?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(SinkError::Http(format!("{} answered {}", answer.url(), answer.status())))
}

fn whole_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

/// Percent-encodes all but what a path may hold plainly.
fn encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(byte as char)
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
