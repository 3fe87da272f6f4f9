//! What lies on the disk, measured. It blocks: callers go to a thread that may.
//!
//! Two numbers a folder. `used` counts the blocks that the file system gave to its files, a file with several names once.
//! `apparent` is what their lengths add up to. Between the two are the holes of sparse files: most of a VM's disk.
//!
//! Clones share blocks. A QCOW2 clone of `tart-qemu` is a file of its own beside the image it refers to, so `used` is the
//! truth. A clone on APFS cannot be told from a copy: each counts the shared blocks again, so that for VMs `used` is an upper
//! bound there, and the truth is how the volume's free space moves (`preheat_host_disk_free_bytes`). No decision is made
//! from `used` of VMs: what is refused and what goes early depends on the free space, which the volume itself reports.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::clock::UnixMillis;

/// Entries that one measurement looks at. A build's artifacts are thousands at most; a tree beyond this is not ours to walk
/// every minute, and its sum is a lower bound.
pub const ENTRIES_MAX: usize = 200_000;

/// What `st_blocks` counts in, on every system.
const BLOCK_BYTES: u64 = 512;

/// What a folder takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of blocks.
    pub used: u64,
    /// Bytes of lengths.
    pub apparent: u64,
    /// Entries that were looked at.
    pub entries: usize,
}

/// Measures everything below `path`, following no link. What vanishes meanwhile counts nothing.
pub fn usage(path: &Path) -> Usage {
    let (mut sum, mut seen) = (Usage::default(), BTreeSet::new());
    let mut folders = vec![path.to_owned()];
    if let Ok(meta) = fs::symlink_metadata(path).map(|meta| add(&mut sum, &mut seen, &meta))
        && !meta
    {
        return sum;
    }
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            if sum.entries >= ENTRIES_MAX {
                return sum;
            }
            // Of the entry itself: a link out of the folder is not the folder's.
            let Ok(meta) = entry.metadata() else { continue };
            if add(&mut sum, &mut seen, &meta) {
                folders.push(entry.path());
            }
        }
    }
    sum
}

/// Counts one entry; true when it is a folder.
fn add(sum: &mut Usage, seen: &mut BTreeSet<(u64, u64)>, meta: &Metadata) -> bool {
    sum.entries += 1;
    if meta.nlink() > 1 && !meta.is_dir() && !seen.insert((meta.dev(), meta.ino())) {
        return false;
    }
    sum.used = sum.used.saturating_add(meta.blocks().saturating_mul(BLOCK_BYTES));
    sum.apparent = sum.apparent.saturating_add(meta.len());
    meta.is_dir()
}

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub bytes: u64,
    /// Since it was last written.
    pub age: Duration,
}

/// The plain files of a folder, newest first.
pub fn files(folder: &Path, now: UnixMillis) -> Vec<Entry> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<Entry> = entries
        .flatten()
        .take(ENTRIES_MAX)
        .filter_map(|entry| {
            let meta = entry.metadata().ok().filter(Metadata::is_file)?;
            let written = UnixMillis(meta.mtime().saturating_mul(1000));
            Some(Entry {
                name: entry.file_name().into_string().ok()?,
                bytes: meta.blocks().saturating_mul(BLOCK_BYTES),
                age: now.since(written),
            })
        })
        .collect();
    files.sort_by(|a, b| a.age.cmp(&b.age).then_with(|| b.name.cmp(&a.name)));
    files
}

/// The names of a folder's folders.
pub fn folders(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let folders = entries.flatten().take(ENTRIES_MAX).filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn holes_are_not_used_a_second_name_is_not_a_second_file_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().expect("a folder");
        let below = |name: &str| dir.path().join(name);
        fs::create_dir(below("vm")).expect("made");
        let empty = usage(&below("vm")).used;
        fs::write(below("vm/a"), vec![1; 1 << 20]).expect("written");
        let one = usage(&below("vm"));
        assert!(one.used >= empty + (1 << 20) && one.used < empty + (2 << 20), "{one:?}");
        fs::hard_link(below("vm/a"), below("vm/b")).expect("linked");
        let sparse = fs::File::create(below("vm/disk")).expect("made");
        sparse.set_len(1 << 34).expect("a hole");
        fs::create_dir(below("outside")).expect("made");
        fs::write(below("outside/big"), vec![1; 1 << 20]).expect("written");
        symlink(below("outside"), below("vm/link")).expect("linked");
        let all = usage(&below("vm"));
        assert!(all.used < one.used + (1 << 19), "{all:?}");
        assert!(all.apparent >= one.apparent + (1 << 34), "{all:?}");
    }

    #[test]
    fn a_folder_that_is_not_there_takes_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(usage(&dir.path().join("none")), Usage::default());
        assert!(files(&dir.path().join("none"), UnixMillis(0)).is_empty());
    }

    #[test]
    fn files_come_newest_first() {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, seconds) in [("old", 1000), ("new", 3000), ("middle", 2000)] {
            let file = fs::File::create(dir.path().join(name)).expect("made");
            let at = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
            file.set_modified(at).expect("set");
        }
        let files = files(dir.path(), UnixMillis(4_000_000));
        let names: Vec<_> = files.iter().map(|f| (f.name.as_str(), f.age.as_secs())).collect();
        assert_eq!(names, [("new", 1000), ("middle", 2000), ("old", 3000)]);
    }
}
