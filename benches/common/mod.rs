//! What the benches share: a way to print, a spread of measurements, and an installation of its own with a running daemon.

#![expect(dead_code, reason = "each bench uses its part")]

pub mod builds;
pub mod peer;
pub mod process;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use preheat::api::wire::{ReloadView, VmList, VmView};
use preheat::cli::client::Client;
use preheat::clock::Deadline;
use preheat::runtime::command::{Group, Invocation, Streams};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

/// Where `tart-qemu` lets a guest's sshd answer.
pub const SSH_PORT: u16 = 2222;

/// The image may have to be built first, from packages.
const IMAGE_LIMIT: Duration = Duration::from_secs(900);
const START_LIMIT: Duration = Duration::from_secs(150);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const WARM_LIMIT: Duration = Duration::from_secs(300);
const RELOAD_LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// The machine counts as quiet when all its cores together were idle for this share of a look.
const QUIET_IDLE_MIN: f64 = 0.85;
const QUIET_LOOK: Duration = Duration::from_millis(250);

/// Prints a line.
pub fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}

/// Prints what the report reads.
pub fn figure(name: &str, number: f64) {
    let digits = if number < 100.0 { 3 } else { 0 };
    say(&format!("figure {name} = {number:.digits$}"));
}

/// Prints what the numbers were measured on; `guests` says what runs the guests, where there are any.
pub fn machine(guests: &str) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    say(&format!("machine: {cores} cores, {os} {arch}, guests: {guests}, load {load}"));
}

/// Measurements of one thing, in one unit.
#[derive(Debug, Clone, Default)]
pub struct Spread(Vec<f64>);

impl Spread {
    pub fn add(&mut self, value: f64) {
        let at = self.0.partition_point(|v| *v < value);
        self.0.insert(at, value);
    }

    pub fn add_ms(&mut self, took: Duration) {
        self.add(took.as_secs_f64() * 1000.0);
    }

    pub fn median(&self) -> f64 {
        match self.0.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => self.0[n / 2],
            n => f64::midpoint(self.0[n / 2 - 1], self.0[n / 2]),
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (min, max) = (self.0.first().copied().unwrap_or(0.0), self.0.last().copied().unwrap_or(0.0));
        write!(f, "{:8.1} [{min:.1} - {max:.1}]  n={}", self.median(), self.0.len())
    }
}

/// Runs a bench, and prints why it failed. A signal ends it as a failure does: the daemon is told to stop.
pub fn main(bench: impl Future<Output = Result<()>>) -> std::process::ExitCode {
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let done = runtime.block_on(async {
        tokio::select! {
            done = bench => done,
            () = told_to_stop() => bail!("interrupted"),
        }
    });
    done.map_or_else(|error| failed(&error), |()| std::process::ExitCode::SUCCESS)
}

/// Ctrl-C, or the SIGTERM of who has waited long enough.
async fn told_to_stop() {
    let Ok(mut terminated) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
}

fn failed(error: &anyhow::Error) -> std::process::ExitCode {
    say(&format!("failed: {error:#}"));
    std::process::ExitCode::FAILURE
}

/// An installation in a folder of its own, with its daemon.
pub struct Installation {
    pub client: Client,
    pub pid: u32,
    daemon: Option<Group>,
    home: TempDir,
    /// The configuration without its pools.
    base: String,
}

impl Installation {
    /// Makes one with the image `linux`, and starts the daemon with these pools.
    pub async fn start(pools: &str) -> Result<Self> {
        Self::with_images(&[("linux", "linux")], pools).await
    }

