//! What comes from outside, as wrong as it can be made: no panic, no way out of a folder, a reason for every refusal.
//!
//! ```text
//! cargo test --test fuzz                            some seconds, as a part of tests/run
//! PROPTEST_CASES=200000 cargo test --release --test fuzz     about an hour on two cores
//! ```
//!
//! `PROPTEST_CASES` counts cheap cases; one that writes files or starts a process stands for several of them. A case that
//! fails is made small and written to `proptest-regressions/`, which is checked in and tried first from then on.
#![expect(
    clippy::disallowed_methods,
    reason = "tests start programs and wait with deadlines; the bans are for the daemon"
)]

mod api;
mod archives;
mod config;
mod project;
mod stored;
mod surroundings;
mod tart;
mod tart_qemu;

#[path = "../common/mod.rs"]
mod common;

use std::future::Future;

use proptest::prelude::*;
use proptest::test_runner::Config;

/// As many cases as asked for, of which each costs as much as `cost` cheap ones.
fn cases(cost: u32) -> Config {
    let whole = Config::default();
    let cases = (whole.cases / cost).max(8);
    Config { cases, max_shrink_iters: 2000, ..whole }
}

/// Runs one asynchronous case to its end.
fn block_on<T>(case: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(case))
}

/// Bytes as they come: noise, or `seed` with pieces cut out, doubled, moved and overwritten.
fn mutated(seed: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0..5_u8);
    prop::collection::vec(edit, 0..6).prop_map(move |edits| {
        let mut bytes = seed.clone();
        for (at, length, byte, kind) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            let end = (at + 1 + length.index(64)).min(bytes.len());
            match kind {
                0 => drop(bytes.drain(at..end)),
                1 => bytes[at] = byte,
                2 => bytes[at] ^= 1 << (byte % 8),
                3 => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => bytes.truncate(at),
            }
        }
        bytes
    })
}

/// JSON of any shape, with what numbers and texts are at their worst.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(Value::from(1e308)),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any_text(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A number that no type holds, and a name that no file system holds.
const LONG_NUMBER: &str = "999999999999999999999999999999999999999999999999999999999999999999999999999999999";
const LONG_NAME: &str = concat!(
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
);

/// Texts that have broken somebody's program.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,12}",
        "[a-zA-Z0-9_./-]{0,16}",
        prop::sample::select(vec![
            "",
            " ",
            ".",
            "..",
            "../..",
            "/",
            "/etc/passwd",
            "a/../../b",
            "\0",
            "a\0b",
            "\n",
            "\r\n",
            "\u{1b}[2J",
            "\u{202e}",
            "\u{feff}",
            "e\u{301}",
            "\u{e9}",
            "\u{2028}",
            "%00",
            "%2e%2e%2f",
            "-1",
            "0",
            "00",
            "1e400",
            "NaN",
            "18446744073709551616",
            LONG_NUMBER,
            "99999999999999999999y",
            "584554530872y",
            "linux",
            "{}",
            "[[[[",
            "**/*",
            "[",
            "{a,b",
            "\\",
            "~",
            "$(id)",
            "`id`",
            "--help",
            "CON",
            LONG_NAME,
        ])
        .prop_map(str::to_owned),
    ]
}
