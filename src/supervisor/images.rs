//! Which generation each image's name means, in force: as operators ask for it, back when its VMs do not come up, on disk before
//! it is followed. A pool of the image rolls over as it does when its configuration changes, so nobody waits for that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::api::service::Refused;
use crate::api::wire::{GenerationState, GenerationView, ImageView};
use crate::blocking;
use crate::build::actor::BuildContext;
use crate::clock::UnixMillis;
use crate::config::{Config, Live};
use crate::ids::PoolName;
use crate::images::choice::{self, Due, Seen};
use crate::images::generation::{self, Which};
use crate::images::{Choice, Choices};
use crate::pool::handle::PoolHandle;
use crate::pool::snapshot::{PoolSnapshot, PoolState};
use crate::runtime::{Parsed, Reason, Runtime, VmName};
use crate::store::{Store, StoreError};
use crate::telemetry::events::Degraded;
use crate::telemetry::images::{ChosenBy, ImageChosen, ImageFailed, ImageProven};

/// For the pool to take another configuration over.
const FOLLOW_MAX: Duration = Duration::from_secs(10);
/// What could not be done about an image is tried again after this: an image that is being made takes longer.
const AGAIN: Duration = Duration::from_secs(30);
/// The longest file of facts that is read; what mac-image writes is some hundred bytes.
const FACTS_BYTES_MAX: usize = 64 * 1024;

/// The images.
pub struct Images {
    store: Store,
    runtime: Arc<dyn Runtime>,
    config: Live,
    pool: PoolHandle,
    /// Held by whoever changes which configuration is in force.
    pub changing: Arc<tokio::sync::Mutex<()>>,
    choices: Mutex<Choices>,
}

/// The configuration with what was chosen under earlier daemons.
///
/// # Errors
/// When the journal cannot be read.
pub async fn chosen(config: Arc<Config>, store: &Store) -> Result<(Arc<Config>, Choices), StoreError> {
    let choices = store.images().await?;
    let mut config = config;
    if !choices.is_empty() {
        choice::apply(Arc::make_mut(&mut config), &choices);
    }
    Ok((config, choices))
}

impl Images {
    /// Over running actors, which follow `choices` already.
    pub fn new(context: &BuildContext, runtime: Arc<dyn Runtime>, choices: Choices) -> Self {
        Self {
            store: context.store.clone(),
            runtime,
            config: context.config.clone(),
            pool: context.pool.clone(),
            changing: Arc::default(),
            choices: Mutex::new(choices),
        }
    }

    /// Puts what was chosen into a configuration that was just read.
    pub fn apply(&self, config: &mut Config) {
        choice::apply(config, &self.choices());
    }

    fn choices(&self) -> std::sync::MutexGuard<'_, Choices> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an image means now.
    fn choice(&self, name: &str) -> Choice {
        self.choices().get(name).cloned().unwrap_or_else(Choice::unmade)
    }

    /// Every local VM that may be an image's.
    async fn local(&self) -> Result<Vec<String>, Refused> {
        let listed = self.runtime.list().await.map_err(|fault| Refused::Internal(fault.to_string()))?;
        let others = listed.into_iter().map(|row| row.name);
        Ok(others.filter(|name| VmName::parse(name) == Parsed::NotOurs).collect())
    }

    /// Every image that a pool has, that somebody has chosen for, or that has generations.
    ///
    /// # Errors
    /// When the runtime does not list its VMs.
    pub async fn list(&self) -> Result<Vec<ImageView>, Refused> {
        let local = self.local().await?;
        let config = self.config.get();
        let pools = config.pools.values().map(|pool| pool.image.clone());
        let chosen: Vec<String> = self.choices().keys().cloned().collect();
        let made = local.iter().filter_map(|vm| Some(generation::parse(vm)?.0.to_owned()));
        let names: BTreeSet<String> = pools.chain(chosen).chain(made).collect();
        let mut views = Vec::new();
        for name in names {
            views.push(self.view(&name, &local, &config).await);
        }
        Ok(views)
    }

    async fn view(&self, name: &str, local: &[String], config: &Config) -> ImageView {
        let choice = self.choice(name);
        let there = generation::there(name, local.iter().map(String::as_str));
        let of = |which: Which| {
            let failed = choice.failed.as_ref().filter(|failed| failed.which == which);
            let state = match which == choice.current {
                true if choice.good => GenerationState::Current,
                true if failed.is_none() => GenerationState::Trying,
                false if choice.before.contains(&which) => GenerationState::Before,
                false if failed.is_none() => GenerationState::Unused,
                true | false => GenerationState::Failed,
            };
            (state, failed.map(|failed| failed.why.clone()))
        };
        let mut generations = Vec::new();
        for which in there {
            let (vm, (state, why)) = (generation::vm(name, which), of(which));
            let facts = facts(config.home.images().join(format!("{vm}.json"))).await;
            generations.push(GenerationView { generation: which, vm, state, why, facts });
        }
        let pools = config.pools.iter().filter(|(_, pool)| pool.image == name);
        ImageView {
            name: name.to_owned(),
            pools: pools.map(|(pool, _)| pool.to_string()).collect(),
            base: generation::vm(name, choice.current),
            generations,
        }
    }

