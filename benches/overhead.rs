//! An empty build end to end, as its user has it: `preheat run` on a folder of 100 files, one step that does next to
//! nothing, one artifact, which lies in its place when the command ends. Beside it, in turns, a fresh `ssh VM true` to a VM
//! of the same pool. Real guests, one daemon.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::peer::fresh_ssh;
use common::{Installation, Spread, figure, say};
use preheat::api::wire::{BuildView, Claim};
use preheat::clock::now;
use preheat::runtime::command::Invocation;

const ROUNDS: usize = 11;

/// VMs that are kept warm.
const WARM: usize = 2;

/// What the source holds: so many files of so many bytes, ten a folder.
const FILES: usize = 100;
const FILE_BYTES: usize = 2_000;

/// A build that is longer under way than this is stuck.
const BUILD_LIMIT: Duration = Duration::from_secs(180);

const POOLS: &str = "[pool.warm]\nwarm = 2\nmax = 2\n";

/// What a build's time is called after, in the order of a build; what is between them is the client's and the daemon's.
const PHASES: [&str; 6] = ["queue", "probe", "source", "step", "artifacts", "teardown"];

fn main() -> std::process::ExitCode {
    common::main(bench())
}

/// What was measured.
#[derive(Default)]
struct Rows {
    whole: Spread,
    ssh: Spread,
    phases: BTreeMap<String, Spread>,
    /// The command's time that is in none of the phases.
    between: Spread,
}

async fn bench() -> Result<()> {
    let installation = Installation::start(POOLS).await?;
    installation.machine(WARM).await?;
    let work = tempfile::tempdir()?;
    let source = work.path().join("app");
    write_source(&source)?;
    let mut rows = Rows::default();
    for round in 0..ROUNDS {
        // In turns, and in both orders, so that a drift of the machine meets both.
        if round % 2 == 0 {
            rows.ssh.add_ms(login(&installation).await?);
        }
        installation.settled(WARM).await?;
        rows.note(&build(&installation, &source, &work.path().join(round.to_string())).await?);
        if round % 2 == 1 {
            rows.ssh.add_ms(login(&installation).await?);
        }
    }
    installation.stop().await?;
    rows.print();
    Ok(())
}

impl Rows {
    fn note(&mut self, (took, build): &(Duration, BuildView)) {
        self.whole.add_ms(*took);
        let mut between = took.as_secs_f64() * 1000.0;
        for phase in &build.phases {
            let took = phase.took_ms.unwrap_or(0) as f64;
            between -= took;
            self.phases.entry(phase.phase.clone()).or_default().add(took);
        }
        self.between.add(between);
    }

    fn print(&self) {
        say("milliseconds: median [min - max]");
        say(&format!("  an empty build, end to end    {}", self.whole));
        say(&format!("  fresh `ssh VM true`           {}", self.ssh));
        say("where an empty build's time goes");
        for phase in PHASES {
            if let Some(spread) = self.phases.get(phase) {
                say(&format!("  {phase:<29} {spread}"));
            }
        }
        say(&format!("  before, between and after     {}", self.between));
        figure("empty_build_over_ssh", self.whole.median() / self.ssh.median());
    }
}

async fn login(installation: &Installation) -> Result<Duration> {
    let vms = installation.settled(WARM).await?;
    let address = vms.first().and_then(|vm| vm.address.clone()).context("a warm VM has an address")?;
    fresh_ssh(installation, &address).await
}

/// The command from its start to its end, and the build as it tells of it.
async fn build(installation: &Installation, source: &Path, out: &Path) -> Result<(Duration, BuildView)> {
    let run = Invocation::new(env!("CARGO_BIN_EXE_preheat"))
        .args(["run", "--json", "--pool", "warm", "--step", "echo built >result", "--artifact", "result"])
        .arg("--out")
        .arg(out)
        .arg(source)
        .env("PREHEAT_URL", installation.client.url());
    let begun = now();
    let done = run.output(BUILD_LIMIT).await?;
    let took = begun.elapsed();
    if !done.status.success() {
        bail!("the build failed: {}{}", done.stdout, done.stderr);
    }
    let build: BuildView = serde_json::from_str(&done.stdout).context("the build as JSON")?;
    if build.claim != Some(Claim::Hit) {
        bail!("the claim was no hit: {build:?}");
    }
    let brought = std::fs::read_to_string(out.join("result")).context("the artifact")?;
    if brought != "built\n" {
        bail!("the artifact holds {brought:?}");
    }
    Ok((took, build))
}

fn write_source(folder: &Path) -> Result<()> {
    let text: String = "A line of some source file.\n".chars().cycle().take(FILE_BYTES).collect();
    for n in 0..FILES {
        let below = folder.join(format!("part-{}", n / 10));
        std::fs::create_dir_all(&below)?;
        std::fs::write(below.join(format!("file-{n}.txt")), &text)?;
    }
    Ok(())
}
