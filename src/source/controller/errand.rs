//! One job, from the claim to its result at the controller:
//!
//! ```text
//!   claimed --source, certificates--> accepted --its log ends--> ended --delivered--> over
//!      |                                 |                         |
//!      +--cancelled, lost, overtaken-----+-------------------------+
//! ```
//!
//! Each arrow is in the journal before the next one begins, so that a restart goes on from where it was. Beside it a heart
//! beats, and somebody looks whether the job is ours still.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::beside::{self, Progress};
use super::bring::{self, Brought};
use super::client::Session;
use super::deliver::{self, Parcel};
use super::desk::Desk;
use super::forward::forward;
use super::told;
use super::wire::{Dialect, Offer};
use crate::api::service::{Refused, Ticket};
use crate::api::wire::BuildView;
use crate::build::spec::BuildResult;
use crate::ids::BuildId;
use crate::store::controllers::Job;
use crate::telemetry::controlling::{JobAccepted, Outcome};
use crate::telemetry::events::Degraded;

/// After a build has ended, the result waits so long for the rest of its log.
const LOG_BEFORE: Duration = Duration::from_secs(5);
/// And when the result is there, the lane does, for what could not be told meanwhile: longer than a call's pause.
const LOG_AFTER: Duration = Duration::from_secs(15);
/// A build whose log has ended without a result belongs to a daemon that is going down.
const NO_RESULT_PAUSE: Duration = Duration::from_secs(1);
/// A build that is cancelled is over after its grace; so long it is waited for before the lane goes on.
const CANCEL_MAX: Duration = Duration::from_secs(120);

/// A job that is being done.
pub struct Errand {
    pub desk: Arc<Desk>,
    pub session: Session,
    pub job: Job,
    progress: Progress,
}

/// What was offered, with a place for it.
pub struct Fresh {
    pub offer: Offer,
    pub ticket: Ticket,
}

/// How a job ended, and what there is to say about it.
pub struct Over {
    pub outcome: Outcome,
    pub why: String,
}

impl Over {
    /// An ending.
    pub fn new(outcome: Outcome, why: impl Into<String>) -> Self {
        Self { outcome, why: why.into() }
    }
}

impl Errand {
    /// Of a job that is in the journal.
    pub fn new(desk: Arc<Desk>, session: Session, job: Job) -> Self {
        Self { desk, session, job, progress: Progress::default() }
    }

    /// Sees the job through. Dropped, it is taken up by the next start.
    pub async fn run(mut self, fresh: Option<Fresh>) {
        let _beside = self.beside();
        let over = self.see_through(fresh).await;
        self.desk.end(&self.job.id, self.job.build, over.outcome, &over.why).await;
    }

    fn beside(&self) -> Vec<AbortOnDropHandle<()>> {
        let (desk, session, job) = (self.desk.clone(), self.session.clone(), self.job.id.clone());
        let beat = beside::beat(desk.clone(), session.clone(), job.clone(), self.progress.clone());
        let mut tasks = vec![AbortOnDropHandle::new(tokio::spawn(beat))];
        if session.dialect == Dialect::Tokened {
            let alive = beside::keep_alive(desk, session, job);
            tasks.push(AbortOnDropHandle::new(tokio::spawn(alive)));
        }
        tasks
    }

    async fn see_through(&mut self, fresh: Option<Fresh>) -> Over {
        let build = match self.build(fresh).await {
            Ok(build) => build,
            Err(over) => return over,
        };
        let again = self.job.build.replace(build).is_some();
        let (controller, job, lane) = (self.desk.name(), self.job.id.as_str(), self.job.lane);
        JobAccepted { controller, job, lane, build, again }.emit();
        match self.follow(build).await {
            Ok((view, mut log)) => {
                self.progress.store(95, Ordering::Relaxed);
                timeout(LOG_BEFORE, &mut log).await.ok();
                let over = self.bring_home(&view).await;
                if !log.is_finished() {
                    timeout(LOG_AFTER, log).await.ok();
                }
                over
            }
            Err(over) => over,
        }
    }

