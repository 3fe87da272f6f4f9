//! The short answers: builds, their traces, caches, pools, VMs, health, metrics.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, Reply};
use super::query;
use super::routes::App;
use super::wire::{BuildList, CacheList, PoolList, VmList};

/// A path's one part, with our own shape for what is wrong with it.
pub type IdPath = Result<Path<String>, PathRejection>;

/// The build that a path names.
///
/// # Errors
/// When it names none.
pub fn id_of(path: IdPath) -> Result<crate::ids::BuildId, ApiError> {
    let Path(text) = path.map_err(|e| ApiError::malformed(e.body_text()))?;
    query::build_id(&text)
}

/// `GET /api/v1/builds`
pub async fn builds(State(app): State<App>, uri: Uri) -> Reply {
    let builds = app.service.builds(query::limit(&uri)?).await?;
    Ok(Json(BuildList { builds }).into_response())
}

/// `GET /api/v1/builds/{id}`
pub async fn build(State(app): State<App>, path: IdPath) -> Reply {
    Ok(Json(app.service.build(id_of(path)?).await?).into_response())
}

/// `GET /api/v1/builds/{id}/trace.json`
pub async fn trace(State(app): State<App>, path: IdPath) -> Reply {
    Ok(Json(app.service.trace(id_of(path)?).await?).into_response())
}

/// `DELETE /api/v1/builds/{id}`: taken, not done. Asked again while it goes on, the answer is the same.
pub async fn cancel(State(app): State<App>, path: IdPath) -> Reply {
    let id = id_of(path)?;
    app.service.cancel(id).await?;
    Ok((StatusCode::ACCEPTED, Json(app.service.build(id).await?)).into_response())
}

/// `GET /api/v1/caches`
pub async fn caches(State(app): State<App>) -> Response {
    Json(CacheList { caches: app.service.caches() }).into_response()
}

/// `DELETE /api/v1/caches/{id}`: what was removed.
pub async fn remove_cache(State(app): State<App>, path: IdPath) -> Reply {
    let Path(id) = path.map_err(|e| ApiError::malformed(e.body_text()))?;
    Ok(Json(app.service.remove_cache(&id).await?).into_response())
}

/// `GET /api/v1/pools`
pub async fn pools(State(app): State<App>) -> Response {
    Json(PoolList { pools: app.service.pools() }).into_response()
}

/// `GET /api/v1/vms`
pub async fn vms(State(app): State<App>) -> Response {
    Json(VmList { vms: app.service.vms() }).into_response()
}

/// `GET /healthz`: the process serves.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: builds are served.
pub async fn readyz(State(app): State<App>) -> Reply {
    match app.service.ready() {
        Ok(()) => Ok("ready\n".into_response()),
        Err(why) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", why)),
    }
}

/// `GET /metrics`
pub async fn metrics(State(app): State<App>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.service.metrics()).into_response()
}
