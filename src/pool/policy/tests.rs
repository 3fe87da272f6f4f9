//! The policy against the books: by table, and by long random histories in which everything may fail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock::{self, UnixMillis};
use crate::config::{ByteSize, Config};
use crate::ids::Generation;
use crate::pool::admission::{self, Wait};
use crate::pool::ledger::{Adoption, HostFull, Waiting};
use crate::runtime::{Fault, GuestOs, ImageInfo, Reason};
use crate::testing;

mod agreeing;
mod goldens;
mod oracle;
mod rolling;

/// Pools as `(name, warm, max, os)` on a host of `vms`.
fn books(vms: u16, pools: &[(&str, u16, u16, GuestOs)]) -> Ledger {
    let mut config: Config = testing::config();
    config.host.vms = vms;
    config.host.macos_guests = 2;
    for (name, warm, max, _) in pools {
        let pool = crate::config::Pool { warm: *warm, max: *max, ..testing::pool("linux") };
        config.pools.insert(name.parse().expect("a name"), pool);
    }
    let mut ledger = Ledger::new(&config, Generation(1));
    for (name, _, _, os) in pools {
        let row = ledger.pools.get_mut(&pool(name)).expect("it is there");
        row.image = Some(ImageInfo { os: *os, cpus: 2, memory_mib: 1024, identity: String::new() });
    }
    ledger
}

fn pool(name: &str) -> PoolName {
    name.parse().expect("a name")
}

fn claim(ledger: &mut Ledger, build: u64, name: &str) {
    let since = UnixMillis(i64::try_from(build).expect("small"));
    ledger.claim(Waiting { build: BuildId(build), pool: pool(name), since, asked: clock::now() });
}

/// Performs a decision as far as the books go.
fn apply(ledger: &mut Ledger, decision: &Decision) {
    match decision {
        Decision::Lease { vm, build } => assert!(ledger.lease(vm, *build).is_some()),
        Decision::Start { vm } => assert!(ledger.grant(vm)),
        Decision::Clone { pool, slot } => {
            ledger.register(pool, *slot, UnixMillis(0));
        }
        Decision::Suspend { vm } => assert!(ledger.suspend(vm)),
        Decision::Remove { vm, .. } => {
            ledger.dying(vm);
        }
    }
    assert_eq!(ledger.audit(), Ok(()));
}

/// Decides and applies until there is nothing to do.
fn settle(ledger: &mut Ledger) -> Vec<Decision> {
    let mut made = Vec::new();
    while let Some(decision) = decide(ledger, clock::now()) {
        apply(ledger, &decision);
        made.push(decision);
        assert!(made.len() < 1000, "the policy does not come to rest: {made:?}");
    }
    made
}

fn in_stage(ledger: &Ledger, stage: Stage) -> Vec<VmName> {
    ledger.vms().values().filter(|vm| vm.stage == stage).map(|vm| vm.name.clone()).collect()
}

/// Everything that is on its way succeeds, until nothing moves.
fn run_up(ledger: &mut Ledger) {
    loop {
        settle(ledger);
        let mut moved = false;
        for vm in in_stage(ledger, Stage::Preparing) {
            moved |= ledger.prepared(&vm);
        }
        for vm in in_stage(ledger, Stage::Booting) {
            moved |= ledger.warmed(&vm, clock::now());
        }
        for vm in in_stage(ledger, Stage::Suspending) {
            moved |= ledger.suspended(&vm).is_some();
        }
        for vm in [in_stage(ledger, Stage::Dying), in_stage(ledger, Stage::Deleting)].concat() {
            ledger.gone(&vm);
            moved = true;
        }
        if !moved {
            return;
        }
    }
}

fn warm(ledger: &Ledger, name: &str) -> usize {
    ledger.of(&pool(name)).filter(|vm| vm.stage == Stage::Warm).count()
}

#[test]
fn a_pool_fills_up_to_its_target_and_stops() {
    let mut ledger = books(4, &[("a", 2, 4, GuestOs::Linux)]);
    run_up(&mut ledger);
    assert_eq!((warm(&ledger, "a"), ledger.vms().len()), (2, 2));
}

#[test]
fn the_next_vm_is_cloned_while_the_build_runs_and_starts_when_the_guest_is_dead() {
    let mut ledger = books(1, &[("a", 1, 1, GuestOs::Linux)]);
    run_up(&mut ledger);
    claim(&mut ledger, 1, "a");
    let made = settle(&mut ledger);
    let used = in_stage(&ledger, Stage::Leased(BuildId(1)));
    assert!(matches!(&made[..], [Decision::Lease { .. }, Decision::Clone { .. }]), "{made:?}");
    let next = in_stage(&ledger, Stage::Preparing);
    ledger.prepared(&next[0]);
    assert_eq!(settle(&mut ledger), [], "no slot is free yet");
    ledger.dying(&used[0]);
    assert_eq!(settle(&mut ledger), [], "the guest may still be alive");
    ledger.guest_dead(&used[0]);
    assert_eq!(settle(&mut ledger), [Decision::Start { vm: next[0].clone() }]);
}

