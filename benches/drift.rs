//! Empty builds by the hundred through two slots that are never idle: does the daemon get slower or larger, and how near is it
//! to what the slots allow? `cargo bench --bench drift -- --builds 1000`.
//!
//! What is compared are the medians of the first and of the last tenth, and, so that a neighbour's noise at one end counts
//! less, the median slope between any two builds (Theil and Sen).

mod common;

use anyhow::{Context, Result, bail};
use common::builds::{build, overhead_ms, waited_ms};
use common::process::Taken;
use common::{Installation, Spread, figure, say};
use preheat::api::wire::BuildView;
use preheat::clock::{Instant, now};
use tokio::task::JoinSet;

const BUILDS: usize = 300;
/// Fewer have no tenths to speak of.
const BUILDS_MIN: usize = 20;
const SLOTS: usize = 2;
/// As many wait as run, so that a slot is never idle for want of a build.
const AT_ONCE: usize = 2 * SLOTS;
/// The image pretends to be macOS's, so that slots are refilled by resuming, as they are in the middle of a day.
const IMAGES: [(&str, &str); 1] = [("mac", "darwin")];
const POOLS: &str = "[pool.warm]\nwarm = 2\nmax = 2\n";

/// A line for people so often.
const TOLD_EVERY: usize = 50;

/// The last tenth may be so much of the first, if the slope agrees: more is drift.
const LATENCY_RATIO_MAX: f64 = 1.25;
const MEMORY_RATIO_MAX: f64 = 1.25;
/// And so many files more: each build that leaked one would add a hundred to a thousand.
const OPEN_FILES_MORE_MAX: f64 = 5.0;

fn main() -> std::process::ExitCode {
    common::main(bench())
}

/// What is known of one build, in the order of their ends.
struct Sample {
    overhead_ms: f64,
    waited_ms: f64,
    taken: Taken,
}

async fn bench() -> Result<()> {
    let builds = asked()?;
    let installation = Installation::with_images(&IMAGES, POOLS).await?;
    installation.machine(SLOTS).await?;
    let boots = installation.histogram("preheat_vm_boot_seconds", "").await?;
    let begun = now();
    let samples = run(&installation, builds, begun).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let boots_after = installation.histogram("preheat_vm_boot_seconds", "").await?;
    installation.stop().await?;
    let boot = (boots_after.0 - boots.0) / (boots_after.1 - boots.1).max(1.0);
    report(&samples, seconds, boot);
    Ok(())
}

/// From `--builds N`.
fn asked() -> Result<usize> {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(at) = arguments.iter().position(|argument| argument == "--builds") else { return Ok(BUILDS) };
    let builds: usize = arguments.get(at + 1).context("--builds N")?.parse().context("--builds N")?;
    if builds < BUILDS_MIN {
        bail!("--builds {builds}: at least {BUILDS_MIN}");
    }
    Ok(builds)
}

async fn run(installation: &Installation, builds: usize, begun: Instant) -> Result<Vec<Sample>> {
    let mut under_way: JoinSet<Result<BuildView>> = JoinSet::new();
    let (mut begin, mut samples) = (0, Vec::with_capacity(builds));
    while samples.len() < builds {
        while begin < builds && under_way.len() < AT_ONCE {
            let client = installation.client.clone();
            under_way.spawn(async move { build(&client, "warm", "true").await });
            begin += 1;
        }
        let build = under_way.join_next().await.context("a build is under way")???;
        samples.push(Sample {
            overhead_ms: overhead_ms(&build)?,
            waited_ms: waited_ms(&build),
            taken: Taken::by(installation.pid)?,
        });
        if samples.len() % TOLD_EVERY == 0 {
            let taken = samples[samples.len() - 1].taken;
            let Taken { resident_mib, open_files, threads } = taken;
            say(&format!(
                "  {:>5} builds after {:4.0} s: {resident_mib:.1} MiB, {open_files} files, {threads} threads",
                samples.len(),
                begun.elapsed().as_secs_f64(),
            ));
        }
    }
    Ok(samples)
}

fn report(samples: &[Sample], seconds: f64, boot: f64) {
    let per_minute = samples.len() as f64 * 60.0 / seconds;
    let limit = SLOTS as f64 * 60.0 / boot;
    say(&format!(
        "{} builds in {:.0} s: first tenth, last tenth, ratio, slope for 1,000 builds",
        samples.len(),
        seconds
    ));
    let column = |of: fn(&Sample) -> f64| samples.iter().map(of).collect::<Vec<f64>>();
    let latency = Trend::of(&column(|s| s.overhead_ms));
    let waits = Trend::of(&column(|s| s.waited_ms));
    let memory = Trend::of(&column(|s| s.taken.resident_mib));
    let files = Trend::of(&column(|s| s.taken.open_files));
    let threads = Trend::of(&column(|s| s.taken.threads));
    for (what, trend) in [
        ("build without its wait ms", &latency),
        ("wait for a VM ms", &waits),
        ("resident MiB", &memory),
        ("open files", &files),
        ("threads", &threads),
    ] {
        say(&format!("  {what:<26} {trend}"));
    }
    let drifts = [
        (latency.grows_beyond(LATENCY_RATIO_MAX), "latency"),
        (memory.grows_beyond(MEMORY_RATIO_MAX), "memory"),
        (files.last - files.first > OPEN_FILES_MORE_MAX, "open files"),
        (threads.last - threads.first > OPEN_FILES_MORE_MAX, "threads"),
    ];
    let drifting: Vec<&str> = drifts.iter().filter(|(drifts, _)| *drifts).map(|(_, what)| *what).collect();
    let verdict =
        if drifting.is_empty() { "no drift".to_owned() } else { format!("drift of {}", drifting.join(", ")) };
    say(&format!("verdict: {verdict}"));
    say(&format!(
        "{per_minute:.1} builds a minute; {SLOTS} slots over a boot of {boot:.2} s allow {limit:.1}"
    ));
    figure("latency_last_over_first", latency.ratio());
    figure("rss_last_over_first", memory.ratio());
    figure("open_files_last_minus_first", files.last - files.first);
    figure("builds_per_minute", per_minute);
    figure("throughput_over_limit", per_minute / limit);
}

/// What a number does over the run.
struct Trend {
    first: f64,
    last: f64,
    /// For a thousand builds.
    slope: f64,
}

impl Trend {
    fn of(values: &[f64]) -> Self {
        let tenth = (values.len() / 10).max(1);
        let median = |values: &[f64]| {
            let mut spread = Spread::default();
            values.iter().for_each(|value| spread.add(*value));
            spread.median()
        };
        let (first, last) = (median(&values[..tenth]), median(&values[values.len() - tenth..]));
        let mut slopes = Vec::new();
        for (at, value) in values.iter().enumerate() {
            for (later, other) in values.iter().enumerate().skip(at + 1) {
                slopes.push((other - value) * 1000.0 / (later - at) as f64);
            }
        }
        slopes.sort_by(f64::total_cmp);
        Self { first, last, slope: slopes.get(slopes.len() / 2).copied().unwrap_or(0.0) }
    }

    fn ratio(&self) -> f64 {
        self.last / self.first.max(f64::EPSILON)
    }

    fn grows_beyond(&self, ratio: f64) -> bool {
        self.ratio() > ratio && self.slope > 0.0
    }
}

impl std::fmt::Display for Trend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, last, slope } = self;
        write!(f, "{first:9.1} {last:9.1}   x {:.2}   {slope:+9.1}", self.ratio())
    }
}
