//! The contents of files in a source that was taken in: its plain tar is read, nothing of it is unpacked. Blocking code.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use globset::GlobMatcher;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};

use super::template::{Digests, means};

/// Read at once.
const PIECE_BYTES: usize = 256 * 1024;

/// The digest of each file of `tar` that a glob means. A symbolic link counts with where it points to, a hard link with the
/// file that it is.
///
/// # Errors
/// When the tar cannot be read.
pub fn digests(tar: &Path, globs: &[GlobMatcher]) -> io::Result<Digests> {
    let mut digests = Digests::new();
    if globs.is_empty() {
        return Ok(digests);
    }
    let mut targets: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    walk(tar, &mut |name, kind, link, content| {
        if !globs.iter().any(|glob| means(glob, name)) {
            return Ok(());
        }
        if matches!(kind, EntryType::Symlink) {
            digests.insert(name.to_vec(), Sha256::digest(link).into());
        } else if matches!(kind, EntryType::Link) {
            targets.insert(name.to_vec(), link.to_vec());
        } else if !matches!(kind, EntryType::Directory) {
            digests.insert(name.to_vec(), digest(content)?);
        }
        Ok(())
    })?;
    if !targets.is_empty() {
        let mut of_targets = Digests::new();
        walk(tar, &mut |name, _, _, content| {
            if targets.values().any(|target| target == name) {
                of_targets.insert(name.to_vec(), digest(content)?);
            }
            Ok(())
        })?;
        let linked = targets.into_iter().filter_map(|(name, target)| Some((name, *of_targets.get(&target)?)));
        digests.extend(linked);
    }
    Ok(digests)
}

type Visit<'a> = dyn FnMut(&[u8], EntryType, &[u8], &mut dyn Read) -> io::Result<()> + 'a;

fn walk(tar: &Path, visit: &mut Visit<'_>) -> io::Result<()> {
    let mut archive = Archive::new(BufReader::with_capacity(PIECE_BYTES, File::open(tar)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        let (name, link) = (entry.path_bytes().into_owned(), entry.link_name_bytes().map(|l| l.into_owned()));
        visit(&name, kind, &link.unwrap_or_default(), &mut entry)?;
    }
    Ok(())
}

fn digest(content: &mut dyn Read) -> io::Result<[u8; 32]> {
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE_BYTES]);
    loop {
        match content.read(&mut piece)? {
            0 => return Ok(hash.finalize().into()),
            n => hash.update(&piece[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::matcher;
    use super::*;

    #[test]
    fn a_link_counts_with_what_it_leads_to_and_a_folder_not_at_all() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("source.tar");
        let mut tar = tar::Builder::new(File::create(&path).expect("made"));
        let mut add = |name: &str, kind: EntryType, content: &[u8], link: &str| {
            let mut head = tar::Header::new_gnu();
            head.set_entry_type(kind);
            head.set_size(content.len() as u64);
            if !link.is_empty() {
                head.set_link_name(link).expect("short");
            }
            tar.append_data(&mut head, name, content).expect("written");
        };
        add("a", EntryType::Directory, b"", "");
        add("a/lock", EntryType::Link, b"", "real");
        add("b.lock", EntryType::Symlink, b"", "real");
        add("real", EntryType::Regular, b"abc", "");
        add("other", EntryType::Regular, b"xyz", "");
        tar.finish().expect("written");
        let globs = ["**/lock", "*.lock", "a"].map(|glob| matcher(glob).expect("a glob"));
        let found = digests(&path, &globs).expect("read");
        let names: Vec<&[u8]> = found.keys().map(Vec::as_slice).collect();
        assert_eq!(names, [&b"a/lock"[..], b"b.lock"]);
        assert_eq!(found[&b"a/lock"[..]], <[u8; 32]>::from(Sha256::digest(b"abc")));
        assert_eq!(found[&b"b.lock"[..]], <[u8; 32]>::from(Sha256::digest(b"real")));
        assert!(digests(&dir.path().join("none"), &[]).expect("nothing is read").is_empty());
    }
}
