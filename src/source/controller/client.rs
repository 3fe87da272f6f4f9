//! The calls to a controller, in both dialects. Each has a deadline; files go to and from the disk in a stream; no redirect is
//! followed, for it would carry a key elsewhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

use super::board::Board;
use super::key;
use super::wire::{self, Authenticated, Dialect, Polled, Registered, Remote};
use crate::api::wire::ArtifactView;
use crate::telemetry::controlling::{Call, CallFailed};

/// To connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// For a call without a file.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// For a file: so much, and the time that it takes at [`SLOWEST`] bytes a second.
const FILE_LIMIT: Duration = Duration::from_secs(120);
/// A slower line than this would not bring an app home within a day.
const SLOWEST: u64 = 64 << 10;
/// Without a byte for so long a download is dead.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// The longest answer that is read: certificates in base64.
const ANSWER_BYTES_MAX: usize = 80 << 20;
/// Pieces of files.
const PIECE_BYTES: usize = 256 << 10;

/// What is to be brought from a controller.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub call: Call,
    /// The build that it belongs to.
    pub build: &'a str,
    pub path: &'a str,
    pub bytes_max: u64,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There was no answer. Whether the call arrived nobody knows, where `sent`.
    #[error("{text}")]
    Silent { text: String, sent: bool },
    /// The answer was a refusal.
    #[error("it answered {status}: {text}")]
    Refused { status: StatusCode, text: String },
    /// The answer cannot be read.
    #[error("its answer is none that we know: {0}")]
    Strange(String),
    /// The source is larger than the daemon takes.
    #[error("the source is larger than {max} bytes")]
    TooLarge { max: u64 },
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] key::KeyError),
    /// This host's.
    #[error("`{path}`: {source}")]
    Disk { path: PathBuf, source: std::io::Error },
}

impl CallError {
    /// The answer's status.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Silent { .. }
            | Self::Strange(_)
            | Self::TooLarge { .. }
            | Self::Key(_)
            | Self::Disk { .. } => None,
        }
    }

    /// Whether the same call may do better later.
    pub fn passes(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::Key(_) | Self::Disk { .. } | Self::Strange(_) => true,
            Self::Refused { status, .. } => {
                status.is_server_error()
                    || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(status)
            }
            Self::TooLarge { .. } => false,
        }
    }

    /// Whether it says that we are not let in.
    pub fn is_about_us(&self) -> bool {
        matches!(self.status(), Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }
}

/// Who we are in a call.
#[derive(Debug, Clone)]
pub struct Session {
    pub dialect: Dialect,
    pub worker: String,
    /// The worker's token, where there are tokens.
    pub token: Option<SecretString>,
    /// The job's token.
    pub job_token: Option<SecretString>,
}

/// A way to one controller.
pub struct Client {
    http: reqwest::Client,
    base: String,
    key_file: Option<PathBuf>,
    board: Board,
}

/// A line for the controller's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub level: &'static str,
    pub message: String,
}

fn name_in_header(
    builder: RequestBuilder,
    name: &'static str,
    secret: Option<&SecretString>,
) -> RequestBuilder {
    match secret.and_then(|s| reqwest::header::HeaderValue::from_str(s.expose_secret()).ok()) {
        Some(mut value) => {
            value.set_sensitive(true);
            builder.header(name, value)
        }
        None => builder,
    }
}

