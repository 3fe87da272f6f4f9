//! `ip`: from the lease file, so that a VM that has died still has an address; or from the guest itself.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::agent::{Agent, PORTS};
use crate::args::{self, Resolver};
use crate::config::{Os, VmConfig};
use crate::error::{Failure, Outcome};
use crate::faults::{Fault, Kind};
use crate::home::Home;
use crate::leases;
use crate::vm::VmDir;

pub fn ip(home: &Home, args: &args::Ip, faults: &[Fault]) -> Outcome {
    let vm = home.open_vm(&args.name)?;
    let config = vm.config()?;
    let until = Instant::now() + Duration::from_secs(args.wait.into());
    if let Some(stale) = faults.iter().find(|fault| fault.kind == Kind::StaleIp) {
        println!("{}", stale.ip.unwrap_or(Ipv4Addr::new(127, 0, 99, 99)));
        return Ok(());
    }
    let never = faults.iter().any(|fault| fault.kind == Kind::NoIp);
    loop {
        if !never && let Some(ip) = resolve(home, &vm, &config, args.resolver)? {
            println!("{ip}");
            return Ok(());
        }
        // Tart sleeps its second even when it was told not to wait.
        std::thread::sleep(Duration::from_secs(1));
        if Instant::now() >= until {
            break;
        }
    }
    let mut text = "no IP address found".to_owned();
    if vm.owner().is_none() {
        text += ", is your VM running?";
    }
    if args.resolver == Resolver::Agent {
        text += " (also make sure that Guest agent for Tart is running inside of a VM)";
    } else if config.os == Os::Linux && args.resolver == Resolver::Arp {
        text += " (not all Linux distributions are compatible with the ARP resolver)";
    }
    Err(Failure::NoIpAddress(text))
}

fn resolve(home: &Home, vm: &VmDir, config: &VmConfig, resolver: Resolver) -> Outcome<Option<Ipv4Addr>> {
    let from_leases = || leases::resolve(home, &config.mac_address);
    match resolver {
        Resolver::Dhcp => from_leases(),
        // The host's table knows those that speak; a guest that has gone does not.
        Resolver::Arp => Ok(if vm.owner().is_some() { from_leases()? } else { None }),
        Resolver::Agent => {
            if vm.owner().is_none() || std::env::set_current_dir(vm.path()).is_err() {
                return Ok(None);
            }
            let alive = Agent::connect(1..PORTS, Duration::from_secs(1)).and_then(|mut agent| agent.ping());
            Ok(if alive.is_ok() { from_leases()? } else { None })
        }
    }
}
