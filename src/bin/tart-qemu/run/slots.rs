//! Apple's limit: two running macOS guests on one host.
//!
//! A slot is a locked file, so it is free again when its holder dies, however it dies; unless a fault says it leaks,
//! as the real ones sometimes do. A leaked slot comes back when `leaked-N` is removed (on a Mac: when the host reboots).

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Failure, Outcome};
use crate::home::Home;

const MACOS_GUESTS: usize = 2;

pub struct Slot {
    number: usize,
    directory: PathBuf,
    _lock: Flock<File>,
}

/// `None` when all slots are taken or lost.
pub fn acquire(home: &Home) -> Outcome<Option<Slot>> {
    let base = std::env::var_os("TART_QEMU_HOST_DIR").map_or_else(|| home.root().to_owned(), PathBuf::from);
    let directory = base.join("slots");
    let fail = |error: std::io::Error| Failure::io(directory.display(), &error);
    fs::create_dir_all(&directory).map_err(fail)?;
    for number in 0..MACOS_GUESTS {
        if directory.join(format!("leaked-{number}")).exists() {
            continue;
        }
        let path = directory.join(number.to_string());
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
        if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            return Ok(Some(Slot { number, directory, _lock: lock }));
        }
    }
    Ok(None)
}

impl Slot {
    /// From now on nobody gets this slot, not even when we are gone.
    pub fn leak(&self) {
        let _ = fs::write(self.directory.join(format!("leaked-{}", self.number)), "");
    }
}
