//! A job becomes a build of ours: its source and certificates are fetched, and the daemon is asked to take it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use reqwest::StatusCode;
use tokio::time::sleep;

use super::client::{CallError, Said, Wanted};
use super::deliver::{self, Parcel};
use super::errand::{Errand, Fresh, Over};
use super::told;
use super::wire::{Dialect, Offer};
use crate::api::service::{Refused, Ticket};
use crate::api::wire::{SigningSpec, SubmitSpec};
use crate::blocking;
use crate::clock::Deadline;
use crate::ids::BuildId;
use crate::pipelines::AUTO;
use crate::signing::bundle;
use crate::telemetry::controlling::{Call, Outcome};

/// The variable of a build that has its job's name: by it the build is found again.
pub const MARK: &str = "PREHEAT_JOB";
/// The variable with what the build is for.
const PLATFORM: &str = "PREHEAT_PLATFORM";

/// A job may take so long to be accepted. After that somebody else has more luck with it.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Times that the daemon itself may fail at it.
const FAULTS_MAX: u32 = 3;
/// Tries to give a job back; after that its controller's own sweep does it.
const GIVE_BACK_TRIES: u32 = 4;

/// What became of it.
pub enum Brought {
    Accepted(BuildId),
    /// By the user's fault: for these reasons.
    Refused(String),
    /// Not here and now.
    GivenBack(Over),
}

/// Why one try came to nothing.
enum Trouble {
    /// The controller's, or the way to it.
    Call(CallError),
    /// Ours.
    Refused(Refused),
    /// The certificates cannot be used.
    Signing(String),
}

/// The value of [`MARK`].
pub fn mark(controller: &str, job: &str) -> String {
    format!("{controller}/{job}")
}

/// Tries until the build is accepted, or it makes no sense any more.
pub async fn bring(errand: &Errand, fresh: Fresh) -> Brought {
    let (deadline, mut tries) = (Deadline::after(PATIENCE), 0);
    let Fresh { offer, ticket } = fresh;
    let mut ticket = Some(ticket);
    loop {
        tries += 1;
        let trouble = match attempt(errand, &offer, ticket.take()).await {
            Ok(build) => return Brought::Accepted(build),
            Err(trouble) => trouble,
        };
        let why = match trouble {
            Trouble::Signing(why) => return Brought::Refused(why),
            // The next daemon is offered it again, or somebody else is.
            Trouble::Refused(Refused::Stopping) if errand.session.dialect == Dialect::Keyed => {
                return Brought::GivenBack(Over::new(Outcome::Abandoned, "the daemon ends"));
            }
            Trouble::Refused(refused) => match again(&refused, tries) {
                Again::Never => return Brought::Refused(told::refusal(&refused)),
                Again::Elsewhere => return Brought::GivenBack(give_back(errand, &refused.to_string()).await),
                Again::Here => refused.to_string(),
            },
            Trouble::Call(CallError::TooLarge { max }) => {
                return Brought::Refused(format!(
                    "user: the source is larger than the {max} bytes that are taken"
                ));
            }
            Trouble::Call(error) if !error.passes() && !error.is_about_us() => {
                return Brought::GivenBack(
                    give_back(errand, &format!("the source cannot be fetched: {error}")).await,
                );
            }
            Trouble::Call(error) => format!("the source cannot be fetched: {error}"),
        };
        if deadline.left().is_zero() {
            return Brought::GivenBack(give_back(errand, &why).await);
        }
        sleep(errand.desk.pause(tries).min(deadline.left())).await;
    }
}

enum Again {
    /// It would be refused again.
    Never,
    /// In a while.
    Here,
    /// By another worker.
    Elsewhere,
}

fn again(refused: &Refused, tries: u32) -> Again {
    match refused {
        Refused::QueueFull { .. } | Refused::Draining | Refused::DiskLow { .. } => Again::Here,
        Refused::PoolUnknown { .. }
        | Refused::BadSpec { .. }
        | Refused::BadSource { .. }
        | Refused::BadSigning { .. } => Again::Never,
        Refused::Internal(_) if tries < FAULTS_MAX => Again::Here,
        Refused::Internal(_)
        | Refused::Stopping
        | Refused::DiskTooSmall { .. }
        | Refused::BadConfig { .. }
        | Refused::BuildUnknown(_)
        | Refused::ArtifactUnknown { .. }
        | Refused::CacheUnknown(_)
        | Refused::ImageUnknown { .. }
        | Refused::NothingBefore(_)
        | Refused::TreeUnknown(_)
        | Refused::BuildOver(_) => Again::Elsewhere,
    }
}

