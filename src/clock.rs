//! The only place that reads the time. Tokio's clock is used, so that tests under paused time own it.

use std::cell::Cell;
use std::time::Duration;

use serde::{Deserialize, Serialize};
pub use tokio::time::Instant;

/// Monotonic time: for deadlines and durations.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock time in milliseconds since 1970, UTC: for people and for the journal, never for deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// Reads the wall clock.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn now() -> Self {
        match SIMULATED.get() {
            None => Self(jiff::Timestamp::now().as_millisecond()),
            Some((since, wall)) => {
                let passed = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
                Self(wall.0.saturating_add(passed))
            }
        }
    }

    /// Seconds since 1970, for Prometheus.
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// The time from `earlier` to this one; zero when the wall clock was set back in between.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl std::fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

/// Wall-clock time in microseconds since 1970, UTC: for timelines. Comes from an [`Anchor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMicros(pub i64);

impl UnixMicros {
    /// Microseconds from `earlier` to this one; zero when that is none.
    pub fn since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }

    /// `time` earlier.
    #[must_use]
    pub fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(time.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl From<UnixMillis> for UnixMicros {
    fn from(at: UnixMillis) -> Self {
        Self(at.0.saturating_mul(1000))
    }
}

/// Both clocks, read once: whatever is dated from it is as far apart as it was, also where the wall clock is set meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    at: Instant,
    wall: UnixMicros,
}

impl Anchor {
    /// Reads both clocks.
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    pub fn cast() -> Self {
        let wall = match SIMULATED.get() {
            None => UnixMicros(jiff::Timestamp::now().as_microsecond()),
            Some(_) => UnixMillis::now().into(),
        };
        Self { at: now(), wall }
    }

    /// When `at` was.
    pub fn date(self, at: Instant) -> UnixMicros {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let after = micros(at.saturating_duration_since(self.at));
        let before = micros(self.at.saturating_duration_since(at));
        UnixMicros(self.wall.0.saturating_add(after).saturating_sub(before))
    }

    /// Now.
    pub fn now(self) -> UnixMicros {
        self.date(now())
    }
}

thread_local! {
    /// What a simulation has set this thread's wall clock to, and when.
    static SIMULATED: Cell<Option<(Instant, UnixMillis)>> = const { Cell::new(None) };
}

/// For simulations: from now on this thread's wall clock says `wall` and goes on with tokio's clock. Set again, it jumps;
/// `None` puts the machine's own back.
pub fn simulate_wall(wall: Option<UnixMillis>) {
    SIMULATED.set(wall.map(|wall| (now(), wall)));
}

/// A point by which something must have happened. It travels with a request, so that waiting in line counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// `limit` from now.
    pub fn after(limit: Duration) -> Self {
        Self(now() + limit)
    }

    /// What is left; zero when it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(now())
    }

    /// The earlier of two deadlines.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// The instant itself, for `tokio::time::timeout_at`.
    pub fn instant(self) -> Instant {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_dated_is_as_far_apart_as_it_was_wherever_the_wall_clock_jumps() {
        simulate_wall(Some(UnixMillis(1_000_000)));
        let anchor = Anchor::cast();
        let (first, began) = (anchor.now(), now());
        simulate_wall(Some(UnixMillis(5)));
        tokio::time::advance(Duration::from_micros(1_500)).await;
        assert_eq!((first, anchor.now().since(first)), (UnixMicros(1_000_000_000), 1_500));
        assert_eq!(anchor.date(began - Duration::from_millis(1)), UnixMicros(999_999_000), "before it too");
        simulate_wall(None);
    }
}
