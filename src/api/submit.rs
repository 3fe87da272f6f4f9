//! `POST /api/v1/builds`: a description and a source, as a form of two parts or as a plain body with the description in
//! the query. The source goes to the disk as it comes; a build that was answered with 201 is on the disk.

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, Multipart};
use axum::extract::{FromRequest, Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use futures::StreamExt;
use secrecy::zeroize::Zeroizing;

use super::error::{ApiError, Reply};
use super::intake::{Incoming, Meter, metered, source_too_large};
use super::options::SPEC_BYTES_MAX;
use super::query;
use super::routes::App;
use super::wire::SubmitSpec;
use crate::clock::Deadline;
use crate::config::ByteSize;
use crate::ids::TreeId;

/// Beside the two parts themselves: boundaries, their heads, and what was read ahead with them.
const FORM_BYTES_SLACK: u64 = 1 << 20;

/// A tree's name, and a line end of whoever typed it.
const TREE_BYTES_MAX: usize = 66;

/// Plain bodies. The last is what `curl --data-binary` says when it is not told; the format is read from the bytes.
const PLAIN: [&str; 10] = [
    "application/x-tar",
    "application/x-gtar",
    "application/gzip",
    "application/x-gzip",
    "application/zip",
    "application/x-zip-compressed",
    "application/zstd",
    "application/x-zstd",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
];

/// A source as it came.
enum Sent {
    Archive(tempfile::TempPath),
    /// By name, with the tar of it or without.
    Tree(TreeId, Option<tempfile::TempPath>),
}

enum Kind {
    Form,
    Plain,
}

/// The handler.
pub async fn submit(State(app): State<App>, request: Request) -> Reply {
    let kind = kind(request.headers())?;
    let described = match kind {
        Kind::Plain => query::spec(request.uri())?,
        Kind::Form if request.uri().query().is_some() => {
            return Err(ApiError::query(
                "a form carries its description in the part `spec`, not in the query",
            ));
        }
        Kind::Form => SubmitSpec::default(),
    };
    let bytes = declared_length(request.headers(), &app)?;
    let turn = app.submission()?;
    let ticket = app.service.admit(bytes)?;
    let (spec, sent) = match kind {
        Kind::Plain => (described, Sent::Archive(plain(&app, request).await?)),
        Kind::Form => form(&app, request).await?,
    };
    let service = app.service.clone();
    // In a task of its own: a client that leaves now must not leave half of a build behind.
    let accepted = tokio::spawn(async move {
        match sent {
            Sent::Archive(source) => service.accept(ticket, spec, source).await,
            Sent::Tree(tree, source) => service.accept_tree(ticket, spec, tree, source).await,
        }
    });
    let view = accepted.await.map_err(|e| ApiError::internal(format!("taking the build failed: {e}")))??;
    drop(turn);
    let location = format!("/api/v1/builds/{}", view.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], Json(view)).into_response())
}

fn kind(headers: &HeaderMap) -> Result<Kind, ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Kind::Plain) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "multipart/form-data" {
        Ok(Kind::Form)
    } else if PLAIN.contains(&essence.as_str()) {
        Ok(Kind::Plain)
    } else {
        let message = format!("a source cannot be `{essence}`");
        Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type_unknown", message).hint(
            "multipart/form-data with the parts `spec` and `source`, or an archive as application/x-tar, \
             application/gzip, application/zstd or application/zip",
        ))
    }
}

/// What is too large by its own word need not be read.
fn declared_length(headers: &HeaderMap, app: &App) -> Result<Option<u64>, ApiError> {
    let declared = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let max = (app.options.source_max)().0.saturating_add(SPEC_BYTES_MAX as u64 + FORM_BYTES_SLACK);
    if declared.is_some_and(|bytes| bytes > max) {
        Err(source_too_large((app.options.source_max)()))
    } else {
        Ok(declared)
    }
}

