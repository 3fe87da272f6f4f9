//! Trees into a guest and out of it: ours through the real channel, against scp, sftp, rsync and `tar | ssh` over a control
//! connection that is open already, with our cipher. In turns; medians; what arrived is compared with what was sent.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::{Installation, Spread, figure, say};
use preheat::build::pack::{PackOptions, pack};
use preheat::clock::{Deadline, now};
use preheat::guest::ssh::SshConnector;
use preheat::guest::{Connector, Take, Target};
use preheat::runtime::command::{Group, Invocation, Streams};
use tempfile::TempDir;
use tokio::time::sleep;

/// Rounds of each shape and direction.
const ROUNDS: usize = 3;

/// Ours have one more before: in it, it learns what is quick here.
const LEARNING: usize = 2;

/// A peer that was so much slower than the best one in the first round is not asked again: it cannot become the best.
const HOPELESS: f64 = 1.4;

/// One transfer.
const LIMIT: Duration = Duration::from_secs(300);

/// What stands by on a warm VM's connection is up by then.
const STANDBY: Duration = Duration::from_millis(700);

/// The processor's time is read in ticks of so many milliseconds.
const TICK_MS: f64 = 10.0;

/// As the daemon has them, so that the transfer is compared and not the cipher.
const CIPHERS: &str = if cfg!(target_os = "macos") {
    "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr"
} else {
    "chacha20-poly1305@openssh.com,aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr"
};

/// A project of a fixed make: 1,900 files.
const PACKAGE: &str = r#"{"name": "measured", "version": "1.0.0", "private": true,
"dependencies": {"express": "5.1.0", "typescript": "5.9.2", "eslint": "9.35.0"}}"#;