    /// The build of the job: the one that it is already, or a new one.
    async fn build(&self, fresh: Option<Fresh>) -> Result<BuildId, Over> {
        if let Some(build) = self.job.build {
            return Ok(build);
        }
        let Some(fresh) = fresh else {
            // Accepted, and the daemon ended before that was noted.
            if let Some(build) = self.accepted_before().await {
                self.link(build).await;
                return Ok(build);
            }
            return Err(
                bring::give_back(self, "the worker was started anew before the build was accepted").await
            );
        };
        self.progress.store(5, Ordering::Relaxed);
        let brought = tokio::select! {
            biased;
            outcome = beside::watch(&self.desk, &self.session, &self.job.id) => Err(outcome),
            brought = bring::bring(self, fresh) => Ok(brought),
        };
        match brought {
            Ok(Brought::Accepted(build)) => {
                self.link(build).await;
                Ok(build)
            }
            Ok(Brought::Refused(why)) => {
                bring::say(self, &why).await;
                Err(deliver::deliver(self, &Parcel::Failure(why)).await)
            }
            Ok(Brought::GivenBack(over)) => Err(over),
            Err(outcome) => {
                if let Some(build) = self.accepted_before().await {
                    self.cancel(build).await;
                }
                Err(Over::new(outcome, "before it was accepted"))
            }
        }
    }

    /// A build that was accepted for the job.
    pub async fn accepted_before(&self) -> Option<BuildId> {
        let mark = bring::mark(self.desk.name(), &self.job.id);
        let found = self.desk.store.build_with(bring::MARK, &mark).await;
        found.unwrap_or_else(|error| {
            Degraded { what: "journal", error: error.to_string() }.emit();
            None
        })
    }

    async fn link(&self, build: BuildId) {
        let token = self.session.job_token.clone();
        let linked = self.desk.store.link_job(self.desk.name(), &self.job.id, build, token).await;
        if let Err(error) = linked {
            // The build carries the job's name, by which it is found again.
            Degraded { what: "journal", error: error.to_string() }.emit();
        }
    }

    /// Waits for the build's end, and tells of it meanwhile; an error says that nobody waits for its result any more.
    /// With its end comes what forwards its log.
    async fn follow(&self, build: BuildId) -> Result<(BuildView, AbortOnDropHandle<()>), Over> {
        self.progress.store(50, Ordering::Relaxed);
        let (desk, session, job) = (self.desk.clone(), self.session.clone(), self.job.id.clone());
        let from = self.job.logged;
        let forwarding = {
            let (desk, session, job) = (desk.clone(), session.clone(), job.clone());
            AbortOnDropHandle::new(tokio::spawn(
                async move { forward(&desk, &session, &job, build, from).await },
            ))
        };
        let measuring = beside::measure(desk, session, job, build);
        let _measuring = AbortOnDropHandle::new(tokio::spawn(measuring));
        let ended = tokio::select! {
            biased;
            view = self.ended(build) => view,
            outcome = beside::watch(&self.desk, &self.session, &self.job.id) => {
                self.cancel(build).await;
                return Err(Over::new(outcome, "while it was built"));
            }
        };
        let view = ended.ok_or_else(|| Over::new(Outcome::Lost, "its build is not known here any more"))?;
        Ok((view, forwarding))
    }

    /// The build when it is over; `None` when nobody knows it.
    async fn ended(&self, build: BuildId) -> Option<BuildView> {
        loop {
            // Nothing but its end is of interest: it comes after the result is on disk.
            if let Ok(mut end) = self.desk.service.log(build, u64::MAX, true).await {
                while end.next().await.is_some() {}
            }
            match self.desk.service.build(build).await {
                Ok(view) if view.result.is_some() => return Some(view),
                Err(Refused::BuildUnknown(_)) => return None,
                Ok(_) | Err(_) => sleep(NO_RESULT_PAUSE).await,
            }
        }
    }

    async fn cancel(&self, build: BuildId) {
        match self.desk.service.cancel(build).await {
            Ok(()) | Err(Refused::BuildOver(_) | Refused::BuildUnknown(_)) => {}
            Err(refused) => Degraded { what: "cancelling a build", error: refused.to_string() }.emit(),
        }
        timeout(CANCEL_MAX, self.ended(build)).await.ok();
    }

    async fn bring_home(&self, view: &BuildView) -> Over {
        let result = match (view.result, told::result(&view.artifacts)) {
            (Some(BuildResult::Success), Some(artifact)) => {
                Parcel::Success(view.id, Box::new(artifact.clone()))
            }
            (Some(BuildResult::Success), None) => {
                Parcel::Failure("user: every step went well, and no artifact came out of the build".into())
            }
            (Some(_) | None, _) => Parcel::Failure(told::reason(view)),
        };
        deliver::deliver(self, &result).await
    }
}
