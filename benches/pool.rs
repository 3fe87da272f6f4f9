//! How fast the pool decides: the books and the policy alone, through whole lives of VMs, from ten slots to ten thousand; and
//! what it costs to publish a snapshot after a VM moved. No actor, no process, no clock but to measure.

mod common;

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::{Spread, figure, say};
use preheat::clock::{Instant, UnixMillis, now};
use preheat::config::file::Env;
use preheat::config::{Config, Home, Inputs, load};
use preheat::ids::{BuildId, Generation, PoolName, SlotId};
use preheat::pool::ledger::{Changes, Ledger, Waiting};
use preheat::pool::policy::{Decision, decide};
use preheat::pool::snapshot::{PoolSnapshot, Publisher};
use preheat::runtime::{GuestOs, ImageInfo, VmName};
use preheat::vm::state::VmStateName;

/// Slots in all, in how many pools, and how many builds wait while every VM is in use.
const SHAPES: [(u16, u16, u16); 6] =
    [(10, 1, 0), (100, 1, 0), (1_000, 1, 0), (10_000, 1, 0), (10_000, 100, 0), (10_000, 1, 10_000)];

/// The size that the figure is for: a large Mac has two macOS guests and some of Linux.
const FIGURE_SLOTS: u16 = 10;
/// The size that it is to be compared with.
const LARGE_SLOTS: u16 = 10_000;

/// Rounds, each of all shapes in turn, and how long one is measured in a round.
const ROUNDS: usize = 9;
const SLICE: Duration = Duration::from_millis(150);

/// Snapshots of one measurement.
const SNAPSHOTS: u32 = 500;

fn main() -> std::process::ExitCode {
    common::main(bench())
}

async fn bench() -> Result<()> {
    common::machine("none");
    let mut sizes = SHAPES.map(|shape| (shape, Spread::default(), Spread::default()));
    let mut benches = SHAPES.map(Books::new).into_iter().collect::<Result<Vec<_>>>()?;
    for _ in 0..ROUNDS {
        for (books, (_, decisions, snapshots)) in benches.iter_mut().zip(&mut sizes) {
            decisions.add(books.decisions_per_second()?);
            snapshots.add(books.snapshot_us()?);
        }
    }
    say("median [min - max]; every decision with its move in the books, every rest with its audit");
    for ((slots, pools, waiting), decisions, snapshots) in &sizes {
        let what = format!("{slots:>6} slots, {pools:>3} pools, {waiting:>5} wait");
        say(&format!("  {what}: decisions/s  {decisions}"));
        say(&format!("  {what}: snapshot us  {snapshots}"));
    }
    report(&sizes)
}

fn report(sizes: &[((u16, u16, u16), Spread, Spread)]) -> Result<()> {
    let of = |slots| {
        let found = sizes.iter().find(|(shape, ..)| *shape == (slots, 1, 0));
        let (_, decisions, snapshots) = found.context("every size is measured")?;
        anyhow::Ok((decisions.median(), snapshots.median()))
    };
    let (small, large) = (of(FIGURE_SLOTS)?, of(LARGE_SLOTS)?);
    figure("decisions_per_second", small.0);
    figure("snapshot_us", small.1);
    for ((slots, ..), decisions, snapshots) in
        sizes.iter().filter(|((_, pools, wait), ..)| (*pools, *wait) == (1, 0))
    {
        figure(&format!("decisions_per_second_{slots}"), decisions.median());
        figure(&format!("snapshot_us_{slots}"), snapshots.median());
    }
    figure("decision_growth", small.0 / large.0);
    figure("snapshot_growth", large.1 / small.1);
    Ok(())
}

/// The books of some pools, and a world in which everything succeeds at once.
struct Books {
    config: Config,
    ledger: Ledger,
    publisher: Publisher,
    published: Arc<PoolSnapshot>,
    pools: Vec<PoolName>,
    builds: u64,
    /// VMs that builds have.
    leased: VecDeque<VmName>,
    /// What changed since the last snapshot.
    changes: Changes,
}

