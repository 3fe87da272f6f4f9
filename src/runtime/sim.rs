//! The runtime and the guests in memory, under tokio's clock: with paused time an hour of pool life takes milliseconds.
//! Every step does as it is told: succeed, fail, be slow, or never end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, pending};
use sha2::Digest as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Fault, GuestOs, ImageInfo, Listed, ListedState, Parsed, Reason, RunOptions, RunProcess, Runtime, Shape,
    VmName,
};
use crate::clock::Deadline;
use crate::config::Network;
use crate::guest::{
    Bounds, Channel, Connector, Ended, Fresh, Line, Look, Position, PutCache, Script, SignError, Stream,
    Take, TakeCache, TakeError, Taken, TakenCache, Target,
};
use crate::ids::RunId;
use crate::signing::Kit;

/// What can be scripted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    Clone,
    Configure,
    Start,
    Adopt,
    Restore,
    Suspend,
    State,
    Address,
    Connect,
    GetReady,
    Freshen,
    Probe,
    PutTree,
    PutCache,
    Run,
    Attach,
    Take,
    TakeCache,
    Sign,
    Unlock,
    Unsign,
    Kill,
    Stop,
    Delete,
    List,
    Image,
}

/// How a step behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    Ok,
    Err(Reason),
    Slow(Duration),
    Never,
}

/// One simulated host. Clones share it.
#[derive(Clone, Default)]
pub struct Sim {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    vms: BTreeMap<String, SimVm>,
    scripted: HashMap<Step, VecDeque<Behaviour>>,
    always: HashMap<Step, Behaviour>,
    history: Vec<(Step, String)>,
    running_most: usize,
    made: u32,
    identity: String,
    look: Option<Look>,
}

#[derive(Clone)]
struct SimVm {
    state: ListedState,
    /// It was suspended when it was started.
    resumed: bool,
    address: IpAddr,
    /// Cancelled when the guest dies.
    dead: CancellationToken,
    /// What was begun in it, by name. A run outlives its connection.
    runs: Arc<Mutex<HashMap<RunId, watch::Receiver<SimOutput>>>>,
}

/// What a run has printed, and how it ended.
#[derive(Debug, Clone, Default)]
struct SimOutput {
    lines: Vec<Line>,
    ended: Option<Ended>,
}

impl Sim {
    /// An empty host.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next times that `step` is done, it behaves so, once each.
    pub fn script(&self, step: Step, behaviours: impl IntoIterator<Item = Behaviour>) {
        self.lock().scripted.entry(step).or_default().extend(behaviours);
    }

    /// From now on `step` behaves so, when nothing else is scripted.
    pub fn always(&self, step: Step, behaviour: Behaviour) {
        self.lock().always.insert(step, behaviour);
    }

    /// A VM that somebody made by hand, or an earlier daemon left.
    pub fn plant(&self, name: &str, state: ListedState) {
        self.lock().insert(name, state);
    }

    /// Every VM's name, in order.
    pub fn names(&self) -> Vec<String> {
        self.lock().vms.keys().cloned().collect()
    }

    /// The guest dies, as from a `kill -9`.
    pub fn kill_guest(&self, name: &str) {
        let mut inner = self.lock();
        if let Some(vm) = inner.vms.get_mut(name) {
            vm.state = ListedState::Stopped;
            vm.dead.cancel();
        }
    }

    /// The VM's files are deleted behind everybody's back; its process does not notice.
    pub fn vanish(&self, name: &str) {
        self.lock().vms.remove(name);
    }

    /// Images have other content from now on.
    pub fn replace_images(&self, identity: &str) {
        identity.clone_into(&mut self.lock().identity);
    }

    /// Guests are like this from now on; until then they say nothing of themselves.
    pub fn guests_look(&self, look: Look) {
        self.lock().look = Some(look);
    }

    /// How often `step` was done.
    pub fn count(&self, step: Step) -> usize {
        self.lock().history.iter().filter(|(s, _)| *s == step).count()
    }

    /// What was done, in order, with the VM's name.
    pub fn history(&self) -> Vec<(Step, String)> {
        self.lock().history.clone()
    }

    /// The most VMs that ran at one time.
    pub fn running_most(&self) -> usize {
        self.lock().running_most
    }

