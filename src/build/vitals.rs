//! How a build's guest is while its steps run: figures for whoever looks, one line in the log when its disk gets low, and a
//! word beside a failure whose cause that may be. What it costs the guest begins when a step has had a moment for itself, and a
//! guest that says nothing costs nothing.

use std::convert::Infallible;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use super::caching;
use super::log::LogWriter;
use crate::guest::{Channel, Look};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The first step has so long for itself: its first line, and a build that is over by then, are not slowed down. An empty one is,
/// also in an emulated guest.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(2);

/// A failing build waits so long for a last look: an emulated guest needs a tenth of it.
const LAST_LOOK_MAX: Duration = Duration::from_secs(1);

/// A disk is low with less free space than this share of it,
const LOW_SHARE: u64 = 20;
/// and less than this, with which most builds still end well.
const LOW_BYTES: u64 = 4 << 30;

/// What is known of one attempt's guest.
pub struct Vitals {
    steps_begun: AtomicBool,
    first_step: Notify,
    hurry: Notify,
    seen: watch::Sender<Seen>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    looks: u64,
    /// There will be no more.
    blind: bool,
    /// The least that was free, when that was low, and how much there is in all.
    low: Option<(u64, u64)>,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            steps_begun: AtomicBool::new(false),
            first_step: Notify::new(),
            hurry: Notify::new(),
            seen: watch::Sender::new(Seen::default()),
        }
    }
}

impl Vitals {
    /// A step begins.
    pub fn step_begins(&self) {
        if !self.steps_begun.swap(true, Ordering::Relaxed) {
            self.first_step.notify_one();
        }
    }

    /// Looks, and tells what it sees and whether the disk has become low, for as long as it is polled.
    pub async fn follow(
        &self,
        channel: &dyn Channel,
        log: &LogWriter,
        told: impl Fn(Look, bool),
    ) -> Infallible {
        self.first_step.notified().await;
        timeout(FIRST_LOOK_AFTER, self.hurry.notified()).await.ok();
        let (sender, mut looks) = mpsc::channel(1);
        let telling = async {
            while let Some(look) = looks.recv().await {
                let words = self.note(look);
                told(look, words.is_some());
                if let Some(words) = words {
                    log.say(words).await;
                }
            }
        };
        tokio::join!(channel.watch(LOOK_EVERY, &self.hurry, sender), telling);
        self.seen.send_modify(|seen| seen.blind = true);
        pending().await
    }

    /// Notes a look. Returns what is said of it: once, when the disk is low.
    fn note(&self, look: Look) -> Option<String> {
        let low = look.disk.and_then(low);
        let mut first = false;
        self.seen.send_modify(|seen| {
            seen.looks += 1;
            first = seen.low.is_none() && low.is_some();
            seen.low = seen.low.into_iter().chain(low).min();
        });
        low.filter(|_| first).map(|low| format!("warning: {}", nearly_full(low)))
    }

    /// What to add to a failure's reason. Looks once more, as far as somebody [follows](Self::follow).
    pub async fn last_word(&self, following: impl Future<Output = Infallible>) -> Option<String> {
        if !self.steps_begun.load(Ordering::Relaxed) {
            return None;
        }
        let before = self.seen.borrow().looks;
        let mut seen = self.seen.subscribe();
        self.hurry.notify_one();
        let looked = seen.wait_for(|seen| seen.blind || seen.looks > before);
        let looked = async {
            tokio::select! {
                biased;
                never = following => match never {},
                _ = looked => {}
            }
        };
        timeout(LAST_LOOK_MAX, looked).await.ok();
        self.seen.borrow().low.map(nearly_full)
    }
}

/// Free and in all, when that is little.
fn low((used, free): (u64, u64)) -> Option<(u64, u64)> {
    let size = used.saturating_add(free);
    (free < LOW_BYTES && free < size / LOW_SHARE).then_some((free, size))
}

fn nearly_full((free, size): (u64, u64)) -> String {
    format!("the guest's disk is nearly full: {} of {} free", caching::size(free), caching::size(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    #[test]
    fn a_disk_is_low_when_little_is_left_of_it_and_little_for_a_build() {
        assert_eq!(low((96 * GB, 4 * GB)), Some((4 * GB, 100 * GB)));
        assert_eq!(low((1900 * GB, 50 * GB)), None, "a share of a large disk is enough");
        assert_eq!(low((GB, 2 * GB)), None, "small, and mostly empty");
        assert_eq!(low((0, 0)), None);
        assert_eq!(low((u64::MAX, 1)), Some((1, u64::MAX)));
    }

    #[test]
    fn a_low_disk_is_said_once_and_the_least_that_was_free_is_remembered() {
        let vitals = Vitals::default();
        let look = |free| Look { disk: Some((100 * GB - free, free)), ..Look::default() };
        assert_eq!(vitals.note(look(50 * GB)), None);
        let said = vitals.note(look(GB)).expect("it is low");
        assert_eq!(said, "warning: the guest's disk is nearly full: 1.00 GB of 100.00 GB free");
        assert_eq!(vitals.note(look(0)), None);
        assert_eq!(vitals.note(look(2 * GB)), None);
        assert_eq!(vitals.seen.borrow().low, Some((0, 100 * GB)));
        assert_eq!(vitals.seen.borrow().looks, 4);
    }
}
