//! What is read of Tart's own files, and only as a hint: what counts is what its verbs say. They are asked less often for it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::watched;
use crate::clock::Deadline;

/// Where macOS's DHCP server writes its leases.
const MACOS_LEASES: &str = "/var/db/dhcpd_leases";
/// `tart-qemu` keeps its own, of the same form, in its home.
const OWN_LEASES: &str = "dhcpd_leases";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VmConfig {
    mac_address: String,
}

/// Waits until the lease file names the VM's network card. Each miss of `tart ip` costs a whole second, however short the
/// guest's way to its address was. Where the file cannot be read, nothing is waited for.
pub(super) async fn leased(home: &Path, vm: &str, deadline: Deadline) {
    let config = home.join("vms").join(vm).join("config.json");
    let mac = fs::read(config).ok().and_then(|text| serde_json::from_slice::<VmConfig>(&text).ok());
    let Some(mac) = mac.map(|config| short(&config.mac_address)) else { return };
    let own = home.join(OWN_LEASES);
    let file = if own.exists() || !Path::new(MACOS_LEASES).exists() { own } else { MACOS_LEASES.into() };
    watched::until(&file, deadline, || match fs::read_to_string(&file) {
        Ok(text) => names(&text, &mac).then_some(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        // A file that only root may read says nothing.
        Err(_) => Some(()),
    })
    .await;
}

/// Whether a lease is the card's.
fn names(leases: &str, mac: &str) -> bool {
    let cards = leases.lines().filter_map(|line| line.trim().strip_prefix("hw_address=1,"));
    cards.into_iter().any(|card| short(card) == mac)
}

/// A network card's address as macOS writes it into its leases: without leading zeros.
fn short(mac: &str) -> String {
    let parts = mac.split(':').map(|part| {
        let bare = part.trim_start_matches('0').to_ascii_lowercase();
        if bare.is_empty() { "0".to_owned() } else { bare }
    });
    parts.collect::<Vec<_>>().join(":")
}

/// What a saved state of the image depends on. A local image changes with its configuration and its disk; one that was pulled
/// lies in a folder that is named after its digest.
pub(super) fn identity(home: &Path, image: &str, version: &str) -> String {
    let mut hash = Sha256::new();
    let mut part = |text: &[u8]| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    part(version.as_bytes());
    if let Ok(host) = nix::sys::utsname::uname() {
        for words in [host.sysname(), host.release(), host.version(), host.machine()] {
            part(words.as_encoded_bytes());
        }
    }
    let local = home.join("vms").join(image);
    if local.is_dir() {
        part(&fs::read(local.join("config.json")).unwrap_or_default());
        for name in ["disk.img", "nvram.bin"] {
            part(&changed_ns(&local.join(name)).to_le_bytes());
        }
    } else {
        part(pulled(home, image).as_os_str().as_encoded_bytes());
    }
    hash.finalize().iter().take(12).fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// The folder of a pulled image: a tag is a link to its digest's.
fn pulled(home: &Path, image: &str) -> PathBuf {
    let (repository, reference) = match image.rsplit_once('@').or_else(|| image.rsplit_once(':')) {
        Some((repository, reference)) if !reference.contains('/') => (repository, reference),
        // A port, or nothing.
        Some(_) | None => (image, "latest"),
    };
    let named = home.join("cache/OCIs").join(repository.replace(':', "%3A")).join(reference);
    fs::canonicalize(&named).unwrap_or(named)
}

fn changed_ns(file: &Path) -> u128 {
    let changed = fs::metadata(file).and_then(|data| data.modified()).ok();
    changed.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_found_however_its_card_is_written() {
        let leases =
            "{\n\tname=x\n\tip_address=192.168.64.7\n\thw_address=1,52:54:0:a:b:1\n\tlease=0x65\n}\n";
        assert!(names(leases, &short("52:54:00:0A:0b:01")));
        assert!(!names(leases, &short("52:54:00:0a:0b:10")));
    }

    #[test]
    fn an_image_is_another_when_its_disk_its_configuration_or_the_version_is() {
        let home = tempfile::tempdir().expect("a folder");
        let vm = home.path().join("vms/a");
        fs::create_dir_all(&vm).expect("a folder");
        let write = |name: &str, text: &str| fs::write(vm.join(name), text).expect("written");
        write("config.json", "{}");
        write("disk.img", "");
        let first = identity(home.path(), "a", "1");
        assert_eq!(identity(home.path(), "a", "1"), first);
        assert_ne!(identity(home.path(), "a", "2"), first);
        write("config.json", "{ }");
        let second = identity(home.path(), "a", "1");
        assert_ne!(second, first);
        let disk = fs::File::options().write(true).open(vm.join("disk.img")).expect("a disk");
        disk.set_modified(UNIX_EPOCH).expect("set");
        assert_ne!(identity(home.path(), "a", "1"), second);
    }

    #[test]
    fn a_tag_that_was_moved_names_another_image() {
        let home = tempfile::tempdir().expect("a folder");
        let cache = home.path().join("cache/OCIs/reg.example/x");
        for digest in ["sha256:1", "sha256:2"] {
            fs::create_dir_all(cache.join(digest)).expect("a folder");
        }
        let tag = |digest: &str| {
            fs::remove_file(cache.join("latest")).ok();
            std::os::unix::fs::symlink(cache.join(digest), cache.join("latest")).expect("a link");
            identity(home.path(), "reg.example/x:latest", "1")
        };
        assert_ne!(tag("sha256:1"), tag("sha256:2"));
    }
}
