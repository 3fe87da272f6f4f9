//! Pipelines: those that are built in (`config/pipelines.toml`, part of the program) with the operator's `[pipelines.<name>]`
//! over them; and how one is written down again.

use std::collections::BTreeMap;
use std::path::Path;

use config::{Value, ValueKind};

use super::file::{self, Role, Table};
use super::found::{Found, Refusal, count, plain, shown_text};
use super::limits as bound;
use super::mistake::Mistakes;
use super::walk::{Section, Walk, written_duration};
use crate::build::project::texts;
use crate::pipelines::over::{self, At, Over, StepOver};
use crate::pipelines::{AUTO, Pipeline, PipelineStep, Pipelines, Way, When};

/// `config/pipelines.toml`.
const BUILT_IN: &str = include_str!("../../config/pipelines.toml");

/// The section of the operator's.
const SECTION: &str = "pipelines";

const NAME: &str = "a name of a-z, 0-9 and `-`, and not \"auto\"";
const ONE_LINE: &str = "a text of one line";
const LIST: &str = "a text, or a list of texts";

/// Those that are built in, nothing laid over them. A test holds that their text is right.
pub fn built_in() -> Pipelines {
    descriptions().ok().and_then(|all| over::complete(&all, &BTreeMap::new()).ok()).unwrap_or_default()
}

fn descriptions() -> Result<BTreeMap<String, Over>, Mistakes> {
    let layer = file::parse(BUILT_IN, Path::new("pipelines.toml"), Role::Default)?;
    let (mut walk, table) = Walk::over(file::merge(vec![layer])?);
    let all = read(walk.section("", table));
    walk.end(all).map(|(all, _)| all)
}

/// The operator's pipelines over those that are built in.
pub(super) fn pipelines(root: &mut Section<'_>) -> Option<Pipelines> {
    let own = read(root.table(SECTION))?;
    let built_in = match descriptions() {
        Ok(built_in) => built_in,
        Err(mistakes) => {
            mistakes.0.into_iter().for_each(|mistake| root.walk().note(mistake));
            return None;
        }
    };
    match over::complete(&built_in, &own) {
        Ok(all) => Some(all),
        Err(unfit) => {
            for (name, step, misfit) in unfit {
                let step = step.map_or_else(String::new, |n| format!(".steps[{n}]"));
                root.walk().wrong(&format!("{SECTION}.{name}{step}"), Refusal::says(misfit.to_string()));
            }
            None
        }
    }
}

fn read(mut section: Section<'_>) -> Option<BTreeMap<String, Over>> {
    let entries = section.entries();
    if entries.len() > bound::PIPELINES_MAX {
        let text = format!("found {} pipelines, allowed are {}", entries.len(), bound::PIPELINES_MAX);
        section.walk().wrong(SECTION, Refusal::says(text));
        return None;
    }
    let mut all = Some(BTreeMap::new());
    for (name, value) in entries {
        let key = section.key(&name);
        let read = one(section.walk(), &name, &key, value.kind);
        all = all.zip(read).map(|(mut all, over)| {
            all.insert(name, over);
            all
        });
    }
    all
}

fn one(walk: &mut Walk, name: &str, key: &str, kind: ValueKind) -> Option<Over> {
    let named = pipeline_name(name);
    if named.is_err() {
        let text = format!("found {}, allowed is {NAME}", shown_text(name));
        walk.wrong(key, Refusal::says(text));
    }
    let ValueKind::Table(table) = kind else {
        walk.wrong(key, Refusal::says("allowed is a table with the keys of a pipeline"));
        return None;
    };
    let whole = table.clone();
    let mut s = walk.section(key, table);
    let extends = s.text_if("extends", "the name of a pipeline", pipeline_name);
    let about = s.text_if("about", ONE_LINE, plain);
    let found = shown_whole(&mut s, "found", whole.get("found"), when);
    let env = shown_whole(&mut s, "env", whole.get("env"), |s, name| texts::env(s.table(name)));
    let steps = shown_whole(&mut s, "steps", whole.get("steps"), steps);
    let artifacts = s.list("artifacts", texts::GLOB, texts::glob);
    let timeout = s.duration_if("timeout", &bound::BUILD_TIMEOUT);
    s.end();
    named.ok()?;
    Some(Over {
        extends: extends?,
        about: about?,
        found: found?,
        env: env?,
        steps: steps?,
        artifacts: artifacts.map(|globs| whole.contains_key("artifacts").then_some(globs))?,
        timeout: timeout?,
    })
}

/// A key that holds tables is shown as it was written, as one.
fn shown_whole<T>(
    s: &mut Section<'_>,
    name: &'static str,
    value: Option<&Value>,
    read: impl FnOnce(&mut Section<'_>, &'static str) -> T,
) -> T {
    let noted = s.walk().settings_so_far();
    let out = read(s, name);
    s.walk().forget_settings_after(noted);
    if let Some(value) = value.and_then(as_toml) {
        let key = s.key(name);
        s.walk().note_setting(&key, value);
    }
    out
}

