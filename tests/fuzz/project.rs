//! A project's file and a request: what comes of them is a build within all bounds, or every mistake.

use std::collections::BTreeMap;

use preheat::api::wire::{CacheSpec, StepSpec, SubmitSpec};
use preheat::build::project::{Incomplete, ProjectFile, merge};
use preheat::config::load::load;
use preheat::config::{Config, Home, Inputs};
use proptest::prelude::*;

use crate::{any_json, any_text, cases, mutated};

const WHOLE: &str = r#"
project = "app"
pool = "linux"
steps = ["npm ci", { name = "archive", command = "make ipa", dir = "ios", timeout = "40m" }]
artifacts = ["build/**/*.ipa"]
secrets = ["MATCH_PASSWORD"]
timeout = "1h"
retries = 1
include_git = false
env = { CI = "true", N = 5 }
[[caches]]
key = "pods-{{ hash 'Podfile.lock' }}"
restore_keys = ["pods-"]
paths = ["Pods", "~/.cocoapods"]
"#;

fn daemon() -> Config {
    let home = tempfile::tempdir().expect("a folder");
    std::fs::write(home.path().join("preheat.toml"), "[pool.linux]\nimage = \"linux\"\n").expect("written");
    let env = [("HOME", "/Users/ci")].into_iter().collect();
    let inputs = Inputs { home: Home::new(home.path().into()), file: None, hostname: String::new(), env };
    load(&inputs).expect("a configuration").config
}

fn assert_is_sound(project: Option<ProjectFile>, request: &SubmitSpec, folder: &str) {
    thread_local!(static DAEMON: Config = daemon());
    let merged = DAEMON.with(|c| merge(project, request, &c.builds, &c.pools, folder));
    match merged {
        Ok((spec, _)) => {
            assert!(!spec.steps.is_empty() && !spec.project.is_empty());
            assert!(!spec.timeout.is_zero() && spec.steps.iter().all(|step| !step.timeout.is_zero()));
            let out = |path: &str| path.starts_with('/') || path.split('/').any(|part| part == "..");
            assert!(
                !spec.steps.iter().any(|step| out(&step.dir)) && !spec.artifacts.iter().any(|a| out(a)),
                "{spec:?}"
            );
            assert!(
                !spec.steps.iter().any(|s| s.command.contains('\0') || s.name.chars().any(char::is_control))
            );
            for path in spec.caches.iter().flat_map(|cache| &cache.paths) {
                let below = path.strip_prefix("~/").unwrap_or(path);
                let plain = below.split('/').all(|part| !matches!(part, "" | "." | ".."));
                assert!(plain && !below.starts_with('~') && !path.chars().any(char::is_control), "{path:?}");
            }
            assert!(!spec.env.iter().any(|(k, v)| k.contains(['=', '\0']) || v.contains('\0')));
            // It is journalled, and must come back as it is.
            let json = serde_json::to_string(&spec).expect("serialises");
            let back: preheat::build::spec::BuildSpec = serde_json::from_str(&json).expect("comes back");
            assert_eq!(back, spec);
        }
        Err(Incomplete::Wrong(mistakes)) => {
            assert!(!mistakes.0.is_empty());
            for line in mistakes.lines() {
                assert!(!line.chars().any(char::is_control), "a terminal would obey: {line:?}");
            }
        }
        Err(Incomplete::PoolUnknown { known, .. }) => assert_eq!(known, "`linux`"),
    }
}

fn cache() -> impl Strategy<Value = CacheSpec> {
    let path = || prop_oneof![any_text(), "(~?/|\\./)?[a.~]{1,3}(/[a.~]{0,3}){0,3}"];
    let key = || prop_oneof![any_text(), "k(\\{\\{ ?[a-z]{3,5} ?('[a*./]{0,4}' ?)?\\}\\}){0,2}"];
    (key(), prop::collection::vec(key(), 0..2), prop::collection::vec(path(), 0..3))
        .prop_map(|(key, restore_keys, paths)| CacheSpec { key, restore_keys, paths })
}

fn request() -> impl Strategy<Value = SubmitSpec> {
    let millis = prop::option::of(prop_oneof![any::<u64>(), 0..100_000_000_u64]);
    let timeout = millis.prop_map(|ms| ms.map(std::time::Duration::from_millis));
    let text = || prop::option::of(any_text());
    let step = (text(), any_text(), text(), timeout.clone(), prop::option::of(any::<u16>()))
        .prop_map(|(name, command, dir, timeout, retries)| StepSpec { name, command, dir, timeout, retries });
    let variables = || prop::collection::btree_map(prop_oneof![any_text(), "[A-Z_]{1,6}"], any_text(), 0..4);
    (
        prop::option::of(any_text()),
        prop::option::of(prop_oneof![Just("linux".to_owned()), any_text()]),
        prop::collection::vec(step, 0..4),
        (variables(), variables()),
        (prop::collection::vec(any_text(), 0..4), prop::option::of(prop::collection::vec(cache(), 0..3))),
        (timeout, prop::option::of(any::<u16>())),
    )
        .prop_map(|(project, pool, steps, (env, secrets), (artifacts, caches), (timeout, retries))| {
            SubmitSpec {
                project,
                pool,
                steps,
                env,
                secrets: secrets
                    .into_iter()
                    .map(|(name, value)| (name, value.into()))
                    .collect::<BTreeMap<_, secrecy::SecretString>>()
                    .into(),
                artifacts,
                caches,
                timeout,
                retries,
                ..SubmitSpec::default()
            }
        })
}

proptest! {
    #![proptest_config(cases(1))]

    #[test]
    fn a_projects_file_of_any_text_is_read_or_refused(text in "(\\PC|\n){0,200}") {
        if let Ok(project) = ProjectFile::parse(&text) {
            assert_is_sound(Some(project), &SubmitSpec::default(), "folder");
        }
    }

    #[test]
    fn a_damaged_projects_file_is_read_or_refused(bytes in mutated(WHOLE.into()), folder in any_text()) {
        let text = String::from_utf8_lossy(&bytes);
        match ProjectFile::parse(&text) {
            Ok(project) => assert_is_sound(Some(project), &SubmitSpec::default(), &folder),
            Err(mistakes) => assert!(!mistakes.0.is_empty()),
        }
    }

    #[test]
    fn any_request_over_any_project_is_a_sound_build_or_refused(request in request(), with in any::<bool>(), folder in any_text()) {
        let project = with.then(|| ProjectFile::parse(WHOLE).expect("right"));
        assert_is_sound(project, &request, &folder);
        // What the command line sends, the daemon reads.
        let json = serde_json::to_string(&request).expect("serialises");
        assert_eq!(serde_json::from_str::<SubmitSpec>(&json).expect("comes back"), request);
    }

    #[test]
    fn a_request_of_any_json_is_read_or_refused(json in any_json(), damage in mutated(br#"{"pool":"linux","steps":[{"command":"make","timeout":"1h"}],"retries":1}"#.to_vec())) {
        for text in [json.to_string().into_bytes(), damage] {
            if let Ok(request) = serde_json::from_slice::<SubmitSpec>(&text) {
                assert_is_sound(None, &request, "folder");
            }
        }
    }
}
