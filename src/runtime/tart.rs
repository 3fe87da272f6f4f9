//! Tart's command line as the runtime: a subprocess a verb. Everything that is known of Tart's flags, exit codes and texts
//! is in this file; `tart-qemu` speaks the same.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::time::timeout;

mod files;
mod watched;

use super::command::{CommandError, Group, Invocation, Output, Streams};
use super::lock_owner::Adopted;
use super::{
    Fault, GuestOs, ImageInfo, Listed, ListedState, Reason, RunOptions, RunProcess, Runtime, Shape, Verb,
    VmName,
};
use crate::clock::{self, Deadline};
use crate::config::{Network, Resolver, RuntimeConfig, VerbDeadlines};
use crate::telemetry::events::VerbEnded;

/// What is kept of what `run` printed.
const RUN_TAIL_BYTES: u64 = 4096;

/// `tart stop` sends SIGINT, a power cut; a process that ignores it for this long is killed.
const POWER_CUT_GRACE: Duration = Duration::from_secs(5);

/// One call of `tart ip` waits this long at most, so that a deadline is noticed in between. Tart counts whole seconds.
const IP_WAIT_SECONDS: u64 = 5;

/// Drives one `tart` with one `TART_HOME`.
pub struct Tart {
    program: PathBuf,
    home: PathBuf,
    logs: PathBuf,
    deadlines: RwLock<VerbDeadlines>,
}

impl Tart {
    /// `logs` is the folder that receives what `run` prints, one file a VM.
    pub fn new(config: &RuntimeConfig, logs: PathBuf) -> Self {
        Self {
            program: resolve_program(&config.program),
            home: config.tart_home.clone(),
            logs,
            deadlines: RwLock::new(config.deadlines.clone()),
        }
    }

    /// Other deadlines hold for the verbs that begin from now on.
    pub fn set_deadlines(&self, deadlines: VerbDeadlines) {
        *self.deadlines.write().unwrap_or_else(PoisonError::into_inner) = deadlines;
    }

    fn deadline(&self, of: impl FnOnce(&VerbDeadlines) -> Duration) -> Duration {
        of(&self.deadlines.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn invocation(&self, verb: Verb) -> Invocation {
        Invocation::new(&self.program)
            .arg(verb.as_str())
            .env("TART_HOME", &self.home)
            // Auto-prune could delete the very image that the next clone needs.
            .env("TART_NO_AUTO_PRUNE", "1")
    }

    async fn verb(&self, verb: Verb, args: &[&str], limit: Duration) -> Result<Output, Fault> {
        let began = clock::now();
        let ran = self.invocation(verb).args(args).output(limit).await;
        let result = match &ran {
            Ok(output) if output.status.success() => "ok",
            Ok(_) | Err(CommandError::Missing(_) | CommandError::Io { .. }) => "error",
            Err(CommandError::Timeout { .. }) => "timeout",
        };
        VerbEnded { verb, result, took: began.elapsed() }.emit();
        let output = ran.map_err(|e| command_fault(verb, &e))?;
        if output.status.success() {
            return Ok(output);
        }
        Err(classify(verb, output.status.code(), &output.stderr))
    }

    fn run_log(&self, vm: &VmName) -> PathBuf {
        self.logs.join(format!("{vm}.log"))
    }

    fn start_now(&self, vm: &VmName, options: &RunOptions) -> Result<Box<dyn RunProcess>, Fault> {
        let io = |e: std::io::Error| {
            let full = matches!(e.kind(), std::io::ErrorKind::StorageFull);
            let reason = if full { Reason::DiskFull } else { Reason::VerbFailed };
            Fault::new(reason, "tart run", format!("cannot write its log: {e}"))
        };
        let path = self.run_log(vm);
        std::fs::create_dir_all(&self.logs).map_err(io)?;
        let log = File::create(&path).map_err(io)?;
        let group = self
            .invocation(Verb::Run)
            .args([vm.to_string(), "--no-graphics".into(), "--no-audio".into(), "--no-clipboard".into()])
            .args(options.suspendable.then_some("--suspendable"))
            .args(network_args(&options.network))
            .args(&options.extra_args)
            .spawn(Streams::File(log))
            .map_err(|e| command_fault(Verb::Run, &e))?;
        Ok(Box::new(TartRun { group: group.released(), log: path }))
    }
}

impl Runtime for Tart {
    fn clone_image<'a>(&'a self, image: &'a str, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let cloned = self.verb(Verb::Clone, &[image, &vm.to_string()], self.deadline(|d| d.clone)).await;
            cloned.map(drop).map_err(|mut fault| {
                // Here the VM that is missing is the image.
                if fault.reason == Reason::VmMissing {
                    fault.reason = Reason::ImageMissing;
                }
                fault
            })
        }
        .boxed()
    }

