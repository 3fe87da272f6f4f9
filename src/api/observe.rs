//! Around each request: headers that keep browsers from guessing, and the callback that counts.

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;

use super::routes::App;
use crate::clock;

/// Set where the handler did not say otherwise.
const HEADERS: [(axum::http::HeaderName, &str); 5] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox; frame-ancestors 'none'"),
];

/// The middleware.
pub async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let started = clock::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = word(request.method());
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    (app.options.on_request)(route, method, response.status().as_u16(), started.elapsed());
    response
}

/// A label must come from a closed set, and a method can be any word.
fn word(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}