    async fn act(&self, step: Step, name: &str) -> Result<(), Fault> {
        let behaviour = {
            let mut inner = self.lock();
            inner.history.push((step, name.to_owned()));
            let next = inner.scripted.get_mut(&step).and_then(VecDeque::pop_front);
            next.or_else(|| inner.always.get(&step).cloned()).unwrap_or(Behaviour::Ok)
        };
        match behaviour {
            Behaviour::Ok => Ok(()),
            Behaviour::Err(reason) => Err(Fault::new(reason, format!("sim {step:?}"), "as scripted")),
            Behaviour::Slow(time) => {
                sleep(time).await;
                Ok(())
            }
            Behaviour::Never => pending().await,
        }
    }

    fn vm(&self, name: &str) -> Result<SimVm, Fault> {
        let found = self.lock().vms.get(name).cloned();
        found.ok_or_else(|| {
            Fault::new(Reason::VmMissing, "sim", format!("the specified VM \"{name}\" does not exist"))
        })
    }
}

impl Inner {
    fn insert(&mut self, name: &str, state: ListedState) {
        // No two that are there at once have one address.
        self.made += 1;
        let [_, _, high, low] = self.made.to_be_bytes();
        let address = IpAddr::V4(Ipv4Addr::new(127, 99, high, low));
        let vm =
            SimVm { state, resumed: false, address, dead: CancellationToken::new(), runs: Arc::default() };
        self.vms.insert(name.to_owned(), vm);
    }

    fn note_running(&mut self) {
        let running = self.vms.values().filter(|vm| vm.state == ListedState::Running).count();
        self.running_most = self.running_most.max(running);
    }
}

impl Runtime for Sim {
    fn clone_image<'a>(&'a self, image: &'a str, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            self.act(Step::Clone, &vm.to_string()).await?;
            let mut inner = self.lock();
            let source = inner.vms.get(image).map(|source| source.state);
            let suspended = source == Some(ListedState::Suspended);
            inner.insert(
                &vm.to_string(),
                if suspended { ListedState::Suspended } else { ListedState::Stopped },
            );
            Ok(())
        }
        .boxed()
    }

    fn configure<'a>(&'a self, vm: &'a VmName, _shape: &'a Shape) -> BoxFuture<'a, Result<(), Fault>> {
        async move { self.act(Step::Configure, &vm.to_string()).await }.boxed()
    }

    fn start<'a>(
        &'a self,
        vm: &'a VmName,
        _options: &'a RunOptions,
    ) -> BoxFuture<'a, Result<Box<dyn RunProcess>, Fault>> {
        async move {
            let name = vm.to_string();
            self.act(Step::Start, &name).await?;
            let dead = self.vm(&name)?.dead;
            let mut inner = self.lock();
            if let Some(vm) = inner.vms.get_mut(&name) {
                vm.resumed = vm.state == ListedState::Suspended;
                vm.state = ListedState::Running;
            }
            inner.note_running();
            Ok(Box::new(SimRun { sim: self.clone(), name, dead }) as Box<dyn RunProcess>)
        }
        .boxed()
    }

    fn adopt<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<Option<Box<dyn RunProcess>>, Fault>> {
        async move {
            let name = vm.to_string();
            self.act(Step::Adopt, &name).await?;
            let found = self.vm(&name).ok().filter(|vm| vm.state == ListedState::Running);
            Ok(found
                .map(|vm| Box::new(SimRun { sim: self.clone(), name, dead: vm.dead }) as Box<dyn RunProcess>))
        }
        .boxed()
    }

    fn address<'a>(
        &'a self,
        vm: &'a VmName,
        _network: &'a Network,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<IpAddr, Fault>> {
        async move {
            let acted = timeout(deadline.left(), self.act(Step::Address, &vm.to_string())).await;
            acted.unwrap_or_else(|_| Err(Fault::new(Reason::NoAddress, "sim ip", "no IP address found")))?;
            Ok(self.vm(&vm.to_string())?.address)
        }
        .boxed()
    }

    fn restored<'a>(&'a self, vm: &'a VmName, deadline: Deadline) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let lost = |text: &str| Fault::new(Reason::StateLost, "sim run", text);
            let acted = timeout(deadline.left(), self.act(Step::Restore, &vm.to_string())).await;
            acted.unwrap_or_else(|_| Err(lost("it does not say that it resumes")))?;
            if self.vm(&vm.to_string())?.resumed { Ok(()) } else { Err(lost("it booted")) }
        }
        .boxed()
    }

    fn suspend<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let name = vm.to_string();
            self.act(Step::Suspend, &name).await?;
            let dead = self.vm(&name)?.dead;
            if let Some(vm) = self.lock().vms.get_mut(&name) {
                vm.state = ListedState::Suspended;
            }
            dead.cancel();
            Ok(())
        }
        .boxed()
    }

    fn state<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<ListedState, Fault>> {
        async move {
            self.act(Step::State, &vm.to_string()).await?;
            Ok(self.vm(&vm.to_string())?.state)
        }
        .boxed()
    }

    fn stop<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            self.act(Step::Stop, &vm.to_string()).await?;
            self.kill_guest(&vm.to_string());
            Ok(())
        }
        .boxed()
    }

    fn delete<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            self.act(Step::Delete, &vm.to_string()).await?;
            let mut inner = self.lock();
            let running = inner.vms.get(&vm.to_string()).is_some_and(|vm| vm.state == ListedState::Running);
            if running {
                return Err(Fault::new(Reason::VerbFailed, "sim delete", format!("VM \"{vm}\" is running")));
            }
            inner.vms.remove(&vm.to_string());
            Ok(())
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, Fault>> {
        async move {
            self.act(Step::List, "").await?;
            let inner = self.lock();
            Ok(inner.vms.iter().map(|(name, vm)| Listed { name: name.clone(), state: vm.state }).collect())
        }
        .boxed()
    }

    fn image<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<ImageInfo, Fault>> {
        async move {
            self.act(Step::Image, image).await?;
            let os = if image.contains("macos") { GuestOs::Darwin } else { GuestOs::Linux };
            Ok(ImageInfo { os, cpus: 1, memory_mib: 512, identity: self.lock().identity.clone() })
        }
        .boxed()
    }

    fn prune_images(&self, _days: u64) -> BoxFuture<'_, Result<(), Fault>> {
        async { Ok(()) }.boxed()
    }

    fn version(&self) -> BoxFuture<'_, Result<String, Fault>> {
        async { Ok("sim".to_owned()) }.boxed()
    }
}

