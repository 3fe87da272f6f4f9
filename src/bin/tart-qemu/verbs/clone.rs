//! `clone`: a new local VM from a local one or from a pulled image.

use super::pull;
use crate::args;
use crate::error::{Failure, Outcome};
use crate::home::Home;
use crate::oci::RemoteName;
use crate::vm::State;

const USAGE: &str = "clone <source-name> <new-name>";

pub fn clone(home: &Home, args: &args::Clone) -> Outcome {
    if args.new_name.contains('/') || args.new_name.is_empty() {
        return Err(Failure::usage(USAGE, "<new-name> should be a local name"));
    }
    if args.concurrency < 1 {
        return Err(Failure::usage(USAGE, "network concurrency cannot be less than 1"));
    }
    let remote = RemoteName::parse(&args.source_name);
    if args.stacked {
        let why = if remote.is_none() {
            "--stacked requires a remote image"
        } else {
            "--stacked currently supports only macOS images"
        };
        return Err(Failure::usage(USAGE, why));
    }
    let source = match &remote {
        Some(remote) => {
            if remote.open(home).is_err() {
                pull::fetch(home, remote)?;
            }
            remote.open(home)?
        }
        None => home.open_vm(&args.source_name)?,
    };

    let new = home.temporary()?;
    let held = home.lock()?;
    let mac = source.config()?.mac_address;
    let suspended = source.state() == State::Suspended;
    let taken = home.vms().iter().any(|vm| vm.config().is_ok_and(|config| config.mac_address == mac));
    source.clone_into(&new.vm(), taken && !suspended)?;
    new.move_to(home.vm(&args.new_name).path())?;
    drop(held);
    Ok(())
}
