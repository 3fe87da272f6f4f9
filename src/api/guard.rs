//! Who may call. A daemon on loopback is within reach of every page in the user's browser, so a request must name us as
//! its host (else a name that resolves to 127.0.0.1 would make a foreign page same-origin: DNS rebinding) and must not
//! come from a foreign page (CSRF). Where there is a token, it must be there; it also stands in for the check of the
//! host's name, because a browser has no token to send, and a Mac in a cupboard is called by its name.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::Response;

use super::error::ApiError;
use super::options::Options;
use super::routes::App;

/// Answers while the process serves, to whoever reaches it.
pub const OPEN_PATH: &str = "/healthz";

/// The middleware.
pub async fn guard(State(app): State<App>, request: Request, next: Next) -> Result<Response, ApiError> {
    admit(request.headers(), request.uri(), &app.options)?;
    Ok(next.run(request).await)
}

/// Whether a request may go on.
///
/// # Errors
/// `host_refused`, `origin_refused` or `unauthorized`.
pub fn admit(headers: &HeaderMap, uri: &Uri, options: &Options) -> Result<(), ApiError> {
    let host = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => text(headers, &HOST).unwrap_or_default(),
    };
    if options.token.is_none() && !host_is_ours(host, options.listen.ip()) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "host_refused",
            format!("`{host}` is not this daemon's host"),
        )
        .hint("call it by its address, as http://127.0.0.1:7780; to use a name, set `api.token_file`"));
    }
    if headers.get(ORIGIN).is_some_and(|o| o.to_str().map_or(true, |o| !same_origin(o, host)))
        || cross_site(headers)
    {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "origin_refused",
            "requests from other web pages are refused",
        ));
    }
    match &options.token {
        Some(token) if uri.path() != OPEN_PATH && !bearer(headers).is_some_and(|t| token.matches(t)) => {
            Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "the bearer token is missing or wrong",
            )
            .hint(
                "give the daemon's `api.token_file` to --token-file, or send `Authorization: Bearer TOKEN`",
            ))
        }
        Some(_) | None => Ok(()),
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, &AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A browser says so of itself where it sends no `Origin`: images, scripts, `no-cors` fetches. A followed link is fine.
fn cross_site(headers: &HeaderMap) -> bool {
    let said = |name: &'static str| text(headers, &HeaderName::from_static(name));
    said("sec-fetch-site") == Some("cross-site") && said("sec-fetch-mode") != Some("navigate")
}

/// Whether `host`, with or without a port, is loopback or where we listen. Any port: it may be forwarded.
fn host_is_ours(host: &str, listen: IpAddr) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    match name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        // Listening on every address, each of them is ours, and an address cannot be rebound.
        Ok(ip) => ip.is_loopback() || ip == listen || listen.is_unspecified(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

fn same_origin(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    matches!(scheme, "http" | "https") && !host.is_empty() && authority.eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_our_host() {
        let listen: IpAddr = "192.0.2.7".parse().expect("an address");
        for ours in
            ["localhost", "LOCALHOST:1", "127.0.0.1:7780", "127.9.9.9", "[::1]:7780", "192.0.2.7:7780"]
        {
            assert!(host_is_ours(ours, listen), "{ours}");
        }
        for foreign in [
            "",
            "evil.example:7780",
            "192.0.2.8",
            "localhost.evil.example",
            "x@localhost",
            "127.0.0.1.nip.io",
        ] {
            assert!(!host_is_ours(foreign, listen), "{foreign}");
        }
        assert!(host_is_ours("192.0.2.8", IpAddr::from([0, 0, 0, 0])));
    }

    #[test]
    fn a_page_is_ours_only_when_it_was_served_by_this_host() {
        assert!(same_origin("http://127.0.0.1:7780", "127.0.0.1:7780"));
        for foreign in ["null", "http://evil.example", "http://127.0.0.1:7781", "file://", "", "http://"] {
            assert!(!same_origin(foreign, "127.0.0.1:7780"), "{foreign}");
        }
        assert!(!same_origin("http://", ""));
    }
}
