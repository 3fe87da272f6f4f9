//! What a build is made of before its request and its project are merged: the pool that provides what it needs, and the steps,
//! of a pipeline with the project's own over them or the project's own alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Around, FILE_NAME, Incomplete, ProjectFile, complete_steps, from_command, unique};
use crate::api::wire::{StepSpec, SubmitSpec};
use crate::build::spec::Step;
use crate::config::mistake::{Mistake, Origin};
use crate::ids::PoolName;
use crate::pipelines::choose::{self, Settled, Source};
use crate::pipelines::over::{self, At, StepOver};
use crate::pipelines::{AUTO, Pipeline, Way};
use crate::pool::needs;

/// A build's steps and what comes with them.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub pipeline: Option<String>,
    /// For the beginning of its log.
    pub said: Vec<String>,
    pub steps: Vec<Step>,
    /// Defaults, which whatever the build says itself outranks.
    pub env: BTreeMap<String, String>,
    pub artifacts: Vec<String>,
    pub timeout: Duration,
}

/// Where a build's steps come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked<'a> {
    /// From nowhere but these.
    Steps(&'a [StepSpec], Author),
    /// From the pipeline of this name, which may be `auto`, with these over it.
    Pipeline(&'a str, Author, &'a [StepSpec], Author),
    /// Nobody said anything: from whatever fits the files.
    Nothing,
}

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Author {
    Request,
    Project,
}

impl Author {
    fn mistake(self, key: impl Into<String>, text: impl Into<String>) -> Mistake {
        match self {
            Self::Request => Mistake::at(&Origin::Request, key, text),
            Self::Project => Mistake { key: key.into(), ..Mistake::of(FILE_NAME, text) },
        }
    }

    fn said(self) -> &'static str {
        match self {
            Self::Request => "as the request says",
            Self::Project => "as .preheat.toml says",
        }
    }
}

/// Whose words count. Steps of a request stand for all that its project says of steps, unless it names a pipeline too; steps of
/// a project belong to the pipeline that it names, and to no other.
pub(super) fn asked<'a>(project: &'a ProjectFile, request: &'a SubmitSpec) -> Asked<'a> {
    let own = project.pipeline.as_deref();
    match (request.pipeline.as_deref(), request.steps.as_slice()) {
        (Some(name), []) if own == Some(name) => {
            Asked::Pipeline(name, Author::Request, &project.steps, Author::Project)
        }
        (Some(name), steps) => Asked::Pipeline(name, Author::Request, steps, Author::Request),
        (None, steps @ [_, ..]) => Asked::Steps(steps, Author::Request),
        (None, []) => match (own, project.steps.as_slice()) {
            (Some(name), steps) => Asked::Pipeline(name, Author::Project, steps, Author::Project),
            (None, steps @ [_, ..]) => Asked::Steps(steps, Author::Project),
            (None, []) => Asked::Nothing,
        },
    }
}

/// The pool: the one that is named, one that provides what is needed, or the only one.
pub(super) fn pool(
    project: &ProjectFile,
    request: &SubmitSpec,
    around: &Around<'_>,
    mistakes: &mut Vec<Mistake>,
) -> Result<(Option<PoolName>, Option<String>), Incomplete> {
    let mut needs = project.needs.clone();
    needs.extend(request.needs.clone());
    let named = request.pool.as_ref().or(project.pool.as_ref());
    if needs.is_empty() {
        return Ok((super::choose_pool(named, around.pools, mistakes)?, None));
    }
    let hint = "`[pool.<name>] provides = { .. }` on the daemon's host says what a pool's VMs have";
    let chosen = match named {
        None => needs::choose(&needs, around.pools, around.standings).cloned(),
        Some(_) => {
            let Some(name) = super::choose_pool(named, around.pools, mistakes)? else {
                return Ok((None, None));
            };
            let only: BTreeMap<_, _> = around.pools.get_key_value(&name).into_iter().collect();
            let only = only.into_iter().map(|(name, pool)| (name.clone(), pool.clone())).collect();
            needs::choose(&needs, &only, around.standings).cloned()
        }
    };
    match chosen {
        Ok(name) => {
            let facts = around.pools.get(&name).map(|pool| needs::facts(&pool.provides)).unwrap_or_default();
            let said = format!("pool {name} provides {facts}");
            Ok((Some(name), Some(said)))
        }
        Err(unmet) => {
            mistakes.push(Mistake::at(&Origin::Request, "needs", shown(&unmet.to_string())).hint(hint));
            Ok((None, None))
        }
    }
}

