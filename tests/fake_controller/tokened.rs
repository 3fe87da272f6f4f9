//! The dialect with tokens: a job is offered once, with a password for its own token.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{CallIn, Form, Refusal, Served, Shared, answer, file, log_lines, refuse};

fn unauthorized() -> Refusal {
    Refusal { status: StatusCode::UNAUTHORIZED, body: json!({"errors": {"detail": "Unauthorized"}}) }
}

pub(super) async fn serve(shared: &Arc<Shared>, call: CallIn) -> Served {
    let (method, path) = (call.method.clone(), call.path.clone());
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match (&method, path.as_slice()) {
        (&Method::POST, ["api", "workers", "register"]) => register(shared, &call.json().await?),
        (&Method::GET, ["api", "workers", "poll"]) => poll(shared, &worker(shared, &call)?),
        (&Method::POST, ["api", "workers", "unregister"]) => unregister(shared, &worker(shared, &call)?),
        (&Method::POST, ["api", "workers", "abandon"]) => {
            worker(shared, &call)?;
            abandon(shared, &call.json().await?)
        }
        (&Method::POST, ["api", "workers", "upload" | "result"]) => upload(shared, call.form().await?),
        (&Method::POST, ["api", "workers", "fail"]) => fail(shared, &call.json().await?),
        (&Method::POST, ["api", "builds", id, "authenticate"]) => {
            authenticate(shared, id, &call.json().await?)
        }
        (&Method::GET, ["api", "builds"]) => list(shared),
        (&Method::GET, ["api", "builds", id]) => one(shared, id),
        (&Method::GET, ["api", "builds", id, "source"]) => {
            vm(shared, &call, id, false)?;
            let mut book = shared.book();
            let build = book.of(id);
            build.fetched += 1;
            Ok(file(build.source.clone()))
        }
        (&Method::GET, ["api", "builds", id, what @ ("certs" | "certs-secure")]) => {
            vm(shared, &call, id, false)?;
            certificates(shared, id, what)
        }
        (&Method::POST, ["api", "builds", id, "artifact"]) => {
            vm(shared, &call, id, true)?;
            artifact(shared, id, call.form().await?)
        }
        (&Method::POST, ["api", "builds", id, what @ ("logs" | "telemetry" | "heartbeat")]) => {
            vm(shared, &call, id, false)?;
            told(shared, id, what, call.json().await?)
        }
        _ => {
            let body = json!({"errors": {"detail": "Not Found"}});
            Err(Refusal { status: StatusCode::NOT_FOUND, body })
        }
    }
}

/// The worker whose token is offered.
fn worker(shared: &Shared, call: &CallIn) -> Result<String, Refusal> {
    let token = call.header("X-Worker-Token");
    let book = shared.book();
    let found = book.workers.iter().find(|(_, t)| !token.is_empty() && *t == token).map(|(id, _)| id.clone());
    found.ok_or_else(|| refuse(StatusCode::UNAUTHORIZED, "Authentication required"))
}

fn vm(shared: &Shared, call: &CallIn, id: &str, result: bool) -> Result<(), Refusal> {
    let book = shared.book();
    let build = book.builds.get(id).ok_or_else(unauthorized)?;
    let old = result && book.bugs.job_tokens_expire;
    if call.header("X-VM-Token") == build.token && !old { Ok(()) } else { Err(unauthorized()) }
}

fn register(shared: &Shared, body: &Value) -> Served {
    let mut book = shared.book();
    let old = body.get("id").and_then(Value::as_str).map(str::to_owned);
    let known = old.as_ref().is_some_and(|id| book.workers.contains_key(id));
    let (id, token) = (old.unwrap_or_else(|| book.name("worker")), book.name("token"));
    book.workers.insert(id.clone(), token.clone());
    if body.get("active_build_count").and_then(Value::as_u64) == Some(0) {
        book.active.remove(&id);
    }
    let status = if known { "re-registered" } else { "registered" };
    Ok(answer(StatusCode::OK, json!({"id": id, "access_token": token, "status": status, "message": "hello"})))
}

fn poll(shared: &Shared, worker: &str) -> Served {
    let mut book = shared.book();
    let token = book.workers[worker].clone();
    // What it has is not offered again.
    if book.job_of(worker).is_some() {
        return Ok(answer(StatusCode::OK, json!({"job": null, "access_token": token})));
    }
    let Some(id) = book.next() else {
        return Ok(answer(StatusCode::OK, json!({"job": null, "access_token": token})));
    };
    // Whatever it was, it is assigned now: one that was cancelled lives again.
    let build = book.of(&id);
    (build.status, build.worker, build.error) = ("assigned".into(), Some(worker.to_owned()), None);
    let (otp, certs) = (build.otp.clone(), build.certificates.is_some());
    book.active.insert(worker.to_owned(), id.clone());
    let certs = certs.then(|| format!("/api/builds/{id}/certs"));
    let job = json!({"id": id, "platform": "ios", "source_url": format!("/api/builds/{id}/source"),
        "certs_url": certs, "submitted_at": "2026-01-01T00:00:00Z", "otp": otp});
    Ok(answer(StatusCode::OK, json!({"job": job, "access_token": token})))
}

