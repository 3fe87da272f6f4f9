//! How a VM comes up, as three tasks with a state of their own between them: `prepare` needs no slot, `start` makes a
//! process that somebody must own from then on, `reach` turns it into a guest that answers. Each can be dropped at any
//! await: what a clone or a guest leaves behind is removal's. A guest that runs already is found again instead: `find`, then
//! `rejoin`.
//!
//! A clone of a suspended VM resumes: `reach` then makes sure that it did, and that it is itself and not its origin. Any
//! deviation from that is a fault, and costs the clone.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::state::BirthPhase;
use crate::clock::{self, Deadline};
use crate::guest::{Channel, Connector, Ended, Fresh, Line, Script, Target};
use crate::runtime::{Fault, ListedState, Reason, RunOptions, RunProcess, Runtime, Shape, VmName};

/// How many of a failed warm-up's last lines are kept for its fault.
const WARMUP_LINES_KEPT: usize = 5;

/// Whoever keeps its deadline itself says better what was late, so it is given this much more.
const DEADLINE_SLACK: Duration = Duration::from_secs(1);

/// A warm-up that is over its time is killed in the guest; this much later the guest does not even do that.
const WARMUP_SLACK: Duration = Duration::from_secs(15);

/// A guest that is about to be suspended settles for so long when its connections are closed: nothing tells when the processes
/// that served them are gone, and those that are not have their ends before them in each clone.
const SETTLES: Duration = Duration::from_millis(300);

/// For what a guest leaves waiting before it is suspended.
const GET_READY_MAX: Duration = Duration::from_secs(60);

/// What a VM is cloned from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Its pool's image: it boots.
    Image,
    /// A suspended VM of its slot: it resumes, within so long.
    Golden { vm: VmName, resume_timeout: Duration },
}

/// Everything that a VM is made from.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub name: VmName,
    pub image: String,
    pub origin: Origin,
    pub shape: Shape,
    pub run: RunOptions,
    pub user: String,
    pub key: std::path::PathBuf,
    pub port: u16,
    /// For the clone and its configuration together. Each verb has a deadline of its own; this one is for a runtime that
    /// does not keep it.
    pub prepare_timeout: Duration,
    /// From `run` to an answered command.
    pub boot_timeout: Duration,
    pub warmup: Option<String>,
    pub warmup_timeout: Duration,
    pub probe_timeout: Duration,
    pub probe_interval: Duration,
    /// How long removal may take.
    pub removal_timeout: Duration,
}

/// A birth that ended early.
#[derive(Debug)]
pub struct Stillborn {
    pub phase: BirthPhase,
    pub fault: Fault,
}

/// A guest that answers and has been warmed up.
pub struct Answered {
    pub channel: Arc<dyn Channel>,
    pub address: IpAddr,
}

fn at(phase: BirthPhase) -> impl FnOnce(Fault) -> Stillborn {
    move |fault| Stillborn { phase, fault }
}

/// `work`, or a fault at the deadline.
async fn by<T>(
    deadline: Deadline,
    what: &str,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let late = || Err(Fault::new(Reason::VerbTimeout, what, "its time was over"));
    tokio::time::timeout_at(deadline.instant() + DEADLINE_SLACK, work).await.unwrap_or_else(|_| late())
}

/// Clones and configures.
///
/// # Errors
/// The phase and the fault.
pub async fn prepare(
    runtime: &dyn Runtime,
    recipe: &Recipe,
    done: impl Fn(BirthPhase, Duration),
) -> Result<(), Stillborn> {
    let deadline = Deadline::after(recipe.prepare_timeout);
    let began = clock::now();
    let source = match &recipe.origin {
        Origin::Image => recipe.image.clone(),
        Origin::Golden { vm, .. } => vm.to_string(),
    };
    let cloned = by(deadline, "clone", runtime.clone_image(&source, &recipe.name)).await;
    cloned.map_err(at(BirthPhase::Clone))?;
    done(BirthPhase::Clone, began.elapsed());
    let began = clock::now();
    let configured = match &recipe.origin {
        Origin::Image => by(deadline, "configure", runtime.configure(&recipe.name, &recipe.shape)).await,
        // Its shape is its origin's: to set anything would make its state worthless.
        Origin::Golden { .. } => by(deadline, "look at the clone", is_suspended(runtime, &recipe.name)).await,
    };
    configured.map_err(at(BirthPhase::Configure))?;
    done(BirthPhase::Configure, began.elapsed());
    Ok(())
}

