//! A daemon without VMs: the real HTTP side over a service that does as a test tells it.

#![expect(dead_code, reason = "each test crate uses its part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use preheat::api::service::{Refused, Service, Ticket};
use preheat::api::timeline::{ChromeTrace, Share, TraceSummary};
use preheat::api::wire::*;
use preheat::api::{Limits, Options, bind, serve};
use preheat::build::spec::BuildResult;
use preheat::clock::{UnixMicros, UnixMillis};
use preheat::config::ByteSize;
use preheat::ids::BuildId;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test gives up.
pub const LONG: Duration = Duration::from_secs(30);

/// What becomes of a build.
#[derive(Debug, Clone)]
pub enum Ending {
    /// At once, after these lines.
    Ends(BuildResult),
    /// When a test or a cancel says so.
    Hangs,
}

#[derive(Debug, Clone)]
struct Record {
    view: BuildView,
    lines: Vec<LogLine>,
}

/// The service.
pub struct Fake {
    pub dir: tempfile::TempDir,
    pub specs: Mutex<Vec<SubmitSpec>>,
    pub sources: Mutex<Vec<Vec<u8>>>,
    pub ending: Mutex<Ending>,
    pub artifacts: Mutex<Vec<(String, Vec<u8>)>>,
    pub vms: Mutex<Vec<VmView>>,
    pub caches: Mutex<Vec<CacheEntryView>>,
    pub ready: Mutex<Result<(), String>>,
    /// Artifacts on the disk differ from what the record says.
    pub corrupt: Mutex<bool>,
    /// A cancel is noted, and nothing comes of it.
    pub deaf: Mutex<bool>,
    pub draining: Mutex<bool>,
    pub reload: Mutex<Result<ReloadView, Vec<String>>>,
    /// What the image `macos` means: one of two generations.
    pub image: Mutex<u32>,
    me: Weak<Self>,
    builds: Mutex<BTreeMap<u64, Record>>,
    changed: watch::Sender<u64>,
    places: Arc<Semaphore>,
}

impl Fake {
    pub fn new() -> Arc<Self> {
        Self::with_places(16)
    }

