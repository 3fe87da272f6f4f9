//! What is on the host against what is in the books. `plan` is the table; here it is carried out. Nothing that is not ours is
//! ever touched.

pub mod plan;

use std::collections::BTreeSet;

use crate::runtime::{Fault, Runtime};
use crate::telemetry::events::{JanitorActed, JanitorAction, Reconciled};
use plan::Action;

/// Compares once and removes the orphans. `expected` is asked after the host was listed, so that a VM that was registered
/// in between is not taken for an orphan: a VM is in the books before anything of it exists.
///
/// # Errors
/// When the host cannot be listed.
pub async fn reconcile(
    runtime: &dyn Runtime,
    expected: impl FnOnce() -> BTreeSet<String>,
) -> Result<(), Fault> {
    let found = runtime.list().await?;
    let expected = expected();
    for (row, action) in plan::plan(&expected, &found) {
        match action {
            Action::Keep | Action::LeaveAlone => {}
            Action::Report => {
                let detail = "the name starts like ours and is none of ours: left alone".to_owned();
                JanitorActed { name: &row.name, action: JanitorAction::Malformed, detail }.emit();
            }
            Action::Delete(vm) => report(&row.name, runtime.delete(&vm).await),
            Action::StopAndDelete(vm) => {
                let removed = match runtime.stop(&vm).await {
                    Ok(()) => runtime.delete(&vm).await,
                    Err(fault) => Err(fault),
                };
                report(&row.name, removed);
            }
        }
    }
    Reconciled { found: found.len() }.emit();
    Ok(())
}

fn report(name: &str, removed: Result<(), Fault>) {
    let (action, detail) = match removed {
        Ok(()) => (JanitorAction::Removed, "an orphan of ours".to_owned()),
        Err(fault) => (JanitorAction::RemovalFailed, fault.to_string()),
    };
    JanitorActed { name, action, detail }.emit();
}
