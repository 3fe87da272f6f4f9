//! The life of one guest: bring it up, wait for what happens, take it down.
//!
//! ```text
//!            +-- state.vzvmsave? -- restore -- cont -- clock, entropy --+
//! address, --+                                                          +--> Up: lease, then ports --> event
//! slot       +-- boot -- "network up", "ssh up" on the console ---------+
//!
//! Up: SIGINT -> quit    SIGUSR1 -> save, quit    SIGUSR2 -> ask the guest    QEMU ends -> exit 0
//! ```

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Child;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::accel::{self, Accel};
use super::address::{self, Address};
use super::console::{self, Report};
use super::signals::Request;
use super::slots::{self, Slot};
use super::{machine, others_running, saved};
use crate::agent::{Agent, PORTS, socket_name};
use crate::args;
use crate::config::{Os, VmConfig};
use crate::error::{Failure, LIMIT_AT_RESTORE, Outcome};
use crate::faults::{Fault, Kind};
use crate::home::Home;
use crate::leases;
use crate::qmp::{GUEST_SOCKET, Qmp};
use crate::vm::VmDir;

const CRASH: &str = "Error Domain=VZErrorDomain Code=1 \"Internal Virtualization error. The virtual machine stopped \
    unexpectedly.\" UserInfo={NSLocalizedFailure=Internal Virtualization error., NSLocalizedFailureReason=The virtual \
    machine stopped unexpectedly.}";
const QEMU_STARTS_WITHIN: Duration = Duration::from_secs(60);
const QEMU_QUITS_WITHIN: Duration = Duration::from_secs(5);
const AGENT_ANSWERS_WITHIN: Duration = Duration::from_secs(20);
const SAVED_WITHIN: Duration = Duration::from_secs(600);

pub struct Guest<'a> {
    pub home: &'a Home,
    pub vm: &'a VmDir,
    pub config: &'a VmConfig,
    pub args: &'a args::Run,
    pub faults: &'a [Fault],
}

impl Guest<'_> {
    fn fault(&self, kind: Kind) -> Option<&Fault> {
        self.faults.iter().find(|fault| fault.kind == kind)
    }
}

pub enum Event {
    Requested(Request),
    /// What the guest said on its console.
    Reported(Report),
    /// QEMU's reason for a shutdown.
    Shutdown(String),
    Panicked,
    QemuGone,
    Crash,
    Freeze,
}

/// QEMU and what talks to it. Dropped, it takes QEMU along.
struct Machine {
    child: Child,
    qmp: Qmp,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        remove_sockets();
    }
}

fn remove_sockets() {
    for name in [machine::QMP_SOCKET, machine::CONSOLE_SOCKET, GUEST_SOCKET] {
        let _ = std::fs::remove_file(name);
    }
    for port in 0..PORTS {
        let _ = std::fs::remove_file(socket_name(port));
    }
}

fn broken(what: &str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::Generic(format!("{what}: {error}"))
}

pub fn supervise(guest: &Guest<'_>, sender: Sender<Event>, events: &Receiver<Event>) -> Outcome {
    std::env::set_current_dir(guest.vm.path()).map_err(broken("VM directory"))?;
    remove_sockets();
    let _ = std::fs::remove_file(saved::UNFINISHED);
    let (accel, why) = accel::choose(guest.home.root())?;
    let resume = guest.vm.saved_state().exists();
    if resume {
        println!("restoring VM state from a snapshot...");
    }
    let slot = take_slot(guest, resume)?;
    let address = address::reserve(guest.home.root(), &guest.config.mac_address)?;
    eprintln!("tart-qemu: {} ({why}), ssh at {}:{}", describe(accel), address.ip, address::SSH_PORT);
    if super::cpus(guest.config) < guest.config.cpu_count {
        eprintln!(
            "tart-qemu: {} CPUs asked for, {} given: the host has no more",
            guest.config.cpu_count,
            super::cpus(guest.config)
        );
    }
    let machine = if resume { restore(guest, accel, &sender)? } else { boot(guest, accel, &sender)? };
    if let (Some(slot), Some(_)) = (&slot, guest.fault(Kind::LeakSlot)) {
        slot.leak();
    }
    Up { guest, machine, accel, address, sender }.wait(events)
}

fn describe(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "hardware virtualisation (kvm)",
        Accel::Hvf => "hardware virtualisation (hvf)",
        Accel::Tcg => "software emulation (tcg)",
    }
}

fn take_slot(guest: &Guest<'_>, resume: bool) -> Outcome<Option<Slot>> {
    if guest.config.os != Os::Darwin {
        return Ok(None);
    }
    match slots::acquire(guest.home)? {
        Some(slot) => Ok(Some(slot)),
        // Tart does not translate this one when it restores.
        None if resume => Err(Failure::Generic(LIMIT_AT_RESTORE.to_owned())),
        None => Err(Failure::LimitExceeded(others_running(guest.home, guest.vm))),
    }
}

