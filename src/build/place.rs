//! Where an attempt is, in a form that another daemon can go on from. It is in the journal before the guest hears of what is
//! to be done, so what is done in a guest is always found under the name that is written here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::spec::BuildResult;
use crate::clock::UnixMillis;
use crate::ids::RunId;

/// Where an attempt is, from its first step on. Before that nothing of the user's has run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// When the attempt's work began: its time-out counts from here.
    pub work_began_ms: UnixMillis,
    pub doing: Doing,
}

/// What is being done, or was the last to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Doing {
    Step {
        /// From 0.
        index: usize,
        run: RunId,
        /// Runs of the step before this one, in this attempt, that failed. Journals of earlier daemons have none.
        #[serde(default)]
        failed: u16,
        /// When it was begun: its time-out counts from here.
        began_ms: UnixMillis,
    },
    Artifacts,
}

/// How a build will end as soon as its guest is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub result: BuildResult,
    pub reason: Option<String>,
}

impl Verdict {
    /// The last line of the build's log.
    pub fn said(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{}: {reason}", self.result.as_str()),
            None => self.result.as_str().to_owned(),
        }
    }
}

/// What is left of `whole` at `now` for what began at `began`. The wall clock may have jumped: never more than the whole, and
/// never less than nothing.
pub fn left(whole: Duration, began: UnixMillis, now: UnixMillis) -> Duration {
    whole.saturating_sub(now.since(began))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_bounded_by_the_whole_and_by_nothing_wherever_the_clock_jumps() {
        let whole = Duration::from_secs(60);
        let at = |ms| left(whole, UnixMillis(1_000_000), UnixMillis(ms));
        assert_eq!(at(1_000_000), whole);
        assert_eq!(at(1_010_000), Duration::from_secs(50));
        assert_eq!(at(1_000_000 + 3_600_000), Duration::ZERO, "forward by an hour");
        assert_eq!(at(1_000_000 - 3_600_000), whole, "back by an hour");
        assert_eq!(left(whole, UnixMillis(i64::MAX), UnixMillis(i64::MIN)), whole);
        assert_eq!(left(whole, UnixMillis(i64::MIN), UnixMillis(i64::MAX)), Duration::ZERO);
    }
}