    fn configure<'a>(&'a self, vm: &'a VmName, shape: &'a Shape) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            // One call for all of it: each `tart set` resets what the call does not name.
            let mut args = vec![vm.to_string()];
            let mut number = |flag: &str, value: Option<u64>| {
                args.extend(value.into_iter().flat_map(|v| [flag.to_owned(), v.to_string()]));
            };
            number("--cpu", shape.cpus.map(u64::from));
            number("--memory", shape.memory_mib);
            number("--disk-size", shape.disk_gb);
            args.extend(shape.fresh_serial.then(|| "--random-serial".to_owned()));
            args.extend(shape.fresh_mac.then(|| "--random-mac".to_owned()));
            if args.len() == 1 {
                return Ok(());
            }
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            self.verb(Verb::Set, &args, self.deadline(|d| d.set)).await.map(drop)
        }
        .boxed()
    }

    fn start<'a>(
        &'a self,
        vm: &'a VmName,
        options: &'a RunOptions,
    ) -> BoxFuture<'a, Result<Box<dyn RunProcess>, Fault>> {
        async move { self.start_now(vm, options) }.boxed()
    }

    fn adopt<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<Option<Box<dyn RunProcess>>, Fault>> {
        async move {
            let config = self.home.join("vms").join(vm.to_string()).join("config.json");
            let found = Adopted::find(config, self.run_log(vm), POWER_CUT_GRACE, adopted_run_end);
            let found = found.map_err(|e| {
                Fault::new(Reason::VerbFailed, "find the owner of config.json's lock", e.to_string())
            })?;
            Ok(found.map(|process| Box::new(process) as Box<dyn RunProcess>))
        }
        .boxed()
    }

    fn address<'a>(
        &'a self,
        vm: &'a VmName,
        network: &'a Network,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<IpAddr, Fault>> {
        async move {
            let name = vm.to_string();
            if resolver(network) == Resolver::Dhcp {
                // The rest is for the verb itself, which says what is wrong.
                files::leased(&self.home, &name, Deadline::after(deadline.left() * 3 / 4)).await;
            }
            loop {
                let wait = deadline.left().as_secs().clamp(1, IP_WAIT_SECONDS);
                let wait_text = wait.to_string();
                let mut args = vec![name.as_str(), "--wait", &wait_text];
                args.extend(resolver_args(network));
                // Its own wait, and then some for the process itself.
                let limit = Duration::from_secs(wait) + self.deadline(|d| d.query);
                match self.verb(Verb::Ip, &args, limit).await {
                    Ok(output) => return parse_address(&output.stdout),
                    Err(fault) if fault.reason == Reason::NoAddress && !deadline.left().is_zero() => {}
                    Err(fault) => return Err(fault),
                }
            }
        }
        .boxed()
    }

    fn restored<'a>(&'a self, vm: &'a VmName, deadline: Deadline) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let log = self.run_log(vm);
            let said = watched::until(&log, deadline, || restoration(&tail(&log))).await;
            let text = match said {
                Some(Restoration::Done) => return Ok(()),
                Some(Restoration::Dropped) => "its address was taken, so it booted",
                None => "it did not say that it resumes in time",
            };
            Err(Fault::new(Reason::StateLost, "tart run", text))
        }
        .boxed()
    }

    fn suspend<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let asked = self.verb(Verb::Suspend, &[&vm.to_string()], self.deadline(|d| d.query)).await;
            asked.map(drop)
        }
        .boxed()
    }

    fn state<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<ListedState, Fault>> {
        async move {
            let args = [&vm.to_string(), "--format", "json"];
            let output = self.verb(Verb::Get, &args, self.deadline(|d| d.query)).await?;
            parse_state(&output.stdout)
        }
        .boxed()
    }

    fn stop<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let grace = POWER_CUT_GRACE.as_secs().to_string();
            match self
                .verb(Verb::Stop, &[&vm.to_string(), "--timeout", &grace], self.deadline(|d| d.stop))
                .await
            {
                Err(fault) if !matches!(fault.reason, Reason::NotRunning | Reason::VmMissing) => Err(fault),
                Ok(_) | Err(_) => Ok(()),
            }
        }
        .boxed()
    }

    fn delete<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            match self.verb(Verb::Delete, &[&vm.to_string()], self.deadline(|d| d.delete)).await {
                Err(fault) if fault.reason != Reason::VmMissing => Err(fault),
                Ok(_) | Err(_) => {
                    // The log of a VM that is gone says nothing that its failure did not say.
                    tokio::fs::remove_file(self.run_log(vm)).await.ok();
                    Ok(())
                }
            }
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, Fault>> {
        async move {
            let args = ["--source", "local", "--format", "json"];
            // Tart's list fails when a VM disappears while it scans.
            let output = match self.verb(Verb::List, &args, self.deadline(|d| d.query)).await {
                Err(fault) if fault.reason == Reason::VerbFailed => {
                    self.verb(Verb::List, &args, self.deadline(|d| d.query)).await?
                }
                first => first?,
            };
            parse_list(&output.stdout)
        }
        .boxed()
    }

    fn image<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<ImageInfo, Fault>> {
        async move {
            match self.verb(Verb::Get, &[image, "--format", "json"], self.deadline(|d| d.query)).await {
                Ok(output) => {
                    let mut info = parse_image(&output.stdout)?;
                    info.identity = files::identity(&self.home, image, &self.version().await?);
                    Ok(info)
                }
                Err(mut fault) => {
                    if fault.reason == Reason::VmMissing {
                        fault.reason = Reason::ImageMissing;
                    }
                    Err(fault)
                }
            }
        }
        .boxed()
    }

    fn prune_images(&self, days: u64) -> BoxFuture<'_, Result<(), Fault>> {
        async move {
            let days = days.to_string();
            let args = ["--entries", "caches", "--older-than", days.as_str()];
            self.verb(Verb::Prune, &args, self.deadline(|d| d.delete)).await.map(drop)
        }
        .boxed()
    }

    fn version(&self) -> BoxFuture<'_, Result<String, Fault>> {
        async move {
            let output = self.verb(Verb::Version, &[], self.deadline(|d| d.query)).await?;
            Ok(output.stdout.trim().to_owned())
        }
        .boxed()
    }
}

