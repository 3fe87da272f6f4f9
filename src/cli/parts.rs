//! What the command line needs of other rooms, each as one function, so that the rest of it knows no room but HTTP's words.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::zeroize::Zeroizing;

use super::problem::Problem;
use crate::api::wire::SigningSpec;
use crate::build::index::Index;
use crate::build::pack::{self, PackError, PackOptions};
use crate::build::project::ProjectFile;
use crate::clock::UnixMillis;
use crate::config::load::{self, Inputs, Loaded};
use crate::config::mistake::Mistakes;
use crate::config::{self, Config, show};
use crate::guest::ssh;
use crate::ids::TreeId;
use crate::pipelines::{Pipeline, When};
use crate::runtime::Runtime;
use crate::runtime::tart::Tart;
use crate::signing;
use crate::signing::bundle::{self, BUNDLE_BYTES_MAX};
use crate::supervisor;
use crate::telemetry::logging;

/// What `.preheat.toml` says that the client must know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Project {
    pub name: Option<String>,
    /// Names of secrets that the build needs.
    pub secrets: Vec<String>,
    /// Whether `.git` is part of the source.
    pub include_git: bool,
}

/// The configuration in its layers. `Err` is every mistake, with its hint.
///
/// # Errors
/// Every mistake.
pub fn load_config(file: Option<&Path>) -> Result<Loaded, Vec<String>> {
    let texts = |mistakes: Mistakes| mistakes.0.iter().map(ToString::to_string).collect::<Vec<_>>();
    load::load(&Inputs::of_process(file).map_err(texts)?).map_err(texts)
}

/// What takes effect, as TOML.
pub fn show_config(loaded: &Loaded) -> String {
    show::show(loaded)
}

/// A pipeline, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineText {
    pub name: String,
    /// What `auto` takes it for.
    pub found: String,
    pub about: String,
    /// All of it, as a section of a configuration.
    pub written: String,
}

/// Every pipeline, in the order in which `auto` tries them.
pub fn pipelines(loaded: &Loaded) -> Vec<PipelineText> {
    let one = |(name, pipeline): (&str, &Pipeline)| PipelineText {
        name: name.to_owned(),
        found: pipeline.found.as_ref().map_or_else(|| "by name only".to_owned(), When::said),
        about: pipeline.about.clone(),
        written: config::pipelines::written(name, pipeline),
    };
    loaded.config.pipelines.in_order().map(one).collect()
}

/// Reads the project's file, if the folder has one.
///
/// # Errors
/// Every mistake in it.
pub fn project(folder: &Path) -> Result<Project, Problem> {
    let read = ProjectFile::read(folder).map_err(|mistakes| Problem::usage(mistakes.to_string()))?;
    Ok(read.map_or_else(Project::default, |file| Project {
        name: file.project,
        secrets: file.secrets,
        include_git: file.include_git,
    }))
}

/// The name of what [`pack`] would make of a folder, if it is known without reading its files.
///
/// # Errors
/// What cannot be packed.
pub fn survey(folder: &Path, include_git: bool) -> Result<Option<TreeId>, Problem> {
    let Some((indexes, folder)) = indexes().zip(folder.canonicalize().ok()) else { return Ok(None) };
    let options = PackOptions { git: include_git, ..PackOptions::default() };
    pack::survey(&folder, options, &Index::read(&indexes, &folder)).map_err(not_packed)
}

/// Packs a folder, notes what was read, and says what was left out because a tar cannot hold it.
///
/// # Errors
/// What cannot be packed.
pub fn pack(folder: &Path, include_git: bool, into: &mut File) -> Result<TreeId, Problem> {
    let options = PackOptions { git: include_git, ..PackOptions::default() };
    let mut index = Index::default();
    let packed = pack::pack_noting(folder, options, into, &mut index).map_err(not_packed)?;
    if let Some((indexes, folder)) = indexes().zip(folder.canonicalize().ok()) {
        // Without it everything is read again the next time.
        index.write(&indexes, &folder).ok();
    }
    for path in packed.skipped {
        super::say(&format!("left out `{}`: it is a socket, a pipe or a device", path.display()));
    }
    Ok(packed.tree)
}

/// What a build signs with, from a bundle: checked as the daemon will. A bundle in the folder that is sent is sent twice, and
/// once in the clear to the steps: that is said.
///
/// # Errors
/// Every mistake.
pub fn certs(bundle: &Path, source: &Path) -> Result<SigningSpec, Problem> {
    let shown = bundle.display();
    if let (Ok(bundle), Ok(source)) = (bundle.canonicalize(), source.canonicalize())
        && bundle.starts_with(source)
    {
        super::say(&format!(
            "`{shown}` lies in the project's folder: unless `.gitignore` names it, it goes into the VM with it"
        ));
    }
    let unread = |e: std::io::Error| {
        Problem::usage(format!("cannot read the bundle `{shown}`: {e}"))
            .hint("name a zip of one *.p12, `password.txt`, and the app's *.mobileprovision")
    };
    // A byte more than may be, so that too much is told from enough.
    let mut bytes = Zeroizing::new(Vec::new());
    let file = File::open(bundle).map_err(unread)?;
    file.take(BUNDLE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unread)?;
    let bad = |text: String| Problem::usage(format!("`{shown}`: {text}")).code("bad_signing");
    let spec = bundle::read(&bytes).map_err(|e| bad(e.to_string()).hint(e.hint()))?;
    match signing::check(&spec, UnixMillis::now()) {
        Ok(_) => Ok(spec),
        Err(mistakes) => {
            let what = mistakes.0.iter().map(|mistake| format!("{}: {}", mistake.key, mistake.text));
            Err(bad(what.collect::<Vec<_>>().join("; ")).hint(mistakes.hints()))
        }
    }
}

fn not_packed(error: PackError) -> Problem {
    let problem = Problem::usage(chain(&error));
    match error.hint() {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}

/// Where it is noted what was read: with other things that may be deleted at any time.
fn indexes() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("PREHEAT_CACHE")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("preheat")))
        .or_else(|| Some(folder("HOME")?.join(".cache/preheat")))?;
    cache.is_absolute().then(|| cache.join("sources"))
}

/// The adapter for `runtime.program`.
pub fn runtime(config: &Config) -> Arc<dyn Runtime> {
    Arc::new(Tart::new(&config.runtime, config.home.vm_logs()))
}

/// A control socket's path, as long as it gets.
pub fn control_socket() -> PathBuf {
    ssh::longest_socket_path()
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// Why it does not run, or no longer.
pub async fn serve(loaded: Loaded, file: Option<&Path>) -> Result<(), Problem> {
    let wrong = |e: &dyn std::fmt::Display| Problem::usage(e.to_string());
    let filter = logging::install(&loaded.config.log).map_err(|e| wrong(&e))?;
    // What the first one was read from: the same file, the same host, the same environment.
    let inputs = Inputs::of_process(file).map_err(|e| wrong(&e))?;
    let follow = move |config: &Config| {
        // It parses: the configuration would be refused otherwise.
        filter.set(&config.log.filter).ok();
    };
    supervisor::run(loaded, Arc::new(move || load::load(&inputs)), Box::new(follow)).await.map_err(|error| {
        let problem = Problem::system(chain(&error));
        match error.hint() {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    })
}

/// An error with what lies behind it, where its own text does not say it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
