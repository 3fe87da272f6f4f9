//! The project's file, `.preheat.toml`, and how it becomes a complete build: the request over the project over the daemon's
//! defaults. It is read by the same rules as the configuration: an unknown key is a mistake, and all mistakes come at once.
//!
//! ```toml
//! project = "app"
//! pool = "xcode-26"
//! steps = ["npm ci", { name = "archive", command = "make ipa", dir = "ios", timeout = "40m", retries = 1 }]
//! artifacts = ["build/**/*.ipa"]
//! secrets = ["MATCH_PASSWORD"]
//! timeout = "1h"
//! retries = 1
//! include_git = false        # whether .git is sent along
//! env = { CI = "true" }
//!
//! [[caches]]
//! key = "pods-{{ hash 'Podfile.lock' }}"
//! restore_keys = ["pods-"]
//! paths = ["Pods", "~/.cocoapods"]
//! ```
//!
//! Instead of all its steps it may name a pipeline, and say what differs:
//!
//! ```toml
//! pipeline = "expo"          # or "auto"
//! dir = "apps/mobile"        # what is built, below the source's root
//! needs = { xcode = ">=26" } # instead of a pool's name
//! steps = [
//!   { name = "install", timeout = "20m" },
//!   { name = "lint", command = "npm run lint", after = "install" },
//!   { name = "pods", skip = true },
//! ]
//! ```

pub(in crate::build) mod caches;
mod plan;
pub(crate) mod texts;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use config::{Value, ValueKind};
use secrecy::{ExposeSecret as _, SecretString};

use self::plan::Asked;
use self::texts::{
    COMMAND, DIR, GLOB, NAME, VARIABLE, command, dir, env, glob, name, variable_name, variable_value,
};
use super::spec::{BuildSpec, Step};
use crate::api::wire::{CacheSpec, StepSpec, SubmitSpec};
use crate::config::found::{Refusal, count, plain, shown_text, variable_text, within};
use crate::config::limits::{self as bound, Bound};
use crate::config::mistake::{Mistake, Mistakes, Origin};
use crate::config::walk::{Section, Walk};
use crate::config::{Builds, Pool, file};
use crate::ids::PoolName;
use crate::pipelines::files::Files;
use crate::pipelines::{AUTO, Pipelines};
use crate::pool::needs::{self, Needs, Standings};

/// Its name, in the root of the source.
pub const FILE_NAME: &str = ".preheat.toml";

/// What a project says of its builds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProjectFile {
    pub project: Option<String>,
    pub pool: Option<String>,
    /// What its pool must provide.
    pub needs: Needs,
    /// How it is built, where its steps do not say all of that.
    pub pipeline: Option<String>,
    /// The folder that is built.
    pub dir: Option<String>,
    pub steps: Vec<StepSpec>,
    pub env: BTreeMap<String, String>,
    /// Names; whoever submits the build gives the values.
    pub secrets: Vec<String>,
    pub artifacts: Vec<String>,
    pub caches: Vec<CacheSpec>,
    pub timeout: Option<Duration>,
    pub retries: Option<u16>,
    /// Whether `.git` is part of the source.
    pub include_git: bool,
}

/// The secrets of one build. They print as `[REDACTED]`.
#[derive(Debug, Clone, Default)]
pub struct Secrets(BTreeMap<String, SecretString>);

impl Secrets {
    /// Each with its name, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &SecretString)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a request and a project's file make no build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Incomplete {
    /// No pool has the name.
    #[error("there is no pool `{pool}`; there is {known}")]
    PoolUnknown { pool: String, known: String },
    /// Everything else, all of it.
    #[error(transparent)]
    Wrong(#[from] Mistakes),
}

impl ProjectFile {
    /// Reads the file of a source; `None` when it has none.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn read(source: &Path) -> Result<Option<Self>, Mistakes> {
        let text =
            file::read(&source.join(FILE_NAME), bound::PROJECT_FILE_BYTES_MAX).map_err(|mut mistake| {
                mistake.place = FILE_NAME.into();
                mistake
            })?;
        text.map(|text| Self::parse(&text)).transpose()
    }

    /// Parses the file's text.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(text: &str) -> Result<Self, Mistakes> {
        let max = bound::PROJECT_FILE_BYTES_MAX;
        if text.len() > max {
            return Err(
                Mistake::of(FILE_NAME, format!("is longer than {max} bytes, the most that is read")).into()
            );
        }
        let layer = file::parse(text, Path::new(FILE_NAME), file::Role::File)?;
        let (mut walk, table) = Walk::over(file::merge(vec![layer])?);
        let project = project(walk.section("", table));
        walk.end(project).map(|(project, _)| project)
    }
}

