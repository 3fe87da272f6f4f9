//! Who waits, in the order of who asked first; and the same for each pool alone, so that nobody has to look for the builds
//! of one pool among those of all.

use std::collections::{BTreeMap, BTreeSet};

use super::Waiting;
use crate::clock::UnixMillis;
use crate::ids::{BuildId, PoolName};

/// A build's place in the order.
type Turn = (UnixMillis, BuildId);

/// The builds that wait.
#[derive(Debug, Default)]
pub struct Queue {
    order: BTreeMap<Turn, Waiting>,
    turns: BTreeMap<BuildId, Turn>,
    /// Only of pools for which somebody waits.
    pools: BTreeMap<PoolName, BTreeSet<Turn>>,
    /// The first of each of these pools.
    heads: BTreeMap<Turn, PoolName>,
    /// Pools whose builds are others than when it was last asked.
    changed: BTreeSet<PoolName>,
}

impl Queue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// All, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.order.values()
    }

    /// Those that wait for a pool, in their order.
    pub fn of(&self, pool: &PoolName) -> impl Iterator<Item = BuildId> {
        self.pools.get(pool).into_iter().flatten().map(|(_, build)| *build)
    }

    /// How many wait for a pool.
    pub fn count(&self, pool: &PoolName) -> usize {
        self.pools.get(pool).map_or(0, BTreeSet::len)
    }

    /// Who is first for each pool that somebody waits for, in their order.
    pub fn heads(&self) -> impl Iterator<Item = (&PoolName, BuildId)> {
        self.heads.iter().map(|((_, build), pool)| (pool, *build))
    }

    /// A build that waits.
    pub fn get(&self, build: BuildId) -> Option<&Waiting> {
        self.order.get(self.turns.get(&build)?)
    }

    /// How many of its pool are before a build that waits.
    pub fn ahead(&self, build: BuildId) -> Option<usize> {
        let turn = self.turns.get(&build)?;
        let pool = self.pools.get(&self.order.get(turn)?.pool)?;
        Some(pool.range(..turn).count())
    }

    /// Lines a build up where `since` says. One that waits already keeps its place.
    pub(super) fn push(&mut self, waiting: Waiting) {
        let turn = (waiting.since, waiting.build);
        if self.turns.contains_key(&waiting.build) {
            return;
        }
        self.turns.insert(waiting.build, turn);
        self.change(&waiting.pool, |turns| turns.insert(turn));
        self.order.insert(turn, waiting);
    }

    /// A build waits no more.
    pub(super) fn remove(&mut self, build: BuildId) -> Option<Waiting> {
        let turn = self.turns.remove(&build)?;
        let waiting = self.order.remove(&turn)?;
        self.change(&waiting.pool, |turns| turns.remove(&turn));
        Some(waiting)
    }

    fn change(&mut self, pool: &PoolName, act: impl FnOnce(&mut BTreeSet<Turn>) -> bool) {
        let turns = self.pools.entry(pool.clone()).or_default();
        let before = turns.first().copied();
        act(turns);
        let after = turns.first().copied();
        if after.is_none() {
            self.pools.remove(pool);
        }
        if before != after {
            before.and_then(|head| self.heads.remove(&head));
            after.and_then(|head| self.heads.insert(head, pool.clone()));
        }
        self.changed.insert(pool.clone());
    }

    pub(super) fn take_changed(&mut self) -> BTreeSet<PoolName> {
        std::mem::take(&mut self.changed)
    }

    /// Whether what is kept by pool says the same as the order of all.
    pub(super) fn audit(&self) -> Result<(), String> {
        let mut pools: BTreeMap<PoolName, BTreeSet<Turn>> = BTreeMap::new();
        for (turn, waiting) in &self.order {
            if *turn != (waiting.since, waiting.build) || self.turns.get(&waiting.build) != Some(turn) {
                return Err(format!("build {} waits in another place than it is looked for", waiting.build));
            }
            pools.entry(waiting.pool.clone()).or_default().insert(*turn);
        }
        let first = pools.iter().filter_map(|(pool, turns)| Some((*turns.first()?, pool.clone())));
        let heads: BTreeMap<Turn, PoolName> = first.collect();
        if pools != self.pools || heads != self.heads || self.turns.len() != self.order.len() {
            return Err("who waits for a pool is not who waits".into());
        }
        Ok(())
    }
}
