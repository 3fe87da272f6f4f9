//! The daemon over HTTP.

use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;

use super::problem::Problem;
use crate::api::token::Token;
use crate::api::wire::{BuildView, CacheEntryView, ErrorBody, ErrorView, StatusView, SubmitSpec};
use crate::ids::{BuildId, TreeId};

const CONNECT: Duration = Duration::from_secs(5);
/// For an answer that is made in memory.
const SHORT: Duration = Duration::from_secs(30);
/// What is read of an error's body.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// A way to one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Token>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// Nobody answered, or the connection broke.
    Unreachable(Problem),
    /// The daemon said no.
    Refused { status: u16, view: ErrorView },
}

impl Failure {
    /// Whether the same may go well in a moment.
    pub fn passes(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(problem) => problem,
            Failure::Refused { status, view } => Problem::refused(status, view),
        }
    }
}

impl Client {
    /// A way to the daemon at `url`.
    ///
    /// # Errors
    /// When the URL or the token's file cannot be used.
    pub fn new(url: &str, token_file: Option<&Path>) -> Result<Self, Problem> {
        let wrong = |why: &str| Problem::usage(format!("`{url}` cannot be the daemon's address: {why}"));
        let base: Url = url.parse().map_err(|e| wrong(&format!("{e}")).hint("as http://127.0.0.1:7780"))?;
        let Some(host) = base.host_str().filter(|_| matches!(base.scheme(), "http" | "https")) else {
            return Err(wrong("it must start with http:// or https://").hint("as http://127.0.0.1:7780"));
        };
        let token = match token_file {
            None => None,
            Some(path) => Some(Token::read(path).map_err(|e| Problem::usage(e.to_string()).hint(e.hint()))?),
        };
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            // A connection that the daemon closes while it is idle would cost a submission.
            .pool_max_idle_per_host(0);
        if host == "localhost"
            || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        {
            builder = builder.no_proxy();
        }
        let http =
            builder.build().map_err(|e| Problem::system(format!("cannot start an HTTP client: {e}")))?;
        Ok(Self { http, base, token })
    }

    /// Where the daemon is, for people.
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// A request; `parts` are the path's, each encoded.
    fn request(&self, method: Method, parts: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        if status.is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    /// A JSON answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn get<T: DeserializeOwned>(
        &self,
        parts: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, Failure> {
        let request = self.request(Method::GET, parts).query(query).timeout(SHORT);
        self.send(request).await?.json().await.map_err(|e| self.unreachable(&e))
    }

    /// One build.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn build(&self, id: BuildId) -> Result<BuildView, Failure> {
        self.get(&["api", "v1", "builds", &id.to_string()], &[]).await
    }

    /// Submits a build.
    ///
    /// # Errors
    /// When it was not taken, or it is not known whether it was.
    pub async fn submit(
        &self,
        spec: &SubmitSpec,
        source: reqwest::Body,
        bytes: u64,
    ) -> Result<BuildView, Failure> {
        self.submit_tree(spec, None, Some((source, bytes))).await
    }

    /// As [`submit`](Self::submit), of a source whose tree has a name; without the source itself where the daemon may have it.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), and when the daemon does not have it.
    pub async fn submit_tree(
        &self,
        spec: &SubmitSpec,
        tree: Option<TreeId>,
        source: Option<(reqwest::Body, u64)>,
    ) -> Result<BuildView, Failure> {
        let described = serde_json::to_string(spec)
            .map_err(|e| Failure::Unreachable(Problem::system(format!("cannot describe the build: {e}"))))?;
        let mut form =
            reqwest::multipart::Form::new().part("spec", reqwest::multipart::Part::text(described));
        if let Some(tree) = tree {
            form = form.text("tree", tree.to_string());
        }
        if let Some((source, bytes)) = source {
            let part = reqwest::multipart::Part::stream_with_length(source, bytes).file_name("source");
            form = form.part("source", part);
        }
        let request = self.request(Method::POST, &["api", "v1", "builds"]).multipart(form);
        self.send(request).await?.json().await.map_err(|e| self.unreachable(&e))
    }