/// A running `tart run`.
struct TartRun {
    group: Group,
    log: PathBuf,
}

impl RunProcess for TartRun {
    fn ended(&mut self) -> BoxFuture<'_, Fault> {
        async move {
            let code = self.group.wait().await.ok().and_then(|status| status.code());
            classify_run_end(code, &tail(&self.log))
        }
        .boxed()
    }

    fn kill(&mut self, deadline: Deadline) -> BoxFuture<'_, Result<(), Fault>> {
        async move {
            self.group.signal(Signal::SIGINT);
            if timeout(POWER_CUT_GRACE.min(deadline.left()), self.group.wait()).await.is_ok() {
                return Ok(());
            }
            self.group.signal(Signal::SIGKILL);
            match timeout(deadline.left().max(Duration::from_secs(1)), self.group.wait()).await {
                Ok(_) => Ok(()),
                Err(_) => Err(Fault::new(Reason::VerbTimeout, "kill tart run", "the process does not go")),
            }
        }
        .boxed()
    }

    fn pid(&self) -> Option<u32> {
        Some(self.group.pid())
    }
}

/// A bare name may lie beside our own binary, as `tart-qemu` does; else the PATH decides.
fn resolve_program(program: &str) -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|dir| dir.join(program)));
    match beside {
        Some(path) if !program.contains('/') && path.is_file() => path,
        Some(_) | None => PathBuf::from(program),
    }
}

fn network_args(network: &Network) -> Vec<String> {
    match network {
        Network::Nat => Vec::new(),
        Network::Softnet { allow, block } => {
            let mut args = vec!["--net-softnet".to_owned()];
            args.extend((!allow.is_empty()).then(|| format!("--net-softnet-allow={}", allow.join(","))));
            args.extend((!block.is_empty()).then(|| format!("--net-softnet-block={}", block.join(","))));
            args
        }
        Network::Bridged { interface, .. } => vec![format!("--net-bridged={interface}")],
    }
}

