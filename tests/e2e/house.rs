//! An installation with its daemon, for one test or shared by those that follow each other. Its end is proven: no process
//! of it may be left.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use preheat::api::wire::{BuildState, BuildView, LogLine, PoolList, PoolView, VmList, VmView};
use preheat::clock::Deadline;
use serde::de::DeserializeOwned;

/// The program under test.
pub const PREHEAT: &str = env!("CARGO_BIN_EXE_preheat");
const TART: &str = env!("CARGO_BIN_EXE_tart-qemu");
/// Long enough for emulated guests on a busy machine; nothing waits so long when all is well.
pub const PATIENT: Duration = Duration::from_secs(240);
/// Between two looks at what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// From SIGTERM to the end of a daemon with its guests.
const STOP: Duration = Duration::from_secs(90);

static CALLS: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    rustls::crypto::ring::default_provider().install_default().ok();
    tokio::runtime::Runtime::new().expect("a runtime")
});

/// Waits for an asynchronous answer.
pub fn wait_for<T>(answer: impl Future<Output = T>) -> T {
    CALLS.block_on(answer)
}

/// Looks until there is something to see.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Deadline::after(PATIENT);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(!deadline.left().is_zero(), "waited in vain for {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Places for guests on the machine that tests: emulated, each keeps a core busy while it boots.
const PLACES: u16 = 2;

