//! The rounds that the daemon makes: the janitor's over the host's VMs, and the disk's over what lies about. Both go by
//! interval; the janitor's also soon after each failure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{interval, sleep, timeout};

use crate::blocking;
use crate::build::actor::{BuildContext, folder};
use crate::clock::{UnixMicros, UnixMillis};
use crate::config::Config;
use crate::host;
use crate::ids::BuildId;
use crate::janitor;
use crate::janitor::disk::{self, Usage};
use crate::janitor::plan::Expected;
use crate::janitor::retain::{self, Item, Policy};
use crate::pool::snapshot::PoolSnapshot;
use crate::runtime::Runtime;
use crate::source::trees::{self, Trees};
use crate::store::{BuildRecord, Ended, StoreError};
use crate::telemetry::caching::CachesCounted;
use crate::telemetry::events::{Degraded, DiskMeasured, Removed, Stored};
use crate::vm::state::VmStateName;

/// The host is compared with the books this often, and the disk is looked through.
pub const EVERY: Duration = Duration::from_secs(60);
/// Images get old by the day.
const IMAGES_EVERY: Duration = Duration::from_secs(86_400);
/// A failure leaves work for a moment: what it takes down with it comes in the same round.
const AFTER_FAILURE: Duration = Duration::from_secs(5);
/// One round at most: a verb that hangs costs its own deadline each time, and the next round goes on.
const ROUND_MAX: Duration = Duration::from_secs(300);
/// A file of the spool that no build needs may be a source that is still coming in; one that nobody has written to for this
/// long is none.
const SPOOL_LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// What is kept of timelines from before the oldest build that is kept: it ran before it ended, and its VM was warm before
/// it ran.
const SPANS_SLACK: Duration = Duration::from_secs(2 * 86_400);
/// Rows of each table of timelines that are kept at most: the lives of some ten thousand VMs, in some 30 MB.
const SPANS_MAX: u32 = 150_000;
/// Trees that are kept at most: more than a team has branches.
const TREES_MAX: usize = 1000;

/// What the books say of each VM of ours.
pub fn expected(snapshot: &PoolSnapshot) -> BTreeMap<String, Expected> {
    let state = |word: &str| VmStateName::ALL.into_iter().find(|state| state.as_str() == word);
    let expected = |word: &str| match state(word) {
        Some(VmStateName::Warm | VmStateName::Leased) => Expected::Runs,
        Some(VmStateName::Cloned | VmStateName::Configured) => Expected::There,
        // Its process is on its way, and says itself when it ends.
        Some(VmStateName::Starting | VmStateName::Addressed | VmStateName::Answering) => Expected::There,
        Some(VmStateName::Adopting | VmStateName::Suspending | VmStateName::Suspended) => Expected::There,
        Some(VmStateName::Quarantined) => Expected::Quarantined,
        Some(VmStateName::Cloning | VmStateName::Removing) | None => Expected::Changing,
    };
    snapshot.vms.iter().map(|vm| (vm.name.clone(), expected(&vm.state))).collect()
}

/// The janitor, for as long as the daemon runs.
pub async fn janitor(runtime: Arc<dyn Runtime>, context: BuildContext) {
    let mut seen = context.pool.snapshot().failures;
    loop {
        let failed = async {
            let failed = context.pool.until(|snapshot| snapshot.failures != seen).await;
            sleep(AFTER_FAILURE).await;
            failed
        };
        timeout(EVERY, failed).await.ok();
        // From before the round: what fails during it is worth another one.
        seen = context.pool.snapshot().failures;
        let books = || expected(&context.pool.snapshot());
        match timeout(ROUND_MAX, janitor::reconcile(runtime.as_ref(), books)).await {
            Ok(Ok(round)) => {
                round.vanished.into_iter().for_each(|vm| context.pool.vanished(vm));
                round.quarantined.into_iter().for_each(|vm| context.pool.retry_quarantined(vm));
            }
            Ok(Err(fault)) => Degraded { what: "janitor", error: fault.to_string() }.emit(),
            Err(_) => Degraded { what: "janitor", error: format!("not done in {ROUND_MAX:?}") }.emit(),
        }
    }
}

/// Pulled images that nobody uses go, for as long as the daemon runs.
pub async fn images(runtime: Arc<dyn Runtime>, context: BuildContext) {
    let mut ticks = interval(IMAGES_EVERY);
    loop {
        ticks.tick().await;
        let age = context.config.get().runtime.image_keep_age;
        if let Err(fault) = runtime.prune_images(age.as_secs() / 86_400).await {
            Degraded { what: "pruning images", error: fault.to_string() }.emit();
        }
    }
}