fn project(mut s: Section<'_>) -> Option<ProjectFile> {
    let project = s.text_if("project", NAME, |t| name(t, bound::PROJECT_NAME_BYTES_MAX));
    let pool = s.text_if("pool", "the name of a pool", |t| {
        t.parse::<PoolName>().map(drop).map_err(|_| Refusal::usual())
    });
    let needs = needs(s.table("needs"));
    let pipeline = s.text_if("pipeline", PIPELINE, pipeline_name);
    let dir = s.text_if("dir", DIR, dir);
    let in_pipeline = pipeline.as_ref().is_some_and(Option::is_some);
    let steps = steps(&mut s, in_pipeline);
    let env = env(s.table("env"));
    let secrets = s.list("secrets", VARIABLE, variable_name);
    let artifacts = s.list("artifacts", GLOB, glob);
    let caches = caches::read(&mut s);
    let timeout = s.duration_if("timeout", &bound::BUILD_TIMEOUT);
    let retries = retries(&mut s, &bound::RETRIES);
    let include_git = s.flag_if("include_git");
    s.end();
    Some(ProjectFile {
        project: project?,
        pool: pool?,
        needs: needs?,
        pipeline: pipeline?,
        dir: dir?,
        steps: steps?,
        env: env?,
        secrets: secrets?,
        artifacts: artifacts?,
        caches: caches?,
        timeout: timeout?,
        retries: retries?,
        include_git: include_git?.unwrap_or(false),
    })
}

fn retries(s: &mut Section<'_>, bound: &Bound) -> Option<Option<u16>> {
    let allowed = format!("{} ({})", bound.allowed(), bound.why);
    s.optional("retries", &allowed, |found| count::<u16>(found, bound), |n| i64::from(*n).into())
}

const PIPELINE: &str = "the name of a pipeline, or \"auto\"";
const NEED: &str = "a version, a requirement of versions as \">=26\", or a word";

fn pipeline_name(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    if text.len() > bound::PIPELINE_NAME_BYTES_MAX { Err(Refusal::usual()) } else { Ok(()) }
}

fn need(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    needs::check(text).map_err(|e| Refusal::says(format!("found {}, which {e}", shown_text(text))))
}

fn needs(mut s: Section<'_>) -> Option<Needs> {
    let mut needs = Some(Needs::new());
    for (name, value) in s.entries() {
        let key = s.key(&name);
        let text = variable_text(&value);
        let checked = text.as_deref().map_or_else(|| Err(Refusal::usual().hint("put it in quotes")), need);
        if let Err(refusal) = checked {
            let origin = s.walk().origin(&key);
            s.walk().note(refusal.mistake(&origin, &key, text.as_deref().unwrap_or_default(), NEED));
            needs = None;
        }
        needs = needs.zip(text).map(|(mut all, text)| {
            all.insert(name, text);
            all
        });
    }
    needs
}

fn steps(s: &mut Section<'_>, in_pipeline: bool) -> Option<Vec<StepSpec>> {
    let Some(elements) = s.elements("steps") else {
        let refusal = Refusal::says("allowed is a list of commands, or of tables as [[steps]]");
        s.walk().wrong("steps", refusal.hint("as steps = [\"make\", \"make test\"]"));
        return None;
    };
    if elements.len() > bound::STEPS_MAX {
        let text = format!("found {} steps, allowed are {}", elements.len(), bound::STEPS_MAX);
        s.walk().wrong("steps", Refusal::says(text));
        return None;
    }
    let mut names = BTreeSet::new();
    // All are read, so that the mistakes of all are told; one that is wrong makes the whole wrong.
    let read: Vec<Option<StepSpec>> = elements
        .into_iter()
        .map(|(key, value)| step(s.walk(), &key, value, &mut names, in_pipeline))
        .collect();
    read.into_iter().collect()
}

