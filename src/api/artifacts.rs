//! `GET /api/v1/builds/{id}/artifacts` and the files below it. Only what the build's record names is served: a path is
//! looked up there, never joined to a folder here.

use std::os::unix::fs::PermissionsExt;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{
    CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH,
};
use axum::response::{IntoResponse, Response};
use tokio_util::io::ReaderStream;

use super::error::{ApiError, Reply};
use super::lists::{IdPath, id_of};
use super::query::build_id;
use super::routes::App;
use super::wire::{ArtifactList, ArtifactView};

/// `1` for a file that may be executed: what a tar would carry and HTTP does not.
pub const EXECUTABLE: HeaderName = HeaderName::from_static("x-preheat-executable");
/// What is read of a file at a time.
const READ_BYTES: usize = 64 << 10;

/// The list.
pub async fn list(State(app): State<App>, path: IdPath) -> Reply {
    let build = app.service.build(id_of(path)?).await?;
    Ok(Json(ArtifactList { artifacts: build.artifacts }).into_response())
}

/// One file.
pub async fn download(
    State(app): State<App>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
) -> Reply {
    let Path((id, path)) = path.map_err(|e| ApiError::malformed(e.body_text()))?;
    let id = build_id(&id)?;
    let (artifact, on_disk) = app.service.artifact(id, &path).await?;
    let etag = format!("\"{}\"", artifact.sha256);
    if headers.get(IF_NONE_MATCH).is_some_and(|known| matches_etag(known, &etag)) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    let gone = |what: String| ApiError::internal(format!("the artifact `{path}` of build {id} {what}"));
    let file = tokio::fs::File::open(&on_disk).await.map_err(|e| gone(format!("cannot be read: {e}")))?;
    let meta = file.metadata().await.map_err(|e| gone(format!("cannot be read: {e}")))?;
    if !meta.is_file() || meta.len() != artifact.bytes {
        return Err(gone(format!("has {} bytes on the disk and should have {}", meta.len(), artifact.bytes)));
    }
    let executable = meta.permissions().mode() & 0o111 != 0;
    Ok(answer(&artifact, etag, executable, Body::from_stream(ReaderStream::with_capacity(file, READ_BYTES))))
}

fn matches_etag(known: &HeaderValue, etag: &str) -> bool {
    known.to_str().is_ok_and(|known| known.split(',').any(|k| k.trim() == etag || k.trim() == "*"))
}

/// As an attachment: a page out of a build must not run as one of ours.
fn answer(artifact: &ArtifactView, etag: String, executable: bool, body: Body) -> Response {
    let kind = mime_guess::from_path(&artifact.path).first_or_octet_stream();
    let headers = [
        (CONTENT_TYPE, kind.to_string()),
        (CONTENT_LENGTH, artifact.bytes.to_string()),
        (ETAG, etag),
        (CONTENT_DISPOSITION, "attachment".to_owned()),
        (EXECUTABLE, u8::from(executable).to_string()),
    ];
    (headers, body).into_response()
}
