//! From submitting a build to the first byte that its first step prints, as the client sees it: on a warm VM, on a cold
//! pool, and, for comparison, what a fresh `ssh VM true` takes to a warm VM of the same pool. Real guests, one daemon.

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::builds::source;
use common::peer::fresh_ssh;
use common::{Installation, Spread, figure, problem, say};
use preheat::api::wire::{BuildView, Claim, LogStream, StepSpec, SubmitSpec};
use preheat::cli::follow::{Heard, follow};
use preheat::clock::{Instant, now};
use preheat::guest::ssh::SshConnector;
use preheat::guest::{Connector, Target};
use tokio::time::timeout;

/// Rounds of warm claims, each with its fresh ssh, and of cold ones.
const WARM_ROUNDS: usize = 11;
const COLD_ROUNDS: usize = 3;

/// VMs that are kept warm.
const WARM: usize = 2;

/// Commands over an open control connection, for the lower bound.
const OPEN_ROUNDS: usize = 15;

/// A build that is longer under way than this is stuck.
const BUILD_LIMIT: Duration = Duration::from_secs(180);

const POOLS: &str = "[pool.warm]\nwarm = 2\nmax = 2\n[pool.cold]\nwarm = 0\nmax = 1\n";

fn main() -> std::process::ExitCode {
    common::main(bench())
}

/// What was measured.
#[derive(Default)]
struct Rows {
    warm: Spread,
    cold: Spread,
    ssh: Spread,
    open: Spread,
    /// Submit to the daemon's answer, and where the time goes after it, for warm builds.
    accepted: Spread,
    phases: BTreeMap<String, Spread>,
    whole: Spread,
}

async fn bench() -> Result<()> {
    let installation = Installation::start(POOLS).await?;
    installation.machine(WARM).await?;
    let mut rows = Rows::default();
    let source = source()?;
    for round in 0..WARM_ROUNDS {
        let vms = installation.settled(WARM).await?;
        // In turns, so that a drift of the machine meets both.
        let address = vms.first().and_then(|vm| vm.address.clone()).context("a warm VM has an address")?;
        let ssh_first = round % 2 == 0;
        if ssh_first {
            rows.ssh.add_ms(fresh_ssh(&installation, &address).await?);
            common::quiet(Duration::from_secs(3)).await;
        }
        let claim = claim(&installation, "warm", &source).await?;
        if claim.build.claim != Some(Claim::Hit) {
            bail!("the claim was no hit: {:?}", claim.build);
        }
        rows.note_warm(&claim);
        if !ssh_first {
            let vms = installation.settled(WARM).await?;
            let address = vms.first().and_then(|vm| vm.address.clone()).context("it has an address")?;
            rows.ssh.add_ms(fresh_ssh(&installation, &address).await?);
        }
    }
    let vms = installation.settled(WARM).await?;
    let address = vms.first().and_then(|vm| vm.address.clone()).context("it has an address")?;
    over_open_connection(&installation, &address, &mut rows.open).await?;
    for _ in 0..COLD_ROUNDS {
        installation.settled(WARM).await?;
        rows.cold.add_ms(claim(&installation, "cold", &source).await?.first_byte);
    }
    installation.stop().await?;
    rows.print();
    Ok(())
}

impl Rows {
    fn note_warm(&mut self, claim: &Claimed) {
        self.warm.add_ms(claim.first_byte);
        self.accepted.add_ms(claim.accepted);
        self.whole.add_ms(claim.whole);
        for phase in &claim.build.phases {
            let took = phase.took_ms.unwrap_or(0);
            self.phases.entry(phase.phase.clone()).or_default().add_ms(Duration::from_millis(took));
        }
    }

    fn print(&self) {
        say("milliseconds: median [min - max]");
        say(&format!("  warm: submit to first byte    {}", self.warm));
        say(&format!("  cold: submit to first byte    {}", self.cold));
        say(&format!("  fresh `ssh VM true`           {}", self.ssh));
        say(&format!("  `echo` over an open one       {}", self.open));
        say("where a warm build's time goes");
        say(&format!("  submit to accepted            {}", self.accepted));
        for phase in ["queue", "probe", "source", "step", "teardown"] {
            if let Some(spread) = self.phases.get(phase) {
                say(&format!("  {phase:<29} {spread}"));
            }
        }
        say(&format!("  submit to result              {}", self.whole));
        figure("warm_over_ssh", self.warm.median() / self.ssh.median());
        figure("cold_over_warm", self.cold.median() / self.warm.median());
        figure("warm_over_open", self.warm.median() / self.open.median());
    }
}

/// A build that was claimed, and when what was seen of it.
struct Claimed {
    accepted: Duration,
    first_byte: Duration,
    whole: Duration,
    build: BuildView,
}

/// Submits as `preheat run` does, and follows.
async fn claim(installation: &Installation, pool: &str, source: &[u8]) -> Result<Claimed> {
    let step = StepSpec { command: "echo first".into(), ..StepSpec::default() };
    let spec = SubmitSpec { pool: Some(pool.into()), steps: vec![step], ..SubmitSpec::default() };
    let client = &installation.client;
    let begun = now();
    let body = reqwest::Body::from(source.to_vec());
    let accepted = client.submit(&spec, body, source.len() as u64).await.map_err(problem)?;
    let accepted_after = begun.elapsed();
    let mut heard = follow(client, accepted.id, Duration::from_secs(5));
    let mut first = None;
    let end = timeout(BUILD_LIMIT, async {
        while let Some(heard) = heard.recv().await {
            match heard {
                Heard::Line(line) if line.stream == LogStream::Out => {
                    first.get_or_insert_with(|| begun.elapsed());
                }
                Heard::Line(_) | Heard::View(_) | Heard::Lost(_) | Heard::Back => {}
                Heard::End(build) => return Ok(*build),
                Heard::GivenUp(why) => return Err(problem(why)),
            }
        }
        bail!("the log ended without a word")
    });
    let build = end.await.context("the build does not end")??;
    let first_byte = first.with_context(|| format!("the step printed nothing: {build:?}"))?;
    Ok(Claimed { accepted: accepted_after, first_byte, whole: begun.elapsed(), build })
}

/// What a command takes when the connection is open already: no build can begin sooner.
async fn over_open_connection(installation: &Installation, address: &str, into: &mut Spread) -> Result<()> {
    let address: IpAddr = address.parse()?;
    let target = Target { address, port: common::SSH_PORT, user: "admin".into(), key: installation.key() };
    let deadline = preheat::clock::Deadline::after(Duration::from_secs(30));
    let channel = SshConnector.connect(&target, deadline).await?;
    for _ in 0..OPEN_ROUNDS {
        let begun: Instant = now();
        channel.probe(Duration::from_secs(10)).await?;
        into.add_ms(begun.elapsed());
    }
    Ok(())
}
