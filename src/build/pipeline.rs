//! The work of one attempt, from the probe to the last artifact, as one task. It reports where it is; it decides nothing
//! but its outcome.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::log::{LogItem, LogWriter};
use super::redact::Redactor;
use super::spec::{BuildResult, BuildSpec, Step};
use super::state::Outcome;
use crate::api::wire::{ArtifactView, LogStream};
use crate::clock::Deadline;
use crate::guest::{Channel, Ended, Line, Script, Stream, Take, TakeError, WORK_DIR};
use crate::runtime::Fault;

/// Lines of a step that may wait for the log.
const LINES_WAITING_MAX: usize = 256;

/// Taking artifacts out gets this long even when the build's own time is nearly over.
const ARTIFACTS_TIME_MIN: Duration = Duration::from_secs(60);

/// Everything that an attempt needs.
pub struct Work {
    pub spec: BuildSpec,
    pub channel: Arc<dyn Channel>,
    /// The plain tar on this host.
    pub source: PathBuf,
    /// The folder that holds the artifacts when the work is done. It is not there before.
    pub artifacts: PathBuf,
    pub artifacts_max: u64,
    pub secrets: Arc<BTreeMap<String, SecretString>>,
    pub log: LogWriter,
    pub probe_timeout: Duration,
    pub kill_grace: Duration,
    pub cancel: CancellationToken,
}

/// Where the work is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    Began { phase: &'static str, step: Option<String> },
    Ended { exit_code: Option<i32> },
    Artifacts(Vec<ArtifactView>),
}

/// Why the work ended early.
enum Stop {
    Verdict(BuildResult, String),
    DeadVm(Fault),
    System(String),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::System(fault.to_string())
    }
}

/// Does it. Cancel-safe in the sense that the VM must be taken away afterwards, whatever happened.
pub async fn work(work: Work, report: impl Fn(Progress)) -> Outcome {
    let deadline = Deadline::after(work.spec.timeout);
    let lost = work.channel.lost();
    let done = tokio::select! {
        biased;
        done = phases(&work, deadline, &report) => done,
        fault = lost => Err(fault.into()),
    };
    let outcome = match done {
        Ok(()) => Outcome::Verdict(BuildResult::Success, None),
        Err(Stop::Verdict(result, why)) => Outcome::Verdict(result, Some(why)),
        Err(Stop::DeadVm(fault)) => Outcome::DeadVm(fault.to_string()),
        Err(Stop::System(why)) => Outcome::SystemFault(why),
    };
    // A fault quotes what a guest or a tool said.
    let redactor = Redactor::new(work.secrets.values());
    outcome.map_words(|words| redactor.redact(words).into_owned())
}

async fn phases(work: &Work, deadline: Deadline, report: &impl Fn(Progress)) -> Result<(), Stop> {
    report(Progress::Began { phase: "probe", step: None });
    work.channel.greet(work.probe_timeout).await.map_err(Stop::DeadVm)?;
    report(Progress::Ended { exit_code: None });

    report(Progress::Began { phase: "source", step: None });
    until_cancelled(work, deadline, work.channel.put_tree(&work.source, deadline)).await??;
    report(Progress::Ended { exit_code: None });

    for step in &work.spec.steps {
        report(Progress::Began { phase: "step", step: Some(step.name.clone()) });
        let ended = run_step(work, step, deadline).await?;
        report(Progress::Ended { exit_code: exit_code(ended) });
        judge(work, step, ended, deadline)?;
    }

    if !work.spec.artifacts.is_empty() {
        report(Progress::Began { phase: "artifacts", step: None });
        let taken = take_artifacts(work, deadline).await?;
        report(Progress::Ended { exit_code: None });
        report(Progress::Artifacts(taken));
    }
    Ok(())
}

/// `doing`, unless the build is cancelled or its time is over first.
async fn until_cancelled<T>(
    work: &Work,
    deadline: Deadline,
    doing: impl Future<Output = T>,
) -> Result<T, Stop> {
    tokio::select! {
        biased;
        () = work.cancel.cancelled() => Err(cancelled()),
        done = doing => Ok(done),
        () = tokio::time::sleep_until(deadline.instant()) => Err(build_timed_out(work)),
    }
}

