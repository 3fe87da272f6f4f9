//! Exit codes and texts, to the letter. No guest is started.

use crate::bed::Home;

#[test]
fn every_refusal_has_tarts_words_and_code() {
    let home = Home::with_guests(0);
    let missing = "the specified VM \"x\" does not exist";
    let table: &[(&[&str], i32, &str)] = &[
        (&["get", "x"], 2, missing),
        (&["ip", "x"], 2, missing),
        (&["set", "x", "--cpu", "2"], 2, missing),
        (&["stop", "x"], 2, missing),
        (&["suspend", "x"], 2, missing),
        (&["delete", "x"], 2, missing),
        (&["exec", "x", "true"], 2, missing),
        (&["clone", "x", "y"], 2, missing),
        (&["run", "x"], 1, "Error: the specified VM \"x\" does not exist"),
        (&["stop", "linux"], 2, "VM \"linux\" is not running"),
        (&["suspend", "linux"], 2, "VM \"VM \"linux\" is not running\" is not running"),
        (&["exec", "linux", "true"], 2, "VM \"linux\" is not running"),
        (&["ip", "linux"], 1, "no IP address found, is your VM running?"),
        (
            &["ip", "linux", "--resolver", "agent"],
            1,
            "no IP address found, is your VM running? (also make sure that Guest agent for Tart is running inside of a VM)",
        ),
        (
            &["set", "linux", "--disk-size", "1"],
            1,
            "new disk size of 1 GB should be larger than the current disk size of 21.47 GB",
        ),
        (
            &["fqn", "ghcr.io/a/b:1"],
            1,
            "OCI storage error: ghcr.io/a/b:1 is not a digest and doesn't point to a digest",
        ),
        (
            &["run", "macos", "--root-disk-opts", "sync=x"],
            1,
            "unsupported disk image synchronization mode: \"x\"",
        ),
    ];
    for (arguments, code, text) in table {
        let answer = home.tart(arguments);
        assert_eq!((answer.code, answer.err.trim_end()), (*code, *text), "{arguments:?}");
        assert_eq!(answer.out, "", "{arguments:?}");
    }
}

#[test]
fn bad_usage_is_64_and_says_how() {
    let home = Home::with_guests(0);
    let table: &[(&[&str], &str)] = &[
        (&["frobnicate"], "Error: unrecognized subcommand 'frobnicate'"),
        (&["get"], "Error: the following required arguments were not provided"),
        (&["clone", "linux", "a/b"], "Error: <new-name> should be a local name"),
        (&["rename", "x", "y"], "Error: failed to rename a non-existent local VM: x"),
        (
            &["rename", "linux", "macos"],
            "Error: failed to rename VM linux, target VM macos already exists, delete it first!",
        ),
        (&["list", "--source", "x"], "Error: 'x' is not a valid <source>"),
        (&["prune"], "Error: at least one pruning criteria must be specified"),
        (&["run", "linux", "--suspendable"], "Error: You can only suspend macOS VMs"),
        (
            &["run", "linux", "--nested"],
            "Error: Nested virtualization is available for Mac with the M3 chip, and later.",
        ),
        (&["run", "linux", "--no-trackpad"], "Error: --no-trackpad can only be used with macOS VMs"),
        (
            &["run", "macos", "--suspendable", "--no-pointer"],
            "Error: --no-pointer cannot be used with --suspendable",
        ),
        (
            &["run", "linux", "--net-softnet", "--net-host"],
            "Error: --net-bridged, --net-softnet and --net-host are mutually exclusive",
        ),
        (&["run", "linux", "--net-bridged", "nowhere0"], "Error: no bridge interfaces matched"),
    ];
    for (arguments, text) in table {
        let answer = home.tart(arguments);
        assert_eq!(answer.code, 64, "{arguments:?}: {}", answer.err);
        assert!(answer.err.starts_with(text), "{arguments:?}: {}", answer.err);
        assert!(answer.err.to_lowercase().contains("usage:"), "{arguments:?}: {}", answer.err);
    }
}

#[test]
fn too_little_of_anything_is_refused() {
    let home = Home::with_guests(0);
    let answer = home.tart(&["set", "linux", "--cpu", "0"]);
    assert_eq!(answer.code, 1);
    assert_eq!(
        answer.err.trim_end(),
        "Error: LessThanMinimalResourcesError: VM should have 1 CPU cores at minimum (requested 0)"
    );
    assert_eq!(home.tart(&["set", "linux", "--memory", "1"]).code, 1);
}

#[test]
fn list_and_get_have_tarts_shapes() {
    let home = Home::with_guests(0);
    let list = home.json(&["list", "--format", "json"]);
    let row = &list[0];
    assert_eq!(list.as_array().expect("a list").len(), 2);
    assert_eq!((row["Source"].as_str(), row["Name"].as_str()), (Some("local"), Some("linux")));
    assert!(row["Disk"].is_u64() && row["Size"].is_u64() && row["Running"] == false, "{row}");
    assert_eq!(row["State"], "stopped");
    let accessed = row["Accessed"].as_str().expect("a date");
    assert!(accessed.len() == 20 && accessed.ends_with('Z'), "{accessed}");

    home.ok(&["set", "linux", "--cpu", "2", "--memory", "2048", "--display", "1920x1080px"]);
    let get = home.json(&["get", "linux", "--format", "json"]);
    assert_eq!(
        (get["OS"].as_str(), get["CPU"].as_u64(), get["Memory"].as_u64()),
        (Some("linux"), Some(2), Some(2048))
    );
    assert_eq!((get["Display"].as_str(), get["DiskFormat"].as_str()), (Some("1920x1080px"), Some("raw")));
    assert!(get["Size"].as_str().is_some_and(|size| size.parse::<f64>().is_ok()), "{get}");

    assert_eq!(home.ok(&["list", "--quiet"]), "linux\nmacos\n");
    assert_eq!(home.ok(&["list", "--source", "oci", "--format", "json"]), "[\n\n]\n");
    assert!(home.ok(&["list"]).starts_with("Source Name  Disk  Size"));
    assert!(home.ok(&["get", "linux"]).contains("State"));
    assert!(home.ok(&["--version"]).starts_with(|c: char| c.is_ascii_digit()));
}
