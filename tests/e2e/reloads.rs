//! A changed configuration, followed by a daemon with real guests: by signal and on command, right and wrong.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use preheat::api::wire::{ReloadView, StatusView};
use preheat::build::spec::BuildResult;

use crate::house::{HOLD, House, Plan, err, out, until};
use crate::projects::tiny;

fn pool(image: &str, warm: u16) -> String {
    format!("[pool.linux]\nimage = \"{image}\"\nwarm = {warm}\nmax = 2\nport = 2222\n")
}

fn hang_up(house: &House) {
    kill(Pid::from_raw(house.pid().cast_signed()), Signal::SIGHUP).expect("alive");
}

fn last_reload_succeeded(house: &House) -> bool {
    house.metric("preheat_config_last_reload_successful", &[]) == Some(1.0)
}

#[test]
fn a_daemon_follows_what_is_right_refuses_what_is_wrong_and_its_builds_do_not_notice() {
    let house = Plan::pool(1, 2).open();
    let cloned = house.tart(&["clone", "linux", "linux-2"]);
    assert!(cloned.status.success(), "{}", err(&cloned));
    let first = house.whole().remove(0);
    assert!(last_reload_succeeded(&house));

    // Wrong: nothing changes, and every mistake is named.
    house.configure(&pool("linux", 7).replace("port", "prt"));
    hang_up(&house);
    until("the mistake to be said", || house.said().contains("before stays in force").then_some(()));
    assert!(!last_reload_succeeded(&house));
    assert!(house.said().contains("unknown key"), "{}", house.said());
    let refused = house.preheat(&["reload"]);
    assert_eq!(refused.status.code(), Some(2), "{}", out(&refused));
    for words in ["pool.linux.prt: unknown key", "pool.linux.warm", "stays in force", "hint: "] {
        assert!(err(&refused).contains(words), "{words} is not in {}", err(&refused));
    }
    assert!(house.get::<StatusView>("status").config.mistakes.len() >= 2);
    assert_eq!(house.whole()[0].name, first.name);

    // Right: one more is kept warm, the first one stays.
    house.configure(&format!("{}[log]\nfilter = \"info,preheat=debug\"\n", pool("linux", 2)));
    hang_up(&house);
    until("two to be wanted", || (house.pools()[0].warm_target == 2).then_some(()));
    let both = house.whole();
    assert!(both.len() == 2 && both.iter().any(|vm| vm.name == first.name), "{both:#?}");
    assert!(last_reload_succeeded(&house));
    until("the log to say more", || house.said().contains("DEBUG").then_some(()));

    // Another image: idle VMs are replaced, and a build that runs goes on to its end.
    let project = tiny(house.dir());
    let running = house.submit(&[&project, "--step", HOLD, "--pool", "linux"]);
    house.printed(running, "begun");
    house.configure(&format!("{}[builds]\nkeep = 7\n", pool("linux-2", 1)));
    let reloaded = house.preheat(&["reload", "--json"]);
    assert_eq!(reloaded.status.code(), Some(0), "{}", err(&reloaded));
    let view: ReloadView = serde_json::from_slice(&reloaded.stdout).expect("a view");
    let keys: Vec<_> = view.changes.iter().map(|c| (c.key.as_str(), c.applies.as_str())).collect();
    assert_eq!(
        keys,
        [
            ("builds.keep", "live"),
            ("log.filter", "live"),
            ("pool.linux.image", "new_vms"),
            ("pool.linux.warm", "live")
        ]
    );
    let vm = house.view(running).vm.expect("it has one");
    until("the idle one to be replaced", || {
        let vms = house.vms();
        let fresh = vms.iter().any(|vm| vm.state == "warm" && both.iter().all(|old| old.name != vm.name));
        (fresh && vms.iter().filter(|vm| vm.state == "warm").count() == 1).then_some(())
    });
    house.release(&vm);
    let over = house.over(running);
    assert_eq!((over.result, over.attempt), (Some(BuildResult::Success), 1));
    // The successor that was cloned for the build's slot lies there, and costs nothing.
    let left = until("one warm VM, and nothing that goes", || {
        let vms = house.vms();
        let ready = |vm: &preheat::api::wire::VmView| vm.state == "warm" || vm.state == "configured";
        (vms.iter().all(ready) && vms.iter().filter(|vm| vm.state == "warm").count() == 1).then_some(vms)
    });
    assert!(both.iter().all(|old| left.iter().all(|vm| vm.name != old.name)));
    let (build, _) = house.run(&[&project, "--step", "true", "--pool", "linux"]);
    assert_eq!(build.result, Some(BuildResult::Success));
}