fn step(
    walk: &mut Walk,
    key: &str,
    value: Value,
    names: &mut BTreeSet<String>,
    in_pipeline: bool,
) -> Option<StepSpec> {
    let table = match (variable_text(&value), value.kind) {
        (_, ValueKind::Table(table)) => table,
        (Some(text), ValueKind::String(_)) => {
            if let Err(refusal) = command(&text) {
                walk.note(refusal.mistake(&walk.origin(key), key, &text, COMMAND));
                return None;
            }
            return Some(StepSpec { command: text, ..StepSpec::default() });
        }
        (Some(_) | None, _) => {
            walk.wrong(key, Refusal::says("allowed is a command, or a table with `command`"));
            return None;
        }
    };
    let mut s = walk.section(key, table);
    let step_name = s.text_if("name", NAME, |t| name(t, bound::STEP_NAME_BYTES_MAX));
    // A pipeline may have it.
    let named = in_pipeline && step_name.as_ref().is_some_and(Option::is_some);
    let command = match named {
        true => s.text_if("command", COMMAND, command).map(Option::unwrap_or_default),
        false => s.text("command", COMMAND, command),
    };
    let dir = s.text_if("dir", DIR, dir);
    let timeout = s.duration_if("timeout", &bound::BUILD_TIMEOUT);
    let retries = retries(&mut s, &bound::STEP_RETRIES);
    let before = s.text_if("before", NAME, plain);
    let after = s.text_if("after", NAME, plain);
    let skip = s.flag_if("skip");
    s.end();
    let step_name = step_name?;
    if let Some(name) = &step_name
        && !names.insert(name.clone())
    {
        let text = format!("found {}, which an earlier step has; names must differ", shown_text(name));
        walk.wrong(&format!("{key}.name"), Refusal::says(text));
    }
    Some(StepSpec {
        name: step_name,
        command: command?,
        dir: dir?,
        timeout: timeout?,
        retries: retries?,
        before: before?,
        after: after?,
        skip: skip?.unwrap_or(false),
    })
}

/// What a build is put together from, beside its project and its request.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    pub builds: &'a Builds,
    pub pools: &'a BTreeMap<PoolName, Pool>,
    pub pipelines: &'a Pipelines,
    /// The source's; looked at only where [`wants_files`] says so.
    pub files: &'a Files,
    /// How the pools stand, where one may be chosen.
    pub standings: &'a Standings,
    /// The name of a project that nobody named.
    pub fallback_name: &'a str,
}

/// Whether the names of the source's files decide anything.
pub fn wants_files(project: Option<&ProjectFile>, request: &SubmitSpec) -> bool {
    let none = ProjectFile::default();
    match plan::asked(project.unwrap_or(&none), request) {
        Asked::Steps(..) => false,
        Asked::Pipeline(..) | Asked::Nothing => true,
    }
}

/// Makes a complete build: the request over the project over the pipeline over the daemon's defaults. The keys of its caches
/// are still as they were written: [`crate::cache::keys::settle`] makes them keys.
///
/// # Errors
/// A pool that is not there, or every mistake.
pub fn merge(
    project: Option<ProjectFile>,
    request: &SubmitSpec,
    around: &Around<'_>,
) -> Result<(BuildSpec, Secrets), Incomplete> {
    let project = project.unwrap_or_default();
    let mut mistakes = check_request(request);
    let (pool, provided) = plan::pool(&project, request, around, &mut mistakes)?;
    let mut own = project.env.clone();
    own.extend(request.env.clone());
    let secrets = secrets(&project.secrets, request, &own, &mut mistakes);
    let names: Vec<String> = secrets.0.keys().cloned().collect();
    let plan = plan::plan((&project, request), around, (&own, &names), &mut mistakes);
    let mut env = plan.env;
    env.extend(own);
    if env.len() > bound::VARIABLES_MAX || secrets.0.len() > bound::VARIABLES_MAX {
        let text = format!("found more than {}, the most that a build may have", bound::VARIABLES_MAX);
        mistakes.push(Mistake::at(&Origin::Request, "env", text));
    }
    let (Some(pool), true) = (pool, mistakes.is_empty()) else { return Err(Mistakes(mistakes).into()) };
    let name = request.project.clone().or(project.project).unwrap_or_else(|| tidy_name(around.fallback_name));
    let artifacts = [&request.artifacts, &project.artifacts].into_iter().find(|globs| !globs.is_empty());
    let caches = request.caches.clone().unwrap_or(project.caches);
    let spec = BuildSpec {
        project: name,
        pool,
        pipeline: plan.pipeline,
        said: plan.said.into_iter().chain(provided).collect(),
        steps: plan.steps,
        env,
        secrets: names,
        signing: None,
        artifacts: artifacts.cloned().unwrap_or(plan.artifacts),
        caches: caches::complete(caches),
        timeout: plan.timeout,
        retries: request.retries.or(project.retries).unwrap_or(around.builds.retries),
    };
    Ok((spec, secrets))
}

