//! The name of a tree: a hash over everything of it that a build can see. The sender makes it from the folder, the daemon
//! from the archive that came, and only what both agree on is kept under that name.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use crate::guest::heads::Heads;
use crate::ids::TreeId;

/// Another one for another way to make it.
const BEGINNING: &[u8] = b"preheat tree 1\n";

/// The hash of a file's content.
pub type ContentHash = [u8; 32];

/// What stands behind an entry's name.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    Folder,
    File { bytes: u64, hash: &'a ContentHash },
    Link { target: &'a [u8] },
}

/// Takes a tree in, entry by entry, in the archive's order.
#[derive(Debug)]
pub struct TreeHasher(Sha256);

impl Default for TreeHasher {
    fn default() -> Self {
        Self(Sha256::new_with_prefix(BEGINNING))
    }
}

impl TreeHasher {
    /// The next entry. Of the mode the lowest nine bits count, as in the archive.
    pub fn add(&mut self, name: &[u8], mode: u32, mtime: u64, content: Content<'_>) {
        self.part(name);
        self.0.update((mode & 0o777).to_le_bytes());
        self.0.update(mtime.to_le_bytes());
        match content {
            Content::Folder => self.0.update(b"d"),
            Content::File { bytes, hash } => {
                self.0.update(b"f");
                self.0.update(bytes.to_le_bytes());
                self.0.update(hash);
            }
            Content::Link { target } => {
                self.0.update(b"l");
                self.part(target);
            }
        }
    }

    /// With its length, so that no two lists of parts look alike.
    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// The tree's name.
    pub fn finish(self) -> TreeId {
        TreeId(self.0.finalize().into())
    }
}

/// Reads through, and hashes what it reads.
pub struct Hashing<R> {
    from: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    /// Over `from`.
    pub fn new(from: R) -> Self {
        Self { from, hash: Sha256::new() }
    }

    /// The hash of all that was read.
    pub fn finish(self) -> ContentHash {
        self.hash.finalize().into()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(into)?;
        self.hash.update(&into[..n]);
        Ok(n)
    }
}

/// The name of the tree in a plain tar. `None` when it holds what no folder of ours packs into.
///
/// # Errors
/// When it is no tar, or is cut off.
pub fn of_archive(tar: &Path) -> io::Result<Option<TreeId>> {
    let heads = Heads::default();
    let mut archive = Archive::new(heads.bounded(BufReader::with_capacity(256 * 1024, File::open(tar)?)));
    let mut hasher = TreeHasher::default();
    for entry in archive.entries()? {
        let mut entry = entry?;
        heads.content_follows(entry.size());
        let (mode, mtime) = (entry.header().mode()?, entry.header().mtime()?);
        let name = entry.path_bytes().into_owned();
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Directory) {
            hasher.add(&name, mode, mtime, Content::Folder);
        } else if matches!(kind, EntryType::Symlink) {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            hasher.add(&name, mode, mtime, Content::Link { target: &target });
        } else if matches!(kind, EntryType::Regular) {
            let bytes = entry.size();
            let mut content = Hashing::new(&mut entry);
            if io::copy(&mut content, &mut io::sink())? != bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher.add(&name, mode, mtime, Content::File { bytes, hash: &content.finish() });
        } else {
            return Ok(None);
        }
    }
    Ok(Some(hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(entries: &[(&[u8], u32, u64, Content<'_>)]) -> TreeId {
        let mut hasher = TreeHasher::default();
        entries.iter().for_each(|(name, mode, mtime, content)| hasher.add(name, *mode, *mtime, *content));
        hasher.finish()
    }

    #[test]
    fn whatever_a_build_can_see_is_in_the_name() {
        let (a, b) = ([1; 32], [2; 32]);
        let file = |hash| Content::File { bytes: 3, hash };
        let all = [
            id(&[]),
            id(&[(b"x", 0o644, 7, file(&a))]),
            id(&[(b"y", 0o644, 7, file(&a))]),
            id(&[(b"x", 0o755, 7, file(&a))]),
            id(&[(b"x", 0o644, 8, file(&a))]),
            id(&[(b"x", 0o644, 7, file(&b))]),
            id(&[(b"x", 0o644, 7, Content::Folder)]),
            id(&[(b"x", 0o644, 7, Content::Link { target: b"t" })]),
            id(&[(b"x", 0o644, 7, Content::Link { target: b"u" })]),
            id(&[(b"x", 0o644, 7, file(&a)), (b"x", 0o644, 7, file(&a))]),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(id(&[(b"x", 0o100_644, 7, file(&a))]), all[1], "what no archive keeps does not count");
    }
}
