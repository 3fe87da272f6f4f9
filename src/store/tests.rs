//! The journal against a real SQLite file.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use super::*;
use crate::build::spec::{BuildResult, BuildSpec, Step};

fn record() -> BuildRecord {
    let step = Step {
        name: "make".into(),
        command: "make".into(),
        dir: String::new(),
        timeout: Duration::from_secs(90),
        retries: 0,
    };
    let spec = BuildSpec {
        project: "lua".into(),
        pool: "linux".parse().expect("a name"),
        pipeline: None,
        said: Vec::new(),
        steps: vec![step],
        env: BTreeMap::from([("A".into(), "b".into())]),
        secrets: vec!["TOKEN".into()],
        signing: None,
        artifacts: vec!["src/lua".into()],
        caches: Vec::new(),
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
    let first = store.insert(record(), Arc::default()).await.expect("written");
    drop(store);
    let store = Store::open(&path).expect("it opens again");
    assert_eq!(store.unfinished().await.expect("read"), std::slice::from_ref(&first));
    assert_eq!(store.build(first.id).await.expect("read"), Some(first));
}

#[tokio::test]
async fn a_result_and_what_is_owed_are_written_as_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(&dir.path().join("j")).expect("it opens");
    let mut build = store.insert(record(), Arc::default()).await.expect("written");
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
    let running = store.insert(record(), Arc::default()).await.expect("written");
    assert!(store.forget(vec![running.id]).await.expect("asked").is_empty(), "what is not over is kept");
}

#[tokio::test]
async fn a_number_is_never_given_twice() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(&dir.path().join("j")).expect("it opens");
    let mut first = store.insert(record(), Arc::default()).await.expect("written");
    first.result = Some(BuildResult::Failure);
    store.finish(first.clone(), Vec::new()).await.expect("written");
    store.forget(vec![first.id]).await.expect("forgotten");
    let second = store.insert(record(), Arc::default()).await.expect("written");
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
    let progress = store.insert(record(), Arc::default()).await.expect("written");
    let result = BuildRecord { result: Some(BuildResult::Success), ..progress.clone() };
    store.finish(result.clone(), Vec::new()).await.expect("written");
    store.save(progress).await.expect("too late, and no error");
    let second = BuildRecord { result: Some(BuildResult::Error), ..result.clone() };
    store.finish(second, Vec::new()).await.expect("too late, and no error");
    assert_eq!(store.build(result.id).await.expect("read"), Some(result));
}

/// What the journal's files hold, as bytes.
fn bytes(folder: &Path) -> Vec<u8> {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries.filter_map(|entry| std::fs::read(entry.path()).ok()).collect::<Vec<_>>().concat()
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn secrets_are_sealed_until_the_result_and_then_gone_from_every_byte() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("journal.sqlite");
    let store = Store::open(&path).expect("it opens");
    let values = Values::from([("TOKEN".to_owned(), SecretString::from("hunter2-".repeat(2000)))]);
    let build = store.insert(record(), Arc::new(values)).await.expect("written");
    let sealed: Vec<u8> = Connection::open(&path)
        .and_then(|c| c.query_row("SELECT sealed FROM secrets", [], |r| r.get(0)))
        .expect("a row");
    // Behind the first page of it, where no header splits it.
    let (head, tail) = (&sealed[..64], &sealed[sealed.len() - 64..]);
    assert!(holds(&bytes(dir.path()), head) && !holds(&bytes(dir.path()), b"hunter2"));

    drop(store);
    let store = Store::open(&path).expect("it opens again");
    let values = store.secrets(build.id).await.expect("they open");
    assert_eq!(values["TOKEN"].expose_secret(), "hunter2-".repeat(2000));
    store.save(BuildRecord { attempt: 1, ..build.clone() }).await.expect("written");
    assert!(store.secrets(build.id).await.is_ok(), "progress leaves them");

    let ended = BuildRecord { result: Some(BuildResult::Success), ..build.clone() };
    store.finish(ended, Vec::new()).await.expect("written");
    assert!(matches!(store.secrets(build.id).await, Err(StoreError::Seal(SealError::Absent))));
    let left = bytes(dir.path());
    assert!(!holds(&left, head) && !holds(&left, tail), "nothing sealed is left on the disk");
}

#[tokio::test]
async fn secrets_of_another_key_do_not_open_and_the_journal_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("journal.sqlite");
    let store = Store::open(&path).expect("it opens");
    let values = Values::from([("TOKEN".to_owned(), SecretString::from("hunter2"))]);
    let build = store.insert(record(), Arc::new(values)).await.expect("written");
    drop(store);
    std::fs::remove_file(dir.path().join("keys/journal.key")).expect("removed");
    let store = Store::open(&path).expect("it opens with a new key");
    assert_eq!(store.unfinished().await.expect("read"), std::slice::from_ref(&build));
    assert!(matches!(store.secrets(build.id).await, Err(StoreError::Seal(SealError::Sealed))));
}

#[tokio::test]
async fn a_journal_from_before_secrets_were_kept_is_brought_up_to_date() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("journal.sqlite");
    let build = BuildRecord { id: BuildId(1), ..record() };
    journal_as_of(&path, 1, &build);
    let store = Store::open(&path).expect("it opens");
    assert_eq!(store.unfinished().await.expect("read"), std::slice::from_ref(&build));
    assert!(matches!(store.secrets(build.id).await, Err(StoreError::Seal(SealError::Absent))));
}

/// A journal with one build, as the daemon left it that knew so many steps of the schema.
pub(super) fn journal_as_of(path: &Path, steps: usize, build: &BuildRecord) {
    let mut old = Connection::open(path).expect("opens");
    migrations::prepare_as_of(&mut old, steps);
    let sql = "INSERT INTO builds (id, project, pool, submitted_ms, record) VALUES (?1, '', '', 0, '{}')";
    old.execute(sql, [key(build.id)]).expect("inserted");
    update(&old, build).expect("written");
}
