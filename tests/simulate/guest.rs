//! The world's guests, as channels into them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, pending};
use preheat::clock::Deadline;
use preheat::guest::{
    Bounds, Channel, Connector, Ended, Fresh, Line, Look, Position, PutCache, Script, SignError, Take,
    TakeCache, TakeError, Taken, TakenCache, Target,
};
use preheat::ids::RunId;
use preheat::runtime::{Fault, ListedState, Reason};
use preheat::signing::Kit;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::host::Host;
use crate::plan::MISSING;
use crate::step::Step;
use crate::world::{Inner, Run, World};

/// A connection that went silent is given up after this.
const SILENCE: Duration = Duration::from_secs(15);

/// For a step of a channel that has no bound of its own.
const STEP_MAX: Duration = Duration::from_secs(60);

/// A connection whose fate it is breaks for good within this time.
const BREAKS_WITHIN_MS: u64 = 600_000;

impl Connector for Host {
    fn connect<'a>(
        &'a self,
        target: &'a Target,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, Fault>> {
        async move {
            let open = |world: &mut Inner| {
                let found = world
                    .vms
                    .iter()
                    .find(|(_, vm)| vm.address == target.address && vm.state == ListedState::Running);
                let (name, dead) = found.map(|(name, vm)| (name.clone(), vm.dead.clone()))?;
                let rate = world.rate;
                let breaks = world.dice.chance(rate);
                let at = world.now() + world.dice.millis(0, BREAKS_WITHIN_MS);
                Some((name, dead, breaks.then_some(at)))
            };
            let name = target.address.to_string();
            let found =
                self.world.act(Step::Connect, &name, deadline.left(), |world| Ok(open(world))).await?;
            let Some((name, dead, breaks_at)) = found else {
                sleep(deadline.left()).await;
                return Err(Fault::new(Reason::SshTimeout, "simulated connect", "nobody answers"));
            };
            let (world, abandoned) = (self.world.clone(), CancellationToken::new());
            Ok(Arc::new(GuestChannel { world, name, dead, abandoned, breaks_at }) as Arc<dyn Channel>)
        }
        .boxed()
    }

    fn connect_resumed<'a>(
        &'a self,
        target: &'a Target,
        _fresh: &'a Fresh,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, Fault>> {
        async move {
            let channel = self.connect(target, deadline).await?;
            let give = |world: &mut Inner| {
                let vm = world.vms.values_mut().find(|vm| vm.address == target.address && vm.ready);
                let Some(vm) = vm.filter(|vm| vm.state == ListedState::Running) else {
                    return Err(Fault::new(Reason::NotFresh, "simulated freshen", "nothing waits for it"));
                };
                (vm.ready, vm.fresh) = (false, true);
                Ok(())
            };
            let name = target.address.to_string();
            self.world.act(Step::Freshen, &name, deadline.left(), give).await?;
            Ok(channel)
        }
        .boxed()
    }
}

#[derive(Clone)]
struct GuestChannel {
    world: Arc<World>,
    name: String,
    /// Of the guest.
    dead: CancellationToken,
    /// Of this connection.
    abandoned: CancellationToken,
    breaks_at: Option<Duration>,
}

fn lost() -> Fault {
    Fault::new(Reason::ConnectionLost, "simulated channel", "the guest is gone")
}

/// What becomes of a script as one who follows it sees it.
enum Seen {
    Ended(Ended),
    Broke(Fault),
}