/// Starts QEMU and waits until it has connected both its monitor and its console.
fn start(guest: &Guest<'_>, launch: machine::Launch<'_>, sender: &Sender<Event>) -> Outcome<Machine> {
    let fail = broken("QEMU");
    let monitor = UnixListener::bind(machine::QMP_SOCKET).map_err(&fail)?;
    let serial = UnixListener::bind(machine::CONSOLE_SOCKET).map_err(&fail)?;
    let outlet = console::outlet(guest.args)?;
    let mut child = machine::launch(launch)?;
    let connected =
        accept(&serial, &mut child).and_then(|serial| Ok((serial, accept(&monitor, &mut child)?)));
    let (serial, monitor) = connected.inspect_err(|_| {
        let _ = child.kill();
        let _ = child.wait();
        remove_sockets();
    })?;
    let reports = sender.clone();
    console::follow(serial, outlet, move |report| drop(reports.send(Event::Reported(report))));
    let events = sender.clone();
    let qmp = Qmp::start(monitor, move |event| {
        if let Some(event) = translate(event.as_ref()) {
            let _ = events.send(event);
        }
    });
    match qmp {
        Ok(qmp) => Ok(Machine { child, qmp }),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(fail(error))
        }
    }
}

fn accept(listener: &UnixListener, child: &mut Child) -> Outcome<UnixStream> {
    let fail = broken("QEMU");
    let deadline = Instant::now() + QEMU_STARTS_WITHIN;
    listener.set_nonblocking(true).map_err(&fail)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(&fail)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(fail(error)),
            Err(_) => {}
        }
        if child.try_wait().map_err(&fail)?.is_some() || Instant::now() > deadline {
            let log = std::fs::read_to_string("qemu.log").unwrap_or_default();
            return Err(Failure::Generic(format!("QEMU did not start: {}", log.trim())));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn translate(event: Option<&Value>) -> Option<Event> {
    let Some(event) = event else { return Some(Event::QemuGone) };
    match event.get("event").and_then(Value::as_str)? {
        "SHUTDOWN" => {
            let reason = event.pointer("/data/reason").and_then(Value::as_str).unwrap_or_default();
            Some(Event::Shutdown(reason.to_owned()))
        }
        "GUEST_PANICKED" => Some(Event::Panicked),
        _ => None,
    }
}

fn boot(guest: &Guest<'_>, accel: Accel, sender: &Sender<Event>) -> Outcome<Machine> {
    let delay = guest.fault(Kind::SlowBoot).map_or(0.0, |fault| fault.seconds);
    let launch = machine::Launch { guest, accel, state: None, boot_delay_seconds: delay.ceil() as u64 };
    start(guest, launch, sender)
}

fn restore(guest: &Guest<'_>, accel: Accel, sender: &Sender<Event>) -> Outcome<Machine> {
    let path = guest.vm.saved_state();
    let state = saved::open(&path, &machine::shape(guest, accel)).map_err(broken("saved state"))?;
    let Some(state) = state.filter(|_| guest.fault(Kind::RefuseRestore).is_none()) else {
        return Err(Failure::RestoreRefused);
    };
    let launch = machine::Launch { guest, accel, state: Some(state), boot_delay_seconds: 0 };
    let mut machine = start(guest, launch, sender)?;
    load(&mut machine.qmp).map_err(|_| Failure::RestoreRefused)?;
    guest.vm.forget_saved_state();
    println!("resuming VM...");
    machine.qmp.call("cont", json!({})).map_err(broken("resume"))?;
    let stale = std::env::var_os("TART_QEMU_STALE_RESUME").is_some_and(|value| value == "1");
    if !stale
        && let Err(error) =
            Agent::connect(0..1, AGENT_ANSWERS_WITHIN).and_then(|mut agent| freshen(&mut agent))
    {
        eprintln!(
            "tart-qemu: the guest's agent does not answer ({error}): its clock and entropy are those of the snapshot"
        );
    }
    let _ = sender.send(Event::Reported(Report::NetworkUp));
    let _ = sender.send(Event::Reported(Report::SshUp));
    Ok(machine)
}

/// Host keys cost a second of emulated computing, hence only where they are wanted.
fn freshen(agent: &mut Agent) -> io::Result<()> {
    agent.synchronise()?;
    match std::env::var_os("TART_QEMU_FRESH_HOST_KEYS").is_some_and(|value| value == "1") {
        true => agent.fresh_host_keys(),
        false => Ok(()),
    }
}

/// Has QEMU read the state from its standard input. It was paused when it was saved, so it stays paused.
fn load(qmp: &mut Qmp) -> io::Result<()> {
    let deadline = Instant::now() + SAVED_WITHIN;
    qmp.call("migrate-incoming", json!({"uri": "fd:0"}))?;
    loop {
        match qmp.status()?.as_str() {
            "inmigrate" if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            "inmigrate" => return Err(io::ErrorKind::TimedOut.into()),
            _ => return Ok(()),
        }
    }
}

struct Up<'a> {
    guest: &'a Guest<'a>,
    machine: Machine,
    accel: Accel,
    address: Address,
    sender: Sender<Event>,
}

