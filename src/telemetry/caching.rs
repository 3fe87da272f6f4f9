//! What happens to caches, as typed events.

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tracing::{debug, info, warn};

use super::export::histogram_at_zero;
use super::names;
use crate::api::wire::{CacheRestore, CacheSave};
use crate::ids::{BuildId, PoolName};

/// Why an entry was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// By the bounds, or because the disk was short.
    Evicted,
    /// It did not fit its sum.
    Damaged,
    /// By an operator.
    Asked,
}

impl Removal {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Evicted, Self::Damaged, Self::Asked];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Damaged => "damaged",
            Self::Asked => "asked",
        }
    }
}

/// A build asked for a cache.
pub struct CacheAsked<'a> {
    pub build: BuildId,
    pub pool: &'a PoolName,
    pub key: &'a str,
    pub result: CacheRestore,
    pub bytes: u64,
    pub took: Duration,
    /// What went wrong; empty where nothing did.
    pub why: &'a str,
}
impl CacheAsked<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let (pool, result) = (self.pool.to_string(), self.result.as_str());
        counter!(names::CACHE_RESTORES, "pool" => pool.clone(), "result" => result).increment(1);
        let (build, key, bytes, took_ms) = (self.build, self.key, self.bytes, self.took.as_millis() as u64);
        match self.result {
            CacheRestore::Hit | CacheRestore::Prefix => {
                counter!(names::CACHE_RESTORED_BYTES, "pool" => pool.clone()).increment(bytes);
                histogram!(names::CACHE_RESTORE_SECONDS, "pool" => pool).record(self.took);
                debug!(%build, key, result, bytes, took_ms, "cache restored");
            }
            CacheRestore::Miss => debug!(%build, key, result, "no cache"),
            CacheRestore::Failed => warn!(%build, key, result, why = self.why, "cache not restored"),
        }
    }
}

/// A build had to save a cache.
pub struct CacheLeft<'a> {
    pub build: BuildId,
    pub pool: &'a PoolName,
    pub key: &'a str,
    pub result: CacheSave,
    pub bytes: u64,
    pub took: Duration,
    /// Why it was not; empty where it was.
    pub why: &'a str,
}
impl CacheLeft<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let (pool, result) = (self.pool.to_string(), self.result.as_str());
        counter!(names::CACHE_SAVES, "pool" => pool.clone(), "result" => result).increment(1);
        let (build, key, bytes, took_ms) = (self.build, self.key, self.bytes, self.took.as_millis() as u64);
        match self.result {
            CacheSave::Saved => {
                counter!(names::CACHE_SAVED_BYTES, "pool" => pool.clone()).increment(bytes);
                histogram!(names::CACHE_SAVE_SECONDS, "pool" => pool).record(self.took);
                info!(%build, key, bytes, took_ms, "cache saved");
            }
            CacheSave::Present => debug!(%build, key, "cache saved by another build"),
            CacheSave::Failed => info!(%build, key, why = self.why, "cache not saved"),
        }
    }
}

/// An entry was removed.
pub struct CacheRemoved<'a> {
    pub id: &'a str,
    pub project: &'a str,
    pub key: &'a str,
    pub bytes: u64,
    pub why: Removal,
}
impl CacheRemoved<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let why = self.why.as_str();
        counter!(names::CACHE_REMOVALS, "reason" => why).increment(1);
        let Self { id, project, key, bytes, .. } = self;
        match self.why {
            Removal::Damaged => warn!(id, project, key, bytes, why, "cache removed"),
            Removal::Evicted | Removal::Asked => debug!(id, project, key, bytes, why, "cache removed"),
        }
    }
}

/// How many entries there are.
pub struct CachesCounted {
    pub entries: usize,
}
impl CachesCounted {
    /// Sets the gauge.
    pub fn emit(self) {
        gauge!(names::CACHE_ENTRIES).set(self.entries as f64);
    }
}

/// Sets every label set that belongs to no pool to zero.
pub(super) fn zero() {
    gauge!(names::CACHE_ENTRIES).set(0.0);
    for reason in Removal::ALL {
        counter!(names::CACHE_REMOVALS, "reason" => reason.as_str()).absolute(0);
    }
}

/// Sets every label set of a pool to zero.
pub(super) fn zero_pool(pool: &str) {
    for result in CacheRestore::ALL {
        counter!(names::CACHE_RESTORES, "pool" => pool.to_owned(), "result" => result.as_str()).absolute(0);
    }
    for result in CacheSave::ALL {
        counter!(names::CACHE_SAVES, "pool" => pool.to_owned(), "result" => result.as_str()).absolute(0);
    }
    counter!(names::CACHE_RESTORED_BYTES, "pool" => pool.to_owned()).absolute(0);
    counter!(names::CACHE_SAVED_BYTES, "pool" => pool.to_owned()).absolute(0);
    histogram_at_zero(names::CACHE_RESTORE_SECONDS, &[("pool", pool)]);
    histogram_at_zero(names::CACHE_SAVE_SECONDS, &[("pool", pool)]);
}
