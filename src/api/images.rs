//! Images: which generations there are, and which one an image's name means.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::IntoResponse;

use super::error::{ApiError, Reply};
use super::lists::IdPath;
use super::routes::App;
use super::wire::ImageList;

/// `GET /api/v1/images`
pub async fn list(State(app): State<App>) -> Reply {
    Ok(Json(ImageList { images: app.service.images().await? }).into_response())
}

/// `POST /api/v1/images/{name}/use/{generation}`: 0 is the VM of the image's name. Asked again, the answer is the same.
pub async fn choose(State(app): State<App>, path: Result<Path<(String, String)>, PathRejection>) -> Reply {
    let Path((name, generation)) = path.map_err(|e| ApiError::malformed(e.body_text()))?;
    let wrong = |_| ApiError::malformed(format!("`{generation}` is not the number of a generation"));
    let generation: u32 = generation.parse().map_err(wrong)?;
    let chosen = app.service.use_image(&name, Some(generation).filter(|n| *n > 0));
    Ok(Json(chosen.await?).into_response())
}

/// `POST /api/v1/images/{name}/rollback`
pub async fn roll_back(State(app): State<App>, path: IdPath) -> Reply {
    let Path(name) = path.map_err(|e| ApiError::malformed(e.body_text()))?;
    Ok(Json(app.service.roll_image_back(&name).await?).into_response())
}
