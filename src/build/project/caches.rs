//! The `[[caches]]` of a project or a request: what may be written, and every mistake in it.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

use crate::api::wire::CacheSpec;
use crate::cache::Cache;
use crate::cache::template::Template;
use crate::config::found::{Refusal, plain, shown_text};
use crate::config::limits as bound;
use crate::config::mistake::{Mistake, Origin};
use crate::config::rules;
use crate::config::walk::{Section, Walk};
use crate::guest::WORK_DIR;

const KEY: &str = "a text with values in it, as pods-{{ hash 'Podfile.lock' }}";
const PATH: &str =
    "a folder or file, relative to the source or below the user's home with `~/`, without `..`";

/// What keeps a VM reachable, and is no build's to save.
const OURS: [&str; 2] = [".preheat", ".ssh"];

/// Signs that people who take a path for a glob write.
const GLOB_SIGNS: [char; 4] = ['*', '?', '[', '{'];

/// Reads the section.
pub(super) fn read(s: &mut Section<'_>) -> Option<Vec<CacheSpec>> {
    let Some(elements) = s.elements("caches") else {
        let refusal = Refusal::says("allowed is a list of tables, each as [[caches]]");
        s.walk().wrong("caches", refusal.hint("as [[caches]], with `key` and `paths` below it"));
        return None;
    };
    if let Err(refusal) = few(elements.len()) {
        s.walk().wrong("caches", refusal);
        return None;
    }
    let mut places = Places::default();
    // All are read, so that the mistakes of all are told; one that is wrong makes the whole wrong.
    let read: Vec<Option<CacheSpec>> =
        elements.into_iter().map(|(key, value)| one(s.walk(), &key, value, &mut places)).collect();
    read.into_iter().collect()
}

fn few(caches: usize) -> Result<(), Refusal> {
    let max = bound::CACHES_MAX;
    if caches > max {
        Err(Refusal::says(format!("found {caches} caches, allowed are {max}")))
    } else {
        Ok(())
    }
}

fn one(walk: &mut Walk, key: &str, value: Value, places: &mut Places) -> Option<CacheSpec> {
    let ValueKind::Table(table) = value.kind else {
        walk.wrong(key, Refusal::says("allowed is a table with `key` and `paths`, as [[caches]]"));
        return None;
    };
    let mut s = walk.section(key, table);
    let template = s.text("key", KEY, template);
    let restore_keys = s.list("restore_keys", KEY, self::template);
    let paths = s.list("paths", PATH, |text| path(text).map(drop));
    s.end();
    let (cache_key, restore_keys, paths) = (template?, restore_keys?, paths?);
    let spec = CacheSpec { key: cache_key, restore_keys, paths };
    let mut right = true;
    for (field, refusal) in counts(&spec).into_iter().chain(places.add(key, &spec.paths)) {
        walk.wrong(&format!("{key}.{field}"), refusal);
        right = false;
    }
    right.then_some(spec)
}

/// The mistakes of a request's caches.
pub(super) fn check(caches: &[CacheSpec]) -> Vec<Mistake> {
    let mut found = Vec::new();
    let mut note = |key: String, text: &str, allowed: &str, refusal: Refusal| {
        found.push(refusal.mistake(&Origin::Request, &key, text, allowed));
    };
    if let Err(refusal) = few(caches.len()) {
        note("caches".into(), "", "", refusal);
    }
    let mut places = Places::default();
    for (n, cache) in caches.iter().enumerate() {
        let at = |field: &str| format!("caches[{n}].{field}");
        if let Err(refusal) = template(&cache.key) {
            note(at("key"), &cache.key, KEY, refusal);
        }
        for (m, text) in cache.restore_keys.iter().enumerate() {
            if let Err(refusal) = template(text) {
                note(at(&format!("restore_keys[{m}]")), text, KEY, refusal);
            }
        }
        for (m, text) in cache.paths.iter().enumerate() {
            if let Err(refusal) = path(text) {
                note(at(&format!("paths[{m}]")), text, PATH, refusal);
            }
        }
        for (field, refusal) in counts(cache).into_iter().chain(places.add(&at("paths"), &cache.paths)) {
            note(at(&field), "", "", refusal);
        }
    }
    found
}

/// As a build keeps them: the keys still to be settled, the paths plain.
pub(super) fn complete(caches: Vec<CacheSpec>) -> Vec<Cache> {
    let plain = |paths: Vec<String>| {
        let mut paths: Vec<String> = paths.iter().filter_map(|text| path(text).ok()).collect();
        // In one order, whatever the project's: the same paths are the same cache.
        paths.sort();
        paths
    };
    let complete = |CacheSpec { key, restore_keys, paths }| Cache { key, restore_keys, paths: plain(paths) };
    caches.into_iter().map(complete).collect()
}

