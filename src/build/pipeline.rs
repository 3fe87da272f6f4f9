//! The work of one attempt, from the probe to the last artifact, as one task. It reports where it is; it decides nothing
//! but its outcome.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::app::{self, NoApp};
use super::caching::{self, CacheRoom};
use super::failure;
use super::failure::tail::Tail;
use super::log::{self, LogItem, LogWriter};
use super::place::{self, Doing, Place};
use super::recorder::Written;
use super::redact::Redactor;
use super::signing;
use super::spec::{BuildResult, BuildSpec, Step};
use super::state::Outcome;
use super::vitals::Vitals;
use crate::api::wire::{ArtifactView, CacheSavedView, CacheView, FailureView, LogStream};
use crate::blocking;
use crate::clock::{Deadline, UnixMillis};
use crate::guest::{Bounds, Channel, Ended, Line, Look, Script, Stream, Take, TakeError, Taken, WORK_DIR};
use crate::ids::RunId;
use crate::runtime::Fault;
use crate::signing::{Kit, vault};

/// Lines of a step that may wait for the log.
const LINES_WAITING_MAX: usize = 256;

/// A step that is taken up again gets this long even when its time is over: it may have ended well while no daemon was there
/// to see it.
const READ_TIME_MIN: Duration = Duration::from_secs(10);

/// Taking artifacts out gets this long even when the build's own time is nearly over.
const ARTIFACTS_TIME_MIN: Duration = Duration::from_secs(60);

/// The steps of the signing are each bounded by the build's time; what has no bound of its own there is by so much more.
const SIGNING_SLACK: Duration = Duration::from_secs(5);

/// The exit codes of a step that was ended by TERM or KILL, as a shell tells them.
const ENDED_BY_US: [i32; 2] = [143, 137];

/// Everything that an attempt needs.
pub struct Work {
    pub spec: BuildSpec,
    pub channel: Arc<dyn Channel>,
    /// The plain tar on this host.
    pub source: PathBuf,
    /// Where to go on, in a VM that was adopted; `None` begins at the beginning.
    pub from: Option<Place>,
    /// The folder that holds the artifacts when the work is done.
    pub artifacts: PathBuf,
    pub artifacts_max: u64,
    pub caches: CacheRoom,
    /// With what it signs with ([`vault`]).
    pub secrets: Arc<BTreeMap<String, SecretString>>,
    pub log: LogWriter,
    /// The log's file: it says how far the outputs of a run were read.
    pub log_path: PathBuf,
    pub probe_timeout: Duration,
    pub kill_grace: Duration,
    /// Whether its guest is looked at while its steps run.
    pub guest_health: bool,
    pub cancel: CancellationToken,
}

/// Where the work is.
#[derive(Debug)]
pub enum Progress {
    Began {
        phase: &'static str,
        step: Option<String>,
    },
    /// It is about to do this, and does so when it is on disk. Answered with the way there.
    Reached {
        place: Place,
        kept: oneshot::Sender<Written>,
    },
    /// The phase that was under way when an earlier daemon ended is under way again.
    WentOn,
    Ended {
        exit_code: Option<i32>,
    },
    Artifacts(Vec<ArtifactView>),
    /// Why a step failed; the verdict follows.
    Failed(FailureView),
    CachesRestored(Vec<CacheView>),
    /// Everything has succeeded, and that stands when it is on disk. Not answered where a cancel came before.
    Succeeded {
        kept: oneshot::Sender<Written>,
    },
    /// How its guest is, and whether its disk has become low.
    Looked {
        look: Look,
        low: bool,
    },
    /// By their keys.
    CachesSaved(Vec<(String, CacheSavedView)>),
}

