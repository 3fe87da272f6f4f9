//! What the daemon costs while it has nothing to do: its memory and its processor time over a while, with two warm VMs.

mod common;

use std::time::Duration;

use anyhow::{Context, Result};
use common::{Installation, Spread, figure, say};
use preheat::clock::now;
use tokio::time::sleep;

/// After the pool is filled, until the measurement begins.
const REST: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_secs(1);

fn main() -> std::process::ExitCode {
    common::main(bench())
}

async fn bench() -> Result<()> {
    let installation = Installation::start("[pool.warm]\nwarm = 2\nmax = 2\n").await?;
    installation.machine(2).await?;
    sleep(REST).await;
    let (begun, cpu) = (now(), cpu_seconds(installation.pid)?);
    let mut memory = Spread::default();
    while begun.elapsed() < MEASURED {
        memory.add(resident_mib(installation.pid)?);
        sleep(LOOK).await;
    }
    let used = cpu_seconds(installation.pid)? - cpu;
    let percent = 100.0 * used / begun.elapsed().as_secs_f64();
    installation.stop().await?;
    say(&format!("idle with two warm VMs over {MEASURED:?}"));
    say(&format!("  resident MiB       {memory}"));
    say(&format!("  processor seconds  {used:8.3} ({percent:.2} % of one core)"));
    figure("idle_rss_mib", memory.median());
    figure("idle_cpu_percent", percent);
    Ok(())
}

fn resident_mib(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS is there")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// User and system time, of its threads that are gone too. Linux counts it in hundredths.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the program's name, which may hold anything but this.
    let fields: Vec<&str> = text.rsplit(") ").next().context("fields")?.split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).context("a number");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
