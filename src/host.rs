//! What is measured of the machine itself.

use std::path::Path;

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
