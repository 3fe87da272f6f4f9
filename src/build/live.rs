//! Builds that are not over, as others may look at them: the record as it changes, the log's head, and a way to cancel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

use super::actor::BuildHandle;
use super::log::LogHead;
use crate::ids::BuildId;
use crate::store::BuildRecord;

/// A build that is not over.
#[derive(Clone)]
pub struct LiveBuild {
    pub record: watch::Receiver<BuildRecord>,
    pub log: watch::Receiver<LogHead>,
    pub handle: BuildHandle,
}

impl LiveBuild {
    /// A build whose actor has failed says nothing more, and is not waited for.
    fn runs(&self) -> bool {
        self.record.has_changed().is_ok() && self.record.borrow().running
    }
}

/// All of them. Each build's actor is the only one that enters and removes its own.
#[derive(Clone, Default)]
pub struct LiveBuilds {
    builds: Arc<Mutex<HashMap<BuildId, LiveBuild>>>,
    entered: Arc<Notify>,
}

impl LiveBuilds {
    /// Enters a build.
    pub fn enter(&self, id: BuildId, build: LiveBuild) {
        self.with(|builds| builds.insert(id, build));
        self.entered.notify_waiters();
    }

    /// Waits for a build that is on disk and whose actor is about to start. For waits that have a deadline around them.
    pub async fn entering(&self, id: BuildId) -> LiveBuild {
        loop {
            let next = self.entered.notified();
            if let Some(build) = self.get(id) {
                return build;
            }
            next.await;
        }
    }

    /// Removes a build that is over and on disk.
    pub fn remove(&self, id: BuildId) {
        self.with(|builds| builds.remove(&id));
    }

    /// One build.
    pub fn get(&self, id: BuildId) -> Option<LiveBuild> {
        self.with(|builds| builds.get(&id).cloned())
    }

    /// All builds' numbers.
    pub fn ids(&self) -> Vec<BuildId> {
        self.with(|builds| builds.keys().copied().collect())
    }

    /// Builds that hold a VM, or whose result is on its way to the disk.
    pub fn running(&self) -> usize {
        self.with(|builds| builds.values().filter(|build| build.runs()).count())
    }

    /// Builds that are not over.
    pub fn count(&self) -> usize {
        self.with(|builds| builds.len())
    }

    /// Waits until none [runs](Self::running). For waits that have a deadline around them, while no build gets a VM.
    pub async fn idle(&self) {
        let next = || self.with(|builds| builds.values().find(|build| build.runs()).cloned());
        while let Some(mut build) = next() {
            // An error says that its actor has ended, and then it runs no more.
            build.record.wait_for(|record| !record.running).await.ok();
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<BuildId, LiveBuild>) -> T) -> T {
        f(&mut self.builds.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