struct SimRun {
    sim: Sim,
    name: String,
    dead: CancellationToken,
}

impl RunProcess for SimRun {
    fn ended(&mut self) -> BoxFuture<'_, Fault> {
        async move {
            self.dead.cancelled().await;
            match self.sim.vm(&self.name).map(|vm| vm.state) {
                Ok(ListedState::Suspended) => Fault::new(Reason::Suspended, "sim run", "it was suspended"),
                Ok(ListedState::Running | ListedState::Stopped) | Err(_) => {
                    Fault::new(Reason::GuestStopped, "sim run", "the guest died")
                }
            }
        }
        .boxed()
    }

    fn kill(&mut self, deadline: Deadline) -> BoxFuture<'_, Result<(), Fault>> {
        async move {
            let acted = timeout(deadline.left(), self.sim.act(Step::Kill, &self.name)).await;
            acted.unwrap_or_else(|_| Err(Fault::new(Reason::VerbTimeout, "sim kill", "it does not go")))?;
            self.sim.kill_guest(&self.name);
            Ok(())
        }
        .boxed()
    }

    fn pid(&self) -> Option<u32> {
        None
    }
}

impl Connector for Sim {
    fn connect<'a>(
        &'a self,
        target: &'a Target,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, Fault>> {
        async move {
            let late = || Fault::new(Reason::SshTimeout, "sim connect", "nobody answered");
            let acted = timeout(deadline.left(), self.act(Step::Connect, "")).await;
            acted.unwrap_or_else(|_| Err(late()))?;
            let inner = self.lock();
            let vm = inner.vms.values().find(|vm| vm.address == target.address).ok_or_else(late)?;
            let channel =
                SimChannel { sim: self.clone(), dead: vm.dead.child_token(), runs: vm.runs.clone() };
            Ok(Arc::new(channel) as Arc<dyn Channel>)
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
            let late = || Err(Fault::new(Reason::NotFresh, "sim freshen", "no answer in time"));
            timeout(deadline.left(), self.act(Step::Freshen, "")).await.unwrap_or_else(|_| late())?;
            Ok(channel)
        }
        .boxed()
    }
}

