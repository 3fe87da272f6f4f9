//! Who writes a build's record down while the build is under way: one task, so that an older record never comes after a
//! newer one. Slower than the changes, it writes the newest; who needs to know that a change is on disk waits for it.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::store::{BuildRecord, Store, StoreError};
use crate::telemetry::events::Degraded;

/// While the journal cannot take a record, the newest is offered again this often.
pub const JOURNAL_PAUSE: Duration = Duration::from_secs(5);

/// A record, counted.
type Counted = (u64, BuildRecord);

/// The way into the journal for one build. Dropped, it writes no more.
pub struct Recorder {
    newest: watch::Sender<Counted>,
    saved: watch::Receiver<u64>,
    _task: AbortOnDropHandle<()>,
}

/// A change that is on its way to the disk.
#[derive(Debug)]
pub struct Written {
    count: u64,
    saved: watch::Receiver<u64>,
}

impl Written {
    /// Waits until it is on disk, for as long as the journal needs. False when the journal is closed: then it never will be.
    pub async fn wait(mut self) -> bool {
        self.saved.wait_for(|saved| *saved >= self.count).await.is_ok()
    }
}

impl Recorder {
    /// For a build whose `record` is on disk.
    pub fn new(store: Store, record: BuildRecord) -> Self {
        let (newest, changed) = watch::channel((0, record));
        let (tell, saved) = watch::channel(0);
        let task = AbortOnDropHandle::new(tokio::spawn(write_down(store, changed, tell)));
        Self { newest, saved, _task: task }
    }

    /// Notes a change. It is on disk when what is returned says so; nobody has to ask.
    pub fn note(&self, record: BuildRecord) -> Written {
        let mut count = 0;
        self.newest.send_modify(|newest| {
            count = newest.0 + 1;
            *newest = (count, record);
        });
        Written { count, saved: self.saved.clone() }
    }
}

async fn write_down(store: Store, mut changed: watch::Receiver<Counted>, saved: watch::Sender<u64>) {
    while changed.changed().await.is_ok() {
        loop {
            let (count, record) = changed.borrow_and_update().clone();
            // The result goes another way: with what is owed, as one.
            let written = if record.result.is_none() { store.save(record).await } else { Ok(()) };
            match written {
                Ok(()) => {
                    saved.send_replace(count);
                    break;
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    Degraded { what: "journal", error: error.to_string() }.emit();
                    tokio::time::sleep(JOURNAL_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::testing;

    #[tokio::test]
    async fn what_was_waited_for_is_on_disk_and_the_newest_stands() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(&dir.path().join("journal")).expect("it opens");
        let record = BuildRecord::received(testing::spec(), "source".into(), UnixMillis(1));
        let mut record = store.insert(record, std::sync::Arc::default()).await.expect("on disk");
        let recorder = Recorder::new(store.clone(), record.clone());
        for attempt in 1..=100 {
            record.attempt = attempt;
            let written = recorder.note(record.clone());
            if attempt % 10 == 0 {
                assert!(written.wait().await);
                let kept = store.build(record.id).await.expect("read").expect("there");
                assert!(kept.attempt >= attempt, "{} after {attempt}", kept.attempt);
            }
        }
        assert!(recorder.note(record.clone()).wait().await);
        let kept = store.build(record.id).await.expect("read").expect("there");
        assert_eq!(kept, record);
    }
}
