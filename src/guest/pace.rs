//! Which of two ways is the quicker one for a kind of transfer, as measured on the transfers themselves. A cipher that an
//! emulated guest computes slowly makes compression worth its while, a Mac's own does not; no rule knows both. So each way
//! is tried once, the better one is taken from then on, and now and then the other one gets another chance.
//!
//! What is remembered belongs to a kind of guest (how it is logged in to), not to one guest: each lives for one build.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use super::Target;

/// Less than this says little of a way: what is measured are its beginnings.
pub(super) const BYTES_MIN: u64 = 4 << 20;

/// Measurements of a way that count. The best of them stands for it: load only ever makes a transfer slower.
const KEPT: usize = 3;

/// So many times the better way is taken, then the other one once.
const FAITHFUL: u32 = 15;

/// Kinds of guests that are remembered: a pool each, and then some.
const KINDS_MAX: usize = 64;

/// One of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The plain one, which is right where nothing was measured.
    Usual,
    Other,
}

/// What was measured of two ways.
#[derive(Debug, Default)]
struct Pair {
    /// Seconds per byte.
    usual: VecDeque<f64>,
    other: VecDeque<f64>,
    /// Since the worse one was taken.
    faithful: u32,
}

impl Pair {
    fn choose(&mut self) -> Way {
        let best = |costs: &VecDeque<f64>| costs.iter().copied().reduce(f64::min);
        let (Some(usual), Some(other)) = (best(&self.usual), best(&self.other)) else {
            return if self.usual.is_empty() { Way::Usual } else { Way::Other };
        };
        let (better, worse) = if other < usual { (Way::Other, Way::Usual) } else { (Way::Usual, Way::Other) };
        if self.faithful >= FAITHFUL {
            self.faithful = 0;
            return worse;
        }
        self.faithful += 1;
        better
    }

    fn note(&mut self, way: Way, bytes: u64, took: Duration) {
        if bytes < BYTES_MIN {
            return;
        }
        let costs = match way {
            Way::Usual => &mut self.usual,
            Way::Other => &mut self.other,
        };
        if costs.len() == KEPT {
            costs.pop_front();
        }
        costs.push_back(took.as_secs_f64() / bytes as f64);
    }
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freight {
    /// A tree that shrinks, into the guest: as it is, or compressed.
    TreeIn,
    /// Small files out of the guest: as they are, or compressed there.
    SmallOut,
    /// Large files out of the guest: in a tar stream, or over SFTP.
    LargeOut,
}

/// The memory of one kind of guest.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<[Pair; 3]>);

type Kind = (String, u16, std::path::PathBuf);

static KNOWN: LazyLock<Mutex<BTreeMap<Kind, Arc<Pace>>>> = LazyLock::new(Mutex::default);

impl Pace {
    /// What is known of guests like this one.
    pub(super) fn of(target: &Target) -> Arc<Self> {
        let kind = (target.user.clone(), target.port, target.key.clone());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KINDS_MAX && !known.contains_key(&kind) {
            known.clear();
        }
        known.entry(kind).or_default().clone()
    }

    /// The way to take now.
    pub(super) fn choose(&self, freight: Freight) -> Way {
        self.pair(freight, Pair::choose)
    }

    /// What it took.
    pub(super) fn note(&self, freight: Freight, way: Way, bytes: u64, took: Duration) {
        self.pair(freight, |pair| pair.note(way, bytes, took));
    }

    fn pair<T>(&self, freight: Freight, of: impl FnOnce(&mut Pair) -> T) -> T {
        let mut pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [tree, small, large] = &mut *pairs;
        of(match freight {
            Freight::TreeIn => tree,
            Freight::SmallOut => small,
            Freight::LargeOut => large,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pace: &Pace, millis: impl Fn(Way) -> u64) -> Way {
        let way = pace.choose(Freight::TreeIn);
        pace.note(Freight::TreeIn, way, BYTES_MIN, Duration::from_millis(millis(way)));
        way
    }

    #[test]
    fn each_way_is_tried_once_and_then_the_better_one_is_taken() {
        for better in [Way::Usual, Way::Other] {
            let pace = Pace::default();
            let cost = |way| if way == better { 50 } else { 60 };
            assert_eq!([after(&pace, cost), after(&pace, cost)], [Way::Usual, Way::Other]);
            for _ in 0..FAITHFUL {
                assert_eq!(after(&pace, cost), better);
            }
            assert_ne!(after(&pace, cost), better, "the other one gets another chance");
            assert_eq!(after(&pace, cost), better);
            assert_eq!(pace.choose(Freight::LargeOut), Way::Usual, "nothing is known of it");
        }
    }

    #[test]
    fn a_way_that_got_slow_for_good_is_left_and_one_slow_transfer_changes_nothing() {
        let pace = Pace::default();
        let cost = |way| if way == Way::Usual { 50 } else { 60 };
        after(&pace, cost);
        after(&pace, cost);
        assert_eq!(after(&pace, |_| 500), Way::Usual);
        assert_eq!(after(&pace, cost), Way::Usual);
        let slow = |way| if way == Way::Usual { 500 } else { 60 };
        for _ in 0..KEPT {
            after(&pace, slow);
        }
        assert_eq!(pace.choose(Freight::TreeIn), Way::Other);
    }

    #[test]
    fn what_is_small_is_no_measurement() {
        let pace = Pace::default();
        pace.note(Freight::TreeIn, Way::Usual, BYTES_MIN - 1, Duration::from_secs(1));
        assert_eq!(pace.choose(Freight::TreeIn), Way::Usual);
    }

    #[test]
    fn guests_of_one_kind_share_what_is_known() {
        let target = |port| Target {
            address: "127.0.0.1".parse().expect("an address"),
            port,
            user: "pace".into(),
            key: "k".into(),
        };
        assert!(Arc::ptr_eq(&Pace::of(&target(1)), &Pace::of(&target(1))));
        assert!(!Arc::ptr_eq(&Pace::of(&target(1)), &Pace::of(&target(2))));
    }
}
