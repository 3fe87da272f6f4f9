//! When VMs are suspended for others to resume from, and when that is worth nothing any more.

use super::*;
use crate::pool::baking::Resuming;

fn image(identity: &str) -> ImageInfo {
    ImageInfo { os: GuestOs::Darwin, cpus: 2, memory_mib: 1024, identity: identity.to_owned() }
}

/// One pool that can resume.
fn resuming(warm: u16, max: u16) -> Ledger {
    let mut ledger = books(4, &[("a", warm, max, GuestOs::Darwin)]);
    ledger.note_image(&pool("a"), image(""), Resuming::On("k".into()));
    ledger
}

fn origins(ledger: &Ledger, stage: Stage) -> Vec<Option<VmName>> {
    ledger.vms().values().filter(|vm| vm.stage == stage).map(|vm| vm.origin.clone()).collect()
}

#[test]
fn each_slot_boots_once_and_resumes_from_then_on() {
    let mut ledger = resuming(2, 2);
    run_up(&mut ledger);
    let golden = in_stage(&ledger, Stage::Golden);
    assert_eq!(golden.len(), 2);
    assert_eq!(origins(&ledger, Stage::Warm), golden.iter().cloned().map(Some).collect::<Vec<_>>());
    claim(&mut ledger, 1, "a");
    run_up(&mut ledger);
    let vm = in_stage(&ledger, Stage::Leased(BuildId(1))).pop().expect("leased");
    ledger.dying(&vm);
    run_up(&mut ledger);
    assert_eq!(in_stage(&ledger, Stage::Golden), golden, "they are used again and again");
    assert!(origins(&ledger, Stage::Warm).iter().all(Option::is_some));
}

#[test]
fn one_vm_is_suspended_at_a_time_and_none_that_a_build_waits_for() {
    let mut ledger = resuming(2, 2);
    settle(&mut ledger);
    for vm in in_stage(&ledger, Stage::Preparing) {
        ledger.prepared(&vm);
    }
    settle(&mut ledger);
    claim(&mut ledger, 1, "a");
    claim(&mut ledger, 2, "a");
    let booting = in_stage(&ledger, Stage::Booting);
    ledger.warmed(&booting[0], clock::now());
    settle(&mut ledger);
    assert_eq!(in_stage(&ledger, Stage::Suspending), [], "the second build waits");
    ledger.withdraw(BuildId(2));
    ledger.warmed(&booting[1], clock::now());
    settle(&mut ledger);
    assert_eq!(in_stage(&ledger, Stage::Suspending), [booting[1].clone()]);
}

#[test]
fn a_slot_that_is_never_idle_is_suspended_after_its_third_boot_in_a_row() {
    let mut ledger = resuming(1, 1);
    for build in 1..=20 {
        claim(&mut ledger, build, "a");
    }
    let mut served = 0;
    while served < 6 {
        run_up(&mut ledger);
        let leased = ledger.vms().values().find(|vm| matches!(vm.stage, Stage::Leased(_)));
        let vm = leased.expect("served").name.clone();
        served += 1;
        let resumed = ledger.vm(&vm).is_some_and(|vm| vm.origin.is_some());
        assert_eq!(resumed, served > 2, "build {served}");
        ledger.dying(&vm);
    }
    assert_eq!(in_stage(&ledger, Stage::Golden).len(), 1);
}

#[test]
fn with_another_image_what_was_saved_goes_and_the_pool_rolls_over() {
    let mut ledger = resuming(2, 2);
    run_up(&mut ledger);
    let old = in_stage(&ledger, Stage::Golden);
    ledger.note_image(&pool("a"), image("other"), Resuming::On("other".into()));
    run_up(&mut ledger);
    let new = in_stage(&ledger, Stage::Golden);
    assert!(new.len() == 2 && new.iter().all(|vm| !old.contains(vm)), "{new:?}");
    assert!(origins(&ledger, Stage::Warm).iter().flatten().all(|origin| new.contains(origin)));
    ledger.note_image(&pool("a"), image("other"), Resuming::Off);
    run_up(&mut ledger);
    assert_eq!(in_stage(&ledger, Stage::Golden), []);
    assert_eq!(warm(&ledger, "a"), 2);
}

#[test]
fn what_an_earlier_daemon_suspended_is_resumed_from_as_soon_as_its_image_is_known_to_be_the_same() {
    for (key, kept) in [("k", 1), ("other", 0)] {
        let mut ledger = books(4, &[("a", 0, 1, GuestOs::Darwin)]);
        let golden: VmName = VmName { pool: pool("a"), slot: SlotId(0), generation: Generation(7) };
        ledger.keep(&golden, key, UnixMillis(0));
        assert_eq!(ledger.audit(), Ok(()));
        ledger.note_image(&pool("a"), image(""), Resuming::On("k".into()));
        run_up(&mut ledger);
        assert_eq!(in_stage(&ledger, Stage::Golden).len(), kept);
        claim(&mut ledger, 1, "a");
        settle(&mut ledger);
        assert_eq!(origins(&ledger, Stage::Preparing), [(kept == 1).then_some(golden)]);
    }
}

#[test]
fn after_a_failure_it_is_not_tried_again_at_once() {
    let mut ledger = resuming(1, 1);
    let row = ledger.pools.get_mut(&pool("a")).expect("there");
    row.baking.failed(clock::now());
    run_up(&mut ledger);
    assert_eq!((in_stage(&ledger, Stage::Golden), warm(&ledger, "a")), (Vec::new(), 1));
    assert!(wake(&ledger, clock::now()).is_some());
}

#[test]
fn while_the_pool_is_drained_what_was_suspended_stays() {
    let mut ledger = resuming(2, 2);
    run_up(&mut ledger);
    ledger.draining = Some(crate::pool::ledger::Drain::Asked);
    run_up(&mut ledger);
    assert_eq!((in_stage(&ledger, Stage::Golden).len(), warm(&ledger, "a")), (2, 0));
}
