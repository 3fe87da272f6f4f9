//! Names of remote images, and the cache of those that were pulled.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Outcome};
use crate::home::Home;
use crate::vm::VmDir;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteName {
    pub host: String,
    pub namespace: String,
    pub reference: Reference,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Tag(String),
    Digest(String),
}

impl Reference {
    pub fn value(&self) -> &str {
        match self {
            Self::Tag(value) | Self::Digest(value) => value,
        }
    }
}

impl fmt::Display for RemoteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            Reference::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.namespace),
            Reference::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.namespace),
        }
    }
}

fn is_word(text: &str, separators: &str) -> bool {
    !text.is_empty()
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || separators.contains(c))
}

impl RemoteName {
    /// `host[:port]/namespace[:tag|@digest]`; anything without a slash is a local name.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, rest) = text.split_once('/')?;
        let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
        let port_is_fine =
            port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
        if !is_word(name, ".-") || !port_is_fine {
            return None;
        }
        let (namespace, reference) = if let Some((namespace, digest)) = rest.split_once('@') {
            digest.strip_prefix("sha256:").filter(|hex| is_word(hex, ""))?;
            (namespace, Reference::Digest(digest.to_owned()))
        } else if let Some((namespace, tag)) = rest.split_once(':') {
            if !is_word(tag, ".-_") {
                return None;
            }
            (namespace, Reference::Tag(tag.to_owned()))
        } else {
            (rest, Reference::Tag("latest".to_owned()))
        };
        if !namespace.split('/').all(|part| is_word(part, ".-_")) {
            return None;
        }
        Some(Self { host: host.to_owned(), namespace: namespace.to_owned(), reference })
    }

    /// Where the image lies; a tag is a symbolic link to its digest.
    pub fn path(&self, home: &Home) -> PathBuf {
        home.images().join(self.host.replace(':', "%3A")).join(&self.namespace).join(self.reference.value())
    }

    pub fn open(&self, home: &Home) -> Outcome<VmDir> {
        let path = self.path(home);
        if !path.is_dir() {
            return Err(Failure::VmDoesNotExist(self.to_string()));
        }
        let image = VmDir::new(path.canonicalize().unwrap_or(path));
        if !image.is_whole() {
            return Err(Failure::VmMissingFiles);
        }
        image.touch();
        Ok(image)
    }

    pub fn digest(&self, home: &Home) -> Outcome<String> {
        let path = self.path(home);
        let resolved = path.canonicalize().unwrap_or(path);
        let digest = resolved.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !digest.starts_with("sha256:") {
            return Err(Failure::OciStorage(format!("{self} is not a digest and doesn't point to a digest")));
        }
        Ok(digest)
    }
}

pub struct Cached {
    pub name: String,
    pub image: VmDir,
    pub is_tag: bool,
}

/// Everything in the cache, tags and digests both, by name.
pub fn cached(home: &Home) -> Vec<Cached> {
    let mut found = Vec::new();
    collect(&home.images(), &home.images(), &mut found);
    found.sort_by(|left, right| left.name.cmp(&right.name));
    found
}

fn collect(root: &Path, at: &Path, found: &mut Vec<Cached>) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let path = entry.path();
        let image = VmDir::new(path.clone());
        if image.is_whole() {
            let is_tag = path.is_symlink();
            let parent = at.strip_prefix(root).unwrap_or(at).to_string_lossy().replace("%3A", ":");
            let name = format!("{parent}{}{}", if is_tag { ':' } else { '@' }, image.name());
            found.push(Cached { name, image, is_tag });
        } else if path.is_dir() {
            collect(root, &path, found);
        }
    }
}

/// Removes digests that no tag points to and tags that point nowhere.
pub fn sweep(home: &Home) {
    remove_broken_tags(&home.images());
    let all = cached(home);
    let tagged: Vec<PathBuf> =
        all.iter().filter(|one| one.is_tag).filter_map(|one| one.image.path().canonicalize().ok()).collect();
    for one in all.iter().filter(|one| !one.is_tag && !tagged.iter().any(|path| path == one.image.path())) {
        if !one.image.file(".explicitly-pulled").exists() {
            let _ = fs::remove_dir_all(one.image.path());
        }
    }
}

fn remove_broken_tags(at: &Path) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_symlink() && !path.exists() {
            let _ = fs::remove_file(&path);
        } else if path.is_dir() && !path.is_symlink() && !VmDir::new(path.clone()).is_whole() {
            remove_broken_tags(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_slash_is_remote() {
        let name = RemoteName::parse("ghcr.io:5000/cirruslabs/macos-sonoma:14.1").expect("a remote name");
        assert_eq!(name.host, "ghcr.io:5000");
        assert_eq!(name.to_string(), "ghcr.io:5000/cirruslabs/macos-sonoma:14.1");
        assert_eq!(RemoteName::parse("a/b").map(|name| name.to_string()), Some("a/b:latest".to_owned()));
        assert!(RemoteName::parse("a/b@sha256:0f").is_some());
    }

    #[test]
    fn what_tart_takes_for_a_local_name_is_local() {
        for local in ["linux", "-/x", "a:b/c", "a/", "a/b@md5:1", "a/../b"] {
            assert_eq!(RemoteName::parse(local), None, "{local}");
        }
    }
}