fn pipeline_name(text: &str) -> Result<(), Refusal> {
    let letters = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let fits = !text.is_empty() && text.len() <= bound::PIPELINE_NAME_BYTES_MAX;
    if letters && fits && text != AUTO { Ok(()) } else { Err(Refusal::usual()) }
}

/// A condition in the table `name`.
fn when(s: &mut Section<'_>, name: &'static str) -> Option<Option<When>> {
    let there = s.has(name);
    let mut w = s.table(name);
    let exists = list(&mut w, "exists", texts::glob);
    let missing = list(&mut w, "missing", texts::glob);
    let above = list(&mut w, "above", file_name);
    let dependency = list(&mut w, "dependency", plain);
    let env = list(&mut w, "env", plain);
    let test = w.text_if("test", texts::COMMAND, texts::command);
    w.end();
    let when = When {
        exists: exists?,
        missing: missing?,
        above: above?,
        dependency: dependency?,
        env: env?,
        test: test?,
    };
    Some(there.then_some(when))
}

fn file_name(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    if text.contains('/') || matches!(text, "." | "..") { Err(Refusal::usual()) } else { Ok(()) }
}

/// One text, or several of which one will do.
fn list(
    s: &mut Section<'_>,
    name: &'static str,
    check: impl Fn(&str) -> Result<(), Refusal>,
) -> Option<Vec<String>> {
    let read = |found: &Found| {
        let all = match found.text() {
            Some(text) => vec![text.to_owned()],
            None => super::found::list(found)?,
        };
        all.iter().try_for_each(|text| check(text))?;
        Ok(all)
    };
    s.optional(name, LIST, read, |all| all.clone().into()).map(Option::unwrap_or_default)
}

fn steps(s: &mut Section<'_>, name: &'static str) -> Option<Vec<StepOver>> {
    let steps = tables(s, name, "[[steps]]")?;
    // All are read, so that the mistakes of all are told.
    let read: Vec<Option<StepOver>> =
        steps.into_iter().map(|(key, table)| step(s.walk().section(key, table))).collect();
    read.into_iter().collect()
}

fn step(mut s: Section<'_>) -> Option<StepOver> {
    let name = s.text("name", texts::NAME, |text| texts::name(text, bound::STEP_NAME_BYTES_MAX));
    let command = s.text_if("command", texts::COMMAND, texts::command);
    let first_of = ways(&mut s, "first_of");
    let dir = s.text_if("dir", texts::DIR, texts::dir);
    let timeout = s.duration_if("timeout", &bound::BUILD_TIMEOUT);
    let retries = s.optional(
        "retries",
        &bound::STEP_RETRIES.allowed(),
        |f| count::<u16>(f, &bound::STEP_RETRIES),
        |n| i64::from(*n).into(),
    );
    let when = when(&mut s, "when");
    let before = s.text_if("before", "the name of a step", plain);
    let after = s.text_if("after", "the name of a step", plain);
    let skip = s.flag_if("skip");
    let key = s.key("name");
    if let (Some(Some(_)), Some(Some(_))) = (&before, &after) {
        s.walk().wrong(&key, Refusal::says("comes either `before` or `after` a step, not both"));
    }
    let mut ways = first_of?;
    match command? {
        Some(_) if !ways.is_empty() => {
            s.walk().wrong(&key, Refusal::says("has either `command` or `first_of`, not both"));
        }
        Some(command) => ways.push(Way { command, ..Way::default() }),
        None => {}
    }
    s.end();
    Some(StepOver {
        name: name?,
        ways,
        dir: dir?,
        timeout: timeout?,
        retries: retries?,
        when: when?,
        at: before?.map(At::Before).or(after?.map(At::After)),
        skip: skip?.unwrap_or(false),
    })
}

fn ways(s: &mut Section<'_>, name: &'static str) -> Option<Vec<Way>> {
    let ways = tables(s, name, "{ when = .., command = .. }")?;
    let read: Vec<Option<Way>> = ways
        .into_iter()
        .map(|(key, table)| {
            let mut w = s.walk().section(key, table);
            let when = when(&mut w, "when");
            let command = w.text("command", texts::COMMAND, texts::command);
            w.end();
            Some(Way { when: when?.unwrap_or_default(), command: command? })
        })
        .collect();
    read.into_iter().collect()
}

