//! The journal against a real SQLite file.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::build::spec::{BuildResult, BuildSpec, Step};

fn record() -> BuildRecord {
    let step = Step {
        name: "make".into(),
        command: "make".into(),
        dir: String::new(),
        timeout: Duration::from_secs(90),
    };
    let spec = BuildSpec {
        project: "lua".into(),
        pool: "linux".parse().expect("a name"),
        steps: vec![step],
        env: BTreeMap::from([("A".into(), "b".into())]),
        secrets: vec!["TOKEN".into()],
        artifacts: vec!["src/lua".into()],
        timeout: Duration::from_secs(3600),
        retries: 2,
    };
    BuildRecord::received(spec, "source-1.tar".into(), UnixMillis(1000))
}

#[tokio::test]
async fn what_was_accepted_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("journal.sqlite");
    let store = Store::open(&path).expect("it opens");
    let first = store.insert(record()).await.expect("written");
    drop(store);
    let store = Store::open(&path).expect("it opens again");
    assert_eq!(store.unfinished().await.expect("read"), std::slice::from_ref(&first));
    assert_eq!(store.build(first.id).await.expect("read"), Some(first));
}

#[tokio::test]
async fn a_result_and_what_is_owed_are_written_as_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(&dir.path().join("j")).expect("it opens");
    let mut build = store.insert(record()).await.expect("written");
    build.result = Some(BuildResult::Success);
    store.finish(build.clone(), vec!["nas".into()]).await.expect("written");
    assert!(store.unfinished().await.expect("read").is_empty());
    let owed = store.owed().await.expect("read");
    assert_eq!(owed.iter().map(|d| (d.build, d.sink.as_str())).collect::<Vec<_>>(), [(build.id, "nas")]);
    assert!(store.build(build.id).await.expect("read").expect("there").owed);
    assert!(store.forget(vec![build.id]).await.expect("asked").is_empty(), "what is owed is kept");
    assert!(store.ended().await.expect("read")[0].owed);
    store.delivered(owed[0].id).await.expect("written");
    assert_eq!(store.forget(vec![build.id]).await.expect("forgotten"), [build.id]);
    let running = store.insert(record()).await.expect("written");
    assert!(store.forget(vec![running.id]).await.expect("asked").is_empty(), "what is not over is kept");
}

#[tokio::test]
async fn a_number_is_never_given_twice() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(&dir.path().join("j")).expect("it opens");
    let mut first = store.insert(record()).await.expect("written");
    first.result = Some(BuildResult::Failure);
    store.finish(first.clone(), Vec::new()).await.expect("written");
    store.forget(vec![first.id]).await.expect("forgotten");
    let second = store.insert(record()).await.expect("written");
    assert!(second.id > first.id);
}

#[tokio::test]
async fn generations_only_grow() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(&dir.path().join("j")).expect("it opens");
    for generation in [3, 7, 5] {
        store.note_generation(Generation(generation)).await.expect("written");
    }
    assert_eq!(store.generation().await.expect("read"), Generation(7));
}

#[tokio::test]
async fn a_journal_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("j");
    drop(Store::open(&path).expect("it opens"));
    Connection::open(&path).expect("opens").pragma_update(None, "user_version", 99).expect("set");
    let text = Store::open(&path).err().expect("refused").to_string();
    assert!(text.contains("version 99") && text.contains("newer"), "{text}");
}

#[tokio::test]
async fn a_result_stands_whatever_comes_later() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(&dir.path().join("j")).expect("it opens");
    let progress = store.insert(record()).await.expect("written");
    let result = BuildRecord { result: Some(BuildResult::Success), ..progress.clone() };
    store.finish(result.clone(), Vec::new()).await.expect("written");
    store.save(progress).await.expect("too late, and no error");
    let second = BuildRecord { result: Some(BuildResult::Error), ..result.clone() };
    store.finish(second, Vec::new()).await.expect("too late, and no error");
    assert_eq!(store.build(result.id).await.expect("read"), Some(result));
}
