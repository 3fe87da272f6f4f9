//! What the lanes of one controller share.

use std::sync::Arc;
use std::time::Duration;

use super::board::Board;
use super::client::Client;
use crate::api::service::Service;
use crate::config::{Controller, Live};
use crate::ids::BuildId;
use crate::jitter;
use crate::store::Store;
use crate::telemetry::controlling::{JobEnded, Outcome};
use crate::telemetry::events::Degraded;

/// The pause after the first failed call; it doubles.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
/// And is not longer than this.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What the lanes of one controller share.
pub struct Desk {
    pub config: Controller,
    pub live: Live,
    pub client: Client,
    pub board: Board,
    pub service: Arc<dyn Service>,
    pub store: Store,
    /// This machine's name.
    pub host: String,
}

impl Desk {
    /// The controller's name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The pause after so many failures of a kind. Where calls are to come fast, failures need not wait long.
    pub fn pause(&self, failures: u32) -> Duration {
        let first = PAUSE_FIRST.min(self.config.poll_interval);
        jitter::backoff(first, PAUSE_MAX, failures, jitter::next())
    }

    /// Notes that a job is over for the controller.
    pub async fn end(&self, job: &str, build: Option<BuildId>, outcome: Outcome, why: &str) {
        if let Err(error) = self.store.end_job(self.name(), job, outcome.as_str()).await {
            // It is open still, and the next start looks at it again.
            Degraded { what: "journal", error: error.to_string() }.emit();
        }
        JobEnded { controller: self.name(), job, build, outcome, why }.emit();
    }
}

/// About `interval`, so that many do not come in step.
pub fn about(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * jitter::next())
}