impl GuestChannel {
    /// Resolves when the guest is dead or cannot be reached any more.
    async fn gone(&self) -> Fault {
        let broken = async {
            match self.breaks_at {
                Some(at) => self.world.until(at + SILENCE).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.abandoned.cancelled() => {}
            () = self.world.guest_dead(&self.name, &self.dead) => {}
            () = broken => {}
        }
        self.world.alive().await;
        lost()
    }

    /// `step`, unless the guest is gone first.
    async fn act<T>(
        &self,
        step: Step,
        limit: Duration,
        effect: impl FnOnce(&mut Inner) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        tokio::select! {
            biased;
            fault = self.gone() => Err(fault),
            done = self.world.act(step, &self.name, limit, effect) => done,
        }
    }

    fn begin(&self, world: &mut Inner, id: &RunId, script: &Script) -> Result<(), Fault> {
        let now = world.now();
        let plain = |(_, value): &(String, SecretString)| value.expose_secret().to_owned();
        let variable = |name: &str| script.env.iter().find(|(n, _)| n == name).map(plain);
        let (project, token) = (variable("PREHEAT_PROJECT"), variable("TOKEN"));
        let job = world.jobs.iter().find(|client| Some(&client.job.project) == project.as_ref());
        if let Some(job) = job.map(|client| client.job.clone())
            && job.secret != token
        {
            world.violation(format!(
                "{} has the secret {:?}, and its guest {token:?}",
                job.project, job.secret
            ));
        }
        let Some(vm) = world.vms.get_mut(&self.name) else { return Err(lost()) };
        if vm.runs.insert(id.clone(), Run::of(&script.command, token.as_deref(), now)).is_some() {
            world.violation(format!("a run in {} is begun twice", self.name));
            return Ok(());
        }
        let Some(project) = project else { return Ok(()) };
        if vm.cache.as_ref().is_some_and(|cache| *cache != project) {
            let text = format!("{} has the cache of {:?} for {project}", self.name, vm.cache);
            world.violation(text);
            return Ok(());
        }
        match &vm.project {
            Some(other) if *other != project => {
                let text = format!("{} ran {other} and now runs {project}", self.name);
                world.violation(text);
            }
            Some(_) | None => vm.project = Some(project),
        }
        Ok(())
    }

    fn run_of(&self, id: &RunId) -> Option<Run> {
        self.world.lock().vms.get(&self.name).and_then(|vm| vm.runs.get(id).cloned())
    }

    fn killed(&self, id: &RunId) {
        let mut world = self.world.lock();
        let now = world.now();
        if let Some(run) = world.vms.get_mut(&self.name).and_then(|vm| vm.runs.get_mut(id)) {
            run.killed_at.get_or_insert(now);
        }
    }

    /// Its lines behind `from` as they come, and its end.
    async fn print(&self, run: &Run, from: u64, lines: &mpsc::Sender<Line>) -> Ended {
        for (offset, line) in run.lines.iter().filter(|(_, line)| line.end > from) {
            self.world.until(run.began + *offset).await;
            self.world.alive().await;
            lines.send(line.clone()).await.ok();
        }
        self.world.until(run.began + run.takes).await;
        self.world.alive().await;
        Ended::Exited(run.code)
    }

    /// A connection breaks in the middle, and the run goes on without it.
    async fn breaks(&self, run: &Run) -> Fault {
        let (breaks, share) = {
            let mut world = self.world.lock();
            let rate = world.rate;
            (world.dice.chance(rate), world.dice.between(0, 100))
        };
        if !breaks {
            pending::<()>().await;
        }
        self.world.until(run.began + run.takes * u32::try_from(share).expect("small") / 100).await;
        self.world.alive().await;
        Fault::new(Reason::ConnectionLost, "simulated run", "the connection broke")
    }

    async fn follow(
        &self,
        id: &RunId,
        from: u64,
        timeout: Duration,
        lines: mpsc::Sender<Line>,
        cancel: CancellationToken,
    ) -> Result<Ended, Fault> {
        let Some(run) = self.run_of(id) else { return Err(lost()) };
        if run.killed_at.is_some() {
            return Ok(Ended::Cancelled);
        }
        let seen = tokio::select! {
            biased;
            fault = self.gone() => Seen::Broke(fault),
            fault = self.breaks(&run) => Seen::Broke(fault),
            () = cancel.cancelled() => Seen::Ended(Ended::Cancelled),
            ended = self.print(&run, from, &lines) => Seen::Ended(ended),
            () = sleep(timeout) => Seen::Ended(Ended::TimedOut),
        };
        self.world.alive().await;
        match seen {
            Seen::Broke(fault) => Err(fault),
            Seen::Ended(ended) => {
                if matches!(ended, Ended::Cancelled | Ended::TimedOut) {
                    self.killed(id);
                }
                Ok(ended)
            }
        }
    }

    fn files(&self, world: &mut Inner, take: &Take) -> Result<Result<Vec<Taken>, TakeError>, Fault> {
        let Some(vm) = world.vms.get_mut(&self.name) else { return Err(lost()) };
        let content = format!("{:?}", vm.project);
        let mut taken = Vec::new();
        for glob in &take.globs {
            if glob == MISSING {
                return Ok(Err(TakeError::Missing { glob: glob.clone() }));
            }
            if let Err(error) = std::fs::write(take.into.join(glob), &content) {
                return Ok(Err(TakeError::Host(error)));
            }
            let bytes = content.len() as u64;
            taken.push(Taken { path: glob.clone(), bytes, sha256: "0".repeat(64) });
        }
        vm.taken = true;
        Ok(Ok(taken))
    }
}

impl Channel for GuestChannel {
    fn probe(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        self.act(Step::Probe, limit, |_| Ok(())).boxed()
    }

