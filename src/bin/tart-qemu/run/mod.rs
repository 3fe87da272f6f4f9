//! `run`: checks, locks, and then the life of one guest in the foreground.
//!
//! ```text
//! validate -> lock the home -> MAC check -> lock config.json -> unlock the home -> supervise
//! ```

mod accel;
mod address;
mod console;
mod machine;
mod saved;
mod signals;
mod slots;
mod supervise;

use std::io::Read;
use std::sync::mpsc::channel;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::args;
use crate::config::{Os, VmConfig};
use crate::error::{Failure, Outcome};
use crate::faults::{Fault, Kind};
use crate::home::Home;
use crate::lock::PidLock;
use crate::vm::{State, VmDir};

const USAGE: &str = "run <name> [<options>]";

pub fn run(home: &Home, mut args: args::Run, faults: &[Fault]) -> Outcome {
    let vm = validate(home, &mut args)?;
    // Armed before the lock is taken: whoever sees the lock may send a signal at once.
    let (sender, events) = channel();
    let requests = sender.clone();
    signals::listen(move |request| drop(requests.send(supervise::Event::Requested(request))))
        .map_err(|error| Failure::io("signals", &error))?;
    let held = home.lock()?;
    let mac = vm.config()?.mac_address;
    let same_mac = |other: &VmDir| other.config().is_ok_and(|config| config.mac_address == mac);
    if home.vms().iter().any(|other| other.name() != vm.name() && other.owner().is_some() && same_mac(other))
    {
        println!("There is already a running VM with the same MAC address!");
        println!("Resetting VM to assign a new MAC address...");
        vm.regenerate_mac()?;
    }
    let config = vm.config()?;
    check_devices(&args)?;
    // From here on nobody in this process opens config.json again: closing it would drop the lock.
    let lock = PidLock::open(&vm.config_path()).map_err(|error| Failure::io(vm.name(), &error))?;
    if !lock.try_lock().map_err(|error| Failure::io(vm.name(), &error))? {
        return Err(Failure::VmAlreadyRunning(args.name.clone()));
    }
    drop(held);
    if faults.iter().any(|fault| fault.kind == Kind::Hang) {
        crate::verbs::hang();
    }
    note_what_means_nothing(&args);
    let guest = supervise::Guest { home, vm: &vm, config: &config, args: &args, faults };
    let result = supervise::supervise(&guest, sender, &events);
    drop(lock);
    result
}

/// Tart's own checks, in Tart's own order.
fn validate(home: &Home, args: &mut args::Run) -> Outcome<VmDir> {
    let refuse = |text: &str| Err(Failure::usage(USAGE, text));
    if args.vnc && args.vnc_experimental {
        return refuse("--vnc and --vnc-experimental are mutually exclusive");
    }
    args.net_softnet |= args.net_softnet_allow.is_some()
        || args.net_softnet_block.is_some()
        || args.net_softnet_expose.is_some()
        || args.net_softnet_control_fd.is_some();
    let networks = [!args.net_bridged.is_empty(), args.net_softnet, args.net_host];
    if networks.iter().filter(|chosen| **chosen).count() > 1 {
        return refuse("--net-bridged, --net-softnet and --net-host are mutually exclusive");
    }
    if args.graphics && args.no_graphics {
        return refuse("--graphics and --no-graphics are mutually exclusive");
    }
    if (args.no_graphics || args.vnc || args.vnc_experimental) && args.capture_system_keys {
        return refuse("--captures-system-keys can only be used with the default VM view");
    }
    if args.nested {
        return refuse("Nested virtualization is available for Mac with the M3 chip, and later.");
    }
    if !home.vm(&args.name).path().is_dir() {
        return Err(Failure::VmDoesNotExistAtRun(args.name.clone()));
    }
    let vm = home.open_vm(&args.name).map_err(|failure| Failure::Foreign(failure.to_string()))?;
    let os = vm.config()?.os;
    args.suspendable |= vm.state() == State::Suspended;
    if args.suspendable {
        if os != Os::Darwin {
            return refuse("You can only suspend macOS VMs");
        }
        for (given, flag) in [
            (args.no_trackpad, "--no-trackpad"),
            (args.no_keyboard, "--no-keyboard"),
            (args.no_pointer, "--no-pointer"),
        ] {
            if given {
                return refuse(&format!("{flag} cannot be used with --suspendable"));
            }
        }
    }
    if args.no_trackpad && os != Os::Darwin {
        return refuse("--no-trackpad can only be used with macOS VMs");
    }
    if args.provisioning_opts.is_some() {
        return refuse("--provisioning-opts requires the host to be running macOS 27 (or newer)");
    }
    Ok(vm)
}