#[test]
fn a_third_macos_guest_is_never_started() {
    let mut ledger = books(8, &[("a", 4, 4, GuestOs::Darwin), ("b", 1, 1, GuestOs::Linux)]);
    run_up(&mut ledger);
    assert_eq!((warm(&ledger, "a"), warm(&ledger, "b")), (2, 1));
}

#[test]
fn a_waiting_build_takes_the_place_of_an_idle_vm_of_another_pool() {
    let mut ledger = books(2, &[("a", 2, 2, GuestOs::Linux), ("b", 0, 1, GuestOs::Linux)]);
    run_up(&mut ledger);
    assert_eq!(warm(&ledger, "a"), 2);
    claim(&mut ledger, 1, "b");
    run_up(&mut ledger);
    assert_eq!(in_stage(&ledger, Stage::Leased(BuildId(1))).len(), 1);
    assert_eq!(warm(&ledger, "a"), 1, "one gave its place, one stayed");
}

#[test]
fn a_waiting_build_does_not_take_what_another_build_waits_for() {
    let mut ledger = books(1, &[("a", 1, 1, GuestOs::Linux), ("b", 0, 1, GuestOs::Linux)]);
    settle(&mut ledger);
    let first = in_stage(&ledger, Stage::Preparing);
    ledger.prepared(&first[0]);
    settle(&mut ledger);
    claim(&mut ledger, 1, "a");
    claim(&mut ledger, 2, "b");
    run_up(&mut ledger);
    assert_eq!(in_stage(&ledger, Stage::Leased(BuildId(1))).len(), 1, "who asked first is served first");
    let wait = admission::waits_for(&ledger, BuildId(2), clock::now());
    assert_eq!(wait, Some(Wait::Host(HostFull::Vms { max: 1 })));
}

#[test]
fn who_waits_is_told_for_what() {
    let mut ledger = books(2, &[("a", 0, 1, GuestOs::Linux)]);
    claim(&mut ledger, 1, "a");
    run_up(&mut ledger);
    claim(&mut ledger, 2, "a");
    claim(&mut ledger, 3, "a");
    settle(&mut ledger);
    let wait = |build| admission::waits_for(&ledger, BuildId(build), clock::now()).map(|w| w.to_string());
    assert_eq!(wait(1), None);
    assert_eq!(wait(2).as_deref(), Some("a slot of pool `a`: all 1 are in use"));
    assert_eq!(wait(3).as_deref(), Some("a VM of pool `a`; 1 build is ahead"));
}

#[test]
fn a_cancelled_build_leaves_no_surplus() {
    let mut ledger = books(2, &[("a", 0, 2, GuestOs::Linux)]);
    claim(&mut ledger, 1, "a");
    settle(&mut ledger);
    let vm = in_stage(&ledger, Stage::Preparing);
    ledger.prepared(&vm[0]);
    settle(&mut ledger);
    ledger.withdraw(BuildId(1));
    let surplus = Decision::Remove { vm: vm[0].clone(), why: RetireReason::Surplus };
    assert_eq!(settle(&mut ledger), [surplus]);
}

#[tokio::test(start_paused = true)]
async fn old_vms_are_replaced_one_at_a_time() {
    let mut ledger = books(2, &[("a", 2, 2, GuestOs::Linux)]);
    run_up(&mut ledger);
    tokio::time::advance(Duration::from_secs(100 * 3600)).await;
    let made = settle(&mut ledger);
    let aged = made.iter().filter(|d| matches!(d, Decision::Remove { why: RetireReason::Aged, .. })).count();
    assert_eq!(aged, 1, "{made:?}");
}

#[tokio::test(start_paused = true)]
async fn with_trouble_one_vm_at_a_time_is_tried_after_a_pause() {
    let mut ledger = books(4, &[("a", 4, 4, GuestOs::Linux)]);
    for _ in 0..2 {
        let fault = Fault::new(Reason::SshTimeout, "ssh", "nobody");
        ledger.pools.get_mut(&pool("a")).expect("there").trouble.failed(fault, false, clock::now());
    }
    assert_eq!(settle(&mut ledger), []);
    assert!(wake(&ledger, clock::now()).is_some());
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(settle(&mut ledger).len(), 1, "one clone");
    let vm = in_stage(&ledger, Stage::Preparing);
    ledger.prepared(&vm[0]);
    assert_eq!(settle(&mut ledger), [Decision::Start { vm: vm[0].clone() }], "alone until it is warm");
    ledger.pools.get_mut(&pool("a")).expect("there").trouble.warmed();
    run_up(&mut ledger);
    assert_eq!(warm(&ledger, "a"), 4);
}

