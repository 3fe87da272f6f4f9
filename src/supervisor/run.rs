//! Start order and stop order. Start: folders, lock, journal, port; what an earlier daemon left is cleared away; actors;
//! builds from the journal; then the API. End: no new builds, and what runs goes on for a while (`ending` says for how long);
//! builds' actors end, and the journal keeps their builds for the next start; VMs are taken away; the API goes last, so that
//! a client sees the end.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::actor::{self, SupervisorArguments};
use super::clearing::{self, Found, clear_up};
use super::core::Core;
use super::ending::{self, Signals};
use super::handle::SupervisorHandle;
use super::images::{self, Images};
use super::reload::{Follower, Read, Source};
use super::resume::{self, Fate};
use super::rounds;
use crate::api;
use crate::api::serve::BindError;
use crate::build::actor::{BuildArguments, BuildContext, folder, log_path};
use crate::build::live::LiveBuilds;
use crate::build::log;
use crate::build::place::Verdict;
use crate::cache::shelf::Shelf;
use crate::clock::UnixMillis;
use crate::config::{Config, Live, Loaded};
use crate::guest::Connector;
use crate::guest::ssh::{self, SshConnector};
use crate::ids::{BuildId, Generation};
use crate::pool::actor::{GoldenNote, PoolArguments};
use crate::pool::ledger::Drain;
use crate::pool::snapshot::PoolSnapshot;
use crate::runtime::Runtime;
use crate::runtime::tart::Tart;
use crate::source::api::Api;
use crate::source::{Sources, controller};
use crate::store::{BuildRecord, Store, StoreError, Values};
use crate::telemetry::events::{BuildEnded, DaemonDraining, DaemonStarted, Degraded, HttpAnswered};
use crate::telemetry::export::{self, Exporter};
use crate::trace::chronicle::{self, Chronicle};
use crate::upload::sink::{Courier, Sinks};

/// A question to the supervisor.
const ASK_MAX: Duration = Duration::from_secs(10);

/// Notes of suspended VMs on their way to the journal: one VM is suspended at a time, so more than a few means that the disk
/// stands still.
const GOLDEN_NOTES_MAX: usize = 1024;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A folder of the installation cannot be made.
    #[error("cannot make `{path}`: {source}")]
    Folder { path: PathBuf, source: std::io::Error },
    /// Another daemon has this installation.
    #[error("another preheat runs with `{home}`{who}")]
    Locked { home: PathBuf, who: String },
    /// The port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The token's file.
    #[error("{0}")]
    Token(String),
    /// The journal.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An actor did not start.
    #[error("the daemon did not start: {0}")]
    Start(String),
    /// It broke while it ran.
    #[error("the daemon stopped itself: {0}")]
    Broken(String),
}

impl RunError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Folder { .. } => Some("set PREHEAT_HOME to a folder that this user may write".into()),
            Self::Locked { .. } => Some("stop it first, or set PREHEAT_HOME to another folder".into()),
            Self::Bind(error) => Some(error.hint()),
            Self::Token(_) => Some("check `api.token_file`".into()),
            Self::Store(StoreError::Seal(error)) => error.hint(),
            Self::Store(_) => Some("`preheat doctor` looks at the disk and at permissions".into()),
            Self::Start(_) => None,
            Self::Broken(_) => Some("start it again: it goes on from its journal".into()),
        }
    }
}