    /// Makes one with these images, each of what it says it is (`linux`, `darwin`), and starts the daemon with these pools;
    /// the first image is that of a pool that names none.
    pub async fn with_images(images: &[(&str, &str)], pools: &str) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("preheat-bench-").tempdir()?;
        say("preparing: the guest image, and a daemon");
        for (name, os) in images {
            let make =
                Invocation::new(root().join("vm-setup/linux-guest")).args(["--name", name, "--os", os]);
            let made = make.env("PREHEAT_HOME", home.path()).output(IMAGE_LIMIT).await?;
            if !made.status.success() {
                bail!("vm-setup/linux-guest failed: {}", made.stderr);
            }
        }
        let (image, _) = images.first().context("an image")?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let base = format!(
            "[host]\ndisk_free_min = \"64 MiB\"\n[runtime]\nprogram = \"{}\"\n[api]\nlisten = \"127.0.0.1:{port}\"\n\
             [pool_defaults]\nimage = \"{image}\"\nport = {SSH_PORT}\n",
            env!("CARGO_BIN_EXE_tart-qemu"),
        );
        std::fs::write(home.path().join("preheat.toml"), format!("{base}{pools}"))?;
        let log = std::fs::File::create(home.path().join("daemon.log"))?;
        let daemon = Invocation::new(env!("CARGO_BIN_EXE_preheat"))
            .arg("serve")
            .env("PREHEAT_HOME", home.path())
            .spawn(Streams::File(log))?;
        let client = Client::new(&format!("http://127.0.0.1:{port}"), None).map_err(problem)?;
        let this = Self { client, pid: daemon.pid(), daemon: Some(daemon), home, base };
        let limit = Deadline::after(START_LIMIT);
        while this.vms().await.is_err() {
            if limit.left().is_zero() {
                bail!("the daemon does not answer: {}", this.log());
            }
            sleep(LOOK).await;
        }
        Ok(this)
    }

    /// Puts other pools in the place of those that there are.
    pub async fn follow(&self, pools: &str) -> Result<()> {
        std::fs::write(self.home.path().join("preheat.toml"), format!("{}{pools}", self.base))?;
        let said = self.client.post::<ReloadView>(&["api", "v1", "config", "reload"], RELOAD_LIMIT).await;
        said.map(drop).map_err(problem)
    }

    /// Where `tart-qemu` keeps the VMs.
    pub fn tart_home(&self) -> PathBuf {
        self.home.path().join("tart")
    }

    /// The sum and the count of a histogram, over the series whose labels hold `label`.
    pub async fn histogram(&self, name: &str, label: &str) -> Result<(f64, f64)> {
        let url = format!("{}/metrics", self.client.url());
        let text = reqwest::get(url).await?.error_for_status()?.text().await?;
        let sum = |suffix: &str| {
            let series = format!("{name}_{suffix}{{");
            let lines = text.lines().filter(|line| line.starts_with(&series) && line.contains(label));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
        };
        Ok((sum("sum"), sum("count")))
    }

    pub fn key(&self) -> PathBuf {
        self.home.path().join("keys/id_ed25519")
    }

    /// Prints the machine, and what runs its guests: each `tart-qemu run` says so first of all.
    pub async fn machine(&self, warm: usize) -> Result<()> {
        self.settled(warm).await?;
        let logs = std::fs::read_dir(self.home.path().join("logs/vms"))?;
        let said = logs.flatten().find_map(|log| {
            let text = std::fs::read_to_string(log.path()).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("tart-qemu: "))?;
            ["kvm", "hvf", "tcg"].into_iter().find(|name| line.contains(&format!("({name})")))
        });
        machine(said.unwrap_or("unknown"));
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("daemon.log")).unwrap_or_default()
    }

    pub async fn vms(&self) -> Result<Vec<VmView>> {
        let list: VmList = self.client.get(&["api", "v1", "vms"], &[]).await.map_err(problem)?;
        Ok(list.vms)
    }

    /// Waits until `warm` VMs are warm and no other is on its way, and then, as far as others let it be so, until the
    /// machine is quiet.
    pub async fn settled(&self, warm: usize) -> Result<Vec<VmView>> {
        let vms = self.filled(warm).await?;
        quiet(Duration::from_secs(10)).await;
        Ok(vms)
    }

    /// Waits until `warm` VMs are warm and no other is on its way.
    pub async fn filled(&self, warm: usize) -> Result<Vec<VmView>> {
        let limit = Deadline::after(WARM_LIMIT);
        loop {
            let vms = self.vms().await?;
            let moving = vms.iter().any(|vm| !matches!(vm.state.as_str(), "warm" | "suspended"));
            if !moving && vms.iter().filter(|vm| vm.state == "warm").count() == warm {
                return Ok(vms);
            }
            if limit.left().is_zero() {
                bail!("the pool is not filled: {vms:?}\n{}", self.log());
            }
            sleep(LOOK).await;
        }
    }

    /// Stops the daemon, which takes its VMs away.
    pub async fn stop(mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        daemon.signal(Signal::SIGTERM);
        timeout(STOP_LIMIT, daemon.wait()).await.context("the daemon does not stop")??;
        Ok(())
    }
}

impl Drop for Installation {
    /// After a failure: the daemon is told to stop and left to it.
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM);
            drop(daemon.released());
        }
    }
}

/// A failure of the client's as an error.
pub fn problem(problem: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("{problem:?}")
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Waits until the machine is quiet, at most `limit`.
pub async fn quiet(limit: Duration) {
    let limit = Deadline::after(limit);
    let mut last = cpu();
    while let (Some((idle, all)), false) = (last, limit.left().is_zero()) {
        sleep(QUIET_LOOK).await;
        last = cpu();
        let Some((idle_now, all_now)) = last else { return };
        if (idle_now - idle) / (all_now - all).max(1.0) >= QUIET_IDLE_MIN {
            return;
        }
    }
}

/// Ticks of all cores: idle, and all.
fn cpu() -> Option<(f64, f64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|t| t.parse().ok()).collect();
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().take(8).sum()))
}
