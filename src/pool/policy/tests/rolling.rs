//! Books that follow another configuration: what runs is never stopped by it, and what idles is replaced as gently as the room
//! allows.

use super::*;

/// A configuration like that of [`books`].
fn config(vms: u16, pools: &[(&str, u16, u16)]) -> Config {
    let mut config = testing::config();
    config.host.vms = vms;
    for (name, warm, max) in pools {
        let pool = crate::config::Pool { warm: *warm, max: *max, ..testing::pool("linux") };
        config.pools.insert(name.parse().expect("a name"), pool);
    }
    config
}

fn looked_at(ledger: &mut Ledger) {
    for row in ledger.pools.values_mut() {
        row.image =
            Some(ImageInfo { os: GuestOs::Linux, cpus: 2, memory_mib: 1024, identity: String::new() });
    }
}

fn current(ledger: &Ledger) -> bool {
    ledger.vms().values().all(|vm| !oracle::is_outdated(ledger, vm))
}

/// Rolls pool `a` to its end, one event at a time: the fewest warm VMs there were on the way.
fn roll_out(ledger: &mut Ledger, config: &Config) -> usize {
    assert_eq!(ledger.follow(config, &[pool("a")]), []);
    looked_at(ledger);
    let mut fewest = warm(ledger, "a");
    for _ in 0..200 {
        settle(ledger);
        fewest = fewest.min(warm(ledger, "a"));
        let one = |ledger: &Ledger, stage| in_stage(ledger, stage).into_iter().next();
        if let Some(vm) = one(ledger, Stage::Preparing) {
            ledger.prepared(&vm);
        } else if let Some(vm) = one(ledger, Stage::Booting) {
            ledger.warmed(&vm, clock::now());
        } else if let Some(vm) = one(ledger, Stage::Dying).or_else(|| one(ledger, Stage::Deleting)) {
            ledger.gone(&vm);
        } else {
            assert!(current(ledger), "it came to rest with {:?}", ledger.vms().keys());
            return fewest;
        }
    }
    panic!("it does not come to rest");
}

#[test]
fn a_pool_that_rolls_is_not_empty_where_a_slot_or_a_place_is_left() {
    for (vms, warm_target, max, fewest) in [
        // A slot is left: nothing is missing at any time.
        (4, 1, 2, 1),
        (4, 2, 3, 2),
        (4, 3, 4, 3),
        // No slot is left, or no place on the host: one at a time.
        (4, 2, 2, 1),
        (2, 2, 4, 1),
        // No way around.
        (4, 1, 1, 0),
        (1, 1, 2, 0),
    ] {
        let what = format!("vms {vms}, warm {warm_target}, max {max}");
        let mut ledger = books(vms, &[("a", warm_target, max, GuestOs::Linux)]);
        run_up(&mut ledger);
        assert_eq!(warm(&ledger, "a"), usize::from(warm_target), "{what}");
        let old: Vec<VmName> = ledger.vms().keys().cloned().collect();
        assert_eq!(roll_out(&mut ledger, &config(vms, &[("a", warm_target, max)])), fewest, "{what}");
        assert_eq!(warm(&ledger, "a"), usize::from(warm_target), "{what}");
        assert!(old.iter().all(|vm| !ledger.vms().contains_key(vm)), "{what}");
    }
}

#[test]
fn while_its_new_vms_do_not_come_up_a_pool_keeps_its_old_ones() {
    for max in [2, 3] {
        let mut ledger = books(4, &[("a", 2, max, GuestOs::Linux)]);
        run_up(&mut ledger);
        ledger.follow(&config(4, &[("a", 2, max)]), &[pool("a")]);
        settle(&mut ledger);
        assert_eq!(warm(&ledger, "a"), 2, "nothing is cloned before the new image was looked at");
        looked_at(&mut ledger);
        for _ in 0..6 {
            settle(&mut ledger);
            in_stage(&ledger, Stage::Preparing).iter().for_each(|vm| assert!(ledger.prepared(vm)));
            settle(&mut ledger);
            in_stage(&ledger, Stage::Dying).iter().for_each(|vm| ledger.gone(vm));
            settle(&mut ledger);
            for vm in in_stage(&ledger, Stage::Booting) {
                let fault = Fault::new(Reason::SshTimeout, "connect", "nobody answers");
                let row = ledger.pools.get_mut(&pool("a")).expect("there");
                row.trouble.failed(fault, false, clock::now() - Duration::from_secs(600));
                ledger.dying(&vm);
                ledger.gone(&vm);
            }
        }
        let left = warm(&ledger, "a");
        assert!(left >= usize::from(max) - 1, "max {max}: {left} are left");
    }
}

