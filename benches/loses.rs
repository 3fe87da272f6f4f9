//! When a pool loses: a trickle of builds, for which idle VMs are kept in vain; two images on two slots, of which the wrong one
//! is warm; and a queue that never empties, before which nothing is. Real guests.

mod common;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::builds::{build, waited_ms};
use common::process::{Taken, cpu_seconds, under};
use common::{Installation, Spread, figure, say};
use preheat::api::wire::BuildView;
use preheat::clock::now;
use tokio::task::JoinSet;
use tokio::time::sleep;

const SLOTS: usize = 2;
/// Two images that pretend to be macOS's: their guests can be suspended, and the host runs two of them at a time.
const IMAGES: [(&str, &str); 2] = [("one", "darwin"), ("two", "darwin")];

/// Nothing is kept warm, and every VM boots: a host without a pool.
const NONE: &str = "[pool.one]\nimage = \"one\"\nresume = false\nmax = 2\n[pool.two]\nimage = \"two\"\nresume = false\nmax = 2\n";
/// Both slots for one image.
const ALONE: &str = "[pool.one]\nimage = \"one\"\nwarm = 2\nmax = 2\n";
/// A slot for each image, and both for whoever needs them.
const MIXED: &str =
    "[pool.one]\nimage = \"one\"\nwarm = 1\nmax = 2\n[pool.two]\nimage = \"two\"\nwarm = 1\nmax = 2\n";

/// Idle VMs are looked at for so long.
const IDLE: Duration = Duration::from_secs(20);
/// After the pool is filled, until then.
const REST: Duration = Duration::from_secs(3);
const ROUNDS: usize = 4;
/// Builds of a queue that never empties; the first of them, which find what was warm before, do not count.
const QUEUED: usize = 16;
const QUEUED_FIRST: usize = 4;

fn main() -> std::process::ExitCode {
    common::main(bench())
}

async fn bench() -> Result<()> {
    let installation = Installation::with_images(&IMAGES, ALONE).await?;
    installation.machine(SLOTS).await?;
    let idle = Idle::watch(&installation).await?;
    let alone = at_once(&installation, ["one", "one"]).await?;
    let alone_rate = without_end(&installation, ["one", "one"]).await?;
    follow(&installation, MIXED, SLOTS).await?;
    let (apart, same) =
        (at_once(&installation, ["one", "two"]).await?, at_once(&installation, ["one", "one"]).await?);
    let mixed_rate = without_end(&installation, ["one", "two"]).await?;
    follow(&installation, NONE, 0).await?;
    let none = at_once(&installation, ["one", "two"]).await?;
    let none_rate = without_end(&installation, ["one", "two"]).await?;
    installation.stop().await?;

    say(&format!("an idle VM: {:.0} MiB resident, {:.2} % of a core", idle.resident_mib, idle.percent));
    say("two builds at once, milliseconds until each has its VM: the first, the second: median [min - max]");
    for (what, waits) in [
        ("one image, two warm VMs", &alone),
        ("two images, one warm VM each, a build for each", &apart),
        ("two images, one warm VM each, both for the same", &same),
        ("no pool", &none),
    ] {
        say(&format!("  {what:<50} {}   {}", waits[0], waits[1]));
    }
    say("builds a minute while the queue never empties");
    for (what, rate) in
        [("one image", alone_rate), ("two images in turns", mixed_rate), ("two images, no pool", none_rate)]
    {
        say(&format!("  {what:<50} {rate:8.1}"));
    }
    figure("idle_vm_rss_mib", idle.resident_mib);
    figure("idle_vm_cpu_percent", idle.percent);
    figure("wrong_image_over_no_pool", same[1].median() / none[1].median());
    figure("mixed_rate_over_one_image", mixed_rate / alone_rate);
    figure("full_queue_over_no_pool", alone_rate / none_rate);
    figure("mixed_full_queue_over_no_pool", mixed_rate / none_rate);
    Ok(())
}

async fn follow(installation: &Installation, pools: &str, warm: usize) -> Result<()> {
    installation.follow(pools).await?;
    installation.settled(warm).await.map(drop)
}

/// What a warm VM takes of the host while nobody builds.
struct Idle {
    resident_mib: f64,
    /// Of one core.
    percent: f64,
}

impl Idle {
    async fn watch(installation: &Installation) -> Result<Self> {
        sleep(REST).await;
        let guests = under(&installation.tart_home(), "qemu-system")?;
        if guests.len() != SLOTS {
            bail!("{} guests run, not {SLOTS}", guests.len());
        }
        let cpu = || guests.iter().map(|pid| cpu_seconds(*pid)).sum::<Result<f64>>();
        let before = cpu()?;
        sleep(IDLE).await;
        let spent = cpu()? - before;
        let resident = guests.iter().map(|pid| Ok(Taken::by(*pid)?.resident_mib)).sum::<Result<f64>>()?;
        let guests = guests.len() as f64;
        Ok(Self { resident_mib: resident / guests, percent: spent * 100.0 / IDLE.as_secs_f64() / guests })
    }
}

/// Two builds at once, several times: how long the quicker and the slower of them waited.
async fn at_once(installation: &Installation, pools: [&str; 2]) -> Result<[Spread; 2]> {
    let mut waits = [Spread::default(), Spread::default()];
    let warm = installation.vms().await?.iter().filter(|vm| vm.state == "warm").count();
    for _ in 0..ROUNDS {
        installation.settled(warm).await?;
        let client = &installation.client;
        let (a, b) =
            tokio::try_join!(build(client, pools[0], "sleep 1"), build(client, pools[1], "sleep 1"))?;
        let (a, b) = (waited_ms(&a), waited_ms(&b));
        waits[0].add(a.min(b));
        waits[1].add(a.max(b));
    }
    Ok(waits)
}

/// Empty builds, twice as many at a time as there are slots: how many a minute.
async fn without_end(installation: &Installation, pools: [&'static str; 2]) -> Result<f64> {
    let mut under_way: JoinSet<Result<BuildView>> = JoinSet::new();
    let (mut begun, mut over, mut since) = (0, 0, now());
    while over < QUEUED {
        while begun < QUEUED && under_way.len() < 2 * SLOTS {
            let (client, pool) = (installation.client.clone(), pools[begun % 2]);
            under_way.spawn(async move { build(&client, pool, "true").await });
            begun += 1;
        }
        under_way.join_next().await.context("a build is under way")???;
        over += 1;
        if over == QUEUED_FIRST {
            since = now();
        }
    }
    Ok((QUEUED - QUEUED_FIRST) as f64 * 60.0 / since.elapsed().as_secs_f64())
}
