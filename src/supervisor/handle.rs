//! What others hold of the supervisor.

use std::time::Duration;

use ractor::ActorRef;
use ractor::rpc::CallResult;

use super::actor::SupervisorMessage;
use crate::build::actor::{BuildArguments, BuildContext};

/// The supervisor's actor, from outside.
#[derive(Clone)]
pub struct SupervisorHandle {
    actor: ActorRef<SupervisorMessage>,
}

impl SupervisorHandle {
    /// Wraps a running actor.
    pub fn new(actor: ActorRef<SupervisorMessage>) -> Self {
        Self { actor }
    }

    /// Starts a build that is on disk. Should the supervisor be gone, the next start takes it up.
    pub fn build(&self, arguments: BuildArguments) {
        self.actor.cast(SupervisorMessage::Build(Box::new(arguments), None)).ok();
    }

    /// The same, and waits until the build can be looked at, for `limit` at most: whoever is told of the build may ask for
    /// its log at once, and must not take an actor that is not there yet for a build that is over.
    pub async fn build_seen(&self, arguments: BuildArguments, limit: Duration) {
        let build = |reply| SupervisorMessage::Build(Box::new(arguments), Some(reply));
        self.actor.call(build, Some(limit)).await.ok();
    }

    /// What builds need. `None` when the supervisor does not answer within `limit`.
    pub async fn context(&self, limit: Duration) -> Option<BuildContext> {
        match self.actor.call(SupervisorMessage::Context, Some(limit)).await {
            Ok(CallResult::Success(context)) => Some(context),
            Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => None,
        }
    }

    /// What is owed may have changed.
    pub fn uploads(&self) {
        self.actor.cast(SupervisorMessage::Uploads).ok();
    }

    /// Waits until every result that is due was tried to be delivered. For waits that have a deadline around them.
    pub async fn uploads_settled(&self) {
        self.actor.call(SupervisorMessage::SettleUploads, None).await.ok();
    }

    /// Ends every build's actor; the journal keeps their builds.
    pub async fn stop_builds(&self, limit: Duration) {
        self.actor.call(SupervisorMessage::StopBuilds, Some(limit)).await.ok();
    }

    /// Ends it and all that it started in the middle of whatever they do, as `kill -9` does: none of them is asked, and none
    /// hears of the others' end.
    #[cfg(test)]
    pub async fn crash(&self) {
        let mut cells = vec![self.actor.get_cell()];
        let mut next = 0;
        while next < cells.len() {
            cells.extend(cells[next].get_children());
            next += 1;
        }
        cells.iter().for_each(ractor::ActorCell::kill);
        while cells.iter().any(|cell| cell.get_status() != ractor::ActorStatus::Stopped) {
            tokio::task::yield_now().await;
        }
    }

    /// Ends the supervisor, and with it what is left of its children.
    pub fn stop(&self) {
        self.actor.stop(None);
    }
}
