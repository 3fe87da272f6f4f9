//! How the HTTP side is set, and every bound it holds itself to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::token::{Token, TokenError};
use crate::config::{self, ByteSize};

/// The largest `spec` part: a build's description with its secrets, a few kilobytes in practice, and what it signs with, which
/// in base64 is a third longer than [`crate::signing::KIT_BYTES_MAX`] allows.
pub const SPEC_BYTES_MAX: usize = 4 << 20;
/// The longest query string: a build's flags for `curl`.
pub const QUERY_BYTES_MAX: usize = 16 << 10;
/// Builds in one list.
pub const LIST_MAX: u32 = 500;
/// Builds in a list that does not say how many.
pub const LIST_DEFAULT: u32 = 50;

/// Told of each answer: the route's pattern (`other` where none matched), the method, the status, and the time until
/// the answer's head was ready. All three words come from closed sets, so they can be labels.
pub type OnRequest = Arc<dyn Fn(&str, &str, u16, Duration) + Send + Sync>;

/// The largest source that is taken in at the moment.
pub type SourceMax = Arc<dyn Fn() -> ByteSize + Send + Sync>;

/// How the HTTP side is set.
#[derive(Clone)]
pub struct Options {
    /// Where it listens; a `Host` that names this address is ours.
    pub listen: SocketAddr,
    /// The largest source that is taken in.
    pub source_max: SourceMax,
    /// What each call but `/healthz` must carry.
    pub token: Option<Token>,
    pub limits: Limits,
    pub on_request: OnRequest,
}

/// Bounds, so that no client can hold more than its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections; further ones wait in the system's backlog.
    pub connections: usize,
    /// Sources that are received at once: each writes to the disk.
    pub submissions: usize,
    /// Open logs that follow a build.
    pub followers: usize,
    /// For a request's head, and for a connection without a request: longer than Prometheus' usual 15 s between scrapes,
    /// or each scrape would meet a connection that is just being closed.
    pub head_read: Duration,
    /// Between two pieces of a body.
    pub body_idle: Duration,
    /// For a whole body.
    pub body_whole: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_idle: Duration,
    /// Between two signs of life in a followed log.
    pub ping: Duration,
    /// From the request to stop to the end of answers that are still under way.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            submissions: 8,
            followers: 64,
            head_read: Duration::from_secs(20),
            body_idle: Duration::from_secs(30),
            body_whole: Duration::from_secs(60 * 60),
            write_idle: Duration::from_secs(30),
            ping: Duration::from_secs(5),
            drain: Duration::from_secs(5),
        }
    }
}

impl Options {
    /// From the configuration; reads the token's file where there is one.
    ///
    /// # Errors
    /// When the token's file cannot be used.
    pub fn from_config(api: &config::Api, on_request: OnRequest) -> Result<Self, TokenError> {
        let token = api.token_file.as_deref().map(Token::read).transpose()?;
        Ok(Self {
            listen: api.listen,
            source_max: {
                let max = api.source_max;
                Arc::new(move || max)
            },
            token,
            limits: Limits::default(),
            on_request,
        })
    }
}
