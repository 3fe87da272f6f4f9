//! One function per verb. Every verb sweeps what killed ones left, and asks the fault file first.

mod clone;
mod exec;
mod ip;
mod list;
mod power;
mod prune;
mod pull;
mod set;

use crate::args::Verb;
use crate::error::{Failure, Outcome};
use crate::faults::{Fault, Faults, Kind};
use crate::home::Home;
use crate::oci::{self, RemoteName};
use crate::{run, unsupported};

pub fn perform(verb: Verb) -> Outcome {
    let faults = Faults::load()?;
    if let Verb::Watch { pid } = verb {
        return run::watch(pid);
    }
    let home = Home::open()?;
    if !matches!(verb, Verb::Clone(_) | Verb::Pull(_)) {
        home.sweep();
    }
    let strike = |verb: &str, vm: &str| match &faults {
        Some(faults) => strike_now(verb, faults.strike(verb, vm)?),
        None => Ok(Vec::new()),
    };
    match verb {
        Verb::Create(_) => unsupported("create"),
        Verb::Login(_) => unsupported("login"),
        Verb::Logout(_) => unsupported("logout"),
        Verb::Push(_) => unsupported("push"),
        Verb::Import(_) => unsupported("import"),
        Verb::Export(_) => unsupported("export"),
        Verb::Clone(args) => strike("clone", &args.new_name).and_then(|_| clone::clone(&home, &args)),
        Verb::Run(args) => strike("run", &args.name).and_then(|faults| run::run(&home, *args, &faults)),
        Verb::Set(args) => strike("set", &args.name).and_then(|_| set::set(&home, &args)),
        Verb::Get { name, format } => strike("get", &name).and_then(|_| list::get(&home, &name, format)),
        Verb::List(args) => strike("list", "").and_then(|_| list::list(&home, &args)),
        Verb::Ip(args) => strike("ip", &args.name).and_then(|faults| ip::ip(&home, &args, &faults)),
        Verb::Exec(args) => strike("exec", &args.name).and_then(|_| exec::exec(&home, &args)),
        Verb::Pull(args) => strike("pull", &args.remote_name).and_then(|_| pull::pull(&home, &args)),
        Verb::Prune(args) => strike("prune", "").and_then(|_| prune::prune(&home, &args)),
        Verb::Rename { name, new_name } => {
            strike("rename", &name).and_then(|_| rename(&home, &name, &new_name))
        }
        Verb::Stop { name, timeout } => {
            strike("stop", &name).and_then(|_| power::stop(&home, &name, timeout))
        }
        Verb::Suspend { name } => strike("suspend", &name).and_then(|_| power::suspend(&home, &name)),
        Verb::Delete { name } => {
            name.iter().try_for_each(|name| strike("delete", name).and_then(|_| delete(&home, name)))
        }
        Verb::Fqn { name } => strike("fqn", &name).and_then(|_| fqn(&home, &name)),
        Verb::Watch { .. } => Ok(()),
    }
}

/// Faults that any verb can have strike here; the rest goes on to the verb. `run` hangs later, with its lock held.
fn strike_now(verb: &str, faults: Vec<Fault>) -> Outcome<Vec<Fault>> {
    for fault in &faults {
        match fault.kind {
            Kind::Hang if verb != "run" => hang(),
            Kind::Exit if fault.text.is_empty() => return Err(Failure::Exit(fault.code)),
            Kind::Exit => return Err(Failure::Scripted { code: fault.code, text: fault.text.clone() }),
            Kind::DiskFull => return Err(Failure::OutOfSpace("“disk.img”".to_owned())),
            Kind::Hang
            | Kind::Crash
            | Kind::Freeze
            | Kind::NoIp
            | Kind::StaleIp
            | Kind::RefuseRestore
            | Kind::LeakSlot
            | Kind::SlowBoot => {}
        }
    }
    Ok(faults)
}

pub fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn rename(home: &Home, name: &str, new_name: &str) -> Outcome {
    const USAGE: &str = "rename <name> <new-name>";
    if new_name.contains('/') {
        return Err(Failure::usage(USAGE, "<new-name> should be a local name"));
    }
    let _held = home.lock()?;
    if !home.vm(name).is_whole() {
        return Err(Failure::usage(USAGE, format!("failed to rename a non-existent local VM: {name}")));
    }
    if home.vm(new_name).is_whole() {
        return Err(Failure::usage(
            USAGE,
            format!("failed to rename VM {name}, target VM {new_name} already exists, delete it first!"),
        ));
    }
    std::fs::rename(home.vm(name).path(), home.vm(new_name).path())
        .map_err(|error| Failure::io(format_args!("“{name}” couldn’t be moved"), &error))
}

fn delete(home: &Home, name: &str) -> Outcome {
    if let Some(remote) = RemoteName::parse(name) {
        let path = remote.path(home);
        if path.is_symlink() {
            std::fs::remove_file(&path).map_err(|error| Failure::io(name, &error))?;
        } else if path.is_dir() {
            std::fs::remove_dir_all(&path).map_err(|error| Failure::io(name, &error))?;
        } else {
            return Err(Failure::VmDoesNotExist(name.to_owned()));
        }
        oci::sweep(home);
        return Ok(());
    }
    // The lock of the home keeps a `run` from starting between our look and the removal.
    let _held = home.lock()?;
    let vm = home.vm(name);
    if name.is_empty() || name.contains('/') || !vm.config_path().exists() {
        return Err(Failure::VmDoesNotExist(name.to_owned()));
    }
    if vm.owner().is_some() {
        return Err(Failure::VmIsRunning(name.to_owned()));
    }
    std::fs::remove_dir_all(vm.path()).map_err(|error| Failure::io(name, &error))
}

fn fqn(home: &Home, name: &str) -> Outcome {
    match RemoteName::parse(name) {
        Some(remote) => {
            let digest = remote.digest(home)?;
            println!("{}/{}@{digest}", remote.host, remote.namespace);
        }
        None => println!("{name}"),
    }
    Ok(())
}
