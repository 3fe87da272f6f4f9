//! What is on the host against what is in the books. `plan` is the table; here it is carried out. Nothing that is not ours is
//! ever touched. `disk` measures what lies about, and `retain` says what of it goes.

pub mod disk;
pub mod plan;
pub mod retain;

use std::collections::BTreeMap;

use crate::clock;
use crate::runtime::{Fault, Runtime, VmName};
use crate::telemetry::events::{JanitorActed, JanitorAction, Reconciled};
use plan::{Action, Books, Expected};

/// What a round came to that others must do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Round {
    /// Their process or their files are gone, and their actors do not know.
    pub vanished: Vec<VmName>,
    /// Their removal failed before and is to be tried again.
    pub quarantined: Vec<VmName>,
    /// Orphans that could not be removed. The next round tries again.
    pub stuck: usize,
}

/// Compares once and removes the orphans. `expected` is asked before and after the host is listed, so that what changes
/// meanwhile is known to.
///
/// # Errors
/// When the host cannot be listed.
pub async fn reconcile(
    runtime: &dyn Runtime,
    expected: impl Fn() -> BTreeMap<String, Expected>,
) -> Result<Round, Fault> {
    let began = clock::now();
    let before = expected();
    let found = runtime.list().await?;
    let books = Books { before, after: expected() };
    let mut round = Round::default();
    for (name, action) in plan::plan(&books, &found) {
        match action {
            Action::Keep | Action::LeaveAlone => {}
            Action::Report => {
                let detail = "the name starts like ours and is none of ours: left alone".to_owned();
                JanitorActed { name: &name, action: JanitorAction::Malformed, detail }.emit();
            }
            Action::Delete(vm) => round.stuck += report(&name, runtime.delete(&vm).await),
            Action::StopAndDelete(vm) => {
                let removed = match runtime.stop(&vm).await {
                    Ok(()) => runtime.delete(&vm).await,
                    Err(fault) => Err(fault),
                };
                round.stuck += report(&name, removed);
            }
            Action::Tell(vm) => {
                let detail = "it should run or be there, and is not".to_owned();
                JanitorActed { name: &name, action: JanitorAction::Vanished, detail }.emit();
                round.vanished.push(vm);
            }
            Action::TryAgain(vm) => {
                let detail = "it could not be removed before".to_owned();
                JanitorActed { name: &name, action: JanitorAction::TriedAgain, detail }.emit();
                round.quarantined.push(vm);
            }
        }
    }
    Reconciled { found: found.len(), stuck: round.stuck, took: began.elapsed() }.emit();
    Ok(round)
}

/// Says what came of a removal; 1 when it failed.
fn report(name: &str, removed: Result<(), Fault>) -> usize {
    let failed = usize::from(removed.is_err());
    let (action, detail) = match removed {
        Ok(()) => (JanitorAction::Removed, "an orphan of ours".to_owned()),
        Err(fault) => (JanitorAction::RemovalFailed, fault.to_string()),
    };
    JanitorActed { name, action, detail }.emit();
    failed
}
