//! What is looked at outside of the books: images, the disk, another configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::{Me, PoolBooks, PoolMessage};
use crate::clock::Instant;
use crate::config::Config;
use crate::ids::PoolName;
use crate::pool::baking::Resuming;
use crate::pool::handle::LeaseEvent;
use crate::pool::recipe::{can_resume, golden_key, recipe};
use crate::pool::trouble::Trouble;
use crate::runtime::{Fault, ImageInfo, VmName};
use crate::vm::birth::Recipe;
use crate::{blocking, host};

/// An image that VMs resume from is asked for so often: with other content, what was saved is worth nothing.
const IMAGE_AGAIN: Duration = Duration::from_secs(60);

impl PoolBooks {
    pub(super) fn look_at_disk(&mut self, me: &Me) {
        if self.disk_asked.is_some() {
            return;
        }
        let (path, me): (PathBuf, _) = (self.args.config.home.path().to_owned(), me.clone());
        self.disk_asked = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let disk = blocking::run(move || host::disk(&path)).await.ok().flatten();
            me.cast(PoolMessage::Disk(disk)).ok();
        })));
    }

    pub(super) fn look_at_images(&mut self, me: &Me, now: Instant) {
        if self.ledger.stopping || self.ledger.draining.is_some() {
            return;
        }
        for (pool, row) in &self.ledger.pools {
            let asked = self.images_seen.get(pool).copied();
            let again = row.image.is_some()
                && matches!(row.resuming, Resuming::On(_))
                && asked.is_none_or(|asked| now.saturating_duration_since(asked) >= IMAGE_AGAIN);
            let missing = row.image.is_none() && row.trouble.allows(now, 0);
            let due = (missing || again) && self.ledger.breaker.allows(now);
            let Some(config) = self.args.config.pools.get(pool).filter(|_| due) else { continue };
            if self.images_asked.contains_key(pool) {
                continue;
            }
            let (runtime, image, name, me) =
                (self.args.runtime.clone(), config.base(), pool.clone(), me.clone());
            let edition = row.edition;
            let task = AbortOnDropHandle::new(tokio::spawn(async move {
                let answer = runtime.image(&image).await;
                me.cast(PoolMessage::Image(name, edition, answer)).ok();
            }));
            self.images_asked.insert(pool.clone(), task);
            self.images_seen.insert(pool.clone(), now);
        }
    }

    pub(super) fn image_answered(&mut self, pool: &PoolName, edition: u32, answer: Result<ImageInfo, Fault>) {
        if self.ledger.pools.get(pool).is_none_or(|row| row.edition != edition) {
            return; // About an image that the pool had before.
        }
        self.images_asked.remove(pool);
        match answer {
            Ok(info) => {
                let first = self.ledger.pools.get(pool).is_some_and(|row| row.image.is_none());
                let resuming = match self.shapes.get(pool) {
                    Some(shape) if can_resume(shape, &info) => Resuming::On(golden_key(shape, &info)),
                    Some(_) | None => Resuming::Off,
                };
                self.ledger.note_image(pool, info, resuming);
                if first {
                    self.trouble(pool, Trouble::warmed);
                    self.ledger.breaker.answered();
                }
            }
            // It was there a minute ago: should it be gone, the next clone says so.
            Err(_) if self.ledger.pools.get(pool).is_some_and(|row| row.image.is_some()) => {}
            Err(fault) => self.blame(pool, None, fault, false),
        }
    }

    /// Takes another configuration over, and tells VMs that stay what holds for them from now on.
    pub(super) fn follow(&mut self, config: Arc<Config>, roll: &[PoolName]) -> usize {
        let homeless = self.ledger.follow(&config, roll);
        self.images_asked.retain(|pool, _| !roll.contains(pool) && self.ledger.is_open(pool));
        for build in &homeless {
            if let Some(lessee) = self.lessees.remove(build) {
                lessee(LeaseEvent::PoolGone);
            }
        }
        self.shapes.extend(config.pools.clone());
        self.args.config = config;
        for row in self.ledger.vms().values() {
            let current =
                self.ledger.pools.get(&row.name.pool).is_some_and(|pool| pool.edition == row.edition);
            let (Some(recipe), Some(handle)) = (self.recipe(&row.name), self.handles.get(&row.name)) else {
                continue;
            };
            if current {
                handle.follow(recipe);
            }
        }
        homeless.len()
    }

    pub(super) fn recipe(&self, vm: &VmName) -> Option<Recipe> {
        let image = self.ledger.pools.get(&vm.pool).and_then(|row| row.image.as_ref());
        let origin = self.ledger.vm(vm).and_then(|row| row.origin.as_ref());
        Some(recipe(vm, origin, self.shapes.get(&vm.pool)?, image, &self.args.config))
    }
}
