//! `config/default.toml` is the documentation: it has every key, and says of each what the program does.

use std::collections::{BTreeMap, BTreeSet};

use super::{Installation, LINUX};
use crate::config::load::DEFAULT;
use crate::config::show::show;

/// The lines of the documentation that would be active without their `#`: the examples.
fn with_examples() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(example) if !example.starts_with(' ') && !example.is_empty() => example.to_owned(),
        Some(_) | None => line.to_owned(),
    };
    DEFAULT.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A key without the names that an operator chooses.
fn general(key: &str) -> String {
    let mut parts: Vec<&str> = key.split('.').collect();
    // Tables whose keys an operator chooses are one key.
    if parts.first() == Some(&"pipelines") {
        let key = parts[..3].join(".");
        return key.split_once('[').map_or(key.clone(), |(list, _)| list.to_owned());
    }
    if parts.first() == Some(&"pool") {
        parts.drain(..2);
        parts.insert(0, "pool_defaults");
    }
    if parts.get(1) == Some(&"provides") {
        parts.truncate(2);
    }
    let key = parts.join(".");
    key.split_once('[')
        .map_or(key.clone(), |(list, rest)| format!("{list}{}", rest.trim_start_matches(|c| c != ']')))
}

fn keys_of(table: &toml::Table, at: &str, keys: &mut BTreeSet<String>) {
    for (name, value) in table {
        let key = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        let tables = value.as_array().filter(|items| items.iter().any(toml::Value::is_table));
        match (value.as_table().filter(|inner| !inner.is_empty()), tables) {
            (Some(inner), _) => keys_of(inner, &key, keys),
            (None, Some(items)) => {
                let inner = items.iter().filter_map(toml::Value::as_table);
                inner.for_each(|item| keys_of(item, &format!("{key}[0]"), keys));
            }
            (None, None) => drop(keys.insert(general(&key))),
        }
    }
}

#[test]
fn the_defaults_are_a_configuration_without_a_pool_and_without_a_mistake() {
    let loaded = Installation::new().load().expect("no mistake");
    assert!(loaded.config.pools.is_empty() && loaded.config.uploads.is_empty());
    assert_eq!(loaded.config.api.listen.to_string(), "127.0.0.1:7780");
    assert_eq!(loaded.config.builds.timeout.as_secs(), 4 * 3600);
    assert_eq!(
        Installation::new().warnings(),
        "built-in default:pool: there is none, so no build can run\n    \
         hint: write a section [pool.<name>] with an `image` into preheat.toml"
    );
}

#[test]
fn every_key_that_is_read_is_documented_and_every_documented_key_is_read() {
    let loaded =
        Installation::new().file("preheat.toml", &with_examples()).load().expect("the examples are right");
    let read: BTreeSet<String> = loaded.settings.iter().map(|s| general(&s.key)).collect();
    let mut documented = BTreeSet::new();
    keys_of(&with_examples().parse().expect("TOML"), "", &mut documented);
    assert_eq!(documented, read);
    assert_eq!(loaded.warnings, Vec::new(), "the examples are no bad example");
}

/// The comment above each key, by key; only the part of the file that is defaults.
fn comments() -> BTreeMap<String, String> {
    let (mut section, mut comment, mut comments) = (String::new(), String::new(), BTreeMap::new());
    for line in DEFAULT.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some(text) = line.strip_prefix("# ") {
            comment = format!("{comment} {}", text.trim());
            continue;
        } else if let Some((key, _)) = line.split_once(" = ") {
            // The first time is the default; what follows are examples.
            comments
                .entry(format!("{section}.{}", key.trim_start_matches('#')))
                .or_insert_with(|| comment.clone());
        }
        comment.clear();
    }
    comments
}

#[test]
fn every_documented_bound_is_the_bound() {
    let loaded = Installation::new().load().expect("no mistake");
    let comments = comments();
    for setting in &loaded.settings {
        let Some((_, range)) = setting.allowed.split_once(" from ") else { continue };
        let range = range.split(" (").next().expect("a part");
        let key = setting.key.as_str();
        // The deadlines have one bound, said once above them.
        let above = if key.starts_with("runtime.deadlines.") {
            DEFAULT.replace("\n#", "")
        } else {
            comments.get(key).cloned().unwrap_or_default()
        };
        assert!(
            above.to_lowercase().contains(&format!("from {}", range.to_lowercase())),
            "{key}: from {range}: {above}"
        );
    }
}

#[test]
fn the_example_of_a_host_is_right_for_the_host_that_it_names() {
    let example = include_str!("../../../config/hosts/example.toml");
    let here = Installation::new().file("preheat.toml", LINUX).file("hosts/studio-1.toml", example);
    let loaded = here.load().expect("no mistake");
    assert_eq!((loaded.config.host.vms, loaded.config.host.cores), (6, Some(16)));
    assert_eq!(here.warnings(), "");
}

#[test]
fn what_is_shown_says_where_each_key_comes_from() {
    let here = Installation::new()
        .file("preheat.toml", "[pool_defaults]\nuser = \"ci\"\n[pool.linux]\nimage = \"linux\"\nwarm = 2\n")
        .file("hosts/studio-1.local.toml", "host.vms = 3\n")
        .var("PREHEAT__POOL__LINUX__NETWORK__MODE", "softnet");
    let shown = show(&here.load().expect("no mistake")).replace(&here.path().display().to_string(), "$H");
    for line in [
        "[host]\nvms = 3                                  # $H/hosts/studio-1.local.toml:1\n",
        "\n[runtime.deadlines]\nclone = \"2m\"                             # default\n",
        "\n[pool.linux]\nimage = \"linux\"                          # $H/preheat.toml:4\n",
        "warm = 2                                 # $H/preheat.toml:5\n",
        "max = 2                                  # default, pool_defaults\n",
        "user = \"ci\"                              # $H/preheat.toml:2, pool_defaults\n",
        "network.mode = \"softnet\"                 # PREHEAT__POOL__LINUX__NETWORK__MODE\n",
    ] {
        assert!(shown.contains(line), "{line}\nis not in\n{shown}");
    }
}

#[test]
fn what_is_shown_can_be_read_back_and_means_the_same() {
    let odd = "[pool.odd]\nimage = \"a\"\nwarmup = \"\"\"\nset -e\n\techo \"\\\\ 'x' # y\"\n\"\"\"\nrun_args = [\"--dir=a b\", '\"']\n\
               network = { mode = \"bridged\", interface = \"Wi-Fi\" }\n";
    for text in [LINUX.to_owned(), with_examples(), odd.to_owned()] {
        let here = Installation::new().file("preheat.toml", &text).load().expect("no mistake");
        let again = Installation::new().file("preheat.toml", &show(&here));
        let again = again.load().unwrap_or_else(|e| panic!("{e}\n{}", show(&here)));
        let mut config = again.config;
        config.home = here.config.home.clone();
        assert_eq!(config, here.config, "{}", show(&here));
    }
}
