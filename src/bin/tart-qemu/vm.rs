//! One VM's directory: its files, its state, and how it is copied.
//!
//! ```text
//! config.json  disk.img -> layer-*.qcow2 -> ...  nvram.bin  kernel  initrd  [state.vzvmsave]
//! ```
//!
//! `disk.img` is an overlay over layers that nobody writes any more. Layers, kernel and saved state are hard links,
//! so the file system counts who needs them: deleting a source cannot break a clone, and nothing is left behind.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config::{VmConfig, random_mac};
use crate::error::{Failure, Outcome};
use crate::lock::PidLock;
use crate::qcow2;
use crate::qmp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    Suspended,
    Stopped,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
        }
    }
}

pub struct VmDir {
    path: PathBuf,
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl VmDir {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn config_path(&self) -> PathBuf {
        self.file("config.json")
    }

    pub fn disk(&self) -> PathBuf {
        self.file("disk.img")
    }

    pub fn saved_state(&self) -> PathBuf {
        self.file("state.vzvmsave")
    }

    pub fn is_whole(&self) -> bool {
        ["config.json", "disk.img", "nvram.bin"].iter().all(|name| self.file(name).exists())
    }

    pub fn config(&self) -> Outcome<VmConfig> {
        VmConfig::read(&self.config_path())
    }

    pub fn owner(&self) -> Option<i32> {
        // A VM that cannot be opened reads as stopped, as Tart has it.
        PidLock::open(&self.config_path()).and_then(|lock| lock.owner()).ok().flatten()
    }

    pub fn state(&self) -> State {
        if self.owner().is_some() {
            State::Running
        } else if self.saved_state().exists() {
            State::Suspended
        } else {
            State::Stopped
        }
    }

    /// Sets the access time, which is what pruning and `list` go by.
    pub fn touch(&self) {
        let times = FileTimes::new().set_accessed(SystemTime::now());
        let _ = File::open(&self.path).and_then(|directory| directory.set_times(times));
    }

    pub fn accessed(&self) -> SystemTime {
        fs::metadata(&self.path).and_then(|data| data.accessed()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub fn disk_bytes(&self) -> Outcome<u64> {
        qcow2::virtual_bytes(&self.disk()).map_err(|error| Failure::io("“disk.img”", &error))
    }

    /// What the VM holds on the disk, shared or not: that is how APFS counts a clone.
    pub fn allocated_bytes(&self) -> u64 {
        let mut files = vec![self.disk(), self.config_path(), self.file("nvram.bin")];
        files.extend(qcow2::layers(&self.disk()).unwrap_or_default());
        files.iter().filter_map(|path| fs::metadata(path).ok()).map(|data| data.blocks() * 512).sum()
    }

    pub fn forget_saved_state(&self) {
        let _ = fs::remove_file(self.saved_state());
    }

    pub fn regenerate_mac(&self) -> Outcome {
        let mut config = self.config()?;
        config.mac_address = random_mac();
        self.forget_saved_state();
        config.write(&self.config_path())
    }

    /// Copies everything but the disk's own data, which both sides go on from.
    pub fn clone_into(&self, target: &VmDir, new_mac: bool) -> Outcome {
        self.copy_files(target).map_err(|error| {
            if error.kind() == io::ErrorKind::StorageFull {
                return Failure::OutOfSpace("“disk.img”".to_owned());
            }
            Failure::io(format_args!("“{}” couldn’t be copied", self.name()), &error)
        })?;
        if new_mac {
            target.regenerate_mac()?;
        }
        Ok(())
    }

    fn copy_files(&self, target: &VmDir) -> io::Result<()> {
        self.freeze_disk()?;
        fs::copy(self.config_path(), target.config_path())?;
        fs::copy(self.file("nvram.bin"), target.file("nvram.bin"))?;
        for name in ["kernel", "initrd", "state.vzvmsave"] {
            present(link_or_copy(&self.file(name), &target.file(name)))?;
        }
        for layer in qcow2::layers(&self.disk())? {
            link_or_copy(&layer, &target.file(&file_name(&layer)))?;
        }
        let header = qcow2::read_header(&self.disk())?.ok_or(io::ErrorKind::InvalidData)?;
        let backing = header.backing.ok_or(io::ErrorKind::InvalidData)?;
        let format = if qcow2::read_header(&self.file(&backing))?.is_some() { "qcow2" } else { "raw" };
        qcow2::write_overlay(&target.disk(), &backing, format, header.virtual_bytes)
    }

    /// Turns what `disk.img` holds into a layer that nobody writes, unless it holds nothing of its own.
    fn freeze_disk(&self) -> io::Result<()> {
        let disk = self.disk();
        let header = qcow2::read_header(&disk)?;
        let running = self.owner().is_some();
        if let Some(header) = &header
            && header.backing.is_some()
            && !running
            && header.is_untouched(&disk)?
        {
            return Ok(());
        }
        let virtual_bytes = qcow2::virtual_bytes(&disk)?;
        let layer = format!("layer-{}.qcow2", uuid::Uuid::new_v4().simple());
        let fresh = self.file("disk.img.new");
        qcow2::write_overlay(&fresh, &layer, if header.is_some() { "qcow2" } else { "raw" }, virtual_bytes)?;
        // The link first: a crash in between leaves a name too many, never a disk too few.
        fs::hard_link(&disk, self.file(&layer))?;
        if running {
            // The guest's QEMU goes on in the new overlay and lets go of the old file.
            if let Err(error) = qmp::move_to_overlay(&self.path) {
                let _ = fs::remove_file(self.file(&layer));
                let _ = fs::remove_file(&fresh);
                return Err(error);
            }
        }
        // What it holds has not changed, as far as anybody who looks at the file can tell.
        if let Some(changed) = fs::metadata(self.file(&layer))?.modified().ok().filter(|_| !running) {
            File::options().write(true).open(&fresh)?.set_modified(changed)?;
        }
        fs::rename(&fresh, &disk)?;
        let mut sealed = fs::metadata(self.file(&layer))?.permissions();
        sealed.set_readonly(true);
        fs::set_permissions(self.file(&layer), sealed)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Another file system cannot share the file: then it is copied.
pub fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::copy(from, to).map(drop),
        other => other,
    }
}
