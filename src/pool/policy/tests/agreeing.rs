//! The policy decides what the oracle decides, whatever has happened, and the books count right all along.

use super::*;
use crate::clock::Instant;
use crate::pool::baking::Resuming;
use crate::pool::ledger::{Changes, Drain};
use crate::pool::snapshot::{PoolSnapshot, Publisher};

const POOLS: [&str; 4] = ["a", "b", "c", "d"];

/// Something that happens to books of several pools.
#[derive(Debug, Clone)]
enum Turn {
    /// What also happens in a pool or two.
    Chance(Chance),
    Claim(usize, i64),
    /// Each pool's target, slots and whether it is rolled, where it is there; and the host's VMs.
    Reload(u16, Vec<Option<(u16, u16, bool)>>),
    Trouble(usize, bool),
    HostTrouble(usize),
    Mended,
    Refused(usize),
    NoImage(usize),
    /// What a pool's VMs can be resumed from, if they can.
    Resuming(usize, Option<u8>),
    /// A VM that was to be suspended failed, or what resumed from it did.
    NotBaked(usize),
    Drain(Option<Drain>),
    DiskLow(bool),
    /// Minutes pass.
    Pass(u64),
    /// Everything that is on its way succeeds.
    RunUp,
}

fn any_turn() -> impl Strategy<Value = Turn> {
    let any_pool = proptest::option::weighted(0.85, (0u16..4, 1u16..5, any::<bool>()));
    let drain = proptest::option::weighted(0.3, Just(Drain::Asked));
    prop_oneof![
        20 => any_chance().prop_map(Turn::Chance),
        6 => (0usize..4, 0i64..50).prop_map(|(pool, since)| Turn::Claim(pool, since)),
        2 => (1u16..8, proptest::collection::vec(any_pool, 4)).prop_map(|(vms, pools)| Turn::Reload(vms, pools)),
        1 => (0usize..4, any::<bool>()).prop_map(|(pool, while_warm)| Turn::Trouble(pool, while_warm)),
        1 => (0usize..8).prop_map(Turn::HostTrouble),
        1 => Just(Turn::Mended),
        1 => (0usize..4).prop_map(Turn::Refused),
        1 => (0usize..4).prop_map(Turn::NoImage),
        2 => (0usize..4, proptest::option::weighted(0.8, 0u8..2)).prop_map(|(pool, key)| Turn::Resuming(pool, key)),
        1 => (0usize..4).prop_map(Turn::NotBaked),
        1 => drain.prop_map(Turn::Drain),
        1 => any::<bool>().prop_map(Turn::DiskLow),
        4 => (0u64..400).prop_map(Turn::Pass),
        6 => Just(Turn::RunUp),
    ]
}

/// Books in which time is what the test says.
struct Play {
    ledger: Ledger,
    now: Instant,
    builds: u64,
    born: i64,
}

impl Play {
    fn new() -> Self {
        let pools = [
            ("a", 2, 3, GuestOs::Darwin),
            ("b", 1, 4, GuestOs::Linux),
            ("c", 0, 2, GuestOs::Linux),
            ("d", 3, 3, GuestOs::Darwin),
        ];
        Self { ledger: books(5, &pools), now: clock::now(), builds: 0, born: 0 }
    }

    fn happen(&mut self, turn: &Turn) {
        let (ledger, now) = (&mut self.ledger, self.now);
        match turn {
            Turn::RunUp => self.come_up(),
            Turn::Chance(Chance::Warm(n)) => {
                let booting = in_stage(ledger, Stage::Booting);
                booting.get(n % booting.len().max(1)).map(|vm| ledger.warmed(vm, now));
            }
            Turn::Chance(chance) => happen(ledger, chance, &mut self.builds),
            Turn::Claim(at, since) => {
                self.builds += 1;
                let (build, pool) = (BuildId(self.builds), pool(POOLS[*at]));
                ledger.claim(Waiting { build, pool, since: UnixMillis(*since), asked: now });
            }
            Turn::Reload(vms, pools) => reload(ledger, *vms, pools),
            Turn::Trouble(at, while_warm) => {
                let fault = Fault::new(Reason::SshTimeout, "ssh", "nobody");
                let row = ledger.pools.get_mut(&pool(POOLS[*at]));
                row.map(|row| row.trouble.failed(fault, *while_warm, now));
            }
            Turn::HostTrouble(n) => {
                let vm = ledger.vms().keys().nth(*n).cloned();
                let fault = Fault::new(Reason::DiskFull, "clone", "no space");
                ledger.breaker.failed(vm.as_ref(), &fault, now);
                vm.map(|vm| ledger.dying(&vm));
            }
            Turn::Mended => {
                ledger.breaker.warmed();
                ledger.pools.values_mut().for_each(|row| row.trouble.mended());
            }
            Turn::Refused(at) => {
                let fault = Fault::new(Reason::SystemLimit, "run", "exceeds");
                ledger.limit.refused(&pool(POOLS[*at]), &fault, &BTreeSet::new(), 2, now);
            }
            Turn::NoImage(at) => {
                ledger.pools.get_mut(&pool(POOLS[*at])).map(|row| row.image.take());
            }
            Turn::Resuming(at, key) => {
                let image =
                    ImageInfo { os: GuestOs::Darwin, cpus: 2, memory_mib: 1024, identity: String::new() };
                let resuming = key.map_or(Resuming::Off, |key| Resuming::On(key.to_string()));
                ledger.note_image(&pool(POOLS[*at]), image, resuming);
            }
            Turn::NotBaked(at) => {
                let row = ledger.pools.get_mut(&pool(POOLS[*at]));
                row.map(|row| row.baking.failed(now));
                let suspending = in_stage(ledger, Stage::Suspending);
                suspending.iter().for_each(|vm| {
                    ledger.dying(vm);
                });
            }
            Turn::Drain(drain) => ledger.draining = *drain,
            Turn::DiskLow(low) => ledger.disk_low = *low,
            Turn::Pass(minutes) => self.now += Duration::from_secs(60 * minutes),
        }
    }

