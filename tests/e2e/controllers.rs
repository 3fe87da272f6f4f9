//! Builds from a controller in real guests: two at once, byte for byte, and one result whichever side is killed in the middle.

use std::os::unix::fs::PermissionsExt as _;

use nix::sys::signal::Signal;
use preheat::api::wire::{BuildList, BuildState, StatusView};
use preheat::build::spec::BuildResult;

use crate::fake_controller::{Bugs, FakeController, KEY, Speaks, zipped};
use crate::house::{House, Plan, contains, until, wait_for};

/// A house that asks the controller, its daemon not yet started.
fn house(controller: &FakeController, lanes: u16) -> House {
    let more = format!(
        "[[controllers]]\nname = \"mesh\"\nurl = \"{}\"\napi_key_file = \"mesh.key\"\nlanes = {lanes}\n\
         poll_interval = \"500ms\"\nheartbeat_interval = \"1s\"\n",
        controller.url()
    );
    let house = Plan::pool(2, 2).and(&more).build();
    let key = house.home().join("mesh.key");
    std::fs::write(&key, KEY).expect("written");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("set");
    house
}

/// An app of bytes that nobody can guess, whose digest its log tells.
fn app(more: &str) -> Vec<u8> {
    let make = format!("{more}; head -c 3000000 /dev/urandom > App.bin; sha256sum App.bin | cut -d ' ' -f 1");
    let text = format!("steps = [{make:?}]\nartifacts = [\"App.bin\"]\n");
    zipped(&[(".preheat.toml", text.as_str()), ("App.tsx", "export default 1\n")])
}

/// The digest that the guest told is the result's.
fn byte_for_byte(controller: &FakeController, id: &str) {
    use sha2::Digest as _;
    let build = wait_for(controller.over(id));
    assert_eq!((build.status.as_str(), build.told), ("completed", 1), "{build:?}");
    let result = build.result.expect("a result");
    let digest: String = sha2::Sha256::digest(&result).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(result.len(), 3_000_000);
    // A result does not wait for long for what could not be told of its log before.
    wait_for(controller.until("the digest", |book| book.builds[id].lines().contains(&digest.as_str())));
}

/// Steps that say so when they begin, and end when a test lets them.
const HOLD: &str = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.2; done";

fn running(house: &House, count: usize) -> Vec<String> {
    until("builds in their steps", || {
        let builds = house.get::<BuildList>("builds").builds;
        let held = builds
            .iter()
            .filter(|b| b.state == BuildState::Running && b.phases.iter().any(|p| p.phase == "step"));
        let vms: Vec<String> = held.filter_map(|b| b.vm.clone()).collect();
        (vms.len() == count).then_some(vms)
    })
}

#[test]
fn two_builds_of_a_controller_are_built_at_once_and_brought_home_byte_for_byte() {
    let bugs =
        Bugs { heartbeats_fail: true, telemetry_fails: true, results_fail_after: 1, ..Bugs::default() };
    let controller = wait_for(FakeController::start(Speaks::Keyed, bugs));
    let house = house(&controller, 2);
    let ids = [(); 2].map(|()| controller.submit(app(HOLD)));
    house.start();
    let vms = running(&house, 2);
    assert_eq!(house.get::<StatusView>("status").controllers[0].busy, 2);
    vms.iter().for_each(|vm| house.release(vm));
    for id in &ids {
        byte_for_byte(&controller, id);
    }
    assert_eq!(controller.book().workers.len(), 2);
}

/// Lines that the controller has of the only job's log, as the journal says.
fn noted(house: &House) -> u32 {
    let journal = rusqlite::Connection::open(house.home().join("journal.sqlite")).expect("a journal");
    journal.query_row("SELECT logged FROM controller_jobs", [], |row| row.get(0)).expect("a row")
}

#[test]
fn whichever_side_is_killed_in_the_middle_there_is_one_result() {
    for speaks in [Speaks::Keyed, Speaks::Tokened] {
        let mut controller = wait_for(FakeController::start(speaks, Bugs::default()));
        let house = house(&controller, 1);
        let id = controller.submit(app(HOLD));
        house.start();
        let vm = running(&house, 1).pop().expect("one");
        wait_for(controller.until("its log", |book| book.builds[&id].lines().contains(&"begun")));
        // No line has a number over there: one that was told and not noted is told again.
        until("the note of it", || (noted(&house) as usize == house.log(1).len()).then_some(()));
        house.end(Signal::SIGKILL);
        let token = controller.build(&id).token;
        let journal = std::fs::read(house.home().join("journal.sqlite")).expect("there");
        assert!(!contains(&journal, token.as_bytes()), "the job's token lies plain on the disk");
        house.start();
        assert_eq!(running(&house, 1), std::slice::from_ref(&vm), "it goes on where it was");
        wait_for(controller.stop());
        house.release(&vm);
        let builds = until("the result", || {
            let builds = house.get::<BuildList>("builds").builds;
            builds.iter().all(|b| b.result.is_some()).then_some(builds)
        });
        assert_eq!((builds.len(), builds[0].result), (1, Some(BuildResult::Success)), "{speaks:?}");
        wait_for(controller.start_again());
        byte_for_byte(&controller, &id);
        assert_eq!((controller.build(&id).fetched, controller.book().workers.len()), (1, 1));
        let begun = controller.build(&id).lines().iter().filter(|line| **line == "begun").count();
        assert_eq!(begun, 1, "a line was told twice");
    }
}
