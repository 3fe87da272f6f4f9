//! macOS's limit of macOS guests, as it was met. It counts guests that nobody sees: those of other programs, and slots that
//! leaked, which nothing but a reboot or a kill of their process gives back. What is left runs on; a slow probe finds out
//! when there is room again.

use std::collections::BTreeSet;
use std::time::Duration;

use super::breaker;
use crate::clock::Instant;
use crate::ids::PoolName;
use crate::runtime::{Fault, Parsed, Reason, VmName};

/// The limit, if it was met before its time.
#[derive(Debug, Clone, Default)]
pub struct MacosLimit {
    met: Option<Met>,
}

/// A refusal.
#[derive(Debug, Clone)]
pub struct Met {
    /// The pool whose VM was refused.
    pub pool: PoolName,
    /// With whose VMs were named, and [`Reason::SlotLeaked`] where nobody's were.
    pub fault: Fault,
    /// macOS guests of ours that ran then: so many may run, for all that is known.
    pub room: u32,
    /// Slots that nobody holds and that are refused all the same.
    pub leaked: u32,
    pub failures: u32,
    pub next_try: Instant,
}

impl MacosLimit {
    /// macOS refused to start a VM of `pool` while `ours` ran, of `max` that it should allow. Returns the pause.
    pub fn refused(
        &mut self,
        pool: &PoolName,
        fault: &Fault,
        ours: &BTreeSet<String>,
        max: u32,
        now: Instant,
    ) -> Duration {
        let named = running_vms(&fault.text);
        let others: Vec<&str> = named.iter().filter(|name| !is_ours(name)).map(String::as_str).collect();
        let running = count(ours.iter().chain(&named).collect::<BTreeSet<_>>().len());
        let leaked = max.saturating_sub(running);
        let (reason, text) = if leaked > 0 {
            let text = format!("{running} of {max} macOS guests run, and macOS refuses one more");
            (Reason::SlotLeaked, text)
        } else if others.is_empty() {
            (Reason::SystemLimit, fault.text.clone())
        } else {
            (Reason::SystemLimit, format!("VMs that are not preheat's hold places: {}", others.join(", ")))
        };
        let failures = self.met.as_ref().map_or(0, |met| met.failures).saturating_add(1);
        let pause = breaker::pause(failures);
        self.met = Some(Met {
            pool: pool.clone(),
            fault: Fault::new(reason, fault.what.clone(), text),
            room: count(ours.len()),
            leaked,
            failures,
            next_try: now + pause,
        });
        pause
    }

    /// What was met.
    pub fn met(&self) -> Option<&Met> {
        self.met.as_ref()
    }

    /// Whether one more macOS guest may be started beside `in_use`: as many as are known to fit, and one more to find out
    /// when the pause is over.
    pub fn allows(&self, in_use: u32, now: Instant) -> bool {
        self.met.as_ref().is_none_or(|met| in_use < met.room || (in_use == met.room && now >= met.next_try))
    }

    /// When one more may be tried, if that is later than `now`.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        self.met.as_ref().map(|met| met.next_try).filter(|next| *next > now)
    }

    /// A macOS guest got warm, and `in_use` of ours run now. More than there was room for: the slot is back.
    pub fn warmed(&mut self, in_use: u32) {
        self.met.take_if(|met| in_use > met.room);
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn is_ours(name: &str) -> bool {
    matches!(VmName::parse(name), Parsed::Ours(_))
}

/// The VMs that Tart names when it is refused: `(other running VMs: a, b)`. It knows those of its own home only.
pub fn running_vms(text: &str) -> Vec<String> {
    const MARK: &str = "other running VMs:";
    let Some((_, rest)) = text.split_once(MARK) else { return Vec::new() };
    let list = rest.split_once(')').map_or(rest, |(list, _)| list);
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    fn refusal(named: &str) -> Fault {
        let text = format!("The number of VMs exceeds the system limit (other running VMs: {named})");
        Fault::new(Reason::SystemLimit, "tart run", text)
    }

    fn ours(slots: &[u16]) -> BTreeSet<String> {
        slots.iter().map(|slot| format!("preheat-mac-{slot}-1")).collect()
    }

    fn pool() -> PoolName {
        "mac".parse().expect("a name")
    }

    #[test]
    fn the_vms_that_tart_names_are_read() {
        assert_eq!(running_vms(&refusal("a, b-c").text), ["a", "b-c"]);
        assert_eq!(running_vms(&refusal("").text), Vec::<String>::new());
        assert_eq!(running_vms("Error Domain=VZErrorDomain Code=6"), Vec::<String>::new());
        assert_eq!(running_vms("other running VMs: cut o"), ["cut o"]);
    }

    #[test]
    fn fewer_than_the_limit_run_so_a_slot_leaked() {
        let (mut limit, now) = (MacosLimit::default(), clock::now());
        limit.refused(&pool(), &refusal("preheat-mac-0-1"), &ours(&[0]), 2, now);
        let met = limit.met().expect("met");
        assert_eq!((met.fault.reason, met.room, met.leaked), (Reason::SlotLeaked, 1, 1));
        assert!(limit.allows(0, now), "what is known to fit may run");
        assert!(!limit.allows(1, now) && limit.allows(1, met.next_try), "one more, slowly");
        assert!(!limit.allows(2, met.next_try), "and only one");
        limit.warmed(1);
        assert!(limit.met().is_some(), "that one ran before");
        limit.warmed(2);
        assert!(limit.met().is_none(), "the slot is back");
    }

    #[test]
    fn vms_of_others_that_hold_the_places_are_named_and_no_slot_leaked() {
        let (mut limit, now) = (MacosLimit::default(), clock::now());
        limit.refused(&pool(), &refusal("sandbox, preheat-mac-0-1"), &ours(&[0]), 2, now);
        let met = limit.met().expect("met");
        assert_eq!((met.fault.reason, met.room, met.leaked), (Reason::SystemLimit, 1, 0));
        assert!(met.fault.text.ends_with("hold places: sandbox"), "{}", met.fault.text);
    }

    proptest! {
        #[test]
        fn it_never_locks_up_and_never_waits_for_long(
            moves in proptest::collection::vec((0_u16..3, any::<bool>(), 0_u64..400), 1..50)
        ) {
            let (mut limit, mut now) = (MacosLimit::default(), clock::now());
            for (running, refused, seconds) in moves {
                let slots: Vec<u16> = (0..running).collect();
                if refused {
                    let pause = limit.refused(&pool(), &refusal(""), &ours(&slots), 2, now);
                    prop_assert!(pause <= Duration::from_secs(300));
                } else {
                    limit.warmed(u32::from(running));
                }
                if let Some(met) = limit.met() {
                    prop_assert!(limit.allows(met.room, met.next_try), "the next one is tried");
                    prop_assert!(met.room == 0 || limit.allows(met.room - 1, now), "what fits may run");
                }
                now += Duration::from_secs(seconds);
            }
        }
    }
}
