//! From the death of a build's guest to the next warm VM in its place: resumed from a saved state, booted, and by the shell
//! script that Tart's guide suggests. The same guest each time, one slot alone and two at once, in turns within one run.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::builds::{build, guest_dead};
use common::{Installation, Spread, figure, say};
use preheat::api::wire::{BuildView, VmView};
use preheat::clock::Deadline;
use preheat::runtime::command::Invocation;
use preheat::runtime::{Parsed, VmName};
use preheat::vm::state::BirthPhase;
use tokio::time::sleep;

const ROUNDS: usize = 5;
const SLOTS: usize = 2;

/// Long enough that the successor is cloned meanwhile, as it is for any real build.
const STEP: &str = "sleep 2";

/// The image pretends to be macOS's, whose guests can be suspended.
const IMAGES: [(&str, &str); 1] = [("mac", "darwin")];

/// The first VM of each slot is booted and suspended before one resumes.
const READY_LIMIT: Duration = Duration::from_secs(300);
const SCRIPT_LIMIT: Duration = Duration::from_secs(240);
const BOOTS: &str = "preheat_vm_boot_seconds";

/// Between two turns, where neighbours allow it.
const QUIET_LIMIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);

/// As the guide has it, and a clock around it. What it leaves is cleared away after the clock has stopped.
const SCRIPT: &str = r#"
begun=${EPOCHREALTIME/./}
"$TART" clone mac "$VM"
"$TART" run --no-graphics "$VM" >/dev/null 2>&1 &
until ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes \
  -i "$KEY" -p "$PORT" "admin@$("$TART" ip "$VM" 2>/dev/null)" true 2>/dev/null; do sleep 1; done
ready=${EPOCHREALTIME/./}
echo "took $(( ready - begun ))"
"$TART" stop "$VM" >/dev/null 2>&1
wait
"$TART" delete "$VM"
"#;

fn main() -> std::process::ExitCode {
    common::main(bench())
}

/// How a VM comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Resume,
    Cold,
}

impl Way {
    fn pools(self) -> String {
        pools(if self == Self::Resume { SLOTS } else { 0 }, if self == Self::Cold { SLOTS } else { 0 })
    }

    fn pool(self) -> &'static str {
        match self {
            Self::Resume => "resume",
            Self::Cold => "cold",
        }
    }

    /// As `preheat_vm_boot_seconds` calls it.
    fn path(self) -> &'static str {
        self.pool()
    }
}

/// Two pools, so that what one has suspended is kept while the other one is measured.
fn pools(resume: usize, cold: usize) -> String {
    format!(
        "[pool.resume]\nwarm = {resume}\nmax = {SLOTS}\n[pool.cold]\nresume = false\nwarm = {cold}\nmax = {SLOTS}\n"
    )
}

/// Alone, and two at once.
#[derive(Default)]
struct Rows {
    alone: Spread,
    both: Spread,
    /// Seconds in each phase of a VM's birth, and how many VMs, as the daemon counts them.
    phases: BTreeMap<&'static str, (f64, f64)>,
}

async fn bench() -> Result<()> {
    let installation = Installation::with_images(&IMAGES, &Way::Resume.pools()).await?;
    ready(&installation, Way::Resume).await?;
    installation.machine(SLOTS).await?;
    let (mut resume, mut cold, mut script) = (Rows::default(), Rows::default(), Rows::default());
    for _ in 0..ROUNDS {
        refill(&installation, Way::Resume, &mut resume).await?;
        refill(&installation, Way::Cold, &mut cold).await?;
        by_script(&installation, &mut script).await?;
    }
    let gap = installation.histogram("preheat_slot_gap_seconds", "").await?;
    installation.stop().await?;
    say("milliseconds from the old guest's death to the next warm VM: median [min - max]");
    for (what, rows) in [("resumed", &resume), ("booted", &cold), ("script", &script)] {
        say(&format!("  {what:<8} alone        {}", rows.alone));
        say(&format!("  {what:<8} two at once  {}", rows.both));
    }
    for (what, rows) in [("resumed", &resume), ("booted", &cold)] {
        let means = rows.phases.iter().filter(|(_, (_, count))| *count > 0.0);
        let means = means.map(|(phase, (sum, count))| format!("{phase} {:.0}", sum * 1000.0 / count));
        say(&format!("  {what:<8} phases, means: {}", means.collect::<Vec<_>>().join(", ")));
    }
    let over = |a: &Spread, b: &Spread| a.median() / b.median();
    figure("resume_over_cold", over(&resume.alone, &cold.alone));
    figure("resume_over_cold_two", over(&resume.both, &cold.both));
    figure("cold_over_script", over(&cold.alone, &script.alone));
    figure("cold_over_script_two", over(&cold.both, &script.both));
    figure("resume_over_script", over(&resume.alone, &script.alone));
    figure("resume_over_script_two", over(&resume.both, &script.both));
    if gap.1 > 0.0 {
        figure("slot_gap_ms", gap.0 * 1000.0 / gap.1);
    }
    Ok(())
}