#[test]
fn with_a_full_disk_nothing_is_cloned_but_what_is_there_serves() {
    let mut ledger = books(2, &[("a", 1, 2, GuestOs::Linux)]);
    run_up(&mut ledger);
    ledger.disk_low = true;
    claim(&mut ledger, 1, "a");
    let made = settle(&mut ledger);
    assert!(matches!(&made[..], [Decision::Lease { .. }]), "{made:?}");
}

#[derive(Debug, Clone)]
enum Chance {
    Claim(bool),
    Withdraw(usize),
    Prepared(usize),
    Warm(usize),
    Fail(usize),
    Return(usize),
    GuestDead(usize),
    Gone(usize),
    Lost(usize),
}

fn any_chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        3 => any::<bool>().prop_map(Chance::Claim),
        1 => (0usize..8).prop_map(Chance::Withdraw),
        6 => (0usize..8).prop_map(Chance::Prepared),
        6 => (0usize..8).prop_map(Chance::Warm),
        1 => (0usize..8).prop_map(Chance::Fail),
        4 => (0usize..8).prop_map(Chance::Return),
        5 => (0usize..8).prop_map(Chance::GuestDead),
        5 => (0usize..8).prop_map(Chance::Gone),
        1 => (0usize..40).prop_map(Chance::Lost),
    ]
}

