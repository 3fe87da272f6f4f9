//! What the daemon costs: its memory, processor time, open files and threads while it has nothing to do, with two warm VMs;
//! and while empty builds arrive at a steady rate, fifty a minute where the refill of two slots allows that, else as many
//! as it does.

mod common;

use std::time::Duration;

use anyhow::{Context, Result};
use common::builds::{build, waited_ms};
use common::process::{Taken, cpu_seconds};
use common::{Installation, Spread, figure, say};
use preheat::api::wire::Claim;
use preheat::clock::now;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// After the pool is filled, until the measurement begins.
const REST: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(20);
const BUSY: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_secs(1);

/// The rate that is asked about.
const ARRIVALS_A_MINUTE: f64 = 50.0;
/// Builds that find out how many the slots bear, so many at a time; the first ones fill the queue and do not count.
const TRIAL: usize = 12;
const TRIAL_AT_ONCE: usize = 4;
/// Of what the slots bear: a queue that is not to grow needs some room.
const SUSTAINED: f64 = 0.85;

const SLOTS: usize = 2;
/// The image pretends to be macOS's, so that slots are refilled by resuming, as they are in the middle of a day.
const IMAGES: [(&str, &str); 1] = [("mac", "darwin")];
const POOLS: &str = "[pool.warm]\nwarm = 2\nmax = 2\n";

fn main() -> std::process::ExitCode {
    common::main(bench())
}

async fn bench() -> Result<()> {
    let installation = Installation::with_images(&IMAGES, POOLS).await?;
    installation.machine(SLOTS).await?;
    sleep(REST).await;
    let mut idle = Costs::begin(installation.pid)?;
    while idle.begun.elapsed() < IDLE {
        idle.look()?;
        sleep(LOOK).await;
    }
    idle.end()?;
    let bearable = trial(&installation).await?;
    installation.settled(SLOTS).await?;
    let rate = ARRIVALS_A_MINUTE.min(bearable * SUSTAINED);
    let busy = busy(&installation, rate).await?;
    installation.stop().await?;
    say(&format!("idle with two warm VMs over {IDLE:?}"));
    idle.print();
    say(&format!("{rate:.1} empty builds a minute over {BUSY:?}; two slots bear {bearable:.1} here"));
    busy.costs.print();
    say(&format!("  builds             {} ({} found a warm VM)", busy.builds, busy.hits));
    say(&format!("  wait for a VM ms   {}", busy.waited));
    let each = busy.costs.cpu * 1000.0 / busy.builds as f64;
    say(&format!(
        "  processor ms       {each:8.1} a build, so {:.2} % at {ARRIVALS_A_MINUTE} a minute",
        each / 1000.0 * ARRIVALS_A_MINUTE / 60.0 * 100.0
    ));
    figure("idle_rss_mib", idle.memory.median());
    figure("idle_cpu_percent", idle.percent());
    figure("busy_rss_mib", busy.costs.memory.median());
    figure("busy_cpu_percent", busy.costs.percent());
    figure("busy_builds_per_minute", busy.builds as f64 * 60.0 / busy.costs.seconds);
    figure("cpu_ms_per_build", each);
    Ok(())
}

/// How many builds a minute the slots bear.
async fn trial(installation: &Installation) -> Result<f64> {
    let (mut under_way, mut over) = (JoinSet::new(), 0);
    let mut begun = now();
    for _ in 0..TRIAL_AT_ONCE {
        under_way.spawn(one(installation));
    }
    while let Some(ended) = under_way.join_next().await {
        ended??;
        over += 1;
        if over == TRIAL_AT_ONCE {
            begun = now();
        }
        if over + under_way.len() < TRIAL {
            under_way.spawn(one(installation));
        }
    }
    Ok((TRIAL - TRIAL_AT_ONCE) as f64 * 60.0 / begun.elapsed().as_secs_f64())
}

fn one(
    installation: &Installation,
) -> impl Future<Output = Result<preheat::api::wire::BuildView>> + Send + 'static {
    let client = installation.client.clone();
    async move { build(&client, "warm", "true").await }
}

struct Busy {
    costs: Costs,
    builds: usize,
    hits: usize,
    waited: Spread,
}

/// Builds arrive, whether or not those before them are over.
async fn busy(installation: &Installation, rate: f64) -> Result<Busy> {
    let mut arrivals = interval(Duration::from_secs_f64(60.0 / rate));
    arrivals.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut looks = interval(LOOK);
    let mut under_way = JoinSet::new();
    let mut busy =
        Busy { costs: Costs::begin(installation.pid)?, builds: 0, hits: 0, waited: Spread::default() };
    loop {
        let arriving = busy.costs.begun.elapsed() < BUSY;
        if !arriving && under_way.is_empty() {
            break;
        }
        tokio::select! {
            _ = arrivals.tick(), if arriving => drop(under_way.spawn(one(installation))),
            _ = looks.tick() => busy.costs.look()?,
            Some(ended) = under_way.join_next() => {
                let build = ended.context("a build's task ends")??;
                busy.builds += 1;
                busy.hits += usize::from(build.claim == Some(Claim::Hit));
                busy.waited.add(waited_ms(&build));
            }
        }
    }
    busy.costs.end()?;
    Ok(busy)
}

/// What the daemon takes over a while.
struct Costs {
    pid: u32,
    begun: preheat::clock::Instant,
    /// Processor seconds: when it began, then those of the while.
    cpu: f64,
    seconds: f64,
    memory: Spread,
    open_files: Spread,
    threads: Spread,
}

impl Costs {
    fn begin(pid: u32) -> Result<Self> {
        Ok(Self {
            pid,
            begun: now(),
            cpu: cpu_seconds(pid)?,
            seconds: 0.0,
            memory: Spread::default(),
            open_files: Spread::default(),
            threads: Spread::default(),
        })
    }

    fn look(&mut self) -> Result<()> {
        let taken = Taken::by(self.pid)?;
        self.memory.add(taken.resident_mib);
        self.open_files.add(taken.open_files);
        self.threads.add(taken.threads);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.cpu = cpu_seconds(self.pid)? - self.cpu;
        self.seconds = self.begun.elapsed().as_secs_f64();
        Ok(())
    }

    /// Of one core.
    fn percent(&self) -> f64 {
        100.0 * self.cpu / self.seconds
    }

    fn print(&self) {
        say(&format!("  resident MiB       {}", self.memory));
        say(&format!("  processor seconds  {:8.3} ({:.2} % of one core)", self.cpu, self.percent()));
        say(&format!("  open files         {}", self.open_files));
        say(&format!("  threads            {}", self.threads));
    }
}
