//! Who writes a build's record down while the build is under way: one task, so that an older record never comes after a
//! newer one. What somebody waits for is written at once, the rest a little later and with what came meanwhile: a sync that
//! nobody needs is one that somebody else waits behind.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::store::{BuildRecord, Store, StoreError};
use crate::telemetry::events::Degraded;

/// While the journal cannot take a record, the newest is offered again this often.
pub const JOURNAL_PAUSE: Duration = Duration::from_secs(5);

/// A change that nobody waits for is on disk this much later.
const UNHURRIED: Duration = Duration::from_millis(100);

/// A record, counted.
type Counted = (u64, BuildRecord);

/// The way into the journal for one build. Dropped, it writes no more.
pub struct Recorder {
    newest: watch::Sender<Counted>,
    wanted: Arc<watch::Sender<u64>>,
    saved: watch::Receiver<u64>,
    _task: AbortOnDropHandle<()>,
}

/// A change that is on its way to the disk.
#[derive(Debug)]
pub struct Written {
    count: u64,
    wanted: Arc<watch::Sender<u64>>,
    saved: watch::Receiver<u64>,
}

impl Written {
    /// Waits until it is on disk, for as long as the journal needs. False when the journal is closed: then it never will be.
    pub async fn wait(mut self) -> bool {
        self.hurry();
        self.saved.wait_for(|saved| *saved >= self.count).await.is_ok()
    }
}

impl Written {
    /// Has it written at once.
    fn hurry(&self) {
        self.wanted.send_if_modified(|wanted| {
            let more = *wanted < self.count;
            *wanted = self.count.max(*wanted);
            more
        });
    }
}

impl Recorder {
    /// For a build whose `record` is on disk.
    pub fn new(store: Store, record: BuildRecord) -> Self {
        let (newest, changed) = watch::channel((0, record));
        let (tell, saved) = watch::channel(0);
        let (wanted, hurry) = watch::channel(0);
        let task = AbortOnDropHandle::new(tokio::spawn(write_down(store, changed, hurry, tell)));
        Self { newest, wanted: Arc::new(wanted), saved, _task: task }
    }

    /// Notes a change. It is on disk when what is returned says so; nobody has to ask.
    pub fn note(&self, record: BuildRecord) -> Written {
        let mut count = 0;
        self.newest.send_modify(|newest| {
            count = newest.0 + 1;
            *newest = (count, record);
        });
        Written { count, wanted: self.wanted.clone(), saved: self.saved.clone() }
    }
}

async fn write_down(
    store: Store,
    mut changed: watch::Receiver<Counted>,
    mut hurry: watch::Receiver<u64>,
    saved: watch::Sender<u64>,
) {
    let mut last = 0;
    while changed.changed().await.is_ok() {
        tokio::select! {
            biased;
            _ = hurry.wait_for(|wanted| *wanted > last) => {}
            () = tokio::time::sleep(UNHURRIED) => {}
        }
        loop {
            let (count, record) = changed.borrow_and_update().clone();
            // The result goes another way: with what is owed, as one.
            let written = if record.result.is_none() { store.save(record).await } else { Ok(()) };
            match written {
                Ok(()) => {
                    saved.send_replace(count);
                    last = count;
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

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_on_disk_a_little_later_and_with_the_rest() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(&dir.path().join("journal")).expect("it opens");
        let record = BuildRecord::received(testing::spec(), "source".into(), UnixMillis(1));
        let mut record = store.insert(record, Arc::default()).await.expect("on disk");
        let recorder = Recorder::new(store.clone(), record.clone());
        let first = recorder.note(BuildRecord { attempt: 1, ..record.clone() });
        record.attempt = 2;
        let mut saved = recorder.note(record.clone()).saved;
        saved.wait_for(|saved| *saved >= 2).await.expect("nobody hurried, and it is there");
        assert_eq!(store.build(record.id).await.expect("read"), Some(record.clone()));
        // A newer change does not hold back one that is waited for.
        assert!(first.wait().await);
        record.attempt = 3;
        let third = recorder.note(record.clone());
        recorder.note(BuildRecord { attempt: 4, ..record.clone() });
        assert!(third.wait().await);
    }

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