/// The steps. `own` are the build's own variables, `secrets` the names of those whose values nobody sees.
pub(super) fn plan(
    (project, request): (&ProjectFile, &SubmitSpec),
    around: &Around<'_>,
    (own, secrets): (&BTreeMap<String, String>, &[String]),
    mistakes: &mut Vec<Mistake>,
) -> Plan {
    let dir = request.dir.as_ref().or(project.dir.as_ref()).map_or("", |dir| tidy_dir(dir));
    let asked_for = request.timeout.or(project.timeout);
    let (pipeline, why, steps, author) = match asked(project, request) {
        Asked::Steps(steps, author) => {
            alone(steps, author, mistakes);
            let timeout = asked_for.unwrap_or(around.builds.timeout);
            let mut steps = complete_steps(steps, around.builds.step_timeout.min(timeout));
            steps.iter_mut().for_each(|step| step.dir = below(dir, &step.dir));
            return Plan { steps, timeout, ..Plan::default() };
        }
        Asked::Pipeline(name, author, steps, whose) => {
            let Some((name, why)) = named(name, author, around, dir, mistakes) else {
                return Plan::default();
            };
            (name, why, steps, whose)
        }
        Asked::Nothing => match choose::find(around.pipelines, around.files, dir) {
            Ok((name, why)) => (name, why, &[][..], Author::Request),
            Err(none) => {
                let text = "there is none, and a build needs one at least";
                let hint = format!("--step 'make', or steps = [\"make\"] in {FILE_NAME}");
                let mut mistake = Mistake::at(&Origin::Request, "steps", text);
                mistake = mistake.hint(if around.files.is_empty() {
                    hint
                } else {
                    shown(&format!("{hint}; {}; {}", none.said(), none.hint()))
                });
                mistakes.push(mistake);
                return Plan::default();
            }
        },
    };
    let Some(found) = around.pipelines.0.get(pipeline) else { return Plan::default() };
    let mut plan = Plan {
        pipeline: Some(pipeline.to_owned()),
        said: vec![format!("pipeline {pipeline}: {why}")],
        env: found.env.clone(),
        artifacts: found.artifacts.iter().map(|glob| below(&globset::escape(dir), glob)).collect(),
        timeout: asked_for.or(found.timeout).unwrap_or(around.builds.timeout),
        steps: Vec::new(),
    };
    plan.env.retain(|name, _| !secrets.contains(name));
    let mut whole = plan.env.clone();
    whole.extend(own.clone());
    let source = Source { files: around.files, dir, env: &whole, secrets };
    plan.steps_of(found, (steps, author), &source, around.builds.step_timeout, mistakes);
    plan
}

impl Plan {
    /// The pipeline's steps for this source, with the build's own over them.
    fn steps_of(
        &mut self,
        pipeline: &Pipeline,
        (own, author): (&[StepSpec], Author),
        source: &Source<'_>,
        step_timeout: Duration,
        mistakes: &mut Vec<Mistake>,
    ) {
        let mut steps = pipeline.steps.clone();
        let names =
            steps.iter().map(|step| step.name.clone()).chain(own.iter().filter_map(|s| s.name.clone()));
        let mut names: BTreeSet<String> = names.collect();
        let own: Vec<StepOver> = own.iter().map(|step| laid_over(step, &mut names)).collect();
        if let Err((n, misfit)) = over::lay_steps(&mut steps, &own) {
            mistakes.push(author.mistake(format!("steps[{n}]"), shown(&misfit.to_string())));
            return;
        }
        let (settled, said) = choose::settle(&steps, source);
        self.said.extend(said);
        let limit = step_timeout.min(self.timeout);
        let step = |Settled { name, command, dir, timeout, retries }| {
            let timeout = timeout.unwrap_or(limit).min(self.timeout);
            Step { name, command, dir, timeout, retries }
        };
        self.steps = settled.into_iter().map(step).collect();
        if self.steps.is_empty() {
            let text = "has no step that is for this source";
            mistakes.push(Mistake::at(&Origin::Request, "pipeline", text).hint(self.said.join("; ")));
        }
    }
}

/// The pipeline that somebody named, and why it is this one.
fn named<'a>(
    name: &'a str,
    author: Author,
    around: &'a Around<'_>,
    dir: &str,
    mistakes: &mut Vec<Mistake>,
) -> Option<(&'a str, String)> {
    if !around.files.has_folder(dir) {
        let text = format!("there is no folder `{}` in the source", dir.escape_debug());
        mistakes.push(Mistake::at(&Origin::Request, "dir", text));
        return None;
    }
    if name == AUTO {
        return match choose::find(around.pipelines, around.files, dir) {
            Ok((name, why)) => Some((name, format!("{why} (auto)"))),
            Err(none) => {
                mistakes.push(author.mistake("pipeline", none.said()).hint(shown(&none.hint())));
                None
            }
        };
    }
    if around.pipelines.0.contains_key(name) {
        return Some((name, author.said().to_owned()));
    }
    let text =
        format!("there is no pipeline `{}`; there is {}", name.escape_debug(), around.pipelines.known());
    mistakes.push(author.mistake("pipeline", text).hint("`preheat pipelines` lists them"));
    None
}

/// Words that only mean something over a pipeline.
fn alone(steps: &[StepSpec], author: Author, mistakes: &mut Vec<Mistake>) {
    for (n, step) in steps.iter().enumerate() {
        let words = [("before", step.before.is_some()), ("after", step.after.is_some()), ("skip", step.skip)];
        for (word, _) in words.into_iter().filter(|(_, there)| *there) {
            let text = "is for a step over those of a pipeline, and this build has none";
            mistakes.push(author.mistake(format!("steps[{n}].{word}"), text));
        }
    }
}

fn laid_over(step: &StepSpec, names: &mut BTreeSet<String>) -> StepOver {
    let StepSpec { name, command, dir, timeout, retries, before, after, skip } = step;
    let way = |command: &String| Way { command: command.clone(), ..Way::default() };
    StepOver {
        name: name.clone().unwrap_or_else(|| unique(names, &from_command(command))),
        ways: Some(command).filter(|command| !command.is_empty()).map(way).into_iter().collect(),
        dir: dir.clone(),
        timeout: *timeout,
        retries: *retries,
        when: None,
        at: before.clone().map(At::Before).or_else(|| after.clone().map(At::After)),
        skip: *skip,
    }
}

/// Words that quote others, so that no terminal obeys them.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Without what does not change it: `./apps/mobile/` is `apps/mobile`.
fn tidy_dir(dir: &str) -> &str {
    let mut dir = dir.trim_end_matches('/');
    while let Some(rest) = dir.strip_prefix("./") {
        dir = rest.trim_start_matches('/');
    }
    if dir == "." { "" } else { dir }
}

fn below(dir: &str, rest: &str) -> String {
    match (dir, rest) {
        ("", rest) => rest.to_owned(),
        (dir, "") => dir.to_owned(),
        (dir, rest) => format!("{dir}/{rest}"),
    }
}
