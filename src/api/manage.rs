//! What an operator asks of the daemon as a whole: how it is, to drain, to go on, to read its
//! configuration anew.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::error::Reply;
use super::routes::App;

/// `GET /api/v1/status`
pub async fn status(State(app): State<App>) -> Response {
    Json(app.service.status()).into_response()
}

/// `POST /api/v1/drain`: begun, not done. Asked again while it goes on, the answer is the same.
pub async fn drain(State(app): State<App>) -> Reply {
    Ok((StatusCode::ACCEPTED, Json(app.service.drain().await?)).into_response())
}

/// `POST /api/v1/resume`
pub async fn resume(State(app): State<App>) -> Reply {
    Ok(Json(app.service.resume().await?).into_response())
}

/// `POST /api/v1/config/reload`
pub async fn reload(State(app): State<App>) -> Reply {
    Ok(Json(app.service.reload().await?).into_response())
}