/// How Tart finds an address in this network.
fn resolver(network: &Network) -> Resolver {
    match network {
        Network::Nat | Network::Softnet { .. } => Resolver::Dhcp,
        Network::Bridged { resolver, .. } => *resolver,
    }
}

fn resolver_args(network: &Network) -> Vec<&'static str> {
    match network {
        Network::Nat | Network::Softnet { .. } => Vec::new(),
        Network::Bridged { resolver, .. } => vec![
            "--resolver",
            match resolver {
                Resolver::Dhcp => "dhcp",
                Resolver::Arp => "arp",
                Resolver::Agent => "agent",
            },
        ],
    }
}

/// What a `run` has said of its saved state.
#[derive(Debug, PartialEq, Eq)]
enum Restoration {
    Done,
    Dropped,
}

fn restoration(log: &str) -> Option<Restoration> {
    if log.contains("Resetting VM to assign a new MAC address") {
        return Some(Restoration::Dropped);
    }
    log.contains("resuming VM...").then_some(Restoration::Done)
}

fn command_fault(verb: Verb, error: &CommandError) -> Fault {
    let reason = match error {
        CommandError::Missing(_) => Reason::ProgramMissing,
        CommandError::Io { .. } => Reason::VerbFailed,
        CommandError::Timeout { .. } => Reason::VerbTimeout,
    };
    Fault::new(reason, format!("tart {}", verb.as_str()), error.to_string())
}

/// Texts of Tart and of macOS that name a reason; the first that is found decides. Tart's exit codes say too little: 1 is
/// nearly everything, and `run` exits 0 when its guest crashed.
const TEXTS: &[(&str, Reason)] = &[
    ("exceeds the system limit", Reason::SystemLimit),
    // As it surfaces raw when a saved state is restored; not `Code=60`.
    ("VZErrorDomain Code=6 ", Reason::SystemLimit),
    ("isn’t enough space", Reason::DiskFull),
    ("isn't enough space", Reason::DiskFull),
    ("No space left on device", Reason::DiskFull),
    ("Failed to create new HostKey", Reason::HostKey),
    ("VZErrorDomain Code=-9", Reason::HostKey),
    ("SecKeyCreateRandomKey_ios failed", Reason::HostKey),
    ("Interaction is not allowed with the Security Server", Reason::HostKey),
    ("Softnet failed", Reason::Softnet),
    ("snapshot created successfully", Reason::Suspended),
    ("Failed to suspend the VM", Reason::SuspendFailed),
    ("failed to restore", Reason::RestoreRefused),
    ("VZErrorDomain Code=12", Reason::RestoreRefused),
    ("no IP address found", Reason::NoAddress),
    ("is not running", Reason::NotRunning),
    ("is already running", Reason::AlreadyRunning),
    ("\" is running", Reason::AlreadyRunning),
    ("does not exist", Reason::VmMissing),
    ("guest has stopped the virtual machine due to error", Reason::GuestStopped),
];

/// Tart's parser of arguments exits with this when it does not know one.
const EXIT_USAGE: i32 = 64;

/// What a verb's failure means.
pub fn classify(verb: Verb, code: Option<i32>, stderr: &str) -> Fault {
    let known = TEXTS.iter().find(|(text, _)| stderr.contains(text)).map(|(_, reason)| *reason);
    let reason = match (known, code) {
        (Some(reason), _) => reason,
        (None, Some(EXIT_USAGE)) => Reason::BadArguments,
        (None, Some(_) | None) => Reason::VerbFailed,
    };
    let text = match stderr.trim() {
        "" => match code {
            Some(code) => format!("it exited with {code} and said nothing"),
            None => "a signal ended it, and it said nothing".to_owned(),
        },
        said => last_lines(said, 3),
    };
    Fault::new(reason, format!("tart {}", verb.as_str()), text)
}

/// What the end of a `run` that nobody asked for means.
fn classify_run_end(code: Option<i32>, text: &str) -> Fault {
    let mut fault = classify(Verb::Run, code, text);
    if fault.reason == Reason::VerbFailed && code == Some(0) {
        fault.reason = Reason::GuestStopped;
    }
    fault
}

/// The same for a `run` that is not our child: its text is there, its exit code is not.
fn adopted_run_end(log: &Path) -> Fault {
    let mut fault = classify_run_end(Some(0), &tail(log));
    if fault.text.is_empty() || fault.text.starts_with("it exited with") {
        fault.text = "it ended; its exit code went to the daemon before this one".to_owned();
    }
    fault
}