/// One thing happens, if it can.
fn happen(ledger: &mut Ledger, chance: &Chance, builds: &mut u64) {
    let nth = |names: Vec<VmName>, n: usize| names.get(n % names.len().max(1)).cloned();
    let leased = |ledger: &Ledger| {
        let rows = ledger.vms().values().filter(|vm| matches!(vm.stage, Stage::Leased(_)));
        rows.map(|vm| vm.name.clone()).collect::<Vec<_>>()
    };
    match chance {
        Chance::Claim(first) => {
            *builds += 1;
            claim(ledger, *builds, if *first { "a" } else { "b" });
        }
        Chance::Withdraw(n) => {
            let build = ledger.waiting().iter().nth(*n).map(|w| w.build);
            build.into_iter().for_each(|b| ledger.withdraw(b));
        }
        Chance::Prepared(n) => {
            nth(in_stage(ledger, Stage::Preparing), *n).map(|vm| ledger.prepared(&vm));
        }
        Chance::Warm(n) => {
            nth(in_stage(ledger, Stage::Booting), *n).map(|vm| ledger.warmed(&vm, clock::now()));
        }
        Chance::Fail(n) => {
            nth(ledger.vms().keys().cloned().collect(), *n).map(|vm| ledger.dying(&vm));
        }
        Chance::Return(n) => {
            nth(leased(ledger), *n).map(|vm| ledger.dying(&vm));
        }
        Chance::GuestDead(n) => {
            nth(in_stage(ledger, Stage::Dying), *n).iter().for_each(|vm| ledger.guest_dead(vm));
        }
        Chance::Gone(n) => {
            nth(in_stage(ledger, Stage::Deleting), *n).iter().for_each(|vm| ledger.gone(vm));
        }
        Chance::Lost(n) => {
            let dying = in_stage(ledger, Stage::Dying);
            dying.get(*n).cloned().iter().for_each(|vm| ledger.lost(vm));
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_books_stay_whole_and_nobody_gets_a_used_vm(
        chances in proptest::collection::vec(any_chance(), 1..120)
    ) {
        let pools = [("a", 1, 2, GuestOs::Darwin), ("b", 1, 3, GuestOs::Linux)];
        let mut ledger = books(3, &pools);
        let mut served: BTreeMap<VmName, BuildId> = BTreeMap::new();
        let mut leases: BTreeSet<BuildId> = BTreeSet::new();
        let mut builds = 0;
        for chance in &chances {
            happen(&mut ledger, chance, &mut builds);
            prop_assert_eq!(ledger.audit(), Ok(()));
            for decision in settle(&mut ledger) {
                if let Decision::Lease { vm, build } = decision {
                    prop_assert!(served.insert(vm, build).is_none(), "a leased VM is never offered again");
                    prop_assert!(leases.insert(build), "a build has one VM");
                }
            }
            for (name, _, max, _) in pools {
                let running = ledger.of(&pool(name)).filter(|vm| vm.holds_permit()).count();
                prop_assert!(running <= usize::from(max), "{name} runs {running}");
            }
        }
        // From here on all goes well: whoever waits is served, as long as one slot is left to the pool.
        for _ in 0..40 {
            run_up(&mut ledger);
            let leased: Vec<VmName> = served.keys().filter(|vm| ledger.vms().contains_key(*vm)).cloned().collect();
            leased.iter().for_each(|vm| { ledger.dying(vm); });
            for (vm, row) in ledger.vms() {
                if let Stage::Leased(build) = row.stage {
                    served.insert(vm.clone(), build);
                }
            }
        }
        let lost = in_stage(&ledger, Stage::Lost).len();
        prop_assert!(lost > 0 || ledger.waiting().is_empty(), "{:?} wait for ever", ledger.waiting());
    }
}

#[test]
fn cores_and_memory_bound_all_pools_together() {
    let mut config = testing::config();
    config.host.vms = 9;
    config.host.cores = Some(5);
    config.host.memory = Some(ByteSize(64 << 30));
    config.pools.insert(pool("a"), crate::config::Pool { warm: 9, max: 9, ..testing::pool("linux") });
    let mut ledger = Ledger::new(&config, Generation(1));
    ledger.pools.get_mut(&pool("a")).expect("there").image =
        Some(ImageInfo { os: GuestOs::Linux, cpus: 2, memory_mib: 1024, identity: String::new() });
    run_up(&mut ledger);
    assert_eq!(warm(&ledger, "a"), 2);
}

fn adoption(name: &str, build: u64, os: GuestOs) -> Adoption {
    let crate::runtime::Parsed::Ours(vm) = VmName::parse(name) else { panic!("`{name}` is ours") };
    Adoption {
        vm,
        build: BuildId(build),
        image: ImageInfo { os, cpus: 2, memory_mib: 1024, identity: String::new() },
    }
}

#[test]
fn an_adopted_vm_is_its_builds_holds_its_permit_and_its_slot_is_not_given_to_another() {
    let mut ledger = books(2, &[("a", 1, 2, GuestOs::Linux)]);
    ledger.adopt(&adoption("preheat-a-1-7", 9, GuestOs::Linux), UnixMillis(0)).expect("it fits");
    assert_eq!(ledger.audit(), Ok(()));
    claim(&mut ledger, 10, "a");
    run_up(&mut ledger);
    let held: Vec<_> = ledger.vms().values().filter(|vm| vm.holds_permit()).collect();
    assert_eq!(held.len(), 2);
    assert!(
        held.iter().any(|vm| vm.name.to_string() == "preheat-a-1-7" && vm.stage == Stage::Leased(BuildId(9)))
    );
    let newer = |vm: &&VmRow| vm.stage == Stage::Leased(BuildId(10)) && vm.name.generation > Generation(7);
    assert!(held.iter().any(newer), "{held:?}");
    let (vm, build) = (held[0].name.clone(), held[1].name.clone());
    for vm in [vm, build] {
        ledger.dying(&vm);
        ledger.gone(&vm);
    }
    assert_eq!(ledger.audit(), Ok(()));
}

#[test]
fn what_has_no_place_in_the_books_any_more_is_not_adopted() {
    let mut ledger = books(2, &[("a", 1, 2, GuestOs::Linux), ("mac", 1, 4, GuestOs::Darwin)]);
    let mut adopt = |name: &str, build, os| {
        let adopted = ledger.adopt(&adoption(name, build, os), UnixMillis(0));
        assert_eq!(ledger.audit(), Ok(()), "{name}");
        adopted
    };
    assert!(adopt("preheat-gone-0-1", 1, GuestOs::Linux).is_err_and(|why| why.contains("no pool")));
    assert!(adopt("preheat-a-2-1", 1, GuestOs::Linux).is_err_and(|why| why.contains("no slot 2")));
    assert_eq!(adopt("preheat-a-0-1", 1, GuestOs::Linux), Ok(()));
    assert!(adopt("preheat-a-0-2", 2, GuestOs::Linux).is_err_and(|why| why.contains("already")), "a slot");
    assert!(adopt("preheat-a-1-3", 1, GuestOs::Linux).is_err_and(|why| why.contains("already")), "a build");
    assert_eq!(adopt("preheat-mac-0-4", 4, GuestOs::Darwin), Ok(()));
    assert!(adopt("preheat-mac-1-5", 5, GuestOs::Darwin).is_err_and(|why| why.contains("no room")));
}
