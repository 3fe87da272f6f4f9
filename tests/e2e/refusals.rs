//! Bad input: each a clear error with a hint, the documented exit code, and a daemon that lives. No guest boots here.

use preheat::api::wire::{BuildList, ErrorBody, PoolList};

use crate::house::{House, Plan, err, out, until};
use crate::projects::{folder, tiny};

/// A pool whose image is not there.
const GHOST: &str = "[pool.ghost]\nimage = \"nowhere\"\n";

fn serve(house: &House) -> (Option<i32>, String) {
    let output = house.preheat(&["serve"]);
    (output.status.code(), err(&output))
}

/// It failed with the code, and said so in these words.
fn refused(house: &House, args: &[&str], code: &str, words: &[&str]) {
    let all: Vec<&str> = ["run", "--json"].into_iter().chain(args.iter().copied()).collect();
    let output = house.preheat(&all);
    let said = err(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    let body: ErrorBody = serde_json::from_slice(&output.stdout).expect("an error's shape");
    assert_eq!(body.error.code, code, "{said}");
    for word in words.iter().chain(&["error: ", "hint: "]) {
        assert!(said.contains(word), "`{word}` is missing: {said}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_file() {
    let house = Plan::bare("[pool.linux]\nimage = \"linux\"\nwram = 2\n[pool.mac]\nimage = 7\n").build();
    let (code, said) = serve(&house);
    assert_eq!(code, Some(2), "{said}");
    for word in ["preheat.toml", "pool.linux.wram", "pool.mac.image", "hint: "] {
        assert!(said.contains(word), "`{word}` is missing: {said}");
    }
}

#[test]
fn a_pool_without_its_image_says_so_and_its_builds_wait_with_a_reason() {
    let house = Plan::bare(GHOST).open();
    let trouble = until("the trouble", || {
        let shown = house.preheat(&["pool", "--json"]);
        let list: PoolList = serde_json::from_slice(&shown.stdout).expect("pools");
        list.pools.into_iter().next().and_then(|pool| pool.trouble)
    });
    assert_eq!(trouble.reason, "image_missing", "{trouble:?}");
    assert!(trouble.hint.is_some_and(|hint| hint.contains("vm-setup/")));
    let id = house.submit(&[&tiny(house.dir()), "--step", "true", "--pool", "ghost"]);
    house.when(id, "told why it waits", |view| {
        view.waiting_for.as_deref().is_some_and(|why| why.contains("ghost") && why.contains("nowhere"))
    });
    let doctor = house.preheat(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(3), "{}", err(&doctor));
    assert!(out(&doctor).contains("nowhere"), "{}", out(&doctor));
    assert_eq!(house.preheat(&["cancel", &id.to_string()]).status.code(), Some(0));
    house.over(id);
}

#[test]
fn what_cannot_be_built_is_refused_with_a_hint_and_the_daemon_lives() {
    let house = Plan::bare(GHOST).variable("PREHEAT__API__SOURCE_MAX", "64 KiB").open();
    let tiny = tiny(house.dir());
    refused(&house, &["nowhere", "--pool", "ghost"], "usage", &["there is no folder or archive `nowhere`"]);
    refused(&house, &[&tiny, "--pool", "none", "--step", "true"], "pool_unknown", &["`none`", "ghost"]);
    refused(&house, &[&tiny, "--pool", "ghost"], "bad_spec", &["step"]);

    let hostile = house.dir().join("hostile.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&hostile).expect("made"));
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    // The library would refuse to write such a name.
    header.as_mut_bytes()[..11].copy_from_slice(b"../evil.txt");
    header.set_cksum();
    tar.append(&header, &b"evil"[..]).expect("written");
    tar.into_inner().expect("whole");
    let hostile = hostile.display().to_string();
    refused(&house, &[&hostile, "--pool", "ghost", "--step", "true"], "bad_source", &["../evil.txt"]);

    let large = "x".repeat(200 << 10);
    let large = folder(house.dir(), "large", &[("file", &large)]).display().to_string();
    refused(&house, &[&large, "--pool", "ghost", "--step", "true"], "body_too_large", &["api.source_max"]);

    assert_eq!(house.get::<BuildList>("builds").builds, []);
    let spool = std::fs::read_dir(house.home().join("spool")).expect("there").count();
    assert_eq!(spool, 0, "nothing of what was refused stays");
    assert!(!house.dir().join("evil.txt").exists() && !house.home().join("evil.txt").exists());
}

#[test]
fn a_port_in_use_ends_in_three_with_a_hint() {
    let house = Plan::bare(GHOST).open();
    let other = Plan::bare(GHOST).build();
    let port = house.url().rsplit(':').next().expect("a port").to_owned();
    let output = other
        .command(&["serve"])
        .env("PREHEAT__API__LISTEN", format!("127.0.0.1:{port}"))
        .output()
        .expect("it runs");
    let said = err(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(&port) && said.contains("hint: "), "{said}");
    // And two daemons do not share an installation, whatever their ports.
    let (code, said) = serve(&house);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("another preheat runs with") && said.contains("hint: "), "{said}");
}

#[test]
fn a_runtime_that_is_not_installed_is_told_by_the_pool_and_by_the_doctor() {
    let house =
        Plan::bare("[runtime]\nprogram = \"/nowhere/tart\"\n[pool.linux]\nimage = \"linux\"\n").open();
    let trouble = until("the trouble", || house.pools().remove(0).trouble);
    assert_eq!(trouble.reason, "program_missing", "{trouble:?}");
    assert!(trouble.hint.is_some_and(|hint| hint.contains("runtime.program")));
    let doctor = house.preheat(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(3), "{}", err(&doctor));
    assert!(
        out(&doctor).contains("/nowhere/tart") && out(&doctor).contains("runtime.program"),
        "{}",
        out(&doctor)
    );
}
