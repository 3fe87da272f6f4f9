//! The world as a runtime: Tart's verbs on it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use preheat::clock::Deadline;
use preheat::config::{Network, VerbDeadlines};
use preheat::runtime::{
    Fault, GuestOs, ImageInfo, Listed, ListedState, Reason, RunOptions, RunProcess, Runtime, Shape, VmName,
};
use tokio_util::sync::CancellationToken;

use crate::step::Step;
use crate::world::{Inner, Vm, World};

/// A runtime that does not keep its deadline: whoever asks must have one of their own.
const FOR_EVER: Duration = Duration::from_secs(1_000_000);

/// A guest whose fate it is dies within this time of its start.
const DIES_WITHIN_MS: u64 = 900_000;

#[derive(Clone)]
pub struct Host {
    pub world: Arc<World>,
    pub deadlines: VerbDeadlines,
}

fn missing(name: &str) -> Fault {
    Fault::new(Reason::VmMissing, "simulated", format!("the specified VM \"{name}\" does not exist"))
}

fn vm<'a>(world: &'a mut Inner, name: &str) -> Result<&'a mut Vm, Fault> {
    world.vms.get_mut(name).ok_or_else(|| missing(name))
}

impl Host {
    /// Of steps around which the daemon has a deadline of its own, one in two that hang hangs for ever.
    fn limit(&self, own: Duration) -> Duration {
        if self.world.lock().dice.chance(0.5) { own } else { FOR_EVER }
    }
}

fn clone(world: &mut Inner, image: &str, name: &str) -> Result<(), Fault> {
    if world.vms.contains_key(name) || world.past.contains_key(name) {
        world.violation(format!("the name {name} is used again"));
    }
    let images = ["macos", "linux"];
    let source = match world.vms.get(image) {
        Some(source) => Some((source.macos, source.state, source.ready)),
        None if images.contains(&image) => None,
        None => return Err(missing(image)),
    };
    let (macos, state, ready) = source.unwrap_or((image == "macos", ListedState::Stopped, false));
    world.insert(name, macos, if state == ListedState::Suspended { state } else { ListedState::Stopped });
    if let Some(vm) = world.vms.get_mut(name) {
        vm.ready = ready;
    }
    Ok(())
}

fn start(world: &mut Inner, name: &str) -> Result<CancellationToken, Fault> {
    let (now, life, rate) = (world.now(), world.life, world.rate);
    let dies = world.dice.chance(rate);
    let dies_at = now + world.dice.millis(0, DIES_WITHIN_MS);
    // Its address may be taken: then it boots, and its process does not call that a failure.
    let drops_state = world.dice.chance(rate);
    let vm = vm(world, name)?;
    if vm.started_in.is_some() {
        let text = format!("{name} is started again");
        world.violation(text);
        return Err(Fault::new(Reason::AlreadyRunning, "simulated run", name));
    }
    vm.resumed = vm.state == ListedState::Suspended && !drops_state;
    vm.ready &= vm.resumed;
    vm.state = ListedState::Running;
    vm.started_in = Some(life);
    vm.dies_at = dies.then_some(dies_at);
    Ok(vm.dead.clone())
}

