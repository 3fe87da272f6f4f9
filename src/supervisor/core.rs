//! The daemon as HTTP sees it: reads come from snapshots and the journal, writes go to the actor that owns the fact.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::BoxStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::handle::SupervisorHandle;
use super::images::Images;
use super::reload::{self, Reloads};
use crate::api::service::{Refused, Service, Ticket};
use crate::api::timeline::ChromeTrace;
use crate::api::wire::{
    ArtifactView, BuildView, CacheEntryView, DaemonState, ImageView, LogLine, PoolView, ReloadView,
    StatusView, SubmitSpec, VmView,
};
use crate::blocking;
use crate::build::actor::{BuildArguments, BuildContext, artifacts_path, log_path};
use crate::build::live::LiveBuild;
use crate::build::log;
use crate::build::spec::BuildResult;
use crate::cache::shelf::Entry;
use crate::clock::{UnixMicros, UnixMillis};
use crate::config::{Live, limits};
use crate::host;
use crate::ids::{BuildId, TreeId};
use crate::pool::ledger::Drain;
use crate::pool::needs::Standing;
use crate::pool::snapshot::PoolState;
use crate::source::controller::Board;
use crate::source::local;
use crate::store::record::Stamps;
use crate::store::{BuildRecord, StoreError};
use crate::telemetry::caching::Removal;
use crate::telemetry::events::{BuildAccepted, DrainChanged, TreeTaken};
use crate::telemetry::export::Exporter;
use crate::trace::timeline;
use crate::vm::state::VmStateName;

/// More than `host.builds_max` can be; how many of them may be taken, the configuration in force says.
const PLACES: usize = limits::BUILDS_MAX.max as usize;
/// A question to the pool, or to a build, which answers when what it promises is on disk.
const ASK_MAX: Duration = Duration::from_secs(10);
/// What a trace needs may be on its way to the journal for so long; without it the trace ends earlier.
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// An accepted build's actor may take so long to be there before its client is answered all the same.
const SEEN_MAX: Duration = Duration::from_secs(10);

/// Artifacts by their paths.
type Shown = BTreeMap<String, ArtifactView>;

/// The daemon's front.
pub struct Core {
    config: Live,
    context: BuildContext,
    supervisor: SupervisorHandle,
    exporter: Exporter,
    /// Places for builds that wait or run, as many as a configuration may allow.
    places: Arc<Semaphore>,
    stopping: CancellationToken,
    reloads: Reloads,
    /// Those of the build that was asked for one last: they are fetched one by one, and a record may name ten thousand.
    shown: std::sync::Mutex<Option<(BuildId, Arc<Shown>)>>,
    images: Arc<Images>,
    /// Held by whoever changes what the daemon does as a whole, so that journal and pool end up saying the same.
    changing: Arc<Mutex<()>>,
    /// How we stand with controllers.
    boards: OnceLock<Vec<Board>>,
}

impl Core {
    /// Over running actors.
    pub fn new(
        context: BuildContext,
        supervisor: SupervisorHandle,
        exporter: Exporter,
        stopping: CancellationToken,
        images: Arc<Images>,
    ) -> Self {
        let config = context.config.clone();
        let places = Arc::new(Semaphore::new(PLACES));
        Self {
            reloads: Reloads::default(),
            config,
            context,
            supervisor,
            exporter,
            places,
            stopping,
            shown: std::sync::Mutex::default(),
            changing: images.changing.clone(),
            images,
            boards: OnceLock::new(),
        }
    }

    /// How we stand with controllers is read from these. Only the first time counts.
    pub fn show(&self, boards: Vec<Board>) {
        self.boards.set(boards).ok();
    }

