//! What an earlier daemon left on the host: VMs whose builds were at work are kept for them, the rest is taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::resume::{self, Fate};
use crate::build::spec::BuildSpec;
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::ids::{BuildId, Generation, PoolName};
use crate::janitor;
use crate::janitor::plan::Expected;
use crate::pool::ledger::{Adoption, Golden, Ledger};
use crate::runtime::{Listed, ListedState, Parsed, Runtime, VmName};
use crate::store::{BuildRecord, Store, StoreError, Values};
use crate::telemetry::events::{AdoptionEnd, Degraded, VmAdopted};

/// Clearing up what an earlier daemon left may hold up the start for so long; what is left then is the next round's.
const CLEARING_MAX: Duration = Duration::from_secs(120);

/// Pauses after each failure to list the host, before the last try.
const LIST_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// What a start finds.
#[derive(Debug)]
pub struct Found {
    /// The first generation that was never used.
    pub first: Generation,
    /// VMs that run and are their builds' still.
    pub adopt: Vec<Adoption>,
    /// Suspended VMs that others can be cloned from.
    pub keep: Vec<Golden>,
}

/// Takes away what an earlier daemon left but the VMs whose builds go on in them, and finds the first generation that was
/// never used.
///
/// # Errors
/// When the journal cannot be read.
pub async fn clear_up(config: &Config, runtime: &dyn Runtime, store: &Store) -> Result<Found, StoreError> {
    let known = store.generation().await?;
    let listed = list(runtime).await;
    let ours = listed.iter().filter_map(ours).map(|vm| vm.generation);
    let newest = ours.chain([known]).max().unwrap_or(known);
    let first = Generation(newest.0 + 1);

    let mut unfinished = Vec::new();
    for record in store.unfinished().await? {
        let (_, sealed) = unseal(store, &record).await?;
        unfinished.push((record, sealed));
    }
    let wanted = candidates(config, unfinished, &listed);
    let adopt = those_that_fit(config, runtime, first, wanted).await;
    let keep = goldens(config, store, &listed).await?;
    let kept = adopt.iter().map(|adoption| &adoption.vm).chain(keep.iter().map(|golden| &golden.vm));
    let kept: BTreeMap<String, Expected> = kept.map(|vm| (vm.to_string(), Expected::There)).collect();
    match timeout(CLEARING_MAX, janitor::reconcile(runtime, || kept.clone())).await {
        Ok(Ok(_)) => {}
        Ok(Err(fault)) => {
            let hint = fault.reason.hint().unwrap_or_default();
            Degraded { what: "clearing up", error: format!("{fault}; hint: {hint}") }.emit();
        }
        Err(_) => Degraded { what: "clearing up", error: "not done in time".into() }.emit(),
    }
    Ok(Found { first, adopt, keep })
}

/// Those that are written down, are still there, and have a place; one a slot. Whether their state is worth something still
/// is seen when their image is known.
async fn goldens(config: &Config, store: &Store, listed: &[Listed]) -> Result<Vec<Golden>, StoreError> {
    let suspended = listed.iter().filter(|row| row.state == ListedState::Suspended).filter_map(ours);
    let there: BTreeSet<VmName> = suspended.collect();
    let (mut keep, mut slots) = (Vec::new(), BTreeSet::new());
    for (name, key) in store.goldens().await?.into_iter().rev() {
        let known = there.iter().find(|vm| vm.to_string() == name).filter(|vm| {
            let pool = config.pools.get(&vm.pool);
            pool.is_some_and(|pool| pool.resume && vm.slot.0 < pool.max)
        });
        match known.filter(|vm| slots.insert((vm.pool.clone(), vm.slot))) {
            Some(vm) => keep.push(Golden { vm: vm.clone(), key }),
            None => store.forget_golden(name).await?,
        }
    }
    Ok(keep)
}

/// What is on the host; nothing when it cannot be listed. Builds depend on it, so one failure decides nothing.
async fn list(runtime: &dyn Runtime) -> Vec<Listed> {
    for pause in LIST_PAUSES {
        match runtime.list().await {
            Ok(listed) => return listed,
            Err(fault) => {
                Degraded { what: "listing what an earlier daemon left", error: fault.to_string() }.emit()
            }
        }
        sleep(pause).await;
    }
    runtime.list().await.unwrap_or_default()
}

fn ours(row: &Listed) -> Option<VmName> {
    match VmName::parse(&row.name) {
        Parsed::Ours(vm) => Some(vm),
        Parsed::NotOurs | Parsed::Malformed => None,
    }
}

/// VMs that run and whose build was at work in them.
fn candidates(
    config: &Config,
    unfinished: Vec<(BuildRecord, Option<String>)>,
    listed: &[Listed],
) -> Vec<(VmName, BuildId)> {
    let running = listed.iter().filter(|row| row.state == ListedState::Running).filter_map(ours);
    let builds: BTreeMap<String, BuildId> = unfinished
        .into_iter()
        .filter(|(record, sealed)| {
            resume::fate(record, &left(config, record, true, sealed.clone())) == Fate::GoOn
        })
        .filter_map(|(record, _)| Some((record.vm?, record.id)))
        .collect();
    running.filter_map(|vm| Some((vm.clone(), *builds.get(&vm.to_string())?))).collect()
}

/// A build's secrets, and what it signs with, or why they are lost.
///
/// # Errors
/// When the journal cannot be read.
pub async fn unseal(store: &Store, record: &BuildRecord) -> Result<(Values, Option<String>), StoreError> {
    let BuildSpec { secrets, signing, .. } = &record.spec;
    if secrets.is_empty() && signing.is_none() {
        return Ok((Values::new(), None));
    }
    match store.secrets(record.id).await {
        Ok(secrets) => Ok((secrets, None)),
        Err(StoreError::Seal(why)) => Ok((Values::new(), Some(why.to_string()))),
        Err(error) => Err(error),
    }
}

/// What is left of a build beside its record, after a restart.
pub fn left(config: &Config, record: &BuildRecord, guest: bool, sealed: Option<String>) -> resume::Left {
    resume::Left {
        source: config.home.spool().join(&record.source).is_file(),
        pool: config.pools.contains_key(&record.spec.pool),
        sealed,
        guest,
    }
}

/// Those that have a place in books that begin with them, as the pool's will.
async fn those_that_fit(
    config: &Config,
    runtime: &dyn Runtime,
    first: Generation,
    wanted: Vec<(VmName, BuildId)>,
) -> Vec<Adoption> {
    let mut books = Ledger::new(config, first);
    let mut images = BTreeMap::new();
    let mut fit = Vec::new();
    for (vm, build) in wanted {
        let image = match images.entry(vm.pool.clone()) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(unknown) => {
                let asked = image(config, runtime, unknown.key()).await;
                unknown.insert(asked)
            }
        };
        let adoption = image.clone().map(|image| Adoption { vm: vm.clone(), build, image });
        let adopted = adoption.and_then(|a| books.adopt(&a, UnixMillis::now()).map(|()| a));
        match adopted {
            Ok(adoption) => fit.push(adoption),
            Err(why) => VmAdopted { build, vm: &vm, result: AdoptionEnd::Refused, why: &why }.emit(),
        }
    }
    fit
}

async fn image(
    config: &Config,
    runtime: &dyn Runtime,
    pool: &PoolName,
) -> Result<crate::runtime::ImageInfo, String> {
    let known = config.pools.get(pool).ok_or_else(|| format!("there is no pool `{pool}` any more"))?;
    runtime.image(&known.base()).await.map_err(|fault| fault.to_string())
}
