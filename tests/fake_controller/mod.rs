//! A controller that hands out builds, in both dialects, over real HTTP. What is wrong with the real ones is a switch here. It
//! can be stopped and started again with what it had in its database.

#![expect(dead_code, reason = "each test crate uses its part")]

pub mod book;
mod keyed;
mod tokened;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequest as _, Multipart, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use book::{Book, Build};

/// The key that all workers share.
pub const KEY: &str = "0123456789abcdef-key";
/// How long anything may take before a test gives up.
pub const LONG: Duration = Duration::from_secs(120);

/// How it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Keyed,
    Tokened,
}

/// What is wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Bugs {
    /// Heartbeats are answered with 500 and not noted.
    pub heartbeats_fail: bool,
    /// Telemetry is stored, and answered with 500.
    pub telemetry_fails: bool,
    /// Builds that are cancelled while they wait are offered all the same: as failed, or, in the other dialect, revived.
    pub ghosts: bool,
    /// So many results are stored and answered with 500.
    pub results_fail_after: u32,
    /// So many results are answered with 503 and not stored.
    pub results_fail_before: u32,
    /// So many calls with lines of a log are answered with 500.
    pub logs_fail: u32,
    /// A success that is told without a file after the file was there makes a failure of the build.
    pub flips: bool,
    /// Tokens of jobs are too old from the beginning, but for the source and the log.
    pub job_tokens_expire: bool,
    /// Certificates do not come as JSON.
    pub certificates_fail: bool,
}

/// What is shared by its connections.
pub struct Shared {
    speaks: Speaks,
    book: Mutex<Book>,
    changed: watch::Sender<u64>,
}

/// The controller.
pub struct FakeController {
    shared: Arc<Shared>,
    address: SocketAddr,
    server: Option<JoinHandle<()>>,
}

type Served = Result<Response, Refusal>;

/// An answer that is an error.
struct Refusal {
    status: StatusCode,
    body: Value,
}

fn answer(status: StatusCode, body: Value) -> Response {
    (status, Json(body)).into_response()
}

fn refuse(status: StatusCode, error: &str) -> Refusal {
    Refusal { status, body: json!({"error": error}) }
}

/// In pieces, without a length.
fn file(bytes: Vec<u8>) -> Response {
    let pieces: Vec<Result<Bytes, std::io::Error>> =
        bytes.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let body = Body::from_stream(futures::stream::iter(pieces));
    ([("content-type", "application/zip")], body).into_response()
}

/// What came in a form.
#[derive(Default)]
struct Form {
    build: String,
    worker: String,
    success: bool,
    error: Option<String>,
    file: Option<(String, Vec<u8>)>,
}

/// A call, taken apart.
struct CallIn {
    method: Method,
    path: Vec<String>,
    query: String,
    headers: axum::http::HeaderMap,
    request: Request,
}

