//! The dialect with one key for all: a job is offered until its result is there.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{CallIn, Form, KEY, Refusal, Served, Shared, answer, file, log_lines, refuse};

pub(super) async fn serve(shared: &Arc<Shared>, call: CallIn) -> Served {
    match call.header("X-API-Key") {
        "" => return Err(refuse(StatusCode::UNAUTHORIZED, "Missing X-API-Key header")),
        KEY => {}
        _ => return Err(refuse(StatusCode::FORBIDDEN, "Invalid API key")),
    }
    let (method, path) = (call.method.clone(), call.path.clone());
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match (&method, path.as_slice()) {
        (&Method::POST, ["api", "workers", "register"]) => register(shared, &call.json().await?),
        (&Method::GET, ["api", "workers", "poll"]) => poll(shared, call.parameter("worker_id")),
        (&Method::POST, ["api", "workers", "upload"]) => upload(shared, call.form().await?),
        (&Method::GET, ["api", "builds", id, "status"]) => status(shared, id),
        (&Method::GET, ["api", "builds", id, what @ ("source" | "certs" | "certs-secure")]) => {
            download(shared, &call, id, what)
        }
        (&Method::POST, ["api", "builds", id, "heartbeat"]) => {
            let worker = call.parameter("worker_id");
            call.json().await?;
            heartbeat(shared, id, worker)
        }
        (&Method::POST, ["api", "builds", id, what @ ("telemetry" | "logs")]) => {
            owned(shared, &call, id)?;
            told(shared, id, what, call.json().await?)
        }
        _ => Err(refuse(StatusCode::NOT_FOUND, "Not found")),
    }
}

fn register(shared: &Shared, body: &Value) -> Served {
    if body.get("name").is_none() || body.get("capabilities").is_none() {
        return Err(refuse(StatusCode::BAD_REQUEST, "Name and capabilities required"));
    }
    let mut book = shared.book();
    let id = book.name("worker");
    book.workers.insert(id.clone(), String::new());
    Ok(answer(StatusCode::OK, json!({"id": id, "status": "registered", "baseImageId": "image:0.1"})))
}

fn offer(id: &str, certificates: bool) -> Value {
    let certs = certificates.then(|| format!("/api/builds/{id}/certs"));
    json!({"job": {"id": id, "platform": "ios", "source_url": format!("/api/builds/{id}/source"),
        "certs_url": certs, "baseImageId": "image:0.1"}})
}

fn poll(shared: &Shared, worker: Option<String>) -> Served {
    let worker = worker.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "worker_id required"))?;
    let mut book = shared.book();
    if !book.workers.contains_key(&worker) {
        return Err(refuse(StatusCode::NOT_FOUND, "Worker not found"));
    }
    // Again and again, while the worker is believed to have it.
    let has = book.active.get(&worker).or_else(|| book.haunted.get(&worker)).cloned();
    if let Some(id) = has {
        let certificates = book.builds[&id].certificates.is_some();
        return Ok(answer(StatusCode::OK, offer(&id, certificates)));
    }
    let Some(id) = book.next() else { return Ok(answer(StatusCode::OK, json!({"job": null}))) };
    if book.builds[&id].status != "pending" {
        book.haunted.insert(worker, id);
        return Ok(answer(StatusCode::OK, json!({"job": null})));
    }
    let build = book.of(&id);
    (build.status, build.worker) = ("assigned".into(), Some(worker.clone()));
    let certificates = build.certificates.is_some();
    book.active.insert(worker, id.clone());
    Ok(answer(StatusCode::OK, offer(&id, certificates)))
}

fn status(shared: &Shared, id: &str) -> Served {
    let book = shared.book();
    let build = book.builds.get(id).ok_or_else(|| refuse(StatusCode::NOT_FOUND, "Build not found"))?;
    let body = json!({"id": id, "status": build.status, "platform": "ios", "worker_id": build.worker,
        "submitted_at": 1, "started_at": 2, "completed_at": null, "error_message": build.error});
    Ok(answer(StatusCode::OK, body))
}

