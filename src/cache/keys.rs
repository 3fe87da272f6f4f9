//! From the keys that a project wrote to keys, when its source is there. Blocking code.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::Cache;
use super::digest::digests;
use super::template::{BadTemplate, Template, Values, matcher};
use crate::config::limits;
use crate::config::mistake::{Mistake, Mistakes};

/// What the values of a build's keys are, but for its files.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    pub pool: &'a str,
    pub image: &'a str,
    pub env: &'a BTreeMap<String, String>,
    /// Where the caches are written, for mistakes: a file, or the request.
    pub place: &'a str,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum Unsettled {
    /// The user's.
    #[error(transparent)]
    Wrong(#[from] Mistakes),
    /// This host's.
    #[error("the source cannot be read for its caches' keys")]
    Host(#[from] io::Error),
}

/// Puts the values into the keys of `caches`. `source` is read once, and only where a key hashes something of it.
///
/// # Errors
/// Every mistake, or that the source cannot be read.
pub fn settle(caches: &mut [Cache], of: Of<'_>, source: &Path) -> Result<(), Unsettled> {
    let mut mistakes = Vec::new();
    let Of { pool, image, env, place } = of;
    let texts = caches.iter().flat_map(|cache| std::iter::once(&cache.key).chain(&cache.restore_keys));
    // What is no template was refused before, and is told again below.
    let templates: Vec<Template> = texts.filter_map(|text| Template::parse(text).ok()).collect();
    let globs: Vec<&str> = templates.iter().flat_map(Template::globs).collect();
    if globs.len() > limits::CACHE_GLOBS_MAX {
        let text =
            format!("found {} globs in all keys, allowed are {}", globs.len(), limits::CACHE_GLOBS_MAX);
        return Err(Mistakes(vec![mistake(place, "caches", text)]).into());
    }
    let distinct: BTreeSet<&str> = globs.into_iter().collect();
    let matchers: Vec<_> = distinct.into_iter().filter_map(|glob| matcher(glob).ok()).collect();
    let digests = digests(source, &matchers)?;
    let values = Values { pool, image, arch: std::env::consts::ARCH, env, digests: &digests };
    let mut keys = BTreeSet::new();
    for (n, cache) in caches.iter_mut().enumerate() {
        let Cache { key, restore_keys, paths: _ } = cache;
        let at = |field: &str| format!("caches[{n}].{field}");
        put_in(key, &values, place, &at("key"), &mut mistakes);
        for (m, prefix) in restore_keys.iter_mut().enumerate() {
            put_in(prefix, &values, place, &at(&format!("restore_keys[{m}]")), &mut mistakes);
        }
        if !keys.insert(key.clone()) {
            let text = format!("comes to `{key}`, as an earlier cache's does; keys must differ");
            mistakes.push(mistake(place, &at("key"), text));
        }
    }
    if mistakes.is_empty() { Ok(()) } else { Err(Mistakes(mistakes).into()) }
}

fn put_in(text: &mut String, values: &Values<'_>, place: &str, key: &str, mistakes: &mut Vec<Mistake>) {
    let template = match Template::parse(text) {
        Ok(template) => template,
        Err(bad) => return mistakes.push(unreadable(place, key, &bad)),
    };
    match template.render(values) {
        Err(none) => mistakes.push(mistake(place, key, none.to_string()).hint(none.hint())),
        Ok(value) => match fits(&value) {
            Ok(()) => *text = value,
            Err(why) => mistakes.push(mistake(place, key, why)),
        },
    }
}

fn unreadable(place: &str, key: &str, bad: &BadTemplate) -> Mistake {
    mistake(place, key, bad.to_string()).hint(bad.hint())
}

fn fits(key: &str) -> Result<(), String> {
    let max = limits::CACHE_KEY_BYTES_MAX;
    if key.trim().is_empty() {
        return Err("comes to nothing".into());
    }
    if key.len() > max {
        return Err(format!("comes to {} bytes, allowed are {max}", key.len()));
    }
    if key.chars().any(char::is_control) {
        return Err("comes to a text with a control character in it".into());
    }
    Ok(())
}

fn mistake(place: &str, key: &str, text: impl Into<String>) -> Mistake {
    Mistake { key: key.to_owned(), ..Mistake::of(place, text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(key: &str, restore_keys: &[&str]) -> Cache {
        let restore_keys = restore_keys.iter().map(|key| (*key).to_owned()).collect();
        Cache { key: key.into(), restore_keys, paths: vec!["Pods".into()] }
    }

    fn settled(caches: &[Cache]) -> Result<Vec<Cache>, String> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("source.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&path).expect("made"));
        let mut head = tar::Header::new_gnu();
        head.set_size(3);
        tar.append_data(&mut head, "Podfile.lock", &b"abc"[..]).expect("written");
        tar.finish().expect("written");
        let env = BTreeMap::from([("LINES".to_owned(), "a\nb".to_owned())]);
        let of = Of { pool: "mac", image: "macos", env: &env, place: ".preheat.toml" };
        let mut caches = caches.to_vec();
        settle(&mut caches, of, &path).map(|()| caches).map_err(|e| e.to_string())
    }

    #[test]
    fn keys_and_their_beginnings_get_their_values() {
        let caches = settled(&[cache("pods-{{ pool }}-{{ hash 'Podfile.lock' }}", &["pods-{{ pool }}-"])]);
        let caches = caches.expect("no mistake");
        assert_eq!(caches[0].restore_keys, ["pods-mac-"]);
        let digest = caches[0].key.strip_prefix("pods-mac-").expect("its beginning");
        assert!(digest.len() == 32 && digest.bytes().all(|b| b.is_ascii_hexdigit()), "{digest}");
    }

    #[test]
    fn every_mistake_is_told_with_its_place_and_what_to_do() {
        let text = settled(&[
            cache("{{ hash 'Gemfile.lock' }}", &["{{ env 'NONE' }}"]),
            cache("{{ env 'LINES' }}", &[]),
            cache("same", &[]),
            cache("same", &[]),
        ])
        .expect_err("four mistakes");
        for says in [
            ".preheat.toml:caches[0].key: `Gemfile.lock` matches no file of the source",
            "hint: globs are relative to the source's root",
            ".preheat.toml:caches[0].restore_keys[0]: `env` has no `NONE`",
            ".preheat.toml:caches[1].key: comes to a text with a control character",
            ".preheat.toml:caches[3].key: comes to `same`",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn globs_without_number_are_refused_before_the_source_is_read() {
        let text = format!("k{}", "{{ hash 'a' }}".repeat(33));
        let told = settled(&[cache(&text, &[]), cache(&text, &[])]).expect_err("too many");
        assert_eq!(told, ".preheat.toml:caches: found 66 globs in all keys, allowed are 64");
    }

    #[test]
    fn a_source_is_not_read_when_no_key_asks_for_it() {
        let env = BTreeMap::new();
        let of = Of { pool: "a", image: "b", env: &env, place: "request" };
        let mut caches = [cache("{{ pool }}", &[])];
        settle(&mut caches, of, Path::new("/nonexistent")).expect("nothing is read");
        assert_eq!(caches[0].key, "a");
    }
}