    /// A place for a build from the journal, if one is free: it was accepted before, so it goes on without one too.
    pub fn place(&self) -> Option<Ticket> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        let taken = PLACES - self.places.available_permits();
        (taken <= usize::from(self.config.get().host.builds_max)).then_some(Ticket(place))
    }

    /// Where the configuration comes from, when it is to be read anew.
    pub fn read_anew_from(&self, source: reload::Source) {
        self.reloads.read_from(source);
    }

    /// From here on no build is taken or begun, and what no build has is taken away. It cannot be taken back.
    pub async fn begin_ending(&self) {
        self.stopping.cancel();
        let _changing = self.changing.lock().await;
        self.context.pool.drain(Some(Drain::Ending), ASK_MAX).await;
    }

    async fn set_draining(&self, draining: bool) -> Result<StatusView, Refused> {
        let _changing = self.changing.lock().await;
        if self.stopping.is_cancelled() {
            return Err(Refused::Stopping);
        }
        self.context.store.note_draining(draining).await.map_err(internal)?;
        self.context.pool.drain(draining.then_some(Drain::Asked), ASK_MAX).await;
        DrainChanged { draining }.emit();
        Ok(self.status())
    }

    /// Why no build is taken now.
    fn serves(&self) -> Result<(), Refused> {
        if self.stopping.is_cancelled() {
            return Err(Refused::Stopping);
        }
        if self.context.pool.snapshot().draining { Err(Refused::Draining) } else { Ok(()) }
    }

    fn disk(&self) -> Option<host::Disk> {
        host::disk(self.config.get().home.path())
    }

    async fn record(&self, id: BuildId) -> Result<BuildRecord, Refused> {
        if let Some(live) = self.context.live.get(id) {
            return Ok(live.record.borrow().clone());
        }
        self.context.store.build(id).await.map_err(internal)?.ok_or(Refused::BuildUnknown(id))
    }

    fn shown(&self, id: BuildId) -> Option<Arc<Shown>> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.as_ref().filter(|(of, _)| *of == id).map(|(_, artifacts)| artifacts.clone())
    }

    /// A build's actor; `None` when the build is over. One that was just accepted, or taken up, is about to start.
    async fn live(&self, id: BuildId) -> Result<Option<LiveBuild>, Refused> {
        if let Some(live) = self.context.live.get(id) {
            return Ok(Some(live));
        }
        // It leaves when its result is on disk, so without one it is still to come.
        let record = self.context.store.build(id).await.map_err(internal)?;
        if record.is_none_or(|record| record.result.is_some()) {
            return Ok(None);
        }
        let silent = |_| Refused::Internal(format!("build {id} does not answer"));
        timeout(ASK_MAX, self.context.live.entering(id)).await.map(Some).map_err(silent)
    }

    fn view(&self, record: &BuildRecord) -> BuildView {
        record.view(self.context.pool.snapshot().waits_for(record.id))
    }

    /// For a build that may leave the choice of its pool.
    fn as_found(&self) -> local::Daemon {
        let one = |pool: &PoolState| Standing {
            warm: pool.count(VmStateName::Warm),
            waiting: pool.waiting.into(),
            trouble: pool.trouble.is_some(),
        };
        let snapshot = self.context.pool.snapshot();
        let pools = snapshot.pools.iter().map(|pool| (pool.name.clone(), one(pool))).collect();
        local::Daemon { config: self.config.get(), pools }
    }

    async fn take_in(
        &self,
        ticket: Ticket,
        request: SubmitSpec,
        source: tempfile::TempPath,
    ) -> Result<BuildView, Refused> {
        let arrived = self.context.chronicle.anchor().now();
        let received = local::receive(self.as_found(), request, source).await?;
        self.begin(ticket, arrived, received).await
    }

    async fn begin(
        &self,
        ticket: Ticket,
        arrived: UnixMicros,
        received: local::Received,
    ) -> Result<BuildView, Refused> {
        self.serves()?;
        let source = received.source.name.clone();
        let mut record = BuildRecord::received(received.spec, source, UnixMillis::now());
        let submitted_us = Some(self.context.chronicle.anchor().now());
        record.stamps = Stamps { arrived_us: Some(arrived), submitted_us, finished_us: None };
        let secrets = Arc::new(received.secrets);
        let record = self.context.store.insert(record, secrets.clone()).await.map_err(internal)?;
        received.source.keep();
        BuildAccepted { build: record.id, project: &record.spec.project, pool: &record.spec.pool }.emit();
        let view = self.view(&record);
        let arguments = BuildArguments {
            context: self.context.clone(),
            record,
            secrets,
            go_on: false,
            ticket: Some(ticket),
        };
        self.supervisor.build_seen(arguments, SEEN_MAX).await;
        Ok(view)
    }
}

fn internal(error: StoreError) -> Refused {
    Refused::Internal(error.to_string())
}