fn unregister(shared: &Shared, worker: &str) -> Served {
    let mut book = shared.book();
    book.unregistered.push(worker.to_owned());
    let reassigned = book.active.remove(worker);
    if let Some(id) = &reassigned {
        let build = book.of(id);
        (build.status, build.worker) = ("pending".into(), None);
        book.queue.push_back(id.clone());
    }
    let count = usize::from(reassigned.is_some());
    Ok(answer(StatusCode::OK, json!({"success": true, "message": "bye", "builds_reassigned": count})))
}

fn abandon(shared: &Shared, body: &Value) -> Served {
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
    let (Some(id), Some(_)) = (text("build_id"), text("reason")) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "build_id and reason are required"));
    };
    let mut book = shared.book();
    if !book.builds.contains_key(&id) {
        return Err(refuse(StatusCode::NOT_FOUND, "Build not found"));
    }
    book.drop_job(&id);
    let build = book.of(&id);
    (build.status, build.worker) = ("pending".into(), None);
    book.queue.push_back(id.clone());
    book.abandoned.push(id);
    Ok(answer(StatusCode::OK, json!({"success": true, "message": "re-queued"})))
}

fn upload(shared: &Shared, form: Form) -> Served {
    let mut book = shared.book();
    if !book.builds.contains_key(&form.build) {
        return Err(refuse(StatusCode::NOT_FOUND, "Build not found"));
    }
    if book.fails_before() {
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "Try again"));
    }
    match form.file.filter(|(name, _)| name == "result") {
        Some((_, bytes)) if form.success => book.result(&form.build, Some(bytes), None),
        Some(_) | None if form.success && book.bugs.flips => {
            book.result(&form.build, None, Some("Missing result file".into()));
            return Err(refuse(StatusCode::BAD_REQUEST, "Missing result file"));
        }
        Some(_) | None => book.result(&form.build, None, form.error),
    }
    Ok(answer(StatusCode::OK, json!({"success": true, "message": "stored"})))
}

fn fail(shared: &Shared, body: &Value) -> Served {
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut book = shared.book();
    book.result(&text("build_id"), None, Some(text("error")));
    if book.fails_after() {
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "it broke"));
    }
    Ok(answer(StatusCode::OK, json!({"success": true})))
}

fn authenticate(shared: &Shared, id: &str, body: &Value) -> Served {
    let book = shared.book();
    let build = book.builds.get(id).ok_or_else(|| refuse(StatusCode::NOT_FOUND, "Build not found"))?;
    if body.get("otp").and_then(Value::as_str) != Some(build.otp.as_str()) {
        return Err(refuse(StatusCode::UNAUTHORIZED, "Invalid OTP"));
    }
    let body = json!({"vm_token": build.token, "expires_at": "2026-01-01T02:00:00Z"});
    Ok(answer(StatusCode::OK, body))
}

fn view(build: &super::book::Build) -> Value {
    json!({"id": build.id, "platform": "ios", "status": build.status, "worker_id": build.worker,
        "error_message": build.error, "has_result": build.result.is_some()})
}

fn list(shared: &Shared) -> Served {
    let book = shared.book();
    let builds: Vec<Value> = book.builds.values().map(view).collect();
    Ok(answer(StatusCode::OK, json!({"builds": builds, "total": builds.len()})))
}

fn one(shared: &Shared, id: &str) -> Served {
    let book = shared.book();
    let build = book.builds.get(id).ok_or_else(|| refuse(StatusCode::NOT_FOUND, "Build not found"))?;
    Ok(answer(StatusCode::OK, view(build)))
}

fn certificates(shared: &Shared, id: &str, what: &str) -> Served {
    let book = shared.book();
    let bundle = book.builds[id].certificates.clone();
    let bundle = bundle.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "No certificates"))?;
    if what == "certs" {
        return Ok(file(bundle));
    }
    if book.bugs.certificates_fail {
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "no such file"));
    }
    let body = json!({"p12": STANDARD.encode(&bundle), "p12Password": "of-the-p12", "keychainPassword": "AAAA",
        "provisioningProfiles": [STANDARD.encode("profile")]});
    Ok(answer(StatusCode::OK, body))
}

fn artifact(shared: &Shared, id: &str, form: Form) -> Served {
    let mut book = shared.book();
    let Some((_, bytes)) = form.file.filter(|(name, _)| name == "artifact") else {
        return Err(refuse(StatusCode::BAD_REQUEST, "Missing artifact file"));
    };
    if book.fails_before() {
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, "Try again"));
    }
    book.result(id, Some(bytes), None);
    if book.fails_after() {
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "it broke"));
    }
    Ok(answer(StatusCode::OK, json!({"success": true})))
}

fn told(shared: &Shared, id: &str, what: &str, body: Value) -> Served {
    let mut book = shared.book();
    match what {
        "logs" => {
            let lines = log_lines(&body);
            let count = lines.len();
            if !book.log(id, lines) {
                return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "it broke"));
            }
            Ok(answer(StatusCode::OK, json!({"success": true, "count": count})))
        }
        "telemetry" => {
            book.of(id).telemetry.push(body);
            if book.bugs.telemetry_fails {
                return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "it broke"));
            }
            Ok(answer(StatusCode::OK, json!({"status": "ok"})))
        }
        _ => {
            if book.bugs.heartbeats_fail {
                return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "it broke"));
            }
            let build = book.of(id);
            build.heartbeats += 1;
            if build.status == "assigned" {
                build.status = "building".into();
            }
            Ok(answer(StatusCode::OK, json!({"status": "ok", "timestamp": 1})))
        }
    }
}