    /// What the daemon does as a whole.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn status(&self) -> Result<StatusView, Failure> {
        self.get(&["api", "v1", "status"], &[]).await
    }

    /// Asks for something that concerns the whole daemon.
    ///
    /// # Errors
    /// When it is refused, or there is no answer within `limit`.
    pub async fn post<T: DeserializeOwned>(&self, parts: &[&str], limit: Duration) -> Result<T, Failure> {
        let request = self.request(Method::POST, parts).timeout(limit);
        self.send(request).await?.json().await.map_err(|e| self.unreachable(&e))
    }

    /// Cancels a build.
    ///
    /// # Errors
    /// When that is too late, or there is no answer.
    pub async fn cancel(&self, id: BuildId) -> Result<BuildView, Failure> {
        let request = self.request(Method::DELETE, &["api", "v1", "builds", &id.to_string()]).timeout(SHORT);
        self.send(request).await?.json().await.map_err(|e| self.unreachable(&e))
    }

    /// Removes a cache.
    ///
    /// # Errors
    /// When there is none, or no answer.
    pub async fn remove_cache(&self, id: &str) -> Result<CacheEntryView, Failure> {
        let request = self.request(Method::DELETE, &["api", "v1", "caches", id]).timeout(SHORT);
        self.send(request).await?.json().await.map_err(|e| self.unreachable(&e))
    }

    /// A build's log from line `after` + 1 on.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn log(&self, id: BuildId, after: u64, follow: bool) -> Result<Response, Failure> {
        let request = self.request(Method::GET, &["api", "v1", "builds", &id.to_string(), "log"]);
        let request = request.header("last-event-id", after).query(&[("follow", follow)]);
        tokio::time::timeout(SHORT, self.send(request)).await.unwrap_or_else(|_| Err(self.silent()))
    }

    /// An artifact.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn artifact(&self, id: BuildId, path: &str) -> Result<Response, Failure> {
        let id = id.to_string();
        let parts: Vec<_> =
            ["api", "v1", "builds", &id, "artifacts"].into_iter().chain(path.split('/')).collect();
        let request = self.request(Method::GET, &parts);
        tokio::time::timeout(SHORT, self.send(request)).await.unwrap_or_else(|_| Err(self.silent()))
    }

    fn silent(&self) -> Failure {
        Failure::Unreachable(
            Problem::system(format!("the daemon at {} does not answer", self.url())).code("unreachable"),
        )
    }

    /// What a failed exchange means.
    pub fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let mut source = error.source();
        let mut last = error.to_string();
        let mut refused = false;
        while let Some(cause) = source {
            last = cause.to_string();
            let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            refused |= io == Some(std::io::ErrorKind::ConnectionRefused);
            source = cause.source();
        }
        let url = self.url();
        let problem = if refused {
            Problem::system(format!("no daemon answers at {url}: the connection was refused"))
                .hint("start it with `preheat serve`, or name another with --url or PREHEAT_URL")
        } else if error.is_timeout() {
            Problem::system(format!("the daemon at {url} did not answer in time"))
                .hint("look at its log; `preheat doctor` on its host checks it")
        } else if error.is_connect() {
            Problem::system(format!("cannot reach the daemon at {url}: {last}"))
                .hint("check --url and the network")
        } else if error.is_decode() {
            Problem::system(format!("what answers at {url} is not preheat: {last}")).hint("check --url")
        } else {
            Problem::system(format!("the connection to the daemon at {url} broke: {last}"))
        };
        Failure::Unreachable(problem.code("unreachable"))
    }
}

/// The daemon's own words, or what can be said without them.
async fn refusal(mut response: Response) -> Failure {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        if body.len() + piece.len() > ERROR_BYTES_MAX {
            break;
        }
        body.extend_from_slice(&piece);
    }
    let view =
        serde_json::from_slice::<ErrorBody>(&body).map(|body| body.error).unwrap_or_else(|_| ErrorView {
            code: "http".into(),
            message: format!("the answer was {status}"),
            hint: Some("what answers there may not be preheat: check --url".into()),
            mistakes: Vec::new(),
        });
    Failure::Refused { status: status.as_u16(), view }
}