/// Why the work ended early.
pub(super) enum Stop {
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
    let now = UnixMillis::now();
    let began = work.from.as_ref().map_or(now, |place| place.work_began_ms);
    let done = match signing::kit(&work) {
        Ok(kit) => {
            let deadline = Deadline::after(place::left(work.spec.timeout, began, now));
            let vitals = Vitals::default();
            let attempt = Attempt { began, deadline, report: &report, work: &work, vitals, kit };
            let lost = work.channel.lost();
            let mut followed = pin!(attempt.follow_vitals());
            let done = tokio::select! {
                biased;
                done = attempt.phases() => done,
                fault = lost => Err(fault.into()),
                never = &mut followed => match never {},
            };
            attempt.explained(done, followed).await
        }
        Err(stop) => Err(stop),
    };
    if done.is_ok() {
        caching::save(&work, &report).await;
    }
    let outcome = match done {
        Ok(()) => Outcome::Verdict(BuildResult::Success, None),
        Err(Stop::Verdict(result, why)) => Outcome::Verdict(result, Some(why)),
        Err(Stop::DeadVm(fault)) => Outcome::DeadVm(fault.to_string()),
        Err(Stop::System(why)) => Outcome::SystemFault(why),
    };
    // A fault quotes what a guest or a tool said.
    let redactor = Redactor::new(vault::unspeakable(&work.secrets));
    outcome.map_words(|words| redactor.redact(words).into_owned())
}

/// The work, and the time that it has.
struct Attempt<'a, R> {
    work: &'a Work,
    report: &'a R,
    began: UnixMillis,
    deadline: Deadline,
    vitals: Vitals,
    /// What it signs with.
    kit: Option<Kit>,
}