async fn plain(app: &App, request: Request) -> Result<tempfile::TempPath, ApiError> {
    let limits = app.options.limits;
    // A little more than allowed is let through, so that it is `Incoming` that says which bound was met.
    let meter = Meter::new((app.options.source_max)().0.saturating_add(FORM_BYTES_SLACK));
    let deadline = Deadline::after(limits.body_whole);
    let mut body = metered(request.into_body(), meter.clone(), limits.body_idle, deadline);
    let mut incoming = Incoming::create(&app.service.spool(), (app.options.source_max)())?;
    while let Some(piece) = body.next().await {
        incoming.write(&piece.map_err(|e| meter.error("source", e.to_string()))?).await?;
    }
    incoming.finish().await
}

async fn form(app: &App, request: Request) -> Result<(SubmitSpec, Sent), ApiError> {
    let limits = app.options.limits;
    let meter = Meter::new(SPEC_BYTES_MAX as u64 + FORM_BYTES_SLACK);
    let (parts, body) = request.into_parts();
    let body = metered(body, meter.clone(), limits.body_idle, Deadline::after(limits.body_whole));
    let request = Request::from_parts(parts, Body::from_stream(body));
    let mut form =
        Multipart::from_request(request, &()).await.map_err(|e| ApiError::malformed(e.body_text()))?;
    let broken = |e: axum::extract::multipart::MultipartError| meter.error("form", e.body_text());

    let wrong = || {
        ApiError::malformed(
            "the form must have the part `spec` and then `source`, or `tree`, or `tree` and `source`",
        )
        .hint("curl -F 'spec={\"pool\":\"linux\"};type=application/json' -F source=@app.tar.gz URL")
    };
    let first = form.next_field().await.map_err(broken)?.filter(|f| f.name() == Some("spec"));
    let spec = read_spec(first.ok_or_else(wrong)?, &meter).await?;
    let mut next = form.next_field().await.map_err(broken)?;
    let mut tree = None;
    if let Some(field) = next.take_if(|f| f.name() == Some("tree")) {
        tree = Some(read_tree(field, &meter).await?);
        next = form.next_field().await.map_err(broken)?;
    }
    let mut field = match (tree, next) {
        (_, Some(field)) if field.name() == Some("source") => field,
        (Some(tree), None) => return Ok((spec, Sent::Tree(tree, None))),
        (_, Some(_) | None) => return Err(wrong()),
    };
    meter.grant((app.options.source_max)().0);
    let mut incoming = Incoming::create(&app.service.spool(), (app.options.source_max)())?;
    while let Some(piece) = field.chunk().await.map_err(broken)? {
        incoming.write(&piece).await?;
    }
    drop(field);
    if form.next_field().await.map_err(broken)?.is_some() {
        return Err(wrong());
    }
    let source = incoming.finish().await?;
    let sent = match tree {
        Some(tree) => Sent::Tree(tree, Some(source)),
        None => Sent::Archive(source),
    };
    Ok((spec, sent))
}

async fn read_tree(mut field: Field<'_>, meter: &Meter) -> Result<TreeId, ApiError> {
    let mut text = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(|e| meter.error("form", e.body_text()))? {
        text.extend_from_slice(&piece);
        if text.len() > TREE_BYTES_MAX {
            break;
        }
    }
    let read = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
    read.ok_or_else(|| ApiError::malformed(format!("the part `tree` is no name: {}", crate::ids::BadTreeId)))
}

async fn read_spec(mut field: Field<'_>, meter: &Meter) -> Result<SubmitSpec, ApiError> {
    // Of its greatest size at once: one that grew would leave copies of the secrets behind.
    let mut text = Zeroizing::new(Vec::with_capacity(SPEC_BYTES_MAX));
    while let Some(piece) = field.chunk().await.map_err(|e| meter.error("form", e.body_text()))? {
        if text.len() + piece.len() > SPEC_BYTES_MAX {
            return Err(ApiError::too_large("part `spec`", ByteSize(SPEC_BYTES_MAX as u64)));
        }
        text.extend_from_slice(&piece);
    }
    serde_json::from_slice(&text).map_err(|e| {
        ApiError::malformed(format!("the part `spec` is not a build's description: {e}"))
            .hint("known are project, pool, steps, env, secrets, signing, artifacts, timeout, retries")
    })
}
