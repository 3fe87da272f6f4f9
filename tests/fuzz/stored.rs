//! What lies on the disk between two runs: a log, a journal or the note of a cache that something else has written into.

use std::path::Path;

use futures::StreamExt;
use preheat::api::wire::{LogLine, LogStream};
use preheat::build::log::{LogItem, LogWriter, position, read};
use preheat::build::redact::Redactor;
use preheat::cache::shelf::{Scope, Shelf};
use preheat::ids::RunId;
use preheat::store::Store;
use proptest::prelude::*;

use crate::{any_json, block_on, cases, mutated};

const LOG: &str = concat!(
    r#"{"n":1,"at_ms":1,"stream":"out","step":"make","text":"one"}"#,
    "\n",
    r#"{"n":2,"at_ms":2,"stream":"err","text":"two","run":"r","end":18446744073709551615}"#,
    "\n",
    r#"{"n":18446744073709551615,"at_ms":3,"stream":"sys","text":"three"}"#,
    "\n",
);

/// It is read, and written on, and what is written then is there once.
async fn assert_goes_on(path: &Path) {
    let before: Vec<LogLine> = read(path.to_owned(), 0, None).collect().await;
    assert!(before.windows(2).all(|two| two[0].n < two[1].n), "a follower would get a line twice");
    position(path, &RunId::new(), |_| {}).expect("readable");
    let (writer, mut head) = LogWriter::open(path, Redactor::none(), 1 << 20).expect("it opens");
    let text = "written afterwards \0 \u{1b}[2J".to_owned();
    let line = LogItem { stream: LogStream::Out, step: None, text: text.clone(), run: None, split: false };
    writer.write(line).await;
    drop(writer);
    head.wait_for(|head| head.closed).await.expect("it closes");
    let whole = std::fs::read(path).expect("there");
    let last = whole.split(|b| *b == b'\n').rfind(|line| !line.is_empty()).expect("a line");
    assert_eq!(serde_json::from_slice::<LogLine>(last).expect("whole").text, text);
}

async fn journal(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("journal.sqlite");
    std::fs::write(&path, bytes).expect("written");
    match Store::open(&path) {
        Ok(store) => {
            // What is damaged further inside is told by the call that finds it.
            let told = |error: preheat::store::StoreError| assert!(!error.to_string().is_empty());
            store.unfinished().await.map_err(told).ok();
            store.builds(10).await.map_err(told).ok();
            store.owed().await.map_err(told).ok();
            store.generation().await.map_err(told).ok();
        }
        Err(error) => assert!(error.to_string().contains("journal.sqlite"), "{error}"),
    }
}

fn whole_journal() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("journal.sqlite");
    drop(Store::open(&path).expect("fresh"));
    let sql = rusqlite::Connection::open(&path).expect("opens");
    sql.execute_batch(
        "INSERT INTO builds (project, pool, submitted_ms, record) VALUES ('a', 'linux', 1, '{}');
         INSERT INTO outbox (build, sink, attempts, next_ms) VALUES (1, 'x', -1, -5);
         INSERT INTO counters VALUES ('generation', -9223372036854775808);
         PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .expect("it takes anything");
    drop(sql);
    std::fs::read(&path).expect("there")
}

proptest! {
    #![proptest_config(cases(2))]

    #[test]
    fn a_damaged_log_is_read_and_goes_on(bytes in prop_oneof![
        mutated(LOG.into()),
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(any_json(), 0..4).prop_map(|all| all.iter().map(|j| format!("{j}\n")).collect::<String>().into_bytes()),
    ]) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log.jsonl");
        std::fs::write(&path, bytes).expect("written");
        block_on(assert_goes_on(&path));
    }
}

const NOTE: &str = r#"{"version":1,"id":"0123456789ab","project":"a","pool":"linux","key":"k","paths":["Pods"],"bytes":3,"sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","saved_ms":1,"build":1}"#;

proptest! {
    #![proptest_config(cases(2))]

    #[test]
    fn a_damaged_note_of_a_cache_gives_what_it_says_whole_or_nothing(note in prop_oneof![
        Just(NOTE.as_bytes().to_vec()),
        mutated(NOTE.into()),
        any_json().prop_map(|json| json.to_string().into_bytes()),
    ]) {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("0123456789ab.json"), &note).expect("written");
        std::fs::write(at("0123456789ab.tar"), "abc").expect("written");
        std::fs::write(at("somebodys.txt"), "mine").expect("written");
        let shelf = Shelf::open(dir.path().to_owned());
        let entries = shelf.entries();
        prop_assert_eq!(at("0123456789ab.tar").exists(), !entries.is_empty());
        for entry in entries {
            let scope = Scope { project: &entry.project, pool: &entry.pool, paths: &entry.paths };
            let (found, damaged) = shelf.find_whole(&scope, &entry.key, &[]);
            prop_assert_eq!(found.is_some(), damaged == 0);
            if let Some(found) = found {
                prop_assert_eq!(std::fs::read(found.tar).expect("there"), b"abc");
            }
        }
        prop_assert!(at("somebodys.txt").exists());
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn a_damaged_journal_is_a_clear_error(bytes in prop_oneof![
        Just(()).prop_map(|()| whole_journal()).prop_flat_map(mutated),
        prop::collection::vec(any::<u8>(), 0..400),
        prop::collection::vec(any::<u8>(), 0..400).prop_map(|rest| [b"SQLite format 3\0".as_slice(), &rest].concat()),
    ]) {
        block_on(journal(&bytes));
    }
}
