//! Which pipeline a source is built by, and what its steps come to for it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::files::Files;
use super::{PipelineStep, Pipelines, Way, When};

/// Folders that are named to whoever forgot to name one.
const ELSEWHERE_MAX: usize = 5;

/// What conditions are held against.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub files: &'a Files,
    /// The build's folder, without a slash at its end; empty is the source's root.
    pub dir: &'a str,
    /// The build's variables, complete.
    pub env: &'a BTreeMap<String, String>,
    /// Names of variables whose values nobody sees.
    pub secrets: &'a [String],
}

/// A step of one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub name: String,
    pub command: String,
    /// From the source's root.
    pub dir: String,
    pub timeout: Option<Duration>,
    pub retries: u16,
}

/// No pipeline fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFound {
    /// What was looked for, each with its pipeline.
    pub looked_for: Vec<String>,
    /// Folders in which one fits, and which.
    pub elsewhere: Vec<(String, String)>,
}

/// Why something holds: a few words, and the folder that was found above.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Because {
    words: Vec<String>,
    folder: Option<String>,
}

/// The first pipeline that fits, and why.
///
/// # Errors
/// What was looked for, when none does.
pub fn find<'p>(pipelines: &'p Pipelines, files: &Files, dir: &str) -> Result<(&'p str, String), NotFound> {
    if let Some(found) = fits(pipelines, files, dir) {
        return Ok(found);
    }
    let looked_for = pipelines
        .in_order()
        .filter_map(|(name, pipeline)| Some(format!("`{name}`: {}", pipeline.found.as_ref()?.said())));
    let elsewhere = files.folders().into_iter().filter(|folder| *folder != dir).filter_map(|folder| {
        fits(pipelines, files, folder).map(|(name, _)| (folder.to_owned(), name.to_owned()))
    });
    Err(NotFound { looked_for: looked_for.collect(), elsewhere: elsewhere.take(ELSEWHERE_MAX).collect() })
}

fn fits<'p>(pipelines: &'p Pipelines, files: &Files, dir: &str) -> Option<(&'p str, String)> {
    pipelines.in_order().find_map(|(name, pipeline)| {
        let (found, env) = (pipeline.found.as_ref()?, &pipeline.env);
        let because = holds(found, &Source { files, dir, env, secrets: &[] })?;
        Some((name, because.words.join(", ")))
    })
}

/// The steps of a pipeline for a source, and what is to be said of those that are left out or had to be chosen.
pub fn settle(steps: &[PipelineStep], source: &Source<'_>) -> (Vec<Settled>, Vec<String>) {
    let (mut settled, mut said) = (Vec::new(), Vec::new());
    for step in steps {
        let name = &step.name;
        let Some(own) = holds(&step.when, source) else {
            said.push(format!("step {name} is left out: it is for {}", step.when.said()));
            continue;
        };
        let Some((way, because)) = choose(&step.ways, source) else {
            said.push(format!("step {name} is left out: none of its commands is for this source"));
            continue;
        };
        if step.ways.len() > 1 {
            let why = if because.words.is_empty() {
                "nothing else fits".to_owned()
            } else {
                because.words.join(", ")
            };
            said.push(format!("step {name}: {} ({why})", first_line(&way.command)));
        }
        let folder = because.folder.or(own.folder).unwrap_or_else(|| source.dir.to_owned());
        let tests = [&step.when.test, &way.when.test].into_iter().flatten();
        settled.push(Settled {
            name: name.clone(),
            command: tests.fold(way.command.clone(), |command, test| tested(test, &command)),
            dir: join(&folder, step.dir.as_deref().unwrap_or_default()),
            timeout: step.timeout,
            retries: step.retries.unwrap_or(0),
        });
    }
    (settled, said)
}

/// The way that looks above and finds the nearest; else the first that holds.
fn choose<'w>(ways: &'w [Way], source: &Source<'_>) -> Option<(&'w Way, Because)> {
    let holding: Vec<(&Way, Because)> =
        ways.iter().filter_map(|way| Some((way, holds(&way.when, source)?))).collect();
    let depth = |because: &Because| because.folder.as_ref().map(|folder| folder.len());
    let nearest = holding.iter().filter_map(|(_, because)| depth(because)).max();
    holding.into_iter().find(|(_, because)| depth(because) == nearest)
}

