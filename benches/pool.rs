//! How fast the pool decides: the books and the policy alone, through whole lives of VMs, at several sizes; and what it
//! costs to publish a snapshot. No actor, no process, no clock but to measure.

mod common;

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::{Spread, figure, say};
use preheat::clock::{UnixMillis, now};
use preheat::config::file::Env;
use preheat::config::{Config, Home, Inputs, load};
use preheat::ids::{BuildId, Generation, PoolName};
use preheat::pool::ledger::{Ledger, Stage, Waiting};
use preheat::pool::policy::{Decision, decide};
use preheat::pool::snapshot;
use preheat::runtime::{GuestOs, ImageInfo, VmName};

const SLOTS: [u16; 3] = [2, 10, 100];

/// The size that the figure is for: a large Mac has two macOS guests and some of Linux.
const FIGURE_SLOTS: u16 = 10;

/// Rounds, each of all sizes in turn, and how long one size is measured in a round.
const ROUNDS: usize = 9;
const SLICE: Duration = Duration::from_millis(150);

/// Snapshots of one measurement.
const SNAPSHOTS: u32 = 200;

fn main() -> std::process::ExitCode {
    common::main(bench())
}

async fn bench() -> Result<()> {
    common::machine("none");
    let mut sizes = SLOTS.map(|slots| (slots, Spread::default(), Spread::default()));
    let mut benches = SLOTS.map(Books::new).into_iter().collect::<Result<Vec<_>>>()?;
    for _ in 0..ROUNDS {
        for (books, (_, decisions, snapshots)) in benches.iter_mut().zip(&mut sizes) {
            decisions.add(books.decisions_per_second()?);
            snapshots.add(books.snapshot_us());
        }
    }
    say("median [min - max]");
    for (slots, decisions, snapshots) in &sizes {
        say(&format!("  {slots:>3} slots: decisions/s  {decisions}"));
        say(&format!("  {slots:>3} slots: snapshot us  {snapshots}"));
    }
    for (slots, decisions, snapshots) in &sizes {
        if *slots == FIGURE_SLOTS {
            figure("decisions_per_second", decisions.median());
            figure("snapshot_us", snapshots.median());
        }
    }
    Ok(())
}

/// One pool's books, and a world in which everything succeeds at once.
struct Books {
    config: Config,
    ledger: Ledger,
    pool: PoolName,
    builds: u64,
}

impl Books {
    fn new(slots: u16) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let text = format!("[host]\nvms = 512\n[pool.p]\nimage = \"linux\"\nwarm = {slots}\nmax = {slots}\n");
        std::fs::write(home.path().join("preheat.toml"), text)?;
        let home = Home::new(home.path().to_owned());
        let inputs =
            Inputs { home, file: None, hostname: String::new(), env: Env::from_iter([("HOME", "/")]) };
        let config = load::load(&inputs).map_err(common::problem)?.config;
        let mut ledger = Ledger::new(&config, Generation(1));
        let pool: PoolName = "p".parse()?;
        let row = ledger.pools.get_mut(&pool).context("the pool is there")?;
        row.image = Some(ImageInfo { os: GuestOs::Linux, cpus: 2, memory_mib: 1024 });
        let mut books = Self { config, ledger, pool, builds: 0 };
        books.settle()?;
        Ok(books)
    }

    /// Builds come and go, one after the other, until the slice is over.
    fn decisions_per_second(&mut self) -> Result<f64> {
        let (begun, mut made) = (now(), 0_u32);
        while begun.elapsed() < SLICE {
            self.builds += 1;
            let build = BuildId(self.builds);
            let since = UnixMillis(0);
            self.ledger.claim(Waiting { build, pool: self.pool.clone(), since, asked: begun });
            made += self.settle()?;
            let leased = self.ledger.vms.values().find(|vm| vm.stage == Stage::Leased(build));
            let vm = leased.context("a warm VM serves the build")?.name.clone();
            self.ledger.dying(&vm);
            made += self.settle()?;
            self.ledger.guest_dead(&vm);
            made += self.settle()?;
            self.ledger.gone(&vm);
            made += self.settle()?;
        }
        Ok(f64::from(made) / begun.elapsed().as_secs_f64())
    }

    /// Decides and performs until there is nothing to do; the books are audited after it, as the actor does.
    fn settle(&mut self) -> Result<u32> {
        let mut made = 0;
        let at = now();
        while let Some(decision) = decide(&self.ledger, at) {
            made += 1;
            let moved = match decision {
                Decision::Lease { vm, build } => self.ledger.lease(&vm, build).is_some(),
                Decision::Start { vm } => self.ledger.grant(&vm) && self.ledger.warmed(&vm, at),
                Decision::Clone { pool, slot } => {
                    let vm: VmName = self.ledger.register(&pool, slot, UnixMillis(0));
                    self.ledger.prepared(&vm)
                }
                Decision::Remove { vm, why } => bail!("{vm} is to be removed: {why:?}"),
            };
            if !moved {
                bail!("the books refuse what the policy decided");
            }
        }
        self.ledger.audit().map_err(common::problem)?;
        Ok(made)
    }

    fn snapshot_us(&self) -> f64 {
        let begun = now();
        for generation in 0..u64::from(SNAPSHOTS) {
            black_box(snapshot::of(&self.ledger, &self.config, generation, begun, UnixMillis(0)));
        }
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(SNAPSHOTS)
    }
}
