//! How the guests of builds are, as typed events. Figures are by slot, which one build has at a time, so that their number is
//! known when the daemon starts.

use metrics::{counter, gauge};
use tracing::{debug, warn};

use super::names;
use crate::guest::Look;
use crate::ids::BuildId;
use crate::runtime::VmName;

/// The figures of a slot.
const FIGURES: [&str; 5] = [
    names::GUEST_CPU,
    names::GUEST_MEMORY_USED,
    names::GUEST_MEMORY,
    names::GUEST_DISK_USED,
    names::GUEST_DISK_FREE,
];

/// A build's guest was looked at.
pub struct GuestLooked<'a> {
    pub build: BuildId,
    pub vm: &'a VmName,
    pub look: Look,
    /// Its disk has become low.
    pub low: bool,
}
impl GuestLooked<'_> {
    /// Shows it. What the guest does not say stays as it was.
    pub fn emit(self) {
        let set = |figure, value: f64| set(figure, self.vm.pool.as_str(), self.vm.slot.0, value);
        if let Some(percent) = self.look.cpu_percent {
            set(names::GUEST_CPU, f64::from(percent) / 100.0);
        }
        if let Some((used, all)) = self.look.memory {
            set(names::GUEST_MEMORY_USED, used as f64);
            set(names::GUEST_MEMORY, all as f64);
        }
        if let Some((used, free)) = self.look.disk {
            set(names::GUEST_DISK_USED, used as f64);
            set(names::GUEST_DISK_FREE, free as f64);
        }
        if self.low {
            counter!(names::GUEST_DISK_LOW, "pool" => self.vm.pool.to_string()).increment(1);
            warn!(build = %self.build, vm = %self.vm, "the disk of a build's guest is nearly full");
        } else {
            debug!(build = %self.build, vm = %self.vm, look = ?self.look, "guest looked at");
        }
    }
}

/// A build has left its guest.
pub struct GuestLeft<'a> {
    pub vm: &'a VmName,
}
impl GuestLeft<'_> {
    /// Shows that nothing is known of the slot any more.
    pub fn emit(self) {
        FIGURES.into_iter().for_each(|figure| set(figure, self.vm.pool.as_str(), self.vm.slot.0, 0.0));
    }
}

/// Every label set of a pool, at zero.
pub(super) fn zero_pool(pool: &str, slots: u16) {
    counter!(names::GUEST_DISK_LOW, "pool" => pool.to_owned()).absolute(0);
    for slot in 0..slots {
        // A build may be in it when the configuration changes.
        FIGURES.into_iter().for_each(|figure| {
            gauge!(figure, "pool" => pool.to_owned(), "slot" => slot.to_string()).increment(0.0);
        });
    }
}

fn set(figure: &'static str, pool: &str, slot: u16, value: f64) {
    gauge!(figure, "pool" => pool.to_owned(), "slot" => slot.to_string()).set(value);
}