fn template(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    match Template::parse(text) {
        Ok(_) => Ok(()),
        Err(bad) => Err(Refusal::says(format!("found {}: {bad}", shown_text(text))).hint(bad.hint())),
    }
}

/// A path without what says nothing: `./`, a slash at its end.
fn path(text: &str) -> Result<String, Refusal> {
    plain(text)?;
    let says = |why: &str| Refusal::says(format!("found {}, {why}", shown_text(text)));
    if text.len() > bound::CACHE_PATH_BYTES_MAX {
        return Err(says(&format!("which is longer than {} bytes", bound::CACHE_PATH_BYTES_MAX)));
    }
    let (home, rest) = match text.strip_prefix('~') {
        None => ("", text),
        Some(rest) if rest.is_empty() || rest.starts_with('/') => ("~/", rest.trim_start_matches('/')),
        Some(_) => return Err(says("and `~` stands for the home of the guest's own user only")),
    };
    if !rules::stays_below(rest) {
        return Err(Refusal::usual());
    }
    if text.contains(GLOB_SIGNS) {
        return Err(says("and a path is no glob").hint("name the folder that holds them all"));
    }
    let parts: Vec<&str> = rest.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let whole = format!("{home}{}", parts.join("/"));
    match (home, parts.as_slice()) {
        ("", []) | ("~/", [] | [WORK_DIR]) => {
            Err(says("which is all of the folder, the source among it").hint("name a folder in it"))
        }
        ("", [first, ..]) if first.starts_with('~') => {
            Err(says("which would be a folder named `~` in the source"))
        }
        ("~/", [first, ..]) if OURS.contains(first) => {
            Err(says("in which is what keeps the VM reachable").hint("name another folder"))
        }
        _ => plain(&whole).map(|()| whole),
    }
}

/// Where a path is, seen from the user's home.
pub(in crate::build) fn from_home(path: &str) -> String {
    path.strip_prefix("~/").map_or_else(|| format!("{WORK_DIR}/{path}"), str::to_owned)
}

fn counts(cache: &CacheSpec) -> Vec<(String, Refusal)> {
    let mut found = Vec::new();
    let (paths, keys) = (cache.paths.len(), cache.restore_keys.len());
    if paths == 0 {
        found.push((
            "paths".to_owned(),
            Refusal::says("is empty or missing, and a cache has one path at least"),
        ));
    }
    if paths > bound::CACHE_PATHS_MAX {
        let text = format!("found {paths} paths, allowed are {}", bound::CACHE_PATHS_MAX);
        found.push(("paths".to_owned(), Refusal::says(text)));
    }
    if keys > bound::RESTORE_KEYS_MAX {
        let text = format!("found {keys} keys, allowed are {}", bound::RESTORE_KEYS_MAX);
        found.push(("restore_keys".to_owned(), Refusal::says(text)));
    }
    found
}

/// The paths of a build's caches so far: none may be in another, or two caches would write the same files.
#[derive(Debug, Default)]
struct Places(BTreeMap<String, String>);

