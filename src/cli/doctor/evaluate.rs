//! From facts to verdicts. Pure.

use serde::Serialize;

use super::facts::{Configured, Facts, HostFacts, ImageFacts, KeyFacts, LinuxFacts, MacFacts, Port};
use crate::runtime::Fault;

/// A verdict's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// Works, and not as well as it could.
    Warn,
    /// Builds will fail.
    Fail,
}

impl Status {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub check: String,
    pub status: Status,
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The longest path of a socket, with the zero at its end: 104 bytes on macOS, 108 on Linux; the smaller, so that a
/// home can move. `ssh` adds a suffix of 17 while it makes the socket.
const SOCKET_BYTES_MAX: usize = 103 - 17;
/// Each VM needs some ten, each build and connection a few.
const DESCRIPTORS_MIN: u64 = 1024;
/// With a day's lease, a /24 is used up after some 250 clones.
const DHCP_LEASE_S_MAX: u64 = 3600;

fn check(name: &str, status: Status, what: impl Into<String>) -> Check {
    Check { check: name.into(), status, what: what.into(), hint: None }
}

fn ok(name: &str, what: impl Into<String>) -> Check {
    check(name, Status::Ok, what)
}

fn fail(name: &str, what: impl Into<String>, hint: &str) -> Check {
    Check { hint: Some(hint.into()), ..check(name, Status::Fail, what) }
}

fn warn(name: &str, what: impl Into<String>, hint: &str) -> Check {
    Check { hint: Some(hint.into()), ..check(name, Status::Warn, what) }
}

/// Every verdict, the most basic first.
pub fn evaluate(facts: &Facts) -> Vec<Check> {
    let mut checks = Vec::new();
    match &facts.config {
        Ok(configured) => {
            checks.push(ok("config", format!("{} pool(s)", configured.pools)));
            checks.extend(configured_checks(configured));
        }
        Err(mistakes) => {
            let each =
                mistakes.iter().map(|m| fail("config", m, "correct it; `preheat config check` looks again"));
            checks.extend(each);
        }
    }
    checks.push(match &facts.ssh {
        Ok(version) => ok("ssh", version),
        Err(why) => fail("ssh", why, "install OpenSSH's client"),
    });
    checks.push(match facts.descriptors {
        Some(n) if n < DESCRIPTORS_MIN => warn(
            "open files",
            format!("a process may have {n} files open, which is little"),
            "raise it with `ulimit -n 8192`, or in the service's definition",
        ),
        Some(n) => ok("open files", n.to_string()),
        None => ok("open files", "without a bound"),
    });
    match &facts.host {
        HostFacts::Mac(mac) => checks.extend(mac_checks(mac)),
        // Where VMs are Tart's, QEMU is not missed.
        HostFacts::Linux(linux) => checks.extend(linux_checks(linux)),
    }
    checks
}

fn configured_checks(c: &Configured) -> Vec<Check> {
    let mut checks = vec![home(c), disk(c)];
    checks.push(match &c.version {
        Ok(version) => ok("runtime", format!("{} {version}", c.program)),
        Err(fault) => of_fault("runtime", &c.program, fault),
    });
    // Without the program, each image would only repeat the same.
    if c.version.is_ok() {
        checks.extend(c.images.iter().map(image));
    }
    checks.extend(c.keys.iter().map(key));
    checks.push(match &c.port {
        Port::Free => ok("api", format!("{} is free for `preheat serve`", c.listen)),
        Port::Ours => ok("api", format!("the daemon answers at {}", c.listen)),
        Port::Taken { why, hint } => fail("api", why, hint),
    });
    checks.extend(c.troubles.iter().map(|(pool, trouble)| Check {
        hint: trouble.hint.clone(),
        ..check("pool", Status::Fail, format!("{pool}: {} ({})", trouble.text, trouble.reason))
    }));
    let socket = c.control_socket.as_os_str().len();
    checks.push(if socket <= SOCKET_BYTES_MAX {
        ok("control socket", format!("its path has {socket} bytes of {SOCKET_BYTES_MAX}"))
    } else {
        let what = format!("`{}` has {socket} bytes, and {SOCKET_BYTES_MAX} fit", c.control_socket.display());
        fail("control socket", what, "set PREHEAT_HOME to a shorter path")
    });
    checks
}

fn home(c: &Configured) -> Check {
    let path = c.home.path.display();
    match &c.home.writable {
        Ok(()) => ok("home", path.to_string()),
        Err(why) => fail(
            "home",
            format!("`{path}` cannot be written: {why}"),
            "correct its owner, or set PREHEAT_HOME",
        ),
    }
}

fn disk(c: &Configured) -> Check {
    let min = c.home.free_min;
    match c.home.free {
        Some(free) if free < min => {
            let what = format!("{} are free, and builds need {min}", super::super::text::size(free.0));
            fail("disk", what, "free disk space, or lower `host.disk_free_min`")
        }
        Some(free) => ok(
            "disk",
            format!("{} are free (`host.disk_free_min` is {min})", super::super::text::size(free.0)),
        ),
        None => warn("disk", "how much is free could not be read", "`df` may say more"),
    }
}

fn of_fault(name: &str, subject: &str, fault: &Fault) -> Check {
    Check {
        hint: fault.reason.hint().map(str::to_owned),
        ..check(name, Status::Fail, format!("{subject}: {fault}"))
    }
}

fn image(facts: &ImageFacts) -> Check {
    let subject = format!("{} (pool {})", facts.image, facts.pool);
    match &facts.found {
        Ok(info) => ok("image", format!("{subject}: {} cores, {} MiB", info.cpus, info.memory_mib)),
        Err(fault) => of_fault("image", &subject, fault),
    }
}

fn key(facts: &KeyFacts) -> Check {
    let subject = format!("{} (pool {})", facts.path.display(), facts.pool);
    match &facts.mode {
        Ok(mode) if mode & 0o077 == 0 => ok("key", subject),
        Ok(mode) => fail(
            "key",
            format!("{subject} may be read by others (mode {:o}), and ssh refuses it", mode & 0o777),
            &format!("chmod 600 {}", facts.path.display()),
        ),
        Err(why) => fail(
            "key",
            format!("{subject}: {why}"),
            "make the image with vm-setup, which makes the key, or correct the pool's `key`",
        ),
    }
}

fn mac_checks(mac: &MacFacts) -> Vec<Check> {
    let login = "log in on the Mac's screen; for a Mac without one, switch automatic login on";
    vec![
        if mac.session {
            ok("login session", "there is one")
        } else {
            fail("login session", "nobody is logged in on the screen: macOS guests cannot start", login)
        },
        match &mac.keychain {
            Ok(()) => ok("keychain", "unlocked"),
            Err(why) => fail("keychain", format!("the login keychain is not unlocked: {why}"), login),
        },
        match mac.dhcp_lease_s {
            Some(s) if s <= DHCP_LEASE_S_MAX => ok("dhcp lease", format!("{s} s")),
            lease => warn(
                "dhcp lease",
                format!(
                    "addresses are leased for {} s: after some 250 VMs none is left",
                    lease.unwrap_or(86_400)
                ),
                "sudo defaults write /Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist \
                 bootpd -dict DHCPLeaseTimeSecs -int 600 (vm-setup/mac-host does)",
            ),
        },
        match mac.version {
            Some(version) if version >= 15 && !mac.root => warn(
                "local network",
                format!("macOS {version} asks per program; whether preheat may cannot be read"),
                "if VMs boot and cannot be reached (`no_route`), allow preheat under Privacy & Security, Local Network",
            ),
            Some(_) | None => ok("local network", "not restricted"),
        },
        match mac.sleep_min {
            Some(0) => ok("sleep", "never"),
            Some(minutes) => warn(
                "sleep",
                format!("the Mac sleeps after {minutes} min, and its VMs with it"),
                "sudo pmset -a sleep 0",
            ),
            None => warn("sleep", "the setting could not be read", "`pmset -g` shows it"),
        },
    ]
}

fn linux_checks(linux: &LinuxFacts) -> Vec<Check> {
    vec![
        match &linux.qemu {
            Ok(version) => ok("qemu", version),
            Err(why) => {
                fail("qemu", why, "apt-get install qemu-system (`vm-setup/linux-guest` names what it needs)")
            }
        },
        match &linux.kvm {
            Ok(()) => ok("kvm", "/dev/kvm can be opened; the log of a VM says whether its guest uses it"),
            Err(why) => warn(
                "kvm",
                format!("/dev/kvm: {why}; guests are emulated, several times slower"),
                "enable virtualisation, and add this user to the group `kvm`",
            ),
        },
    ]
}

#[cfg(test)]
#[path = "evaluate_tests.rs"]
mod tests;