#[test]
fn an_outdated_warm_vm_serves_while_there_is_no_other_and_only_then() {
    let mut ledger = books(4, &[("a", 1, 2, GuestOs::Linux)]);
    run_up(&mut ledger);
    let old = in_stage(&ledger, Stage::Warm).remove(0);
    ledger.follow(&config(4, &[("a", 1, 2)]), &[pool("a")]);
    looked_at(&mut ledger);
    settle(&mut ledger);
    let fresh = in_stage(&ledger, Stage::Preparing).remove(0);
    claim(&mut ledger, 1, "a");
    let made = settle(&mut ledger);
    assert_eq!(made.first(), Some(&Decision::Lease { vm: old, build: BuildId(1) }));
    ledger.prepared(&fresh);
    settle(&mut ledger);
    ledger.warmed(&fresh, clock::now());
    assert_eq!(settle(&mut ledger), [], "the VM in use ends as it began");
    claim(&mut ledger, 2, "a");
    assert_eq!(settle(&mut ledger).first(), Some(&Decision::Lease { vm: fresh, build: BuildId(2) }));
}

#[test]
fn a_build_that_runs_does_not_hold_the_others_up() {
    let mut ledger = books(4, &[("a", 2, 2, GuestOs::Linux)]);
    run_up(&mut ledger);
    claim(&mut ledger, 1, "a");
    run_up(&mut ledger);
    let old = in_stage(&ledger, Stage::Warm).remove(0);
    ledger.follow(&config(4, &[("a", 1, 2)]), &[pool("a")]);
    looked_at(&mut ledger);
    run_up(&mut ledger);
    assert_eq!(in_stage(&ledger, Stage::Leased(BuildId(1))).len(), 1);
    assert!(!ledger.vms().contains_key(&old) && warm(&ledger, "a") == 1, "{:#?}", ledger.vms());
}

#[test]
fn lowered_bounds_stop_nothing_and_let_nothing_start_until_it_fits() {
    let mut ledger = books(3, &[("a", 3, 3, GuestOs::Linux)]);
    run_up(&mut ledger);
    for build in 1..=3 {
        claim(&mut ledger, build, "a");
    }
    settle(&mut ledger);
    ledger.follow(&config(1, &[("a", 1, 1)]), &[]);
    settle(&mut ledger);
    let leased: Vec<VmName> =
        ledger.vms().values().filter(|vm| vm.holds_permit()).map(|vm| vm.name.clone()).collect();
    assert_eq!(leased.len(), 3, "no VM is killed");
    for (left, vm) in leased.iter().enumerate().map(|(n, vm)| (2 - n, vm)) {
        ledger.dying(vm);
        ledger.gone(vm);
        let next = in_stage(&ledger, Stage::Preparing);
        next.iter().for_each(|vm| assert!(ledger.prepared(vm)));
        settle(&mut ledger);
        let running = ledger.vms().values().filter(|vm| vm.holds_permit()).count();
        assert!(running <= left.max(1), "{running} run");
    }
    run_up(&mut ledger);
    assert_eq!((warm(&ledger, "a"), ledger.vms().len()), (1, 1));
}

#[test]
fn a_pool_that_is_no_more_turns_its_builds_away_and_ends_with_its_last_vm() {
    let mut ledger = books(2, &[("a", 1, 1, GuestOs::Linux), ("b", 1, 1, GuestOs::Linux)]);
    run_up(&mut ledger);
    claim(&mut ledger, 1, "a");
    claim(&mut ledger, 2, "a");
    claim(&mut ledger, 3, "b");
    claim(&mut ledger, 4, "b");
    settle(&mut ledger);
    assert_eq!(ledger.follow(&config(2, &[("b", 1, 1)]), &[]), [BuildId(2)]);
    run_up(&mut ledger);
    let used = in_stage(&ledger, Stage::Leased(BuildId(1)));
    assert_eq!(used.len(), 1, "the build that runs goes on");
    assert!(ledger.pools.contains_key(&pool("a")) && !ledger.is_open(&pool("a")));
    ledger.gone(&used[0]);
    ledger.forget_closed();
    assert!(!ledger.pools.contains_key(&pool("a")));
    assert_eq!(ledger.follow(&config(2, &[("a", 1, 1), ("b", 1, 1)]), &[]), [], "it may come back");
    looked_at(&mut ledger);
    run_up(&mut ledger);
    assert_eq!(warm(&ledger, "a"), 1);
}