/// The request's own mistakes; those of the project's file were found when it was read.
fn check_request(request: &SubmitSpec) -> Vec<Mistake> {
    let mut found = Vec::new();
    let mut check = |key: String, text: &str, allowed: &str, result: Result<(), Refusal>| {
        if let Err(refusal) = result {
            found.push(refusal.mistake(&Origin::Request, &key, text, allowed));
        }
    };
    if let Some(project) = &request.project {
        check("project".into(), project, NAME, name(project, bound::PROJECT_NAME_BYTES_MAX));
    }
    let own_dir = request.dir.as_deref().unwrap_or_default();
    check("dir".into(), own_dir, DIR, dir(own_dir));
    let pipeline = request.pipeline.as_deref().unwrap_or(AUTO);
    check("pipeline".into(), pipeline, PIPELINE, pipeline_name(pipeline));
    for (name, value) in &request.needs {
        check(format!("needs.{}", name.escape_debug()), value, NEED, plain(name).and(need(value)));
    }
    let mut names = BTreeSet::new();
    for (n, step) in request.steps.iter().enumerate() {
        let key = |field: &str| format!("steps[{n}].{field}");
        if let Some(step_name) = &step.name {
            check(key("name"), step_name, NAME, name(step_name, bound::STEP_NAME_BYTES_MAX));
            let new = names.insert(step_name);
            let again = || {
                Refusal::says(format!(
                    "found {}, which an earlier step has; names must differ",
                    shown_text(step_name)
                ))
            };
            check(key("name"), step_name, NAME, if new { Ok(()) } else { Err(again()) });
        }
        // A pipeline may have it.
        let left_out = step.command.is_empty() && step.name.is_some() && request.pipeline.is_some();
        if !left_out {
            check(key("command"), &step.command, COMMAND, command(&step.command));
        }
        let folder = step.dir.as_deref().unwrap_or_default();
        check(key("dir"), folder, DIR, dir(folder));
        for (word, other) in [("before", &step.before), ("after", &step.after)] {
            let other = other.as_deref().unwrap_or("step");
            check(key(word), other, NAME, name(other, bound::STEP_NAME_BYTES_MAX));
        }
        check(key("timeout"), "", "", in_time(step.timeout));
        check(key("retries"), "", "", not_too_often(step.retries, &bound::STEP_RETRIES));
    }
    let secrets = request.secrets.iter().map(|(name, value)| ("secrets", name, value.expose_secret()));
    let env = request.env.iter().map(|(name, value)| ("env", name, value.as_str()));
    for (section, name, value) in env.chain(secrets) {
        let key = format!("{section}.{}", name.escape_debug());
        check(key, name, VARIABLE, variable_name(name).and(variable_value(value)));
    }
    for (n, pattern) in request.artifacts.iter().enumerate() {
        check(format!("artifacts[{n}]"), pattern, GLOB, glob(pattern));
    }
    check("timeout".into(), "", "", in_time(request.timeout));
    check("retries".into(), "", "", not_too_often(request.retries, &bound::RETRIES));
    let long = |what: usize, max: usize| {
        let says = || Refusal::says(format!("found {what}, allowed are {max}"));
        if what > max { Err(says()) } else { Ok(()) }
    };
    check("steps".into(), "", "", long(request.steps.len(), bound::STEPS_MAX));
    check("artifacts".into(), "", "", long(request.artifacts.len(), bound::ARTIFACTS_PER_BUILD_MAX));
    found.extend(caches::check(request.caches.as_deref().unwrap_or_default()));
    found
}

fn not_too_often(retries: Option<u16>, bound: &Bound) -> Result<(), Refusal> {
    match retries.filter(|n| !bound.holds((*n).into())) {
        None => Ok(()),
        Some(n) => Err(Refusal::says(format!("found {n}, allowed is {}", bound.allowed()))),
    }
}

fn in_time(timeout: Option<Duration>) -> Result<(), Refusal> {
    match timeout.filter(|t| !within(*t, &bound::BUILD_TIMEOUT)) {
        None => Ok(()),
        Some(t) => {
            let found = humantime::format_duration(t);
            Err(Refusal::says(format!("found \"{found}\", allowed is {}", bound::BUILD_TIMEOUT.allowed())))
        }
    }
}

