//! `TART_HOME`: where VMs, pulled images and half-made things live.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;

use crate::error::{Failure, Outcome};
use crate::lock;
use crate::vm::VmDir;

pub struct Home {
    root: PathBuf,
}

impl Home {
    pub fn open() -> Outcome<Self> {
        let root = match std::env::var_os("TART_HOME") {
            Some(root) => PathBuf::from(root),
            None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".tart"),
        };
        for part in ["cache", "tmp"] {
            fs::create_dir_all(root.join(part)).map_err(|error| {
                Failure::Generic(format!(
                    "TART_HOME is invalid: {} does not exist, yet we can't create it: {error}",
                    root.display()
                ))
            })?;
        }
        let root = root.canonicalize().map_err(|error| Failure::io(root.display(), &error))?;
        Ok(Self { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("cache/OCIs")
    }

    /// Tart serialises clones and the MAC check of `run` with this lock.
    pub fn lock(&self) -> Outcome<Flock<File>> {
        lock::exclusive(&self.root).map_err(|error| Failure::io(self.root.display(), &error))
    }

    pub fn vm(&self, name: &str) -> VmDir {
        VmDir::new(self.root.join("vms").join(name))
    }

    /// A local VM that exists and is whole.
    pub fn open_vm(&self, name: &str) -> Outcome<VmDir> {
        let vm = self.vm(name);
        if name.is_empty() || name.contains('/') || !vm.path().is_dir() {
            return Err(Failure::VmDoesNotExist(name.to_owned()));
        }
        if !vm.is_whole() {
            return Err(Failure::VmMissingFiles);
        }
        vm.touch();
        Ok(vm)
    }

    /// Local VMs by name. One that disappears while we look is left out.
    pub fn vms(&self) -> Vec<VmDir> {
        let mut vms: Vec<VmDir> = fs::read_dir(self.root.join("vms"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| VmDir::new(entry.path()))
            .filter(VmDir::is_whole)
            .collect();
        vms.sort_by(|left, right| left.name().cmp(right.name()));
        vms
    }

    /// A directory of our own under `tmp/`, held by its lock so that nobody sweeps it.
    pub fn temporary(&self) -> Outcome<Temporary> {
        let path = self.root.join("tmp").join(uuid::Uuid::new_v4().to_string());
        let held = fs::create_dir(&path).and_then(|()| lock::exclusive(&path));
        Ok(Temporary { _lock: held.map_err(|error| Failure::io(path.display(), &error))?, path })
    }

    /// Removes what a killed process left under `tmp/`.
    pub fn sweep(&self) {
        for entry in fs::read_dir(self.root.join("tmp")).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(Some(_lock)) = lock::try_exclusive(&path) else { continue };
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// A half-made VM; gone on drop unless it was moved into place.
pub struct Temporary {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Temporary {
    pub fn vm(&self) -> VmDir {
        VmDir::new(self.path.clone())
    }

    /// Puts the VM where it belongs, in place of what was there.
    pub fn move_to(self, target: &Path) -> Outcome {
        let fail = |error: std::io::Error| Failure::io(target.display(), &error);
        fs::create_dir_all(target.parent().unwrap_or(target)).map_err(fail)?;
        if target.exists() {
            let aside = self.path.with_extension("old");
            fs::rename(target, &aside).map_err(fail)?;
            let moved = fs::rename(&self.path, target);
            if moved.is_err() {
                let _ = fs::rename(&aside, target);
            }
            let _ = fs::remove_dir_all(&aside);
            return moved.map_err(fail);
        }
        fs::rename(&self.path, target).map_err(fail)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.path.exists() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