/// Runs the daemon until it is told to end (SIGTERM, SIGINT: see `ending`), or breaks. SIGHUP has the configuration `read` anew;
/// `log` follows it beside the rooms.
///
/// # Errors
/// Why it does not run, or no longer.
pub async fn run(loaded: Loaded, read: Read, log: Follower) -> Result<(), RunError> {
    let config = Arc::new(loaded.config.clone());
    let lock = prepare_home(&config)?;
    let listener = api::serve::bind(config.api.listen).await?;
    sign(&lock, listener.local_addr().unwrap_or(config.api.listen)).ok();
    let store = Store::open(&config.home.journal())?;
    let exporter = export::install();
    exporter.zero(&config);

    let tart = Arc::new(Tart::new(&config.runtime, config.home.vm_logs()));
    let outside =
        Outside { runtime: tart.clone(), connector: Arc::new(SshConnector), courier: Arc::new(Sinks) };
    ssh::sweep_orphans().await;
    let mut daemon = Daemon::begin(config.clone(), store, outside, exporter).await?;

    let verbs: Follower = Box::new(move |config| tart.set_deadlines(config.runtime.deadlines.clone()));
    daemon.core.read_anew_from(Source { first: loaded, read, followers: vec![log, verbs] });
    let mut signals =
        Signals::listen().map_err(|e| RunError::Start(format!("signals cannot be received: {e}")))?;
    let address = listener.local_addr().unwrap_or(config.api.listen);
    let on_request: api::options::OnRequest = Arc::new(|route, method, status, took| {
        HttpAnswered { route, method, status, took }.emit();
    });
    let mut options = api::options::Options::from_config(&config.api, on_request)
        .map_err(|error| RunError::Token(error.to_string()))?;
    let live = daemon.context.config.clone();
    options.source_max = Arc::new(move || live.get().api.source_max);
    let sources = daemon.sources.clone();
    sources.begin(Box::new(Api { listener, service: daemon.core.clone(), options }));
    daemon.ask_controllers().await?;
    let (home, runtime) = (config.home.path(), config.runtime.program.as_str());
    DaemonStarted { address, home, runtime, pools: config.pools.len() }.emit();

    let ended = ending::told(&mut signals, &mut daemon).await;
    ending::end(daemon, &mut signals, ended.is_ok()).await;
    sources.end().await;
    ended
}

fn prepare_home(config: &Config) -> Result<Flock<File>, RunError> {
    let home = &config.home;
    for path in [
        home.path().to_owned(),
        home.spool(),
        home.builds(),
        home.vm_logs(),
        config.runtime.tart_home.clone(),
    ] {
        std::fs::create_dir_all(&path).map_err(|source| RunError::Folder { path, source })?;
    }
    let path = home.lock();
    let failed = |source: std::io::Error| RunError::Folder { path: path.clone(), source };
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| RunError::Locked { home: home.path().to_owned(), who: who_holds(&path) })
}

/// Says in the lock's file who holds it and where it listens, for people and scripts that find it held.
fn sign(mut lock: &File, address: SocketAddr) -> std::io::Result<()> {
    lock.set_len(0)?;
    writeln!(lock, "{} {address}", std::process::id())
}

fn who_holds(lock: &Path) -> String {
    let text = std::fs::read_to_string(lock).unwrap_or_default();
    let signed = text.trim_end().split_once(' ');
    signed.map(|(pid, address)| format!(": process {pid}, on {address}")).unwrap_or_default()
}

/// What the daemon reaches out to.
#[derive(Clone)]
pub struct Outside {
    pub runtime: Arc<dyn Runtime>,
    pub connector: Arc<dyn Connector>,
    pub courier: Arc<dyn Courier>,
}

