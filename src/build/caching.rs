//! The caches of one attempt: restored between the source and the first step, saved when everything has succeeded.
//!
//! Neither decides how a build ends. What cannot be restored is a miss; what cannot be saved is not saved; both are said in
//! the log. A restore counts against the build's time, because its steps wait for it. A save does not: what the user bounded
//! is over by then, and the success is on disk before the guest hears of it, so that no crash in between runs the build again.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout_at;
use tokio_util::task::AbortOnDropHandle;

use super::pipeline::{Progress, Work};
use super::project::caches::from_home;
use super::recorder::Written;
use crate::api::wire::{CacheRestore, CacheSave, CacheSavedView, CacheView};
use crate::blocking;
use crate::cache::Cache;
use crate::cache::shelf::{Content, Found, Kept, Scope, Shelf};
use crate::clock::{self, Deadline, UnixMillis};
use crate::config::{ByteSize, Caches};
use crate::guest::{PutCache, TakeCache, TakeError};
use crate::host;
use crate::ids::BuildId;
use crate::telemetry::caching::{CacheAsked, CacheLeft, CachesCounted};

/// What an attempt needs for its caches.
#[derive(Debug, Clone)]
pub struct CacheRoom {
    pub build: BuildId,
    pub shelf: Shelf,
    pub bounds: Caches,
    /// Where the disk is measured, and what stays free on it.
    pub home: PathBuf,
    pub disk_free_min: u64,
}

/// What there is for each cache of a build. It is looked for and read on this host while the source goes into the guest.
pub(super) struct Sought(AbortOnDropHandle<Vec<(Option<Found>, usize)>>);

/// Looks for a build's caches; `None` for a build without.
pub(super) fn seek(work: &Work) -> Option<Sought> {
    if work.spec.caches.is_empty() {
        return None;
    }
    let (shelf, spec) = (work.caches.shelf.clone(), work.spec.clone());
    let look = move || {
        let find = |cache: &Cache| {
            let scope = Scope { project: &spec.project, pool: spec.pool.as_str(), paths: &cache.paths };
            shelf.find_whole(&scope, &cache.key, &cache.restore_keys)
        };
        spec.caches.iter().map(find).collect()
    };
    Some(Sought(AbortOnDropHandle::new(tokio::spawn(async move {
        blocking::run(look).await.unwrap_or_default()
    }))))
}

/// Restores what was found, by `deadline` or the caches' own, whichever is first. For waits that can be cancelled.
pub(super) async fn restore(work: &Work, sought: Sought, deadline: Deadline) -> Vec<CacheView> {
    let deadline = Deadline::after(work.caches.bounds.timeout).min(deadline);
    let found = timeout_at(deadline.instant(), sought.0).await;
    let mut found = found.ok().and_then(Result::ok).unwrap_or_default().into_iter();
    let mut views = Vec::new();
    for cache in &work.spec.caches {
        let (found, damaged) = found.next().unwrap_or_default();
        let restored = restore_one(work, cache, found, damaged, deadline).await;
        work.log.say(restored.said()).await;
        views.push(restored.told(work));
    }
    views
}

/// How one cache was restored.
struct Restored<'a> {
    cache: &'a Cache,
    result: CacheRestore,
    from: Option<String>,
    bytes: u64,
    took: Duration,
    why: Option<String>,
}

async fn restore_one<'a>(
    work: &Work,
    cache: &'a Cache,
    found: Option<Found>,
    damaged: usize,
    deadline: Deadline,
) -> Restored<'a> {
    let began = clock::now();
    let none = |result, why| Restored { cache, result, from: None, bytes: 0, took: began.elapsed(), why };
    let Some(found) = found else {
        let why = (damaged > 0).then(|| "what was saved is damaged, and was removed".to_owned());
        let result = if damaged > 0 { CacheRestore::Failed } else { CacheRestore::Miss };
        return none(result, why);
    };
    let paths = cache.paths.iter().map(|path| from_home(path)).collect();
    let put = PutCache { tar: found.tar.clone(), paths, deadline };
    match work.channel.put_cache(&put).await {
        Ok(bytes) => {
            let (shelf, id) = (work.caches.shelf.clone(), found.entry.id.clone());
            blocking::run(move || shelf.note_use(&id, UnixMillis::now())).await.ok();
            let (result, from) = match found.exact {
                true => (CacheRestore::Hit, None),
                false => (CacheRestore::Prefix, Some(found.entry.key)),
            };
            Restored { cache, result, from, bytes, took: began.elapsed(), why: None }
        }
        Err(fault) => none(CacheRestore::Failed, Some(format!("it could not be restored: {}", fault.text))),
    }
}

