//! Builds that do nothing but what every build costs.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use preheat::api::wire::{BuildView, PhaseView, StepSpec, SubmitSpec};
use preheat::build::spec::BuildResult;
use preheat::cli::client::Client;
use preheat::cli::follow::{Heard, follow};
use preheat::clock::UnixMillis;
use tokio::time::timeout;

use super::problem;

/// A build that is longer under way than this is stuck, on however slow a machine.
const BUILD_LIMIT: Duration = Duration::from_secs(300);
/// A lost connection to the daemon is tried for so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// A small project: two files.
pub fn source() -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in [("app/Makefile", "all:\n\ttrue\n"), ("app/README.md", "An app.\n")] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, name, text.as_bytes())?;
    }
    Ok(tar.into_inner()?)
}

/// Runs a build of one step, as `preheat run` does, to its end.
pub async fn build(client: &Client, pool: &str, command: &str) -> Result<BuildView> {
    let step = StepSpec { command: command.into(), ..StepSpec::default() };
    let spec = SubmitSpec { pool: Some(pool.into()), steps: vec![step], ..SubmitSpec::default() };
    let source = source()?;
    let bytes = source.len() as u64;
    let accepted = client.submit(&spec, reqwest::Body::from(source), bytes).await.map_err(problem)?;
    let mut heard = follow(client, accepted.id, PATIENCE);
    let end = timeout(BUILD_LIMIT, async {
        while let Some(heard) = heard.recv().await {
            match heard {
                Heard::Line(_) | Heard::View(_) | Heard::Lost(_) | Heard::Back => {}
                Heard::End(build) => return Ok(*build),
                Heard::GivenUp(why) => return Err(problem(why)),
            }
        }
        bail!("the log ended without a word")
    });
    let build = end.await.with_context(|| format!("build {} does not end", accepted.id))??;
    if build.result != Some(BuildResult::Success) {
        bail!("a build that does nothing failed: {build:?}");
    }
    Ok(build)
}

/// The last phase of a name.
pub fn phase<'a>(build: &'a BuildView, name: &str) -> Option<&'a PhaseView> {
    build.phases.iter().rev().find(|phase| phase.phase == name)
}

/// How long it waited for a VM.
pub fn waited_ms(build: &BuildView) -> f64 {
    let waits = build.phases.iter().filter(|phase| phase.phase == "queue");
    waits.map(|phase| phase.took_ms.unwrap_or(0) as f64).sum()
}

/// How long it took without its wait for a VM.
pub fn overhead_ms(build: &BuildView) -> Result<f64> {
    let finished = build.finished_ms.context("it is over")?;
    Ok(finished.since(build.submitted_ms).as_secs_f64() * 1000.0 - waited_ms(build))
}

/// When the guest that it had was dead.
pub fn guest_dead(build: &BuildView) -> Result<UnixMillis> {
    let teardown = phase(build, "teardown").context("its VM is taken away")?;
    let took = i64::try_from(teardown.took_ms.context("it is over")?)?;
    Ok(UnixMillis(teardown.started_ms.0 + took))
}
