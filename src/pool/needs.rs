//! Which pool a build gets that asks for what a VM must have, and not for a pool by its name.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use semver::{Version, VersionReq};

use crate::config::Pool;
use crate::ids::PoolName;

/// How a pool stands, as far as that matters to whoever may choose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    pub warm: usize,
    pub waiting: usize,
    /// Its VMs fail to come up.
    pub trouble: bool,
}

/// How pools stand. One that is not in it has nothing warm and nobody waiting.
pub type Standings = BTreeMap<PoolName, Standing>;

/// What is asked for, by name: `xcode` = `>=26`, `macos` = `tahoe`.
pub type Needs = BTreeMap<String, String>;

/// What one need comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Need {
    Versions(VersionReq),
    Word(String),
}

/// Why a need means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is neither a word nor a requirement of versions: {0}")]
pub struct Meaningless(String);

/// Nothing has all that is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no pool provides {needs}; {provided}")]
pub struct Unmet {
    needs: String,
    provided: String,
}

fn parse(text: &str) -> Result<Need, Meaningless> {
    let text = text.trim();
    let required = |text: &str| VersionReq::parse(text).map_err(|e| Meaningless(e.to_string()));
    if text.starts_with(['>', '<', '=', '~', '^']) || text.contains(['*', ',']) {
        return required(text).map(Need::Versions);
    }
    // `26.2` is every 26.2, not every 26 from there on.
    if text.starts_with(|c: char| c.is_ascii_digit())
        && let Ok(versions) = required(&format!("={text}"))
    {
        return Ok(Need::Versions(versions));
    }
    if text.is_empty() { Err(Meaningless("it is empty".into())) } else { Ok(Need::Word(text.to_owned())) }
}

/// Whether a need can be met at all.
///
/// # Errors
/// When it means nothing.
pub fn check(text: &str) -> Result<(), Meaningless> {
    parse(text).map(drop)
}

/// A version as people write it: one to three numbers count, what follows does not.
fn version(text: &str) -> Option<Version> {
    let numbers = text.trim().split('.').take(3).map(str::parse::<u64>);
    let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().ok()?;
    let at = |n: usize| numbers.get(n).copied().unwrap_or(0);
    Some(Version::new(*numbers.first()?, at(1), at(2)))
}

fn meets(fact: &str, need: &str) -> bool {
    match parse(need) {
        Ok(Need::Versions(versions)) => version(fact).is_some_and(|version| versions.matches(&version)),
        Ok(Need::Word(word)) => word.eq_ignore_ascii_case(fact.trim()),
        Err(_) => false,
    }
}

/// Whether a pool provides all that is needed.
pub fn provides(pool: &Pool, needs: &Needs) -> bool {
    needs.iter().all(|(name, need)| pool.provides.get(name).is_some_and(|fact| meets(fact, need)))
}

/// The pool for a build that needs this: of those that provide it one whose VMs come up, for which the fewest wait, then the
/// one with the most that is warm, then the first by name.
///
/// # Errors
/// When none does: what there is.
pub fn choose<'p>(
    needs: &Needs,
    pools: &'p BTreeMap<PoolName, Pool>,
    standings: &Standings,
) -> Result<&'p PoolName, Unmet> {
    let fitting = pools.iter().filter(|(_, pool)| provides(pool, needs)).map(|(name, _)| name);
    let rank = |name: &&PoolName| {
        let Standing { warm, waiting, trouble } = standings.get(*name).copied().unwrap_or_default();
        (trouble, waiting, Reverse(warm), (*name).clone())
    };
    fitting.min_by_key(rank).ok_or_else(|| unmet(needs, pools))
}

/// That nothing of `pools` has what is needed.
pub fn unmet(needs: &Needs, pools: &BTreeMap<PoolName, Pool>) -> Unmet {
    let one = |(name, pool): (&PoolName, &Pool)| match facts(&pool.provides) {
        none if none.is_empty() => format!("`{name}` says nothing of itself"),
        facts => format!("`{name}` provides {facts}"),
    };
    let provided: Vec<String> = pools.iter().map(one).collect();
    let provided = if provided.is_empty() { "there is none".to_owned() } else { provided.join("; ") };
    let needs: Vec<String> = needs.iter().map(|(name, need)| format!("{name} {need}")).collect();
    Unmet { needs: needs.join(", "), provided }
}

/// `macos tahoe, xcode 26.2`
pub fn facts(provides: &BTreeMap<String, String>) -> String {
    let all: Vec<String> = provides.iter().map(|(name, fact)| format!("{name} {fact}")).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn table(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn pools(all: &[(&str, &[(&str, &str)])]) -> BTreeMap<PoolName, Pool> {
        let pool = |facts| Pool { provides: table(facts), ..testing::pool("macos") };
        all.iter().map(|(name, facts)| (name.parse().expect("a name"), pool(facts))).collect()
    }

    #[test]
    fn versions_are_compared_as_people_write_them_and_words_as_words() {
        for (fact, need, is) in [
            ("26.2", ">=26", true),
            ("26", ">=26", true),
            ("25.4", ">=26", false),
            ("26.2.1", "26.2", true),
            ("26.3", "26.2", false),
            ("26.3", "26", true),
            ("27", "26", false),
            ("26.4", ">=26.1, <27", true),
            ("26.4", "26.*", true),
            ("tahoe", "tahoe", true),
            ("tahoe", "Tahoe", true),
            ("sequoia", "tahoe", false),
            ("tahoe", ">=26", false),
            ("26.2.0.1", "~26.2", true),
        ] {
            assert_eq!(meets(fact, need), is, "{fact} for {need}");
        }
        for bad in ["", " ", ">=", ">=tahoe", ">26 <27"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_build_gets_a_pool_that_has_all_of_it_and_the_one_where_it_waits_least() {
        let all = pools(&[
            ("a", &[("xcode", "26.2"), ("macos", "tahoe")]),
            ("b", &[("xcode", "26.4"), ("macos", "tahoe")]),
            ("c", &[("xcode", "27"), ("macos", "sequoia")]),
            ("d", &[]),
        ]);
        let name = |text: &str| text.parse::<PoolName>().expect("a name");
        let chosen = |needs: &[(&str, &str)], standings: &[(&str, Standing)]| {
            let standings = standings.iter().map(|(pool, standing)| (name(pool), *standing)).collect();
            choose(&table(needs), &all, &standings).map(ToString::to_string).map_err(|e| e.to_string())
        };
        let needs = [("xcode", ">=26"), ("macos", "tahoe")];
        let warm = |warm| Standing { warm, ..Standing::default() };
        assert_eq!(chosen(&needs, &[]).as_deref(), Ok("a"), "the first by name");
        assert_eq!(chosen(&needs, &[("b", warm(1))]).as_deref(), Ok("b"), "something is warm there");
        let busy = Standing { waiting: 2, ..warm(0) };
        assert_eq!(chosen(&needs, &[("a", busy), ("b", warm(0))]).as_deref(), Ok("b"));
        let broken = Standing { trouble: true, ..warm(2) };
        assert_eq!(chosen(&needs, &[("a", broken), ("b", busy)]).as_deref(), Ok("b"));
        assert_eq!(
            chosen(&[("xcode", ">=28")], &[]).expect_err("none has it"),
            "no pool provides xcode >=28; `a` provides macos tahoe, xcode 26.2; `b` provides macos tahoe, xcode 26.4; \
             `c` provides macos sequoia, xcode 27; `d` says nothing of itself"
        );
    }
}
