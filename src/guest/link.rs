//! The way into a guest: one connection after the other.
//!
//! ```text
//!   Up(connection) -- it is lost --> Down -- dialled again within REDIAL --> Up(another one)
//!        |                             `-- not within REDIAL, or lost too often --> Over(fault)
//!        `------------- abandoned: the guest is dead --------------------------------^
//! ```
//!
//! One task dials, so that however many wait for a connection, there is one dial.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::{timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::connection::{Connection, connect};
use super::pace::Pace;
use super::wire::LOSS_SHOWS;
use super::{TakeError, Target};
use crate::clock::{Deadline, now};
use crate::ids::RunId;
use crate::runtime::{Fault, Reason};

/// Dial, handshake and a first command after a loss, all together. Loss and this are what a build waits for a dead guest
/// that nobody says is dead.
pub(super) const REDIAL: Duration = Duration::from_secs(15);

/// A connection that held for this long was a good one; so many in a row that did not are the last.
const HELD: Duration = Duration::from_secs(60);
const SHORT_ONES_MAX: usize = 10;

/// For a word to each of those that stand by: they read it when they like.
const READY_MAX: Duration = Duration::from_secs(5);

/// How often something that must be whole is begun again because its connection was lost.
const TRIES_MAX: usize = 4;

#[derive(Debug, Clone)]
enum State {
    Up(Arc<Connection>),
    Down,
    Over(Fault),
}

/// The way into one guest. Dropped, it is closed.
#[derive(Debug)]
pub(super) struct Link {
    /// What is known of transfers to guests like this one.
    pub(super) pace: Arc<Pace>,
    state: Arc<watch::Sender<State>>,
    /// The guest is to be ready for a claim, over whichever connection.
    ready: Arc<AtomicBool>,
    _keeper: AbortOnDropHandle<()>,
}

impl Link {
    pub(super) fn new(target: Target, first: Connection) -> Self {
        let (first, pace) = (Arc::new(first), Pace::of(&target));
        let state = Arc::new(watch::Sender::new(State::Up(first.clone())));
        let ready = Arc::new(AtomicBool::new(false));
        let keeper = tokio::spawn(keep(target, first, state.clone(), ready.clone()));
        Self { pace, state, ready, _keeper: AbortOnDropHandle::new(keeper) }
    }

    /// A connection, another one than `lost`: waits while one is dialled.
    ///
    /// # Errors
    /// When the guest can be reached no more.
    pub(super) async fn up(&self, lost: Option<&Arc<Connection>>) -> Result<Arc<Connection>, Fault> {
        let mut state = self.state.subscribe();
        let reached = state.wait_for(|state| match state {
            State::Up(connection) => !lost.is_some_and(|lost| Arc::ptr_eq(lost, connection)),
            State::Down => false,
            State::Over(_) => true,
        });
        match reached.await.map(|state| state.clone()) {
            Ok(State::Up(connection)) => Ok(connection),
            Ok(State::Over(fault)) => Err(fault),
            Ok(State::Down) | Err(_) => Err(closed()),
        }
    }

    /// The name of the run for which a wrapper waits.
    pub(super) fn reserved(&self) -> Option<RunId> {
        match &*self.state.borrow() {
            State::Up(connection) => connection.reserved(),
            State::Down | State::Over(_) => None,
        }
    }