/// For each step of the signing.
const SIGN_MAX: Duration = Duration::from_secs(60);

struct SimChannel {
    sim: Sim,
    dead: CancellationToken,
    runs: Arc<Mutex<HashMap<RunId, watch::Receiver<SimOutput>>>>,
}

fn lost() -> Fault {
    Fault::new(Reason::ConnectionLost, "sim channel", "the guest is gone")
}

impl SimChannel {
    /// `step`, unless the guest dies or `limit` passes first.
    async fn alive(&self, step: Step, limit: Duration) -> Result<(), Fault> {
        tokio::select! {
            biased;
            () = self.dead.cancelled() => Err(lost()),
            acted = timeout(limit, self.sim.act(step, "")) => {
                acted.unwrap_or_else(|_| Err(Fault::new(Reason::ProbeFailed, "sim channel", "no answer in time")))
            }
        }
    }

    /// `step` of the signing: what is not in time is told by its name.
    async fn signing(&self, step: Step, name: &'static str) -> Result<(), SignError> {
        self.alive(step, SIGN_MAX).await.map_err(|fault| match fault.reason == Reason::ProbeFailed {
            true => SignError::TimedOut { step: name, limit: SIGN_MAX },
            false => fault.into(),
        })
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<RunId, watch::Receiver<SimOutput>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines of a run behind `from` as they come, until it ends.
    async fn follow(
        &self,
        mut output: watch::Receiver<SimOutput>,
        from: u64,
        lines: &mpsc::Sender<Line>,
    ) -> Option<Ended> {
        let mut passed = from;
        loop {
            let seen = output.borrow_and_update().clone();
            for line in seen.lines.into_iter().filter(|line| line.end > from) {
                if line.end > passed {
                    passed = line.end;
                    lines.send(line).await.ok();
                }
            }
            if seen.ended.is_some() {
                return seen.ended;
            }
            output.changed().await.ok()?;
        }
    }

    /// The end of a run that goes on in the guest, whoever looks.
    async fn see_through(
        &self,
        output: watch::Receiver<SimOutput>,
        from: u64,
        timeout: Duration,
        lines: mpsc::Sender<Line>,
        cancel: CancellationToken,
    ) -> Result<Ended, Fault> {
        tokio::select! {
            biased;
            () = self.dead.cancelled() => Err(lost()),
            () = cancel.cancelled() => Ok(Ended::Cancelled),
            () = sleep(timeout) => Ok(Ended::TimedOut),
            ended = self.follow(output, from, &lines) => ended.ok_or_else(lost),
        }
    }
}

/// A small shell in the guest: `echo TEXT`, `sleep SECONDS`, `exit CODE`, and `flaky N`, which exits with 2 in the guest's
/// first N runs; separated by `;`. `runs` were begun before this one.
async fn interpret(command: String, runs: usize, output: watch::Sender<SimOutput>) {
    let mut end = 0;
    let mut code = 0;
    for part in command.split(';').map(str::trim) {
        let (verb, rest) = part.split_once(' ').unwrap_or((part, ""));
        match verb {
            "echo" => {
                end += rest.len() as u64 + 1;
                let line = Line { stream: Stream::Out, text: rest.to_owned(), end, split: false };
                output.send_modify(|o| o.lines.push(line));
            }
            "sleep" => sleep(Duration::from_secs(rest.parse().unwrap_or(0))).await,
            "exit" => {
                code = rest.parse().unwrap_or(2);
                break;
            }
            "flaky" if runs < rest.parse().unwrap_or(0) => {
                code = 2;
                break;
            }
            _ => {}
        }
    }
    output.send_modify(|o| o.ended = Some(Ended::Exited(code)));
}

impl Channel for SimChannel {
    fn probe(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        self.alive(Step::Probe, limit).boxed()
    }

    fn put_tree<'a>(&'a self, _tar: &'a Path, deadline: Deadline) -> BoxFuture<'a, Result<u64, Fault>> {
        async move { self.alive(Step::PutTree, deadline.left()).await.map(|()| 0) }.boxed()
    }

