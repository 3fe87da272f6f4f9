//! A lane: one worker of a controller, with one job at a time.
//!
//! ```text
//!   taking up what is open -> asking --a job that is ours--> errand -> asking ..
//!                               |  ^
//!         the daemon is drained v  | it serves again
//!                             left
//! ```
//!
//! It asks only while the daemon has a place for a build: to be given a job is to have it. Where the worker is not known any
//! more it registers anew; where nobody answers, or the key is refused, it asks again after growing pauses.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use secrecy::SecretString;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::{CallError, Session};
use super::desk::{Desk, about};
use super::errand::{Errand, Fresh};
use super::standing::{self, Claim, Standing};
use super::wire::{Dialect, Offer, Polled, is_name};
use crate::api::service::Ticket;
use crate::source::Ends;
use crate::store::StoreError;
use crate::store::controllers::{Job, Worker};
use crate::telemetry::controlling::{JobEnded, LaneLeft, LaneRegistered, Outcome};
use crate::telemetry::events::Degraded;

/// Tries to exchange a one-time password, which lives for ten minutes.
const AUTHENTICATE_TRIES: u32 = 5;

/// A lane.
pub struct Lane {
    desk: Arc<Desk>,
    number: u16,
    /// Who it is, once it knows.
    session: Option<Session>,
    /// Turns in a row that came to nothing.
    failures: u32,
    /// It told the controller that it takes no more jobs.
    left: bool,
    /// What is offered and not ours: it is told of once.
    ghost: Option<String>,
}

impl Lane {
    /// One of the controller's lanes, from 0.
    pub fn new(desk: Arc<Desk>, number: u16) -> Self {
        Self { desk, number, session: None, failures: 0, left: false, ghost: None }
    }

    /// Works until it is drained and has no job, or all is over.
    pub async fn run(mut self, ends: Ends) {
        let draining = ends.draining.clone();
        ends.over.run_until_cancelled(self.work(&draining)).await;
    }

    async fn work(&mut self, draining: &CancellationToken) {
        self.take_up().await;
        while !draining.is_cancelled() {
            let pause = self.turn().await;
            tokio::select! {
                biased;
                () = draining.cancelled() => {}
                () = sleep(pause) => {}
            }
        }
        self.leave().await;
    }

    /// Jobs that are open in the journal.
    async fn take_up(&self) {
        let open = self.noted(self.desk.store.open_jobs(self.desk.name(), self.number).await);
        for job in open.unwrap_or_default() {
            let Some(worker) = self.worker().await else { return };
            let token = self.noted(self.desk.store.job_token(&job).await).flatten();
            let session = Session { job_token: token, ..session_of(worker) };
            let errand = Errand::new(self.desk.clone(), session, job);
            if errand.job.build.is_none() && errand.accepted_before().await.is_none() {
                self.give_up(&errand.job.id).await;
                continue;
            }
            let _busy = self.desk.board.busy();
            errand.run(None).await;
        }
    }

    /// A job that was not accepted yet when a daemon ended: it is offered again, or goes back so that it is.
    async fn give_up(&self, job: &str) {
        let why = "it was not accepted yet when the daemon ended";
        if let Ok(session) = self.session().await
            && session.dialect == Dialect::Tokened
            && let Ok(remote) = self.desk.client.look(&session, job).await
            && standing::of(&remote, &session.worker) == Standing::Ours
        {
            self.desk.client.abandon(&session, job, why).await.ok();
        }
        self.desk.end(job, None, Outcome::Abandoned, why).await;
    }

    fn noted<T>(&self, read: Result<T, StoreError>) -> Option<T> {
        read.map_err(|error| Degraded { what: "journal", error: error.to_string() }.emit()).ok()
    }

    async fn worker(&self) -> Option<Worker> {
        self.noted(self.desk.store.worker(self.desk.name(), self.number).await).flatten()
    }

    async fn note_worker(&self, worker: Option<Worker>) {
        self.noted(self.desk.store.note_worker(self.desk.name(), self.number, worker).await);
    }