impl Runtime for Host {
    fn clone_image<'a>(&'a self, image: &'a str, name: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let (name, limit) = (name.to_string(), self.limit(self.deadlines.clone));
            self.world.act(Step::Clone, &name, limit, |world| clone(world, image, &name)).await
        }
        .boxed()
    }

    fn configure<'a>(&'a self, name: &'a VmName, _shape: &'a Shape) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let (name, limit) = (name.to_string(), self.limit(self.deadlines.set));
            self.world.act(Step::Configure, &name, limit, |world| vm(world, &name).map(drop)).await
        }
        .boxed()
    }

    fn start<'a>(
        &'a self,
        name: &'a VmName,
        _options: &'a RunOptions,
    ) -> BoxFuture<'a, Result<Box<dyn RunProcess>, Fault>> {
        async move {
            let name = name.to_string();
            let limit = self.limit(self.deadlines.query);
            let dead = self.world.act(Step::Start, &name, limit, |world| start(world, &name)).await?;
            Ok(Box::new(Process { host: self.clone(), name, dead }) as Box<dyn RunProcess>)
        }
        .boxed()
    }

    fn adopt<'a>(&'a self, name: &'a VmName) -> BoxFuture<'a, Result<Option<Box<dyn RunProcess>>, Fault>> {
        async move {
            let name = name.to_string();
            let find = |world: &mut Inner| {
                let life = world.life;
                let found = world.vms.get_mut(&name).filter(|vm| vm.state == ListedState::Running);
                Ok(found.map(|vm| {
                    vm.started_in = Some(life);
                    vm.dead.clone()
                }))
            };
            let found = self.world.act(Step::Adopt, &name, self.deadlines.query, find).await?;
            self.world.lock().adopted += u64::from(found.is_some());
            Ok(found.map(|dead| Box::new(Process { host: self.clone(), name, dead }) as Box<dyn RunProcess>))
        }
        .boxed()
    }

    fn address<'a>(
        &'a self,
        name: &'a VmName,
        _network: &'a Network,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<IpAddr, Fault>> {
        async move {
            let name = name.to_string();
            let find = |world: &mut Inner| {
                let stale = world.rate > 0.0 && {
                    let rate = world.rate;
                    world.dice.chance(rate / 5.0)
                };
                let vm = vm(world, &name)?;
                if vm.state != ListedState::Running {
                    return Err(Fault::new(Reason::NotRunning, "simulated ip", "the VM is not running"));
                }
                Ok(if stale { IpAddr::V4(Ipv4Addr::new(192, 168, 64, 200)) } else { vm.address })
            };
            self.world.act(Step::Address, &name, deadline.left(), find).await
        }
        .boxed()
    }

    fn restored<'a>(&'a self, name: &'a VmName, deadline: Deadline) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let name = name.to_string();
            let resumed = |world: &mut Inner| vm(world, &name).map(|vm| vm.resumed);
            if self.world.act(Step::Restore, &name, deadline.left(), resumed).await? {
                return Ok(());
            }
            tokio::time::sleep(deadline.left()).await;
            Err(Fault::new(Reason::StateLost, "simulated run", "it does not say that it resumes"))
        }
        .boxed()
    }

    fn suspend<'a>(&'a self, name: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let name = name.to_string();
            let suspend = |world: &mut Inner| {
                let ready = vm(world, &name)?.ready;
                if !ready || vm(world, &name)?.project.is_some() {
                    world.violation(format!("{name} is suspended and should not be"));
                }
                let rate = world.rate;
                let dies = world.dice.chance(rate);
                world.power_off(&name);
                if !dies {
                    vm(world, &name)?.state = ListedState::Suspended;
                }
                Ok(())
            };
            self.world.act(Step::Suspend, &name, self.deadlines.query, suspend).await
        }
        .boxed()
    }

    fn state<'a>(&'a self, name: &'a VmName) -> BoxFuture<'a, Result<ListedState, Fault>> {
        async move {
            let name = name.to_string();
            let state = |world: &mut Inner| vm(world, &name).map(|vm| vm.state);
            self.world.act(Step::State, &name, self.deadlines.query, state).await
        }
        .boxed()
    }

    fn stop<'a>(&'a self, name: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let name = name.to_string();
            let stop = |world: &mut Inner| {
                world.power_off(&name);
                Ok(())
            };
            self.world.act(Step::Stop, &name, self.deadlines.stop, stop).await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, name: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let name = name.to_string();
            let delete = |world: &mut Inner| {
                if world.vms.get(&name).is_some_and(|vm| vm.state == ListedState::Running) {
                    let text = format!("VM \"{name}\" is running");
                    return Err(Fault::new(Reason::VerbFailed, "simulated delete", text));
                }
                if let Some(vm) = world.vms.remove(&name) {
                    world.past.insert(name.clone(), vm);
                }
                Ok(())
            };
            self.world.act(Step::Delete, &name, self.deadlines.delete, delete).await
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, Fault>> {
        async move {
            let list = |world: &mut Inner| {
                let row = |(name, vm): (&String, &Vm)| Listed { name: name.clone(), state: vm.state };
                Ok(world.vms.iter().map(row).collect())
            };
            self.world.act(Step::List, "", self.deadlines.query, list).await
        }
        .boxed()
    }

    fn image<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<ImageInfo, Fault>> {
        async move {
            let os = if image == "macos" { GuestOs::Darwin } else { GuestOs::Linux };
            let info =
                |_: &mut Inner| Ok(ImageInfo { os, cpus: 1, memory_mib: 512, identity: String::new() });
            self.world.act(Step::Image, image, self.deadlines.query, info).await
        }
        .boxed()
    }

    fn prune_images(&self, _days: u64) -> BoxFuture<'_, Result<(), Fault>> {
        async { Ok(()) }.boxed()
    }

    fn version(&self) -> BoxFuture<'_, Result<String, Fault>> {
        async { Ok("simulated".to_owned()) }.boxed()
    }
}

struct Process {
    host: Host,
    name: String,
    dead: CancellationToken,
}

impl RunProcess for Process {
    fn ended(&mut self) -> BoxFuture<'_, Fault> {
        async move {
            self.host.world.guest_dead(&self.name, &self.dead).await;
            let state = self.host.world.lock().vms.get(&self.name).map(|vm| vm.state);
            if state == Some(ListedState::Suspended) {
                return Fault::new(Reason::Suspended, "simulated run", "its state is saved");
            }
            Fault::new(Reason::GuestStopped, "simulated run", "the guest died")
        }
        .boxed()
    }

    fn kill(&mut self, deadline: Deadline) -> BoxFuture<'_, Result<(), Fault>> {
        async move {
            let kill = |world: &mut Inner| {
                world.power_off(&self.name);
                Ok(())
            };
            self.host.world.act(Step::Kill, &self.name, deadline.left(), kill).await
        }
        .boxed()
    }

    fn pid(&self) -> Option<u32> {
        None
    }
}

impl World {
    /// Resolves when the guest is dead.
    pub async fn guest_dead(&self, name: &str, dead: &CancellationToken) {
        let at = self.lock().vms.get(name).and_then(|vm| vm.dies_at);
        match at {
            None => dead.cancelled().await,
            Some(at) => {
                tokio::select! {
                    biased;
                    () = dead.cancelled() => {}
                    () = self.until(at) => {}
                }
            }
        }
        self.alive().await;
        self.lock().settle();
    }
}
