//! What goes on beside a job: signs of life, a look at how it stands, what its guest needs, and the worker's own token. None of
//! it can hurt the build: whatever fails is counted and tried at the next turn, or never again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use tokio::time::sleep;

use super::client::Session;
use super::desk::{Desk, about};
use super::standing::{self, Standing};
use crate::clock::UnixMillis;
use crate::ids::BuildId;
use crate::telemetry::controlling::Outcome;

/// Looks in a row that must find the same before a build is given up: a controller that comes up may not know it yet.
const LOOKS: u32 = 3;
/// A worker's token lives for a minute and a half, and is replaced when a question comes in its last third.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(20);

/// How far a build is, in percent, for the controller's bars.
pub type Progress = Arc<AtomicU8>;

/// Tells that the job lives.
pub async fn beat(desk: Arc<Desk>, session: Session, job: String, progress: Progress) {
    loop {
        sleep(about(desk.config.heartbeat_interval)).await;
        desk.client.heartbeat(&session, &job, progress.load(Ordering::Relaxed)).await.ok();
    }
}

/// Looks at how the job stands until it is not ours any more, and says why. A sweep is no reason: the result is taken all the
/// same.
pub async fn watch(desk: &Desk, session: &Session, job: &str) -> Outcome {
    let (mut gone, mut elsewhere) = (0, 0);
    loop {
        sleep(about(desk.config.heartbeat_interval * 3 / 5)).await;
        match desk.client.look(session, job).await {
            Ok(remote) => {
                gone = 0;
                match standing::of(&remote, &session.worker) {
                    Standing::Cancelled => return Outcome::Cancelled,
                    Standing::Completed | Standing::Elsewhere => elsewhere += 1,
                    Standing::Ours | Standing::Swept | Standing::Failed(_) | Standing::Unknown(_) => {
                        elsewhere = 0;
                    }
                }
            }
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => gone += 1,
            Err(_) => {}
        }
        match (gone >= LOOKS, elsewhere >= LOOKS) {
            (true, _) => return Outcome::Lost,
            (false, true) => return Outcome::Overtaken,
            (false, false) => {}
        }
    }
}

/// Tells what the job's guest needs, as often as that was measured anew.
pub async fn measure(desk: Arc<Desk>, session: Session, job: String, build: BuildId) {
    let mut told = UnixMillis(0);
    loop {
        sleep(about(desk.config.heartbeat_interval * 3 / 5)).await;
        let Ok(view) = desk.service.build(build).await else { continue };
        let Some(guest) = view.guest.filter(|guest| guest.at_ms != told) else { continue };
        told = guest.at_ms;
        let body = json!({
            "type": "cpu_snapshot",
            "timestamp": told.to_string(),
            "data": {"cpu_percent": guest.cpu_percent, "memory_mb": guest.memory_used_bytes >> 20},
        });
        desk.client.telemetry(&session, &job, &body).await.ok();
    }
}

/// Keeps the worker's token alive by asking for jobs. One that is offered meanwhile goes back at once, and after that nothing
/// is asked: it would be offered again.
pub async fn keep_alive(desk: Arc<Desk>, mut session: Session, job: String) {
    session.job_token = None;
    loop {
        sleep(about(desk.config.poll_interval.min(KEEP_ALIVE_MAX))).await;
        match desk.client.poll(&session).await {
            Ok(polled) => {
                session.token = polled.access_token.map(Into::into).or(session.token);
                if let Some(offer) = polled.job.filter(|offer| offer.id != job) {
                    desk.client.abandon(&session, &offer.id, "the worker has a build already").await.ok();
                    return;
                }
            }
            Err(error) if error.is_about_us() => {
                let Ok(again) = desk.client.register(Some(&session.worker), &desk.host, 1).await else {
                    continue;
                };
                session.token = again.access_token.map(Into::into);
            }
            Err(_) => {}
        }
    }
}
