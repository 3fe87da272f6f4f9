//! What is measured of the machine itself.

use std::path::Path;

use nix::sys::resource::{Resource, setrlimit};

/// No core file of this process is written, nor of any that it starts from now on: it would hold secrets. Collectors that
/// cores are piped into (systemd-coredump, apport) keep to the limit by themselves.
///
/// # Errors
/// When the system refuses.
pub fn forbid_core_files() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

/// The machine's name without its domain; empty when it has none that is text.
pub fn name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// The volume of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that we may still write.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
}

/// Measures the volume that holds `path`; `None` when the system does not say. It may block.
pub fn disk(path: &Path) -> Option<Disk> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    #[cfg_attr(
        target_os = "linux",
        expect(clippy::useless_conversion, reason = "these counts are 32 bits wide on macOS")
    )]
    let bytes = |blocks: nix::libc::fsblkcnt_t| u64::from(blocks) * stat.fragment_size();
    Some(Disk { free: bytes(stat.blocks_available()), size: bytes(stat.blocks()) })
}