/// What Tart refuses while it puts the machine together.
fn check_devices(args: &args::Run) -> Outcome {
    if !args.net_bridged.is_empty() {
        let there = interfaces();
        if let Some(missing) = args.net_bridged.iter().find(|name| !there.contains(name)) {
            return Err(Failure::usage(
                USAGE,
                format!("no bridge interfaces matched \"{:?}\", available interfaces: {there:?}", [missing]),
            ));
        }
    }
    if let Some(fd) = args.net_softnet_control_fd
        && fd <= 2
    {
        return Err(Failure::Softnet("Softnet control file descriptor must be greater than 2".to_owned()));
    }
    machine::root_disk_cache(&args.root_disk_opts)?;
    if let Some(path) = &args.serial_path
        && !std::path::Path::new(path).exists()
    {
        return Err(Failure::Configuration("Failed to open PTY".to_owned()));
    }
    Ok(())
}

fn interfaces() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != "lo");
    names.sort();
    names
}

/// Nothing that was asked for is dropped in silence.
fn note_what_means_nothing(args: &args::Run) {
    let note = |given: bool, text: &str| {
        if given {
            eprintln!("tart-qemu: {text}");
        }
    };
    note(!args.dir.is_empty(), "--dir: no shared folders with this guest; the directory is not mounted");
    note(args.rosetta.is_some(), "--rosetta: there is no Rosetta outside macOS; ignored");
    note(args.recovery, "--recovery: the guest has no recovery mode; it boots as usual");
    note(args.vnc || args.vnc_experimental, "--vnc: the guest has no display; use ssh or --serial");
    note(args.graphics, "--graphics: the guest has no display");
    note(args.capture_system_keys, "--capture-system-keys: the guest has no display");
    note(args.net_softnet, "--net-softnet: no Softnet here; QEMU's user network isolates the guest");
    note(args.net_softnet_allow.is_some(), "--net-softnet-allow: not applied");
    note(
        args.net_softnet_block.is_some(),
        "--net-softnet-block: not applied; all is blocked unless TART_QEMU_ONLINE=1",
    );
    note(args.net_softnet_expose.is_some(), "--net-softnet-expose: not applied");
    note(!args.net_bridged.is_empty(), "--net-bridged: no bridge; the guest is on QEMU's user network");
    note(args.net_host, "--net-host: the guest is on QEMU's user network, which only the host can reach");
    note(args.no_pointer || args.no_keyboard, "--no-pointer, --no-keyboard: the guest has neither anyway");
    note(
        args.root_disk_opts.split(',').any(|option| option == "ro"),
        "--root-disk-opts ro: not applied, as in Tart",
    );
}

/// The helper that stands in for Linux's parent-death signal: our end of the pipe closes, the guest dies.
pub fn watch(pid: i32) -> Outcome {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    Ok(())
}

/// Names of the other running VMs, for the text of the limit. Never looks at our own `config.json`.
fn others_running(home: &Home, vm: &VmDir) -> Vec<String> {
    let others = home.vms().into_iter().filter(|other| other.name() != vm.name());
    others.filter(|other| other.owner().is_some()).map(|other| other.name().to_owned()).collect()
}

/// How many CPUs QEMU gets. More than the host has only slow an emulated guest down.
fn cpus(config: &VmConfig) -> u32 {
    let here = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    config.cpu_count.min(here).max(1)
}
