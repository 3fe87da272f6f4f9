//! What runs the guest's code: KVM or HVF where they can be used, else software emulation.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Failure, Outcome};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Hvf,
    Tcg,
}

impl Accel {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Hvf => "hvf",
            Self::Tcg => "tcg",
        }
    }
}

/// The accelerator and why it was chosen.
pub fn choose(home: &Path) -> Outcome<(Accel, String)> {
    if let Some(asked) = std::env::var_os("TART_QEMU_ACCEL").filter(|asked| !asked.is_empty()) {
        let accel = [Accel::Kvm, Accel::Hvf, Accel::Tcg].into_iter().find(|one| asked == *one.as_str());
        return match accel {
            Some(accel) => Ok((accel, "TART_QEMU_ACCEL asks for it".to_owned())),
            None => Err(Failure::Generic(format!(
                "TART_QEMU_ACCEL: `{}` is none of kvm, hvf, tcg",
                asked.display()
            ))),
        };
    }
    if cfg!(target_os = "macos") {
        return Ok((Accel::Hvf, "this is macOS".to_owned()));
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Ok((Accel::Tcg, format!("/dev/kvm: {error}")));
    }
    if !processor_virtualises() {
        let why =
            "/dev/kvm is there, but the processor has neither VMX nor SVM: it emulates, and not all of it";
        return Ok((Accel::Tcg, why.to_owned()));
    }
    Ok(match kvm_runs_code(home) {
        true => (Accel::Kvm, "/dev/kvm works".to_owned()),
        false => (Accel::Tcg, "/dev/kvm is there but runs no guest".to_owned()),
    })
}

/// A KVM without the processor's help (PVM, as some clouds' small VMs have it) interprets what a guest's kernel does. It runs
/// the probe below, and a real kernel up to its first instruction that the interpreter does not know.
fn processor_virtualises() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    !cfg!(target_arch = "x86_64") || has_virtualisation(&cpuinfo)
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// A firmware of one instruction that counts: written to the exit device, 0x10 ends QEMU with 0x21.
const FIRMWARE_BYTES: usize = 64 * 1024;
const FIRMWARE_RESET: [u8; 5] = [0xb0, 0x10, 0xe6, 0xf4, 0xf4];
const FIRMWARE_EXIT: i32 = 0x21;
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Opening the device proves nothing: inside another VM it may be there and never run a guest. So one is run, once
/// per boot of the host.
fn kvm_runs_code(home: &Path) -> bool {
    if !cfg!(target_arch = "x86_64") {
        return true;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = home.join("cache/kvm");
    if let Some(answer) =
        fs::read_to_string(&known).ok().as_deref().and_then(|text| text.strip_prefix(boot.trim()))
    {
        return answer.trim() == "works";
    }
    let works = probe(home).unwrap_or(false);
    let answer = format!("{} {}\n", boot.trim(), if works { "works" } else { "does not work" });
    let _ = fs::write(known, answer);
    works
}

fn probe(home: &Path) -> io::Result<bool> {
    let mut firmware = vec![0xf4; FIRMWARE_BYTES];
    firmware[FIRMWARE_BYTES - 16..][..FIRMWARE_RESET.len()].copy_from_slice(&FIRMWARE_RESET);
    let path = home.join(format!("cache/probe-{}.bin", std::process::id()));
    fs::write(&path, firmware)?;
    let child = Command::new("qemu-system-x86_64")
        .args(["-M", "q35,usb=off,sata=off,smbus=off", "-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-accel", "kvm", "-cpu", "host", "-m", "64", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .arg("-bios")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let answer = child.and_then(|mut child| {
        let deadline = Instant::now() + PROBE_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code() == Some(FIRMWARE_EXIT));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill()?;
        child.wait()?;
        Ok(false)
    });
    let _ = fs::remove_file(&path);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_without_virtualisation_is_known_by_its_flags() {
        assert!(has_virtualisation("processor : 0\nflags\t\t: fpu vme vmx ssse3\n"));
        assert!(has_virtualisation("flags : fpu svm\n"));
        assert!(!has_virtualisation("model name : vmx\nflags\t\t: fpu hypervisor svm_lock\nbugs : vmx\n"));
    }
}
