//! `set`: a VM's shape. A saved state does not survive it, which `run` finds out.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::args;
use crate::config::{Display, Os, random_bytes, random_mac};
use crate::error::{Failure, Outcome};
use crate::home::Home;
use crate::qcow2;
use crate::vm::VmDir;

pub fn set(home: &Home, args: &args::Set) -> Outcome {
    let vm = home.open_vm(&args.name)?;
    let mut config = vm.config()?;
    if let Some(cpu) = args.cpu {
        config.set_cpu(cpu.into())?;
    }
    if let Some(mib) = args.memory {
        config.set_memory(mib.saturating_mul(1024 * 1024))?;
    }
    if let Some(display) = &args.display {
        set_display(&mut config.display, display);
    }
    // As in Tart: every `set` that does not say so forgets it.
    config.display_refit = match (args.display_refit, args.no_display_refit) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    };
    if args.random_mac {
        config.mac_address = random_mac();
    }
    if args.random_serial && config.os == Os::Darwin {
        config.ecid = Some(random_bytes::<12>().iter().map(|byte| format!("{byte:02x}")).collect());
    }
    config.write(&vm.config_path())?;
    if let Some(disk) = &args.disk {
        replace_disk(home, &vm, Path::new(disk))?;
    }
    match args.disk_size {
        Some(gigabytes) => resize(&vm, u64::from(gigabytes) * 1_000_000_000),
        None => Ok(()),
    }
}

/// Numbers that make no sense leave the old ones in place.
fn set_display(display: &mut Display, text: &str) {
    let (size, unit) = match (text.strip_suffix("px"), text.strip_suffix("pt")) {
        (Some(size), _) => (size, Some("px")),
        (None, Some(size)) => (size, Some("pt")),
        (None, None) => (text, None),
    };
    let mut numbers = size.split('x').map(|part| part.parse::<u32>().unwrap_or(0));
    for field in [&mut display.width, &mut display.height] {
        if let Some(number) = numbers.next().filter(|number| *number > 0) {
            *field = number;
        }
    }
    display.unit = unit.map(str::to_owned);
}

fn replace_disk(home: &Home, vm: &VmDir, from: &Path) -> Outcome {
    let fail =
        |error: std::io::Error| Failure::io(format_args!("“{}” couldn’t be copied", from.display()), &error);
    // In a directory of our own: what lies about in tmp/ is swept by the next verb of anybody.
    let held = home.temporary()?;
    let fresh = held.vm().disk();
    fs::copy(from, &fresh).and_then(|_| fs::rename(&fresh, vm.disk())).map_err(fail)
}

fn resize(vm: &VmDir, wanted: u64) -> Outcome {
    let fail = |error: std::io::Error| Failure::io("“disk.img”", &error);
    let current = vm.disk_bytes()?;
    if wanted < current {
        return Err(Failure::InvalidDiskSize(format!(
            "new disk size of {} GB should be larger than the current disk size of {} GB",
            decimal(wanted),
            decimal(current)
        )));
    }
    if wanted == current {
        return Ok(());
    }
    if let Some(header) = qcow2::read_header(&vm.disk()).map_err(fail)?
        && let Some(backing) = &header.backing
        && header.is_untouched(&vm.disk()).map_err(fail)?
    {
        let fresh = vm.file("disk.img.new");
        let format =
            if qcow2::read_header(&vm.file(backing)).map_err(fail)?.is_some() { "qcow2" } else { "raw" };
        return qcow2::write_overlay(&fresh, backing, format, wanted)
            .and_then(|()| fs::rename(&fresh, vm.disk()))
            .map_err(fail);
    }
    let output = Command::new("qemu-img")
        .arg("resize")
        .arg(vm.disk())
        .arg(wanted.to_string())
        .output()
        .map_err(fail)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::Generic(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Two decimals at most, none when they are zero.
fn decimal(bytes: u64) -> String {
    let text = format!("{:.2}", bytes as f64 / 1e9);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
