//! Taste as tests: what `src/ARCHITECTURE.md` says is absent is absent. Each rule names the files that break it.

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below a folder, with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                found.push((path.strip_prefix(root).expect("below the root").to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

/// Code without its comments and without its tests, which may do what they like.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.contains("tests") || path.components().any(|c| c.as_os_str() == "tests")
}

/// Files of `folder` (tests left out) whose code holds one of `words`, unless `allowed` says so.
fn offenders(folder: &str, words: &[&str], allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources(folder) {
        let shown = path.display().to_string();
        if is_test(&path) || allowed(&shown) {
            continue;
        }
        let code = code(&text);
        found.extend(words.iter().filter(|w| code.contains(**w)).map(|w| format!("{shown}: `{w}`")));
    }
    found
}

#[test]
fn every_file_says_at_its_head_what_it_is() {
    let silent = ["src", "tests"].iter().flat_map(|folder| {
        let bare = sources(folder).into_iter().filter(|(path, text)| {
            !text.starts_with("//!") && !text.starts_with("#![doc") && path != Path::new("src/lib.rs")
        });
        bare.map(|(path, _)| path).collect::<Vec<_>>()
    });
    assert_eq!(silent.collect::<Vec<_>>(), Vec::<PathBuf>::new());
}

/// The files that are marked `*` in the map.
const PURE: [&str; 37] = [
    "src/pool/baking.rs",
    "src/pool/ledger.rs",
    "src/pool/ledger/audit.rs",
    "src/pool/ledger/goldens.rs",
    "src/pool/ledger/host.rs",
    "src/pool/ledger/index.rs",
    "src/pool/ledger/queue.rs",
    "src/pool/follow.rs",
    "src/pool/policy/roll.rs",
    "src/pool/policy.rs",
    "src/pool/admission.rs",
    "src/pool/trouble.rs",
    "src/pool/breaker.rs",
    "src/pool/limit.rs",
    "src/pool/trial.rs",
    "src/images/choice.rs",
    "src/images/generation.rs",
    "src/pool/needs.rs",
    "src/pipelines/choose.rs",
    "src/pipelines/files.rs",
    "src/pipelines/over.rs",
    "src/pool/gap.rs",
    "src/vm/state.rs",
    "src/build/state.rs",
    "src/build/place.rs",
    "src/build/failure/tail.rs",
    "src/build/failure/tools.rs",
    "src/cache/template.rs",
    "src/janitor/plan.rs",
    "src/janitor/retain.rs",
    "src/source/controller/standing.rs",
    "src/source/controller/told.rs",
    "src/supervisor/resume.rs",
    "src/runtime/vm_name.rs",
    "src/trace/chrome.rs",
    "src/trace/timeline.rs",
    "src/trace/timeline/lives.rs",
];

#[test]
fn what_is_marked_pure_knows_no_runtime_no_clock_no_log_and_no_process() {
    let words = [
        "tokio",
        "ractor",
        "async ",
        "clock::now",
        "UnixMillis::now",
        ".emit()",
        "std::fs",
        "Command",
        "std::env",
    ];
    let found = offenders("src", &words, |path| !PURE.contains(&path));
    assert_eq!(found, Vec::<String>::new());
    let there = PURE.iter().filter(|path| !Path::new(env!("CARGO_MANIFEST_DIR")).join(path).is_file());
    assert_eq!(there.collect::<Vec<_>>(), Vec::<&&str>::new(), "a file was moved: move its mark too");
}

#[test]
fn actors_are_known_only_to_actor_and_handle_files() {
    let found = offenders("src", &["ractor"], |path| {
        path.ends_with("actor.rs") || path.ends_with("handle.rs") || path == "src/telemetry/logging.rs"
    });
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn rooms_know_only_what_the_map_allows() {
    let table: [(&str, &[&str]); 11] = [
        (
            "src/pool",
            &[
                "crate::runtime::tart",
                "crate::guest::ssh",
                "crate::build::actor",
                "crate::supervisor",
                "crate::cli",
            ],
        ),
        (
            "src/vm",
            &["crate::pool", "crate::build", "crate::runtime::tart", "crate::guest::ssh", "crate::api"],
        ),
        ("src/runtime", &["crate::pool", "crate::vm", "crate::build", "crate::store", "crate::supervisor"]),
        ("src/guest", &["crate::pool", "crate::vm", "crate::build", "crate::store", "crate::api"]),
        (
            "src/build",
            &["crate::vm", "crate::runtime::tart", "crate::guest::ssh", "crate::supervisor", "crate::cli"],
        ),
        (
            "src/cache",
            &[
                "crate::pool",
                "crate::vm",
                "crate::build",
                "crate::store",
                "crate::guest",
                "crate::supervisor",
                "tokio",
            ],
        ),
        (
            "src/signing",
            &[
                "crate::pool",
                "crate::vm",
                "crate::build",
                "crate::store",
                "crate::guest",
                "crate::supervisor",
                "tokio",
            ],
        ),
        ("src/store", &["crate::pool", "crate::vm", "crate::guest", "crate::runtime", "crate::supervisor"]),
        ("src/api", &["crate::pool", "crate::vm", "crate::store", "crate::guest", "crate::supervisor"]),
        (
            "src/config",
            &["crate::pool", "crate::vm", "crate::store", "crate::guest", "crate::supervisor", "tokio"],
        ),
        (
            "src/janitor",
            &["crate::pool", "crate::vm", "crate::build", "crate::store", "crate::runtime::tart"],
        ),
    ];
    let found: Vec<String> =
        table.iter().flat_map(|(room, banned)| offenders(room, banned, |_| false)).collect();
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn only_telemetry_logs_and_counts() {
    let found = offenders("src", &["tracing::", "use tracing", "metrics::", "use metrics"], |path| {
        path.starts_with("src/telemetry/")
    });
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn only_the_command_room_starts_processes_and_only_the_clock_reads_the_time() {
    // tart-qemu is a program of its own; the API's token and the CLI's `ssh` replace or describe this process.
    let found = offenders(
        "src",
        &["process::Command", "SystemTime::now", "Instant::now", "Timestamp::now"],
        |path| {
            path.starts_with("src/bin/")
                || path == "src/runtime/command.rs"
                || path == "src/clock.rs"
                || path == "src/cli/ssh.rs"
        },
    );
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn work_that_blocks_goes_where_a_simulation_can_order_it() {
    // No simulation has the real guests' connections in it, or the command line.
    let found = offenders("src", &["spawn_blocking"], |path| {
        path == "src/blocking.rs" || path.starts_with("src/guest/") || path.starts_with("src/cli/")
    });
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn nothing_is_left_open() {
    let found = offenders("src", &["todo!(", "unimplemented!(", "FIXME", "XXX ", "dbg!("], |_| false);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn the_map_names_every_room() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let map = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the map");
    let missing = fs::read_dir(root).expect("src").flatten().filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let shown = if entry.path().is_dir() { format!("`{name}/`") } else { format!("`{name}`") };
        let known = map.contains(&shown) || ["ARCHITECTURE.md", "lib.rs"].contains(&name.as_str());
        (!known).then_some(shown)
    });
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn every_metric_is_in_the_catalogue() {
    let names = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/telemetry/names.rs"))
        .expect("the catalogue");
    for (path, text) in sources("src/telemetry") {
        for word in code(&text).split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if word.starts_with("preheat_") || word.starts_with("process_") && word.matches('_').count() > 1 {
                assert!(names.contains(word), "{}: `{word}` is not in names.rs", path.display());
            }
        }
    }
}

#[test]
fn every_test_that_is_named_against_a_peers_failure_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("tests/peers.md")).expect("the table");
    let named: Vec<(&str, &str)> = table.split('`').filter_map(|word| word.split_once(".rs::")).collect();
    assert!(named.len() > 40, "only {} are named", named.len());
    let missing = named.into_iter().filter(|(file, test)| {
        let text = fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_default();
        !text.contains(&format!("fn {test}("))
    });
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<(&str, &str)>::new());
}
