//! The users: they submit their builds, follow some, cancel some, and hold the daemon to what it told them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use preheat::api::service::{Refused, Service};
use preheat::api::wire::{BuildState, CacheSpec, SecretValues, StepSpec, SubmitSpec};
use preheat::ids::BuildId;
use secrecy::SecretString;
use tokio::time::sleep;

use crate::plan::Job;
use crate::world::{Sent, World};

/// Who was refused comes back after this.
const AGAIN: Duration = Duration::from_secs(10);

/// Everybody whose build was not accepted yet.
pub fn come(world: &Arc<World>, daemon: &Arc<dyn Service>) {
    let (jobs, life): (Vec<_>, u32) = {
        let inner = world.lock();
        (inner.jobs.iter().cloned().enumerate().collect(), inner.life)
    };
    for (number, client) in jobs {
        let (world, daemon) = (world.clone(), daemon.clone());
        match client.state {
            Sent::No => {
                tokio::spawn(async move { submit(&world, daemon.as_ref(), number, &client.job).await });
            }
            // Those who followed an earlier daemon look again, from the beginning.
            Sent::Accepted(id) if client.job.followed && life.is_multiple_of(2) => {
                tokio::spawn(async move { follow(&world, daemon.as_ref(), id).await });
            }
            Sent::Accepted(_) | Sent::UnderWay | Sent::Unknown => {}
        }
    }
}

/// The same words from everybody: only the project tells whose it is.
fn cache() -> CacheSpec {
    CacheSpec { key: "key-{{ pool }}".into(), restore_keys: vec!["key".into()], paths: vec!["cached".into()] }
}

fn request(job: &Job) -> SubmitSpec {
    let step = |(command, timeout): &(String, Duration)| StepSpec {
        command: command.clone(),
        timeout: Some(*timeout),
        ..StepSpec::default()
    };
    let secret = job.secret.iter().map(|secret| ("TOKEN".to_owned(), SecretString::from(secret.clone())));
    SubmitSpec {
        project: Some(job.project.clone()),
        pool: Some(job.pool.to_owned()),
        steps: job.steps.iter().map(step).collect(),
        env: BTreeMap::new(),
        secrets: SecretValues(secret.collect()),
        artifacts: job.artifacts.clone(),
        caches: job.cached.then(|| vec![cache()]),
        retries: Some(job.retries),
        ..SubmitSpec::default()
    }
}

/// A tar with nothing in it but a file's name.
fn source(daemon: &dyn Service) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new_in(daemon.spool()).expect("a file in the spool");
    let mut tar = tar::Builder::new(file.as_file());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    tar.append_data(&mut header, "Makefile", std::io::empty()).expect("written");
    tar.finish().expect("written");
    drop(tar);
    file.into_temp_path()
}

async fn submit(world: &Arc<World>, daemon: &dyn Service, number: usize, job: &Job) {
    world.until(job.arrives).await;
    let id = loop {
        world.alive().await;
        world.lock().jobs[number].state = Sent::UnderWay;
        let accepted = match daemon.admit(None) {
            Ok(ticket) => daemon.accept(ticket, request(job), source(daemon)).await,
            Err(refused) => Err(refused),
        };
        world.alive().await;
        match accepted {
            Ok(view) => break view.id,
            Err(Refused::QueueFull { .. } | Refused::Stopping | Refused::Draining) => {
                world.lock().jobs[number].state = Sent::No;
                sleep(AGAIN).await;
            }
            Err(refused) => {
                world.lock().violation(format!("{} is refused: {refused}", job.project));
                return;
            }
        }
    };
    {
        let mut inner = world.lock();
        inner.note(format!("{} is accepted as {id}", job.project));
        inner.jobs[number].state = Sent::Accepted(id);
    }
    let cancelled = async {
        let Some(after) = job.cancel else { return };
        sleep(after).await;
        world.alive().await;
        world.lock().jobs[number].cancelled = true;
        daemon.cancel(id).await.ok();
    };
    let followed = async {
        if job.followed {
            follow(world, daemon, id).await;
        }
    };
    tokio::join!(cancelled, followed);
}

/// Reads the log to its end: it has no gap, and behind it is the result.
async fn follow(world: &Arc<World>, daemon: &dyn Service, id: BuildId) {
    let Ok(mut lines) = daemon.log(id, 0, true).await else {
        world.lock().violation(format!("the log of build {id}, which was accepted, is not there"));
        return;
    };
    let mut expected = 1;
    while let Some(line) = lines.next().await {
        if line.n != expected {
            world.lock().violation(format!("build {id}: line {} comes where {expected} should", line.n));
        }
        expected = line.n + 1;
    }
    world.alive().await;
    match daemon.build(id).await {
        Ok(view) if matches!(view.state, BuildState::Uploading | BuildState::Done) => {}
        Ok(_) if world.lock().stopping => {}
        Ok(view) => {
            world.alive().await;
            world.lock().violation(format!("the log of build {id} ended before its result: {view:?}"));
        }
        Err(refused) => world.lock().violation(format!("build {id} cannot be asked for: {refused}")),
    }
}