/// The running parts.
pub struct Daemon {
    pub core: Arc<Core>,
    pub context: BuildContext,
    /// Where its builds come from. They are not part of it: the last of them is there until the daemon is gone.
    pub sources: Sources,
    supervisor: SupervisorHandle,
    broken: mpsc::Receiver<String>,
    stopping: CancellationToken,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Daemon {
    /// All of the daemon but its lock, its port and its signals: what an earlier one left is cleared away, then it starts.
    ///
    /// # Errors
    /// When an actor does not start or the journal cannot be read.
    pub async fn begin(
        config: Arc<Config>,
        store: Store,
        outside: Outside,
        exporter: Exporter,
    ) -> Result<Self, RunError> {
        let (config, _) = images::chosen(config, &store).await?;
        let found = clear_up(&config, outside.runtime.as_ref(), &store).await?;
        Self::start(config, store, outside, exporter, found).await
    }

    /// Starts the actors and takes up the journal's builds.
    ///
    /// # Errors
    /// When an actor does not start or the journal cannot be read.
    pub async fn start(
        config: Arc<Config>,
        store: Store,
        outside: Outside,
        exporter: Exporter,
        found: Found,
    ) -> Result<Self, RunError> {
        let (config, choices) = images::chosen(config, &store).await?;
        let goes_on: BTreeSet<BuildId> = found.adopt.iter().map(|adoption| adoption.build).collect();
        let Outside { runtime, connector, courier } = outside;
        let (publish, _) = watch::channel(Arc::new(PoolSnapshot::default()));
        let (tell_broken, broken) = mpsc::channel(1);
        let (chronicle, unwritten) = Chronicle::begin();
        let pool = PoolArguments {
            chronicle: chronicle.clone(),
            config: config.clone(),
            runtime: runtime.clone(),
            connector,
            first: found.first,
            adopt: found.adopt,
            keep: found.keep,
            note_golden: note_goldens(store.clone()),
            note_generation: note_generations(store.clone()),
            publish,
            draining: store.draining().await?.then_some(Drain::Asked),
        };
        let caches = Shelf::open(config.home.caches());
        let arguments = SupervisorArguments {
            config: Live::new(config),
            store: store.clone(),
            chronicle,
            live: LiveBuilds::default(),
            caches,
            pool,
            courier,
            broken: tell_broken,
        };
        let supervisor = actor::spawn(arguments).await.map_err(|e| RunError::Start(e.to_string()))?;
        let silent = || RunError::Start("the supervisor does not answer".into());
        let context = supervisor.context(ASK_MAX).await.ok_or_else(silent)?;
        let stopping = CancellationToken::new();
        let images = Arc::new(Images::new(&context, runtime.clone(), choices));
        let (end, names) = (stopping.clone(), images.clone());
        let core = Core::new(context.clone(), supervisor.clone(), exporter.clone(), end, names);
        let tasks = vec![
            AbortOnDropHandle::new(tokio::spawn(chronicle::write(store, unwritten))),
            AbortOnDropHandle::new(tokio::spawn(upkeep(exporter))),
            AbortOnDropHandle::new(tokio::spawn(rounds::images(runtime.clone(), context.clone()))),
            AbortOnDropHandle::new(tokio::spawn(rounds::janitor(runtime, context.clone()))),
            AbortOnDropHandle::new(tokio::spawn(rounds::disk(context.clone()))),
            AbortOnDropHandle::new(tokio::spawn(images.keep())),
        ];
        let (core, sources) = (Arc::new(core), Sources::default());
        let daemon = Self { core, context, sources, supervisor, broken, stopping, _tasks: tasks };
        daemon.take_up(&goes_on).await?;
        Ok(daemon)
    }

    /// Begins to ask the configuration's controllers for builds.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn ask_controllers(&self) -> Result<(), RunError> {
        let (live, store) = (self.context.config.clone(), self.context.store.clone());
        let parts = controller::Parts { live, service: self.core.clone(), store };
        self.core.show(controller::begin(&self.sources, parts).await?);
        Ok(())
    }

    /// Builds that were accepted before. Those in `adopted` have their VM still.
    async fn take_up(&self, adopted: &BTreeSet<BuildId>) -> Result<(), RunError> {
        let config = &self.context.config.get();
        let sinks: Vec<String> = config.uploads.iter().map(|u| u.name.clone()).collect();
        for record in self.context.store.unfinished().await? {
            let (secrets, sealed) = clearing::unseal(&self.context.store, &record).await?;
            let left = clearing::left(config, &record, adopted.contains(&record.id), sealed);
            match resume::fate(&record, &left) {
                Fate::Over(verdict) => self.pronounce(record, verdict, &sinks).await?,
                Fate::GoOn => self.start_build(record, secrets, true),
                Fate::Again => self.start_build(resume::again(record), secrets, false),
            }
        }
        self.sweep_spool().await
    }

    /// The end of a build that nothing is left to be done for.
    async fn pronounce(
        &self,
        record: BuildRecord,
        verdict: Verdict,
        sinks: &[String],
    ) -> Result<(), RunError> {
        // Should its VM be in the books, it goes.
        self.context.pool.withdraw(record.id);
        let log = log_path(&self.context.config.get(), record.id);
        std::fs::create_dir_all(folder(&self.context.config.get(), record.id)).ok();
        if let Err(error) = log::conclude(&log, verdict.said()).await {
            Degraded { what: "build log", error: error.to_string() }.emit();
        }
        let (result, now) = (verdict.result, UnixMillis::now());
        let record = resume::ended(record, verdict, now);
        self.context.store.finish(record.clone(), sinks.to_vec()).await?;
        let (pool, reason) = (record.spec.pool.as_str(), record.reason.as_deref());
        BuildEnded { build: record.id, pool, result, reason, took: now.since(record.submitted_ms) }.emit();
        std::fs::remove_file(self.context.config.get().home.spool().join(&record.source)).ok();
        (self.context.uploads)();
        Ok(())
    }