impl Books {
    /// More VMs than a configuration may have: the books themselves know no such bound.
    fn new((slots, pools, waiting): (u16, u16, u16)) -> Result<Self> {
        let home = tempfile::tempdir()?;
        std::fs::write(home.path().join("preheat.toml"), "[pool.p]\nimage = \"linux\"\nwarm = 1\nmax = 1\n")?;
        let home = Home::new(home.path().to_owned());
        let inputs =
            Inputs { home, file: None, hostname: String::new(), env: Env::from_iter([("HOME", "/")]) };
        let mut config = load::load(&inputs).map_err(common::problem)?.config;
        config.host.vms = slots;
        let (_, mut shape) = config.pools.pop_first().context("the pool is there")?;
        (shape.warm, shape.max) = (slots / pools, slots / pools);
        let pools = (0..pools).map(|n| Ok(format!("p{n}").parse()?)).collect::<Result<Vec<PoolName>>>()?;
        config.pools.extend(pools.iter().map(|name| (name.clone(), shape.clone())));
        let mut ledger = Ledger::new(&config, Generation(1));
        for row in ledger.pools.values_mut() {
            row.image =
                Some(ImageInfo { os: GuestOs::Linux, cpus: 2, memory_mib: 1024, identity: String::new() });
        }
        let mut books = Self {
            config,
            ledger,
            publisher: Publisher::default(),
            published: Arc::default(),
            pools,
            builds: 0,
            leased: VecDeque::new(),
            changes: Changes::default(),
        };
        books.settle()?;
        if waiting > 0 {
            (0..slots).for_each(|_| books.claim());
            books.settle()?;
            (0..waiting).for_each(|_| books.claim());
        }
        books.settle()?;
        books.publish(now());
        Ok(books)
    }

    fn claim(&mut self) {
        self.builds += 1;
        let build = BuildId(self.builds);
        let pools = self.pools.len() as u64;
        let pool = self.pools[usize::try_from(self.builds % pools).unwrap_or(0)].clone();
        self.ledger.claim(Waiting { build, pool, since: UnixMillis(0), asked: now() });
    }

    /// Builds come and go until the slice is over.
    fn decisions_per_second(&mut self) -> Result<f64> {
        let (begun, mut made) = (now(), 0_u32);
        while begun.elapsed() < SLICE {
            self.claim();
            made += self.settle()?;
            let vm = self.leased.pop_front().context("a warm VM serves a build")?;
            self.ledger.dying(&vm);
            made += self.settle()?;
            self.ledger.guest_dead(&vm);
            made += self.settle()?;
            self.ledger.gone(&vm);
            made += self.settle()?;
        }
        let per_second = f64::from(made) / begun.elapsed().as_secs_f64();
        self.publish(begun);
        Ok(per_second)
    }

    /// Decides and performs until there is nothing to do; the books are audited after it, as the actor does.
    fn settle(&mut self) -> Result<u32> {
        let mut made = 0;
        let at = now();
        while let Some(decision) = decide(&self.ledger, at) {
            made += 1;
            let moved = match decision {
                Decision::Lease { vm, build } => {
                    let leased = self.ledger.lease(&vm, build).is_some();
                    self.leased.push_back(vm);
                    leased
                }
                Decision::Start { vm } => self.ledger.grant(&vm) && self.ledger.warmed(&vm, at),
                Decision::Clone { pool, slot } => {
                    let vm: VmName = self.ledger.register(&pool, slot, UnixMillis(0));
                    self.ledger.prepared(&vm)
                }
                Decision::Suspend { vm } => bail!("{vm} is to be suspended, and the pool boots"),
                Decision::Remove { vm, why } => bail!("{vm} is to be removed: {why:?}"),
            };
            if !moved {
                bail!("the books refuse what the policy decided");
            }
        }
        self.audit()?;
        Ok(made)
    }

    fn audit(&mut self) -> Result<()> {
        let changes = self.ledger.take_changes();
        self.ledger.audit_changes(&changes).map_err(common::problem)?;
        self.changes.vms.extend(changes.vms);
        self.changes.waiting.extend(changes.waiting);
        Ok(())
    }

    /// The last snapshot lives until the next one is there, as everybody looks at it.
    fn publish(&mut self, at: Instant) {
        let changes = std::mem::take(&mut self.changes);
        let next = self.publisher.publish(&self.ledger, &changes, &self.config, at, UnixMillis(0));
        self.published = black_box(Arc::new(next));
    }

    /// Each after one VM said something of its state.
    fn snapshot_us(&mut self) -> Result<f64> {
        let first = self.pools.iter().filter_map(|pool| self.ledger.slot(pool, SlotId(0)).next());
        let vms: Vec<VmName> = first.map(|row| row.name.clone()).collect();
        let (begun, mut spent) = (now(), Duration::ZERO);
        for (n, vm) in (0..SNAPSHOTS).zip(vms.iter().cycle()) {
            let state = if n % 2 == 0 { VmStateName::Warm } else { VmStateName::Leased };
            self.ledger.note_state(vm, state, UnixMillis(n.into()));
            self.audit()?;
            let from = now();
            self.publish(begun);
            spent += from.elapsed();
        }
        Ok(spent.as_secs_f64() * 1e6 / f64::from(SNAPSHOTS))
    }
}