impl<R: Fn(Progress)> Attempt<'_, R> {
    async fn phases(&self) -> Result<(), Stop> {
        let (work, report) = (self.work, self.report);
        let mut again = work.from.as_ref().map(|place| place.doing.clone());
        if again.is_none() {
            for line in &work.spec.said {
                work.log.say(line).await;
            }
            let caches = caching::seek(work);
            self.bring_source().await?;
            if let Some(caches) = caches {
                report(Progress::Began { phase: "cache_restore", step: None });
                let restoring = caching::restore(work, caches, self.deadline);
                let restored = until_cancelled(work, self.deadline, restoring).await?;
                report(Progress::Ended { exit_code: None });
                report(Progress::CachesRestored(restored));
            }
            if let Some(kit) = &self.kit {
                report(Progress::Began { phase: "signing", step: None });
                let installing = signing::install(work, kit, self.deadline);
                // What hangs in it is known a little earlier, by its name.
                let late = Deadline::after(self.deadline.left() + SIGNING_SLACK);
                until_cancelled(work, late, installing)
                    .await?
                    .inspect_err(|stop| self.explain_signing(stop))?;
                report(Progress::Ended { exit_code: None });
            }
        }
        let first = match &again {
            Some(Doing::Step { index, .. }) => *index,
            Some(Doing::Artifacts) => work.spec.steps.len(),
            None => 0,
        };
        for (index, step) in work.spec.steps.iter().enumerate().skip(first) {
            let (ended, tail) = self.step_to_its_end(index, step, again.take()).await?;
            judge(work, step, ended, self.deadline)
                .inspect_err(|stop| self.explain(step, ended, stop, tail))?;
        }
        // Whoever goes on with the artifacts has done it.
        if let Some(kit) = self.kit.as_ref().filter(|_| again.is_none()) {
            report(Progress::Began { phase: "signing_removal", step: None });
            tokio::select! {
                biased;
                () = work.cancel.cancelled() => return Err(cancelled()),
                () = signing::remove(work, kit) => {}
            }
            report(Progress::Ended { exit_code: None });
        }
        if !work.spec.artifacts.is_empty() {
            let deadline = Deadline::after(self.deadline.left().max(ARTIFACTS_TIME_MIN));
            if again.is_some() {
                report(Progress::WentOn);
            }
            // Taking them changes nothing in the guest, so it does not wait for the journal: a crash that finds the attempt in
            // its last step hears of that step's end again, and comes here.
            let (reached, taken) =
                tokio::join!(self.reach(Doing::Artifacts, deadline), take_artifacts(work, deadline));
            reached?;
            let taken = taken?;
            report(Progress::Ended { exit_code: None });
            report(Progress::Artifacts(taken));
        }
        Ok(())
    }

    async fn follow_vitals(&self) -> Infallible {
        if !self.work.guest_health {
            return pending().await;
        }
        let told = |look, low| (self.report)(Progress::Looked { look, low });
        self.vitals.follow(self.work.channel.as_ref(), &self.work.log, told).await
    }

    /// A failure, with what its guest has to say of it.
    async fn explained(
        &self,
        done: Result<(), Stop>,
        followed: impl Future<Output = Infallible>,
    ) -> Result<(), Stop> {
        match done {
            Err(Stop::Verdict(BuildResult::Failure, why)) if self.work.guest_health => {
                let why = match self.vitals.last_word(followed).await {
                    Some(beside) => format!("{why}; {beside}"),
                    None => why,
                };
                Err(Stop::Verdict(BuildResult::Failure, why))
            }
            done @ (Ok(()) | Err(_)) => done,
        }
    }

    /// The source is on its way while the VM is asked whether it answers; what does not answer gets none of the blame that
    /// the source's failure would be.
    async fn bring_source(&self) -> Result<(), Stop> {
        let (work, report) = (self.work, self.report);
        report(Progress::Began { phase: "probe", step: None });
        let put = work.channel.put_tree(&work.source, self.deadline);
        let mut put = pin!(until_cancelled(work, self.deadline, put));
        let mut greet = work.channel.greet(work.probe_timeout);
        let mut sent = None;
        let answered = loop {
            tokio::select! {
                biased;
                answered = &mut greet => break answered,
                done = &mut put, if sent.is_none() => sent = Some(done),
            }
        };
        answered.map_err(Stop::DeadVm)?;
        report(Progress::Ended { exit_code: None });

        report(Progress::Began { phase: "source", step: None });
        let sent = match sent {
            Some(sent) => sent,
            None => put.await,
        };
        sent??;
        report(Progress::Ended { exit_code: None });
        Ok(())
    }

    /// From here on a crash finds the attempt there: returns when that is on disk.
    async fn reach(&self, doing: Doing, deadline: Deadline) -> Result<(), Stop> {
        let (kept, answer) = oneshot::channel();
        (self.report)(Progress::Reached { place: Place { work_began_ms: self.began, doing }, kept });
        let written = async {
            match answer.await {
                Ok(written) => written.wait().await,
                Err(_) => false,
            }
        };
        match until_cancelled(self.work, deadline, written).await? {
            true => Ok(()),
            false => Err(Stop::System("the journal is closed".into())),
        }
    }

    /// Why the step failed, from what its last run printed.
    fn explain(&self, step: &Step, ended: Ended, stop: &Stop, tail: Tail) {
        let (lines, redactor) = (tail.lines(), Redactor::new(vault::unspeakable(&self.work.secrets)));
        let failure = match (ended, stop) {
            (Ended::Exited(code), _) => failure::of_step(&step.name, code, &lines, &redactor),
            (Ended::TimedOut, Stop::Verdict(_, why)) => {
                failure::of_late_step(&step.name, why, &lines, &redactor)
            }
            (Ended::TimedOut, Stop::DeadVm(_) | Stop::System(_)) | (Ended::Cancelled, _) => return,
        };
        (self.report)(Progress::Failed(failure));
    }

    /// Why its guest cannot sign.
    fn explain_signing(&self, stop: &Stop) {
        let Stop::Verdict(_, why) = stop else { return };
        let redactor = Redactor::new(vault::unspeakable(&self.work.secrets));
        (self.report)(Progress::Failed(failure::of_signing(why, &redactor)));
    }

    /// The step, and the step again as often as its user asked for: how its last run ended, and what that printed.
    async fn step_to_its_end(
        &self,
        index: usize,
        step: &Step,
        again: Option<Doing>,
    ) -> Result<(Ended, Tail), Stop> {
        let (mut failed, (mut ended, mut tail)) = match again {
            Some(Doing::Step { run, failed, began_ms, .. }) => {
                (failed, self.go_on(index, step, run, failed, began_ms).await?)
            }
            Some(Doing::Artifacts) | None => (0, self.run_step(index, step, 0, None).await?),
        };
        (self.report)(Progress::Ended { exit_code: exit_code(ended) });
        while let Some(code) = exit_code(ended).filter(|code| *code != 0)
            && failed < step.retries
            && !self.deadline.left().is_zero()
        {
            failed += 1;
            let again = format!("it is run again ({failed} of {})", step.retries);
            let said = format!("step `{}` exited with {code}; {again}", step.name);
            (ended, tail) = self.run_step(index, step, failed, Some(said)).await?;
            (self.report)(Progress::Ended { exit_code: exit_code(ended) });
        }
        Ok((ended, tail))
    }

    /// One run of the step, after so many that failed.
    async fn run_step(
        &self,
        index: usize,
        step: &Step,
        failed: u16,
        said: Option<String>,
    ) -> Result<(Ended, Tail), Stop> {
        let work = self.work;
        let keychain = match &self.kit {
            Some(kit) => {
                let unlocking = signing::unlock(work, kit, self.deadline);
                let unlocked = until_cancelled(work, self.deadline, unlocking).await?;
                Some(unlocked.inspect_err(|stop| self.explain_signing(stop))?)
            }
            None => None,
        };
        let run = work.channel.reserve();
        let doing = Doing::Step { index, run: run.clone(), failed, began_ms: UnixMillis::now() };
        self.reach(doing, self.deadline).await?;
        self.vitals.step_begins();
        // Behind the journal: a crash in between may cost this line, and never says it twice.
        if let Some(said) = said {
            work.log.say(said).await;
        }
        let script = Script {
            command: step.command.clone(),
            dir: step.dir.clone(),
            env: environment(work, keychain),
            timeout: step.timeout.min(self.deadline.left()),
            kill_grace: work.kill_grace,
        };
        let (sender, lines) = mpsc::channel::<Line>(LINES_WAITING_MAX);
        let running = work.channel.run(&run, &script, sender, work.cancel.clone());
        let mut tail = Tail::new(Redactor::new(vault::unspeakable(&work.secrets)));
        // Both to their ends: every line that was printed is in the log before the step is over.
        let (ended, ()) = tokio::join!(running, copy(work, step, &run, lines, &mut tail));
        Ok((ended?, tail))
    }

    /// A step that an earlier daemon began, exactly behind the last line that it wrote down.
    async fn go_on(
        &self,
        index: usize,
        step: &Step,
        run: RunId,
        failed: u16,
        began_ms: UnixMillis,
    ) -> Result<(Ended, Tail), Stop> {
        let work = self.work;
        (self.report)(Progress::WentOn);
        self.vitals.step_begins();
        let (path, name) = (work.log_path.clone(), run.clone());
        let mut tail = Tail::new(Redactor::new(vault::unspeakable(&work.secrets)));
        let read = blocking::run(move || {
            let position = log::position(&path, &name, |text| tail.push(text, false))?;
            Ok::<_, std::io::Error>((position, tail))
        });
        let read = read.await;
        let unread = |why: String| Stop::System(format!("cannot read `{}`: {why}", work.log_path.display()));
        let read = read.map_err(|e| unread(e.to_string()))?.map_err(|e| unread(e.to_string()))?;
        let (position, mut tail) = read;
        let left = place::left(step.timeout, began_ms, UnixMillis::now()).min(self.deadline.left());
        let bounds = Bounds { timeout: left.max(READ_TIME_MIN), kill_grace: work.kill_grace };
        let (sender, lines) = mpsc::channel::<Line>(LINES_WAITING_MAX);
        let running = work.channel.attach(&run, position, bounds, sender, work.cancel.clone());
        let (ended, ()) = tokio::join!(running, copy(work, step, &run, lines, &mut tail));
        match ended? {
            Some(ended) if was_out_of_time(ended, left, work.cancel.is_cancelled()) => {
                Ok((Ended::TimedOut, tail))
            }
            Some(ended) => Ok((ended, tail)),
            // The crash came between the journal and the guest.
            None => self.run_step(index, step, failed, None).await,
        }
    }
}

