//! `prune`: by age or by size. Local VMs too, if asked, and the suspended ones with them.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::args;
use crate::error::{Failure, Outcome};
use crate::home::Home;
use crate::oci;
use crate::vm::VmDir;

const USAGE: &str = "prune [--entries <entries>] [--older-than <n>] [--space-budget <n>]";

pub fn prune(home: &Home, args: &args::Prune) -> Outcome {
    let mut space_budget = args.space_budget;
    if let Some(budget) = args.cache_budget {
        eprintln!("--cache-budget is deprecated, please use --space-budget");
        if space_budget.is_some() {
            return Err(Failure::usage(USAGE, "--cache-budget is deprecated, please use --space-budget"));
        }
        space_budget = Some(budget);
    }
    if args.older_than.is_none() && space_budget.is_none() && !args.gc {
        return Err(Failure::usage(USAGE, "at least one pruning criteria must be specified"));
    }
    if args.gc {
        oci::sweep(home);
    }
    let _held = home.lock()?;
    let mut candidates = match args.entries.as_str() {
        "caches" => oci::cached(home).into_iter().filter(|one| !one.is_tag).map(|one| one.image).collect(),
        "vms" => home.vms().into_iter().filter(|vm| vm.owner().is_none()).collect::<Vec<VmDir>>(),
        _ => {
            let text = "unsupported --entries value, please specify either \"caches\" or \"vms\"";
            return Err(Failure::usage(USAGE, text));
        }
    };
    if let Some(days) = args.older_than {
        let limit = SystemTime::now() - Duration::from_secs(days.saturating_mul(86_400).min(1 << 40));
        let (old, young): (Vec<VmDir>, Vec<VmDir>) =
            candidates.into_iter().partition(|vm| vm.accessed() <= limit);
        old.iter().try_for_each(remove)?;
        candidates = young;
    }
    if let Some(gigabytes) = space_budget {
        let mut left = gigabytes.saturating_mul(1 << 30);
        candidates.sort_by_key(|vm| std::cmp::Reverse(vm.accessed()));
        for vm in &candidates {
            match left.checked_sub(vm.allocated_bytes()) {
                Some(rest) => left = rest,
                None => remove(vm)?,
            }
        }
    }
    oci::sweep(home);
    Ok(())
}

fn remove(vm: &VmDir) -> Outcome {
    fs::remove_dir_all(vm.path()).map_err(|error| Failure::io(vm.name(), &error))
}
