//! `run`: submit, follow, fetch. `submit`: the first of the three.
//!
//! `packing -> sent -> following -> (End) -> fetching -> exit`
//! Ctrl-C while packing or sending leaves. While following it cancels the build and goes on to
//! follow it; the second one leaves at once. While fetching it leaves.

use std::path::{Path, PathBuf};

use futures::FutureExt;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::args::{Inputs, Run};
use super::client::{Client, Failure};
use super::exit::Exit;
use super::follow::{Heard, follow};
use super::problem::Problem;
use super::progress::Progress;
use super::summary::summary;
use super::{download, out, out_json, submission};
use crate::api::wire::{BuildView, LogLine};
use crate::ids::BuildId;

/// Lines that are printed in one go.
const BATCH: usize = 256;
/// The folder below the working directory that takes artifacts.
const OUT: &str = "preheat-out";

/// What `run --json` prints: the build, and where its artifacts are.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    build: &'a BuildView,
    out: Option<&'a Path>,
}

/// `preheat submit`
pub async fn submit(client: &Client, inputs: &Inputs, json: bool) -> Result<Exit, Problem> {
    let progress = Progress::new(json);
    let sent = submission::submit(client, inputs, &progress).await;
    progress.finish();
    let build = sent?;
    if json {
        out_json(&build)?;
    } else {
        out(&format!("{}\n", build.id));
    }
    Ok(Exit::Success)
}

/// `preheat run`
pub async fn command(client: &Client, run: Run) -> Result<Exit, Problem> {
    let mut progress = Progress::new(run.json);
    let ended = all(client, &run, &mut progress).await;
    progress.finish();
    ended
}

async fn all(client: &Client, run: &Run, progress: &mut Progress) -> Result<Exit, Problem> {
    let mut interrupts = Interrupts::new()?;
    let build = tokio::select! {
        build = submission::submit(client, &run.inputs, progress) => build?,
        () = interrupts.next() => return Err(left("the daemon had not answered yet")
            .hint("`preheat builds` shows whether it took the build")),
    };
    progress.note(&format!("build {} ({} on {})", build.id, build.project, build.pool));
    let heard = follow(client, build.id, run.reconnect);
    let build = Following { client, id: build.id, cancelling: false }
        .until_end(heard, progress, &mut interrupts)
        .await?;

    let folder = run.out.clone().unwrap_or_else(|| Path::new(OUT).join(build.id.to_string()));
    let fetched = fetch(client, &build, &folder, progress, &mut interrupts).await;
    progress.finish();
    super::say(summary(&build, fetched.as_ref().ok().and_then(Option::as_deref)).trim_end());
    let fetched = fetched?;
    if run.json {
        out_json(&Report { build: &build, out: fetched.as_deref() })?;
    }
    Ok(build.result.map_or(Exit::System, Exit::of))
}

async fn fetch(
    client: &Client,
    build: &BuildView,
    folder: &Path,
    progress: &Progress,
    interrupts: &mut Interrupts,
) -> Result<Option<PathBuf>, Problem> {
    if build.artifacts.is_empty() {
        return Ok(None);
    }
    progress.now("fetching artifacts");
    tokio::select! {
        done = download::download(client, build.id, &build.artifacts, folder) => done.map(|()| Some(folder.to_owned())),
        () = interrupts.next() => Err(left("the artifacts were not fetched")
            .hint(format!("`preheat artifacts {} --out DIR` fetches them", build.id))),
    }
}

struct Following<'c> {
    client: &'c Client,
    id: BuildId,
    cancelling: bool,
}

impl Following<'_> {
    /// Follows to the end of the build.
    async fn until_end(
        mut self,
        mut heard: mpsc::Receiver<Heard>,
        progress: &mut Progress,
        interrupts: &mut Interrupts,
    ) -> Result<BuildView, Problem> {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = interrupts.next() => self.interrupted(progress).await?,
                count = heard.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Err(Problem::system("the log ended without a word"));
                    }
                    if let Some(build) = show(&mut batch, progress)? {
                        return Ok(build);
                    }
                }
            }
        }
    }

    async fn interrupted(&mut self, progress: &Progress) -> Result<(), Problem> {
        let id = self.id;
        if self.cancelling {
            return Err(left(&format!("build {id} is being cancelled")).hint(format!(
                "`preheat builds` shows whether it has ended; `preheat logs {id}` prints its log"
            )));
        }
        self.cancelling = true;
        progress.note(&format!("cancelling build {id}; once more leaves at once"));
        let client = self.client.clone();
        // Not waited for: the log goes on meanwhile, and its end says whether the build was cancelled.
        tokio::spawn(async move {
            match client.cancel(id).await {
                Ok(_) => {}
                Err(Failure::Refused { view, .. }) if view.code == "build_over" => {}
                Err(failure) => Problem::from(failure).print(false),
            }
        });
        Ok(())
    }
}

/// Shows what was heard, lines in one go; returns the build when it is over.
fn show(batch: &mut Vec<Heard>, progress: &mut Progress) -> Result<Option<BuildView>, Problem> {
    let mut lines: Vec<LogLine> = Vec::new();
    for heard in batch.drain(..) {
        if let Heard::Line(line) = heard {
            lines.push(line);
            continue;
        }
        progress.lines(&std::mem::take(&mut lines));
        match heard {
            Heard::Line(_) => {}
            Heard::View(view) => progress.view(&view),
            Heard::Lost(why) => progress.note(&format!("{why}; trying again")),
            Heard::Back => progress.note("connected again"),
            Heard::End(view) => {
                progress.view(&view);
                return Ok(Some(*view));
            }
            Heard::GivenUp(problem) => return Err(problem),
        }
    }
    progress.lines(&lines);
    Ok(None)
}

fn left(what: &str) -> Problem {
    Problem { exit: Exit::Cancelled, ..Problem::system(format!("interrupted: {what}")).code("interrupted") }
}

/// Ctrl-C, and what a CI system sends instead.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> Result<Self, Problem> {
        let listen =
            |kind| signal(kind).map_err(|e| Problem::system(format!("cannot listen for signals: {e}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv().fuse() => {}
            _ = self.terminate.recv().fuse() => {}
        }
    }
}