impl Service for Core {
    fn admit(&self, bytes: Option<u64>) -> Result<Ticket, Refused> {
        self.serves()?;
        let config = self.config.get();
        let min = config.host.disk_free_min.0;
        let folder = || config.home.path().to_owned();
        match (self.disk().map(|disk| disk.free), bytes) {
            (Some(free), _) if free < min => return Err(Refused::DiskLow { free, min, folder: folder() }),
            (Some(free), Some(bytes)) if free < min.saturating_add(bytes) => {
                return Err(Refused::DiskTooSmall { bytes, free, min, folder: folder() });
            }
            (Some(_) | None, _) => {}
        }
        self.place().ok_or(Refused::QueueFull { max: config.host.builds_max })
    }

    fn spool(&self) -> PathBuf {
        self.config.get().home.spool()
    }

    fn accept<'a>(
        &'a self,
        ticket: Ticket,
        spec: SubmitSpec,
        source: tempfile::TempPath,
    ) -> BoxFuture<'a, Result<BuildView, Refused>> {
        self.take_in(ticket, spec, source).boxed()
    }

    fn accept_tree<'a>(
        &'a self,
        ticket: Ticket,
        spec: SubmitSpec,
        tree: TreeId,
        source: Option<tempfile::TempPath>,
    ) -> BoxFuture<'a, Result<BuildView, Refused>> {
        async move {
            let (known, arrived) = (source.is_none(), self.context.chronicle.anchor().now());
            let received = local::receive_tree(self.as_found(), spec, tree, source).await?;
            TreeTaken { known }.emit();
            self.begin(ticket, arrived, received).await
        }
        .boxed()
    }

    fn builds(&self, limit: u32) -> BoxFuture<'_, Result<Vec<BuildView>, Refused>> {
        async move {
            let records = self.context.store.builds(limit).await.map_err(internal)?;
            // The journal may be a moment behind a build that is under way.
            let newest = records.into_iter().map(|record| match self.context.live.get(record.id) {
                Some(live) => live.record.borrow().clone(),
                None => record,
            });
            Ok(newest.map(|record| self.view(&record)).collect())
        }
        .boxed()
    }

    fn build(&self, id: BuildId) -> BoxFuture<'_, Result<BuildView, Refused>> {
        async move { Ok(self.view(&self.record(id).await?)) }.boxed()
    }

    fn trace(&self, id: BuildId) -> BoxFuture<'_, Result<ChromeTrace, Refused>> {
        async move {
            self.context.chronicle.settled(SETTLE_MAX).await;
            let record = self.record(id).await?;
            let beside = self.context.store.timeline(id).await.map_err(internal)?;
            let snapshot = self.context.pool.snapshot();
            let alive = |name: &str| snapshot.vms.iter().any(|vm| vm.name == name);
            let now = self.context.chronicle.anchor().now();
            let known = timeline::Known { record: &record, beside: &beside, now, alive: &alive };
            Ok(timeline::trace(&known))
        }
        .boxed()
    }

    fn cancel(&self, id: BuildId) -> BoxFuture<'_, Result<(), Refused>> {
        async move {
            if self.record(id).await?.result.is_some() {
                return Err(Refused::BuildOver(id));
            }
            let Some(live) = self.live(id).await? else { return Err(Refused::BuildOver(id)) };
            match live.handle.cancel(ASK_MAX).await {
                Some(true) => Ok(()),
                Some(false) => Err(Refused::BuildOver(id)),
                None => match self.record(id).await?.result {
                    // It ended so before its request was written down.
                    Some(BuildResult::Cancellation) => Ok(()),
                    Some(_) => Err(Refused::BuildOver(id)),
                    None => Err(Refused::Internal(format!("build {id} does not answer"))),
                },
            }
        }
        .boxed()
    }

    fn log(
        &self,
        id: BuildId,
        after: u64,
        follow: bool,
    ) -> BoxFuture<'_, Result<BoxStream<'static, LogLine>, Refused>> {
        async move {
            // The head first: a build that ends in between has its whole log in the file.
            let head = self.context.live.get(id).map(|live| live.log).filter(|_| follow);
            self.record(id).await?;
            Ok(log::read(log_path(&self.config.get(), id), after, head))
        }
        .boxed()
    }

    fn artifact<'a>(
        &'a self,
        id: BuildId,
        path: &'a str,
    ) -> BoxFuture<'a, Result<(ArtifactView, PathBuf), Refused>> {
        async move {
            let folder = artifacts_path(&self.config.get(), id);
            if let Some(artifact) = self.shown(id).and_then(|shown| shown.get(path).cloned()) {
                let place = folder.join(&artifact.path);
                // It may have gone, as old builds do.
                if tokio::fs::try_exists(&place).await.unwrap_or(false) {
                    return Ok((artifact, place));
                }
            }
            let record = self.record(id).await?;
            let over = record.result.is_some();
            let artifacts: Shown = record.artifacts.into_iter().map(|a| (a.path.clone(), a)).collect();
            // Only what the build is known to have: a path of the request is never joined unseen.
            let found = artifacts.get(path).cloned();
            if over {
                *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, Arc::new(artifacts)));
            }
            let artifact = found.ok_or_else(|| Refused::ArtifactUnknown { id, path: path.to_owned() })?;
            let place = folder.join(&artifact.path);
            Ok((artifact, place))
        }
        .boxed()
    }

    fn caches(&self) -> Vec<CacheEntryView> {
        self.context.caches.entries().iter().map(Entry::view).collect()
    }

    fn remove_cache<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<CacheEntryView, Refused>> {
        async move {
            let (shelf, name) = (self.context.caches.clone(), id.to_owned());
            let removed = blocking::run(move || shelf.remove(&name, Removal::Asked)).await;
            let entry = removed.map_err(|e| Refused::Internal(e.to_string()))?;
            entry.map(|entry| entry.view()).ok_or_else(|| Refused::CacheUnknown(id.to_owned()))
        }
        .boxed()
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<ImageView>, Refused>> {
        self.images.list().boxed()
    }

    fn use_image<'a>(
        &'a self,
        name: &'a str,
        generation: Option<u32>,
    ) -> BoxFuture<'a, Result<ImageView, Refused>> {
        async move {
            if self.stopping.is_cancelled() {
                return Err(Refused::Stopping);
            }
            self.images.choose(name, generation).await
        }
        .boxed()
    }

    fn roll_image_back<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ImageView, Refused>> {
        async move {
            if self.stopping.is_cancelled() {
                return Err(Refused::Stopping);
            }
            self.images.roll_back(name).await
        }
        .boxed()
    }

    fn pools(&self) -> Vec<PoolView> {
        self.context.pool.snapshot().pools.iter().map(|pool| pool.view()).collect()
    }

    fn vms(&self) -> Vec<VmView> {
        self.context.pool.snapshot().vms.iter().cloned().collect()
    }

    fn status(&self) -> StatusView {
        let (snapshot, live) = (self.context.pool.snapshot(), &self.context.live);
        let (running, present) = (live.running(), snapshot.present());
        let state = match (self.stopping.is_cancelled(), snapshot.draining) {
            (true, _) => DaemonState::Stopping,
            (false, true) if running == 0 && present == 0 => DaemonState::Drained,
            (false, true) => DaemonState::Draining,
            (false, false) => DaemonState::Serving,
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        StatusView {
            state,
            builds_running: count(running),
            builds_waiting: count(live.count().saturating_sub(running)),
            vms: count(present),
            vms_quarantined: count(snapshot.vms.len() - present),
            config: self.reloads.view(),
            controllers: self.boards.get().into_iter().flatten().map(Board::view).collect(),
        }
    }

    fn drain(&self) -> BoxFuture<'_, Result<StatusView, Refused>> {
        self.set_draining(true).boxed()
    }

    fn resume(&self) -> BoxFuture<'_, Result<StatusView, Refused>> {
        self.set_draining(false).boxed()
    }

    fn reload(&self) -> BoxFuture<'_, Result<ReloadView, Refused>> {
        async move {
            let _changing = self.changing.lock().await;
            if self.stopping.is_cancelled() {
                return Err(Refused::Stopping);
            }
            let parts = reload::Parts {
                live: &self.config,
                pool: &self.context.pool,
                exporter: &self.exporter,
                images: &self.images,
                limit: ASK_MAX,
            };
            let view = self.reloads.reload(parts).await?;
            self.supervisor.uploads();
            Ok(view)
        }
        .boxed()
    }

    fn ready(&self) -> Result<(), String> {
        self.serves().map_err(|refused| refused.to_string())
    }

    fn metrics(&self) -> String {
        let disk = self.disk().map(|disk| (disk.free, disk.size));
        self.exporter.render(&self.context.pool.snapshot(), disk)
    }
}