impl Client {
    /// To the controller at `base`.
    ///
    /// # Errors
    /// When the TLS library cannot be set up.
    pub fn new(base: &str, key_file: Option<PathBuf>, board: Board) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(STALL_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("preheat/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), key_file, board })
    }

    /// A path of the controller's own, or a URL of it that it named. Any other place would be given our key.
    fn at(&self, path: &str) -> Result<String, CallError> {
        if path.starts_with('/') && !path.starts_with("//") {
            return Ok(format!("{}{path}", self.base));
        }
        let below = path.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'));
        let elsewhere =
            || CallError::Strange(format!("`{}` is not of this controller", wire::shortened(path, 100)));
        if below { Ok(path.to_owned()) } else { Err(elsewhere()) }
    }

    /// A request with whatever says who we are. The key goes along where tokens do not do its work.
    async fn request(
        &self,
        method: Method,
        path: &str,
        session: Option<&Session>,
        build: Option<&str>,
    ) -> Result<RequestBuilder, CallError> {
        let mut request = self.http.request(method, self.at(path)?);
        if session.is_none_or(|s| s.dialect == Dialect::Keyed)
            && let Some(file) = &self.key_file
        {
            request = name_in_header(request, "X-API-Key", Some(&key::read(file.clone()).await?));
        }
        let Some(session) = session else { return Ok(request) };
        request = request.header("X-Worker-Id", &session.worker);
        if let Some(build) = build {
            request = request.header("X-Build-Id", build);
        }
        request = name_in_header(request, "X-Worker-Token", session.token.as_ref());
        Ok(name_in_header(request, "X-VM-Token", session.job_token.as_ref()))
    }

    async fn send(
        &self,
        call: Call,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<Response, CallError> {
        let done = self.sent(call, request.timeout(limit)).await;
        if let Err(error) = &done {
            CallFailed { controller: self.board.name(), call, error: &error.to_string() }.emit();
        }
        done
    }

    async fn sent(&self, call: Call, request: RequestBuilder) -> Result<Response, CallError> {
        let answer = request.send().await.map_err(|error| {
            let text = whole_text(&error);
            self.board.failed(&text, None);
            CallError::Silent { text, sent: !error.is_connect() }
        })?;
        let status = answer.status();
        if status.is_success() {
            self.board.reached();
            return Ok(answer);
        }
        let text = wire::error_text(&body(answer).await.unwrap_or_default());
        let refused = CallError::Refused { status, text };
        // Other calls fail for reasons of their own.
        match call {
            Call::Register | Call::Poll => {
                let hint = refused.is_about_us().then_some("is the key in `api_key_file` the controller's?");
                self.board.failed(&refused.to_string(), hint);
            }
            Call::Unregister | Call::Status | Call::Abandon | Call::Authenticate | Call::Source => {}
            Call::Certificates | Call::Heartbeat | Call::Telemetry | Call::Log | Call::Result => {}
        }
        Err(refused)
    }

    async fn json<T: DeserializeOwned>(&self, answer: Response) -> Result<T, CallError> {
        let text = body(answer).await?;
        serde_json::from_str(&text).map_err(|e| CallError::Strange(e.to_string()))
    }

    async fn post(
        &self,
        call: Call,
        path: &str,
        session: Option<&Session>,
        build: Option<&str>,
        body: &Value,
    ) -> Result<Response, CallError> {
        let request = self.request(Method::POST, path, session, build).await?;
        self.send(call, request.json(body), CALL_LIMIT).await
    }

    /// Registers a worker, under the name that it had if it had one.
    ///
    /// # Errors
    /// When there is no worker.
    pub async fn register(&self, id: Option<&str>, name: &str, active: u16) -> Result<Registered, CallError> {
        let capabilities = json!({"platforms": ["ios", "android"], "maxConcurrentBuilds": 1, "worker": "preheat",
            "version": env!("CARGO_PKG_VERSION")});
        let mut body = json!({"name": name, "capabilities": capabilities, "active_build_count": active});
        if let Some(id) = id {
            body["id"] = id.into();
        }
        let answer = self.post(Call::Register, "/api/workers/register", None, None, &body).await?;
        let registered: Registered = self.json(answer).await?;
        if wire::is_name(&registered.id) {
            return Ok(registered);
        }
        Err(CallError::Strange(format!("`{}` is no worker's name", wire::shortened(&registered.id, 60))))
    }

    /// Asks for a job.
    ///
    /// # Errors
    /// When nobody answers, or we are not known.
    pub async fn poll(&self, session: &Session) -> Result<Polled, CallError> {
        let path = match session.dialect {
            Dialect::Keyed => format!("/api/workers/poll?worker_id={}", session.worker),
            Dialect::Tokened => "/api/workers/poll".to_owned(),
        };
        let request = self.request(Method::GET, &path, Some(session), None).await?;
        let answer = self.send(Call::Poll, request, CALL_LIMIT).await?;
        if answer.status() == StatusCode::NO_CONTENT {
            return Ok(Polled::default());
        }
        self.json(answer).await
    }

    /// Says that a worker takes no more jobs. Some controllers do not know the call, and that does no harm.
    ///
    /// # Errors
    /// When it was not heard.
    pub async fn unregister(&self, session: &Session) -> Result<(), CallError> {
        let path = match session.dialect {
            Dialect::Keyed => format!("/api/workers/{}/unregister", session.worker),
            Dialect::Tokened => "/api/workers/unregister".to_owned(),
        };
        match self.post(Call::Unregister, &path, Some(session), None, &json!({})).await {
            Err(CallError::Refused { status: StatusCode::NOT_FOUND, .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives a job back to the controller's queue.
    ///
    /// # Errors
    /// When it was not heard.
    pub async fn abandon(&self, session: &Session, build: &str, reason: &str) -> Result<(), CallError> {
        let body = json!({"build_id": build, "reason": reason});
        self.post(Call::Abandon, "/api/workers/abandon", Some(session), Some(build), &body).await.map(drop)
    }

    /// What this worker is believed to have.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn held(&self, session: &Session) -> Result<Vec<Remote>, CallError> {
        let path = format!("/api/builds?worker_id={}", session.worker);
        let request = self.request(Method::GET, &path, Some(session), None).await?;
        let answer = self.send(Call::Status, request, CALL_LIMIT).await?;
        let listed = Remote::read_list(self.json(answer).await?);
        // The filter may not be known over there.
        let mine = |b: &Remote| {
            ["assigned", "building"].contains(&b.status.as_str())
                && b.worker_id.as_deref() == Some(session.worker.as_str())
        };
        Ok(listed.into_iter().filter(|b| mine(b) && wire::is_name(&b.id)).collect())
    }

    /// A build, as the controller sees it.
    ///
    /// # Errors
    /// When nobody answers, or nobody knows it.
    pub async fn look(&self, session: &Session, build: &str) -> Result<Remote, CallError> {
        let path = match session.dialect {
            Dialect::Keyed => format!("/api/builds/{build}/status"),
            // Its `/status` is for who submitted the build.
            Dialect::Tokened => format!("/api/builds/{build}"),
        };
        let request = self.request(Method::GET, &path, Some(session), Some(build)).await?;
        let answer = self.send(Call::Status, request, CALL_LIMIT).await?;
        let read = Remote::read(self.json(answer).await?);
        read.ok_or_else(|| CallError::Strange("it is no build".into()))
    }

    /// Exchanges a job's one-time password for its token.
    ///
    /// # Errors
    /// When it is not taken.
    pub async fn authenticate(&self, build: &str, otp: &str) -> Result<SecretString, CallError> {
        let path = format!("/api/builds/{build}/authenticate");
        let request = self.http.post(self.at(&path)?).json(&json!({"otp": otp}));
        let answer = self.send(Call::Authenticate, request, CALL_LIMIT).await?;
        let authenticated: Authenticated = self.json(answer).await?;
        Ok(authenticated.vm_token.into())
    }

    /// Brings a file from the controller to the disk; how long it is need not be said beforehand.
    ///
    /// # Errors
    /// When it does not come whole, or is larger than it may be.
    pub async fn fetch(&self, session: &Session, wanted: Wanted<'_>, into: &Path) -> Result<u64, CallError> {
        let disk = |source| CallError::Disk { path: into.to_owned(), source };
        let mut file = tokio::fs::File::create(into).await.map_err(disk)?;
        let bytes = self.receive(session, &wanted, &mut file, disk).await?;
        file.flush().await.map_err(disk)?;
        Ok(bytes)
    }

    /// As [`fetch`](Self::fetch), for what must not lie on the disk.
    ///
    /// # Errors
    /// As there.
    pub async fn fetch_secret(
        &self,
        session: &Session,
        wanted: Wanted<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, CallError> {
        // One that grew would leave copies behind.
        let bytes_max = usize::try_from(wanted.bytes_max).unwrap_or(usize::MAX);
        let mut secret = Zeroizing::new(Vec::with_capacity(bytes_max));
        let disk = |source| CallError::Disk { path: PathBuf::new(), source };
        self.receive(session, &wanted, &mut *secret, disk).await?;
        Ok(secret)
    }

    async fn receive(
        &self,
        session: &Session,
        wanted: &Wanted<'_>,
        into: &mut (impl AsyncWrite + Unpin),
        disk: impl Fn(std::io::Error) -> CallError,
    ) -> Result<u64, CallError> {
        let Wanted { call, build, path, bytes_max } = *wanted;
        let request = self.request(Method::GET, path, Some(session), Some(build)).await?;
        let answer = self.send(call, request, file_limit(bytes_max)).await?;
        if answer.content_length().is_some_and(|bytes| bytes > bytes_max) {
            return Err(CallError::TooLarge { max: bytes_max });
        }
        let (mut pieces, mut bytes) = (answer.bytes_stream(), 0);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.broken(call, &error))?;
            bytes += piece.len() as u64;
            if bytes > bytes_max {
                return Err(CallError::TooLarge { max: bytes_max });
            }
            into.write_all(&piece).await.map_err(&disk)?;
        }
        Ok(bytes)
    }

    fn broken(&self, call: Call, error: &reqwest::Error) -> CallError {
        let text = format!("it broke off: {}", whole_text(error));
        CallFailed { controller: self.board.name(), call, error: &text }.emit();
        CallError::Silent { text, sent: true }
    }

    /// The certificates of a build, as JSON.
    ///
    /// # Errors
    /// When there are none, or they are not given.
    pub async fn certificates(
        &self,
        session: &Session,
        build: &str,
    ) -> Result<wire::Certificates, CallError> {
        let path = format!("/api/builds/{build}/certs-secure");
        let request = self.request(Method::GET, &path, Some(session), Some(build)).await?;
        let answer = self.send(Call::Certificates, request, CALL_LIMIT).await?;
        self.json(answer).await
    }

    /// Says that a build lives.
    ///
    /// # Errors
    /// When it was not heard.
    pub async fn heartbeat(&self, session: &Session, build: &str, progress: u8) -> Result<(), CallError> {
        if session.dialect == Dialect::Tokened && session.job_token.is_none() {
            let body = json!({"build_id": build});
            let path = "/api/workers/heartbeat";
            return self.post(Call::Heartbeat, path, Some(session), Some(build), &body).await.map(drop);
        }
        let path = format!("/api/builds/{build}/heartbeat?worker_id={}", session.worker);
        let body = json!({"progress": progress});
        self.post(Call::Heartbeat, &path, Some(session), Some(build), &body).await.map(drop)
    }

    /// Tells something that was measured. It is told once: a controller that answers with an error may have kept it.
    ///
    /// # Errors
    /// When it was not heard.
    pub async fn telemetry(&self, session: &Session, build: &str, body: &Value) -> Result<(), CallError> {
        let path = format!("/api/builds/{build}/telemetry");
        self.post(Call::Telemetry, &path, Some(session), Some(build), body).await.map(drop)
    }

    /// Tells lines of a build's log.
    ///
    /// # Errors
    /// When they were not heard.
    pub async fn log(&self, session: &Session, build: &str, lines: &[Said]) -> Result<(), CallError> {
        let lines: Vec<Value> =
            lines.iter().map(|line| json!({"level": line.level, "message": line.message})).collect();
        let path = format!("/api/builds/{build}/logs");
        self.post(Call::Log, &path, Some(session), Some(build), &json!({"logs": lines})).await.map(drop)
    }

    /// Brings a success home, with its file: by the way that needs the job's token, or by the other.
    ///
    /// # Errors
    /// When it was not taken, or nobody knows whether it was.
    pub async fn succeed(
        &self,
        session: &Session,
        build: &str,
        file: &Path,
        artifact: &ArtifactView,
    ) -> Result<(), CallError> {
        let disk = |source| CallError::Disk { path: file.to_owned(), source };
        let open = tokio::fs::File::open(file).await.map_err(disk)?;
        let bytes = open.metadata().await.map_err(disk)?.len();
        let body = Body::wrap_stream(ReaderStream::with_capacity(open, PIECE_BYTES));
        let name = artifact.path.rsplit('/').next().unwrap_or(&artifact.path).to_owned();
        let part = Part::stream_with_length(body, bytes).file_name(name);
        let part =
            part.mime_str("application/octet-stream").map_err(|e| CallError::Strange(e.to_string()))?;
        let (path, form) = if session.job_token.is_some() {
            (format!("/api/builds/{build}/artifact"), Form::new().part("artifact", part))
        } else {
            let form = told(session, build, true).part("result", part);
            ("/api/workers/upload".to_owned(), form)
        };
        let request = self.request(Method::POST, &path, Some(session), Some(build)).await?;
        self.send(Call::Result, request.multipart(form), file_limit(bytes)).await.map(drop)
    }

    /// Tells that a build failed, and why.
    ///
    /// # Errors
    /// When it was not heard, or nobody knows whether it was.
    pub async fn fail(&self, session: &Session, build: &str, why: &str) -> Result<(), CallError> {
        match session.dialect {
            Dialect::Tokened => {
                let body = json!({"build_id": build, "error": why});
                let path = "/api/workers/fail";
                self.post(Call::Result, path, Some(session), Some(build), &body).await.map(drop)
            }
            Dialect::Keyed => {
                let form = told(session, build, false).text("error_message", why.to_owned());
                let request =
                    self.request(Method::POST, "/api/workers/upload", Some(session), Some(build)).await?;
                self.send(Call::Result, request.multipart(form), CALL_LIMIT).await.map(drop)
            }
        }
    }
}

/// The fields of a result, which come before its file: a controller may read no further than it must.
fn told(session: &Session, build: &str, success: bool) -> Form {
    Form::new()
        .text("build_id", build.to_owned())
        .text("worker_id", session.worker.clone())
        .text("success", if success { "true" } else { "false" })
}

fn file_limit(bytes: u64) -> Duration {
    FILE_LIMIT + Duration::from_secs(bytes / SLOWEST)
}

/// An answer's body, as far as it is of a length that an answer has.
async fn body(answer: Response) -> Result<String, CallError> {
    let (mut pieces, mut bytes) = (answer.bytes_stream(), Vec::new());
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|e| CallError::Silent { text: whole_text(&e), sent: true })?;
        if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(CallError::Strange(format!("it is longer than {ANSWER_BYTES_MAX} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An error with what is behind it, and without the URL, whose host everybody knows.
fn whole_text(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&inner.to_string());
        next = inner.source();
    }
    let how = if error.is_timeout() { "it did not answer in time" } else { "it cannot be reached" };
    if text.is_empty() { how.to_owned() } else { format!("{how}: {text}") }
}