    pub fn with_places(places: usize) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            dir: tempfile::tempdir().expect("a folder"),
            specs: Mutex::default(),
            sources: Mutex::default(),
            ending: Mutex::new(Ending::Ends(BuildResult::Success)),
            artifacts: Mutex::default(),
            vms: Mutex::default(),
            caches: Mutex::default(),
            ready: Mutex::new(Ok(())),
            corrupt: Mutex::default(),
            deaf: Mutex::default(),
            draining: Mutex::default(),
            reload: Mutex::new(Ok(ReloadView::default())),
            image: Mutex::new(1),
            builds: Mutex::default(),
            changed: watch::channel(0).0,
            places: Arc::new(Semaphore::new(places)),
        })
    }

    /// Adds a build as if it had been submitted.
    pub fn add(&self) -> BuildId {
        let mut builds = self.builds.lock().expect("whole");
        let id = BuildId(builds.len() as u64 + 1);
        builds.insert(id.0, Record { view: fresh(id), lines: Vec::new() });
        id
    }

    pub fn print(&self, id: BuildId, stream: LogStream, text: &str) {
        if let Some(record) = self.builds.lock().expect("whole").get_mut(&id.0) {
            let n = record.lines.len() as u64 + 1;
            let step = Some("make".into());
            record.lines.push(LogLine {
                n,
                at_ms: UnixMillis(1),
                stream,
                step,
                text: text.into(),
                run: None,
                end: None,
            });
        }
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn change(&self, id: BuildId, change: impl FnOnce(&mut BuildView)) {
        if let Some(record) = self.builds.lock().expect("whole").get_mut(&id.0) {
            change(&mut record.view);
        }
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn end(&self, id: BuildId, result: BuildResult) {
        let artifacts = self.artifacts.lock().expect("whole").clone();
        for (path, bytes) in &artifacts {
            let file = self.artifact_file(id, path);
            std::fs::create_dir_all(file.parent().expect("below")).expect("made");
            let mut bytes = bytes.clone();
            if *self.corrupt.lock().expect("whole") {
                bytes[0] ^= 1;
            }
            std::fs::write(file, bytes).expect("written");
        }
        self.change(id, |view| {
            view.state = BuildState::Done;
            view.result = Some(result);
            view.waiting_for = None;
            view.vm = Some("preheat-linux-0-1".into());
            view.claim = Some(Claim::Hit);
            view.finished_ms = Some(UnixMillis(view.submitted_ms.0 + 1_500));
            view.reason = (result != BuildResult::Success).then(|| "step `make` exited with 2".into());
            view.phases =
                ["queue", "source", "step", "artifacts"].map(|phase| ended_phase(phase, result)).to_vec();
            view.artifacts = artifacts.iter().map(|(path, bytes)| artifact(path, bytes)).collect();
        });
    }

    fn artifact_file(&self, id: BuildId, path: &str) -> PathBuf {
        self.dir.path().join("artifacts").join(id.to_string()).join(path.trim_start_matches(['.', '/']))
    }

    fn find(&self, id: BuildId) -> Result<Record, Refused> {
        self.builds.lock().expect("whole").get(&id.0).cloned().ok_or(Refused::BuildUnknown(id))
    }

    /// The line after `n`; `Err` says that there will be none.
    fn line(&self, id: BuildId, n: u64) -> Result<Option<LogLine>, ()> {
        let record = self.find(id).map_err(drop)?;
        match record.lines.get(n as usize) {
            Some(line) => Ok(Some(line.clone())),
            None if record.view.result.is_some() => Err(()),
            None => Ok(None),
        }
    }

    /// Waits until a build's record is as wanted.
    pub async fn until(&self, id: BuildId, wanted: impl Fn(&BuildView) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = changed.wait_for(|_| self.find(id).is_ok_and(|record| wanted(&record.view)));
        tokio::time::timeout(LONG, wait).await.expect("in time").expect("open");
    }

    pub fn spool_is_empty(&self) -> bool {
        std::fs::read_dir(self.dir.path())
            .expect("there")
            .all(|e| e.expect("there").file_name() == "artifacts")
    }
}

/// A cache that is kept.
pub fn cached(id: &str, project: &str) -> CacheEntryView {
    CacheEntryView {
        id: id.into(),
        project: project.into(),
        pool: "linux".into(),
        key: format!("{project}-key"),
        paths: vec!["Pods".into()],
        bytes: 4_200,
        saved_ms: UnixMillis(1),
        used_ms: UnixMillis(2),
        build: BuildId(7),
    }
}

fn fresh(id: BuildId) -> BuildView {
    BuildView {
        id,
        project: "app".into(),
        pool: "linux".into(),
        state: BuildState::Queued,
        result: None,
        reason: None,
        failure: None,
        pipeline: None,
        waiting_for: Some("a slot of pool linux".into()),
        vm: None,
        claim: None,
        attempt: 1,
        submitted_ms: UnixMillis::now(),
        finished_ms: None,
        phases: Vec::new(),
        artifacts: Vec::new(),
        caches: Vec::new(),
        guest: None,
    }
}

fn ended_phase(phase: &str, result: BuildResult) -> PhaseView {
    let step = phase == "step";
    PhaseView {
        phase: phase.into(),
        step: step.then(|| "make".into()),
        attempt: 1,
        started_ms: UnixMillis(1),
        took_ms: Some(210),
        started_us: None,
        took_us: None,
        exit_code: step.then(|| if result == BuildResult::Success { 0 } else { 2 }),
    }
}

fn trace_of(view: &BuildView) -> ChromeTrace {
    let share = |owner: &str, us| Share { owner: owner.into(), us, times: 1 };
    let other_data = TraceSummary {
        build: view.id,
        project: view.project.clone(),
        pool: view.pool.clone(),
        result: view.result,
        origin_us: UnixMicros(1_000),
        total_us: 210_000,
        unaccounted_us: 10,
        owners: vec![share("step make", 209_990), share("unaccounted", 10)],
        vms: Vec::new(),
        uploads: Vec::new(),
        notes: Vec::new(),
    };
    ChromeTrace { trace_events: Vec::new(), display_time_unit: "ms".into(), other_data }
}

pub fn artifact(path: &str, bytes: &[u8]) -> ArtifactView {
    let sha256 = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    ArtifactView { path: path.into(), bytes: bytes.len() as u64, sha256, app: None }
}

impl Fake {
    fn image_view(&self) -> ImageView {
        let current = *self.image.lock().expect("whole");
        let generation = |n: u32| GenerationView {
            generation: Some(n),
            vm: format!("macos-g{n}"),
            state: if n == current { GenerationState::Current } else { GenerationState::Unused },
            why: None,
            facts: BTreeMap::from([("xcode".into(), format!("26.{n}"))]),
        };
        ImageView {
            name: "macos".into(),
            pools: vec!["xcode".into()],
            base: format!("macos-g{current}"),
            generations: vec![generation(1), generation(2)],
        }
    }
}

impl Service for Fake {
    fn admit(&self, _bytes: Option<u64>) -> Result<Ticket, Refused> {
        if *self.draining.lock().expect("whole") {
            return Err(Refused::Draining);
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map(Ticket).map_err(|_| Refused::QueueFull { max: 0 })
    }

    fn spool(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn accept<'a>(
        &'a self,
        _ticket: Ticket,
        spec: SubmitSpec,
        source: tempfile::TempPath,
    ) -> BoxFuture<'a, Result<BuildView, Refused>> {
        async move {
            if let Some(pool) = spec.pool.as_ref().filter(|pool| *pool != "linux") {
                return Err(Refused::PoolUnknown { pool: pool.clone(), known: "linux".into() });
            }
            self.sources.lock().expect("whole").push(std::fs::read(&source).expect("there"));
            self.specs.lock().expect("whole").push(spec);
            let id = self.add();
            let view = self.find(id)?.view;
            self.print(id, LogStream::Out, "one");
            self.print(id, LogStream::Err, "two");
            self.print(id, LogStream::Sys, "three");
            let ending = self.ending.lock().expect("whole").clone();
            if let Ending::Ends(result) = ending {
                self.end(id, result);
            }
            Ok(view)
        }
        .boxed()
    }

    fn builds(&self, limit: u32) -> BoxFuture<'_, Result<Vec<BuildView>, Refused>> {
        let builds = self.builds.lock().expect("whole");
        let newest = builds.values().rev().take(limit as usize).map(|record| record.view.clone()).collect();
        async move { Ok(newest) }.boxed()
    }

    fn build(&self, id: BuildId) -> BoxFuture<'_, Result<BuildView, Refused>> {
        async move { Ok(self.find(id)?.view) }.boxed()
    }

    fn trace(&self, id: BuildId) -> BoxFuture<'_, Result<ChromeTrace, Refused>> {
        let found = self.find(id).map(|record| trace_of(&record.view));
        async move { found }.boxed()
    }

    fn cancel(&self, id: BuildId) -> BoxFuture<'_, Result<(), Refused>> {
        async move {
            if self.find(id)?.view.result.is_some() {
                return Err(Refused::BuildOver(id));
            }
            if *self.deaf.lock().expect("whole") {
                self.change(id, |view| view.reason = Some("cancel was asked for".into()));
            } else {
                self.end(id, BuildResult::Cancellation);
            }
            Ok(())
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
            let record = self.find(id)?;
            if !follow {
                return Ok(stream::iter(record.lines.into_iter().skip(after as usize)).boxed());
            }
            let me = self.me.upgrade().expect("alive");
            let changed = self.changed.subscribe();
            let lines = stream::unfold((me, changed, after), move |(me, mut changed, n)| async move {
                loop {
                    changed.mark_unchanged();
                    match me.line(id, n) {
                        Ok(Some(line)) => return Some((line, (me, changed, n + 1))),
                        Err(()) => return None,
                        Ok(None) => changed.changed().await.ok()?,
                    }
                }
            });
            Ok(lines.boxed())
        }
        .boxed()
    }

    fn artifact<'a>(
        &'a self,
        id: BuildId,
        path: &'a str,
    ) -> BoxFuture<'a, Result<(ArtifactView, PathBuf), Refused>> {
        async move {
            let found = self.build(id).await?.artifacts.into_iter().find(|artifact| artifact.path == path);
            let artifact = found.ok_or_else(|| Refused::ArtifactUnknown { id, path: path.to_owned() })?;
            Ok((artifact, self.artifact_file(id, path)))
        }
        .boxed()
    }

    fn caches(&self) -> Vec<CacheEntryView> {
        self.caches.lock().expect("whole").clone()
    }

    fn remove_cache<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<CacheEntryView, Refused>> {
        async move {
            let mut caches = self.caches.lock().expect("whole");
            let at = caches.iter().position(|cache| cache.id == id);
            at.map(|at| caches.remove(at)).ok_or_else(|| Refused::CacheUnknown(id.to_owned()))
        }
        .boxed()
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<ImageView>, Refused>> {
        async move { Ok(vec![self.image_view()]) }.boxed()
    }

    fn use_image<'a>(
        &'a self,
        name: &'a str,
        generation: Option<u32>,
    ) -> BoxFuture<'a, Result<ImageView, Refused>> {
        async move {
            match generation {
                Some(n @ 1..=2) if name == "macos" => *self.image.lock().expect("whole") = n,
                _ => {
                    return Err(Refused::ImageUnknown { vm: format!("{name}-g{}", generation.unwrap_or(0)) });
                }
            }
            Ok(self.image_view())
        }
        .boxed()
    }

    fn roll_image_back<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ImageView, Refused>> {
        async move {
            let mut image = self.image.lock().expect("whole");
            if *image == 1 {
                return Err(Refused::NothingBefore(name.to_owned()));
            }
            *image = 1;
            drop(image);
            Ok(self.image_view())
        }
        .boxed()
    }

    fn pools(&self) -> Vec<PoolView> {
        vec![PoolView {
            name: "linux".into(),
            image: "linux".into(),
            warm_target: 2,
            max: 2,
            vms: [("warm".to_owned(), 2)].into(),
            waiting: 0,
            lost: 0,
            trouble: Some(TroubleView {
                reason: "no_address".into(),
                text: "no address in time".into(),
                hint: Some("look at DHCP".into()),
                failures: 3,
                next_try_ms: UnixMillis::now(),
                scope: preheat::api::wire::TroubleScope::Pool,
            }),
        }]
    }

    fn vms(&self) -> Vec<VmView> {
        self.vms.lock().expect("whole").clone()
    }

    fn status(&self) -> StatusView {
        let draining = *self.draining.lock().expect("whole");
        let builds = self.builds.lock().expect("whole");
        let running = builds.values().filter(|record| record.view.result.is_none()).count() as u32;
        StatusView {
            state: match (draining, running) {
                (false, _) => DaemonState::Serving,
                (true, 0) => DaemonState::Drained,
                (true, _) => DaemonState::Draining,
            },
            builds_running: running,
            builds_waiting: 0,
            vms: running,
            vms_quarantined: 1,
            config: ConfigView::default(),
            controllers: Vec::new(),
        }
    }

    fn drain(&self) -> BoxFuture<'_, Result<StatusView, Refused>> {
        *self.draining.lock().expect("whole") = true;
        async move { Ok(self.status()) }.boxed()
    }

    fn resume(&self) -> BoxFuture<'_, Result<StatusView, Refused>> {
        *self.draining.lock().expect("whole") = false;
        async move { Ok(self.status()) }.boxed()
    }

    fn reload(&self) -> BoxFuture<'_, Result<ReloadView, Refused>> {
        let answer = self.reload.lock().expect("whole").clone();
        async move { answer.map_err(|mistakes| Refused::BadConfig { mistakes }) }.boxed()
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.lock().expect("whole").clone()
    }

    fn metrics(&self) -> String {
        "preheat_up 1\n".into()
    }
}

