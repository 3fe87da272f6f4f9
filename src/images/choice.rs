//! Which generation of an image is in use:
//!
//! ```text
//!   chosen (tried) -- a VM of it gets warm --> good -- another one is chosen --> remembered as good before it
//!         |
//!         `-- VMs of it fail to come up, one after the other --> the good one before it, if that is still there
//! ```
//!
//! An image for which nobody has chosen is the VM of its name. Where there is no such VM, the newest generation is taken.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::generation::Which;
use crate::clock::UnixMillis;
use crate::config::Config;

/// So many are gone back to: older ones are deleted by then.
const BEFORE_MAX: usize = 8;

/// So many VMs of a generation in a row that do not come up, and none that did, are no accident. As the pool has it for images.
pub const FAILURES_MAX: u32 = 3;

/// Every image for which somebody has chosen, by its name.
pub type Choices = BTreeMap<String, Choice>;

/// What an image's name means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub current: Which,
    /// A VM of it got warm.
    pub good: bool,
    /// Good ones that were in use before, the last one last.
    pub before: Vec<Which>,
    /// The last one that did not come up, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    pub since_ms: UnixMillis,
}

/// One that does not come up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub which: Which,
    pub why: String,
}

impl Choice {
    /// What holds while nobody has chosen: it has served until now.
    pub fn unmade() -> Self {
        Self { current: None, good: true, before: Vec::new(), failed: None, since_ms: UnixMillis(0) }
    }

    /// `next` from now on. What is in use is remembered if it was good and is still there.
    #[must_use]
    pub fn choose(&self, next: Which, there: &BTreeSet<Which>, now: UnixMillis) -> Self {
        if next == self.current {
            return self.clone();
        }
        let mut before = self.before.clone();
        if self.good && there.contains(&self.current) {
            before.push(self.current);
        }
        before.retain(|which| *which != next);
        before.drain(..before.len().saturating_sub(BEFORE_MAX));
        let failed = self.failed.clone().filter(|failed| failed.which != next);
        Self { current: next, good: false, before, failed, since_ms: now }
    }

    /// The last good one before; `None` when none is there any more.
    pub fn back(&self, there: &BTreeSet<Which>, now: UnixMillis) -> Option<Self> {
        let mut before = self.before.clone();
        before.retain(|which| there.contains(which) && *which != self.current);
        let current = before.pop()?;
        Some(Self { current, good: true, before, failed: self.failed.clone(), since_ms: now })
    }

    /// What is in use does not come up: the last good one, or the same, with the reason noted.
    #[must_use]
    pub fn fail(&self, why: &str, there: &BTreeSet<Which>, now: UnixMillis) -> Self {
        let failed = Some(Failed { which: self.current, why: why.to_owned() });
        let choice = self.back(there, now).unwrap_or_else(|| self.clone());
        Self { failed, ..choice }
    }

    /// A VM of it got warm.
    #[must_use]
    pub fn prove(&self) -> Self {
        let failed = self.failed.clone().filter(|failed| failed.which != self.current);
        Self { good: true, failed, ..self.clone() }
    }

    fn is_told_to_fail(&self) -> bool {
        self.failed.as_ref().is_some_and(|failed| failed.which == self.current)
    }
}

/// Puts the choices into a configuration.
pub fn apply(config: &mut Config, choices: &Choices) {
    for pool in config.pools.values_mut() {
        pool.generation = choices.get(&pool.image).and_then(|choice| choice.current);
    }
}

/// A pool, as far as its image goes.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub image: &'a str,
    pub which: Which,
    /// A VM of it got warm since the pool has it.
    pub proven: bool,
    /// VMs of it that did not come up before that.
    pub failures: u32,
    /// Why the last of them did not.
    pub last: Option<&'a str>,
    /// There is no such image.
    pub missing: bool,
}

/// What is to be done about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// It is good.
    Prove { image: String },
    /// It does not come up.
    Fail { image: String, why: String },
    /// It is not there, and nobody has chosen a generation.
    Adopt { image: String },
}