async fn is_suspended(runtime: &dyn Runtime, vm: &VmName) -> Result<(), Fault> {
    match runtime.state(vm).await? {
        ListedState::Suspended => Ok(()),
        state @ (ListedState::Running | ListedState::Stopped) => {
            Err(Fault::new(Reason::StateLost, "look at the VM", format!("it has no saved state: {state:?}")))
        }
    }
}

/// Has a warm guest save its state; its process ends by itself when that is done, which is for its owner to see.
///
/// # Errors
/// The fault.
pub async fn suspend(runtime: &dyn Runtime, channel: Arc<dyn Channel>, recipe: &Recipe) -> Result<(), Fault> {
    let deadline = Deadline::after(GET_READY_MAX);
    by(deadline, "prepare to suspend", channel.make_ready_to_resume(GET_READY_MAX)).await?;
    channel.abandon(Fault::new(Reason::Suspended, "ssh", "the VM is being suspended"));
    drop(channel);
    tokio::time::sleep(SETTLES).await;
    by(Deadline::after(recipe.boot_timeout), "suspend", runtime.suspend(&recipe.name)).await
}

/// Makes sure that a VM whose process has ended left its state.
///
/// # Errors
/// The fault.
pub async fn confirm_suspended(runtime: &dyn Runtime, recipe: &Recipe) -> Result<(), Fault> {
    by(Deadline::after(recipe.boot_timeout), "look at the VM", is_suspended(runtime, &recipe.name)).await
}

/// Starts the guest's process.
///
/// # Errors
/// The phase and the fault.
pub async fn start(
    runtime: &dyn Runtime,
    recipe: &Recipe,
    done: impl Fn(BirthPhase, Duration),
) -> Result<Box<dyn RunProcess>, Stillborn> {
    let began = clock::now();
    let started =
        by(Deadline::after(recipe.boot_timeout), "run", runtime.start(&recipe.name, &recipe.run)).await;
    let process = started.map_err(at(BirthPhase::Start))?;
    done(BirthPhase::Start, began.elapsed());
    Ok(process)
}

/// Finds the guest's address, connects, and warms it up.
///
/// # Errors
/// The phase and the fault. Cancel-safe.
pub async fn reach(
    runtime: &dyn Runtime,
    connector: &dyn Connector,
    recipe: &Recipe,
    done: impl Fn(BirthPhase, Duration),
) -> Result<Answered, Stillborn> {
    if let Origin::Golden { resume_timeout, .. } = &recipe.origin {
        return reach_resumed(runtime, connector, recipe, Deadline::after(*resume_timeout), done).await;
    }
    let deadline = Deadline::after(recipe.boot_timeout);
    let began = clock::now();
    let address = locate(runtime, recipe, deadline).await.map_err(at(BirthPhase::Address))?;
    done(BirthPhase::Address, began.elapsed());

    let began = clock::now();
    let channel = connect(connector, recipe, address, deadline).await.map_err(at(BirthPhase::Connect))?;
    done(BirthPhase::Connect, began.elapsed());

    let began = clock::now();
    let limit = Deadline::after(recipe.warmup_timeout + WARMUP_SLACK);
    by(limit, "warm-up", warm_up(channel.as_ref(), recipe)).await.map_err(at(BirthPhase::Warmup))?;
    channel.make_ready().await;
    done(BirthPhase::Warmup, began.elapsed());
    Ok(Answered { channel, address })
}

