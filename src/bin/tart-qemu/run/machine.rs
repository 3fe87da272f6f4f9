//! QEMU's command line, and the shape of the machine that a saved state depends on.

use std::fs::File;
use std::io;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::accel::Accel;
use super::supervise::Guest;
use crate::agent::{PORTS, socket_name};
use crate::args::TART_VERSION;
use crate::error::{Failure, Outcome};
use crate::qcow2;
use crate::qmp::GUEST_SOCKET;

pub const QMP_SOCKET: &str = "qmp.sock";
pub const CONSOLE_SOCKET: &str = "console.sock";
const X86: bool = cfg!(target_arch = "x86_64");

/// QEMU's cache mode for Tart's `--root-disk-opts`.
pub fn root_disk_cache(options: &str) -> Outcome<&'static str> {
    let mut cache = "unsafe";
    for option in options.split(',') {
        match option.split_once('=') {
            Some(("sync", "none" | "")) => cache = "unsafe",
            Some(("sync", "fsync" | "full")) => cache = "writeback",
            Some(("sync", other)) => {
                return Err(Failure::Configuration(format!(
                    "unsupported disk image synchronization mode: \"{other}\""
                )));
            }
            Some(("caching", "automatic" | "cached" | "uncached" | "")) | None => {}
            Some(("caching", other)) => {
                return Err(Failure::Configuration(format!(
                    "unsupported disk image caching mode: \"{other}\""
                )));
            }
            Some(_) => {}
        }
    }
    Ok(cache)
}

/// Everything that must be the same at resume as it was at suspend, as one short line.
pub fn shape(guest: &Guest<'_>, accel: Accel) -> String {
    let (config, args) = (guest.config, guest.args);
    let network = (args.net_softnet, args.net_host, &args.net_bridged);
    let parts = json!({
        "tart": TART_VERSION, "accel": accel.as_str(), "arch": config.arch, "os": config.os,
        "cpu": config.cpu_count, "memory": config.memory_size, "mac": config.mac_address, "ecid": config.ecid,
        "display": config.display.to_string(), "disk": qcow2::virtual_bytes(&guest.vm.disk()).unwrap_or_default(),
        "audio": !args.no_audio, "clipboard": !args.no_clipboard, "network": network,
        "serial": (args.serial, args.serial_path.is_some()), "nested": args.nested, "disks": args.disk.len(),
        "dirs": args.dir.len(), "suspendable": args.suspendable,
    });
    let hash = Sha256::digest(parts.to_string());
    format!("tart-qemu 1 {}", hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>())
}

pub struct Launch<'a> {
    pub guest: &'a Guest<'a>,
    pub accel: Accel,
    pub state: Option<File>,
    pub boot_delay_seconds: u64,
}

/// Starts QEMU in the VM's directory, which is the current one. It dies when this process does.
pub fn launch(launch: Launch<'_>) -> Outcome<Child> {
    let mut words = vec![if X86 { "qemu-system-x86_64" } else { "qemu-system-aarch64" }.to_owned()];
    words.extend(machine(&launch));
    words.extend(devices(launch.guest)?);
    words.extend(network(&launch));
    let stdin = match launch.state {
        Some(state) => {
            // Loaded when the monitor is up: a state that QEMU refuses must not look like a QEMU that cannot start.
            words.extend(["-incoming".to_owned(), "defer".to_owned()]);
            Stdio::from(state)
        }
        None => Stdio::null(),
    };
    let fail = |error: io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            return Failure::Generic(format!("`setpriv` or `{}` is not installed", words[0]));
        }
        Failure::io("QEMU", &error)
    };
    let log = File::create("qemu.log").map_err(|error| Failure::io("qemu.log", &error))?;
    let mut command = if cfg!(target_os = "linux") {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(&words);
        command
    } else {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    };
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command.stdin(stdin).stdout(Stdio::null()).stderr(log).spawn().map_err(fail)?;
    if !cfg!(target_os = "linux") {
        start_watcher(&child)?;
    }
    Ok(child)
}

