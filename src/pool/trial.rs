//! How an image does since a pool has it: whether a VM of it ever came up. Unlike trouble, which any VM's health mends, this is of
//! the image alone: VMs of the one before it may be well meanwhile.

use crate::runtime::{Fault, FaultKind, Reason};

/// What is known of a pool's image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trial {
    /// A VM of it got warm.
    pub proven: bool,
    /// VMs of it that did not come up before that.
    pub failures: u32,
    /// Why the last of them did not.
    pub last: Option<String>,
}

impl Trial {
    /// A VM of it got warm.
    pub fn warmed(&mut self) {
        *self = Self { proven: true, ..Self::default() };
    }

    /// A VM of it did not come up.
    pub fn failed(&mut self, fault: &Fault) {
        if !self.proven && may_be_the_images(fault) {
            self.failures = self.failures.saturating_add(1);
            self.last = Some(fault.to_string());
        }
    }
}

/// That a guest has no address, or cannot be reached there, is the host's as often as its own.
fn may_be_the_images(fault: &Fault) -> bool {
    match fault.kind() {
        FaultKind::Guest | FaultKind::Image => true,
        FaultKind::Host => matches!(fault.reason, Reason::NoAddress | Reason::NoRoute),
        FaultKind::Transient => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_fails_by_its_own_faults_until_a_vm_of_it_is_warm() {
        let fault = |reason| Fault::new(reason, "test", "as scripted");
        let mut trial = Trial::default();
        for reason in [Reason::DiskFull, Reason::VerbTimeout, Reason::SystemLimit] {
            trial.failed(&fault(reason));
        }
        assert_eq!(trial, Trial::default());
        trial.failed(&fault(Reason::SshTimeout));
        trial.failed(&fault(Reason::WarmupFailed));
        assert_eq!(trial.failures, 2);
        assert!(trial.last.as_ref().is_some_and(|why| why.contains("as scripted")));
        trial.warmed();
        trial.failed(&fault(Reason::SshTimeout));
        assert_eq!(trial, Trial { proven: true, failures: 0, last: None });
    }
}
