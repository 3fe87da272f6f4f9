//! What many seeds came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::life::Outcome;
use crate::step::Step;

/// Over all seeds.
#[derive(Debug, Default)]
pub struct Sum {
    pub seeds: u64,
    pub builds: u64,
    results: BTreeMap<String, u64>,
    counts: BTreeMap<(Step, &'static str), u64>,
    kills: u64,
    stops: u64,
    jumps: u64,
    pub adopted: u64,
    pub orders: BTreeMap<&'static str, u64>,
    took: Duration,
    pub failed: u64,
    /// The same for the same seeds.
    fingerprint: u64,
}

impl Sum {
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.builds += outcome.builds;
        for (result, count) in &outcome.results {
            *self.results.entry(result.clone()).or_default() += count;
        }
        for (key, count) in &outcome.counts {
            *self.counts.entry(*key).or_default() += count;
        }
        self.kills += outcome.kills;
        self.stops += outcome.stops;
        self.jumps += outcome.jumps;
        self.adopted += outcome.adopted;
        for (order, count) in &outcome.orders {
            *self.orders.entry(order).or_default() += count;
        }
        self.took += outcome.took;
        self.fingerprint ^= outcome.fingerprint;
        self.failed += u64::from(outcome.broken.is_some());
    }

    /// Steps, and ways to go wrong, that none of the seeds had.
    pub fn unseen(&self) -> Vec<(Step, &'static str)> {
        let all =
            Step::ALL.into_iter().flat_map(|step| ["ok", "error", "slow", "never"].map(|word| (step, word)));
        all.filter(|key| !self.counts.contains_key(key)).collect()
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<10} {:>9} {:>9} {:>9} {:>9}", "step", "ok", "error", "slow", "never")?;
        for step in Step::ALL {
            let count = |word| self.counts.get(&(step, word)).copied().unwrap_or(0);
            let (ok, error, slow, never) = (count("ok"), count("error"), count("slow"), count("never"));
            writeln!(f, "{:<10} {ok:>9} {error:>9} {slow:>9} {never:>9}", format!("{step:?}"))?;
        }
        let faults: u64 = self.counts.iter().filter(|((_, word), _)| *word != "ok").map(|(_, n)| n).sum();
        let (kills, stops, jumps, adopted) = (self.kills, self.stops, self.jumps, self.adopted);
        let days = self.took.as_secs() / 86_400;
        writeln!(f, "{} builds: {:?}", self.builds, self.results)?;
        writeln!(
            f,
            "{faults} faults, {kills} kills, {stops} stops, {jumps} jumps of the clock, {adopted} VMs adopted"
        )?;
        writeln!(f, "orders of operators: {:?}", self.orders)?;
        write!(
            f,
            "{days} days of the world's time; {} seeds ({:016x}), {} failed",
            self.seeds, self.fingerprint, self.failed
        )
    }
}