    /// Has what a claim needs started on the connection that there is. Without one, or with one that does not take a word,
    /// the claim starts it.
    pub(super) async fn make_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
        let up = match &*self.state.borrow() {
            State::Up(connection) => Some(connection.clone()),
            State::Down | State::Over(_) => None,
        };
        if let Some(connection) = up {
            timeout(READY_MAX, connection.make_ready()).await.ok();
        }
    }

    /// Something of a build goes into the guest.
    pub(super) fn is_used(&self) {
        self.ready.store(false, Ordering::Relaxed);
    }

    /// Resolves when the guest can be reached no more.
    pub(super) fn lost(&self) -> BoxFuture<'static, Fault> {
        over(self.state.subscribe()).boxed()
    }

    /// Ends it: everybody who waits for the guest gets `why`.
    pub(super) fn abandon(&self, why: Fault) {
        end(&self.state, why);
    }

    /// `doing`, unless the guest can be reached no more first.
    pub(super) async fn or_over<T, E: From<Fault>>(
        &self,
        doing: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            biased;
            fault = self.lost() => Err(fault.into()),
            done = doing => done,
        }
    }

    /// Does something that is whole or nothing, and does it again when its connection is lost. `doing` is told how often
    /// it was begun before.
    pub(super) async fn whole<'a, T, E: From<Fault> + OfTheWay>(
        &self,
        doing: impl Fn(Arc<Connection>, usize) -> BoxFuture<'a, Result<T, E>>,
    ) -> Result<T, E> {
        self.or_over(async {
            let (mut lost, mut before) = (None, 0);
            loop {
                let connection = self.up(lost.as_ref()).await?;
                match doing(connection.clone(), before).await {
                    Err(error) if before + 1 < TRIES_MAX && is_loss(&error, &connection).await => {}
                    done @ (Ok(_) | Err(_)) => return done,
                }
                (lost, before) = (Some(connection), before + 1);
            }
        })
        .await
    }

    /// An answer of the guest within `limit`, over whichever connection.
    pub(super) async fn answered(
        &self,
        limit: Duration,
        ask: impl Fn(Arc<Connection>, Duration) -> BoxFuture<'static, Result<(), Fault>>,
    ) -> Result<(), Fault> {
        let deadline = Deadline::after(limit);
        let answered = self.whole(|connection, _| ask(connection, deadline.left()));
        let late = |_| Err(Fault::new(Reason::ProbeFailed, "probe", format!("no answer within {limit:?}")));
        timeout_at(deadline.instant(), answered).await.unwrap_or_else(late)
    }
}

/// An error that may be the way's and not the work's.
pub(super) trait OfTheWay {
    /// Whether it may be.
    fn of_the_way(&self) -> bool;
}

impl OfTheWay for Fault {
    fn of_the_way(&self) -> bool {
        true
    }
}

impl OfTheWay for TakeError {
    fn of_the_way(&self) -> bool {
        matches!(self, Self::Guest(_))
    }
}

/// Whether the connection is what failed. A stream that ends early may tell before the connection's own end does.
async fn is_loss(error: &impl OfTheWay, connection: &Connection) -> bool {
    connection.wire.is_lost()
        || (error.of_the_way() && timeout(LOSS_SHOWS, connection.wire.lost()).await.is_ok())
}

fn closed() -> Fault {
    Fault::new(Reason::ConnectionLost, "ssh", "the connection was closed")
}

async fn over(mut state: watch::Receiver<State>) -> Fault {
    match state.wait_for(|state| matches!(state, State::Over(_))).await.map(|state| state.clone()) {
        Ok(State::Over(fault)) => fault,
        Ok(State::Up(_) | State::Down) | Err(_) => closed(),
    }
}

/// The first fault stands.
fn end(state: &watch::Sender<State>, why: Fault) {
    state.send_if_modified(|state| {
        let first = !matches!(state, State::Over(_));
        if first {
            *state = State::Over(why);
        }
        first
    });
}

/// Sets a state that is not the last one; `false` when the last one is reached.
fn set(state: &watch::Sender<State>, next: State) -> bool {
    state.send_if_modified(|state| {
        let goes_on = !matches!(state, State::Over(_));
        if goes_on {
            *state = next;
        }
        goes_on
    })
}

/// Dials whenever the connection is lost, until it is over.
async fn keep(
    target: Target,
    first: Arc<Connection>,
    state: Arc<watch::Sender<State>>,
    ready: Arc<AtomicBool>,
) {
    let mut over = std::pin::pin!(over(state.subscribe()));
    let mut connection = first;
    let mut short_ones = 0;
    loop {
        let since = now();
        let loss = tokio::select! {
            biased;
            _ = &mut over => return,
            loss = connection.wire.lost() => loss,
        };
        drop(connection);
        if !set(&state, State::Down) {
            return;
        }
        short_ones = if since.elapsed() < HELD { short_ones + 1 } else { 0 };
        if short_ones > SHORT_ONES_MAX {
            return end(&state, lost_for_good(&loss, "it was lost again and again"));
        }
        let dialled = tokio::select! {
            biased;
            _ = &mut over => return,
            dialled = connect(&target, None, Deadline::after(REDIAL)) => dialled,
        };
        connection = match dialled {
            Ok(connection) => Arc::new(connection),
            Err(fault) => {
                let why = format!("not reached again within {REDIAL:?}: {}", fault.text);
                return end(&state, lost_for_good(&loss, &why));
            }
        };
        if ready.load(Ordering::Relaxed) {
            timeout(READY_MAX, connection.make_ready()).await.ok();
        }
        if !set(&state, State::Up(connection.clone())) {
            return;
        }
    }
}

fn lost_for_good(loss: &Fault, why: &str) -> Fault {
    Fault::new(Reason::ConnectionLost, "ssh", format!("{}; {why}", loss.text))
}
