//! Where builds come from. Each source runs beside the others and hands what it brings to the one [`Service`]; how it ends is
//! the same for all. `api` is the daemon's own API, `local` what becomes of a build that it is given and `trees` what it keeps
//! of them (`listing` is which files are in one); a `controller` is asked for its builds.
//!
//! ```text
//!   bringing --drained--> seeing to what came --nothing is left, or over--> ended
//! ```
//!
//! [`Service`]: crate::api::service::Service

pub mod api;
pub mod controller;
mod listing;
pub mod local;
pub mod trees;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What tells a source to end.
#[derive(Debug, Clone, Default)]
pub struct Ends {
    /// No more builds are to be brought; those that came are seen to.
    pub draining: CancellationToken,
    /// It is to return, whatever is left.
    pub over: CancellationToken,
}

/// Somewhere that builds come from.
pub trait Source: Send + 'static {
    /// Whether it has nothing to do any more at some time after it is drained; else it is there until all is over.
    fn settles(&self) -> bool;

    /// Brings builds, and returns when it has ended.
    fn run(self: Box<Self>, ends: Ends) -> BoxFuture<'static, ()>;
}

/// All sources that run. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    ends: Ends,
    settling: TaskTracker,
    others: TaskTracker,
}

impl Sources {
    /// Lets another one run.
    pub fn begin(&self, source: Box<dyn Source>) {
        let tracker = if source.settles() { &self.settling } else { &self.others };
        tracker.spawn(source.run(self.ends.clone()));
    }

    /// None brings a build any more.
    pub fn drain(&self) {
        self.ends.draining.cancel();
    }

    /// Waits until those that settle have. For waits that have a deadline around them.
    pub async fn settled(&self) {
        self.settling.close();
        self.settling.wait().await;
    }

    /// Ends all, and waits until they have.
    pub async fn end(&self) {
        self.drain();
        self.ends.over.cancel();
        self.settled().await;
        self.others.close();
        self.others.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    struct Patient(bool);

    impl Source for Patient {
        fn settles(&self) -> bool {
            self.0
        }

        fn run(self: Box<Self>, ends: Ends) -> BoxFuture<'static, ()> {
            let end = if self.0 { ends.draining } else { ends.over };
            async move { end.cancelled().await }.boxed()
        }
    }

    #[tokio::test]
    async fn what_settles_is_waited_for_and_what_does_not_stays_until_all_is_over() {
        let sources = Sources::default();
        sources.begin(Box::new(Patient(true)));
        sources.begin(Box::new(Patient(false)));
        assert!(sources.settled().now_or_never().is_none(), "nobody has drained it");
        sources.drain();
        sources.settled().await;
        assert_eq!(sources.others.len(), 1);
        sources.end().await;
        assert!(sources.others.is_empty());
    }
}
