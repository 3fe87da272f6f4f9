//! The JSON of controllers, as far as we read it. Two dialects are spoken: in one all workers share a key, the other gives each
//! worker, and each job, a token of its own. Whatever else is in an answer is passed over, and what is absent in one dialect is
//! optional here.

use serde::Deserialize;
use serde_json::Value;

use crate::api::wire::SigningSpec;

/// The longest text of an error that is shown.
const SHOWN_MAX: usize = 300;

/// The longest name of a job or a worker.
const NAME_BYTES_MAX: usize = 128;

/// How a controller is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// All workers share a key, and a job is offered until its result is there.
    Keyed,
    /// Workers and jobs have tokens that expire, and a job is offered once.
    Tokened,
}

impl Dialect {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keyed => "keyed",
            Self::Tokened => "tokened",
        }
    }
}

/// The answer to a registration.
#[derive(Debug, Clone, Deserialize)]
pub struct Registered {
    pub id: String,
    pub access_token: Option<String>,
}

impl Registered {
    /// Only one dialect gives a token.
    pub fn dialect(&self) -> Dialect {
        if self.access_token.is_some() { Dialect::Tokened } else { Dialect::Keyed }
    }
}

/// The answer to a question for a job.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Polled {
    pub job: Option<Offer>,
    pub access_token: Option<String>,
}

/// A job that is offered.
#[derive(Debug, Clone, Deserialize)]
pub struct Offer {
    pub id: String,
    pub platform: Option<String>,
    pub source_url: Option<String>,
    pub certs_url: Option<String>,
    pub otp: Option<String>,
}

/// What a one-time password is exchanged for.
#[derive(Debug, Deserialize)]
pub struct Authenticated {
    pub vm_token: String,
}

/// A build, as the controller sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Remote {
    #[serde(default)]
    pub id: String,
    pub status: String,
    pub worker_id: Option<String>,
    pub error_message: Option<String>,
}

impl Remote {
    /// Reads one build, bare or as `build`.
    pub fn read(mut value: Value) -> Option<Self> {
        let inner = value.get_mut("build").filter(|build| build.is_object()).map(Value::take);
        serde_json::from_value(inner.unwrap_or(value)).ok()
    }

    /// Reads a list of builds, bare or as `builds`; what is none is passed over.
    pub fn read_list(mut value: Value) -> Vec<Self> {
        let inner = value.get_mut("builds").map(Value::take).unwrap_or(value);
        let items = if let Value::Array(items) = inner { items } else { Vec::new() };
        items.into_iter().filter_map(Self::read).collect()
    }
}

/// Certificates. The keychain's password that comes with them is of no use: a build's keychain has one of its own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificates {
    p12: String,
    #[serde(default)]
    p12_password: Option<String>,
    #[serde(default)]
    provisioning_profiles: Vec<String>,
}

impl From<Certificates> for SigningSpec {
    fn from(certificates: Certificates) -> Self {
        let Certificates { p12, p12_password, provisioning_profiles } = certificates;
        Self { p12, password: p12_password.unwrap_or_default(), profiles: provisioning_profiles }
    }
}

/// Whether it can be part of a path, and of our journal: letters, digits, `-` and `_`.
pub fn is_name(text: &str) -> bool {
    let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (1..=NAME_BYTES_MAX).contains(&text.len()) && letters
}

/// What an error's body says, whichever of its shapes it has.
pub fn error_text(body: &str) -> String {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let detail = value.pointer("/errors/detail").and_then(Value::as_str).map(str::to_owned);
    let more = ["reason", "details", "message"].into_iter().find_map(text);
    let said = match (text("error").or(detail), more) {
        (Some(error), Some(more)) => format!("{error}: {more}"),
        (Some(text), None) | (None, Some(text)) => text,
        (None, None) => body.trim().to_owned(),
    };
    shortened(&said, SHOWN_MAX)
}

/// In one line of so many characters at most.
pub fn shortened(text: &str, max: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match line.char_indices().nth(max) {
        None => line,
        Some((end, _)) => format!("{}..", &line[..end]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_dialect_is_told_by_the_token_in_the_answer() {
        let read = |value| serde_json::from_value::<Registered>(value).expect("read").dialect();
        let keyed = json!({"id": "w", "status": "registered", "baseImageId": "image:1"});
        let tokened = json!({"id": "w", "access_token": "t", "status": "re-registered", "message": "hello"});
        assert_eq!((read(keyed), read(tokened)), (Dialect::Keyed, Dialect::Tokened));
    }

    #[test]
    fn jobs_of_both_dialects_are_read() {
        let read = |value| serde_json::from_value::<Polled>(value).expect("read");
        let keyed = read(json!({"job": {"id": "j", "platform": "ios", "source_url": "/api/builds/j/source",
            "certs_url": null, "baseImageId": "image:1"}}));
        let tokened = read(
            json!({"job": {"id": "j", "platform": "ios", "source_url": "/api/builds/j/source",
            "certs_url": "/api/builds/j/certs", "submitted_at": "2026-01-01T00:00:00Z", "otp": "o"}, "access_token": "t"}),
        );
        assert!(keyed.job.expect("one").otp.is_none() && keyed.access_token.is_none());
        assert_eq!(tokened.job.expect("one").otp.as_deref(), Some("o"));
        assert!(read(json!({"job": null})).job.is_none());
    }

    #[test]
    fn both_shapes_of_an_error_and_none_are_shown() {
        for (body, said) in [
            (r#"{"error":"Invalid API key"}"#, "Invalid API key"),
            (r#"{"error":"Not found","reason":"gone"}"#, "Not found: gone"),
            (r#"{"errors":{"detail":"Unauthorized"}}"#, "Unauthorized"),
            (
                r#"{"statusCode":400,"code":"X","error":"Bad Request","message":"Body is empty"}"#,
                "Bad Request: Body is empty",
            ),
            ("<html>\nBad gateway", "<html> Bad gateway"),
            ("", ""),
        ] {
            assert_eq!(error_text(body), said);
        }
        assert_eq!(error_text(&"x".repeat(1000)).len(), SHOWN_MAX + 2);
    }

    #[test]
    fn builds_are_read_bare_or_wrapped() {
        let build = json!({"id": "j", "status": "assigned", "worker_id": "w", "started_at": 5});
        let one = Remote::read(build.clone()).expect("read");
        let listed = Remote::read_list(json!({"builds": [build, 5], "total": 1}));
        assert_eq!(listed, std::slice::from_ref(&one));
        assert_eq!(Remote::read(json!({"build": build})), Some(one));
        assert_eq!(Remote::read_list(json!([build])), listed);
    }

    #[test]
    fn a_name_that_could_lead_elsewhere_is_none() {
        for bad in ["", "../x", "a/b", "a?b", "a b", "ä", &"a".repeat(200)] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(is_name("V1StGXR8_Z5jdHi6B-myT"));
    }
}
