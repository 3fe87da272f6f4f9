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

pub(in crate::build) mod caches;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use config::{Value, ValueKind};
use secrecy::{ExposeSecret as _, SecretString};

use super::spec::{BuildSpec, Step};
use crate::api::wire::{CacheSpec, StepSpec, SubmitSpec};
use crate::config::found::{Refusal, count, plain, shown_text, variable_text, within};
use crate::config::limits::{self as bound, Bound};
use crate::config::mistake::{Mistake, Mistakes, Origin};
use crate::config::walk::{Section, Walk};
use crate::config::{Builds, Pool, file, rules};
use crate::ids::PoolName;

/// Its name, in the root of the source.
pub const FILE_NAME: &str = ".preheat.toml";

const NAME: &str = "a name in one line";
const COMMAND: &str = "a shell command";
const DIR: &str = "a folder in the source, relative and without `..`";
const GLOB: &str = "a glob relative to the source, without `..`";
const VARIABLE: &str = "a name of letters, digits and `_`, not beginning with a digit";

/// What a project says of its builds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProjectFile {
    pub project: Option<String>,
    pub pool: Option<String>,
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
    let steps = steps(&mut s);
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

fn steps(s: &mut Section<'_>) -> Option<Vec<StepSpec>> {
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
    let read: Vec<Option<StepSpec>> =
        elements.into_iter().map(|(key, value)| step(s.walk(), &key, value, &mut names)).collect();
    read.into_iter().collect()
}

fn step(walk: &mut Walk, key: &str, value: Value, names: &mut BTreeSet<String>) -> Option<StepSpec> {
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
    let command = s.text("command", COMMAND, command);
    let dir = s.text_if("dir", DIR, dir);
    let timeout = s.duration_if("timeout", &bound::BUILD_TIMEOUT);
    let retries = retries(&mut s, &bound::STEP_RETRIES);
    s.end();
    let step_name = step_name?;
    if let Some(name) = &step_name
        && !names.insert(name.clone())
    {
        let text = format!("found {}, which an earlier step has; names must differ", shown_text(name));
        walk.wrong(&format!("{key}.name"), Refusal::says(text));
    }
    Some(StepSpec { name: step_name, command: command?, dir: dir?, timeout: timeout?, retries: retries? })
}

fn env(mut s: Section<'_>) -> Option<BTreeMap<String, String>> {
    let mut env = Some(BTreeMap::new());
    for (name, value) in s.entries() {
        let key = s.key(&name);
        let text = variable_text(&value);
        let checked = variable_name(&name).and(text.as_deref().map_or_else(not_a_variable, variable_value));
        if let Err(refusal) = checked {
            let origin = s.walk().origin(&key);
            s.walk().note(refusal.mistake(&origin, &key, &name, VARIABLE));
            env = None;
        }
        env = env.zip(text).map(|(mut all, text)| {
            all.insert(name, text);
            all
        });
    }
    env
}

fn not_a_variable() -> Result<(), Refusal> {
    Err(Refusal::says("allowed is a text, a whole number, true or false"))
}

fn name(text: &str, bytes_max: usize) -> Result<(), Refusal> {
    plain(text)?;
    if text.len() > bytes_max {
        return Err(Refusal::says(format!("found {} bytes, allowed are {bytes_max}", text.len())));
    }
    Ok(())
}

fn command(text: &str) -> Result<(), Refusal> {
    let max = bound::COMMAND_BYTES_MAX;
    if text.len() > max {
        let refusal = Refusal::says(format!("found {} bytes, allowed are {max}", text.len()));
        return Err(refusal.hint("put the script into the source and call it"));
    }
    if text.trim().is_empty() || text.contains('\0') { Err(Refusal::usual()) } else { Ok(()) }
}

fn dir(text: &str) -> Result<(), Refusal> {
    let fits = text.len() <= bound::TEXT_BYTES_MAX && !text.chars().any(char::is_control);
    if fits && rules::stays_below(text) { Ok(()) } else { Err(Refusal::usual()) }
}

fn glob(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    if !rules::stays_below(text) {
        return Err(Refusal::usual());
    }
    match globset::GlobBuilder::new(text).literal_separator(true).build() {
        Ok(_) => Ok(()),
        Err(e) => Err(Refusal::says(format!("found {}, which is no glob: {}", shown_text(text), e.kind()))),
    }
}

fn variable_name(text: &str) -> Result<(), Refusal> {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let fits = text.len() <= bound::VARIABLE_NAME_BYTES_MAX;
    if starts && letters && fits { Ok(()) } else { Err(Refusal::usual()) }
}

/// The value itself is never shown: it may be a secret.
fn variable_value(text: &str) -> Result<(), Refusal> {
    let max = bound::VARIABLE_VALUE_BYTES_MAX;
    if text.len() > max {
        let refusal = Refusal::says(format!("found a value of {} bytes, allowed are {max}", text.len()));
        return Err(refusal.hint("put it into a file of the source"));
    }
    if text.contains('\0') { Err(Refusal::says("found a value with a NUL byte in it")) } else { Ok(()) }
}

/// Makes a complete build: the request over the project over the daemon's defaults. The keys of its caches are still as they
/// were written: [`crate::cache::keys::settle`] makes them keys.
///
/// # Errors
/// A pool that is not there, or every mistake.
pub fn merge(
    project: Option<ProjectFile>,
    request: &SubmitSpec,
    defaults: &Builds,
    pools: &BTreeMap<PoolName, Pool>,
    fallback_name: &str,
) -> Result<(BuildSpec, Secrets), Incomplete> {
    let project = project.unwrap_or_default();
    let mut mistakes = check_request(request);
    let pool = choose_pool(request.pool.as_ref().or(project.pool.as_ref()), pools, &mut mistakes)?;
    let timeout = request.timeout.or(project.timeout).unwrap_or(defaults.timeout);
    let steps = if request.steps.is_empty() { &project.steps } else { &request.steps };
    if steps.is_empty() {
        let mistake = Mistake::at(&Origin::Request, "steps", "there is none, and a build needs one at least");
        mistakes.push(mistake.hint(format!("--step 'make', or steps = [\"make\"] in {FILE_NAME}")));
    }
    let mut env = project.env;
    env.extend(request.env.clone());
    let secrets = secrets(&project.secrets, request, &env, &mut mistakes);
    if env.len() > bound::VARIABLES_MAX || secrets.0.len() > bound::VARIABLES_MAX {
        let text = format!("found more than {}, the most that a build may have", bound::VARIABLES_MAX);
        mistakes.push(Mistake::at(&Origin::Request, "env", text));
    }
    let (Some(pool), true) = (pool, mistakes.is_empty()) else { return Err(Mistakes(mistakes).into()) };
    let name = request.project.clone().or(project.project).unwrap_or_else(|| tidy_name(fallback_name));
    let artifacts = if request.artifacts.is_empty() { project.artifacts } else { request.artifacts.clone() };
    let caches = request.caches.clone().unwrap_or(project.caches);
    let spec = BuildSpec {
        project: name,
        pool,
        steps: complete_steps(steps, defaults.step_timeout.min(timeout)),
        env,
        secrets: secrets.0.keys().cloned().collect(),
        signing: None,
        artifacts,
        caches: caches::complete(caches),
        timeout,
        retries: request.retries.or(project.retries).unwrap_or(defaults.retries),
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
        check(key("command"), &step.command, COMMAND, command(&step.command));
        let folder = step.dir.as_deref().unwrap_or_default();
        check(key("dir"), folder, DIR, dir(folder));
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
