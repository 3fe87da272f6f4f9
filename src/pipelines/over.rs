//! One description of a pipeline over another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Pipeline, PipelineStep, Pipelines, Way, When};

/// What is said of a pipeline: all of it, or what differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Over {
    /// What it is laid over, where that has another name.
    pub extends: Option<String>,
    pub about: Option<String>,
    pub found: Option<When>,
    pub env: BTreeMap<String, String>,
    pub steps: Vec<StepOver>,
    pub artifacts: Option<Vec<String>>,
    pub timeout: Option<Duration>,
}

/// What is said of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepOver {
    pub name: String,
    /// None leaves what is there.
    pub ways: Vec<Way>,
    pub dir: Option<String>,
    pub timeout: Option<Duration>,
    pub retries: Option<u16>,
    pub when: Option<When>,
    /// Where a new step comes: at the one of this name, else last.
    pub at: Option<At>,
    /// The step is taken away.
    pub skip: bool,
}

/// Beside another step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    Before(String),
    After(String),
}

/// Why a description cannot be laid over another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error("there is no step `{name}` to come {side}; there is {known}")]
    NoNeighbour { name: String, side: &'static str, known: String },
    #[error("step `{name}` is new, so it needs a `command`; there is {known}")]
    NothingToRun { name: String, known: String },
    #[error("there is no step `{name}` to skip; there is {known}")]
    NothingToSkip { name: String, known: String },
    #[error("extends `{name}`, and there is no such pipeline")]
    NoBase { name: String },
    #[error("extends itself, by way of `{name}`")]
    Circle { name: String },
    #[error("has no step")]
    Empty,
}

/// Lays `steps` over those of a pipeline, one after the other.
///
/// # Errors
/// The first step that does not fit, by its number.
pub fn lay_steps(base: &mut Vec<PipelineStep>, steps: &[StepOver]) -> Result<(), (usize, Misfit)> {
    for (n, step) in steps.iter().enumerate() {
        lay_step(base, step).map_err(|misfit| (n, misfit))?;
    }
    Ok(())
}