/// Of a pool that is there: its target, its slots and whether it is rolled.
type Said = Option<(u16, u16, bool)>;

/// What a reload may say: the host's VMs, and each pool.
fn any_reload() -> impl Strategy<Value = (u16, Vec<Said>)> {
    let any_pool = proptest::option::weighted(0.8, (0u16..4, 1u16..5, any::<bool>()));
    (1u16..6, proptest::collection::vec(any_pool, 2))
}

fn reload(ledger: &mut Ledger, vms: u16, pools: &[Said]) {
    let there = ["a", "b"].into_iter().zip(pools);
    let there: Vec<_> =
        there.filter_map(|(name, pool)| pool.map(|(warm, max, roll)| (name, warm, max, roll))).collect();
    let rows: Vec<_> = there.iter().map(|(name, warm, max, _)| (*name, (*warm).min(*max), *max)).collect();
    let roll: Vec<PoolName> = there.iter().filter(|(.., roll)| *roll).map(|(name, ..)| pool(name)).collect();
    ledger.follow(&config(vms, &rows), &roll);
}

/// Builds that ask for a pool that is no more are turned away by the actor.
fn turn_away(ledger: &mut Ledger) {
    let closed = ledger.waiting().iter().filter(|w| !ledger.is_open(&w.pool)).map(|w| w.build);
    closed.collect::<Vec<_>>().into_iter().for_each(|build| ledger.withdraw(build));
}

proptest! {
    #[test]
    fn whatever_is_reloaded_the_books_stay_whole_and_what_runs_goes_on(
        rounds in proptest::collection::vec((any_reload(), proptest::collection::vec(any_chance(), 0..30)), 1..8)
    ) {
        let mut ledger = books(3, &[("a", 1, 2, GuestOs::Linux), ("b", 1, 3, GuestOs::Linux)]);
        let (mut builds, mut served) = (0, BTreeSet::new());
        for ((vms, pools), chances) in &rounds {
            let in_use = |ledger: &Ledger| -> BTreeSet<VmName> {
                let leased = ledger.vms().values().filter(|vm| matches!(vm.stage, Stage::Leased(_)));
                leased.map(|vm| vm.name.clone()).collect()
            };
            let before = in_use(&ledger);
            reload(&mut ledger, *vms, pools);
            prop_assert_eq!(ledger.audit(), Ok(()));
            looked_at(&mut ledger);
            settle(&mut ledger);
            prop_assert!(in_use(&ledger).is_superset(&before), "a VM in use ends as it began");
            for chance in chances {
                happen(&mut ledger, chance, &mut builds);
                turn_away(&mut ledger);
                prop_assert_eq!(ledger.audit(), Ok(()));
                for decision in settle(&mut ledger) {
                    match decision {
                        Decision::Lease { vm, .. } => prop_assert!(served.insert(vm), "never offered again"),
                        Decision::Start { vm } => {
                            let row = &ledger.pools[&vm.pool];
                            let running = ledger.of(&vm.pool).filter(|vm| vm.holds_permit()).count();
                            prop_assert!(running <= usize::from(row.max), "{} of {} run", running, row.max);
                        }
                        Decision::Clone { .. } | Decision::Suspend { .. } | Decision::Remove { .. } => {}
                    }
                }
            }
        }
        // Idle VMs are renewed without a build having to end for it.
        run_up(&mut ledger);
        prop_assert!(ledger.vms().values().all(|vm| !vm.idle() || !oracle::is_outdated(&ledger, vm)), "{:#?}", ledger.vms());
        // From here on all goes well: nothing outdated is left, and whoever waits is served.
        for _ in 0..60 {
            run_up(&mut ledger);
            ledger.forget_closed();
            let leased: Vec<VmName> = ledger.vms().values().filter(|vm| matches!(vm.stage, Stage::Leased(_)))
                .map(|vm| vm.name.clone()).collect();
            leased.iter().for_each(|vm| { ledger.dying(vm); });
        }
        if in_stage(&ledger, Stage::Lost).is_empty() {
            prop_assert!(ledger.waiting().is_empty(), "{:?} wait for ever", ledger.waiting());
            prop_assert!(current(&ledger), "outdated: {:#?}", ledger.vms());
            prop_assert!(ledger.pools.values().all(|row| !row.closed));
            let slots_kept = ledger.vms().values().all(|vm| vm.name.slot.0 < ledger.pools[&vm.name.pool].max);
            prop_assert!(slots_kept);
        }
    }
}
