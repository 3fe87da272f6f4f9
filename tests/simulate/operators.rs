//! The operators: they drain the daemon and let it go on, and have it read another configuration, or one with a mistake.

use std::sync::Arc;

use preheat::api::service::{Refused, Service};
use preheat::api::wire::DaemonState;
use preheat::config::Live;
use preheat::runtime::ListedState;
use tokio::time::{sleep, timeout};

use crate::life::DRAINED_WITHIN;
use crate::plan::{self, Machine};
use crate::world::World;

/// What one of them has in mind, in one life.
struct Operator {
    world: Arc<World>,
    daemon: Arc<dyn Service>,
    config: Live,
    machine: Machine,
    /// Nothing fails in this life.
    undisturbed: bool,
}

/// In each life one of them gives a few orders; in the last life everything is left as builds need it.
pub fn come(
    world: &Arc<World>,
    daemon: &Arc<dyn Service>,
    config: Live,
    machine: Machine,
    undisturbed: bool,
) {
    let operator = Operator { world: world.clone(), daemon: daemon.clone(), config, machine, undisturbed };
    operator.look();
    world.lock().operated = true;
    tokio::spawn(async move {
        operator.give_orders().await;
        operator.world.alive().await;
        operator.world.lock().operated = false;
    });
}

impl Operator {
    fn draining(&self) -> bool {
        matches!(self.daemon.status().state, DaemonState::Draining | DaemonState::Drained)
    }

    /// What it said of itself holds, also after a restart.
    fn look(&self) {
        let (said, draining) = (self.world.lock().drained, self.draining());
        if said.is_some_and(|said| said != draining) {
            self.world.lock().violation(format!("drained: it said {said:?}, and it is {draining}"));
        }
    }

    async fn give_orders(&self) {
        let orders = self.world.lock().dice.between(0, 4);
        for _ in 0..orders {
            let (after, kind) = {
                let mut world = self.world.lock();
                (world.dice.millis(0, 120_000), world.dice.between(0, 5))
            };
            sleep(after).await;
            self.world.alive().await;
            match kind {
                0 => self.drain().await,
                1 | 2 => self.resume().await,
                3 => self.mistake().await,
                _ => self.reload().await,
            }
        }
        if self.undisturbed {
            self.resume().await;
        }
    }

    /// Whether the order was carried out. Only a daemon that stops may refuse one.
    async fn answered<T>(&self, order: &'static str, answer: Result<T, Refused>) -> Option<T> {
        self.world.alive().await;
        let mut world = self.world.lock();
        match answer {
            Ok(done) => {
                *world.orders.entry(order).or_default() += 1;
                world.note(format!("an operator's order is done: {order}"));
                Some(done)
            }
            Err(Refused::Stopping) if world.stopping => None,
            Err(refused) => {
                world.violation(format!("an operator's order ({order}) is refused: {refused}"));
                None
            }
        }
    }

    async fn drain(&self) {
        self.world.lock().drained = None;
        let answer = self.daemon.drain().await;
        if self.answered("drain", answer).await.is_none() {
            return;
        }
        self.world.lock().drained = Some(true);
        self.look_unless_stopping();
        if self.undisturbed {
            let drained = async {
                while self.daemon.status().state != DaemonState::Drained {
                    sleep(std::time::Duration::from_secs(5)).await;
                }
            };
            if timeout(DRAINED_WITHIN, drained).await.is_err() {
                let status = self.daemon.status();
                self.world.lock().violation(format!("not drained in {DRAINED_WITHIN:?}: {status:?}"));
            }
            self.nothing_runs();
        }
    }

    fn nothing_runs(&self) {
        let mut world = self.world.lock();
        let mine =
            |vm: &crate::world::Vm| vm.state == ListedState::Running && vm.started_in == Some(world.life);
        let runs: Vec<String> =
            world.vms.iter().filter(|(_, vm)| mine(vm)).map(|(name, _)| name.clone()).collect();
        if !runs.is_empty() {
            world.violation(format!("it is drained, and {runs:?} run"));
        }
    }

    async fn resume(&self) {
        self.world.lock().drained = None;
        let answer = self.daemon.resume().await;
        if self.answered("resume", answer).await.is_some() {
            self.world.lock().drained = Some(false);
            self.look_unless_stopping();
        }
    }

    fn look_unless_stopping(&self) {
        if !self.world.lock().stopping {
            self.look();
        }
    }

    async fn reload(&self) {
        let home = self.config.get().home.path().to_owned();
        {
            let mut world = self.world.lock();
            world.config = plan::config(&mut world.dice, self.machine);
            std::fs::write(plan::file(&home), &world.config).expect("written");
        }
        let written = plan::read(&home).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        let answer = self.daemon.reload().await;
        if self.answered("reload", answer).await.is_some() && *self.config.get() != written.config {
            self.world.lock().violation("another configuration is in force than it said".into());
        }
    }

    /// Nothing of it takes effect.
    async fn mistake(&self) {
        let (home, before) = (self.config.get().home.path().to_owned(), self.config.get());
        let wrong =
            format!("{}\n[stop]\ndrain = 1\n", plan::config(&mut self.world.lock().dice, self.machine));
        std::fs::write(plan::file(&home), wrong).expect("written");
        let answer = match self.daemon.reload().await {
            Ok(_) => Err(Refused::Internal("a mistake was put into force".into())),
            Err(Refused::BadConfig { .. }) => Ok(()),
            Err(refused) => Err(refused),
        };
        if self.answered("mistake", answer).await.is_some() && *self.config.get() != *before {
            self.world.lock().violation("a configuration with a mistake took effect".into());
        }
        std::fs::write(plan::file(&home), &self.world.lock().config).expect("written");
    }
}