fn main() -> std::process::ExitCode {
    common::main(bench())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Way {
    fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// A tree: what is below `root/NAME`.
struct Shape {
    name: &'static str,
    root: PathBuf,
    /// The same as the daemon has it in its spool.
    tar: PathBuf,
}

async fn bench() -> Result<()> {
    let folder = TempDir::new()?;
    let at = folder.path().to_owned();
    let shapes = [
        shape(&at, "256mib", async |at| file(&at.join("large"), 256 << 20, true)).await?,
        shape(&at, "10000files", async |at| many(at, 10_000)).await?,
        shape(&at, "node_modules", node_modules).await?,
    ];
    let asked = |name| std::env::var(name).ok();
    let (only, only_way) = (asked("PREHEAT_BENCH_SHAPE"), asked("PREHEAT_BENCH_WAY"));
    let installation = Installation::start("[pool.warm]\nwarm = 1\nmax = 1\n").await?;
    installation.machine(1).await?;
    let vms = installation.settled(1).await?;
    let address = vms.first().and_then(|vm| vm.address.clone()).context("a warm VM has an address")?;
    let lab = Lab::open(&installation, address).await?;
    let (mut worst, mut worst_cpu) = (0.0_f64, 0.0_f64);
    for shape in shapes.iter().filter(|s| only.as_ref().is_none_or(|only| s.name == only)) {
        let ways = [Way::Up, Way::Down];
        for way in ways.into_iter().filter(|way| only_way.as_ref().is_none_or(|only| way.word() == only)) {
            let (wall, cpu) = lab.compare(shape, way).await?;
            figure(&format!("transfer_{}_{}_over_best_peer", way.word(), shape.name), wall);
            (worst, worst_cpu) = (worst.max(wall), worst_cpu.max(cpu));
        }
    }
    lab.default_cipher(&shapes[0]).await?;
    figure("worst_over_best_peer", worst);
    figure("worst_guest_cpu_over_best_peer", worst_cpu);
    figure("transfer_rss_growth_mib", lab.rss_growth.load(Ordering::Relaxed) as f64 / f64::from(1 << 20));
    drop(lab);
    installation.stop().await
}

async fn shape(at: &Path, name: &'static str, fill: impl AsyncFnOnce(&Path) -> Result<()>) -> Result<Shape> {
    let root = at.join(format!("root-{name}"));
    fs::create_dir_all(root.join(name))?;
    fill(&root.join(name)).await?;
    let tar = at.join(format!("{name}.tar"));
    let all = PackOptions { git: true, ignored: true };
    let packed = pack(&root, all, std::io::BufWriter::new(fs::File::create(&tar)?))?;
    let small = zstd::bulk::compress(&fs::read(&tar)?, 1)?.len() as u64;
    say(&format!(
        "shape {name}: {} files, {} MiB, {} % of that when compressed",
        packed.files,
        packed.bytes >> 20,
        small * 100 / packed.bytes.max(1)
    ));
    Ok(Shape { name, root, tar })
}

/// A file of noise, or of words.
fn file(path: &Path, bytes: usize, noise: bool) -> Result<()> {
    let mut state = path.as_os_str().len() as u64 ^ 0x9e37_79b9_7f4a_7c15;
    for byte in path.as_os_str().as_encoded_bytes() {
        state = state.wrapping_mul(31).wrapping_add(u64::from(*byte));
    }
    let mut content = Vec::with_capacity(bytes + 16);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if noise {
            content.extend_from_slice(&state.to_le_bytes());
        } else {
            let word = state % 3_000;
            content.extend_from_slice(
                format!("{}{word:x} ", ["let ", "if (", "name_", "\n  "][(state >> 40) as usize % 4])
                    .as_bytes(),
            );
        }
    }
    content.truncate(bytes);
    Ok(fs::write(path, content)?)
}

/// Files of 4 KiB, half of them like source and half like pictures.
fn many(at: &Path, count: usize) -> Result<()> {
    for n in 0..count {
        let folder = at.join(format!("{:02}", n / 100));
        fs::create_dir_all(&folder)?;
        file(&folder.join(format!("file{n}.x")), 4096, n % 2 == 0)?;
    }
    Ok(())
}

/// An unpacked node_modules, installed once.
async fn node_modules(at: &Path) -> Result<()> {
    let kept = common::root().join("target/measured-project");
    if !kept.join("node_modules/typescript").is_dir() {
        fs::create_dir_all(&kept)?;
        fs::write(kept.join("package.json"), PACKAGE)?;
        let npm = "npm install --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null 2>&1";
        if shell(&format!("cd '{}' && {npm}", kept.display())).await.is_err() {
            say(
                "no npm, or no registry: node_modules is a made-up tree, 2,000 files of 1 to 40 KB and two large ones",
            );
            for n in 0..2_000 {
                let folder = at.join(format!("package{}/lib", n / 13));
                fs::create_dir_all(&folder)?;
                file(&folder.join(format!("file{n}.js")), 1_000 + n * 7_919 % 39_000 / (1 + n % 5), false)?;
            }
            file(&at.join("package0/large.js"), 9 << 20, false)?;
            return file(&at.join("package1/large.js"), 6 << 20, false);
        }
    }
    // scp follows links, and artifacts have none: without them all contestants bring the same.
    let copy = format!(
        "cp -a '{}/node_modules/.' '{1}' && find '{1}' -type l -delete",
        kept.display(),
        at.display()
    );
    shell(&copy).await.map(drop)
}

/// A warm guest, and ways into it.
struct Lab {
    target: Target,
    /// Options for ssh, scp and sftp alike.
    options: String,
    work: TempDir,
    qemu: Option<u32>,
    /// Of this process, by our transfers: the largest.
    rss_growth: Arc<AtomicUsize>,
    _master: Group,
}

/// The median time of one contestant, and its guest's processor time, in milliseconds.
struct Row {
    name: &'static str,
    wall: Spread,
    cpu: Spread,
}

impl Lab {
    async fn open(installation: &Installation, address: String) -> Result<Self> {
        let work = tempfile::Builder::new().prefix("pt").tempdir_in("/tmp")?;
        let options = format!(
            "-F /dev/null -i '{}' -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o Compression=no -o ControlPath={}/m -o Port={} -o User=admin",
            installation.key().display(),
            work.path().display(),
            common::SSH_PORT
        );
        let master = format!("exec ssh {options} -o Ciphers={CIPHERS} -M -N {address}");
        let master = Invocation::new("bash").args(["-c", &master]).spawn(Streams::Null)?;
        let target = Target {
            address: address.parse()?,
            port: common::SSH_PORT,
            user: "admin".into(),
            key: installation.key(),
        };
        let qemu = installation.key().ancestors().nth(2).and_then(qemu_below);
        let lab = Self { target, options, work, qemu, rss_growth: Arc::default(), _master: master };
        let deadline = Deadline::after(Duration::from_secs(30));
        while !lab.work.path().join("m").exists() {
            if deadline.left().is_zero() {
                bail!("no control connection");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(lab)
    }

    /// Our time, and the guest's processor time for it, over the best peer's.
    async fn compare(&self, shape: &Shape, way: Way) -> Result<(f64, f64)> {
        let peers = ["tar | ssh", "rsync -a", "rsync -az", "scp -r", "sftp"];
        let row = |name| Row { name, wall: Spread::default(), cpu: Spread::default() };
        let mut ours = row("preheat");
        let mut rows: Vec<Row> = peers.into_iter().map(row).collect();
        for _ in 0..LEARNING {
            self.once(shape, way, &mut row("preheat")).await?;
        }
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                self.once(shape, way, &mut ours).await?;
            }
            let best = rows.iter().map(|r| r.wall.median()).fold(f64::INFINITY, f64::min);
            for row in &mut rows {
                if round == 0 || row.wall.median() <= best * HOPELESS {
                    self.once(shape, way, row).await?;
                }
            }
            if round % 2 == 1 {
                self.once(shape, way, &mut ours).await?;
            }
        }
        say(&format!("{} {}: milliseconds, and the guest's processor", shape.name, way.word()));
        for row in std::iter::once(&ours).chain(&rows) {
            say(&format!("  {:<10} {}   cpu {:8.0}", row.name, row.wall, row.cpu.median()));
        }
        let best = |of: fn(&Row) -> f64| rows.iter().map(of).fold(f64::INFINITY, f64::min);
        let wall = ours.wall.median() / best(|row| row.wall.median());
        Ok((wall, ours.cpu.median() / best(|row| row.cpu.median())))
    }

    /// One transfer of a contestant, from an empty folder, and checked.
    async fn once(&self, shape: &Shape, way: Way, row: &mut Row) -> Result<()> {
        let into = self.work.path().join("into");
        shell(&format!("rm -rf '{0}'; mkdir '{0}'", into.display())).await?;
        match way {
            Way::Up => drop(self.guest("rm -rf work; mkdir work; sync").await?),
            Way::Down => self.fill(shape).await?,
        };
        let (took, cpu) = if row.name == "preheat" {
            self.ours(shape, way, &into).await?
        } else {
            let script = self.peer(row.name, shape, way, &into);
            common::quiet(Duration::from_secs(1)).await;
            let (begun, ticks) = (now(), self.ticks());
            shell(&script).await?;
            (begun.elapsed(), self.ticks() - ticks)
        };
        row.wall.add_ms(took);
        row.cpu.add(cpu * TICK_MS);
        self.check(shape, way, &into).await.with_context(|| format!("{} {}", row.name, way.word()))
    }

    async fn ours(&self, shape: &Shape, way: Way, into: &Path) -> Result<(Duration, f64)> {
        let deadline = Deadline::after(LIMIT);
        let channel = SshConnector.connect(&self.target, deadline).await?;
        sleep(STANDBY).await;
        common::quiet(Duration::from_secs(1)).await;
        let watched = Watched::new(self.rss_growth.clone());
        let (begun, ticks) = (now(), self.ticks());
        match way {
            Way::Up => drop(channel.put_tree(&shape.tar, deadline).await?),
            Way::Down => {
                let globs = vec![shape.name.to_owned()];
                let take = Take { globs, into: into.to_owned(), bytes_max: 1 << 40, deadline };
                drop(channel.take(&take).await?);
            }
        }
        let done = (begun.elapsed(), self.ticks() - ticks);
        drop(watched);
        Ok(done)
    }

    fn peer(&self, name: &str, shape: &Shape, way: Way, into: &Path) -> String {
        let (options, host, tree) = (&self.options, self.target.address, shape.name);
        let (root, into, tar) = (shape.root.display(), into.display(), shape.tar.display());
        let batch = |line: String| {
            format!("printf '%s\\n' \"{line}\" | sftp -q -B 261120 -R 64 -b - {options} {host} >/dev/null")
        };
        match (name, way) {
            ("tar | ssh", Way::Up) => format!("ssh {options} {host} 'tar -C work -x -f -' <'{tar}'"),
            ("tar | ssh", Way::Down) => {
                format!("ssh {options} {host} 'tar -C work -c -f - {tree}' | tar -C '{into}' -x -f -")
            }
            ("scp -r", Way::Up) => format!("scp -q -r -p {options} '{root}/{tree}' {host}:work/"),
            ("scp -r", Way::Down) => format!("scp -q -r -p {options} {host}:work/{tree} '{into}/'"),
            ("sftp", Way::Up) => batch(format!("put -R -p '{root}/{tree}' work/")),
            ("sftp", Way::Down) => batch(format!("get -R -p work/{tree} '{into}/'")),
            (rsync, Way::Up) => format!("{rsync} -e \"ssh {options}\" '{root}/{tree}' {host}:work/"),
            (rsync, Way::Down) => format!("{rsync} -e \"ssh {options}\" {host}:work/{tree} '{into}/'"),
        }
    }

    /// Puts the shape into the guest, unless it is there.
    async fn fill(&self, shape: &Shape) -> Result<()> {
        let there = format!("[ -e work/{} ]", shape.name);
        if self.guest(&there).await.is_err() {
            self.guest("rm -rf work; mkdir work").await?;
            let (options, host) = (&self.options, self.target.address);
            let script = format!("ssh {options} {host} 'tar -C work -x -f -' <'{}'", shape.tar.display());
            shell(&script).await?;
        }
        self.guest("sync").await.map(drop)
    }

    /// Every byte is where it belongs.
    async fn check(&self, shape: &Shape, way: Way, into: &Path) -> Result<()> {
        let sum = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum";
        let there = match way {
            Way::Up => self.guest(&format!("cd work && {sum}")).await?,
            Way::Down => shell(&format!("cd '{}' && {sum}", into.display())).await?,
        };
        if there != shell(&format!("cd '{}' && {sum}", shape.root.display())).await? {
            bail!("what arrived differs");
        }
        Ok(())
    }

    /// What whoever uses the default gets.
    async fn default_cipher(&self, shape: &Shape) -> Result<()> {
        self.guest("rm -rf work; mkdir work; sync").await?;
        // The first of two values counts.
        let options = format!("-o ControlPath=none -o LogLevel=DEBUG1 {}", self.options);
        let command = format!("ssh {options} {} 'tar -C work -x -f -'", self.target.address);
        let begun = now();
        let find = "grep -o 'cipher: [^ ]*' | head -n 1";
        let said = shell(&format!("{command} <'{}' 2>&1 | {find}", shape.tar.display())).await?;
        let took = begun.elapsed().as_millis();
        say(&format!(
            "256mib up by `tar | ssh` with the default cipher, a fresh connection: {took} ms, {}",
            said.trim()
        ));
        Ok(())
    }

    async fn guest(&self, script: &str) -> Result<String> {
        shell(&format!("ssh {} {} \"{script}\"", self.options, self.target.address)).await
    }

    fn ticks(&self) -> f64 {
        let stat = self.qemu.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
        let Some(stat) = stat else { return 0.0 };
        let behind = stat.rsplit(") ").next().unwrap_or_default();
        let numbers: Vec<f64> = behind.split(' ').filter_map(|n| n.parse().ok()).collect();
        numbers.get(10).zip(numbers.get(11)).map_or(0.0, |(user, system)| user + system)
    }
}

async fn shell(script: &str) -> Result<String> {
    let script = format!("set -e -o pipefail; {script}");
    let done = Invocation::new("bash").args(["-c", &script]).output(LIMIT).await?;
    if !done.status.success() {
        bail!("{script}: {}", done.stderr);
    }
    Ok(done.stdout)
}

/// The QEMU of a VM below this folder: each runs where its VM lies.
fn qemu_below(home: &Path) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let place = fs::read_link(entry.path().join("cwd")).ok()?;
        let found = name.starts_with("qemu-system") && place.starts_with(home);
        entry.file_name().to_str().filter(|_| found)?.parse().ok()
    })
}

/// Watches this process's memory until it is dropped.
struct Watched(Arc<AtomicBool>);

impl Watched {
    fn new(growth: Arc<AtomicUsize>) -> Self {
        let resident = || memory_stats::memory_stats().map_or(0, |stats| stats.physical_mem);
        let (before, over) = (resident(), Arc::new(AtomicBool::new(false)));
        let watched = Self(over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                growth.fetch_max(resident().saturating_sub(before), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        watched
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
