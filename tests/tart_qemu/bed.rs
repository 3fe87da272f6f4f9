//! What every test stands on: one image per checkout, a home of its own, guests that never outlive the test.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Long: the machine that runs the tests may be busy with others.
pub const PATIENCE: Duration = Duration::from_secs(120);
const GUESTS_AT_ONCE: usize = 3;

/// Polls until `done`, and says what it was waiting for when it gives up.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn installation() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tart-qemu");
        for arguments in [["--name", "linux", "--os", "linux"], ["--name", "macos", "--os", "darwin"]] {
            let output = linux_guest(&home, &arguments);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        home
    })
}

pub fn linux_guest(home: &Path, arguments: &[&str]) -> Output {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("vm-setup/linux-guest"))
        .args(arguments)
        .env("PREHEAT_HOME", home)
        .env_remove("TART_HOME")
        .output()
        .expect("the script runs")
}

pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub struct Home {
    directory: tempfile::TempDir,
    faults: Option<PathBuf>,
    registry: Option<PathBuf>,
    _permits: Option<Permits>,
}

impl Home {
    /// With the images `linux` and `macos`, which share their disk and kernel with all other tests, and the right to
    /// run so many guests at once.
    pub fn with_guests(count: usize) -> Self {
        let images = installation().join("tart/vms");
        let mut home = Self::empty();
        home._permits = Some(Permits::take(count));
        for name in ["linux", "macos"] {
            link_vm(&images.join(name), &home.vm(name));
        }
        home
    }

    pub fn empty() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        fs::create_dir_all(directory.path().join("vms")).expect("a directory");
        Self { directory, faults: None, registry: None, _permits: None }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn vm(&self, name: &str) -> PathBuf {
        self.path().join("vms").join(name)
    }

    pub fn with_faults(mut self, toml: &str) -> Self {
        let path = self.path().join("faults.toml");
        fs::write(&path, toml).expect("a file");
        self.faults = Some(path);
        self
    }

    /// A registry with the image `registry.test/team/base:1`.
    pub fn with_registry(mut self) -> Self {
        let registry = self.path().join("registry");
        link_vm(&installation().join("tart/vms/linux"), &registry.join("registry.test/team/base/1"));
        self.registry = Some(registry);
        self
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tart-qemu"));
        command
            .args(arguments)
            .env("TART_HOME", self.path())
            .env("TART_QEMU_ACCEL", "tcg")
            .stdin(Stdio::null());
        for (name, value) in [("TART_QEMU_FAULTS", &self.faults), ("TART_QEMU_REGISTRY", &self.registry)] {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    pub fn tart(&self, arguments: &[&str]) -> Answer {
        answer(&self.command(arguments).output().expect("tart-qemu runs"))
    }

    /// A verb that must succeed; its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let answer = self.tart(arguments);
        assert_eq!(answer.code, 0, "{arguments:?}: {}{}", answer.out, answer.err);
        answer.out
    }

    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(arguments)).expect("JSON")
    }

    pub fn config(&self, name: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.vm(name).join("config.json")).expect("a config")).expect("JSON")
    }

    pub fn mac(&self, name: &str) -> String {
        self.config(name)["macAddress"].as_str().expect("an address").to_owned()
    }

    pub fn run(&self, name: &str, flags: &[&str]) -> Guest<'_> {
        let log = self.path().join(format!("{name}.log"));
        let file = File::create(&log).expect("a file");
        let mut arguments = vec!["run", name, "--no-graphics"];
        arguments.extend_from_slice(flags);
        let child = self
            .command(&arguments)
            .stdout(file.try_clone().expect("a file"))
            .stderr(file)
            .process_group(0)
            .spawn()
            .expect("tart-qemu runs");
        Guest { home: self, name: name.to_owned(), child, log, ended: None }
    }
}

fn link_vm(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("an image").flatten() {
        let target = to.join(entry.file_name());
        let name = entry.file_name().into_string().expect("a name");
        if ["config.json", "disk.img", "nvram.bin"].contains(&name.as_str()) {
            fs::copy(entry.path(), target).expect("a copy");
        } else {
            fs::hard_link(entry.path(), target).expect("a link");
        }
    }
}

pub fn answer(output: &Output) -> Answer {
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A `run` in the foreground of nobody; ended on drop.
pub struct Guest<'a> {
    home: &'a Home,
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<i32>,
}

impl Guest<'_> {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn said(&self) -> String {
        let mut text = String::new();
        File::open(&self.log).and_then(|mut file| file.read_to_string(&mut text)).expect("the log");
        text
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the process is there");
    }

    /// Its exit code; -1 when a signal ended it.
    pub fn exit(&mut self) -> i32 {
        let mut code = None;
        until(&format!("`run {}` ends; it said: {}", self.name, self.said()), || {
            code = self.child.try_wait().expect("a child").map(|status| status.code().unwrap_or(-1));
            code.is_some()
        });
        self.ended = code;
        code.unwrap_or(-1)
    }

    pub fn address(&self) -> String {
        let mut ip = String::new();
        until(&format!("address of {}; it said: {}", self.name, self.said()), || {
            let line =
                self.said().lines().find_map(|line| line.split_once("ssh at ").map(|(_, ip)| ip.to_owned()));
            ip = line.unwrap_or_default().trim_end_matches(":2222").to_owned();
            !ip.is_empty()
        });
        ip
    }

    /// Runs a command over ssh, as soon as somebody answers.
    pub fn ssh(&self, command: &str) -> String {
        let (ip, mut out) = (self.address(), None);
        until(&format!("ssh into {}; it said: {}", self.name, self.said()), || {
            let answer = ssh(&ip, "2222", command);
            if answer.code != 255 {
                out = Some(answer);
            }
            out.is_some()
        });
        let answer = out.expect("an answer");
        assert_eq!(answer.code, 0, "{command}: {}", answer.err);
        answer.out
    }

    /// The PID of this guest's QEMU.
    pub fn qemu(&self) -> i32 {
        let mut found = None;
        let directory = self.home.vm(&self.name).canonicalize().expect("a directory");
        until("QEMU runs", || {
            found = processes().into_iter().find(|pid| is_qemu_in(*pid, &directory));
            found.is_some()
        });
        found.unwrap_or_default()
    }
}

fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn is_qemu_in(pid: i32, directory: &Path) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.starts_with("qemu-system")
        && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)
}

/// Gone, or dead and not yet collected.
pub fn is_dead(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

pub fn ssh(ip: &str, port: &str, command: &str) -> Answer {
    let output = Command::new("ssh")
        .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args(["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", "-p", port, "-i"])
        .arg(installation().join("keys/id_ed25519"))
        .args([&format!("admin@{ip}"), command])
        .stdin(Stdio::null())
        .output()
        .expect("ssh runs");
    answer(&output)
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// So many emulated guests at once and no more: the tests of one run share few cores.
struct Permits(usize);

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Permits {
    /// All at once: two tests that each hold one and wait for another would wait for ever.
    fn take(count: usize) -> Self {
        let taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut taken = FREED
            .wait_while(taken, |taken| *taken + count > GUESTS_AT_ONCE)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *taken += count;
        Self(count)
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner) -= self.0;
        FREED.notify_all();
    }
}
