//! The table of routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::options::Options;
use super::service::Service;
use super::{artifacts, guard, images, lists, log, manage, observe, submit};

/// What every handler is given.
#[derive(Clone)]
pub struct App {
    pub service: Arc<dyn Service>,
    pub options: Arc<Options>,
    /// Sources that are received.
    submissions: Arc<Semaphore>,
    /// Logs that are followed.
    followers: Arc<Semaphore>,
    /// Ends followed logs, which would go on for ever.
    pub shutdown: CancellationToken,
}

impl App {
    /// For one listener.
    pub fn new(service: Arc<dyn Service>, options: Options, shutdown: CancellationToken) -> Self {
        let submissions = Arc::new(Semaphore::new(options.limits.submissions));
        let followers = Arc::new(Semaphore::new(options.limits.followers));
        Self { service, options: Arc::new(options), submissions, followers, shutdown }
    }

    /// A turn to send a source.
    pub fn submission(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.submissions).try_acquire_owned().map_err(|_| {
            ApiError::busy("too_many_submissions", "too many sources are being received at once")
        })
    }

    /// A turn to follow a log.
    pub fn follower(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.followers)
            .try_acquire_owned()
            .map_err(|_| ApiError::busy("too_many_followers", "too many logs are being followed at once"))
    }
}

/// All of it.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/api/v1/builds", get(lists::builds).post(submit::submit))
        .route("/api/v1/builds/{id}", get(lists::build).delete(lists::cancel))
        .route("/api/v1/builds/{id}/log", get(log::log))
        .route("/api/v1/builds/{id}/trace.json", get(lists::trace))
        .route("/api/v1/builds/{id}/artifacts", get(artifacts::list))
        .route("/api/v1/builds/{id}/artifacts/{*path}", get(artifacts::download))
        .route("/api/v1/caches", get(lists::caches))
        .route("/api/v1/caches/{id}", delete(lists::remove_cache))
        .route("/api/v1/images", get(images::list))
        .route("/api/v1/images/{name}/use/{generation}", post(images::choose))
        .route("/api/v1/images/{name}/rollback", post(images::roll_back))
        .route("/api/v1/pools", get(lists::pools))
        .route("/api/v1/vms", get(lists::vms))
        .route("/api/v1/status", get(manage::status))
        .route("/api/v1/drain", post(manage::drain))
        .route("/api/v1/resume", post(manage::resume))
        .route("/api/v1/config/reload", post(manage::reload))
        .route("/healthz", get(lists::healthz))
        .route("/readyz", get(lists::readyz))
        .route("/metrics", get(lists::metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(method_refused)
        // Bodies have bounds of their own (`intake`, by the configuration); axum's would refuse a form over 2 MB.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(app.clone(), guard::guard))
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .with_state(app)
}

async fn unknown(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at `{}`", uri.path()))
        .hint("the API is below /api/v1: builds, caches, images, pools, vms, status")
}

async fn method_refused(method: Method, uri: Uri) -> ApiError {
    let message = format!("`{}` does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