/// Whether a condition holds, as far as this host can tell, and why.
fn holds(when: &When, source: &Source<'_>) -> Option<Because> {
    let Source { files, dir, .. } = source;
    let mut because = Because::default();
    if !when.exists.is_empty() {
        because.words.push(format!("there is {}", files.any(dir, &when.exists)?));
    }
    if files.any(dir, &when.missing).is_some() {
        return None;
    }
    if !when.above.is_empty() {
        let (folder, file) = files.above(dir, &when.above)?;
        because.words.push(format!("there is {}", join(&folder, file)));
        because.folder = Some(folder);
    }
    if !when.dependency.is_empty() {
        let name = files.depends(dir, &when.dependency)?;
        because.words.push(format!("package.json depends on {name}"));
    }
    if !when.env.is_empty() {
        because.words.push(when.env.iter().find(|wanted| is_set(wanted, source))?.clone());
    }
    Some(because)
}

fn is_set(wanted: &str, source: &Source<'_>) -> bool {
    match wanted.split_once('=') {
        Some((name, value)) => source.env.get(name).is_some_and(|found| found == value),
        None => {
            let open = source.env.get(wanted).is_some_and(|value| !value.is_empty());
            open || source.secrets.iter().any(|name| name == wanted)
        }
    }
}

/// A command that is only run where a test succeeds in the guest.
fn tested(test: &str, command: &str) -> String {
    let quoted = test.replace('\'', "'\\''");
    format!(
        "if ! {{ {test}\n}}; then printf 'preheat: left out, for this is not so: %s\\n' '{quoted}'; exit 0; fi\n{command}"
    )
}

fn join(folder: &str, rest: &str) -> String {
    match (folder, rest.trim_matches('/')) {
        (folder, "" | ".") => folder.to_owned(),
        ("", rest) => rest.to_owned(),
        (folder, rest) => format!("{folder}/{rest}"),
    }
}

