//! Query parameters, strict: an unknown name is a mistake, not noise.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::Query;
use axum::http::Uri;

use super::error::ApiError;
use super::options::{LIST_DEFAULT, LIST_MAX, QUERY_BYTES_MAX};
use super::wire::{StepSpec, SubmitSpec};
use crate::ids::BuildId;

/// Reads a query as pairs, in order: a name may come more than once.
///
/// # Errors
/// When it is too long or is not a query.
pub fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, ApiError> {
    if uri.query().is_some_and(|q| q.len() > QUERY_BYTES_MAX) {
        return Err(ApiError::query(format!("the query is longer than {QUERY_BYTES_MAX} bytes")));
    }
    let Query(pairs) = Query::try_from_uri(uri).map_err(|e| ApiError::query(e.body_text()))?;
    Ok(pairs)
}

/// A build's number in a path.
///
/// # Errors
/// When it is none.
pub fn build_id(text: &str) -> Result<BuildId, ApiError> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| plain).ok_or_else(|| {
        ApiError::malformed(format!("`{text}` is not a build's number")).hint("`preheat builds` lists them")
    })
}

/// `?limit` of a list.
///
/// # Errors
/// When it is not 1 to [`LIST_MAX`], or another parameter is given.
pub fn limit(uri: &Uri) -> Result<u32, ApiError> {
    let mut limit = LIST_DEFAULT;
    for (name, value) in pairs(uri)? {
        match name.as_str() {
            "limit" => limit = number(&name, &value)?,
            _ => return Err(unknown(&name, "limit")),
        }
    }
    if (1..=LIST_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(ApiError::query(format!("`limit` is {limit}, and must be 1 to {LIST_MAX}")))
    }
}

/// How a log is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// The last line that the caller has.
    pub after: u64,
    /// Go on until the build is over.
    pub follow: bool,
    /// Plain text instead of events.
    pub text: bool,
}

impl LogQuery {
    /// `last_event_id` wins over `?after`: a browser that reconnects sends the old URL and the new id.
    ///
    /// # Errors
    /// When a parameter is wrong or unknown.
    pub fn parse(uri: &Uri, last_event_id: Option<&str>) -> Result<Self, ApiError> {
        let mut asked = Self { after: 0, follow: true, text: false };
        for (name, value) in pairs(uri)? {
            match (name.as_str(), value.as_str()) {
                ("after", _) => asked.after = number(&name, &value)?,
                ("follow", "true" | "1" | "") => asked.follow = true,
                ("follow", "false" | "0") => asked.follow = false,
                ("format", "text") => asked.text = true,
                ("format", "events") => asked.text = false,
                ("follow" | "format", _) => {
                    let message = format!("`{name}` cannot be `{value}`");
                    return Err(ApiError::query(message).hint("follow=true|false, format=text|events"));
                }
                _ => return Err(unknown(&name, "after, follow, format")),
            }
        }
        if let Some(id) = last_event_id {
            asked.after = number("Last-Event-ID", id)?;
        }
        Ok(asked)
    }
}

/// A build's description as query parameters, for a source sent as the plain body.
///
/// # Errors
/// When a parameter is wrong or unknown.
pub fn spec(uri: &Uri) -> Result<SubmitSpec, ApiError> {
    let mut spec = SubmitSpec::default();
    for (name, value) in pairs(uri)? {
        match name.as_str() {
            "project" => spec.project = Some(value),
            "pool" => spec.pool = Some(value),
            "pipeline" => spec.pipeline = Some(value),
            "dir" => spec.dir = Some(value),
            "need" => {
                let Some((name, need)) = value.split_once('=').filter(|(name, _)| !name.is_empty()) else {
                    let text = format!("`need` is `{value}`, and must be NAME=VERSION");
                    return Err(ApiError::query(text).hint("as xcode=>=26"));
                };
                spec.needs.insert(name.into(), need.into());
            }
            "step" => spec.steps.push(StepSpec { command: value, ..StepSpec::default() }),
            "artifact" => spec.artifacts.push(value),
            "env" => {
                let Some((key, value)) = value.split_once('=').filter(|(key, _)| !key.is_empty()) else {
                    return Err(ApiError::query(format!("`env` is `{value}`, and must be NAME=VALUE")));
                };
                spec.env.insert(key.into(), value.into());
            }
            "timeout" => {
                let read = humantime::parse_duration(&value);
                let wrong = |e| ApiError::query(format!("`timeout` is `{value}`: {e}")).hint("as 90s or 10m");
                spec.timeout = Some(read.map_err(wrong)?);
            }
            "retries" => spec.retries = Some(number(&name, &value)?),
            "secret" | "secrets" => {
                return Err(ApiError::query("a secret must not stand in a URL, which is logged on its way")
                    .hint("send multipart/form-data with the parts `spec` and `source`"));
            }
            _ => {
                return Err(unknown(
                    &name,
                    "project, pool, need, pipeline, dir, step, artifact, env, timeout, retries",
                ));
            }
        }
    }
    Ok(spec)
}

fn number<N: FromStr<Err: Display>>(name: &str, value: &str) -> Result<N, ApiError> {
    value.parse().map_err(|e| ApiError::query(format!("`{name}` is `{value}`: {e}")))
}

fn unknown(name: &str, known: &str) -> ApiError {
    ApiError::query(format!("there is no parameter `{name}`")).hint(format!("there is {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(query: &str) -> Uri {
        format!("http://localhost/x?{query}").parse().expect("a URI")
    }

    #[test]
    fn a_build_can_be_described_in_a_query() {
        let spec =
            spec(&uri("pool=linux&step=make&step=make%20test&env=A=b=c&artifact=*.o&timeout=90s&retries=2"))
                .expect("complete");
        let commands: Vec<_> = spec.steps.iter().map(|s| s.command.as_str()).collect();
        assert_eq!(commands, ["make", "make test"]);
        assert_eq!(spec.env.get("A").map(String::as_str), Some("b=c"));
        assert_eq!((spec.timeout.map(|t| t.as_secs()), spec.retries), (Some(90), Some(2)));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in ["steps=make", "env=A", "env==x", "timeout=soon", "retries=-1", "secret=A=b"] {
            assert_eq!(spec(&uri(bad)).expect_err(bad).view.code, "bad_query");
        }
        for bad in ["limit=0", "limit=501", "limit=x", "page=2"] {
            assert!(limit(&uri(bad)).is_err(), "{bad}");
        }
        assert_eq!(limit(&uri("limit=7")), Ok(7));
        for bad in ["", "-1", "+1", "a", "99999999999999999999"] {
            assert!(build_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_id_of_the_last_event_wins_over_the_url() {
        let asked = LogQuery::parse(&uri("after=3&follow=false"), Some("9")).expect("right");
        assert_eq!(asked, LogQuery { after: 9, follow: false, text: false });
        assert!(LogQuery::parse(&uri("follow=maybe"), None).is_err());
        assert!(LogQuery::parse(&uri(""), Some("x")).is_err());
    }
}
