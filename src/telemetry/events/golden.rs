//! What becomes of suspended VMs, and of those that resume from them.

use metrics::counter;
use tracing::{info, warn};

use super::names;
use crate::ids::PoolName;
use crate::runtime::{Fault, VmName};

/// A VM was suspended for others to be cloned from.
pub struct GoldenMade<'a> {
    pub vm: &'a VmName,
}
impl GoldenMade<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let pool = self.vm.pool.to_string();
        counter!(names::GOLDENS_MADE, "pool" => pool, "result" => "ok").increment(1);
        info!(vm = %self.vm, "vm suspended: its slot resumes from it");
    }
}

/// A VM could not be suspended.
pub struct GoldenFailed<'a> {
    pub vm: &'a VmName,
    pub fault: &'a Fault,
}
impl GoldenFailed<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let pool = self.vm.pool.to_string();
        counter!(names::GOLDENS_MADE, "pool" => pool, "result" => "error").increment(1);
        warn!(vm = %self.vm, fault = %self.fault, "vm not suspended: its slot boots");
    }
}

/// A VM that should have resumed did not, or not as itself: its slot boots the next one.
pub struct ResumeFellBack<'a> {
    pub pool: &'a PoolName,
    pub golden: &'a VmName,
    pub fault: &'a Fault,
}
impl ResumeFellBack<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let reason = self.fault.reason.as_str();
        counter!(names::RESUME_FALLBACKS, "pool" => self.pool.to_string(), "reason" => reason).increment(1);
        warn!(pool = %self.pool, golden = %self.golden, reason, fault = %self.fault, "resume fell back to a boot");
    }
}