async fn run_step(work: &Work, step: &Step, deadline: Deadline) -> Result<Ended, Stop> {
    let script = Script {
        command: step.command.clone(),
        dir: step.dir.clone(),
        env: environment(work),
        timeout: step.timeout.min(deadline.left()),
        kill_grace: work.kill_grace,
    };
    let (sender, mut lines) = mpsc::channel::<Line>(LINES_WAITING_MAX);
    let id = work.channel.reserve();
    let run = work.channel.run(&id, &script, sender, work.cancel.clone());
    let copy = async {
        while let Some(line) = lines.recv().await {
            let stream = match line.stream {
                Stream::Out => LogStream::Out,
                Stream::Err => LogStream::Err,
            };
            let step = Some(step.name.clone());
            work.log
                .write(LogItem { stream, step, text: line.text, run: Some((id.clone(), line.end)) })
                .await;
        }
    };
    // Both to their ends: every line that was printed is in the log before the step is over.
    let (ended, ()) = tokio::join!(run, copy);
    Ok(ended?)
}

fn environment(work: &Work) -> Vec<(String, String)> {
    let own = [("CI", "true"), ("PREHEAT", "true"), ("PREHEAT_PROJECT", work.spec.project.as_str())];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let asked = work.spec.env.iter().map(|(name, value)| (name.clone(), value.clone()));
    let secrets = work.secrets.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned()));
    own.into_iter().chain(asked).chain(secrets).collect()
}

fn exit_code(ended: Ended) -> Option<i32> {
    match ended {
        Ended::Exited(code) => Some(code),
        Ended::TimedOut | Ended::Cancelled => None,
    }
}

fn judge(work: &Work, step: &Step, ended: Ended, deadline: Deadline) -> Result<(), Stop> {
    match ended {
        Ended::Exited(0) => Ok(()),
        Ended::Exited(code) => {
            Err(Stop::Verdict(BuildResult::Failure, format!("step `{}` exited with {code}", step.name)))
        }
        Ended::TimedOut if deadline.left().is_zero() => Err(build_timed_out(work)),
        Ended::TimedOut => {
            let limit = humantime::format_duration(step.timeout);
            Err(Stop::Verdict(BuildResult::Timeout, format!("step `{}` took longer than {limit}", step.name)))
        }
        Ended::Cancelled => Err(cancelled()),
    }
}

fn cancelled() -> Stop {
    Stop::Verdict(BuildResult::Cancellation, "cancelled".into())
}

fn build_timed_out(work: &Work) -> Stop {
    let limit = humantime::format_duration(work.spec.timeout);
    Stop::Verdict(BuildResult::Timeout, format!("the build took longer than {limit}"))
}

/// Into a folder beside the final one, which then appears whole.
async fn take_artifacts(work: &Work, deadline: Deadline) -> Result<Vec<ArtifactView>, Stop> {
    let partial = work.artifacts.with_extension("partial");
    let host = |e: std::io::Error| Stop::System(format!("cannot write artifacts: {e}"));
    fresh_folder(&partial).await.map_err(host)?;
    let take = Take {
        globs: work.spec.artifacts.clone(),
        into: partial.clone(),
        bytes_max: work.artifacts_max,
        deadline: Deadline::after(deadline.left().max(ARTIFACTS_TIME_MIN)),
    };
    let taken = tokio::select! {
        biased;
        () = work.cancel.cancelled() => return Err(cancelled()),
        taken = work.channel.take(&take) => taken,
    };
    let taken = taken.map_err(|error| match error {
        TakeError::Missing { .. } => Stop::Verdict(
            BuildResult::Failure,
            format!(
                "artifact {error}; globs are relative to the source's root (`~/{WORK_DIR}` in the guest)"
            ),
        ),
        TakeError::TooLarge { max } => Stop::Verdict(
            BuildResult::Failure,
            format!("the artifacts are larger than {max} bytes together (builds.artifacts_max)"),
        ),
        TakeError::Hostile { .. } => Stop::Verdict(BuildResult::Failure, error.to_string()),
        TakeError::Host(e) => Stop::System(format!("cannot write artifacts: {e}")),
        TakeError::Guest(fault) => fault.into(),
    })?;
    let redactor = Redactor::new(work.secrets.values());
    if let Some(file) = taken.iter().find(|file| redactor.finds(&file.path)) {
        tokio::fs::remove_dir_all(&partial).await.map_err(host)?;
        // The name is masked where the outcome is.
        let why = format!("the name of artifact `{}` has a secret in it: give it another", file.path);
        return Err(Stop::Verdict(BuildResult::Failure, why));
    }
    tokio::fs::rename(&partial, &work.artifacts).await.map_err(host)?;
    Ok(taken.into_iter().map(|t| ArtifactView { path: t.path, bytes: t.bytes, sha256: t.sha256 }).collect())
}

async fn fresh_folder(path: &Path) -> std::io::Result<()> {
    match tokio::fs::remove_dir_all(path).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    tokio::fs::create_dir_all(path).await
}