fn lay_step(base: &mut Vec<PipelineStep>, over: &StepOver) -> Result<(), Misfit> {
    let known = |base: &[PipelineStep]| {
        let names: Vec<String> = base.iter().map(|step| format!("`{}`", step.name)).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let place = base.iter().position(|step| step.name == over.name);
    if over.skip {
        let name = over.name.clone();
        let place = place.ok_or_else(|| Misfit::NothingToSkip { name, known: known(base) })?;
        base.remove(place);
        return Ok(());
    }
    let mut step = match place {
        Some(place) => base[place].clone(),
        None if over.ways.is_empty() => {
            return Err(Misfit::NothingToRun { name: over.name.clone(), known: known(base) });
        }
        None => PipelineStep { name: over.name.clone(), ..PipelineStep::default() },
    };
    if !over.ways.is_empty() {
        step.ways.clone_from(&over.ways);
    }
    step.dir = over.dir.clone().or(step.dir);
    step.timeout = over.timeout.or(step.timeout);
    step.retries = over.retries.or(step.retries);
    step.when = over.when.clone().unwrap_or(step.when);
    let to = match &over.at {
        None => place,
        Some(at) => {
            if let Some(place) = place {
                base.remove(place);
            }
            let (name, side, add) = match at {
                At::Before(name) => (name, "before", 0),
                At::After(name) => (name, "after", 1),
            };
            let neighbour = base.iter().position(|step| step.name == *name);
            let none = || Misfit::NoNeighbour { name: name.clone(), side, known: known(base) };
            base.insert(neighbour.ok_or_else(none)? + add, step);
            return Ok(());
        }
    };
    match to {
        Some(place) => base[place] = step,
        None => base.push(step),
    }
    Ok(())
}

/// Lays one description over a pipeline.
///
/// # Errors
/// The first thing that does not fit; with a step's number where it is one.
fn lay(mut base: Pipeline, over: &Over) -> Result<Pipeline, (Option<usize>, Misfit)> {
    lay_steps(&mut base.steps, &over.steps).map_err(|(n, misfit)| (Some(n), misfit))?;
    base.about = over.about.clone().unwrap_or(base.about);
    base.found = over.found.clone().or(base.found);
    base.env.extend(over.env.clone());
    base.artifacts = over.artifacts.clone().unwrap_or(base.artifacts);
    base.timeout = over.timeout.or(base.timeout);
    if base.steps.is_empty() { Err((None, Misfit::Empty)) } else { Ok(base) }
}

/// What does not fit: the pipeline, the number of its step where it is one, and why.
pub type Unfit = (String, Option<usize>, Misfit);

/// Completes every pipeline: the operator's `own` over those that are `built_in`.
///
/// # Errors
/// Everything that does not fit.
pub fn complete(
    built_in: &BTreeMap<String, Over>,
    own: &BTreeMap<String, Over>,
) -> Result<Pipelines, Vec<Unfit>> {
    let names: BTreeSet<&String> = built_in.keys().chain(own.keys()).collect();
    let (mut all, mut unfit) = (BTreeMap::new(), Vec::new());
    for name in names {
        match resolve(name, built_in, own, &mut Vec::new()) {
            Ok(pipeline) => drop(all.insert(name.clone(), pipeline)),
            // What is wrong with a base is told of the base.
            Err((at, ..)) if at != *name => {}
            Err(wrong) => unfit.push(wrong),
        }
    }
    if unfit.is_empty() { Ok(Pipelines(all)) } else { Err(unfit) }
}

/// `above`: those that are on their way to this one.
fn resolve(
    name: &str,
    built_in: &BTreeMap<String, Over>,
    own: &BTreeMap<String, Over>,
    above: &mut Vec<String>,
) -> Result<Pipeline, Unfit> {
    above.push(name.to_owned());
    let layers: Vec<&Over> = built_in.get(name).into_iter().chain(own.get(name)).collect();
    // The highest layer says what it stands on; one that stands on another pipeline leaves its own name's behind.
    let elsewhere = |over: &&Over| over.extends.as_deref().is_some_and(|base| base != name);
    let bottom = layers.iter().rposition(elsewhere);
    let base = bottom.and_then(|n| layers[n].extends.as_deref());
    let mut pipeline = match base {
        None => Pipeline::default(),
        Some(base) if above.iter().any(|name| name == base) => {
            return Err((base.to_owned(), None, Misfit::Circle { name: name.to_owned() }));
        }
        Some(base) if !built_in.contains_key(base) && !own.contains_key(base) => {
            return Err((name.to_owned(), None, Misfit::NoBase { name: base.to_owned() }));
        }
        Some(base) => Pipeline { found: None, ..resolve(base, built_in, own, above)? },
    };
    for over in layers.into_iter().skip(bottom.unwrap_or(0)) {
        pipeline = lay(pipeline, over).map_err(|(step, misfit)| (name.to_owned(), step, misfit))?;
    }
    Ok(pipeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, command: &str) -> StepOver {
        let ways = if command.is_empty() {
            Vec::new()
        } else {
            vec![Way { command: command.into(), ..Way::default() }]
        };
        StepOver { name: name.into(), ways, ..StepOver::default() }
    }

    fn names(steps: &[PipelineStep]) -> Vec<&str> {
        steps.iter().map(|step| step.name.as_str()).collect()
    }

    fn base() -> Vec<PipelineStep> {
        let mut steps = Vec::new();
        lay_steps(&mut steps, &[step("install", "npm ci"), step("archive", "xcodebuild")]).expect("they fit");
        steps
    }

    #[test]
    fn a_step_is_changed_moved_added_or_taken_away_by_its_name() {
        let mut steps = base();
        let minute = Duration::from_secs(60);
        let over = [
            StepOver { timeout: Some(minute), ..step("install", "") },
            StepOver { at: Some(At::Before("archive".into())), ..step("lint", "npm run lint") },
            StepOver { at: Some(At::After("install".into())), ..step("patch", "npx patch-package") },
            step("notify", "true"),
        ];
        lay_steps(&mut steps, &over).expect("they fit");
        assert_eq!(names(&steps), ["install", "patch", "lint", "archive", "notify"]);
        assert_eq!((steps[0].timeout, steps[0].ways[0].command.as_str()), (Some(minute), "npm ci"));
        lay_steps(&mut steps, &[StepOver { skip: true, ..step("lint", "") }]).expect("it is there");
        lay_steps(
            &mut steps,
            &[StepOver { at: Some(At::Before("install".into())), ..step("notify", "false") }],
        )
        .expect("it moves");
        assert_eq!(names(&steps), ["notify", "install", "patch", "archive"]);
        assert_eq!(steps[0].ways[0].command, "false");
    }

    #[test]
    fn what_does_not_fit_says_what_there_is() {
        let wrong =
            |over: StepOver| lay_steps(&mut base(), &[over]).expect_err("it does not fit").1.to_string();
        assert_eq!(
            wrong(StepOver { at: Some(At::After("pods".into())), ..step("lint", "x") }),
            "there is no step `pods` to come after; there is `install`, `archive`"
        );
        assert!(wrong(step("lint", "")).contains("needs a `command`"));
        assert!(wrong(StepOver { skip: true, ..step("x", "") }).contains("no step `x` to skip"));
    }

    #[test]
    fn a_pipeline_stands_on_another_and_the_operators_on_the_one_that_is_built_in() {
        let over = |extends: Option<&str>, steps: Vec<StepOver>| Over {
            extends: extends.map(Into::into),
            steps,
            found: Some(When { exists: vec!["x".into()], ..When::default() }),
            ..Over::default()
        };
        let built_in = BTreeMap::from([
            ("xcode".to_owned(), over(None, vec![step("archive", "xcodebuild")])),
            ("expo".to_owned(), over(Some("xcode"), vec![step("install", "npm ci")])),
        ]);
        let own = BTreeMap::from([
            ("xcode".to_owned(), Over { steps: vec![step("archive", "mine")], ..Over::default() }),
            ("acme".to_owned(), Over { extends: Some("expo".into()), ..Over::default() }),
        ]);
        let all = complete(&built_in, &own).expect("they fit");
        assert_eq!(all.0["expo"].steps[0].ways[0].command, "mine", "what it stands on was changed");
        assert_eq!(names(&all.0["acme"].steps), ["archive", "install"]);
        assert_eq!(all.0["acme"].found, None, "how another one is found says nothing of this one");
        assert!(all.0["xcode"].found.is_some());
        assert_eq!(all.in_order().map(|(name, _)| name).collect::<Vec<_>>(), ["acme", "expo", "xcode"]);
    }

    #[test]
    fn a_pipeline_that_stands_on_itself_or_on_nothing_is_told_once() {
        let on = |base: &str| Over { extends: Some(base.into()), ..Over::default() };
        let own = [("a", on("b")), ("b", on("a")), ("c", on("d")), ("e", on("c")), ("f", Over::default())];
        let own = own.into_iter().map(|(name, over)| (name.to_owned(), over)).collect();
        let unfit = complete(&BTreeMap::new(), &own).expect_err("none is whole");
        let told: Vec<_> = unfit.iter().map(|(name, _, why)| format!("{name}: {why}")).collect();
        assert_eq!(
            told,
            [
                "a: extends itself, by way of `b`",
                "b: extends itself, by way of `a`",
                "c: extends `d`, and there is no such pipeline",
                "f: has no step"
            ]
        );
    }
}