/// A list of tables, each with its key.
fn tables(s: &mut Section<'_>, name: &'static str, each: &str) -> Option<Vec<(String, Table)>> {
    let key = s.key(name);
    let elements = s.elements(name).filter(|elements| elements.len() <= bound::STEPS_MAX);
    let tables = elements.and_then(|elements| {
        let table = |(key, value): (String, Value)| match value.kind {
            ValueKind::Table(table) => Some((key, table)),
            ValueKind::Nil
            | ValueKind::Boolean(_)
            | ValueKind::I64(_)
            | ValueKind::I128(_)
            | ValueKind::U64(_)
            | ValueKind::U128(_)
            | ValueKind::Float(_)
            | ValueKind::String(_)
            | ValueKind::Array(_) => None,
        };
        elements.into_iter().map(table).collect::<Option<Vec<_>>>()
    });
    if tables.is_none() {
        let text = format!("allowed is a list of at most {} tables, each as {each}", bound::STEPS_MAX);
        s.walk().wrong(&key, Refusal::says(text));
    }
    tables
}

/// A value as it would be written.
pub(super) fn as_toml(value: &Value) -> Option<toml::Value> {
    match &value.kind {
        ValueKind::String(text) => Some(text.as_str().into()),
        ValueKind::Boolean(flag) => Some((*flag).into()),
        ValueKind::I64(n) => Some((*n).into()),
        ValueKind::Float(n) => Some((*n).into()),
        ValueKind::Array(items) => Some(toml::Value::Array(items.iter().filter_map(as_toml).collect())),
        ValueKind::Table(table) => {
            let entry = |(name, value): (&String, &Value)| Some((name.clone(), as_toml(value)?));
            Some(toml::Value::Table(table.iter().filter_map(entry).collect()))
        }
        ValueKind::Nil | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => None,
    }
}

/// A pipeline as a section of a configuration, complete.
pub fn written(name: &str, pipeline: &Pipeline) -> String {
    let mut table = toml::Table::new();
    table.insert("about".into(), pipeline.about.as_str().into());
    if let Some(timeout) = &pipeline.timeout {
        table.insert("timeout".into(), written_duration(timeout));
    }
    table.insert("artifacts".into(), pipeline.artifacts.clone().into());
    if let Some(found) = &pipeline.found {
        table.insert("found".into(), written_when(found));
    }
    let env = pipeline.env.iter().map(|(name, value)| (name.clone(), value.as_str().into()));
    table.insert("env".into(), toml::Value::Table(env.collect()));
    table.insert("steps".into(), toml::Value::Array(pipeline.steps.iter().map(written_step).collect()));
    let named = toml::Table::from_iter([(name.to_owned(), toml::Value::Table(table))]);
    let whole = toml::Table::from_iter([(SECTION.to_owned(), toml::Value::Table(named))]);
    toml::to_string_pretty(&whole).unwrap_or_default()
}

fn written_step(step: &PipelineStep) -> toml::Value {
    let PipelineStep { name, ways, dir, timeout, retries, when } = step;
    let mut table = toml::Table::new();
    table.insert("name".into(), name.as_str().into());
    let always = When::default();
    match ways.as_slice() {
        [Way { when, command }] if *when == always => {
            drop(table.insert("command".into(), command.as_str().into()))
        }
        ways => {
            let way = |Way { when, command }: &Way| {
                let mut way = toml::Table::new();
                if *when != always {
                    way.insert("when".into(), written_when(when));
                }
                way.insert("command".into(), command.as_str().into());
                toml::Value::Table(way)
            };
            table.insert("first_of".into(), toml::Value::Array(ways.iter().map(way).collect()));
        }
    }
    table.extend(dir.as_ref().map(|dir| ("dir".to_owned(), dir.as_str().into())));
    table.extend(timeout.as_ref().map(|timeout| ("timeout".to_owned(), written_duration(timeout))));
    table.extend(retries.map(|n| ("retries".to_owned(), i64::from(n).into())));
    table.extend((*when != always).then(|| ("when".to_owned(), written_when(when))));
    toml::Value::Table(table)
}

