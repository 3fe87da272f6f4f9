//! The daemon as HTTP sees it: reads come from snapshots and the journal, writes go to the actor that owns the fact.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::BoxStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::handle::SupervisorHandle;
use crate::api::service::{Refused, Service, Ticket};
use crate::api::wire::{BuildView, LogLine, PoolView, SubmitSpec, VmView};
use crate::build::actor::{BuildArguments, BuildContext, artifacts_path, log_path};
use crate::build::live::LiveBuild;
use crate::build::log;
use crate::build::spec::BuildResult;
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::host;
use crate::ids::BuildId;
use crate::source::local;
use crate::store::{BuildRecord, StoreError};
use crate::telemetry::events::BuildAccepted;
use crate::telemetry::export::Exporter;

/// A question to a build, which answers when what it promises is on disk.
const ASK_MAX: Duration = Duration::from_secs(10);

/// The daemon's front.
pub struct Core {
    config: Arc<Config>,
    context: BuildContext,
    supervisor: SupervisorHandle,
    exporter: Exporter,
    /// Places for builds that wait or run.
    places: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Core {
    /// Over running actors.
    pub fn new(
        context: BuildContext,
        supervisor: SupervisorHandle,
        exporter: Exporter,
        stopping: CancellationToken,
    ) -> Self {
        let config = context.config.clone();
        let places = Arc::new(Semaphore::new(usize::from(config.host.builds_max)));
        Self { config, context, supervisor, exporter, places, stopping }
    }

    /// A place for a build from the journal, if one is free: it was accepted before, so it goes on without one too.
    pub fn place(&self) -> Option<Ticket> {
        self.places.clone().try_acquire_owned().ok().map(Ticket)
    }

    fn disk(&self) -> Option<host::Disk> {
        host::disk(self.config.home.path())
    }

    async fn record(&self, id: BuildId) -> Result<BuildRecord, Refused> {
        if let Some(live) = self.context.live.get(id) {
            return Ok(live.record.borrow().clone());
        }
        self.context.store.build(id).await.map_err(internal)?.ok_or(Refused::BuildUnknown(id))
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
        record.view(self.context.pool.snapshot().waiting.get(&record.id).cloned())
    }

    async fn take_in(
        &self,
        ticket: Ticket,
        request: SubmitSpec,
        source: tempfile::TempPath,
    ) -> Result<BuildView, Refused> {
        let received = local::receive(self.config.clone(), request, source).await?;
        if self.stopping.is_cancelled() {
            return Err(Refused::Stopping);
        }
        let record = BuildRecord::received(received.spec, received.source.name.clone(), UnixMillis::now());
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
        self.supervisor.build(arguments);
        Ok(view)
    }
}

fn internal(error: StoreError) -> Refused {
    Refused::Internal(error.to_string())
}

impl Service for Core {
    fn admit(&self) -> Result<Ticket, Refused> {
        if self.stopping.is_cancelled() {
            return Err(Refused::Stopping);
        }
        let min = self.config.host.disk_free_min.0;
        if let Some(disk) = self.disk().filter(|disk| disk.free < min) {
            return Err(Refused::DiskLow {
                free: disk.free,
                min,
                folder: self.config.home.path().to_owned(),
            });
        }
        self.place().ok_or(Refused::QueueFull { max: self.config.host.builds_max })
    }

    fn spool(&self) -> PathBuf {
        self.config.home.spool()
    }

    fn accept<'a>(
        &'a self,
        ticket: Ticket,
        spec: SubmitSpec,
        source: tempfile::TempPath,
    ) -> BoxFuture<'a, Result<BuildView, Refused>> {
        self.take_in(ticket, spec, source).boxed()
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
            Ok(log::read(log_path(&self.config, id), after, head))
        }
        .boxed()
    }

    fn artifact<'a>(&'a self, id: BuildId, path: &'a str) -> BoxFuture<'a, Result<PathBuf, Refused>> {
        async move {
            let record = self.record(id).await?;
            // Only what the build is known to have: a path of the request is never joined unseen.
            let found = record.artifacts.iter().find(|artifact| artifact.path == path);
            let artifact = found.ok_or_else(|| Refused::ArtifactUnknown { id, path: path.to_owned() })?;
            Ok(artifacts_path(&self.config, id).join(&artifact.path))
        }
        .boxed()
    }

    fn pools(&self) -> Vec<PoolView> {
        self.context.pool.snapshot().pools.iter().map(|pool| pool.view()).collect()
    }

    fn vms(&self) -> Vec<VmView> {
        self.context.pool.snapshot().vms.clone()
    }

    fn ready(&self) -> Result<(), String> {
        if self.stopping.is_cancelled() {
            return Err("the daemon is stopping".into());
        }
        Ok(())
    }

    fn metrics(&self) -> String {
        let disk = self.disk().map(|disk| (disk.free, disk.size));
        self.exporter.render(&self.context.pool.snapshot(), disk)
    }
}
