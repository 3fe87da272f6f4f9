//! How we stand with a controller: written by its lanes, read by whoever asks for the daemon's state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::wire::{ControllerState, ControllerView};
use crate::clock::UnixMillis;
use crate::config::Controller;
use crate::telemetry::controlling::{ControllerFailed, ControllerReached, LanesBusy};

/// One controller's. Clones share it.
#[derive(Clone)]
pub struct Board {
    name: Arc<str>,
    view: Arc<Mutex<ControllerView>>,
}

impl Board {
    /// Of a controller that nothing was heard of.
    pub fn new(controller: &Controller) -> Self {
        let view = ControllerView {
            name: controller.name.clone(),
            url: controller.url.clone(),
            state: ControllerState::Connecting,
            since_ms: UnixMillis::now(),
            error: None,
            lanes: controller.lanes,
            busy: 0,
        };
        Self { name: controller.name.as_str().into(), view: Arc::new(Mutex::new(view)) }
    }

    /// The controller's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As it is now.
    pub fn view(&self) -> ControllerView {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ControllerView> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It answered. Only the change is told.
    pub fn reached(&self) {
        if self.becomes(ControllerState::Connected, None) {
            ControllerReached { controller: &self.name }.emit();
        }
    }

    /// It did not, or refuses us. Only the change is told.
    pub fn failed(&self, error: &str, hint: Option<&str>) {
        if self.becomes(ControllerState::Failing, Some(error)) {
            ControllerFailed { controller: &self.name, error, hint }.emit();
        }
    }

    fn becomes(&self, state: ControllerState, error: Option<&str>) -> bool {
        let mut view = self.lock();
        view.error = error.map(str::to_owned);
        let changes = view.state != state;
        if changes {
            (view.state, view.since_ms) = (state, UnixMillis::now());
        }
        changes
    }

    /// A lane has a job until the returned value is dropped.
    #[must_use]
    pub fn busy(&self) -> Busy {
        self.count(|busy| busy.saturating_add(1));
        Busy(self.clone())
    }

    fn count(&self, change: impl FnOnce(u16) -> u16) {
        let busy = {
            let mut view = self.lock();
            view.busy = change(view.busy);
            view.busy
        };
        LanesBusy { controller: &self.name, busy }.emit();
    }
}

/// A lane that has a job.
pub struct Busy(Board);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.count(|busy| busy.saturating_sub(1));
    }
}