/// The next thing to do. What is in `tried` was looked for in vain.
pub fn due<'a>(
    choices: &Choices,
    tried: &BTreeSet<String>,
    pools: impl IntoIterator<Item = Seen<'a>> + Clone,
) -> Option<Due> {
    let under_trial = choices.iter().filter(|(_, choice)| !choice.good);
    let mut judged = under_trial.filter_map(|(name, choice)| {
        let of = |pool: &Seen<'_>| pool.image == name && pool.which == choice.current;
        let of: Vec<Seen<'_>> = pools.clone().into_iter().filter(of).collect();
        if of.iter().any(|pool| pool.proven) {
            return Some(Due::Prove { image: name.clone() });
        }
        let failing = of.iter().find(|pool| pool.failures >= FAILURES_MAX && !choice.is_told_to_fail())?;
        let why = failing.last.unwrap_or("its VMs do not come up").to_owned();
        Some(Due::Fail { image: name.clone(), why })
    });
    // What has a `/` in its name is a registry's, and has no generations here.
    let open = |pool: &Seen<'_>| {
        let asked = choices.contains_key(pool.image) || tried.contains(pool.image);
        pool.missing && !pool.image.contains('/') && !asked
    };
    let adopt =
        || pools.clone().into_iter().find(open).map(|pool| Due::Adopt { image: pool.image.to_owned() });
    judged.next().or_else(adopt)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMillis = UnixMillis(7);

    fn there(generations: &[Which]) -> BTreeSet<Which> {
        generations.iter().copied().collect()
    }

    #[test]
    fn the_last_good_one_is_kept_and_gone_back_to() {
        let all = there(&[None, Some(1), Some(2), Some(3)]);
        let first = Choice::unmade().choose(Some(1), &all, NOW);
        assert_eq!((first.current, first.good, &first.before[..]), (Some(1), false, &[None][..]));
        let second = first.prove().choose(Some(2), &all, NOW);
        assert_eq!(second.before, [None, Some(1)]);
        // 2 never came up: whoever goes on to 3 goes back to 1.
        let third = second.choose(Some(3), &all, NOW);
        assert_eq!(third.before, [None, Some(1)]);
        let back = third.back(&all, NOW).expect("there is one");
        assert_eq!((back.current, back.good, &back.before[..]), (Some(1), true, &[None][..]));
        let further = back.back(&all, NOW).expect("the image itself");
        assert_eq!(further.current, None);
        assert_eq!(further.back(&all, NOW), None);
    }

    #[test]
    fn what_is_gone_is_not_gone_back_to() {
        let choice = Choice { current: Some(3), before: vec![Some(1), Some(2)], ..Choice::unmade() };
        assert_eq!(choice.back(&there(&[Some(1), Some(3)]), NOW).map(|c| c.current), Some(Some(1)));
        assert_eq!(choice.back(&there(&[Some(3)]), NOW), None);
    }

    #[test]
    fn one_that_does_not_come_up_is_named_with_its_reason_also_where_nothing_is_left_to_go_back_to() {
        let all = there(&[Some(1), Some(2)]);
        let choice = Choice { current: Some(1), ..Choice::unmade() }.choose(Some(2), &all, NOW);
        let failed = choice.fail("no answer", &all, NOW);
        let of = |which| Some(Failed { which, why: "no answer".into() });
        assert_eq!((failed.current, failed.good, failed.failed.clone()), (Some(1), true, of(Some(2))));
        let alone = Choice { before: Vec::new(), ..choice }.fail("no answer", &all, NOW);
        assert_eq!((alone.current, alone.good, alone.failed.clone()), (Some(2), false, of(Some(2))));
        assert_eq!(alone.prove().failed, None, "it came up after all");
        assert_eq!(failed.choose(Some(2), &all, NOW).failed, None, "it is tried again");
    }

    fn seen(which: Which, proven: bool, failures: u32) -> Seen<'static> {
        Seen { image: "macos", which, proven, failures, last: Some("no answer"), missing: false }
    }

    #[test]
    fn a_generation_is_judged_by_its_own_vms_and_once() {
        let image = || "macos".to_owned();
        let all = there(&[None, Some(1)]);
        let tried = Choice::unmade().choose(Some(1), &all, NOW);
        let choices = |choice: &Choice| Choices::from([(image(), choice.clone())]);
        let none = BTreeSet::new();
        let judge = |choice: &Choice, pools: &[Seen<'static>]| due(&choices(choice), &none, pools.to_vec());
        let fails = Due::Fail { image: image(), why: "no answer".into() };
        assert_eq!(judge(&tried, &[seen(Some(1), false, 2)]), None);
        assert_eq!(judge(&tried, &[seen(Some(1), false, 3)]), Some(fails));
        assert_eq!(judge(&tried, &[seen(None, true, 3)]), None, "the pool has another one still");
        let one_of_two = [seen(Some(1), false, 9), seen(Some(1), true, 0)];
        assert_eq!(judge(&tried, &one_of_two), Some(Due::Prove { image: image() }));
        assert_eq!(judge(&tried.prove(), &[seen(Some(1), false, 9)]), None, "it was good");
        let told = Choice { before: Vec::new(), ..tried }.fail("no answer", &all, NOW);
        assert_eq!(judge(&told, &[seen(Some(1), false, 9)]), None, "nothing is left to go back to");
    }

    #[test]
    fn the_newest_generation_is_looked_for_where_the_image_is_missing_and_nobody_has_chosen() {
        let missing = Seen { missing: true, ..seen(None, false, 0) };
        let adopt = Some(Due::Adopt { image: "macos".into() });
        assert_eq!(due(&Choices::new(), &BTreeSet::new(), [missing]), adopt);
        assert_eq!(due(&Choices::new(), &BTreeSet::from(["macos".into()]), [missing]), None);
        assert_eq!(
            due(&Choices::from([("macos".into(), Choice::unmade())]), &BTreeSet::new(), [missing]),
            None
        );
        let pulled = Seen { image: "ghcr.io/a/macos", ..missing };
        assert_eq!(due(&Choices::new(), &BTreeSet::new(), [pulled]), None);
    }

    proptest! {
        #[test]
        fn whatever_is_chosen_what_is_gone_back_to_was_good_and_is_another_one(
            moves in proptest::collection::vec((0_u32..5, 0_u8..4), 0..60)
        ) {
            let all: BTreeSet<Which> = (0..5).map(Some).collect();
            let (mut choice, mut good) = (Choice { current: Some(0), ..Choice::unmade() }, BTreeSet::from([Some(0)]));
            for (generation, what) in moves {
                match what {
                    0 => choice = choice.choose(Some(generation), &all, NOW),
                    1 => { choice = choice.prove(); good.insert(choice.current); }
                    2 => choice = choice.fail("why", &all, NOW),
                    _ => choice = choice.back(&all, NOW).unwrap_or(choice),
                }
                prop_assert!(choice.before.len() <= BEFORE_MAX);
                prop_assert!(choice.before.iter().all(|which| good.contains(which)));
                if let Some(back) = choice.back(&all, NOW) {
                    prop_assert!(back.current != choice.current && back.good);
                }
            }
        }
    }
}