/// Where the kernel has no parent-death signal: a helper that waits for our end of a pipe to close.
fn start_watcher(child: &Child) -> Outcome {
    let fail = |error: io::Error| Failure::io("watcher", &error);
    let program = std::env::current_exe().map_err(fail)?;
    let mut watcher = Command::new(program)
        .args(["__watch", &child.id().to_string()])
        .env_remove("TART_QEMU_FAULTS")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(fail)?;
    // Open until this process ends.
    std::mem::forget(watcher.stdin.take());
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn machine(launch: &Launch<'_>) -> Vec<String> {
    let (guest, accel) = (launch.guest, launch.accel);
    let mut line = words(match X86 {
        true => "-M q35,usb=off,smbus=off,sata=off,vmport=off -nodefaults -no-user-config",
        false => "-M virt -nodefaults -no-user-config",
    });
    line.extend(words(match (accel, X86) {
        // Fewer features mean less to emulate: `max` costs 0.4 s of a boot. RDRAND fills the guest's entropy at once.
        (Accel::Tcg, true) => "-accel tcg,thread=multi,tb-size=128 -cpu qemu64,+rdrand",
        (Accel::Tcg, false) => "-accel tcg,thread=multi,tb-size=128 -cpu max",
        (Accel::Kvm, _) => "-accel kvm -cpu host",
        (Accel::Hvf, _) => "-accel hvf -cpu host",
    }));
    let cpus = super::cpus(guest.config);
    line.extend(words(&format!("-smp {cpus} -m {} -display none -no-reboot", guest.config.memory_mib())));
    let mut append = guest.config.qemu.append.clone();
    if launch.boot_delay_seconds > 0 {
        append += &format!(" tart.delay={}", launch.boot_delay_seconds);
    }
    line.extend(["-kernel", "kernel", "-initrd", "initrd", "-append", &append].map(str::to_owned));
    line
}

fn devices(guest: &Guest<'_>) -> Outcome<Vec<String>> {
    let cache = root_disk_cache(&guest.args.root_disk_opts)?;
    let fail = |error: io::Error| Failure::io("“disk.img”", &error);
    let format = if qcow2::read_header(&guest.vm.disk()).map_err(fail)?.is_some() { "qcow2" } else { "raw" };
    let mut line = words(&format!(
        "-drive if=none,id=d0,file=disk.img,format={format},cache={cache} -device virtio-blk-pci,drive=d0 \
         -chardev socket,id=con,path={CONSOLE_SOCKET},logfile=console.log -serial chardev:con \
         -chardev socket,id=mon,path={QMP_SOCKET} -mon chardev=mon,mode=control \
         -qmp unix:{GUEST_SOCKET},server=on,wait=off \
         -device virtio-serial-pci,max_ports={}",
        PORTS + 1
    ));
    for port in 0..PORTS {
        let name = socket_name(port);
        line.extend(words(&format!(
            "-chardev socket,id=a{port},path={name},server=on,wait=off \
             -device virtserialport,chardev=a{port},nr={},name=tart.agent.{port}",
            port + 1
        )));
    }
    for (number, disk) in guest.args.disk.iter().enumerate() {
        line.extend(extra_disk(number + 1, disk)?);
    }
    Ok(line)
}

/// `path[:options]`; the options are the ones that Tart knows.
fn extra_disk(number: usize, text: &str) -> Outcome<Vec<String>> {
    let (path, options) = match text.rsplit_once(':') {
        Some((path, options))
            if options
                .split(',')
                .any(|one| one == "ro" || one.starts_with("sync=") || one.starts_with("caching=")) =>
        {
            (path, options)
        }
        _ => (text, ""),
    };
    if !std::path::Path::new(path).exists() {
        return Err(Failure::Foreign(format!(
            "The file “{path}” couldn’t be opened because there is no such file."
        )));
    }
    let read_only = if options.split(',').any(|one| one == "ro") { "on" } else { "off" };
    let absolute = std::path::absolute(path).map_err(|error| Failure::io(path, &error))?;
    // A comma would start QEMU's next option; doubled, it is one of the name.
    let file = absolute.display().to_string().replace(',', ",,");
    let cache = root_disk_cache(options)?;
    Ok(vec![
        "-drive".to_owned(),
        format!("if=none,id=d{number},file={file},readonly={read_only},cache={cache}"),
        "-device".to_owned(),
        format!("virtio-blk-pci,drive=d{number}"),
    ])
}

fn network(launch: &Launch<'_>) -> Vec<String> {
    let online = std::env::var_os("TART_QEMU_ONLINE").is_some_and(|value| value == "1");
    // Ports are opened later, when somebody listens behind them.
    let backend = format!("user,id=n0,restrict={}", if online { "off" } else { "on" });
    vec![
        "-netdev".to_owned(),
        backend,
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=n0,romfile=,mac={}", launch.guest.config.mac_address),
    ]
}