impl Up<'_> {
    fn wait(mut self, events: &Receiver<Event>) -> Outcome {
        let mut powered_off = false;
        while let Ok(event) = events.recv() {
            match event {
                Event::Reported(Report::NetworkUp) => self.network_up()?,
                Event::Reported(Report::SshUp) => self.open_ports()?,
                Event::Requested(Request::Interrupt) => {
                    println!("Stopping VM...");
                    self.quit();
                    return Ok(());
                }
                Event::Requested(Request::Suspend) => return self.suspend(),
                Event::Requested(Request::Stop) => self.request_stop(),
                Event::Freeze => drop(self.machine.qmp.call("stop", json!({}))),
                Event::Crash => drop(self.machine.child.kill()),
                // The small guest's init knows only power-off: a reset is its kernel's way out of a panic.
                Event::Shutdown(reason) => powered_off |= reason == "guest-shutdown",
                Event::Panicked => powered_off = false,
                Event::QemuGone => break,
            }
        }
        if powered_off {
            println!("guest has stopped the virtual machine");
        } else {
            println!("guest has stopped the virtual machine due to error: {CRASH}");
        }
        Ok(())
    }

    fn network_up(&self) -> Outcome {
        if self.guest.fault(Kind::NoIp).is_none() {
            leases::grant(
                self.guest.home,
                self.guest.vm.name(),
                &self.guest.config.mac_address,
                self.address.ip,
            )?;
        }
        self.schedule(Kind::Crash, || Event::Crash);
        self.schedule(Kind::Freeze, || Event::Freeze);
        Ok(())
    }

    /// Only now: QEMU would accept any connection and let it hang, and each would cost the booting guest time. And
    /// nobody gets into a resumed guest before it has a clock and entropy of its own.
    fn open_ports(&mut self) -> Outcome {
        for port in std::mem::take(&mut self.address.ports) {
            let line = format!("hostfwd_add n0 tcp:{}:{port}-:22", self.address.ip);
            match self.machine.qmp.human(&line) {
                Err(error) if port == address::SSH_PORT => return Err(broken("network")(error)),
                Err(error) => eprintln!("tart-qemu: port {port}: {error}"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn schedule(&self, kind: Kind, event: fn() -> Event) {
        if let Some(fault) = self.guest.fault(kind) {
            let (sender, delay) = (self.sender.clone(), Duration::from_secs_f64(fault.seconds));
            std::thread::spawn(move || {
                std::thread::sleep(delay);
                let _ = sender.send(event());
            });
        }
    }

    /// QEMU writes what it holds of the disk before it goes.
    fn quit(&mut self) {
        let _ = self.machine.qmp.call_within("quit", json!({}), QEMU_QUITS_WITHIN);
        let deadline = Instant::now() + QEMU_QUITS_WITHIN;
        while Instant::now() < deadline && matches!(self.machine.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asked of the guest's agent, in the background: a guest that does not answer must not hold up the rest.
    fn request_stop(&self) {
        println!("Requesting guest OS to stop...");
        std::thread::spawn(|| {
            let asked = Agent::connect(0..1, Duration::from_secs(30)).and_then(|mut agent| agent.power_off());
            if let Err(error) = asked {
                println!("Failed to request guest OS to stop: {error}");
            }
        });
    }

    fn suspend(&mut self) -> Outcome {
        match self.save() {
            Ok(()) => {
                println!("snapshot created successfully! shutting down the VM...");
                self.quit();
                Ok(())
            }
            Err(why) => {
                let _ = std::fs::remove_file(saved::UNFINISHED);
                // Tart says this on its standard output, and the VM is lost.
                println!("{}", Failure::SuspendFailed(why));
                Err(Failure::Exit(1))
            }
        }
    }

    fn save(&mut self) -> Result<(), String> {
        if self.guest.config.os != Os::Darwin || !self.guest.args.suspendable {
            return Err(
                "Invalid virtual machine configuration. The entropy device configuration does not support \
                        saving and restoring."
                    .to_owned(),
            );
        }
        if !self.guest.args.dir.is_empty() {
            return Err(
                "Invalid virtual machine configuration. A directory sharing device configuration does not \
                        support saving and restoring."
                    .to_owned(),
            );
        }
        let qmp = &mut self.machine.qmp;
        let mut steps = || -> io::Result<()> {
            println!("pausing VM to take a snapshot...");
            qmp.call("stop", json!({}))?;
            println!("creating a snapshot...");
            saved::begin(&machine::shape(self.guest, self.accel))?;
            let uri = format!("exec:cat >> {}", saved::UNFINISHED);
            // The default limits the speed for the sake of a network that is not there.
            qmp.call("migrate-set-parameters", json!({"max-bandwidth": 0}))?;
            qmp.call("migrate", json!({"uri": uri}))?;
            qmp.wait_for_migration(SAVED_WITHIN)?;
            saved::finish()
        };
        steps().map_err(|error| error.to_string())
    }
}