    fn start_build(&self, record: BuildRecord, secrets: Values, go_on: bool) {
        self.supervisor.build(BuildArguments {
            context: self.context.clone(),
            record,
            secrets: Arc::new(secrets),
            go_on,
            ticket: self.core.place(),
        });
    }

    /// Files of the spool that no build needs: a crash came between receiving and accepting.
    async fn sweep_spool(&self) -> Result<(), RunError> {
        let needed: BTreeSet<String> =
            self.context.store.unfinished().await?.into_iter().map(|record| record.source).collect();
        let Ok(entries) = std::fs::read_dir(self.context.config.get().home.spool()) else { return Ok(()) };
        for entry in entries.flatten() {
            if !needed.contains(&*entry.file_name().to_string_lossy()) {
                std::fs::remove_file(entry.path()).ok();
            }
        }
        Ok(())
    }

    /// Lets what runs go on to its end, and results be tried to be delivered, for as long as `stop.drain_timeout` or until
    /// `cut` is over. Says why it came back.
    pub async fn drain<T>(&mut self, cut: impl Future<Output = T>) -> &'static str {
        let limit = self.context.config.get().stop.drain_timeout;
        self.sources.drain();
        self.core.begin_ending().await;
        let (context, supervisor, sources) = (&self.context, &self.supervisor, &self.sources);
        DaemonDraining { limit, running: context.live.running() }.emit();
        let drained = async {
            context.pool.until(|snapshot| !snapshot.serves()).await;
            context.live.idle().await;
            supervisor.uploads_settled().await;
            sources.settled().await;
        };
        tokio::select! {
            () = drained => "everything that ran is over",
            () = sleep(limit) => "`stop.drain_timeout` is over",
            _ = cut => "a second signal came",
            _ = self.broken.recv() => "it broke while it drained",
        }
    }

    /// Waits for the daemon to break, and says why it did.
    pub async fn broke(&mut self) -> String {
        self.broken.recv().await.unwrap_or_else(|| "its supervisor ended".into())
    }

    /// Stops the actors and takes every VM away. What still runs is cut short.
    pub async fn stop(self) {
        self.stopping.cancel();
        let config = self.context.config.get();
        let limit = config.runtime.deadlines.stop + config.runtime.deadlines.delete;
        self.supervisor.stop_builds(ASK_MAX).await;
        self.context.pool.stop_all(limit).await;
        self.context.chronicle.settled(ASK_MAX).await;
        self.supervisor.stop();
    }
}

/// Generations are written down behind the pool's back: should the newest be lost in a crash, its VM is found on the host.
fn note_generations(store: Store) -> Arc<dyn Fn(Generation) + Send + Sync> {
    let (newest, mut changed) = watch::channel(Generation(0));
    tokio::spawn(async move {
        while changed.changed().await.is_ok() {
            let generation = *changed.borrow_and_update();
            if let Err(error) = store.note_generation(generation).await {
                Degraded { what: "journal", error: error.to_string() }.emit();
            }
        }
    });
    Arc::new(move |generation| {
        newest.send_replace(generation);
    })
}

/// Suspended VMs likewise: one that is not written down is cleared away by the next daemon, and made again.
fn note_goldens(store: Store) -> Arc<dyn Fn(GoldenNote) + Send + Sync> {
    let (tell, mut told) = mpsc::channel(GOLDEN_NOTES_MAX);
    tokio::spawn(async move {
        while let Some(note) = told.recv().await {
            let noted = match note {
                GoldenNote::Made(golden) => store.note_golden(golden.vm.to_string(), golden.key).await,
                GoldenNote::Gone(vm) => store.forget_golden(vm.to_string()).await,
            };
            if let Err(error) = noted {
                Degraded { what: "journal", error: error.to_string() }.emit();
            }
        }
    });
    Arc::new(move |note| {
        if tell.try_send(note).is_err() {
            Degraded { what: "journal", error: "too many suspended VMs wait to be written down".into() }
                .emit();
        }
    })
}

async fn upkeep(exporter: Exporter) {
    let mut ticks = interval(export::UPKEEP_EVERY);
    loop {
        ticks.tick().await;
        exporter.upkeep();
    }
}

#[cfg(test)]
mod tests;
