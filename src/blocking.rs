//! Work that may block a thread: the journal, files, the disk's size. It runs on tokio's threads for that. Under a simulation
//! it runs in place instead, as a task that a simulated disk begins and ends when it likes: threads would bring their own
//! order into a history that is to be the same for the same seed.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tokio::io::AsyncWrite;
use tokio::task::JoinError;

/// A disk in a simulation.
pub trait Disk: Send + Sync {
    /// Resolves when the work may go on. Asked before each piece of work and again before its result is told.
    fn turn(self: Arc<Self>) -> BoxFuture<'static, ()>;

    /// Whether the daemon that asks is dead: nothing of it reaches the disk any more.
    fn dead(&self) -> bool;
}

thread_local! {
    static SIMULATED: RefCell<Option<Arc<dyn Disk>>> = const { RefCell::new(None) };
}

/// For simulations: what this thread's work waits for from now on. `None` puts the threads back.
pub fn simulate_disk(disk: Option<Arc<dyn Disk>>) {
    SIMULATED.set(disk);
}

fn simulated() -> Option<Arc<dyn Disk>> {
    SIMULATED.with_borrow(Clone::clone)
}

/// Does `work` where it may block. It is done even when nobody waits for it any more.
///
/// # Errors
/// When it panicked, or the runtime is being shut down.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    let task = match simulated() {
        None => tokio::task::spawn_blocking(work),
        Some(disk) => tokio::spawn(async move {
            disk.clone().turn().await;
            let done = work();
            disk.turn().await;
            done
        }),
    };
    task.await
}

/// As [`run`], for work on files.
///
/// # Errors
/// The work's own, and those of [`run`].
pub async fn io<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    run(work).await.map_err(io::Error::other)?
}

/// A file to write to.
#[derive(Debug)]
pub enum File {
    Threaded(tokio::fs::File),
    InPlace(std::fs::File),
}

impl File {
    /// Takes an open file over.
    pub fn new(file: std::fs::File) -> Self {
        match simulated() {
            None => Self::Threaded(tokio::fs::File::from_std(file)),
            Some(_) => Self::InPlace(file),
        }
    }

    /// Waits until what was written and flushed is on the disk.
    ///
    /// # Errors
    /// When it is not.
    pub async fn sync_data(&self) -> io::Result<()> {
        match self {
            Self::Threaded(file) => file.sync_data().await,
            Self::InPlace(file) => file.sync_data(),
        }
    }
}

impl AsyncWrite for File {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Threaded(file) => Pin::new(file).poll_write(cx, bytes),
            Self::InPlace(_) if simulated().is_some_and(|disk| disk.dead()) => Poll::Pending,
            Self::InPlace(file) => Poll::Ready(io::Write::write(file, bytes)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Threaded(file) => Pin::new(file).poll_flush(cx),
            Self::InPlace(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Threaded(file) => Pin::new(file).poll_shutdown(cx),
            Self::InPlace(_) => Poll::Ready(Ok(())),
        }
    }
}