impl Places {
    /// Adds the paths of the cache at `key`.
    fn add(&mut self, key: &str, paths: &[String]) -> Vec<(String, Refusal)> {
        let mut found = Vec::new();
        let paths = paths.iter().enumerate().filter_map(|(n, text)| Some((n, text, path(text).ok()?)));
        for (n, text, plain) in paths {
            let place = from_home(&plain);
            let inside =
                |a: &str, b: &str| a == b || a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
            let other = self.0.iter().find(|(other, _)| inside(&place, other) || inside(other, &place));
            if let Some((_, other)) = other {
                let text = format!("found {}, and {other} holds it, or is in it", shown_text(text));
                found.push((format!("paths[{n}]"), Refusal::says(text).hint("name one of the two")));
            } else {
                self.0.insert(place, format!("{} of {key}", shown_text(text)));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ProjectFile;
    use super::*;

    fn mistakes(text: &str) -> String {
        ProjectFile::parse(text).map(|file| format!("{file:?}")).expect_err("a mistake").to_string()
    }

    #[test]
    fn caches_are_read_with_their_paths_made_plain() {
        let file = ProjectFile::parse(
            "steps = [\"make\"]\n[[caches]]\nkey = \"pods-{{ hash 'Podfile.lock' }}\"\nrestore_keys = [\"pods-\"]\n\
             paths = [\"~/.cocoapods/\", \"./Pods\"]\n[[caches]]\nkey = \"gems\"\npaths = [\"~//vendor/./gems\"]\n",
        )
        .expect("no mistake");
        let caches = complete(file.caches);
        assert_eq!(caches[0].paths, ["Pods", "~/.cocoapods"]);
        assert_eq!(caches[1].paths, ["~/vendor/gems"]);
        assert_eq!(caches[0].restore_keys, ["pods-"]);
    }

    #[test]
    fn every_mistake_in_a_cache_has_its_line_and_says_what_to_do() {
        let text = mistakes(
            "[[caches]]\nkey = \"{{ hash Podfile.lock }}\"\npaths = [\"/etc\", \"../x\", \"\"]\n\
             [[caches]]\nkey = \"\"\nrestore_keys = [\"{{\"]\npaths = []\nkeys = 1\n\
             [[caches]]\npaths = [\"~root/x\", \".\", \"~\", \"~/work\", \"~/.ssh/id\", \"out/*\"]\n",
        );
        for says in [
            ".preheat.toml:caches[0].key: found \"{{ hash Podfile.lock }}\": `{{ hash Podfile.lock }}` is no value (line 2)",
            "hint: there is {{ hash 'GLOB' }}",
            "caches[0].paths[0]: found \"/etc\", allowed is a folder or file",
            "caches[0].paths[1]: found \"../x\"",
            "caches[0].paths[2]: found \"\"",
            "caches[1].key: found \"\"",
            "caches[1].restore_keys[0]: found \"{{\": a `{{` in it has no `}}` (line 6)",
            "caches[1].keys: unknown key, allowed are key, restore_keys, paths",
            "caches[2].key: is missing",
            "caches[2].paths[0]: found \"~root/x\", and `~` stands for",
            "caches[2].paths[1]: found \".\", which is all of the folder",
            "caches[2].paths[2]: found \"~\", which is all",
            "caches[2].paths[3]: found \"~/work\", which is all",
            "caches[2].paths[4]: found \"~/.ssh/id\", in which is what keeps the VM reachable",
            "caches[2].paths[5]: found \"out/*\", and a path is no glob",
        ] {
            assert!(text.contains(says), "{says}\n{text}");
        }
        assert!(mistakes("[[caches]]\nkey = \"a\"\n").contains("a cache has one path at least"));
        assert!(mistakes("caches = [\"Pods\"]\n").contains("allowed is a table with `key` and `paths`"));
    }

    #[test]
    fn two_caches_never_write_the_same_files() {
        for (one, other) in [("a", "a"), ("a/b", "a"), ("a", "./a/b/"), ("~/work/a", "a/b")] {
            let text = format!(
                "[[caches]]\nkey = \"1\"\npaths = [\"{one}\"]\n[[caches]]\nkey = \"2\"\npaths = [\"{other}\"]\n"
            );
            assert!(mistakes(&text).contains("holds it, or is in it"), "{one} {other}");
        }
        ProjectFile::parse("[[caches]]\nkey = \"1\"\npaths = [\"a\", \"ab\", \"~/a\"]\n").expect("apart");
    }

    #[test]
    fn the_mistakes_of_a_request_are_the_same_ones() {
        let cache = |key: &str, paths: &[&str]| CacheSpec {
            key: key.into(),
            restore_keys: vec!["x{{".into()],
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        };
        let found = check(&[cache("{{ os }}", &["/etc", "a", "a/b"]), cache("b", &[])]);
        let text: Vec<String> = found.iter().map(Mistake::line_text).collect();
        let text = text.join("\n");
        for says in [
            "request:caches[0].key: found \"{{ os }}\": `{{ os }}` is no value",
            "request:caches[0].restore_keys[0]",
            "request:caches[0].paths[0]: found \"/etc\"",
            "request:caches[0].paths[2]: found \"a/b\"",
            "request:caches[1].paths: is empty",
        ] {
            assert!(text.contains(says), "{says}\n{text}");
        }
        let many = vec![cache("a", &["a"]); bound::CACHES_MAX + 1];
        assert!(check(&many).iter().any(|m| m.text.contains("allowed are 16")));
    }

    proptest! {
        #[test]
        fn a_path_that_is_taken_never_leaves_the_home_and_is_read_as_itself(text in "[a.~/\\\\ ]{0,12}") {
            if let Ok(plain) = path(&text) {
                prop_assert_eq!(path(&plain).ok(), Some(plain.clone()));
                let place = from_home(&plain);
                let parts = place.split('/').all(|part| !matches!(part, "" | "." | ".."));
                prop_assert!(parts && !place.starts_with('/'), "{} {}", text, place);
            }
        }
    }
}
