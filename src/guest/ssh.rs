//! The channel over SSH: the connector, and the port's words put into the rooms beside this file.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::connection::{self, Connection};
use super::follow::Follower;
use super::link::Link;
use super::{
    Bounds, Channel, Connector, Ended, Fresh, Line, Look, Position, PutCache, Script, SignError, Take,
    TakeCache, TakeError, Taken, TakenCache, Target, cache, fresh, health, master, signing, takeout,
    transfer,
};
use crate::clock::Deadline;
use crate::ids::RunId;
use crate::runtime::Fault;
use crate::signing::Kit;

/// Opens channels over SSH.
#[derive(Debug, Clone, Copy, Default)]
pub struct SshConnector;

/// Ends what a killed daemon of this user left: its control connections and their folders. For the daemon's start.
/// Returns how many folders were removed.
pub async fn sweep_orphans() -> usize {
    master::sweep().await
}

/// A control socket's path, as long as it gets: systems bound it.
pub fn longest_socket_path() -> std::path::PathBuf {
    master::longest_socket_path()
}

impl Connector for SshConnector {
    fn connect<'a>(
        &'a self,
        target: &'a Target,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, Fault>> {
        async move {
            let first = connection::connect(target, None, deadline).await?;
            Ok(Arc::new(SshChannel::new(Link::new(target.clone(), first))) as Arc<dyn Channel>)
        }
        .boxed()
    }

    fn connect_resumed<'a>(
        &'a self,
        target: &'a Target,
        fresh: &'a Fresh,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, Fault>> {
        async move {
            let first = connection::connect(target, Some(fresh), deadline).await?;
            Ok(Arc::new(SshChannel::new(Link::new(target.clone(), first))) as Arc<dyn Channel>)
        }
        .boxed()
    }
}

/// The way into one guest, over one connection after the other.
#[derive(Debug)]
pub struct SshChannel {
    link: Link,
    /// Where the keychain was unlocked last.
    unlocked: signing::Unlocked,
}

impl SshChannel {
    fn new(link: Link) -> Self {
        Self { link, unlocked: signing::Unlocked::default() }
    }
}

impl Channel for SshChannel {
    fn probe(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        async move {
            let ask = |on: Arc<Connection>, left| async move { on.probe(left).await }.boxed();
            self.link.answered(limit, ask).await
        }
        .boxed()
    }

    fn greet(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        async move {
            let ask = |on: Arc<Connection>, left| async move { on.greet(left).await }.boxed();
            self.link.answered(limit, ask).await
        }
        .boxed()
    }

    fn make_ready(&self) -> BoxFuture<'_, ()> {
        self.link.make_ready().boxed()
    }

    fn put_tree<'a>(&'a self, tar: &'a Path, deadline: Deadline) -> BoxFuture<'a, Result<u64, Fault>> {
        transfer::put_tree(&self.link, tar, deadline).boxed()
    }

    fn reserve(&self) -> RunId {
        self.link.reserved().unwrap_or_default()
    }

    fn run<'a>(
        &'a self,
        id: &'a RunId,
        script: &'a Script,
        lines: mpsc::Sender<Line>,
        cancel: CancellationToken,
    ) -> BoxFuture<'a, Result<Ended, Fault>> {
        async move { Follower::new(&self.link, id, Position::default(), lines).run(script, cancel).await }
            .boxed()
    }

    fn attach<'a>(
        &'a self,
        id: &'a RunId,
        from: Position,
        bounds: Bounds,
        lines: mpsc::Sender<Line>,
        cancel: CancellationToken,
    ) -> BoxFuture<'a, Result<Option<Ended>, Fault>> {
        async move { Follower::new(&self.link, id, from, lines).attach(bounds, cancel).await }.boxed()
    }

    fn take<'a>(&'a self, take: &'a Take) -> BoxFuture<'a, Result<Vec<Taken>, TakeError>> {
        takeout::take(&self.link, take).boxed()
    }

    fn make_ready_to_resume(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        async move {
            let ask =
                |on: Arc<Connection>, left| async move { fresh::await_it(&on.wire, left).await }.boxed();
            self.link.answered(limit, ask).await
        }
        .boxed()
    }

    fn put_cache<'a>(&'a self, put: &'a PutCache) -> BoxFuture<'a, Result<u64, Fault>> {
        cache::put(&self.link, put).boxed()
    }

    fn take_cache<'a>(&'a self, take: &'a TakeCache) -> BoxFuture<'a, Result<TakenCache, TakeError>> {
        cache::take(&self.link, take).boxed()
    }

    fn watch<'a>(
        &'a self,
        every: Duration,
        hurry: &'a Notify,
        looks: mpsc::Sender<Look>,
    ) -> BoxFuture<'a, ()> {
        health::watch(&self.link, every, hurry, looks).boxed()
    }

    fn install_signing<'a>(
        &'a self,
        kit: &'a Kit,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<(), SignError>> {
        signing::install(&self.link, &self.unlocked, kit, deadline).boxed()
    }

    fn unlock_signing<'a>(
        &'a self,
        kit: &'a Kit,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<String, SignError>> {
        signing::unlock(&self.link, &self.unlocked, kit, deadline).boxed()
    }

    fn remove_signing<'a>(
        &'a self,
        kit: &'a Kit,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<(), SignError>> {
        signing::remove(&self.link, kit, deadline).boxed()
    }

    fn lost(&self) -> BoxFuture<'static, Fault> {
        self.link.lost()
    }

    fn abandon(&self, why: Fault) {
        self.link.abandon(why);
    }
}