/// Waits for a house's turn: a place for each of its guests, held across threads and across test processes.
fn take_places(guests: u16) -> Vec<Flock<fs::File>> {
    let place = |number: u16| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("e2e-place-{number}"));
        fs::File::create(path).expect("a lock's file")
    };
    let take = |number, how| Flock::lock(place(number), how).map_err(|(_, errno)| errno);
    if guests >= PLACES {
        // In order, and before any guest boots: nobody waits for another in a circle.
        return (0..PLACES).map(|n| take(n, FlockArg::LockExclusive).expect("the lock")).collect();
    }
    let free = || (0..PLACES).rev().find_map(|n| take(n, FlockArg::LockExclusiveNonblock).ok());
    loop {
        if let Some(place) = free() {
            return vec![place];
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// What a house is made from.
#[derive(Clone, Default)]
pub struct Plan {
    config: String,
    guests: u16,
    /// The image pretends to be macOS, so that its VMs count against the limit of two.
    macos: bool,
    variables: Vec<(String, String)>,
    program: Option<PathBuf>,
}

impl Plan {
    /// Without an image; the configuration names what pools it likes.
    pub fn bare(config: &str) -> Self {
        Self { config: config.to_owned(), ..Self::default() }
    }

    /// With the image `linux` and a pool of it.
    pub fn pool(warm: u16, max: u16) -> Self {
        let config = format!("[pool.linux]\nimage = \"linux\"\nwarm = {warm}\nmax = {max}\nport = 2222\n");
        Self { config, guests: max, ..Self::default() }
    }

    /// With the image `macos` and a pool `mac` of it.
    pub fn macos(warm: u16, max: u16) -> Self {
        Self::resuming(warm, max).and("resume = false\n")
    }

    /// With the image `macos` and a pool `mac` of it, whose VMs resume.
    pub fn resuming(warm: u16, max: u16) -> Self {
        let config = format!("[pool.mac]\nimage = \"macos\"\nwarm = {warm}\nmax = {max}\nport = 2222\n");
        Self { config, guests: PLACES, macos: true, ..Self::default() }
    }

    /// More configuration: whole sections, or keys of the pool when it comes first.
    #[must_use]
    pub fn and(mut self, config: &str) -> Self {
        self.config.push_str(config);
        self
    }

    /// A variable of the daemon's environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another build of the program.
    #[must_use]
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// The house, its daemon not yet started.
    pub fn build(self) -> House {
        let places = if self.guests > 0 { take_places(self.guests) } else { Vec::new() };
        let dir = tempfile::Builder::new().prefix("e2e").tempdir().expect("a folder");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port");
        let house = House { dir, port: port.port(), plan: self, daemon: Mutex::new(None), _places: places };
        fs::create_dir(house.home()).expect("made");
        house.faults("");
        house.configure(&house.plan.config);
        if house.plan.guests > 0 {
            house.install_image();
        }
        house
    }

    /// The house with its daemon.
    pub fn open(self) -> House {
        let house = self.build();
        house.start();
        house
    }
}

/// An installation.
pub struct House {
    dir: tempfile::TempDir,
    port: u16,
    plan: Plan,
    daemon: Mutex<Option<Child>>,
    _places: Vec<Flock<fs::File>>,
}

/// The house that tests share: whoever has entered keeps it open.
static SHARED: Mutex<(usize, Option<Arc<House>>)> = Mutex::new((0, None));
/// Who of them may use it now.
static SHARED_TURN: Mutex<()> = Mutex::new(());

/// A test's stay in the shared house.
pub struct Guest {
    house: Option<Arc<House>>,
    _turn: MutexGuard<'static, ()>,
}

impl std::ops::Deref for Guest {
    type Target = House;
    fn deref(&self) -> &House {
        self.house.as_ref().expect("entered")
    }
}

/// A house with two warm VMs. A test that waits here while another is inside finds the daemon still running.
pub fn shared() -> Guest {
    let count = || SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    count().0 += 1;
    let turn = SHARED_TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = count().1.clone();
    let house = open.unwrap_or_else(|| {
        let house =
            Arc::new(Plan::pool(2, 2).and("probe_timeout = \"5s\"\nprobe_interval = \"5s\"\n").open());
        count().1 = Some(house.clone());
        house
    });
    let guest = Guest { house: Some(house), _turn: turn };
    guest.whole();
    guest
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.house = None;
        let mut count = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        count.0 -= 1;
        // The last one closes; one that failed leaves the next a new house.
        let last = if count.0 == 0 || std::thread::panicking() { count.1.take() } else { None };
        drop(count);
        drop(last);
    }
}

impl House {
    /// Where all that belongs to the test lies.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `$PREHEAT_HOME`
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// The daemon's address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Writes the configuration anew.
    pub fn configure(&self, config: &str) {
        let program = if config.contains("[runtime]") {
            String::new()
        } else {
            format!("[runtime]\nprogram = \"{TART}\"\n")
        };
        let fixed =
            format!("[api]\nlisten = \"127.0.0.1:{}\"\n[host]\ndisk_free_min = \"64 MiB\"\n", self.port);
        fs::write(self.home().join("preheat.toml"), format!("{program}{fixed}{config}")).expect("written");
    }

    /// What goes wrong from now on, in the words of `tart-qemu`.
    pub fn faults(&self, faults: &str) {
        fs::write(self.dir().join("faults.toml"), faults).expect("written");
    }

    fn install_image(&self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm-setup/linux-guest");
        let kind: &[&str] = if self.plan.macos { &["--name", "macos", "--os", "darwin"] } else { &[] };
        let mut script = assert_cmd::Command::new(script);
        let made = script.args(kind).env("PREHEAT_HOME", self.home()).output().expect("it runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Starts the daemon and waits until it serves.
    #[expect(clippy::disallowed_methods, reason = "the daemon outlives the call and is signalled later")]
    pub fn start(&self) {
        let log = fs::File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let program = self.plan.program.clone().unwrap_or_else(|| PREHEAT.into());
        let child = std::process::Command::new(program)
            .arg("serve")
            .env("PREHEAT_HOME", self.home())
            .env("TART_QEMU_FAULTS", self.dir().join("faults.toml"))
            .envs(self.plan.variables.clone())
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("it runs");
        *self.daemon() = Some(child);
        until("the daemon to serve", || {
            let ended = self.daemon().as_mut().and_then(|child| child.try_wait().expect("ours"));
            assert!(ended.is_none(), "the daemon ended: {}", self.said());
            wait_for(reqwest::get(format!("{}/healthz", self.url()))).ok().filter(|a| a.status().is_success())
        });
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon().as_ref().expect("it runs").id()
    }

    /// Sends the daemon a signal and waits for its end: its exit code, if it had one.
    pub fn end(&self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("alive");
        self.ended()
    }

    /// Waits for the end of a daemon that was told to: its exit code, if it had one.
    pub fn ended(&self) -> Option<i32> {
        let mut child = self.daemon().take().expect("it runs");
        let deadline = Deadline::after(STOP);
        while !deadline.left().is_zero() {
            if let Some(status) = child.try_wait().expect("ours") {
                return status.code();
            }
            std::thread::sleep(LOOK_EVERY);
        }
        child.kill().ok();
        child.wait().ok();
        panic!("the daemon did not end in {STOP:?}: {}", self.said());
    }

    /// What it said, of a daemon that may be about to end: why comes last.
    fn last_words(&self) -> String {
        let deadline = Deadline::after(Duration::from_secs(5));
        let mut ended = None;
        while self.said().contains("daemon stopping") && ended.is_none() && !deadline.left().is_zero() {
            ended = self.daemon().as_mut().and_then(|child| child.try_wait().ok().flatten());
            std::thread::sleep(LOOK_EVERY);
        }
        let said = self.said();
        if let Some(ended) = ended { format!("{said}({ended})\n") } else { said }
    }

    fn log_path(&self) -> PathBuf {
        self.home().join("daemon.log")
    }

    /// What the daemon logged.
    pub fn said(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// `preheat` with these arguments, not yet run.
    pub fn command(&self, args: &[&str]) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::new(PREHEAT);
        command
            .current_dir(self.dir())
            .env("PREHEAT_URL", self.url())
            .env("PREHEAT_HOME", self.home())
            .env("HOME", self.dir())
            .args(args)
            .timeout(PATIENT);
        command
    }

    /// `preheat` with these arguments.
    pub fn preheat(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("it runs")
    }

    /// `preheat` in a thread of its own.
    pub fn beside(&self, args: &[&str]) -> std::thread::JoinHandle<Output> {
        let mut command = self.command(args);
        std::thread::spawn(move || command.output().expect("it runs"))
    }

    /// `preheat run`, which must succeed: the build, and what was said.
    pub fn run(&self, args: &[&str]) -> (BuildView, String) {
        let all: Vec<&str> = ["run", "--json"].into_iter().chain(args.iter().copied()).collect();
        let output = self.preheat(&all);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        (serde_json::from_slice(&output.stdout).expect("a build"), err(&output))
    }

    /// `preheat submit`: the number.
    pub fn submit(&self, args: &[&str]) -> u64 {
        let all: Vec<&str> = ["submit"].into_iter().chain(args.iter().copied()).collect();
        let output = self.preheat(&all);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        out(&output).trim().parse().expect("a number")
    }

    /// An answer of the API.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let url = format!("{}/api/v1/{path}", self.url());
        let answer = wait_for(async { reqwest::get(url).await?.text().await }).expect("an answer");
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{path}: {e}: {answer}"))
    }

    /// A build.
    pub fn view(&self, id: u64) -> BuildView {
        self.get(&format!("builds/{id}"))
    }

    /// A build, when it is as asked.
    pub fn when(&self, id: u64, what: &str, is: impl Fn(&BuildView) -> bool) -> BuildView {
        until(&format!("build {id} {what}"), || {
            let view = self.view(id);
            assert!(view.state != BuildState::Done || is(&view), "over before it was {what}: {view:?}");
            is(&view).then_some(view)
        })
    }

    /// A build, when it is over.
    pub fn over(&self, id: u64) -> BuildView {
        self.when(id, "to be over", |view| view.state == BuildState::Done)
    }

    /// A build's log so far.
    pub fn log(&self, id: u64) -> Vec<LogLine> {
        let output = self.preheat(&["logs", "--json", &id.to_string()]);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        out(&output).lines().map(|line| serde_json::from_str(line).expect("a line")).collect()
    }

    /// Waits until a build has printed the line.
    pub fn printed(&self, id: u64, text: &str) {
        until(&format!("`{text}` in the log of build {id}"), || {
            self.log(id).iter().any(|line| line.text == text).then_some(())
        });
    }

    /// The pools.
    pub fn pools(&self) -> Vec<PoolView> {
        self.get::<PoolList>("pools").pools
    }

    /// The VMs.
    pub fn vms(&self) -> Vec<VmView> {
        self.get::<VmList>("vms").vms
    }

    /// The warm VMs, when the pool is as it should be: all that it keeps are warm, and nothing else is there.
    pub fn whole(&self) -> Vec<VmView> {
        let wanted: usize = self.pools().iter().map(|pool| usize::from(pool.warm_target)).sum();
        until("the pool to be whole", || {
            let vms = self.vms();
            (vms.len() == wanted && vms.iter().all(|vm| vm.state == "warm")).then_some(vms)
        })
    }

    /// All metrics.
    pub fn metrics(&self) -> String {
        wait_for(async { reqwest::get(format!("{}/metrics", self.url())).await?.text().await })
            .expect("metrics")
    }

    /// The sum of a metric's series that have these labels; `None` when there is no such series.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let text = self.metrics();
        let series = text.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && labels.iter().all(|(n, v)| rest.contains(&format!("{n}=\"{v}\"")))
        });
        let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// A verb of `tart-qemu` in this house.
    pub fn tart(&self, args: &[&str]) -> Output {
        assert_cmd::Command::new(TART)
            .env("TART_HOME", self.home().join("tart"))
            .args(args)
            .timeout(PATIENT)
            .output()
            .expect("it runs")
    }

    /// A guest of somebody else's in this house, up when this returns: whose it is only its name says.
    #[expect(clippy::disallowed_methods, reason = "the guest outlives the call and is stopped by name")]
    pub fn strangers_guest(&self, image: &str, name: &str, flags: &[&str]) -> Child {
        let log = fs::File::create(self.dir().join(format!("{name}.log"))).expect("a log");
        let made = self.tart(&["clone", image, name]);
        assert!(made.status.success(), "{}", err(&made));
        let child = std::process::Command::new(TART)
            .env("TART_HOME", self.home().join("tart"))
            .args(["run", name, "--no-graphics"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("it runs");
        let up = self.tart(&["ip", name, "--wait", "120"]);
        assert!(up.status.success(), "{}", err(&up));
        child
    }

    /// The VMs that are on the disk, ours or not.
    pub fn listed(&self) -> Vec<String> {
        let mut names: Vec<String> =
            out(&self.tart(&["list", "--quiet"])).lines().map(|line| line.trim().to_owned()).collect();
        names.sort();
        names
    }

    /// Lets a step of [`HOLD`] in this VM go on. It goes through the guest's agent, so it does not touch the VM's network.
    /// The build may be over, and its VM gone, before the agent's answer is out: what the build does next is the proof.
    pub fn release(&self, vm: &str) {
        let done = self.tart(&["exec", vm, "touch", "/tmp/go"]);
        let cut_off = err(&done).contains("control socket") || err(&done).contains("is not running");
        assert!(done.status.success() || cut_off, "{}", err(&done));
    }

    /// The emulator of a VM.
    pub fn qemu(&self, vm: &VmView) -> Pid {
        let owner = vm.pid.expect("it runs");
        until(&format!("the emulator of {}", vm.name), || children(owner).into_iter().next())
    }

    /// The processes of a VM's guest: its owner, and the emulator, which works in the VM's folder.
    pub fn guest(&self, vm: &str) -> Vec<(Pid, String)> {
        let folder = self.home().join("tart/vms").join(vm);
        let works = |pid: &Pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder);
        let owns = |line: &str| line.contains(&format!(" run {vm} "));
        self.processes().into_iter().filter(|(pid, line)| owns(line) || works(pid)).collect()
    }

    /// Processes that have anything to do with this house: by their folder or their environment.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let (home, mark) = (self.home(), format!("{}", self.home().display()));
        let ours = |pid: &Pid| {
            let at = |file: &str| PathBuf::from(format!("/proc/{pid}/{file}"));
            let inside = fs::read_link(at("cwd")).is_ok_and(|cwd| cwd.starts_with(&home));
            let environment = fs::read(at("environ")).unwrap_or_default();
            inside || contains(&environment, mark.as_bytes())
        };
        all_processes().into_iter().filter(ours).map(|pid| (pid, command_line(pid))).collect()
    }
}

