//! VMs that run since before this daemon did: into the books before anything is decided, and back to the builds that had
//! them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Failed, Me, PoolBooks};
use crate::clock::UnixMillis;
use crate::guest::Channel;
use crate::ids::BuildId;
use crate::pool::handle::{Lease, LeaseEvent, PoolHandle};
use crate::pool::ledger::{Adoption, Stage, VmRow};
use crate::runtime::VmName;
use crate::telemetry::events::{AdoptionEnd, VmAdopted};
use crate::vm::actor::Begin;
use crate::vm::state::VmStateName;

impl PoolBooks {
    /// VMs of an earlier daemon's builds come into the books before anything is decided from them.
    pub(super) async fn adopt_all(&mut self, me: &Me) -> Result<(), Failed> {
        for adoption in std::mem::take(&mut self.args.adopt) {
            match self.ledger.adopt(&adoption, UnixMillis::now()) {
                Ok(()) => {
                    self.adopted.insert(adoption.build, (adoption.vm.clone(), None));
                    let (vm, build) = (&adoption.vm, Some(adoption.build));
                    self.args.chronicle.vm(vm, VmStateName::Adopting.as_str(), build);
                    self.spawn_vm(me, &adoption.vm, Begin::Adoption).await?;
                }
                // The janitor finds it.
                Err(why) => {
                    let Adoption { vm, build, .. } = &adoption;
                    VmAdopted { build: *build, vm, result: AdoptionEnd::Refused, why: &why }.emit();
                }
            }
        }
        Ok(self.ledger.audit()?)
    }

    pub(super) fn adopted(&mut self, me: &Me, vm: &VmName, channel: Arc<dyn Channel>, address: IpAddr) {
        self.ledger.note_address(vm, address);
        // Without its build it is on its way out.
        if let Some(&VmRow { stage: Stage::Leased(build), .. }) = self.ledger.vm(vm) {
            self.channels.insert(vm.clone(), channel);
            VmAdopted { build, vm, result: AdoptionEnd::Adopted, why: "" }.emit();
            self.hand_over(me, build);
        }
    }

    /// To a build of an earlier daemon, what it had: as soon as it has asked and its VM was found again, or was not.
    pub(super) fn hand_over(&mut self, me: &Me, build: BuildId) {
        let Some(lessee) = self.lessees.get(&build).cloned() else { return };
        let Some((vm, lost)) = self.adopted.get(&build).cloned() else {
            return lessee(LeaseEvent::NotAdopted("its VM is not there any more".into()));
        };
        if let Some(why) = lost {
            self.adopted.remove(&build);
            self.mourners.insert(vm.clone(), lessee.clone());
            lessee(LeaseEvent::NotAdopted(why));
            if !self.handles.contains_key(&vm) {
                self.mourn(&vm);
            }
        } else if let Some(channel) = self.channels.remove(&vm) {
            self.adopted.remove(&build);
            let pool = PoolHandle::new(me.clone(), self.args.publish.subscribe());
            let lease = Lease { vm, channel, at_once: false, waited: Duration::ZERO, build, pool };
            lessee(LeaseEvent::Granted(lease));
        }
    }

    /// A VM is going that a build of an earlier daemon should have got back.
    pub(super) fn not_adopted(&mut self, me: &Me, vm: &VmName, build: Option<BuildId>, why: &str) {
        let Some((build, (_, lost))) =
            build.and_then(|build| self.adopted.get_mut(&build).map(|a| (build, a)))
        else {
            return;
        };
        *lost = Some(why.to_owned());
        VmAdopted { build, vm, result: AdoptionEnd::Failed, why }.emit();
        self.hand_over(me, build);
    }
}
