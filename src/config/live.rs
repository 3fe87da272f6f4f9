//! The configuration in force. Whoever decides something asks for it then, and holds it no longer than the decision takes.

use std::sync::{Arc, PoisonError, RwLock};

use super::Config;

/// The configuration in force. Clones share it.
#[derive(Debug, Clone)]
pub struct Live {
    current: Arc<RwLock<Arc<Config>>>,
}

impl Live {
    /// Beginning with this one.
    pub fn new(config: Arc<Config>) -> Self {
        Self { current: Arc::new(RwLock::new(config)) }
    }

    /// The one in force now.
    pub fn get(&self) -> Arc<Config> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another one into force.
    pub fn set(&self, config: Arc<Config>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
    }
}