/// Lets the pool of a way fill its slots, and waits until they are as they are in the middle of a day.
async fn ready(installation: &Installation, way: Way) -> Result<()> {
    installation.follow(&way.pools()).await?;
    let limit = Deadline::after(READY_LIMIT);
    loop {
        let vms = installation.filled(SLOTS).await?;
        let count = |state| vms.iter().filter(|vm| vm.pool == way.pool() && vm.state == state).count();
        if count("warm") == SLOTS && (way == Way::Cold || count("suspended") == SLOTS) {
            common::quiet(QUIET_LIMIT).await;
            return Ok(());
        }
        if limit.left().is_zero() {
            bail!("the slots do not get ready to {way:?}: {vms:?}");
        }
        sleep(LOOK).await;
    }
}

async fn refill(installation: &Installation, way: Way, rows: &mut Rows) -> Result<()> {
    ready(installation, way).await?;
    let path = format!("path=\"{}\"", way.path());
    let before = installation.histogram(BOOTS, &path).await?;
    let phases_before = phases(installation, way).await?;
    let one = build(&installation.client, way.pool(), STEP).await?;
    rows.alone.add(next_warm_after(installation, way, &one).await?);
    common::quiet(QUIET_LIMIT).await;
    let (client, pool) = (&installation.client, way.pool());
    let (first, second) = tokio::try_join!(build(client, pool, STEP), build(client, pool, STEP))?;
    for build in [&first, &second] {
        rows.both.add(next_warm_after(installation, way, build).await?);
    }
    let after = installation.histogram(BOOTS, &path).await?;
    if after.1 - before.1 < 3.0 {
        bail!("of three VMs {} came up by {}", after.1 - before.1, way.path());
    }
    for (phase, (sum, count)) in phases(installation, way).await? {
        let (sum_before, count_before) = phases_before.get(phase).copied().unwrap_or_default();
        let total = rows.phases.entry(phase).or_default();
        *total = (total.0 + sum - sum_before, total.1 + count - count_before);
    }
    Ok(())
}

/// What the phases of births took so far in a pool.
async fn phases(installation: &Installation, way: Way) -> Result<BTreeMap<&'static str, (f64, f64)>> {
    let mut phases = BTreeMap::new();
    for phase in BirthPhase::ALL.map(BirthPhase::as_str) {
        let label = format!("pool=\"{}\",phase=\"{phase}\"", way.pool());
        phases.insert(phase, installation.histogram("preheat_vm_boot_phase_seconds", &label).await?);
    }
    Ok(phases)
}

/// Milliseconds from the death of the guest that a build had to the moment when the next VM in its slot was warm, as the daemon
/// noted both.
async fn next_warm_after(installation: &Installation, way: Way, build: &BuildView) -> Result<f64> {
    let dead = guest_dead(build)?;
    let used = named(build.vm.as_deref().context("it had a VM")?)?;
    let vms = installation.filled(SLOTS).await?;
    let in_place = |vm: &&VmView| vm.state == "warm" && vm.pool == way.pool() && vm.slot == used.slot.0;
    let next = vms.iter().find(in_place).context("its slot has a VM")?;
    if named(&next.name)?.generation <= used.generation {
        bail!("`{}` is no successor of `{used}`", next.name);
    }
    Ok((next.since_ms.0 - dead.0) as f64)
}

fn named(name: &str) -> Result<VmName> {
    match VmName::parse(name) {
        Parsed::Ours(name) => Ok(name),
        Parsed::NotOurs | Parsed::Malformed => bail!("`{name}` is no VM of the pool's"),
    }
}

async fn by_script(installation: &Installation, rows: &mut Rows) -> Result<()> {
    installation.follow(&pools(0, 0)).await?;
    installation.settled(0).await?;
    rows.alone.add(script(installation, "guide-1").await?);
    common::quiet(QUIET_LIMIT).await;
    let (first, second) = tokio::try_join!(script(installation, "guide-1"), script(installation, "guide-2"))?;
    rows.both.add(first);
    rows.both.add(second);
    Ok(())
}

async fn script(installation: &Installation, vm: &str) -> Result<f64> {
    let run = Invocation::new("bash")
        .args(["-c", SCRIPT])
        .env("TART", env!("CARGO_BIN_EXE_tart-qemu"))
        .env("TART_HOME", installation.tart_home())
        .env("VM", vm)
        .env("KEY", installation.key())
        .env("PORT", common::SSH_PORT.to_string());
    let done = run.output(SCRIPT_LIMIT).await?;
    let said = done.stdout.lines().find_map(|line| line.strip_prefix("took "));
    let micros: f64 = said.with_context(|| format!("the script failed: {}", done.stderr))?.parse()?;
    Ok(micros / 1000.0)
}