/// A step that waits to be released, in a VM that a test then does something to.
pub const HOLD: &str = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.2; done; echo released";

impl Drop for House {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            let said = self.last_words();
            let tail = said.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
            write!(std::io::stderr(), "--- the daemon said:\n{}\n", &said[tail..]).ok();
        }
        let running = self.daemon().is_some();
        let ended = if running && !failed { self.end(Signal::SIGTERM) } else { Some(0) };
        if failed && let Some(mut child) = self.daemon().take() {
            child.kill().ok();
            child.wait().ok();
        }
        let deadline = Deadline::after(Duration::from_secs(15));
        while !failed && running && !self.processes().is_empty() && !deadline.left().is_zero() {
            std::thread::sleep(LOOK_EVERY);
        }
        let left = self.processes();
        for (pid, _) in &left {
            kill(*pid, Signal::SIGKILL).ok();
        }
        if !failed {
            assert!(left.is_empty() || !running, "the daemon left behind: {left:#?}\n{}", self.said());
            assert_eq!(ended, Some(0), "{}", self.said());
        }
    }
}

/// Every process of this host.
pub fn all_processes() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw)).collect()
}

/// The arguments of a process, or nothing.
pub fn command_line(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

fn children(of: u32) -> Vec<Pid> {
    let parent = |pid: &Pid| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    all_processes().into_iter().filter(|pid| parent(pid) == Some(of)).collect()
}

/// Whether the bytes are in there.
pub fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// What a command wrote to stdout.
pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command wrote to stderr.
pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