/// The disk, for as long as the daemon runs.
pub async fn disk(context: BuildContext) {
    let mut ticks = interval(EVERY);
    // A build that is over does not change any more.
    let mut known = HashMap::new();
    loop {
        ticks.tick().await;
        if let Err(error) = disk_round(&context, &mut known).await {
            Degraded { what: "journal", error: error.to_string() }.emit();
        }
    }
}

async fn disk_round(context: &BuildContext, known: &mut HashMap<BuildId, u64>) -> Result<(), StoreError> {
    let config = &context.config.get();
    // Folders before the journal: a build is in the journal before it has one.
    let builds = config.home.builds();
    let there = look(move || disk::folders(&builds)).await;
    // The unfinished first: a build that ends in between is among the ended.
    let unfinished = context.store.unfinished().await?;
    let ended = context.store.ended().await?;
    let needed: BTreeSet<String> = unfinished.iter().map(|record| record.source.clone()).collect();
    let ids = unfinished.iter().map(|record| record.id).chain(ended.iter().map(|build| build.id)).collect();
    measure_builds(config, &ended, known).await;
    retain_caches(context).await;
    retain_builds(context, &ended, known).await?;
    retain_spans(context, &unfinished, &ended).await?;
    remove_strays(context, there, ids).await?;
    remove_spool(context, needed).await;
    remove_trees(context).await;
    remove_vm_logs(context).await;
    measure(config.clone()).await;
    Ok(())
}

/// `work` that may block; nothing where it panicked.
async fn look<T: Default + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    blocking::run(work).await.unwrap_or_default()
}

async fn measure_builds(config: &Config, ended: &[Ended], known: &mut HashMap<BuildId, u64>) {
    let ids: BTreeSet<BuildId> = ended.iter().map(|build| build.id).collect();
    known.retain(|id, _| ids.contains(id));
    let new: Vec<_> = ids.into_iter().filter(|id| !known.contains_key(id)).collect();
    let new: Vec<_> = new.into_iter().map(|id| (id, folder(config, id))).collect();
    let measured = look(move || {
        let measure = |(id, path): (BuildId, std::path::PathBuf)| (id, disk::usage(&path).used);
        new.into_iter().map(measure).collect::<Vec<_>>()
    });
    known.extend(measured.await);
}

/// How far free space is under the mark where things go early.
fn short_of(config: &Config) -> u64 {
    let free = host::disk(config.home.path()).map(|disk| disk.free);
    free.map_or(0, |free| config.host.disk_free_low.0.saturating_sub(free))
}

/// Caches go before builds do where the disk is short: they can be made again.
async fn retain_caches(context: &BuildContext) {
    let (config, caches) = (context.config.get(), context.caches.clone());
    if caches.entries().is_empty() {
        return CachesCounted { entries: 0 }.emit();
    }
    let evict = move || caches.evict(&config.caches, short_of(&config), UnixMillis::now());
    CachesCounted { entries: look(evict).await }.emit();
}

/// Ended builds go by policy, row and folder; what is owed stays.
async fn retain_builds(
    context: &BuildContext,
    ended: &[Ended],
    known: &HashMap<BuildId, u64>,
) -> Result<(), StoreError> {
    let config = &context.config.get();
    let (now, builds) = (UnixMillis::now(), &config.builds);
    let item = |build: &Ended| Item {
        bytes: known.get(&build.id).copied().unwrap_or(0),
        age: now.since(build.finished_ms),
        held: build.owed || context.live.get(build.id).is_some(),
    };
    let items: Vec<Item> = ended.iter().map(item).collect();
    let policy = Policy {
        count: builds.keep as usize,
        age: builds.keep_age,
        bytes: builds.keep_bytes.map(|b| b.0),
        short_of: short_of(config),
    };
    let gone: Vec<BuildId> = retain::plan(&items, &policy).into_iter().map(|n| ended[n].id).collect();
    for id in context.store.forget(gone).await? {
        remove_folder(config, id).await;
        Removed { what: Stored::Builds, name: &id.to_string(), bytes: known.get(&id).copied().unwrap_or(0) }
            .emit();
    }
    Ok(())
}

/// Timelines go with the builds that they tell of.
async fn retain_spans(
    context: &BuildContext,
    unfinished: &[BuildRecord],
    ended: &[Ended],
) -> Result<(), StoreError> {
    let over = ended.iter().map(|build| build.finished_ms);
    let under_way = unfinished.iter().map(|record| record.submitted_ms);
    let (now, keep) = (context.chronicle.anchor().now(), context.config.get().builds.keep_age);
    let since = spans_since(over.chain(under_way).min(), now, keep);
    context.store.forget_spans(since, SPANS_MAX).await.map(drop)
}

/// Since when timelines are kept: somewhat longer than the oldest build, and than builds may be.
fn spans_since(oldest: Option<UnixMillis>, now: UnixMicros, keep: Duration) -> UnixMicros {
    let oldest = oldest.map_or(now, UnixMicros::from).min(now);
    oldest.max(now.before(keep)).before(SPANS_SLACK)
}