    /// One question, and what comes of it. Returns the pause before the next.
    async fn turn(&mut self) -> Duration {
        let usual = about(self.desk.config.poll_interval);
        if self.desk.service.ready().is_err() {
            self.leave().await;
            return usual;
        }
        let Ok(ticket) = self.desk.service.admit(None) else { return usual };
        let asked = match self.session().await {
            Ok(session) => self.desk.client.poll(&session).await.map(|polled| (session, polled)),
            Err(error) => Err(error),
        };
        match asked {
            Ok((session, polled)) => {
                (self.failures, self.left) = (0, false);
                self.polled(session, polled, ticket).await.unwrap_or(usual)
            }
            Err(error) => self.failed(&error).await,
        }
    }

    /// The pause, where it is another than the usual one.
    async fn polled(&mut self, mut session: Session, polled: Polled, ticket: Ticket) -> Option<Duration> {
        match (session.dialect, polled.access_token) {
            (Dialect::Tokened, Some(token)) => session.token = Some(token.into()),
            // Another controller answers than the one that we registered with.
            (Dialect::Keyed, Some(_)) => {
                self.session = None;
                self.note_worker(None).await;
                return None;
            }
            (Dialect::Tokened | Dialect::Keyed, None) => {}
        }
        self.session = Some(session.clone());
        let offer = polled.job?;
        if !is_name(&offer.id) {
            self.desk.board.failed("it offers a job whose name is none", None);
            return None;
        }
        let session = match session.dialect {
            Dialect::Keyed => self.claimed(session, &offer).await?,
            Dialect::Tokened => self.authenticated(session, &offer).await?,
        };
        let name = self.desk.name();
        let job: Job = match self.desk.store.take_job(name, &offer.id, self.number).await {
            Ok(job) => job,
            Err(error) => {
                Degraded { what: "journal", error: error.to_string() }.emit();
                // Where it is not offered again somebody else has it.
                self.desk.client.abandon(&session, &offer.id, "the worker cannot write").await.ok();
                return None;
            }
        };
        let tokened = session.dialect == Dialect::Tokened;
        let _busy = self.desk.board.busy();
        Errand::new(self.desk.clone(), session, job).run(Some(Fresh { offer, ticket })).await;
        if tokened {
            // Its token is too old by now, or another one took its place.
            self.session = None;
        }
        Some(Duration::ZERO)
    }

    /// Whether the job is ours: controllers that offer one until its result is there offer some that are over.
    async fn claimed(&mut self, session: Session, offer: &Offer) -> Option<Session> {
        let remote = self.desk.client.look(&session, &offer.id).await.ok()?;
        let standing = standing::of(&remote, &session.worker);
        let why = format!("it was offered, and stands as {standing:?}");
        match standing::claim(&standing) {
            Claim::Holds => return Some(session),
            Claim::Clear => {
                let text = remote.error_message.unwrap_or_else(|| "it was over when it was offered".into());
                self.desk.client.fail(&session, &offer.id, &text).await.ok();
            }
            Claim::Leave => {}
        }
        if self.ghost.replace(offer.id.clone()).as_ref() != Some(&offer.id) {
            let (controller, job) = (self.desk.name(), offer.id.as_str());
            JobEnded { controller, job, build: None, outcome: Outcome::Ghost, why: &why }.emit();
        }
        None
    }

    /// With the job's token; a job whose password is not taken goes back.
    async fn authenticated(&self, session: Session, offer: &Offer) -> Option<Session> {
        let mut why = "it came without a one-time password".to_owned();
        if let Some(otp) = &offer.otp {
            for tries in 1..=AUTHENTICATE_TRIES {
                match self.desk.client.authenticate(&offer.id, otp).await {
                    Ok(token) => return Some(Session { job_token: Some(token), ..session }),
                    Err(error) => why = error.to_string(),
                }
                sleep(self.desk.pause(tries)).await;
            }
        }
        self.desk.client.abandon(&session, &offer.id, &why).await.ok();
        let (controller, job) = (self.desk.name(), offer.id.as_str());
        JobEnded { controller, job, build: None, outcome: Outcome::Abandoned, why: &why }.emit();
        None
    }