    fn put_tree<'a>(&'a self, tar: &'a Path, deadline: Deadline) -> BoxFuture<'a, Result<u64, Fault>> {
        let put = |world: &mut Inner| {
            if !tar.is_file() {
                world.violation(format!("the source {} is gone", tar.display()));
            }
            let vm = world.vms.get_mut(&self.name).ok_or_else(lost)?;
            vm.sources += 1;
            let text = if vm.sources > 1 {
                Some("a second source")
            } else if vm.resumed && !vm.fresh {
                Some("a source before anything of its own")
            } else {
                None
            };
            if let Some(text) = text {
                world.violation(format!("{} is given {text}", self.name));
            }
            Ok(0)
        };
        self.act(Step::PutTree, deadline.left(), put).boxed()
    }

    fn run<'a>(
        &'a self,
        id: &'a RunId,
        script: &'a Script,
        lines: mpsc::Sender<Line>,
        cancel: CancellationToken,
    ) -> BoxFuture<'a, Result<Ended, Fault>> {
        async move {
            let limit = script.timeout.min(STEP_MAX);
            self.act(Step::Run, limit, |world| self.begin(world, id, script)).await?;
            self.follow(id, 0, script.timeout, lines, cancel).await
        }
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
        async move {
            let there =
                |world: &mut Inner| Ok(world.vms.get(&self.name).is_some_and(|vm| vm.runs.contains_key(id)));
            if !self.act(Step::Attach, bounds.timeout.min(STEP_MAX), there).await? {
                return Ok(None);
            }
            self.follow(id, from.out, bounds.timeout, lines, cancel).await.map(Some)
        }
        .boxed()
    }

    fn take<'a>(&'a self, take: &'a Take) -> BoxFuture<'a, Result<Vec<Taken>, TakeError>> {
        async move { self.act(Step::Take, take.deadline.left(), |world| self.files(world, take)).await? }
            .boxed()
    }

    fn make_ready_to_resume(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        let ready = |world: &mut Inner| {
            world.vms.get_mut(&self.name).ok_or_else(lost)?.ready = true;
            Ok(())
        };
        self.act(Step::GetReady, limit.min(STEP_MAX), ready).boxed()
    }

    fn put_cache<'a>(&'a self, put: &'a PutCache) -> BoxFuture<'a, Result<u64, Fault>> {
        let effect = |world: &mut Inner| {
            let content = std::fs::read_to_string(&put.tar).unwrap_or_default();
            let vm = world.vms.get_mut(&self.name).ok_or_else(lost)?;
            vm.cache = Some(content.clone());
            Ok(content.len() as u64)
        };
        self.act(Step::PutCache, put.deadline.left(), effect).boxed()
    }

    fn take_cache<'a>(&'a self, take: &'a TakeCache) -> BoxFuture<'a, Result<TakenCache, TakeError>> {
        let effect = |world: &mut Inner| {
            let vm = world.vms.get(&self.name).ok_or_else(lost)?;
            let content = vm.project.clone().unwrap_or_default();
            if let Err(error) = std::fs::write(&take.into, &content) {
                return Ok(Err(TakeError::Host(error)));
            }
            let sha256 = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(Ok(TakenCache { bytes: content.len() as u64, sha256, absent: Vec::new() }))
        };
        async move { self.act(Step::TakeCache, take.deadline.left(), effect).await? }.boxed()
    }

    /// The world's guests say nothing of how they are.
    fn watch<'a>(&'a self, _: Duration, _: &'a Notify, _: mpsc::Sender<Look>) -> BoxFuture<'a, ()> {
        std::future::ready(()).boxed()
    }

    // No client of this world signs.
    fn install_signing<'a>(&'a self, _: &'a Kit, _: Deadline) -> BoxFuture<'a, Result<(), SignError>> {
        std::future::ready(Err(SignError::Guest(lost()))).boxed()
    }

    fn unlock_signing<'a>(&'a self, _: &'a Kit, _: Deadline) -> BoxFuture<'a, Result<String, SignError>> {
        std::future::ready(Err(SignError::Guest(lost()))).boxed()
    }

    fn remove_signing<'a>(&'a self, _: &'a Kit, _: Deadline) -> BoxFuture<'a, Result<(), SignError>> {
        std::future::ready(Err(SignError::Guest(lost()))).boxed()
    }

    fn lost(&self) -> BoxFuture<'static, Fault> {
        let channel = self.clone();
        async move { channel.gone().await }.boxed()
    }

    fn abandon(&self, _why: Fault) {
        self.abandoned.cancel();
    }
}