async fn attempt(errand: &Errand, offer: &Offer, ticket: Option<Ticket>) -> Result<BuildId, Trouble> {
    let desk = &errand.desk;
    let ticket = match ticket {
        Some(ticket) => ticket,
        None => desk.service.admit(None).map_err(Trouble::Refused)?,
    };
    let spool = desk.service.spool();
    let source =
        tempfile::NamedTempFile::new_in(&spool).map_err(|source| disk(&spool, source))?.into_temp_path();
    let path = match &offer.source_url {
        Some(url) => url.clone(),
        None => format!("/api/builds/{}/source", offer.id),
    };
    let max = desk.live.get().api.source_max.0;
    let wanted = Wanted { call: Call::Source, build: &offer.id, path: &path, bytes_max: max };
    let fetched = desk.client.fetch(&errand.session, wanted, &source);
    fetched.await.map_err(Trouble::Call)?;
    let signing = match &offer.certs_url {
        Some(url) => Some(certificates(errand, url).await?),
        None => None,
    };
    let spec = spec(errand, offer, signing);
    let accepted = desk.service.accept(ticket, spec, source).await;
    accepted.map(|view| view.id).map_err(Trouble::Refused)
}

fn disk(path: &Path, source: std::io::Error) -> Trouble {
    Trouble::Call(CallError::Disk { path: path.to_owned(), source })
}

fn spec(errand: &Errand, offer: &Offer, signing: Option<SigningSpec>) -> SubmitSpec {
    let config = &errand.desk.config;
    let mut env = BTreeMap::from([(MARK.to_owned(), mark(&config.name, &offer.id))]);
    if let Some(platform) = &offer.platform {
        env.insert(PLATFORM.to_owned(), platform.clone());
    }
    SubmitSpec {
        pool: config.pool.clone(),
        // What a source says of itself counts before what is found.
        pipeline: Some(config.pipeline.clone()).filter(|name| name != AUTO),
        env,
        signing,
        ..SubmitSpec::default()
    }
}

/// As JSON, or, from a controller that cannot make that of what it was given, as the bundle itself.
async fn certificates(errand: &Errand, url: &str) -> Result<SigningSpec, Trouble> {
    let (desk, session, job) = (&errand.desk, &errand.session, &errand.job.id);
    let refused = match desk.client.certificates(session, job).await {
        Ok(certificates) => return Ok(certificates.into()),
        Err(error @ (CallError::Silent { .. } | CallError::Key(_))) => return Err(Trouble::Call(error)),
        Err(error) => error,
    };
    let bytes_max = bundle::BUNDLE_BYTES_MAX as u64;
    let wanted = Wanted { call: Call::Certificates, build: job, path: url, bytes_max };
    let useless = |why: String| Trouble::Signing(format!("signing: the certificates cannot be used: {why}"));
    let bundle = match desk.client.fetch_secret(session, wanted).await {
        Ok(bundle) => bundle,
        Err(error) if error.passes() => return Err(Trouble::Call(error)),
        Err(error) => return Err(useless(format!("{refused}; {error}"))),
    };
    let read = blocking::run(move || bundle::read(&bundle)).await;
    read.map_err(|e| useless(e.to_string()))?.map_err(|e| useless(e.to_string()))
}

/// The job goes back to the controller's queue; where there is no such thing, it fails by the system's fault.
pub async fn give_back(errand: &Errand, why: &str) -> Over {
    if errand.session.dialect == Dialect::Keyed {
        return deliver::deliver(errand, &Parcel::Failure(format!("system: {why}"))).await;
    }
    for tries in 1..=GIVE_BACK_TRIES {
        match errand.desk.client.abandon(&errand.session, &errand.job.id, why).await {
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => break,
            Err(_) => sleep(errand.desk.pause(tries)).await,
            Ok(()) => break,
        }
    }
    Over::new(Outcome::Abandoned, why)
}

/// Why a build is refused belongs into its log, too: there is no other line in it.
pub async fn say(errand: &Errand, why: &str) {
    let line = |message: &str| Said { level: "error", message: message.to_owned() };
    let lines: Vec<Said> = why.lines().filter(|l| !l.is_empty()).map(line).collect();
    errand.desk.client.log(&errand.session, &errand.job.id, &lines).await.ok();
}