    /// The image means this generation from now on.
    ///
    /// # Errors
    /// When there is no such VM, or it cannot be written down.
    pub async fn choose(&self, name: &str, which: Which) -> Result<ImageView, Refused> {
        let changing = self.changing.lock().await;
        let local = self.local().await?;
        let there = generation::there(name, local.iter().map(String::as_str));
        if !there.contains(&which) {
            return Err(Refused::ImageUnknown { vm: generation::vm(name, which) });
        }
        let choice = self.choice(name).choose(which, &there, UnixMillis::now());
        self.put(name, choice, ChosenBy::Asked).await?;
        drop(changing);
        Ok(self.view(name, &local, &self.config.get()).await)
    }

    /// The image means what it meant before.
    ///
    /// # Errors
    /// When nothing is left to go back to, or it cannot be written down.
    pub async fn roll_back(&self, name: &str) -> Result<ImageView, Refused> {
        let changing = self.changing.lock().await;
        let local = self.local().await?;
        let there = generation::there(name, local.iter().map(String::as_str));
        let back = self.choice(name).back(&there, UnixMillis::now());
        let choice = back.ok_or_else(|| Refused::NothingBefore(name.to_owned()))?;
        self.put(name, choice, ChosenBy::RolledBack).await?;
        drop(changing);
        Ok(self.view(name, &local, &self.config.get()).await)
    }

    /// On disk, then in force. Whoever calls it holds `changing`.
    async fn put(&self, name: &str, choice: Choice, by: ChosenBy) -> Result<(), Refused> {
        let before = self.choice(name);
        let internal = |error: StoreError| Refused::Internal(error.to_string());
        self.store.note_image(name.to_owned(), choice.clone()).await.map_err(internal)?;
        self.choices().insert(name.to_owned(), choice.clone());
        let mut config = Config::clone(&self.config.get());
        self.apply(&mut config);
        let old = self.config.get();
        let differs = |pool: &PoolName| {
            let base = |config: &Config| config.pools.get(pool).map(crate::config::Pool::base);
            base(&old) != base(&config)
        };
        let roll: Vec<PoolName> = config.pools.keys().filter(|pool| differs(pool)).cloned().collect();
        let config = Arc::new(config);
        let pools = roll.len();
        if pools > 0 {
            let followed = self.pool.follow(config.clone(), roll, FOLLOW_MAX).await;
            followed.ok_or_else(|| Refused::Internal("the pool does not answer".into()))?;
            self.config.set(config);
        }
        if before.current != choice.current {
            let (from, to) = (generation::vm(name, before.current), generation::vm(name, choice.current));
            ImageChosen { image: name, from: &from, to: &to, by, pools }.emit();
        }
        Ok(())
    }

    /// Judges what is under trial, for as long as the daemon runs.
    pub async fn keep(self: Arc<Self>) {
        let mut tried = BTreeSet::new();
        loop {
            let next = |snapshot: &PoolSnapshot| {
                choice::due(&self.choices(), &tried, snapshot.pools.iter().map(seen))
            };
            let waited = timeout(AGAIN, self.pool.until(|snapshot| next(snapshot).is_some())).await;
            let Some(due) = waited.ok().and_then(|snapshot| next(&snapshot)) else {
                tried.clear();
                continue;
            };
            if let Due::Adopt { image } = &due {
                tried.insert(image.clone());
            }
            if let Err(refused) = self.settle(due).await {
                Degraded { what: "images", error: refused.to_string() }.emit();
                sleep(AGAIN).await;
            }
        }
    }

    async fn settle(&self, due: Due) -> Result<(), Refused> {
        let _changing = self.changing.lock().await;
        let local = self.local().await?;
        let there = |name: &str| generation::there(name, local.iter().map(String::as_str));
        let now = UnixMillis::now();
        match due {
            Due::Prove { image } => {
                let choice = self.choice(&image).prove();
                let vm = generation::vm(&image, choice.current);
                self.put(&image, choice, ChosenBy::Asked).await?;
                ImageProven { vm: &vm }.emit();
            }
            Due::Fail { image, why } => {
                let before = self.choice(&image);
                let choice = before.fail(&why, &there(&image), now);
                let (vm, goes_back) =
                    (generation::vm(&image, before.current), choice.current != before.current);
                self.put(&image, choice, ChosenBy::Failed).await?;
                ImageFailed { vm: &vm, why: &why, goes_back }.emit();
            }
            Due::Adopt { image } => {
                let there = there(&image);
                if let Some(newest @ Some(_)) = there.last() {
                    let choice = Choice::unmade().choose(*newest, &there, now);
                    self.put(&image, choice, ChosenBy::Adopted).await?;
                }
            }
        }
        Ok(())
    }
}

fn seen(pool: &PoolState) -> Seen<'_> {
    let missing = pool.trouble.as_ref().is_some_and(|t| t.reason == Reason::ImageMissing.as_str());
    Seen {
        image: &pool.image,
        which: pool.generation,
        proven: pool.trial.proven,
        failures: pool.trial.failures,
        last: pool.trial.last.as_deref(),
        missing,
    }
}

/// What is written down of a generation; nothing where nothing is, or it is something else.
async fn facts(path: PathBuf) -> BTreeMap<String, String> {
    blocking::run(move || read_facts(&path)).await.unwrap_or_default()
}

fn read_facts(path: &Path) -> BTreeMap<String, String> {
    let text = crate::config::file::read(path, FACTS_BYTES_MAX).ok().flatten().unwrap_or_default();
    let all: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
    all.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned()))).collect()
}
