//! The breaker by table, and over long random histories.

use proptest::prelude::*;

use super::*;
use crate::clock;
use crate::ids::{Generation, SlotId};

fn vm(generation: u64) -> VmName {
    VmName { pool: "a".parse().expect("a name"), slot: SlotId(0), generation: Generation(generation) }
}

fn fault(reason: Reason) -> Fault {
    Fault::new(reason, "test", "as scripted")
}

#[test]
fn a_fault_of_the_hosts_opens_it_and_one_warm_vm_closes_it() {
    let (mut breaker, now) = (Breaker::new(4), clock::now());
    assert_eq!(breaker.failed(Some(&vm(1)), &fault(Reason::DiskFull), now), Verdict::Opened(PAUSE_FIRST));
    assert_eq!(
        breaker.failed(Some(&vm(2)), &fault(Reason::DiskFull), now),
        Verdict::Known,
        "it was on its way"
    );
    assert!(!breaker.allows(now) && breaker.allows(now + PAUSE_FIRST));
    assert_eq!(breaker.wake(now), Some(now + PAUSE_FIRST));
    breaker.begun(&vm(3));
    assert!(!breaker.allows(now + PAUSE_MAX), "one probe at a time");
    breaker.warmed();
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[test]
fn the_pauses_of_probes_that_fail_double_up_to_five_minutes() {
    let (mut breaker, mut now) = (Breaker::new(4), clock::now());
    let mut seconds = Vec::new();
    for n in 0..9 {
        breaker.begun(&vm(n));
        match breaker.failed(Some(&vm(n)), &fault(Reason::HostKey), now) {
            Verdict::Opened(pause) => {
                seconds.push(pause.as_secs());
                now += pause;
            }
            other @ (Verdict::Pool | Verdict::Known) => panic!("{other:?}"),
        }
    }
    assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
}

#[test]
fn one_dead_guest_that_cannot_be_reached_is_not_the_hosts_fault_and_three_are() {
    for reason in [Reason::NoAddress, Reason::NoRoute] {
        let (mut breaker, now) = (Breaker::new(4), clock::now());
        assert_eq!(breaker.failed(Some(&vm(1)), &fault(reason), now), Verdict::Pool);
        assert_eq!(breaker.failed(Some(&vm(2)), &fault(reason), now), Verdict::Pool);
        breaker.warmed();
        assert_eq!(breaker.failed(Some(&vm(3)), &fault(reason), now), Verdict::Pool);
        assert_eq!(breaker.failed(Some(&vm(4)), &fault(reason), now), Verdict::Pool);
        assert_eq!(breaker.failed(Some(&vm(5)), &fault(reason), now), Verdict::Opened(PAUSE_FIRST));
    }
}

#[test]
fn too_many_failures_of_any_kind_open_it_and_a_failing_probe_keeps_it_open() {
    let (mut breaker, now) = (Breaker::new(1), clock::now());
    for n in 0..FAILURES_MIN as u64 {
        assert_eq!(breaker.failed(Some(&vm(n)), &fault(Reason::SshTimeout), now), Verdict::Pool);
    }
    let opened = breaker.failed(Some(&vm(99)), &fault(Reason::SshTimeout), now);
    assert_eq!(opened, Verdict::Opened(PAUSE_FIRST));
    assert_eq!(breaker.opened().map(Opened::label), Some(INTENSITY));
    breaker.begun(&vm(100));
    let again = breaker.failed(Some(&vm(100)), &fault(Reason::SshTimeout), now + PAUSE_FIRST);
    assert_eq!(again, Verdict::Opened(PAUSE_FIRST * 2));
}

#[test]
fn failures_that_are_spread_out_are_borne() {
    let (mut breaker, mut now) = (Breaker::new(1), clock::now());
    for n in 0..100 {
        assert_eq!(breaker.failed(Some(&vm(n)), &fault(Reason::GuestStopped), now), Verdict::Pool);
        now += Duration::from_secs(10);
    }
}

#[test]
fn a_probe_that_fails_by_its_image_leaves_the_host_in_peace_and_its_streak_in_memory() {
    let (mut breaker, now) = (Breaker::new(4), clock::now());
    breaker.failed(Some(&vm(1)), &fault(Reason::DiskFull), now);
    breaker.begun(&vm(2));
    assert_eq!(breaker.failed(Some(&vm(2)), &fault(Reason::WarmupFailed), now), Verdict::Pool);
    assert_eq!(breaker.state(), BreakerState::Closed);
    breaker.mended();
    let again = breaker.failed(Some(&vm(3)), &fault(Reason::DiskFull), now);
    assert_eq!(again, Verdict::Opened(PAUSE_FIRST * 2), "a VM that was warm all the while proves nothing");
    breaker.mended();
    assert_eq!(breaker.state(), BreakerState::Open);
    breaker.warmed();
    breaker.mended();
    assert_eq!(breaker.failed(Some(&vm(4)), &fault(Reason::DiskFull), now), Verdict::Opened(PAUSE_FIRST));
}

#[test]
fn a_program_that_is_there_again_is_found_by_asking_it() {
    let (mut breaker, now) = (Breaker::new(4), clock::now());
    let missing = fault(Reason::ProgramMissing);
    assert_eq!(breaker.failed(None, &missing, now), Verdict::Opened(PAUSE_FIRST));
    assert_eq!(breaker.failed(None, &missing, now), Verdict::Known);
    assert_eq!(breaker.failed(None, &missing, now + PAUSE_FIRST), Verdict::Opened(PAUSE_FIRST * 2));
    breaker.answered();
    assert_eq!(breaker.state(), BreakerState::Closed);
}

#[derive(Debug, Clone)]
enum Move {
    Wait(u16),
    Begin,
    /// The n-th of those that are on their way.
    Fail(usize, Reason),
    End(usize),
    Warm(usize),
    Heal,
    Ask(Option<Reason>),
}

fn any_move() -> impl Strategy<Value = Move> {
    let reason = || proptest::sample::select(Reason::ALL.to_vec());
    prop_oneof![
        (0_u16..400).prop_map(Move::Wait),
        Just(Move::Begin),
        Just(Move::Begin),
        (any::<usize>(), reason()).prop_map(|(n, r)| Move::Fail(n, r)),
        any::<usize>().prop_map(Move::End),
        any::<usize>().prop_map(Move::Warm),
        Just(Move::Heal),
        proptest::option::of(reason()).prop_map(Move::Ask),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_there_is_one_probe_at_most_and_it_comes_back(
        moves in proptest::collection::vec(any_move(), 0..200)
    ) {
        let (mut breaker, mut now) = (Breaker::new(2), clock::now());
        // With each, whether it began while the breaker was not closed.
        let mut under_way: Vec<(VmName, bool)> = Vec::new();
        let mut generation = 0;
        for next in moves {
            let count = under_way.len();
            let nth = |n: usize| n.checked_rem(count);
            match next {
                Move::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                Move::Begin => {
                    if breaker.allows(now) {
                        generation += 1;
                        let probe = breaker.state() != BreakerState::Closed;
                        if probe {
                            for (_, old) in &under_way {
                                prop_assert!(!old, "a second probe");
                            }
                        }
                        breaker.begun(&vm(generation));
                        under_way.push((vm(generation), probe));
                    }
                }
                Move::Fail(n, reason) => {
                    if let Some(n) = nth(n) {
                        let (name, _) = under_way.remove(n);
                        breaker.failed(Some(&name), &fault(reason), now);
                    }
                }
                Move::End(n) => {
                    if let Some(n) = nth(n) {
                        breaker.ended(&under_way.remove(n).0);
                    }
                }
                Move::Warm(n) => {
                    if let Some(n) = nth(n) {
                        under_way.remove(n);
                        breaker.warmed();
                        prop_assert_eq!(breaker.state(), BreakerState::Closed);
                    }
                }
                Move::Heal => breaker.mended(),
                Move::Ask(Some(reason)) => {
                    breaker.failed(None, &fault(reason), now);
                }
                Move::Ask(None) => breaker.answered(),
            }
            if breaker.state() == BreakerState::Closed {
                // Whatever began as a probe is one VM among others now.
                under_way.iter_mut().for_each(|(_, probe)| *probe = false);
            }
            if let Some(opened) = breaker.opened() {
                prop_assert!(opened.next_try <= now + PAUSE_MAX, "a pause without a bound");
            }
        }
        // With nothing on its way, a probe may begin after the longest pause, and a success ends it.
        for (name, _) in under_way.drain(..) {
            breaker.ended(&name);
        }
        prop_assert!(breaker.allows(now + PAUSE_MAX));
        breaker.begun(&vm(generation + 1));
        breaker.warmed();
        prop_assert!(breaker.allows(now) && breaker.opened().is_none());
    }
}