impl CallIn {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(n, _)| *n == name).map(|(_, v)| v.to_owned()).next()
    }

    /// The body as JSON. An empty one that says that it is JSON is refused, as the real one does.
    async fn json(self) -> Result<Value, Refusal> {
        let bytes = axum::body::to_bytes(self.request.into_body(), usize::MAX).await;
        let bytes = bytes.map_err(|e| refuse(StatusCode::BAD_REQUEST, &e.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|_| {
            let body = json!({"statusCode": 400, "code": "FST_ERR_CTP_EMPTY_JSON_BODY", "error": "Bad Request",
                "message": "Body cannot be empty when content-type is set to 'application/json'"});
            Refusal { status: StatusCode::BAD_REQUEST, body }
        })
    }

    async fn form(self) -> Result<Form, Refusal> {
        let bad = |e: String| refuse(StatusCode::BAD_REQUEST, &e);
        let multipart = Multipart::from_request(self.request, &()).await;
        let mut multipart = multipart.map_err(|e| bad(e.to_string()))?;
        let mut form = Form::default();
        while let Some(field) = multipart.next_field().await.map_err(|e| bad(e.to_string()))? {
            let name = field.name().unwrap_or_default().to_owned();
            let bytes = field.bytes().await.map_err(|e| bad(e.to_string()))?.to_vec();
            let text = || String::from_utf8_lossy(&bytes).into_owned();
            match name.as_str() {
                "build_id" => form.build = text(),
                "worker_id" => form.worker = text(),
                "success" => form.success = text() == "true",
                "error_message" => form.error = Some(text()),
                _ => form.file = Some((name, bytes)),
            }
        }
        Ok(form)
    }
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path: Vec<String> =
        request.uri().path().split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let call = CallIn {
        method: request.method().clone(),
        path,
        query: request.uri().query().unwrap_or_default().to_owned(),
        headers: request.headers().clone(),
        request,
    };
    shared.book().calls.push(format!("{} /{}", call.method, call.path.join("/")));
    let served = match shared.speaks {
        Speaks::Keyed => keyed::serve(&shared, call).await,
        Speaks::Tokened => tokened::serve(&shared, call).await,
    };
    shared.changed.send_modify(|n| *n += 1);
    served.unwrap_or_else(|refused| answer(refused.status, refused.body))
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lines of a log, from either shape of the call. What is none is dropped without a word.
fn log_lines(body: &Value) -> Vec<(String, String)> {
    let one = |line: &Value| {
        let text =
            |name: &str| line.get(name).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_owned);
        let level = text("level").filter(|l| ["info", "warn", "error"].contains(&l.as_str()))?;
        Some((level, text("message")?))
    };
    match body.get("logs").and_then(Value::as_array) {
        Some(lines) => lines.iter().filter_map(one).collect(),
        None => one(body).into_iter().collect(),
    }
}

async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    let router = Router::new().fallback(handle).layer(DefaultBodyLimit::disable()).with_state(shared);
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let service = TowerToHyperService::new(router.clone());
        // In the set, so that they are cut when it stops.
        connections.spawn(async move {
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
        while connections.try_join_next().is_some() {}
    }
}

impl FakeController {
    /// Listening.
    pub async fn start(speaks: Speaks, bugs: Bugs) -> Self {
        let book = Book { bugs, ..Book::default() };
        let shared = Arc::new(Shared { speaks, book: Mutex::new(book), changed: watch::channel(0).0 });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let server = Some(tokio::spawn(listen(shared.clone(), listener)));
        Self { shared, address, server }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// It is gone, with every connection. Its database stays.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            server.await.ok();
        }
    }

    /// It is there again.
    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port");
        self.server = Some(tokio::spawn(listen(self.shared.clone(), listener)));
    }

    /// What it knows.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book()
    }

    /// Somebody hands in a build.
    pub fn submit(&self, source: Vec<u8>) -> String {
        self.submit_with(source, None)
    }

    /// The same, with a bundle of certificates.
    pub fn submit_with(&self, source: Vec<u8>, certificates: Option<Vec<u8>>) -> String {
        let id = self.book().submit(source, certificates);
        self.shared.changed.send_modify(|n| *n += 1);
        id
    }

    /// A build.
    pub fn build(&self, id: &str) -> Build {
        self.book().builds[id].clone()
    }

    /// Waits until the book is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Book) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let waited = tokio::time::timeout(LONG, changed.wait_for(|_| wanted(&self.book()))).await;
        if waited.is_err() {
            panic!("never {what}: {:#?}", self.book());
        }
    }

    /// Waits until a build is over, and returns it.
    pub async fn over(&self, id: &str) -> Build {
        self.until(&format!("over: {id}"), |book| book.builds[id].over()).await;
        self.build(id)
    }

    /// The switches.
    pub fn bugs(&self, change: impl FnOnce(&mut Bugs)) {
        change(&mut self.book().bugs);
    }
}

impl Drop for FakeController {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// A project as a client packs it: a zip without a folder around it.
pub fn zipped(files: &[(&str, &str)]) -> Vec<u8> {
    use std::io::Write as _;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).expect("begun");
        zip.write_all(text.as_bytes()).expect("written");
    }
    zip.finish().expect("whole").into_inner()
}
