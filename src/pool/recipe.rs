//! What a VM of a pool is made from, as the configuration and its image say.

use crate::config::{Config, Pool};
use crate::runtime::{GuestOs, ImageInfo, RunOptions, Shape, VmName};
use crate::vm::birth::Recipe;

/// The recipe of one VM.
pub fn recipe(vm: &VmName, pool: &Pool, image: Option<&ImageInfo>, config: &Config) -> Recipe {
    let deadlines = &config.runtime.deadlines;
    Recipe {
        name: vm.clone(),
        image: pool.image.clone(),
        shape: Shape {
            cpus: pool.cpu,
            memory_mib: pool.memory.map(|m| m.0 >> 20),
            disk_gb: pool.disk.map(|d| d.0.div_ceil(1_000_000_000)),
            fresh_serial: image.is_some_and(|i| i.os == GuestOs::Darwin),
        },
        run: RunOptions { network: pool.network.clone(), extra_args: pool.run_args.clone() },
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