/// Whether the caller has the build.
fn owned(shared: &Shared, call: &CallIn, id: &str) -> Result<(), Refusal> {
    let worker = call.header("X-Worker-Id");
    if worker.is_empty() {
        return Err(refuse(StatusCode::UNAUTHORIZED, "Missing X-Worker-Id header"));
    }
    let book = shared.book();
    let build = book.builds.get(id).ok_or_else(|| refuse(StatusCode::NOT_FOUND, "Build not found"))?;
    if build.worker.as_deref() != Some(worker) {
        return Err(refuse(StatusCode::FORBIDDEN, "Worker not authorized for this build"));
    }
    Ok(())
}

fn download(shared: &Shared, call: &CallIn, id: &str, what: &str) -> Served {
    owned(shared, call, id)?;
    let mut book = shared.book();
    let fails = book.bugs.certificates_fail;
    let build = book.of(id);
    if what == "source" {
        build.fetched += 1;
        return Ok(file(build.source.clone()));
    }
    let bundle =
        build.certificates.clone().ok_or_else(|| refuse(StatusCode::NOT_FOUND, "Certs not found"))?;
    if what == "certs" {
        return Ok(file(bundle));
    }
    if call.header("X-Build-Id") != id {
        let error = "X-Build-Id header does not match build ID in URL";
        return Err(refuse(StatusCode::FORBIDDEN, error));
    }
    if fails {
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "Failed to read certs"));
    }
    let body = json!({"p12": STANDARD.encode(&bundle), "p12Password": "of-the-p12", "keychainPassword": "AAAA",
        "provisioningProfiles": [STANDARD.encode("profile")]});
    Ok(answer(StatusCode::OK, body))
}

fn heartbeat(shared: &Shared, id: &str, worker: Option<String>) -> Served {
    let mut book = shared.book();
    let worker = worker.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "worker_id required"))?;
    let fails = book.bugs.heartbeats_fail;
    let build = book.builds.get_mut(id).ok_or_else(|| refuse(StatusCode::NOT_FOUND, "Build not found"))?;
    if build.worker.as_ref() != Some(&worker) {
        return Err(refuse(StatusCode::FORBIDDEN, "Build not assigned to this worker"));
    }
    build.heartbeats += 1;
    if fails {
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "Heartbeat failed"));
    }
    Ok(answer(StatusCode::OK, json!({"status": "ok", "timestamp": 1})))
}

fn told(shared: &Shared, id: &str, what: &str, body: Value) -> Served {
    let mut book = shared.book();
    if what == "logs" {
        let lines = log_lines(&body);
        let count = lines.len();
        if book.log(id, lines) {
            return Ok(answer(StatusCode::OK, json!({"success": true, "count": count})));
        }
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "Failed to add logs"));
    }
    let fails = book.bugs.telemetry_fails;
    book.of(id).telemetry.push(body);
    if fails {
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "Telemetry failed"));
    }
    Ok(answer(StatusCode::OK, json!({"status": "ok"})))
}

fn upload(shared: &Shared, form: Form) -> Served {
    let mut book = shared.book();
    if form.build.is_empty() || form.worker.is_empty() {
        return Err(refuse(StatusCode::BAD_REQUEST, "build_id and worker_id required"));
    }
    if !book.builds.contains_key(&form.build) {
        return Err(refuse(StatusCode::NOT_FOUND, "Build not found"));
    }
    if !book.workers.contains_key(&form.worker) {
        return Err(refuse(StatusCode::NOT_FOUND, "Worker not found"));
    }
    if book.fails_before() {
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "Try again"));
    }
    // Whoever tells it, and however the build stands.
    let result = form.file.filter(|(name, _)| form.success && name == "result").map(|(_, bytes)| bytes);
    let status = if result.is_some() { "success" } else { "failed" };
    book.result(&form.build, result, form.error);
    if book.fails_after() {
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "Upload failed"));
    }
    Ok(answer(StatusCode::OK, json!({"status": status})))
}