    fn come_up(&mut self) {
        let ledger = &mut self.ledger;
        in_stage(ledger, Stage::Preparing).iter().for_each(|vm| assert!(ledger.prepared(vm)));
        in_stage(ledger, Stage::Booting).iter().for_each(|vm| assert!(ledger.warmed(vm, self.now)));
        in_stage(ledger, Stage::Suspending).iter().for_each(|vm| assert!(ledger.suspended(vm).is_some()));
        in_stage(ledger, Stage::Deleting).iter().for_each(|vm| ledger.gone(vm));
    }

    /// Settles as the actor does, by decisions that both agree on.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..500 {
            let decision = decide(&self.ledger, self.now);
            prop_assert_eq!(&decision, &oracle::decide(&self.ledger, self.now));
            prop_assert_eq!(wake(&self.ledger, self.now), oracle::wake(&self.ledger, self.now));
            match decision {
                None => return Ok(()),
                Some(Decision::Clone { pool, slot }) => {
                    // Some are born in the same millisecond, and the clock may be set back.
                    self.born = (self.born + 1) % 4;
                    self.ledger.register(&pool, slot, UnixMillis(self.born));
                }
                Some(decision) => apply(&mut self.ledger, &decision),
            }
        }
        Err(TestCaseError::fail("the policy does not come to rest"))
    }
}

/// What a snapshot says, without its generation.
fn said(snapshot: &PoolSnapshot) -> String {
    format!("{:?}", PoolSnapshot { generation: 0, ..snapshot.clone() })
}

impl Play {
    /// A snapshot that follows what changed says what one says that reads everything; and each build that waits is told what
    /// the rows alone say.
    fn publish(&mut self, publisher: &mut Publisher) -> Result<(), TestCaseError> {
        let changes = self.ledger.take_changes();
        prop_assert_eq!(self.ledger.audit_changes(&changes), Ok(()));
        let (ledger, now) = (&self.ledger, self.now);
        let mut config = testing::config();
        config.pools = POOLS.iter().map(|name| (pool(name), testing::pool("linux"))).collect();
        let next = publisher.publish(ledger, &changes, &config, now, UnixMillis(0));
        let everything = Changes {
            vms: ledger.vms().keys().cloned().collect(),
            waiting: config.pools.keys().cloned().collect(),
        };
        let fresh = Publisher::default().publish(ledger, &everything, &config, now, UnixMillis(0));
        prop_assert_eq!(said(&next), said(&fresh));
        for waiting in ledger.waiting().iter() {
            let wait = oracle::waits_for(ledger, waiting.build, now);
            prop_assert_eq!(&admission::waits_for(ledger, waiting.build, now), &wait);
            prop_assert_eq!(next.waits_for(waiting.build), wait.map(|wait| wait.to_string()));
        }
        Ok(())
    }
}

fn reload(ledger: &mut Ledger, vms: u16, said: &[Option<(u16, u16, bool)>]) {
    let mut config = testing::config();
    config.host.vms = vms;
    let mut roll = Vec::new();
    for (name, (warm, max, rolls)) in POOLS.iter().zip(said).filter_map(|(n, said)| Some((n, (*said)?))) {
        let shape = crate::config::Pool { warm: warm.min(max), max, ..testing::pool("linux") };
        config.pools.insert(pool(name), shape);
        roll.extend(rolls.then(|| pool(name)));
    }
    ledger.follow(&config, &roll);
    for (name, row) in &mut ledger.pools {
        let os = if *name <= pool("b") { GuestOs::Linux } else { GuestOs::Darwin };
        row.image = Some(ImageInfo { os, cpus: 2, memory_mib: 1024, identity: String::new() });
    }
}

proptest! {
    #[test]
    fn with_its_index_the_policy_decides_what_the_rows_alone_say(
        turns in proptest::collection::vec(any_turn(), 1..150)
    ) {
        let (mut play, mut publisher) = (Play::new(), Publisher::default());
        for turn in &turns {
            play.happen(turn);
            play.settle()?;
            play.ledger.forget_closed();
            play.publish(&mut publisher)?;
        }
    }
}

#[test]
fn an_index_that_a_row_disagrees_with_does_not_pass_the_audit() {
    let mut ledger = books(4, &[("a", 2, 4, GuestOs::Linux)]);
    run_up(&mut ledger);
    assert_eq!(ledger.audit(), Ok(()));
    // As if somebody had changed a pool's row past the books.
    ledger.pools.get_mut(&pool("a")).expect("it is there").max = 3;
    assert!(ledger.audit().is_err_and(|why| why.contains("the index says")));
    ledger.pools.get_mut(&pool("a")).expect("it is there").max = 4;
    assert_eq!(ledger.audit(), Ok(()));
}
