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
