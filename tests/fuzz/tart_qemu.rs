//! `tart-qemu` before files that somebody else has written: a fault's text and an exit code, never a panic, and nothing
//! outside its home.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use crate::surroundings::Surroundings;
use crate::{any_json, any_text, cases, mutated};

const CONFIG: &str = r#"{"version":1,"os":"linux","arch":"arm64","cpuCountMin":1,"cpuCount":2,"memorySizeMin":536870912,"memorySize":536870912,"macAddress":"02:00:00:00:00:01","display":{"width":1024,"height":768},"diskFormat":"raw","qemu":{"append":"quiet"}}"#;

const FAULTS: &str = "[[fault]]\nverb = \"list\"\nvm = \"a*\"\nafter = 1\ntimes = 2\nkind = \"exit\"\ncode = 1\ntext = \"boom\"\nseconds = 3.5\nip = \"127.0.0.99\"\n";

/// Runs a verb in `home`. No verb that is tried here may take long, and none may panic.
fn tart(home: &Path, faults: Option<&Path>, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tart-qemu"));
    command
        .args(arguments)
        .env("TART_HOME", home)
        .env_remove("TART_QEMU_FAULTS")
        .env_remove("TART_QEMU_REGISTRY");
    if let Some(faults) = faults {
        command.env("TART_QEMU_FAULTS", faults);
    }
    let output = command.stdin(Stdio::null()).output().expect("tart-qemu runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked at"), "{arguments:?}: {said}");
    let code = output.status.code().unwrap_or_else(|| panic!("{arguments:?}: {:?}: {said}", output.status));
    assert!(code == 0 || !said.trim().is_empty() || faults.is_some(), "{arguments:?}: {code} without a word");
}

fn vm(home: &Path, name: &str, config: &[u8]) {
    let folder = home.join("vms").join(name);
    fs::create_dir_all(&folder).expect("made");
    fs::write(folder.join("config.json"), config).expect("written");
    fs::write(folder.join("disk.img"), b"QFI\xfb\0\0\0\x03").expect("written");
    fs::write(folder.join("nvram.bin"), b"x").expect("written");
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn any_file_of_faults_is_obeyed_or_refused(
        file in mutated(FAULTS.into()),
        counters in prop_oneof![mutated(br#"{"a":1}"#.to_vec()), any_json().prop_map(|j| j.to_string().into_bytes())],
        number in prop_oneof![any::<i64>().prop_map(|n| n.to_string()), any::<f64>().prop_map(|n| format!("{n:?}").to_lowercase())],
        key in prop::sample::select(&["after", "times", "code", "seconds"]),
    ) {
        let here = Surroundings::new();
        let (home, faults) = (here.inside(), here.inside().join("faults.toml"));
        vm(&home, "a", CONFIG.as_bytes());
        let numbers = format!("[[fault]]\nverb = \"get\"\nkind = \"exit\"\n{key} = {number}\n");
        for text in [file.as_slice(), numbers.as_bytes()] {
            // A fault that hangs does what it is told to.
            if text.windows(4).any(|four| four == b"hang") {
                continue;
            }
            fs::write(&faults, text).expect("written");
            fs::write(here.inside().join("faults.toml.counters"), &counters).expect("written");
            for verb in [&["list"][..], &["get", "a"]] {
                tart(&home, Some(&faults), verb);
            }
        }
        prop_assert!(here.is_untouched());
    }

    #[test]
    fn any_config_of_a_vm_is_read_or_refused(
        damaged in mutated(CONFIG.into()), value in any_json(),
        field in prop::sample::select(&["cpuCount", "memorySize", "macAddress", "display", "os", "diskFormat", "version", "qemu"]),
    ) {
        let mut changed: serde_json::Value = serde_json::from_str(CONFIG).expect("JSON");
        changed[field] = value;
        let here = Surroundings::new();
        let home = here.inside();
        vm(&home, "a", &damaged);
        vm(&home, "b", changed.to_string().as_bytes());
        for name in ["a", "b"] {
            for arguments in [
                &["list", "--format", "json"][..],
                &["get", name, "--format", "json"],
                &["set", name, "--cpu", "2", "--memory", "512", "--random-mac"],
                &["clone", name, "c"],
                &["delete", name],
            ] {
                tart(&home, None, arguments);
            }
        }
        prop_assert!(here.is_untouched());
    }

    #[test]
    fn no_name_of_a_vm_leads_out_of_its_home(name in prop_oneof![any_text(), "(\\.|\\.\\.|a|/|vms|deep|inside|x){1,6}"]) {
        // The system itself lets no NUL into an argument.
        prop_assume!(!name.contains('\0'));
        let here = Surroundings::new();
        let home = here.inside();
        vm(&home, "a", CONFIG.as_bytes());
        // A home that looks like a VM itself, so that `..` would find one.
        vm(&home.join(".."), "unused", CONFIG.as_bytes());
        fs::remove_dir_all(home.join("../vms")).expect("removed");
        for arguments in [
            &["clone", "a", &name][..],
            &["rename", "a", &name],
            &["get", &name],
            &["set", &name, "--cpu", "1"],
            &["stop", &name],
            &["delete", &name],
        ] {
            tart(&home, None, arguments);
        }
        prop_assert!(here.is_untouched());
    }
}
