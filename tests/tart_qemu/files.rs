//! Clones, MAC addresses, pulled images: what happens to files while nothing runs.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::bed::{Home, answer};

fn pretend_suspended(vm: &Path) {
    fs::write(vm.join("state.vzvmsave"), "saved").expect("a file");
}

#[test]
fn a_clone_gets_a_new_mac_unless_its_source_is_suspended() {
    let home = Home::with_guests(0);
    home.ok(&["clone", "linux", "a"]);
    assert_ne!(home.mac("a"), home.mac("linux"));
    assert!(home.mac("a").starts_with(|c: char| c.is_ascii_hexdigit()));

    pretend_suspended(&home.vm("a"));
    assert_eq!(home.json(&["list", "--format", "json"])[0]["State"], "suspended");
    home.ok(&["clone", "a", "b"]);
    assert_eq!(home.mac("b"), home.mac("a"));
    assert_eq!(fs::read(home.vm("b").join("state.vzvmsave")).expect("the state"), b"saved");

    home.ok(&["stop", "b"]);
    assert!(!home.vm("b").join("state.vzvmsave").exists(), "stop throws a saved state away");
    assert!(home.vm("a").join("state.vzvmsave").exists(), "and only that one");
}

#[test]
fn a_clone_replaces_what_was_there() {
    let home = Home::with_guests(0);
    home.ok(&["clone", "linux", "a"]);
    home.ok(&["set", "a", "--cpu", "3"]);
    home.ok(&["clone", "linux", "a"]);
    assert_eq!(home.config("a")["cpuCount"], home.config("linux")["cpuCount"]);
    assert_eq!(fs::read_dir(home.path().join("tmp")).expect("tmp").count(), 0);
}

#[test]
fn clones_at_the_same_time_all_succeed_and_differ() {
    let home = Home::with_guests(0);
    let names: Vec<String> = (0..12).map(|number| format!("c{number}")).collect();
    let children: Vec<_> = names
        .iter()
        .map(|name| home.command(&["clone", "linux", name]).spawn().expect("tart-qemu runs"))
        .collect();
    for mut child in children {
        assert!(child.wait().expect("a child").success());
    }
    let macs: HashSet<String> = names.iter().map(|name| home.mac(name)).collect();
    assert_eq!(macs.len(), names.len());
    for name in &names {
        let output = Command::new("qemu-img").arg("check").arg(home.vm(name).join("disk.img")).output();
        let checked = answer(&output.expect("qemu-img runs"));
        assert_eq!(checked.code, 0, "{name}: {}{}", checked.out, checked.err);
    }
    let mut delete = vec!["delete"];
    delete.extend(names.iter().map(String::as_str));
    home.ok(&delete);
    assert_eq!(home.ok(&["list", "--quiet"]), "linux\nmacos\n");
}

#[test]
fn a_disk_grows_and_never_shrinks() {
    let home = Home::with_guests(0);
    home.ok(&["clone", "linux", "a"]);
    home.ok(&["set", "a", "--disk-size", "40"]);
    assert_eq!(home.json(&["get", "a", "--format", "json"])["Disk"], 40);
    assert_eq!(home.tart(&["set", "a", "--disk-size", "30"]).code, 1);
    home.ok(&["clone", "a", "b"]);
    assert_eq!(home.json(&["get", "b", "--format", "json"])["Disk"], 40);
}

#[test]
fn set_forgets_display_refit_unless_told() {
    let home = Home::with_guests(0);
    home.ok(&["set", "linux", "--display-refit"]);
    assert_eq!(home.config("linux")["displayRefit"], true);
    home.ok(&["set", "linux", "--cpu", "2"]);
    assert!(home.config("linux").get("displayRefit").is_none());
}

#[test]
fn a_rename_keeps_the_vm() {
    let home = Home::with_guests(0);
    let mac = home.mac("linux");
    home.ok(&["rename", "linux", "renamed"]);
    assert_eq!(home.mac("renamed"), mac);
    assert_eq!(home.tart(&["get", "linux"]).code, 2);
}

#[test]
fn a_pulled_image_is_cached_cloned_and_pruned() {
    const IMAGE: &str = "registry.test/team/base:1";
    let home = Home::with_guests(0);
    let refused = home.tart(&["pull", IMAGE]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("NSURLErrorDomain"), "{}", refused.err);

    let home = home.with_registry();
    home.ok(&["pull", IMAGE]);
    let fqn = home.ok(&["fqn", IMAGE]);
    assert!(fqn.starts_with("registry.test/team/base@sha256:"), "{fqn}");
    let list = home.json(&["list", "--source", "oci", "--format", "json"]);
    let names: Vec<&str> =
        list.as_array().expect("a list").iter().filter_map(|row| row["Name"].as_str()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&IMAGE), "{names:?}");

    home.ok(&["clone", IMAGE, "a"]);
    home.ok(&["clone", "registry.test/team/base:1", "b"]);
    assert_ne!(home.mac("a"), home.mac("b"));
    home.ok(&["prune", "--older-than", "0"]);
    assert_eq!(home.ok(&["list", "--source", "oci", "--quiet"]), "");
    assert!(home.vm("a").exists(), "pruning caches leaves VMs alone");
    pretend_suspended(&home.vm("b"));
    home.ok(&["prune", "--entries", "vms", "--older-than", "0"]);
    assert_eq!(home.ok(&["list", "--quiet"]), "", "pruning VMs takes the suspended ones too");
    assert_eq!(home.tart(&["pull", "registry.test/team/other:1"]).code, 1);
}
