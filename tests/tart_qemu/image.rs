//! The script that builds the image.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::bed::{Home, answer, linux_guest};

#[test]
fn a_second_run_does_nothing_and_says_so() {
    let _built = Home::with_guests(0);
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tart-qemu");
    let manifest = home.join("tart/vms/linux/linux-guest.json");
    let before = std::fs::metadata(&manifest).and_then(|data| data.modified()).expect("a manifest");
    let again = answer(&linux_guest(&home, &[]));
    assert_eq!(again.code, 0, "{}", again.err);
    assert!(again.out.contains("up to date"), "{}", again.out);
    assert_eq!(std::fs::metadata(&manifest).and_then(|data| data.modified()).expect("a manifest"), before);
    let key = std::fs::metadata(home.join("keys/id_ed25519")).expect("a key");
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    let described: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&manifest).expect("a manifest")).expect("JSON");
    assert!(described["versions"]["openssh-server"].is_string(), "{described}");
}

#[test]
fn bad_usage_is_64_and_help_is_0() {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    assert_eq!(answer(&linux_guest(home, &["--frobnicate"])).code, 64);
    assert_eq!(answer(&linux_guest(home, &["--help"])).code, 0);
    assert_eq!(answer(&linux_guest(home, &["--os", "windows"])).code, 1);
}

#[test]
fn the_script_is_clean() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm-setup/linux-guest");
    match Command::new("shellcheck").arg(script).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => panic!("shellcheck: {error}"),
    }
}
