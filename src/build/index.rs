//! What was read of a folder before: the hash of each file's content, good for as long as the file looks as it did then. On
//! the laptop of whoever wants something built; it may be deleted at any time. Blocking code.
//!
//! A file can be changed without looking changed, if that happens within one tick of its file system's clock. So what was
//! written shortly before it was read is not written down, and is read again the next time.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::tree::ContentHash;
use crate::clock::UnixMillis;
use crate::ids::TreeId;

/// The coarsest clocks of file systems tick every two seconds (FAT); the rest is for clocks that are not quite the same.
const TICK: Duration = Duration::from_secs(3);

/// The largest index that is read: some hundred thousand files.
const BYTES_MAX: u64 = 256 << 20;

/// Folders that are remembered; the one that was not built for longest goes first.
const FOLDERS_MAX: usize = 64;

/// Another one for another form.
const VERSION: u32 = 1;

/// How a file looks from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    bytes: u64,
    mtime: (i64, i64),
    /// Nobody can set this one back.
    ctime: (i64, i64),
    ino: u64,
    dev: u64,
}

impl Stamp {
    /// Of a file.
    pub fn of(facts: &Metadata) -> Self {
        Self {
            bytes: facts.len(),
            mtime: (facts.mtime(), facts.mtime_nsec()),
            ctime: (facts.ctime(), facts.ctime_nsec()),
            ino: facts.ino(),
            dev: facts.dev(),
        }
    }

    /// Whether a change after `at` would show.
    fn settled(&self, at: UnixMillis) -> bool {
        let latest = self.mtime.0.max(self.ctime.0).saturating_mul(1000).saturating_add(999);
        latest.saturating_add(i64::try_from(TICK.as_millis()).unwrap_or(i64::MAX)) < at.0
    }
}

/// What is known of the files of one folder.
#[derive(Debug, Default)]
pub struct Index {
    files: BTreeMap<String, (Stamp, TreeId)>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    folder: PathBuf,
    files: BTreeMap<String, (Stamp, String)>,
}

impl Index {
    /// What was written down of `folder`; nothing where that is not there or cannot be read.
    pub fn read(indexes: &Path, folder: &Path) -> Self {
        Self::try_read(indexes, folder).unwrap_or_default()
    }

    fn try_read(indexes: &Path, folder: &Path) -> Option<Self> {
        let path = indexes.join(name(folder));
        if fs::metadata(&path).ok()?.len() > BYTES_MAX {
            return None;
        }
        let written: Written = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        if written.version != VERSION || written.folder != folder {
            return None;
        }
        let parsed = written
            .files
            .into_iter()
            .map(|(name, (stamp, hash))| Some((name, (stamp, hash.parse::<TreeId>().ok()?))));
        Some(Self { files: parsed.collect::<Option<_>>()? })
    }

    /// The hash of a file that looks as it did.
    pub fn get(&self, name: &Path, facts: &Metadata) -> Option<ContentHash> {
        let (stamp, hash) = self.files.get(name.to_str()?)?;
        (*stamp == Stamp::of(facts)).then_some(hash.0)
    }

    /// Notes what was read, from `begun` on; not where a later change might not show.
    pub fn note(&mut self, name: &Path, stamp: Stamp, hash: ContentHash, begun: UnixMillis) {
        if let Some(name) = name.to_str().filter(|_| stamp.settled(begun)) {
            self.files.insert(name.to_owned(), (stamp, TreeId(hash)));
        }
    }

    /// Writes it down, whole or not at all, and forgets folders of long ago.
    ///
    /// # Errors
    /// When that fails; the next one will read everything.
    pub fn write(self, indexes: &Path, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(indexes)?;
        let files = self.files.into_iter().map(|(name, (stamp, hash))| (name, (stamp, hash.to_string())));
        let written = Written { version: VERSION, folder: folder.to_owned(), files: files.collect() };
        let mut part = tempfile::NamedTempFile::new_in(indexes)?;
        part.write_all(&serde_json::to_vec(&written)?)?;
        part.persist(indexes.join(name(folder))).map_err(|e| e.error)?;
        forget(indexes)
    }
}

/// The file of a folder's index.
fn name(folder: &Path) -> String {
    let hash = TreeId(Sha256::digest(folder.as_os_str().as_encoded_bytes()).into());
    format!("{:.32}.json", hash.to_string())
}

fn forget(indexes: &Path) -> io::Result<()> {
    let mut all: Vec<(std::time::SystemTime, PathBuf)> = fs::read_dir(indexes)?
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    all.sort();
    let over = all.len().saturating_sub(FOLDERS_MAX);
    all.iter().take(over).for_each(|(_, path)| drop(fs::remove_file(path)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later() -> UnixMillis {
        UnixMillis(UnixMillis::now().0 + 60_000)
    }

    #[test]
    fn what_was_written_down_is_found_again_for_that_folder_only() {
        let dir = tempfile::tempdir().expect("a folder");
        let (file, indexes) = (dir.path().join("f"), dir.path().join("i"));
        fs::write(&file, "1").expect("written");
        let facts = fs::metadata(&file).expect("there");
        let mut index = Index::default();
        index.note(Path::new("f"), Stamp::of(&facts), [7; 32], later());
        assert_eq!(index.get(Path::new("f"), &facts), Some([7; 32]));
        index.write(&indexes, dir.path()).expect("written");
        assert_eq!(Index::read(&indexes, dir.path()).get(Path::new("f"), &facts), Some([7; 32]));
        assert_eq!(Index::read(&indexes, &file).get(Path::new("f"), &facts), None);
        let path = indexes.join(name(dir.path()));
        let text = fs::read(&path).expect("there");
        for damaged in [&text[..text.len() / 2], b"", b"{}"] {
            fs::write(&path, damaged).expect("written");
            assert_eq!(Index::read(&indexes, dir.path()).get(Path::new("f"), &facts), None);
        }
    }

    #[test]
    fn a_file_that_was_written_shortly_before_it_was_read_is_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("f");
        fs::write(&file, "1").expect("written");
        let facts = fs::metadata(&file).expect("there");
        let mut index = Index::default();
        index.note(Path::new("f"), Stamp::of(&facts), [7; 32], UnixMillis::now());
        assert_eq!(index.get(Path::new("f"), &facts), None);
    }

    #[test]
    fn a_file_that_was_replaced_under_its_old_times_is_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("f");
        fs::write(&file, "1").expect("written");
        let before = fs::metadata(&file).expect("there");
        let mut index = Index::default();
        index.note(Path::new("f"), Stamp::of(&before), [7; 32], later());
        fs::write(dir.path().join("new"), "2").expect("written");
        fs::rename(dir.path().join("new"), &file).expect("moved");
        fs::File::options()
            .write(true)
            .open(&file)
            .and_then(|f| f.set_modified(before.modified()?))
            .expect("set");
        let after = fs::metadata(&file).expect("there");
        assert_eq!((before.len(), before.modified().ok()), (after.len(), after.modified().ok()));
        assert_eq!(index.get(Path::new("f"), &after), None);
    }

    #[test]
    fn folders_of_long_ago_are_forgotten() {
        let dir = tempfile::tempdir().expect("a folder");
        for n in 0..FOLDERS_MAX + 5 {
            Index::default().write(dir.path(), Path::new(&format!("/{n}"))).expect("written");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), FOLDERS_MAX);
        let last = dir.path().join(name(Path::new(&format!("/{}", FOLDERS_MAX + 4))));
        assert!(last.exists());
    }
}