/// Whether an earlier daemon ended the run because its time was over, and did not live to say so. A cancel would be in the
/// journal.
fn was_out_of_time(ended: Ended, left: Duration, cancelled: bool) -> bool {
    match ended {
        Ended::Exited(code) => left.is_zero() && ENDED_BY_US.contains(&code),
        Ended::Cancelled => !cancelled,
        Ended::TimedOut => false,
    }
}

/// The lines of a run into the log, until there are no more.
async fn copy(work: &Work, step: &Step, run: &RunId, mut lines: mpsc::Receiver<Line>, tail: &mut Tail) {
    while let Some(line) = lines.recv().await {
        tail.push(&line.text, line.split);
        let stream = match line.stream {
            Stream::Out => LogStream::Out,
            Stream::Err => LogStream::Err,
        };
        let (step, run) = (Some(step.name.clone()), Some((run.clone(), line.end)));
        work.log.write(LogItem { stream, step, text: line.text, run, split: line.split }).await;
    }
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

fn environment(work: &Work, keychain: Option<String>) -> Vec<(String, SecretString)> {
    let own = [("CI", "true"), ("PREHEAT", "true"), ("PREHEAT_PROJECT", work.spec.project.as_str())];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let own = own.into_iter().chain(signing::variables(work, keychain));
    let asked = work.spec.env.iter().map(|(name, value)| (name.clone(), value.clone()));
    let open = own.chain(asked).map(|(name, value)| (name, value.into()));
    let secrets = vault::variables(&work.secrets).map(|(name, value)| (name.clone(), value.clone()));
    open.chain(secrets).collect()
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
        deadline,
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
    let redactor = Redactor::new(vault::unspeakable(&work.secrets));
    if let Some(file) = taken.iter().find(|file| redactor.finds(&file.path)) {
        remove_folder(&partial).await.map_err(host)?;
        // The name is masked where the outcome is.
        let why = format!("the name of artifact `{}` has a secret in it: give it another", file.path);
        return Err(Stop::Verdict(BuildResult::Failure, why));
    }
    let views = looked_into(&partial, taken).await?;
    // What lies there is of an attempt that did not get to its verdict.
    remove_folder(&work.artifacts).await.map_err(host)?;
    let whole = work.artifacts.clone();
    blocking::io(move || std::fs::rename(partial, whole)).await.map_err(host)?;
    Ok(views)
}

/// The files, each app with what it says of itself. One that is none fails the build: nobody could install it.
async fn looked_into(folder: &Path, taken: Vec<Taken>) -> Result<Vec<ArtifactView>, Stop> {
    let mut views = Vec::with_capacity(taken.len());
    for Taken { path, bytes, sha256 } in taken {
        let mut app = None;
        if let Some(kind) = app::kind(&path) {
            let at = folder.join(&path);
            let found = blocking::run(move || app::inspect(&at, kind)).await;
            let found = found.map_err(|e| Stop::System(format!("cannot read artifact `{path}`: {e}")))?;
            let found = found.map_err(|error| match error {
                NoApp::Host(e) => Stop::System(format!("cannot read artifact `{path}`: {e}")),
                NoApp::NoZip(_)
                | NoApp::TooMany
                | NoApp::TooLong
                | NoApp::Hostile(_)
                | NoApp::Missing(_)
                | NoApp::Several(..)
                | NoApp::Unreadable { .. } => {
                    let why = format!("artifact `{path}` is no {}: {error}", kind.as_str());
                    Stop::Verdict(BuildResult::Failure, why)
                }
            })?;
            app = Some(found);
        }
        views.push(ArtifactView { path, bytes, sha256, app });
    }
    Ok(views)
}

async fn fresh_folder(path: &Path) -> std::io::Result<()> {
    remove_folder(path).await?;
    let path = path.to_owned();
    blocking::io(move || std::fs::create_dir_all(path)).await
}

async fn remove_folder(path: &Path) -> std::io::Result<()> {
    let path = path.to_owned();
    match blocking::io(move || std::fs::remove_dir_all(path)).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_an_earlier_daemon_ended_is_out_of_time_and_no_failure_of_its_own() {
        let (none, some) = (Duration::ZERO, Duration::from_secs(1));
        assert!(was_out_of_time(Ended::Exited(143), none, false));
        assert!(was_out_of_time(Ended::Exited(137), none, false));
        assert!(was_out_of_time(Ended::Cancelled, some, false));
        assert!(!was_out_of_time(Ended::Exited(137), some, false), "it had time left: it was its own end");
        assert!(!was_out_of_time(Ended::Exited(1), none, false), "it ended by itself, while nobody listened");
        assert!(!was_out_of_time(Ended::Cancelled, none, true));
    }
}