/// The pool by name; the only one, where none is named.
fn choose_pool(
    named: Option<&String>,
    pools: &BTreeMap<PoolName, Pool>,
    mistakes: &mut Vec<Mistake>,
) -> Result<Option<PoolName>, Incomplete> {
    let known = || {
        let names: Vec<String> = pools.keys().map(|name| format!("`{name}`")).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    if let Some(name) = named {
        let pool = pools.keys().find(|pool| pool.as_str() == name.as_str());
        let unknown = || Incomplete::PoolUnknown { pool: name.clone(), known: known() };
        return pool.cloned().map(Some).ok_or_else(unknown);
    }
    if let (Some(only), 1) = (pools.keys().next(), pools.len()) {
        return Ok(Some(only.clone()));
    }
    let (text, hint) = if pools.is_empty() {
        (
            "there is none: the daemon has no pool".into(),
            "add a section [pool.<name>] to the daemon's preheat.toml".into(),
        )
    } else {
        (
            format!("none is named, and there is more than one: {}", known()),
            format!("--pool NAME, or pool = \"NAME\" in {FILE_NAME}"),
        )
    };
    mistakes.push(Mistake::at(&Origin::Request, "pool", text).hint(hint));
    Ok(None)
}

/// The values of the secrets that the project names and of those that only the request has.
fn secrets(
    named: &[String],
    request: &SubmitSpec,
    env: &BTreeMap<String, String>,
    mistakes: &mut Vec<Mistake>,
) -> Secrets {
    let mut wrong = |name: &str, text: &str, hint: String| {
        let key = format!("secrets.{}", name.escape_debug());
        mistakes.push(Mistake::at(&Origin::Request, key, text).hint(hint));
    };
    let given = |name: &str| request.secrets.get(name).is_some_and(|value| !value.expose_secret().is_empty());
    let names: BTreeSet<&String> = named.iter().chain(request.secrets.keys()).collect();
    for name in &names {
        if !given(name) {
            wrong(
                name,
                "has no value, and the build needs it",
                format!("export {0}, and give --secret {0}", name.escape_debug()),
            );
        }
        if env.contains_key(*name) {
            wrong(
                name,
                "is in `env` too, where it is no secret",
                format!("take {} out of one of the two", name.escape_debug()),
            );
        }
    }
    Secrets(request.secrets.0.clone())
}

fn complete_steps(steps: &[StepSpec], timeout: Duration) -> Vec<Step> {
    let mut names: BTreeSet<String> = steps.iter().filter_map(|s| s.name.clone()).collect();
    let mut complete = |step: &StepSpec| Step {
        name: step.name.clone().unwrap_or_else(|| unique(&mut names, &from_command(&step.command))),
        command: step.command.clone(),
        dir: step.dir.clone().unwrap_or_default(),
        timeout: step.timeout.unwrap_or(timeout),
        retries: step.retries.unwrap_or(0),
    };
    steps.iter().map(&mut complete).collect()
}

/// A step without a name is called by its command: in a timeline `npm ci` says more than `step-2`.
fn from_command(command: &str) -> String {
    const SHOWN_MAX: usize = 40;
    let says_something =
        |line: &&str| !line.is_empty() && !line.starts_with('#') && !line.starts_with("set -");
    let line = command.lines().map(str::trim).find(says_something).unwrap_or("step");
    let line: String = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    match line.char_indices().nth(SHOWN_MAX) {
        None => line,
        Some((end, _)) => format!("{}..", line[..end].trim_end()),
    }
}

/// The name, or the name with the first number that makes it new.
fn unique(names: &mut BTreeSet<String>, name: &str) -> String {
    let numbered = (2..).map(|n: usize| format!("{name} ({n})"));
    let free = std::iter::once(name.to_owned()).chain(numbered).find(|name| !names.contains(name));
    let free = free.unwrap_or_default();
    names.insert(free.clone());
    free
}

/// A folder's name, made fit for a project's.
fn tidy_name(folder: &str) -> String {
    let mut name: String = folder.trim().chars().filter(|c| !c.is_control()).collect();
    while name.len() > bound::PROJECT_NAME_BYTES_MAX {
        name.pop();
    }
    if name.is_empty() { "project".into() } else { name }
}

#[cfg(test)]
#[path = "project_tests.rs"]
mod tests;
