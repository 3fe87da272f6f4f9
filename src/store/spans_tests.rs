//! Timelines in a real SQLite file.

use std::sync::Arc;

use super::*;
use crate::build::spec::BuildResult;
use crate::clock::UnixMillis;
use crate::store::BuildRecord;
use crate::store::tests::journal_as_of;
use crate::testing;

fn vm(generation: u64) -> VmKey {
    VmKey { pool: "linux".into(), slot: 0, generation }
}

fn span(generation: u64, phase: &str, at: i64, build: Option<u64>) -> VmSpan {
    let (build, began_us) = (build.map(BuildId), UnixMicros(at));
    VmSpan { vm: vm(generation), phase: phase.into(), began_us, build, detail: None }
}

fn upload(build: u64, attempt: u32) -> BuildSpan {
    let (began_us, ended_us, build) = (UnixMicros(1), UnixMicros(2), BuildId(build));
    let (name, sink) = (UPLOAD.into(), Some("nas".into()));
    BuildSpan { build, name, sink, attempt, began_us, ended_us, error: None }
}

async fn ended(store: &Store) -> BuildRecord {
    let record = BuildRecord::received(testing::spec(), "source".into(), UnixMillis(1));
    let record = store.insert(record, Arc::default()).await.expect("written");
    let record = BuildRecord { result: Some(BuildResult::Success), ..record };
    store.finish(record.clone(), Vec::new()).await.expect("written");
    record
}

#[tokio::test]
async fn a_build_is_told_with_its_vms_and_with_their_neighbours_that_ran() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(&dir.path().join("j")).expect("it opens");
    let spans = vec![
        span(1, "started", 10, None),
        span(3, "started", 20, None),
        span(3, "dead", 50, None),
        // Cloned, and never let run.
        span(4, "cloning", 30, None),
        span(5, "started", 60, None),
        span(5, "leased", 70, Some(7)),
        span(5, "dead", 80, None),
        span(6, "cloning", 75, None),
        VmSpan { vm: VmKey { slot: 1, ..vm(9) }, ..span(9, "started", 65, None) },
    ];
    store.note_spans(spans.clone(), vec![upload(7, 1), upload(8, 1), upload(7, 2)]).await.expect("written");
    let told = store.timeline(BuildId(7)).await.expect("read");
    let [slot] = &told.slots[..] else { panic!("{told:?}") };
    assert_eq!(slot.own, VmLife { vm: vm(5), spans: spans[4..7].to_vec() });
    assert_eq!(slot.before, Some(VmLife { vm: vm(3), spans: spans[1..3].to_vec() }));
    assert_eq!(slot.after.as_ref().map(|after| &after.vm), Some(&vm(6)), "it is to come");
    assert_eq!(told.done, [upload(7, 1), upload(7, 2)]);
    assert_eq!(store.timeline(BuildId(9)).await.expect("read"), Timeline::default());
}

#[tokio::test]
async fn timelines_go_by_age_by_number_and_with_their_builds() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(&dir.path().join("j")).expect("it opens");
    let build = ended(&store).await.id.0;
    let spans = (1..=10).map(|n| span(n, "started", n as i64 * 100, Some(build))).collect();
    store.note_spans(spans, vec![upload(build, 1), upload(build + 1, 1)]).await.expect("written");
    let left = async |store: &Store| store.timeline(BuildId(build)).await.expect("read");
    assert_eq!(
        store.forget_spans(UnixMicros(300), 100).await.expect("forgotten"),
        3,
        "two, and a stranger's"
    );
    assert_eq!(left(&store).await.slots.len(), 8);
    store.forget_spans(UnixMicros(0), 3).await.expect("forgotten");
    assert_eq!(left(&store).await.slots.iter().map(|s| s.own.vm.generation).collect::<Vec<_>>(), [8, 9, 10]);
    assert_eq!(left(&store).await.done.len(), 1);
    store.forget(vec![BuildId(build)]).await.expect("forgotten");
    store.forget_spans(UnixMicros(0), 3).await.expect("forgotten");
    assert!(left(&store).await.done.is_empty());
}

#[tokio::test]
async fn what_is_accepted_waits_for_the_disk_although_timelines_do_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(&dir.path().join("j")).expect("it opens");
    store.note_spans(vec![span(1, "started", 1, None)], Vec::new()).await.expect("written");
    let level = store.call(|c| Ok(c.pragma_query_value(None, "synchronous", |r| r.get::<_, i64>(0))?)).await;
    assert_eq!(level.expect("read"), 2, "FULL again");
    store.forget_spans(UnixMicros(0), 1).await.expect("forgotten");
    let level = store.call(|c| Ok(c.pragma_query_value(None, "synchronous", |r| r.get::<_, i64>(0))?)).await;
    assert_eq!(level.expect("read"), 2, "FULL again");
}

#[tokio::test]
async fn a_journal_from_before_timelines_were_kept_is_brought_up_to_date() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("j");
    let mut build = BuildRecord::received(testing::spec(), "source".into(), UnixMillis(1));
    (build.id, build.result) = (BuildId(1), Some(BuildResult::Success));
    let text = serde_json::to_string(&build).expect("JSON");
    assert!(!text.contains("stamps") && !text.contains("_us"), "as an earlier daemon wrote it: {text}");
    journal_as_of(&path, 3, &build);
    let store = Store::open(&path).expect("it opens");
    assert_eq!(store.build(build.id).await.expect("read"), Some(build.clone()));
    store.note_spans(vec![span(1, "leased", 1, Some(build.id.0))], Vec::new()).await.expect("written");
    assert_eq!(store.timeline(build.id).await.expect("read").slots.len(), 1);
}