/// One seen request.
pub type Seen = (String, String, u16);

/// A listening daemon.
pub struct Server {
    pub address: SocketAddr,
    pub url: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(fake: &Arc<Fake>) -> Self {
        Self::with(fake, ([127, 0, 0, 1], 0).into(), |_| {}).await
    }

    pub async fn with(fake: &Arc<Fake>, listen: SocketAddr, set: impl FnOnce(&mut Options)) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let listener = bind(listen).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let book = Arc::clone(&seen);
        let mut options = Options {
            listen: address,
            source_max: Arc::new(|| ByteSize(1 << 20)),
            token: None,
            limits: Limits::default(),
            on_request: Arc::new(move |route, method, status, _| {
                book.lock().expect("whole").push((route.into(), method.into(), status));
            }),
        };
        set(&mut options);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, Arc::clone(fake) as _, options, shutdown.clone()));
        Self { address, url: format!("http://{address}"), seen, shutdown, task }
    }

    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LONG, self.task).await.expect("in time").expect("no panic");
    }
}

/// A folder with one file.
pub fn project(dir: &Path) -> PathBuf {
    let project = dir.join("app");
    std::fs::create_dir_all(&project).expect("made");
    std::fs::write(project.join("Makefile"), "all:\n\ttrue\n").expect("written");
    project
}
