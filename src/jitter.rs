//! The one source of chance, for pauses that must not fall into step with each other. Each thread has its own, so that a
//! simulation that runs on one thread may seed it and see the same pauses again.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

thread_local! {
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one("jitter"));
}

/// From now on this thread's numbers follow from `seed`.
pub fn seed(seed: u64) {
    STATE.set(seed);
}

/// The next number of this thread, from 0 up to 1 exclusively.
pub fn next() -> f64 {
    // SplitMix64: a counter and a mixer, with every state as good as another. Nothing secret hangs on it.
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let bits = (mixed ^ (mixed >> 31)) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

/// The pause after so many failures (from 1), given a number from [`next`]: `first`, doubled with each failure up to `most`,
/// and of that the upper half by chance, so that it grows all the same.
pub fn backoff(first: Duration, most: Duration, failures: u32, random: f64) -> Duration {
    let whole = first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(most);
    let half = whole / 2;
    half + half.mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_seed_is_a_sequence_and_another_seed_another_one() {
        let draw = |with| {
            seed(with);
            [(); 5].map(|()| next().to_bits())
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn the_numbers_are_spread_over_the_whole_range() {
        seed(1);
        let mut tenths = [0_u32; 10];
        for _ in 0..10_000 {
            let n = next();
            assert!((0.0..1.0).contains(&n), "{n}");
            tenths[(n * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (800..1200).contains(count)), "{tenths:?}");
    }

    proptest! {
        #[test]
        fn pauses_grow_stay_in_their_bounds_and_never_lock_step(
            first in 1_u64..10_000, most in 1_u64..1_000_000, failures in 0_u32..100, random in 0.0..1.0_f64
        ) {
            let (first, most) = (Duration::from_millis(first), Duration::from_millis(most));
            let pause = backoff(first, most, failures, random);
            prop_assert!(pause <= most);
            prop_assert!(pause >= first.min(most) / 2);
            prop_assert!(backoff(first, most, failures + 2, random) >= pause);
        }
    }
}
