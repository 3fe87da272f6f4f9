//! Every answer that is not 2xx: one JSON shape, one place that gives each reason its status.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::service::Refused;
use super::wire::{ErrorBody, ErrorView};

/// A refusal on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub view: ErrorView,
}

/// What a handler returns.
pub type Reply = Result<Response, ApiError>;

impl ApiError {
    /// An error with a word for programs.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            view: ErrorView { code: code.into(), message: message.into(), hint: None, mistakes: Vec::new() },
        }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.view.hint = Some(hint.into());
        self
    }

    /// The request is malformed.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    /// A query parameter is wrong.
    pub fn query(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_query", message)
    }

    /// A part of the body is over its bound.
    pub fn too_large(what: &str, max: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("the {what} is larger than {max}"))
    }

    /// Too many do this at once.
    pub fn busy(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message).hint("try again in a moment")
    }

    /// Not the caller's fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::from(Refused::Internal(message.into()))
    }
}

/// The status of each refusal of the daemon.
fn status(refused: &Refused) -> StatusCode {
    match refused {
        Refused::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
        Refused::Stopping | Refused::Draining => StatusCode::SERVICE_UNAVAILABLE,
        Refused::DiskLow { .. } | Refused::DiskTooSmall { .. } => StatusCode::INSUFFICIENT_STORAGE,
        Refused::PoolUnknown { .. }
        | Refused::BadSpec { .. }
        | Refused::BadSigning { .. }
        | Refused::BadSource { .. }
        | Refused::BadConfig { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Refused::BuildUnknown(_)
        | Refused::ArtifactUnknown { .. }
        | Refused::CacheUnknown(_)
        | Refused::ImageUnknown { .. }
        | Refused::TreeUnknown(_) => StatusCode::NOT_FOUND,
        Refused::BuildOver(_) | Refused::NothingBefore(_) => StatusCode::CONFLICT,
        Refused::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        Self { status: status(&refused), view: refused.view() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        // Maintenance takes a while, a full queue or a restart need not.
        let pause = if self.view.code == Refused::Draining.code() { "60" } else { "2" };
        let again = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let unauthorized = self.status == StatusCode::UNAUTHORIZED;
        let mut response = (self.status, Json(ErrorBody { error: self.view })).into_response();
        if again {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(pause));
        }
        if unauthorized {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
