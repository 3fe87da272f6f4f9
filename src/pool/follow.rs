//! How the books follow another configuration. Nothing that runs is stopped here: bounds are lowered around it, a pool that is
//! no more is closed and loses its slots, and what is made from other stuff than before becomes outdated. What follows from
//! that, `policy` decides.

use super::ledger::{Ledger, PoolRow};
use crate::config::Config;
use crate::ids::{BuildId, PoolName};

impl Ledger {
    /// Takes another configuration over; VMs of the pools in `roll` are outdated by it. Returns the builds that waited for a
    /// pool that is no more; they wait no longer.
    pub fn follow(&mut self, config: &Config, roll: &[PoolName]) -> Vec<BuildId> {
        self.host.bound(&config.host);
        self.newest_edition += 1;
        let edition = self.newest_edition;
        for (name, pool) in &config.pools {
            let fresh = PoolRow::new(pool, edition);
            match self.pools.get_mut(name) {
                Some(row) if !row.closed && !roll.contains(name) => {
                    (row.warm, row.max, row.max_age) = (fresh.warm, fresh.max, fresh.max_age);
                }
                // Its image is looked at again, and what failed before may work now.
                Some(row) => *row = fresh,
                None => drop(self.pools.insert(name.clone(), fresh)),
            }
        }
        for (name, row) in &mut self.pools {
            if !config.pools.contains_key(name) {
                (row.warm, row.max, row.closed) = (0, 0, true);
            }
        }
        self.count_again();
        let homeless = self.waiting().iter().filter(|w| !self.is_open(&w.pool)).map(|w| w.build);
        let homeless: Vec<BuildId> = homeless.collect();
        homeless.iter().for_each(|build| self.withdraw(*build));
        self.forget_closed();
        homeless
    }

    /// Whether builds can wait for the pool.
    pub fn is_open(&self, pool: &PoolName) -> bool {
        self.pools.get(pool).is_some_and(|row| !row.closed)
    }
}
