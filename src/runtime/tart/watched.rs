//! A file that somebody else writes, looked at when the system says that it changed, and now and then besides: what tells may
//! be missing (a full table of watches) or may come before the file does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::clock::Deadline;

/// Between two looks that nobody asked for: at first, and at last. It doubles.
const LOOK_FIRST: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(500);

/// Looks until there is something to see, or the deadline has passed. Cancel-safe.
pub(super) async fn until<T>(
    file: &Path,
    deadline: Deadline,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let changed = Arc::new(Notify::new());
    let told = changed.clone();
    // Before the first look: a change between the two is told.
    let mut watcher = notify::recommended_watcher(move |event| {
        if may_have_changed(&event) {
            told.notify_one();
        }
    })
    .ok();
    let mut watched = false;
    let mut pause = LOOK_FIRST;
    loop {
        if let Some(watcher) = watcher.as_mut().filter(|_| !watched) {
            // The folder for a file that is replaced, the file for one that grows.
            watched = watcher.watch(file, RecursiveMode::NonRecursive).is_ok();
            if let Some(folder) = file.parent() {
                watcher.watch(folder, RecursiveMode::NonRecursive).ok();
            }
        }
        if let Some(seen) = look() {
            return Some(seen);
        }
        if deadline.left().is_zero() {
            return None;
        }
        timeout(pause.min(deadline.left()), changed.notified()).await.ok();
        pause = (pause * 2).min(LOOK_MAX);
    }
}

/// That somebody reads it is told too; to look for that would be to look for ever, because each look reads it.
fn may_have_changed(event: &notify::Result<Event>) -> bool {
    match event.as_ref().map(|event| event.kind) {
        Ok(EventKind::Access(AccessKind::Close(AccessMode::Write))) => true,
        Ok(EventKind::Access(_)) => false,
        Ok(_) | Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn to_look_is_not_a_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("leases");
        std::fs::write(&file, "nothing of interest").expect("written");
        let mut looks = 0;
        let seen = until(&file, Deadline::after(Duration::from_secs(1)), || {
            looks += 1;
            std::fs::read_to_string(&file).ok().filter(|text| text.is_empty())
        });
        assert_eq!(seen.await, None);
        // The pauses double: there is no time for more of them within the deadline, however fast the machine is.
        assert!(looks < 15, "looked {looks} times");
    }

    #[tokio::test]
    async fn what_is_written_after_the_first_look_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("log");
        let mut looks = 0;
        let seen = until(&file, Deadline::after(Duration::from_secs(20)), || {
            looks += 1;
            if looks == 1 {
                std::fs::write(&file, "said").expect("written");
                return None;
            }
            std::fs::read_to_string(&file).ok()
        });
        assert_eq!(seen.await.as_deref(), Some("said"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_comes_is_waited_for_until_the_deadline() {
        let nowhere = Path::new("/nonexistent/preheat/log");
        let seen = until(nowhere, Deadline::after(Duration::from_secs(3)), || None::<()>).await;
        assert_eq!(seen, None);
    }
}
