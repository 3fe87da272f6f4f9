//! What a VM of a pool is made from, as the configuration and its image say.

use sha2::{Digest, Sha256};

use crate::config::{Config, Pool};
use crate::runtime::{GuestOs, ImageInfo, RunOptions, Shape, VmName};
use crate::vm::birth::{Origin, Recipe};

/// Whether the state of a VM of the pool can be saved and resumed from: Tart restores no Linux guest, and saves none that
/// shares a folder.
pub fn can_resume(pool: &Pool, image: &ImageInfo) -> bool {
    pool.resume && !pool.shares_a_folder() && image.os == GuestOs::Darwin
}

/// What a saved state depends on beside its slot, as a name: with any of it different it is worth nothing.
pub fn golden_key(pool: &Pool, image: &ImageInfo) -> String {
    let Pool {
        image: name,
        generation,
        cpu,
        memory,
        disk,
        user,
        key,
        port,
        network,
        warmup,
        run_args,
        // When and how many, not what.
        warm: _,
        max: _,
        boot_timeout: _,
        probe_timeout: _,
        probe_interval: _,
        warmup_timeout: _,
        max_age: _,
        resume: _,
        resume_timeout: _,
        // What is said of it.
        provides: _,
    } = pool;
    let parts = (
        (name, generation),
        &image.identity,
        cpu,
        memory,
        disk,
        (user, key, port),
        network,
        warmup,
        run_args,
    );
    let digest = Sha256::digest(format!("{parts:?}"));
    digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// The recipe of one VM.
pub fn recipe(
    vm: &VmName,
    origin: Option<&VmName>,
    pool: &Pool,
    image: Option<&ImageInfo>,
    config: &Config,
) -> Recipe {
    let deadlines = &config.runtime.deadlines;
    let darwin = image.is_some_and(|i| i.os == GuestOs::Darwin);
    let suspendable = image.is_some_and(|image| can_resume(pool, image));
    let golden = |vm: &VmName| Origin::Golden { vm: vm.clone(), resume_timeout: pool.resume_timeout };
    Recipe {
        name: vm.clone(),
        image: pool.base(),
        origin: origin.map_or(Origin::Image, golden),
        shape: Shape {
            cpus: pool.cpu,
            memory_mib: pool.memory.map(|m| m.0 >> 20),
            disk_gb: pool.disk.map(|d| d.0.div_ceil(1_000_000_000)),
            fresh_serial: darwin,
            fresh_mac: suspendable,
        },
        run: RunOptions { network: pool.network.clone(), suspendable, extra_args: pool.run_args.clone() },
        user: pool.user.clone(),
        key: pool.key.clone(),
        port: pool.port,
        prepare_timeout: deadlines.clone + deadlines.set,
        boot_timeout: pool.boot_timeout,
        warmup: pool.warmup.clone(),
        warmup_timeout: pool.warmup_timeout,
        probe_timeout: pool.probe_timeout,
        probe_interval: pool.probe_interval,
        removal_timeout: deadlines.stop + deadlines.delete,
    }
}