    /// Who we are: as we were, where that does; else registered, under the name that we had if we had one.
    async fn session(&self) -> Result<Session, CallError> {
        if let Some(session) = &self.session {
            return Ok(session.clone());
        }
        let worker = self.worker().await;
        if let Some(worker) = worker.clone().filter(|worker| !worker.tokened) {
            return Ok(session_of(worker));
        }
        let name = format!("{}-{}", self.desk.host, self.number + 1);
        let registered = self.desk.client.register(worker.as_ref().map(|w| w.id.as_str()), &name, 0).await?;
        let dialect = registered.dialect();
        let worker = Worker { id: registered.id, tokened: dialect == Dialect::Tokened };
        self.note_worker(Some(worker.clone())).await;
        let (controller, lane) = (self.desk.name(), self.number);
        LaneRegistered { controller, lane, worker: &worker.id, dialect: dialect.as_str() }.emit();
        let token = registered.access_token.map(SecretString::from);
        let session = Session { token, ..session_of(worker) };
        if session.dialect == Dialect::Tokened {
            self.abandon_lost(&session).await;
        }
        Ok(session)
    }

    /// Jobs that we were given and never heard of: an answer was lost, or a daemon ended. They are not offered again.
    async fn abandon_lost(&self, session: &Session) {
        let open = self.noted(self.desk.store.open_jobs(self.desk.name(), self.number).await);
        let Some(open) = open else { return };
        let ours = |id: &str| open.iter().any(|job| job.id == id && job.build.is_some());
        let held = self.desk.client.held(session).await.unwrap_or_default();
        for lost in held.into_iter().filter(|lost| !ours(&lost.id)) {
            let why = "the worker does not have it";
            self.desk.client.abandon(session, &lost.id, why).await.ok();
            let (controller, job) = (self.desk.name(), lost.id.as_str());
            JobEnded { controller, job, build: None, outcome: Outcome::Abandoned, why }.emit();
        }
    }

    /// The pause after a turn that came to nothing.
    async fn failed(&mut self, error: &CallError) -> Duration {
        self.failures = self.failures.saturating_add(1);
        if let CallError::Key(key) = error {
            self.desk.board.failed(&key.to_string(), Some(&key.hint()));
        }
        let tokened = self.session.as_ref().is_some_and(|s| s.dialect == Dialect::Tokened);
        match error.status() {
            // The token is too old: with a new one the next question may come at once.
            Some(StatusCode::UNAUTHORIZED) if tokened => {
                self.session = None;
                if self.failures == 1 {
                    return Duration::ZERO;
                }
            }
            Some(StatusCode::UNAUTHORIZED) => self.session = None,
            Some(StatusCode::NOT_FOUND) => {
                self.session = None;
                self.note_worker(None).await;
                if self.failures == 1 {
                    return Duration::ZERO;
                }
            }
            Some(_) | None => {}
        }
        self.desk.pause(self.failures)
    }

    /// Tells the controller that no more jobs are taken, unless one is open: it would be given to somebody else.
    async fn leave(&mut self) {
        let open = self.noted(self.desk.store.open_jobs(self.desk.name(), self.number).await);
        if self.left || open.is_none_or(|open| !open.is_empty()) {
            return;
        }
        if self.worker().await.is_none() {
            return;
        }
        let Ok(session) = self.session().await else { return };
        if self.desk.client.unregister(&session).await.is_ok() {
            (self.left, self.session) = (true, None);
            LaneLeft { controller: self.desk.name(), lane: self.number }.emit();
        }
    }
}

fn session_of(worker: Worker) -> Session {
    let dialect = if worker.tokened { Dialect::Tokened } else { Dialect::Keyed };
    Session { dialect, worker: worker.id, token: None, job_token: None }
}