fn written_when(when: &When) -> toml::Value {
    let When { exists, missing, above, dependency, env, test } = when;
    let lists = [
        ("exists", exists),
        ("missing", missing),
        ("above", above),
        ("dependency", dependency),
        ("env", env),
    ];
    let lists = lists.into_iter().filter(|(_, all)| !all.is_empty());
    let lists = lists.map(|(name, all)| (name.to_owned(), all.clone().into()));
    let test = test.iter().map(|test| ("test".to_owned(), test.as_str().into()));
    toml::Value::Table(lists.chain(test).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Pipelines, String> {
        let layer = file::parse(text, Path::new("preheat.toml"), Role::File).map_err(|e| e.to_string())?;
        let (mut walk, table) = Walk::over(file::merge(vec![layer]).map_err(|e| e.to_string())?);
        let all = pipelines(&mut walk.section("", table));
        walk.end(all).map(|(all, _)| all).map_err(|e| e.to_string())
    }

    #[test]
    fn those_that_are_built_in_are_right_and_each_is_known_by_its_place_in_the_order() {
        descriptions().unwrap_or_else(|e| panic!("{e}"));
        let all = parsed("").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(all, built_in());
        let mut names: Vec<&str> = all.0.keys().map(String::as_str).collect();
        let mut order = crate::pipelines::BUILT_IN;
        names.sort_unstable();
        order.sort_unstable();
        assert_eq!(names, order);
        for (name, pipeline) in &all.0 {
            assert!(!pipeline.about.is_empty() && !pipeline.artifacts.is_empty(), "{name}");
            assert!(pipeline.steps.iter().all(|step| !step.ways.is_empty()), "{name}");
        }
        let install = &all.0["expo"].steps[0];
        assert_eq!(install.timeout.map(|t| t.as_secs()), Some(600));
        let eas: Vec<&str> = all.0["eas"].steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(eas, ["install", "build"]);
    }

    #[test]
    fn what_is_written_down_can_be_read_back_and_is_the_same() {
        for (name, pipeline) in built_in().0 {
            let text = written(&name, &pipeline);
            // Under another name, so that nothing is there that it could lean on.
            let text = text.replace(&format!("pipelines.{name}"), "pipelines.again");
            let all = parsed(&text).unwrap_or_else(|e| panic!("{name}: {e}\n{text}"));
            assert_eq!(all.0["again"], pipeline, "{text}");
        }
    }

    #[test]
    fn the_operators_words_are_laid_over_those_that_are_built_in() {
        let all = parsed(
            "[pipelines.expo]\ntimeout = \"2h\"\nenv = { XCODE_EXPORT_METHOD = \"release-testing\" }\n\
             steps = [{ name = \"install\", timeout = \"20m\" }, { name = \"lint\", command = \"npm run lint\", before = \"pods\" }]\n\
             [pipelines.acme]\nextends = \"shell\"\nfound = { exists = \"acme.toml\" }\n",
        );
        let all = all.unwrap_or_else(|e| panic!("{e}"));
        let expo = &all.0["expo"];
        assert_eq!(expo.timeout.map(|t| t.as_secs()), Some(7200));
        assert_eq!(expo.env["XCODE_EXPORT_METHOD"], "release-testing");
        assert_eq!(expo.env["XCODE_CONFIGURATION"], "Release", "the rest stays");
        let names: Vec<&str> = expo.steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(&names[..4], ["install", "prebuild", "lint", "pods"]);
        assert_eq!((expo.steps[0].ways.len(), expo.steps[0].timeout.map(|t| t.as_secs())), (6, Some(1200)));
        assert_eq!(all.0["acme"].steps, all.0["shell"].steps);
        assert_eq!(all.in_order().next().map(|(name, _)| name), Some("acme"));
    }

    #[test]
    fn every_mistake_in_a_pipeline_is_told_with_its_place() {
        let told = parsed(
            "[pipelines.Expo]\n[pipelines.auto]\nabout = \"\"\n[pipelines.xcode]\nfoud = 1\ntimeout = 3\n\
             steps = [{ command = \"x\" }, { name = \"a\", command = \"x\", first_of = [{ command = \"y\" }], before = \"b\", after = \"c\" }, 7]\n",
        )
        .expect_err("mistakes");
        for says in [
            "preheat.toml:pipelines.Expo: found \"Expo\", allowed is a name of a-z, 0-9 and `-`",
            "preheat.toml:pipelines.auto: found \"auto\", allowed",
            "preheat.toml:pipelines.auto.about: found \"\", allowed is a text of one line",
            "preheat.toml:pipelines.xcode.foud: unknown key, allowed are extends, about, found",
            "preheat.toml:pipelines.xcode.timeout: found 3",
            "preheat.toml:pipelines.xcode.steps: allowed is a list",
        ] {
            assert!(told.contains(says), "{says}\n{told}");
        }
        let told = parsed(
            "[pipelines.xcode]\nsteps = [{ command = \"x\" }, { name = \"a\", command = \"x\", first_of = [{ command = \"y\" }], before = \"b\", after = \"c\" }]\n\
             [pipelines.flutter]\nsteps = [{ name = \"new\" }]\n",
        )
        .expect_err("mistakes");
        for says in ["steps[0].name: is missing", "not both", "either `command` or `first_of`"] {
            assert!(told.contains(says), "{says}\n{told}");
        }
        let told = parsed("[pipelines.flutter]\nsteps = [{ name = \"new\" }]\n")
            .expect_err("a step without a command");
        assert!(
            told.starts_with("preheat.toml:pipelines.flutter.steps[0]: step `new` is new, so it needs"),
            "{told}"
        );
    }
}
