//! What becomes of a build that the journal has without a result when the daemon starts.

use crate::build::spec::BuildResult;
use crate::clock::UnixMillis;
use crate::store::BuildRecord;

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It waits for a VM, again or still.
    Again,
    /// It cannot be run: it ends as the system's error, for this reason.
    Over(String),
}

/// Decides. `source_there`: its source is still in the spool; `pool_there`: its pool is still configured; `sealed`: why the
/// journal does not give its secrets, if so.
pub fn fate(record: &BuildRecord, source_there: bool, pool_there: bool, sealed: Option<&str>) -> Fate {
    if !pool_there {
        return Fate::Over(format!("there is no pool `{}` any more", record.spec.pool));
    }
    if !source_there {
        return Fate::Over("its source is gone from the spool".into());
    }
    if let Some(why) = sealed {
        let names = record.spec.secrets.join("`, `");
        return Fate::Over(format!(
            "the daemon was restarted, and the values of `{names}` are lost: {why}; submit it again"
        ));
    }
    if record.running && record.attempt > record.spec.retries {
        return Fate::Over("the daemon ended under it, and no retries are left".into());
    }
    Fate::Again
}

/// The record of a build that is over for `reason`.
pub fn ended(mut record: BuildRecord, reason: String, at: UnixMillis) -> BuildRecord {
    record.running = false;
    record.result = Some(BuildResult::Error);
    record.reason = Some(reason);
    record.finished_ms = Some(at);
    record
}