fn first_line(command: &str) -> &str {
    command.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

impl When {
    /// In words: what it is for.
    pub fn said(&self) -> String {
        let one_of = |all: &[String]| all.join(" or ");
        let parts = [
            (!self.exists.is_empty()).then(|| format!("a source with {}", one_of(&self.exists))),
            (!self.missing.is_empty()).then(|| format!("a source without {}", one_of(&self.missing))),
            (!self.above.is_empty()).then(|| format!("{} there or above", one_of(&self.above))),
            (!self.dependency.is_empty())
                .then(|| format!("a package.json that depends on {}", one_of(&self.dependency))),
            (!self.env.is_empty()).then(|| one_of(&self.env)),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", and ")
    }
}

impl NotFound {
    /// What was looked for, in one line.
    pub fn said(&self) -> String {
        format!("no pipeline fits the source's files; looked for {}", self.looked_for.join("; "))
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        let own = "name one with --pipeline or in .preheat.toml, or give steps of your own";
        let there: Vec<String> =
            self.elsewhere.iter().map(|(dir, name)| format!("`{dir}` looks like `{name}`")).collect();
        if there.is_empty() {
            return own.into();
        }
        format!("{}: --dir, or dir = \"..\" in .preheat.toml; or {own}", there.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pipelines::built_in;

    fn files(names: &[&str], manifests: &[(&str, &str)]) -> Files {
        let texts = manifests.iter().map(|(dir, dependency)| {
            let name = join(dir, "package.json");
            (name, format!(r#"{{"dependencies":{{"{dependency}":"1"}}}}"#))
        });
        let texts: BTreeMap<_, _> = texts.collect();
        let names = names.iter().map(|name| (*name).to_owned()).chain(texts.keys().cloned());
        Files::new(names.collect::<Vec<_>>(), &texts)
    }

    fn found(files: &Files) -> String {
        let all = built_in();
        find(&all, files, "").map_or_else(|none| none.hint(), |(name, why)| format!("{name}: {why}"))
    }

    #[test]
    fn the_pipeline_is_found_from_the_files_and_what_says_more_comes_first() {
        let project = "ios/App.xcodeproj/project.pbxproj";
        for (names, dependency, want) in [
            (&["app.json", project][..], "expo", "expo: package.json depends on expo"),
            (
                &[project][..],
                "react-native",
                "react-native: there is ios/App.xcodeproj/project.pbxproj, package.json",
            ),
            (&["pubspec.yaml", project][..], "", "flutter: there is pubspec.yaml"),
            (
                &["App.xcodeproj/project.pbxproj", "build.sh"][..],
                "",
                "xcode: there is App.xcodeproj/project.pbxproj",
            ),
            (&["App.xcworkspace/contents.xcworkspacedata"][..], "", "xcode: "),
            (&["build.sh"][..], "react", "shell: there is build.sh"),
            (
                &["Makefile", "a/b/c/d/build.sh", "node_modules/x/build.sh"][..],
                "",
                "name one with --pipeline",
            ),
        ] {
            let manifests = if dependency.is_empty() { vec![] } else { vec![("", dependency)] };
            let told = found(&files(names, &manifests));
            assert!(told.starts_with(want), "{names:?}: {told}");
        }
    }

    #[test]
    fn who_has_no_project_in_the_root_is_told_what_was_looked_for_and_where_one_is() {
        let source = files(&["README.md"], &[("apps/mobile", "expo"), ("node_modules/x", "expo")]);
        let none = find(&built_in(), &source, "").expect_err("nothing in the root");
        assert!(none.said().contains("`expo`: a package.json that depends on expo; "), "{}", none.said());
        assert!(none.said().contains("`flutter`: a source with pubspec.yaml"), "{}", none.said());
        assert_eq!(none.elsewhere, [("apps/mobile".to_owned(), "expo".to_owned())]);
        assert!(none.hint().starts_with("`apps/mobile` looks like `expo`: --dir"), "{}", none.hint());
        let all = built_in();
        assert_eq!(find(&all, &source, "apps/mobile").map(|(name, _)| name), Ok("expo"));
    }

    fn settled(source: &Files, dir: &str, env: &[(&str, &str)]) -> (Vec<Settled>, Vec<String>) {
        let all = built_in();
        let expo = &all.0["expo"];
        let mut whole = expo.env.clone();
        whole.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        settle(&expo.steps, &Source { files: source, dir, env: &whole, secrets: &[] })
    }

    #[test]
    fn dependencies_are_installed_by_the_nearest_lock_file_and_in_its_folder() {
        let install = |names: &[&str], dir: &str| {
            let (steps, said) = settled(&files(names, &[]), dir, &[]);
            let step = steps.into_iter().next().expect("a step");
            assert_eq!(step.name, "install");
            (step.command, step.dir, said.first().cloned().unwrap_or_default())
        };
        let (command, dir, said) = install(&["a/package-lock.json", "yarn.lock", "a/b/x"], "a/b");
        assert!(command.starts_with("npm ci"), "{command}");
        assert_eq!((dir.as_str(), said.contains("there is a/package-lock.json")), ("a", true), "{said}");
        for (lock, command) in [
            ("package-lock.json", "npm ci"),
            ("npm-shrinkwrap.json", "npm ci"),
            ("yarn.lock", "yarn install --frozen-lockfile"),
            ("pnpm-lock.yaml", "pnpm install --frozen-lockfile"),
            ("bun.lock", "bun install --frozen-lockfile"),
        ] {
            assert!(install(&[lock], "").0.contains(command), "{lock}");
        }
        assert!(install(&["yarn.lock", ".yarnrc.yml"], "").0.contains("yarn install --immutable"));
        let (command, dir, said) = install(&["a/x"], "a");
        assert!(
            command.contains("npm install") && dir == "a" && said.contains("nothing else fits"),
            "{said}"
        );
    }

    #[test]
    fn steps_are_for_a_platform_and_what_only_the_guest_can_tell_is_asked_there() {
        let source = files(&["package-lock.json"], &[]);
        let names = |env: &[(&str, &str)]| {
            let (steps, said) = settled(&source, "", env);
            (steps.into_iter().map(|step| step.name).collect::<Vec<_>>(), said)
        };
        let (ios, said) = names(&[]);
        assert_eq!(ios, ["install", "prebuild", "pods", "archive", "export", "collect"]);
        assert!(said.contains(&"step gradle is left out: it is for PLATFORM=android".to_owned()), "{said:?}");
        assert_eq!(names(&[("PLATFORM", "android")]).0, ["install", "prebuild", "gradle", "collect-android"]);
        let (steps, _) = settled(&source, "", &[]);
        let pods = &steps[2].command;
        assert!(pods.starts_with("if ! { [ -e Podfile ] || [ -e ios/Podfile ]\n}; then printf"), "{pods}");
        assert!(pods.contains("pod install"));
    }

    #[test]
    fn a_condition_holds_when_all_of_it_does() {
        let source = files(&["a", "b"], &[]);
        let env = BTreeMap::from([("SET".to_owned(), "1".to_owned()), ("EMPTY".to_owned(), String::new())]);
        let secrets = ["KEY".to_owned()];
        let holds =
            |when: &When| holds(when, &Source { files: &source, dir: "", env: &env, secrets: &secrets });
        let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let exists = |all: &[&str]| When { exists: texts(all), ..When::default() };
        assert!(holds(&When::default()).is_some() && holds(&exists(&["c", "b"])).is_some());
        assert!(holds(&exists(&["c"])).is_none());
        assert!(holds(&When { missing: texts(&["b"]), ..exists(&["a"]) }).is_none());
        for (wanted, is) in
            [("SET", true), ("SET=1", true), ("SET=2", false), ("EMPTY", false), ("KEY", true), ("NO", false)]
        {
            assert_eq!(holds(&When { env: texts(&[wanted]), ..When::default() }).is_some(), is, "{wanted}");
        }
    }
}