/// Folders whose build the journal does not know: a crash came between forgetting it and removing them.
async fn remove_strays(
    context: &BuildContext,
    there: Vec<String>,
    known: BTreeSet<BuildId>,
) -> Result<(), StoreError> {
    for name in there {
        let Ok(id) = name.parse::<u64>().map(BuildId) else { continue };
        if id.to_string() == name && !known.contains(&id) && context.store.build(id).await?.is_none() {
            remove_folder(&context.config.get(), id).await;
            Removed { what: Stored::Builds, name: &name, bytes: 0 }.emit();
        }
    }
    Ok(())
}

/// Sources that no build needs, and that nobody writes to.
async fn remove_spool(context: &BuildContext, needed: BTreeSet<String>) {
    let spool = context.config.get().home.spool();
    let path = spool.clone();
    for file in look(move || disk::files(&path, UnixMillis::now())).await {
        if file.age >= SPOOL_LEFTOVER_AGE && !needed.contains(&file.name) {
            remove(&spool, Stored::Spool, &file).await;
        }
    }
}

/// Trees that nobody asked for lately, and what is none.
async fn remove_trees(context: &BuildContext) {
    let config = context.config.get();
    let kept = Trees::new(config.home.trees());
    let list = kept.clone();
    let there = look(move || list.list(UnixMillis::now())).await;
    let policy = config.api.source_keep_bytes.map(|max| Policy {
        count: TREES_MAX,
        age: config.api.source_keep_age,
        bytes: Some(max.0),
        short_of: short_of(&config),
    });
    let gone = trees::surplus(there, policy.as_ref(), SPOOL_LEFTOVER_AGE);
    for entry in gone {
        let (trees, name) = (kept.clone(), entry.name.clone());
        if blocking::io(move || trees.remove(&name)).await.is_ok() {
            Removed { what: Stored::Trees, name: &entry.name, bytes: entry.bytes }.emit();
        }
    }
}

/// What VMs printed, when they are long gone.
async fn remove_vm_logs(context: &BuildContext) {
    let config = context.config.get();
    let (path, log) = (config.home.vm_logs(), &config.log);
    let folder = path.clone();
    let files = look(move || disk::files(&folder, UnixMillis::now())).await;
    let snapshot = context.pool.snapshot();
    let lives = |name: &str| snapshot.vms.iter().any(|vm| name.strip_suffix(".log") == Some(&vm.name));
    let item = |file: &disk::Entry| Item { bytes: file.bytes, age: file.age, held: lives(&file.name) };
    let items: Vec<Item> = files.iter().map(item).collect();
    let policy = Policy {
        count: log.vm_keep as usize,
        age: log.vm_keep_age,
        bytes: log.vm_keep_bytes.map(|b| b.0),
        short_of: short_of(&config),
    };
    for n in retain::plan(&items, &policy) {
        remove(&path, Stored::Logs, &files[n]).await;
    }
}

async fn remove_folder(config: &Config, build: BuildId) {
    let folder = folder(config, build);
    blocking::io(move || std::fs::remove_dir_all(folder)).await.ok();
}

async fn remove(folder: &Path, what: Stored, file: &disk::Entry) {
    let path = folder.join(&file.name);
    if blocking::io(move || std::fs::remove_file(path)).await.is_ok() {
        Removed { what, name: &file.name, bytes: file.bytes }.emit();
    }
}

async fn measure(config: Arc<Config>) {
    let measured = look(move || {
        let home = &config.home;
        [
            (Stored::Builds, disk::usage(&home.builds())),
            (Stored::Spool, disk::usage(&home.spool())),
            (Stored::Trees, disk::usage(&home.trees())),
            (Stored::Vms, disk::usage(&config.runtime.tart_home)),
            (Stored::Logs, disk::usage(&home.vm_logs())),
            (Stored::Caches, disk::usage(&home.caches())),
        ]
        .to_vec()
    });
    for (what, Usage { used, apparent, .. }) in measured.await {
        DiskMeasured { what, used, apparent }.emit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timelines_are_kept_somewhat_longer_than_the_oldest_build_and_than_builds_may_be() {
        let day = |n: i64| UnixMicros(n * 86_400_000_000);
        let since = |oldest: Option<i64>| {
            let oldest = oldest.map(|day| UnixMillis(day * 86_400_000));
            spans_since(oldest, day(100), Duration::from_secs(30 * 86_400))
        };
        assert_eq!(since(Some(90)), day(88), "a build's VM was there before the build");
        assert_eq!(since(Some(5)), day(68), "it is kept only because it is owed");
        assert_eq!(since(None), day(98), "VMs have lives without builds");
        assert_eq!(since(Some(500)), day(98), "the clock was set back");
    }
}
