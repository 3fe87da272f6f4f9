//! How often something may fail before starting it again is no use: `most` times within `window`.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;

/// Restarts that were made.
#[derive(Debug)]
pub struct Intensity {
    most: usize,
    window: Duration,
    restarts: VecDeque<Instant>,
}

impl Intensity {
    /// Allows `most` restarts within `window`.
    pub fn new(most: usize, window: Duration) -> Self {
        Self { most, window, restarts: VecDeque::new() }
    }

    /// Counts one more; false when it is one too many.
    pub fn allows(&mut self, now: Instant) -> bool {
        while self.restarts.front().is_some_and(|at| now.saturating_duration_since(*at) > self.window) {
            self.restarts.pop_front();
        }
        self.restarts.push_back(now);
        self.restarts.len() <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[tokio::test(start_paused = true)]
    async fn so_many_within_a_window_and_no_more() {
        let mut intensity = Intensity::new(2, Duration::from_secs(60));
        assert!(intensity.allows(clock::now()) && intensity.allows(clock::now()));
        assert!(!intensity.allows(clock::now()));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(intensity.allows(clock::now()));
    }
}