    fn run<'a>(
        &'a self,
        id: &'a RunId,
        script: &'a Script,
        lines: mpsc::Sender<Line>,
        cancel: CancellationToken,
    ) -> BoxFuture<'a, Result<Ended, Fault>> {
        async move {
            self.alive(Step::Run, script.timeout).await?;
            let (print, output) = watch::channel(SimOutput::default());
            let before = {
                let mut runs = self.runs();
                runs.insert(id.clone(), output.clone());
                runs.len() - 1
            };
            let (dead, command) = (self.dead.clone(), script.command.clone());
            let running = interpret(command, before, print);
            tokio::spawn(async move { dead.run_until_cancelled_owned(running).await });
            self.see_through(output, 0, script.timeout, lines, cancel).await
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
            self.alive(Step::Attach, bounds.timeout).await?;
            let output = self.runs().get(id).cloned();
            let Some(output) = output else { return Ok(None) };
            self.see_through(output, from.out, bounds.timeout, lines, cancel).await.map(Some)
        }
        .boxed()
    }

    fn make_ready_to_resume(&self, limit: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        self.alive(Step::GetReady, limit).boxed()
    }

    fn abandon(&self, _why: Fault) {
        self.dead.cancel();
    }

    fn take<'a>(&'a self, take: &'a Take) -> BoxFuture<'a, Result<Vec<Taken>, TakeError>> {
        async move {
            self.alive(Step::Take, take.deadline.left()).await?;
            let mut taken = Vec::new();
            for glob in &take.globs {
                std::fs::write(take.into.join(glob), glob).map_err(TakeError::Host)?;
                taken.push(Taken { path: glob.clone(), bytes: glob.len() as u64, sha256: "0".repeat(64) });
            }
            Ok(taken)
        }
        .boxed()
    }

    fn put_cache<'a>(&'a self, put: &'a PutCache) -> BoxFuture<'a, Result<u64, Fault>> {
        async move {
            self.alive(Step::PutCache, put.deadline.left()).await?;
            let content = std::fs::read(&put.tar);
            content.map(|content| content.len() as u64).map_err(|_| lost())
        }
        .boxed()
    }

    fn take_cache<'a>(&'a self, take: &'a TakeCache) -> BoxFuture<'a, Result<TakenCache, TakeError>> {
        async move {
            self.alive(Step::TakeCache, take.deadline.left()).await?;
            let content = take.paths.join("\n");
            let bytes = content.len() as u64;
            if bytes > take.bytes_max {
                return Err(TakeError::TooLarge { max: take.bytes_max });
            }
            std::fs::write(&take.into, &content).map_err(TakeError::Host)?;
            let digest = sha2::Sha256::digest(content);
            let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(TakenCache { bytes, sha256, absent: Vec::new() })
        }
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        every: Duration,
        hurry: &'a Notify,
        looks: mpsc::Sender<Look>,
    ) -> BoxFuture<'a, ()> {
        async move {
            loop {
                let look = self.sim.lock().look;
                let Some(look) = look else { return };
                if looks.send(look).await.is_err() {
                    return;
                }
                timeout(every, hurry.notified()).await.ok();
            }
        }
        .boxed()
    }

    fn install_signing<'a>(
        &'a self,
        _kit: &'a Kit,
        _deadline: Deadline,
    ) -> BoxFuture<'a, Result<(), SignError>> {
        self.signing(Step::Sign, "import").boxed()
    }

    fn unlock_signing<'a>(
        &'a self,
        _kit: &'a Kit,
        _deadline: Deadline,
    ) -> BoxFuture<'a, Result<String, SignError>> {
        async move { self.signing(Step::Unlock, "unlock-keychain").await.map(|()| "/keychain".to_owned()) }
            .boxed()
    }

    fn remove_signing<'a>(
        &'a self,
        _kit: &'a Kit,
        _deadline: Deadline,
    ) -> BoxFuture<'a, Result<(), SignError>> {
        self.signing(Step::Unsign, "delete-keychain").boxed()
    }

    fn lost(&self) -> BoxFuture<'static, Fault> {
        let dead = self.dead.clone();
        async move {
            dead.cancelled().await;
            lost()
        }
        .boxed()
    }
}

/// Those of `names` that are ours.
pub fn ours(names: &[String]) -> Vec<VmName> {
    names
        .iter()
        .filter_map(|name| match VmName::parse(name) {
            Parsed::Ours(vm) => Some(vm),
            Parsed::NotOurs | Parsed::Malformed => None,
        })
        .collect()
}
