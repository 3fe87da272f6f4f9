//! A result on its way home. It is brought until it is there. Where nobody knows whether it arrived, the controller is asked
//! before it is brought again: it counts each time, and one result is enough.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;
use tokio::time::sleep;

use super::client::{CallError, Session};
use super::errand::{Errand, Over};
use super::standing::{self, Delivery};
use crate::api::wire::ArtifactView;
use crate::clock::Deadline;
use crate::ids::BuildId;
use crate::telemetry::controlling::{Outcome, ResultBrought, ResultDelayed};

/// A controller that is away for longer has lost more than this result.
const PATIENCE: Duration = Duration::from_secs(7 * 86_400);
/// Times that a controller may not know the build before it is lost: one that comes up may not know it yet.
const UNKNOWN_MAX: u32 = 3;

/// What a build came to.
#[derive(Debug, Clone)]
pub enum Parcel {
    /// This file of the build.
    Success(BuildId, Box<ArtifactView>),
    /// For these reasons.
    Failure(String),
}

impl Parcel {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Success(..) => Outcome::Success,
            Self::Failure(_) => Outcome::Failure,
        }
    }
}

/// Brings it until it is there, or nobody wants it.
pub async fn deliver(errand: &Errand, result: &Parcel) -> Over {
    let (desk, job) = (&errand.desk, &errand.job.id);
    let (deadline, mut tries, mut unknown) = (Deadline::after(PATIENCE), 0, 0);
    let (mut session, mut result, mut sent) = (errand.session.clone(), result.clone(), None);
    loop {
        tries += 1;
        let error = match once(errand, &session, &result, sent.as_deref()).await {
            Ok(over) => return over,
            Err(error) => error,
        };
        match what_now(&error) {
            Now::Again { arrived } => {
                if arrived && let Parcel::Failure(why) = &result {
                    sent = Some(why.clone());
                }
            }
            Now::WithoutToken => session.job_token = None,
            Now::AsFailure => result = Parcel::Failure(format!("system: the result was not taken: {error}")),
            Now::Unknown => unknown += 1,
        }
        if unknown >= UNKNOWN_MAX {
            return Over::new(Outcome::Lost, error.to_string());
        }
        if deadline.left().is_zero() {
            return Over::new(Outcome::Undelivered, error.to_string());
        }
        let pause = desk.pause(tries);
        ResultDelayed { controller: desk.name(), job, error: &error.to_string(), pause }.emit();
        sleep(pause).await;
    }
}

enum Now {
    /// Later; it may have `arrived`.
    Again { arrived: bool },
    /// By the way that needs no token: this one is too old.
    WithoutToken,
    /// This file will never be taken.
    AsFailure,
    /// It is not known over there, or not taken: later, and not often.
    Unknown,
}

fn what_now(error: &CallError) -> Now {
    match error.status() {
        Some(StatusCode::PAYLOAD_TOO_LARGE) => Now::AsFailure,
        Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Now::WithoutToken,
        Some(_) if !error.passes() => Now::Unknown,
        Some(status) => Now::Again { arrived: status.is_server_error() },
        None => match error {
            // It is not here any more; what else the disk has may pass.
            CallError::Disk { source, .. }
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::Other) =>
            {
                Now::AsFailure
            }
            CallError::Silent { sent, .. } => Now::Again { arrived: *sent },
            CallError::Disk { .. } | CallError::Key(_) => Now::Again { arrived: false },
            CallError::Refused { .. } | CallError::Strange(_) | CallError::TooLarge { .. } => {
                Now::Again { arrived: true }
            }
        },
    }
}

/// Looks how the job stands, and brings the result if it is wanted.
async fn once(
    errand: &Errand,
    session: &Session,
    result: &Parcel,
    sent: Option<&str>,
) -> Result<Over, CallError> {
    let (desk, job) = (&errand.desk, &errand.job.id);
    let success = matches!(result, Parcel::Success(..));
    match desk.client.look(session, job).await {
        Ok(remote) => match standing::delivery(&standing::of(&remote, &session.worker), success, sent) {
            Delivery::Bring => {}
            Delivery::There => return Ok(Over::new(result.outcome(), "it was there already")),
            Delivery::Cancelled => return Ok(Over::new(Outcome::Cancelled, "before its result was there")),
            Delivery::Overtaken => return Ok(Over::new(Outcome::Overtaken, "another result is there")),
        },
        // One that cannot say how it stands may take the result all the same.
        Err(error @ (CallError::Silent { .. } | CallError::Key(_))) => return Err(error),
        Err(_) => {}
    }
    match result {
        Parcel::Success(build, artifact) => {
            let path = file(errand, *build, artifact).await?;
            desk.client.succeed(session, job, &path, artifact).await?;
            let (controller, file) = (desk.name(), artifact.path.as_str());
            ResultBrought { controller, job, file, bytes: artifact.bytes, sha256: &artifact.sha256 }.emit();
            Ok(Over::new(Outcome::Success, artifact.path.clone()))
        }
        Parcel::Failure(why) => {
            desk.client.fail(session, job, why).await?;
            Ok(Over::new(Outcome::Failure, why.clone()))
        }
    }
}

async fn file(errand: &Errand, build: BuildId, artifact: &ArtifactView) -> Result<PathBuf, CallError> {
    let found = errand.desk.service.artifact(build, &artifact.path).await;
    found.map(|(_, file)| file).map_err(|refused| CallError::Disk {
        path: artifact.path.clone().into(),
        source: std::io::Error::other(refused.to_string()),
    })
}
