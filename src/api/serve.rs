//! Connections: accepted under a bound, each with limits on how slow it may be, and ended in order.
//!
//! `listening -> draining (no new connection, followed logs end, answers go on) -> cut (after Limits::drain)`

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::options::{Limits, Options};
use super::routes::{App, router};
use super::service::Service;
use super::stall::Stall;

/// A connection's buffer: the longest head of a request, and the largest piece of a body.
const BUFFER_BYTES: usize = 64 << 10;
/// How long what a client still sends is read and dropped after its answer: closed at once, the reset would overtake
/// the answer, and the client would report a broken pipe instead of the reason.
const LINGER: Duration = Duration::from_secs(2);
/// After the system could not give a connection: it lacks descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why nobody can listen there.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else does.
    #[error("cannot listen on {listen}: port {} is in use", listen.port())]
    InUse { listen: SocketAddr },
    /// The port is not for us.
    #[error("cannot listen on {listen}: port {} is not permitted to this user", listen.port())]
    NotPermitted { listen: SocketAddr },
    /// The address is not of this host.
    #[error("cannot listen on {listen}: this host has no address {}", listen.ip())]
    NoAddress { listen: SocketAddr },
    /// Something else.
    #[error("cannot listen on {listen}: {source}")]
    Other { listen: SocketAddr, source: io::Error },
}

impl BindError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::InUse { listen } => format!(
                "another daemon may run already (`preheat --url http://{listen} pool` asks it); else set `api.listen` in \
                 preheat.toml to a free port"
            ),
            Self::NotPermitted { .. } => "set `api.listen` in preheat.toml to a port from 1024 on".into(),
            Self::NoAddress { .. } => {
                "set `api.listen` in preheat.toml to 127.0.0.1 or an address of this host".into()
            }
            Self::Other { .. } => "check `api.listen` in preheat.toml".into(),
        }
    }
}

/// Listens on `api.listen`.
///
/// # Errors
/// When that is not possible.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(listen).await.map_err(|source| {
        let kind = source.kind();
        if kind == io::ErrorKind::AddrInUse {
            BindError::InUse { listen }
        } else if kind == io::ErrorKind::PermissionDenied {
            BindError::NotPermitted { listen }
        } else if kind == io::ErrorKind::AddrNotAvailable {
            BindError::NoAddress { listen }
        } else {
            BindError::Other { listen, source }
        }
    })
}

/// Serves until `shutdown`; returns when every connection is closed, at most [`Limits::drain`] later.
pub async fn serve(
    listener: TcpListener,
    service: Arc<dyn Service>,
    options: Options,
    shutdown: CancellationToken,
) {
    let limits = options.limits;
    let router = router(App::new(service, options, shutdown.clone()));
    let places = Arc::new(Semaphore::new(limits.connections));
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    while let Some((place, stream)) = next(&listener, &places, &shutdown).await {
        let (router, shutdown, cut) = (router.clone(), shutdown.clone(), cut.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = connection(stream, router, limits, shutdown) => {}
                () = cut.cancelled() => {}
            }
            drop(place);
        });
    }
    drop(listener);
    tasks.close();
    if timeout(limits.drain, tasks.wait()).await.is_err() {
        cut.cancel();
        tasks.wait().await;
    }
}

/// The next connection and its place, or `None` at the end.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(tokio::sync::OwnedSemaphorePermit, TcpStream)> {
    let accept = async {
        let place = Arc::clone(places).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((place, stream)),
                // A client that was gone before it was accepted, or a lack of descriptors: neither ends the daemon.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        accepted = accept => accepted,
    }
}

async fn connection(stream: TcpStream, router: Router, limits: Limits, shutdown: CancellationToken) {
    stream.set_nodelay(true).ok();
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |request| Box::pin(service.call(request)));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_read)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(Stall::new(stream, limits.write_idle)), service);
    let ended = tokio::select! {
        ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => ended,
        () = shutdown.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    if ended.is_ok() {
        linger(connection.into_parts().io.into_inner().into_inner()).await;
    }
}

/// Says that nothing more comes, and reads until the other side has understood.
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut scrap = vec![0; 16 << 10];
    let drained = async { while stream.read(&mut scrap).await.is_ok_and(|n| n > 0) {} };
    timeout(LINGER, drained).await.ok();
}