impl Restored<'_> {
    /// Its line in the log.
    fn said(&self) -> String {
        let key = &self.cache.key;
        let amount = || format!("{} in {}", size(self.bytes), seconds(self.took));
        match (self.result, &self.from, &self.why) {
            (CacheRestore::Hit, _, _) => format!("cache {key}: hit, {}", amount()),
            (CacheRestore::Prefix, from, _) => {
                format!("cache {key}: restored from {}, {}", from.as_deref().unwrap_or_default(), amount())
            }
            (CacheRestore::Miss | CacheRestore::Failed, _, Some(why)) => format!("cache {key}: miss: {why}"),
            (CacheRestore::Miss | CacheRestore::Failed, _, None) => format!("cache {key}: miss"),
        }
    }

    fn told(self, work: &Work) -> CacheView {
        let Self { cache, result, from, bytes, took, why } = self;
        let why = why.unwrap_or_default();
        let (build, pool) = (work.caches.build, &work.spec.pool);
        CacheAsked { build, pool, key: &cache.key, result, bytes, took, why: &why }.emit();
        CacheView { key: cache.key.clone(), restore: result, from, bytes, took_ms: millis(took), saved: None }
    }
}

/// Saves the caches whose keys the shelf does not have, when everything has succeeded. That is on disk first, and a cancel
/// from then on only cuts the saving short.
pub(super) async fn save(work: &Work, report: impl Fn(Progress)) {
    let due: Vec<&Cache> = work.spec.caches.iter().filter(|cache| !is_there(work, cache)).collect();
    if work.caches.bounds.bytes_max.0 == 0 {
        for cache in due {
            work.log
                .say(format!("cache {}: not saved: this host keeps none (caches.bytes_max)", cache.key))
                .await;
        }
        return;
    }
    if due.is_empty() {
        return;
    }
    let deadline = Deadline::after(work.caches.bounds.timeout);
    if !decided(&report, deadline).await {
        return;
    }
    report(Progress::Began { phase: "cache_save", step: None });
    let mut saved = Vec::new();
    for cache in due {
        let began = clock::now();
        let kept = tokio::select! {
            biased;
            () = work.cancel.cancelled() => Err("the build was cancelled while it saved".to_owned()),
            kept = save_one(work, cache, deadline) => kept,
        };
        let took = began.elapsed();
        work.log.say(said_of(cache, &kept, took)).await;
        saved.push((cache.key.clone(), told(work, cache, kept, took)));
    }
    report(Progress::Ended { exit_code: None });
    report(Progress::CachesSaved(saved));
}

fn scope<'a>(work: &'a Work, cache: &'a Cache) -> Scope<'a> {
    Scope { project: &work.spec.project, pool: work.spec.pool.as_str(), paths: &cache.paths }
}

fn is_there(work: &Work, cache: &Cache) -> bool {
    work.caches.shelf.has(&scope(work, cache), &cache.key)
}

/// Whether the success is on disk. Not when somebody cancelled in time.
async fn decided(report: impl Fn(Progress), deadline: Deadline) -> bool {
    let (kept, answer) = oneshot::channel::<Written>();
    report(Progress::Succeeded { kept });
    let written = async {
        match answer.await {
            Ok(written) => written.wait().await,
            Err(_) => false,
        }
    };
    timeout_at(deadline.instant(), written).await.unwrap_or(false)
}