/// What its origin was warmed up with is in its memory.
async fn reach_resumed(
    runtime: &dyn Runtime,
    connector: &dyn Connector,
    recipe: &Recipe,
    deadline: Deadline,
    done: impl Fn(BirthPhase, Duration),
) -> Result<Answered, Stillborn> {
    let began = clock::now();
    let restored = by(deadline, "restore", runtime.restored(&recipe.name, deadline)).await;
    restored.map_err(at(BirthPhase::Restore))?;
    done(BirthPhase::Restore, began.elapsed());

    let began = clock::now();
    let address = locate(runtime, recipe, deadline).await.map_err(at(BirthPhase::Address))?;
    done(BirthPhase::Address, began.elapsed());

    let began = clock::now();
    let connected = async {
        let fresh = Fresh::draw()?;
        let target = target(recipe, address);
        by(deadline, "connect", connector.connect_resumed(&target, &fresh, deadline)).await
    };
    let channel = connected.await.map_err(at(BirthPhase::Connect))?;
    done(BirthPhase::Connect, began.elapsed());
    channel.make_ready().await;
    Ok(Answered { channel, address })
}

async fn locate(runtime: &dyn Runtime, recipe: &Recipe, deadline: Deadline) -> Result<IpAddr, Fault> {
    by(deadline, "address", runtime.address(&recipe.name, &recipe.run.network, deadline)).await
}

async fn connect(
    connector: &dyn Connector,
    recipe: &Recipe,
    address: IpAddr,
    deadline: Deadline,
) -> Result<Arc<dyn Channel>, Fault> {
    by(deadline, "connect", connector.connect(&target(recipe, address), deadline)).await
}

fn target(recipe: &Recipe, address: IpAddr) -> Target {
    Target { address, port: recipe.port, user: recipe.user.clone(), key: recipe.key.clone() }
}

/// Finds the process of a guest that runs already.
///
/// # Errors
/// The fault, also when nothing runs any more.
pub async fn find(runtime: &dyn Runtime, recipe: &Recipe) -> Result<Box<dyn RunProcess>, Fault> {
    let deadline = Deadline::after(recipe.boot_timeout);
    let found = by(deadline, "adopt", runtime.adopt(&recipe.name)).await?;
    found.ok_or_else(|| Fault::new(Reason::NotRunning, "adopt", "its guest does not run any more"))
}

/// Connects to a guest that runs already; it was warmed up by whoever started it.
///
/// # Errors
/// The fault. Cancel-safe.
pub async fn rejoin(
    runtime: &dyn Runtime,
    connector: &dyn Connector,
    recipe: &Recipe,
) -> Result<Answered, Fault> {
    let deadline = Deadline::after(recipe.boot_timeout);
    let address = locate(runtime, recipe, deadline).await?;
    let channel = connect(connector, recipe, address, deadline).await?;
    Ok(Answered { channel, address })
}

async fn warm_up(channel: &dyn Channel, recipe: &Recipe) -> Result<(), Fault> {
    let Some(command) = recipe.warmup.clone() else { return Ok(()) };
    let script = Script {
        command,
        dir: "/".into(),
        env: Vec::new(),
        timeout: recipe.warmup_timeout,
        kill_grace: Duration::from_secs(2),
    };
    let (sender, mut receiver) = mpsc::channel::<Line>(64);
    let read = async {
        let mut last = std::collections::VecDeque::new();
        while let Some(line) = receiver.recv().await {
            last.truncate(WARMUP_LINES_KEPT - 1);
            last.push_front(line.text);
        }
        last.into_iter().rev().collect::<Vec<_>>().join(" / ")
    };
    let id = channel.reserve();
    let (ended, said) = tokio::join!(channel.run(&id, &script, sender, CancellationToken::new()), read);
    let why = match ended? {
        Ended::Exited(0) => return Ok(()),
        Ended::Exited(code) => format!("exit code {code}"),
        Ended::TimedOut => format!("not done within {:?}", recipe.warmup_timeout),
        Ended::Cancelled => "cancelled".into(),
    };
    Err(Fault::new(Reason::WarmupFailed, "warm-up", format!("{why}: {said}")))
}
