//! Which of the things that are over go: by rank, by age, by bytes, and by what the disk needs. The oldest go first. What is
//! held (it runs, or is not delivered) stays whatever the policy says, and so does the newest.

use std::time::Duration;

/// Stay whatever the policy says. Ages come from the wall clock, and one that was set forward must not take everything.
const NEWEST: usize = 1;

/// Something that may go. Lists of these are newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What its removal would give back, as far as it is known.
    pub bytes: u64,
    /// Since it was over.
    pub age: Duration,
    /// It runs, or is owed to somebody.
    pub held: bool,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many.
    pub count: usize,
    pub age: Duration,
    /// All together; `None` does not bound them.
    pub bytes: Option<u64>,
    /// Bytes that the disk is short of: this much goes before its time.
    pub short_of: u64,
}

/// The places in `items` of those that go, the oldest first.
pub fn plan(items: &[Item], policy: &Policy) -> Vec<usize> {
    let mut total = items.iter().fold(0_u64, |sum, item| sum.saturating_add(item.bytes));
    let mut freed = 0_u64;
    let mut gone = Vec::new();
    for (rank, item) in items.iter().enumerate().skip(NEWEST).rev() {
        let over = rank >= policy.count || item.age > policy.age;
        let large = policy.bytes.is_some_and(|max| total > max);
        if item.held || !(over || large || freed < policy.short_of) {
            continue;
        }
        total = total.saturating_sub(item.bytes);
        freed = freed.saturating_add(item.bytes);
        gone.push(rank);
    }
    gone
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(1 << 30);

    fn item(bytes: u64, days: u64) -> Item {
        Item { bytes, age: Duration::from_secs(days * 86400), held: false }
    }

    fn policy() -> Policy {
        Policy { count: 100, age: LONG, bytes: None, short_of: 0 }
    }

    #[test]
    fn the_oldest_go_first_by_rank_by_age_and_by_bytes() {
        let items = [item(1, 0), item(2, 1), item(4, 2), item(8, 3)];
        assert_eq!(plan(&items, &policy()), [0; 0]);
        assert_eq!(plan(&items, &Policy { count: 2, ..policy() }), [3, 2]);
        let two_days = Duration::from_secs(2 * 86400);
        assert_eq!(plan(&items, &Policy { age: two_days, ..policy() }), [3]);
        assert_eq!(plan(&items, &Policy { bytes: Some(3), ..policy() }), [3, 2]);
        assert_eq!(plan(&items, &Policy { short_of: 9, ..policy() }), [3, 2]);
    }

    #[test]
    fn what_is_held_stays_and_takes_nothing_newer_along_by_rank() {
        let mut items = vec![item(1, 0), item(1, 1), item(1, 2)];
        items[2].held = true;
        assert_eq!(plan(&items, &Policy { count: 2, ..policy() }), [0; 0]);
    }

    fn any_items() -> impl Strategy<Value = Vec<Item>> {
        let one = (0_u64..1000, 0_u64..1000, any::<bool>());
        proptest::collection::vec(one, 0..40).prop_map(|list| {
            let mut items: Vec<Item> = list
                .into_iter()
                .map(|(bytes, seconds, held)| Item { bytes, age: Duration::from_secs(seconds), held })
                .collect();
            items.sort_by_key(|item| item.age);
            items
        })
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        (1_usize..50, 0_u64..1200, proptest::option::of(0_u64..20_000), 0_u64..20_000).prop_map(
            |(count, age, bytes, short_of)| Policy { count, age: Duration::from_secs(age), bytes, short_of },
        )
    }

    proptest! {
        #[test]
        fn nothing_held_goes_the_newest_stays_and_what_is_left_fits_where_it_can(
            items in any_items(), policy in any_policy()
        ) {
            let gone = plan(&items, &policy);
            for n in &gone {
                prop_assert!(!items[*n].held, "held");
                prop_assert!(*n >= NEWEST, "the newest");
            }
            prop_assert!(gone.windows(2).all(|w| w[0] > w[1]), "the oldest first, each once");
            let left: Vec<_> = (0..items.len()).filter(|n| !gone.contains(n)).collect();
            let loose = |n: &usize| !items[*n].held && *n >= NEWEST;
            for n in left.iter().filter(|n| loose(n)) {
                prop_assert!(*n < policy.count && items[*n].age <= policy.age, "kept beyond rank or age");
            }
            let total: u64 = left.iter().map(|n| items[*n].bytes).sum();
            let freed: u64 = gone.iter().map(|n| items[*n].bytes).sum();
            if left.iter().any(loose) {
                prop_assert!(policy.bytes.is_none_or(|max| total <= max), "it does not fit, and could");
                prop_assert!(freed >= policy.short_of, "the disk is short, and need not be");
            }
        }

        #[test]
        fn what_goes_goes_for_a_reason(items in any_items(), policy in any_policy()) {
            // Before each removal a bound was broken.
            let mut total: u64 = items.iter().map(|item| item.bytes).sum();
            let mut freed = 0;
            for n in plan(&items, &policy) {
                let over = n >= policy.count || items[n].age > policy.age;
                let large = policy.bytes.is_some_and(|max| total > max);
                prop_assert!(over || large || freed < policy.short_of);
                total -= items[n].bytes;
                freed += items[n].bytes;
            }
        }
    }
}
