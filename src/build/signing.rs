//! The signing of one attempt: what it signs with is put into the guest between the source and the first step, and taken out
//! again between the last step and what leaves the guest, so that neither artifacts nor caches can carry it away. A guest
//! whose build fails is killed with it in it.

use std::time::Duration;

use super::pipeline::{Stop, Work};
use super::spec::BuildResult;
use crate::clock::Deadline;
use crate::guest::SignError;
use crate::signing::{Kit, vault};

/// What a build signed with is out of its guest by then, or goes with it.
const REMOVAL_MAX: Duration = Duration::from_secs(60);

/// What the attempt signs with; `None` when it does not.
pub(super) fn kit(work: &Work) -> Result<Option<Kit>, Stop> {
    let Some(signer) = &work.spec.signing else { return Ok(None) };
    let kit = vault::kit(signer, &work.secrets);
    kit.map(Some).ok_or_else(|| Stop::System("what the build signs with is not in the journal".into()))
}

/// Puts it into the guest.
pub(super) async fn install(work: &Work, kit: &Kit, deadline: Deadline) -> Result<(), Stop> {
    for line in work.spec.signing.iter().flat_map(|signer| signer.said()) {
        work.log.say(line).await;
    }
    work.channel.install_signing(kit, deadline).await.map_err(stop)
}

/// Sees to it that the next step can sign. Returns the path of the keychain.
pub(super) async fn unlock(work: &Work, kit: &Kit, deadline: Deadline) -> Result<String, Stop> {
    work.channel.unlock_signing(kit, deadline).await.map_err(stop)
}

/// Takes it out of the guest. What does not go is told and ends nothing: the guest goes in a moment.
pub(super) async fn remove(work: &Work, kit: &Kit) {
    if let Err(error) = work.channel.remove_signing(kit, Deadline::after(REMOVAL_MAX)).await {
        work.log.say(format!("signing: what was put into the guest is still there: {error}")).await;
    }
}

/// Variables for the steps; the keychain's path is known when it is unlocked.
pub(super) fn variables(work: &Work, keychain: Option<String>) -> Vec<(String, String)> {
    let of_signer = work.spec.signing.iter().flat_map(|signer| signer.variables());
    of_signer.chain(keychain.map(|path| ("PREHEAT_KEYCHAIN".to_owned(), path))).collect()
}

fn stop(error: SignError) -> Stop {
    match error {
        SignError::Guest(fault) => fault.into(),
        SignError::TimedOut { .. } => Stop::Verdict(BuildResult::Timeout, format!("signing: {error}")),
        SignError::Refused { hint, .. } => {
            let hint = hint.map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            Stop::Verdict(BuildResult::Failure, format!("signing: {error}{hint}"))
        }
    }
}