/// What is kept of a line that Tart said; a fault is logged, journalled and shown.
const LINE_CHARS_MAX: usize = 1000;

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(count)..];
    last.iter().map(|line| line.chars().take(LINE_CHARS_MAX).collect()).collect::<Vec<String>>().join(" / ")
}

fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(RUN_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(RUN_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// The start of a text, in one line: it may be anything, and of any length.
fn start(text: &str) -> String {
    const SHOWN_MAX: usize = 200;
    text.chars().take(SHOWN_MAX).collect::<String>().escape_debug().to_string()
}

fn parse_address(stdout: &str) -> Result<IpAddr, Fault> {
    let text = stdout.trim();
    text.parse()
        .map_err(|_| Fault::new(Reason::NoAddress, "tart ip", format!("`{}` is not an address", start(text))))
}

/// Read leniently: the fields' types have changed between Tart's versions, and more may be added.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListRow {
    name: String,
    source: String,
    #[serde(default)]
    running: bool,
    state: Option<String>,
}

fn parse_list(json: &str) -> Result<Vec<Listed>, Fault> {
    let rows: Vec<ListRow> = serde_json::from_str(json)
        .map_err(|e| Fault::new(Reason::VerbFailed, "tart list", format!("its JSON does not parse: {e}")))?;
    let local = rows.into_iter().filter(|row| row.source.eq_ignore_ascii_case("local"));
    Ok(local
        .map(|row| Listed { state: listed_state(row.state.as_deref(), row.running), name: row.name })
        .collect())
}

fn listed_state(state: Option<&str>, running: bool) -> ListedState {
    match state {
        Some("running") => ListedState::Running,
        Some("suspended") => ListedState::Suspended,
        Some(_) | None if running => ListedState::Running,
        Some(_) | None => ListedState::Stopped,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StateRow {
    #[serde(default)]
    running: bool,
    state: Option<String>,
}

fn parse_state(json: &str) -> Result<ListedState, Fault> {
    let row: StateRow = serde_json::from_str(json)
        .map_err(|e| Fault::new(Reason::VerbFailed, "tart get", format!("its JSON does not parse: {e}")))?;
    Ok(listed_state(row.state.as_deref(), row.running))
}

#[derive(Deserialize)]
struct GetRow {
    #[serde(rename = "OS")]
    os: String,
    #[serde(rename = "CPU")]
    cpu: u16,
    #[serde(rename = "Memory")]
    memory: u64,
}

fn parse_image(json: &str) -> Result<ImageInfo, Fault> {
    let row: GetRow = serde_json::from_str(json).map_err(|e| {
        Fault::new(Reason::ImageUnusable, "tart get", format!("its JSON does not parse: {e}"))
    })?;
    let os = match row.os.to_ascii_lowercase().as_str() {
        "darwin" | "macos" => GuestOs::Darwin,
        "linux" => GuestOs::Linux,
        other => {
            return Err(Fault::new(
                Reason::ImageUnusable,
                "tart get",
                format!("its OS is `{}`", start(other)),
            ));
        }
    };
    Ok(ImageInfo { os, cpus: row.cpu, memory_mib: row.memory, identity: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tarts_texts_are_told_apart() {
        let table = [
            (Verb::Clone, Some(2), "the specified VM \"x\" does not exist", Reason::VmMissing),
            (Verb::Run, Some(1), "Error: the specified VM \"x\" does not exist", Reason::VmMissing),
            (Verb::Stop, Some(2), "VM \"x\" is not running", Reason::NotRunning),
            (Verb::Run, Some(2), "VM \"x\" is already running!", Reason::AlreadyRunning),
            (
                Verb::Run,
                Some(1),
                "The number of VMs exceeds the system limit (other running VMs: a, b)",
                Reason::SystemLimit,
            ),
            (Verb::Run, Some(1), "Error Domain=VZErrorDomain Code=6 \"too many\"", Reason::SystemLimit),
            (Verb::Run, Some(1), "Error Domain=VZErrorDomain Code=60 \"other\"", Reason::VerbFailed),
            (Verb::Stop, Some(2), "VM \"VM \"x\" is not running\" is not running", Reason::NotRunning),
            (Verb::Delete, Some(1), "VM \"x\" is running", Reason::AlreadyRunning),
            (Verb::Ip, Some(1), "no IP address found", Reason::NoAddress),
            (Verb::Ip, Some(1), "no IP address found, is your VM running?", Reason::NoAddress),
            (
                Verb::Run,
                Some(64),
                "Error: Unknown option '--nosuch'\nUsage: tart run <name>",
                Reason::BadArguments,
            ),
            (
                Verb::Run,
                Some(1),
                "Error Domain=VZErrorDomain Code=12 \"The virtual machine failed to restore with error “invalid argument”.\"",
                Reason::RestoreRefused,
            ),
            (Verb::Clone, Some(1), "The volume isn’t enough space", Reason::DiskFull),
            (Verb::Clone, Some(1), "there isn't enough space", Reason::DiskFull),
            (Verb::Run, Some(1), "write: No space left on device", Reason::DiskFull),
            (Verb::Run, Some(1), "Softnet failed: no", Reason::Softnet),
            (Verb::Run, Some(1), "VZErrorDomain Code=-9", Reason::HostKey),
            (Verb::Run, Some(1), "Failed to create new HostKey", Reason::HostKey),
            (Verb::Run, Some(1), "SecKeyCreateRandomKey_ios failed", Reason::HostKey),
            (Verb::Run, Some(1), "Interaction is not allowed with the Security Server", Reason::HostKey),
            (Verb::Clone, Some(1), "something new", Reason::VerbFailed),
            (Verb::Clone, None, "", Reason::VerbFailed),
        ];
        for (verb, code, text, reason) in table {
            assert_eq!(classify(verb, code, text).reason, reason, "{text}");
        }
    }

    #[test]
    fn a_run_that_exits_zero_unasked_is_a_guest_that_stopped() {
        for text in ["guest has stopped the virtual machine due to error: panic", ""] {
            let fault = classify_run_end(Some(0), text);
            assert_eq!(fault.reason, Reason::GuestStopped);
        }
    }

    #[test]
    fn the_end_of_an_adopted_run_is_read_from_its_log() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("log");
        let fault = adopted_run_end(&log);
        assert_eq!(fault.reason, Reason::GuestStopped);
        assert!(fault.text.contains("exit code went"), "{fault}");
        std::fs::write(&log, "Softnet failed: no").expect("written");
        assert_eq!(adopted_run_end(&log).reason, Reason::Softnet);
    }

    #[test]
    fn what_tart_says_at_length_is_kept_short() {
        let long = "x".repeat(3 << 20);
        let faults = [
            classify(Verb::Clone, Some(1), &long),
            parse_address(&long).expect_err("no address"),
            parse_image(&format!("{{\"OS\":\"{long}\",\"CPU\":1,\"Memory\":1}}")).expect_err("no OS"),
        ];
        assert!(faults.iter().all(|fault| fault.text.len() < 4000));
    }

    #[test]
    fn a_size_may_be_a_number_or_a_text() {
        for size in ["3", "3.1", "\"3\"", "\"3.1\"", "null"] {
            let get = format!(
                r#"{{"OS":"linux","CPU":4,"Memory":4096,"Disk":20,"Size":{size},"State":"stopped"}}"#
            );
            assert_eq!(parse_image(&get).map(|image| image.cpus), Ok(4), "{size}");
            let list =
                format!(r#"[{{"Source":"local","Name":"a","Disk":{size},"Size":{size},"Running":false}}]"#);
            assert_eq!(parse_list(&list).map(|rows| rows.len()), Ok(1), "{size}");
        }
    }

    #[test]
    fn lists_of_every_tart_version_are_read() {
        let json = r#"[
            {"Source":"local","Name":"a","Disk":20,"Size":3,"SizeOnDisk":2,"Running":true,"State":"running"},
            {"Source":"local","Name":"b","Disk":20,"Size":"3.1","Accessed":"2026-02-03T04:05:06Z","Running":false,"State":"suspended"},
            {"Source":"local","Name":"c","Running":false},
            {"Source":"OCI","Name":"reg/x:1","Running":false,"State":"stopped"}
        ]"#;
        let rows = parse_list(json).expect("it parses");
        let states: Vec<_> = rows.iter().map(|r| (r.name.as_str(), r.state)).collect();
        assert_eq!(
            states,
            [("a", ListedState::Running), ("b", ListedState::Suspended), ("c", ListedState::Stopped)]
        );
    }
}
