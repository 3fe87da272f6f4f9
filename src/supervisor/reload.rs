//! Another configuration while the daemon runs: read from where the first one came from, compared with the one in force, and
//! put into force as far as that goes without a restart. One with a mistake changes nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::images::Images;
use crate::api::service::Refused;
use crate::api::wire::{ChangeView, ConfigView, ReloadView};
use crate::blocking;
use crate::clock::UnixMillis;
use crate::config::changes::{self, Changes};
use crate::config::{Config, Live, Loaded, Mistakes};
use crate::pool::handle::PoolHandle;
use crate::telemetry::events::{ConfigRefused, ConfigReloaded};
use crate::telemetry::export::Exporter;

/// Reads every layer anew.
pub type Read = Arc<dyn Fn() -> Result<Loaded, Mistakes> + Send + Sync>;
/// Told of each configuration that is put into force: what is no actor's.
pub type Follower = Box<dyn Fn(&Config) + Send + Sync>;

/// Where the configuration comes from, and who follows it beside the rooms that ask for it.
pub struct Source {
    /// The one that the daemon started with.
    pub first: Loaded,
    pub read: Read,
    pub followers: Vec<Follower>,
}

/// What a reload concerns.
pub struct Parts<'a> {
    pub live: &'a Live,
    pub pool: &'a PoolHandle,
    pub exporter: &'a Exporter,
    /// What images' names mean, which no file says.
    pub images: &'a Images,
    /// For the pool's answer.
    pub limit: Duration,
}

/// What is remembered from one reload to the next.
#[derive(Default)]
pub struct Reloads {
    source: OnceLock<(Read, Vec<Follower>)>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    /// What is in force, as it was written.
    loaded: Option<Loaded>,
    loaded_ms: Option<UnixMillis>,
    refused: Option<(UnixMillis, Vec<String>)>,
}

impl Reloads {
    /// Says where to read from. Only the first time counts.
    pub fn read_from(&self, source: Source) {
        let Source { first, read, followers } = source;
        if self.source.set((read, followers)).is_ok() {
            let mut last = self.last();
            (last.loaded, last.loaded_ms) = (Some(first), Some(UnixMillis::now()));
        }
    }

    /// How the last one went.
    pub fn view(&self) -> ConfigView {
        let last = self.last();
        let refused = last.refused.as_ref();
        ConfigView {
            loaded_ms: last.loaded_ms,
            files: last
                .loaded
                .iter()
                .flat_map(|l| &l.files)
                .map(|f: &PathBuf| f.display().to_string())
                .collect(),
            refused_ms: refused.map(|(at, _)| *at),
            mistakes: refused.map(|(_, mistakes)| mistakes.clone()).unwrap_or_default(),
        }
    }

    /// Reads, compares, puts into force. One at a time: the caller sees to that.
    ///
    /// # Errors
    /// Every mistake, and then nothing has changed.
    pub async fn reload(&self, parts: Parts<'_>) -> Result<ReloadView, Refused> {
        let Some((read, followers)) = self.source.get() else {
            return Err(Refused::Internal("nobody said where the configuration comes from".into()));
        };
        let read = read.clone();
        let loaded = blocking::run(move || read()).await;
        let mut loaded =
            loaded.map_err(|e| Refused::Internal(e.to_string()))?.map_err(|m| self.refused(&m))?;
        parts.images.apply(&mut loaded.config);
        let old = parts.live.get();
        let changes = changes::diff(&old, &loaded.config);
        let config = Arc::new(changes::held_back(&old, loaded.config.clone()));
        // The pool first: whoever submits a build for a pool that is new finds it there.
        let followed = parts.pool.follow(config.clone(), changes.pools_to_roll(), parts.limit).await;
        let builds_ended = followed.ok_or_else(|| Refused::Internal("the pool does not answer".into()))?;
        parts.exporter.follow(&config);
        followers.iter().for_each(|follow| follow(&config));
        parts.live.set(config);
        let view = self.applied(loaded, &changes, builds_ended);
        ConfigReloaded { view: &view }.emit();
        Ok(view)
    }

    fn refused(&self, mistakes: &Mistakes) -> Refused {
        let mistakes: Vec<String> = mistakes.0.iter().map(ToString::to_string).collect();
        ConfigRefused { mistakes: &mistakes }.emit();
        self.last().refused = Some((UnixMillis::now(), mistakes.clone()));
        Refused::BadConfig { mistakes }
    }

    fn applied(&self, mut loaded: Loaded, changes: &Changes, builds_ended: usize) -> ReloadView {
        let mut last = self.last();
        let before = last.loaded.take();
        let change = |change: &changes::Change| ChangeView {
            key: change.key.clone(),
            from: before.as_ref().and_then(|l| l.value(&change.key)),
            to: loaded.value(&change.key),
            applies: change.applies.as_str().to_owned(),
        };
        let names = |pools: &[crate::ids::PoolName]| pools.iter().map(ToString::to_string).collect();
        let view = ReloadView {
            changes: changes.changed.iter().map(change).collect(),
            pools_added: names(&changes.pools_added),
            pools_removed: names(&changes.pools_removed),
            builds_ended: u32::try_from(builds_ended).unwrap_or(u32::MAX),
            warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
        };
        // What is held back is still as it was, so that the next reload says the same of it.
        loaded.settings.retain(|setting| !changes.is_held_back(&setting.key));
        let held = before.into_iter().flat_map(|l| l.settings).filter(|s| changes.is_held_back(&s.key));
        loaded.settings.extend(held);
        *last = Last { loaded: Some(loaded), loaded_ms: Some(UnixMillis::now()), refused: None };
        view
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