/// What was saved: `None` when another build was first; and the paths that were not there.
type Saved = Result<(Option<u64>, Vec<String>), String>;

async fn save_one(work: &Work, cache: &Cache, deadline: Deadline) -> Saved {
    let host = |e: std::io::Error| format!("this host cannot write it: {e}");
    let (bytes_max, why) = room(&work.caches);
    let shelf = work.caches.shelf.clone();
    let partial = blocking::io(move || shelf.begin()).await.map_err(host)?;
    let paths = cache.paths.iter().map(|path| from_home(path)).collect();
    let take = TakeCache { paths, into: partial.path().to_owned(), bytes_max, deadline };
    let taken = work.channel.take_cache(&take).await.map_err(|error| match error {
        TakeError::Missing { .. } => format!("none of its paths is there ({})", cache.paths.join(", ")),
        TakeError::TooLarge { .. } => format!("it is larger than {} ({why})", ByteSize(bytes_max)),
        TakeError::Hostile { .. } => error.to_string(),
        TakeError::Host(e) => host(e),
        TakeError::Guest(fault) => fault.text,
    })?;
    let shown = |place: &String| cache.paths.iter().find(|path| from_home(path) == *place).cloned();
    let absent = taken.absent.iter().filter_map(shown).collect();
    let (room, spec, cache, bytes) = (work.caches.clone(), work.spec.clone(), cache.clone(), taken.bytes);
    let kept = blocking::io(move || {
        let scope = Scope { project: &spec.project, pool: spec.pool.as_str(), paths: &cache.paths };
        let (now, content) = (UnixMillis::now(), Content { bytes: taken.bytes, sha256: &taken.sha256 });
        let kept = room.shelf.keep(partial, content, &scope, &cache.key, (room.build, now))?;
        CachesCounted { entries: room.shelf.evict(&room.bounds, 0, now) }.emit();
        Ok(kept)
    });
    match kept.await.map_err(host)? {
        Kept::Saved(_) => Ok((Some(bytes), absent)),
        Kept::Present => Ok((None, absent)),
    }
}

/// How large a cache may be now, and whose bound that is.
fn room(room: &CacheRoom) -> (u64, &'static str) {
    let free = host::disk(&room.home).map_or(u64::MAX, |disk| disk.free.saturating_sub(room.disk_free_min));
    let bounds = [
        (room.bounds.entry_max.0, "caches.entry_max"),
        (room.bounds.bytes_max.0, "caches.bytes_max"),
        (free, "what host.disk_free_min leaves of the host's disk"),
    ];
    bounds.into_iter().min_by_key(|(bytes, _)| *bytes).unwrap_or_default()
}

fn said_of(cache: &Cache, saved: &Saved, took: Duration) -> String {
    let key = &cache.key;
    match saved {
        Ok((Some(bytes), absent)) => {
            let amount = format!("{} in {}", size(*bytes), seconds(took));
            let without = match absent.as_slice() {
                [] => String::new(),
                absent => format!(", without {}, which is not there", absent.join(", ")),
            };
            format!("cache {key}: saved, {amount}{without}")
        }
        Ok((None, _)) => format!("cache {key}: not saved: another build saved it first"),
        Err(why) => format!("cache {key}: not saved: {why}"),
    }
}

fn told(work: &Work, cache: &Cache, saved: Saved, took: Duration) -> CacheSavedView {
    let (result, bytes, why) = match saved {
        Ok((Some(bytes), _)) => (CacheSave::Saved, bytes, None),
        Ok((None, _)) => (CacheSave::Present, 0, None),
        Err(why) => (CacheSave::Failed, 0, Some(why)),
    };
    let (build, pool) = (work.caches.build, &work.spec.pool);
    let text = why.as_deref().unwrap_or_default();
    CacheLeft { build, pool, key: &cache.key, result, bytes, took, why: text }.emit();
    CacheSavedView { result, bytes, took_ms: millis(took), why }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// `12 MB`, `0.4 MB`, `812 B`.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}
