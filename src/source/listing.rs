//! What files a source has, read from the plain tar that it was made: names, and the manifests that say what kind of project
//! it is. Blocking code.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use tar::Archive;

use crate::pipelines::files::{Files, MANIFEST, is_the_projects};

/// A longer manifest is not read: it says nothing of a project.
const MANIFEST_BYTES_MAX: u64 = 256 << 10;

/// So many are read: a monorepo has some dozens.
const MANIFESTS_MAX: usize = 200;

/// Reads them.
///
/// # Errors
/// When the tar cannot be read.
pub fn files(tar: &Path) -> io::Result<Files> {
    let mut archive = Archive::new(BufReader::new(File::open(tar)?));
    let (mut names, mut manifests) = (Vec::new(), BTreeMap::new());
    for entry in archive.entries_with_seek()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_dir() {
            continue;
        }
        // A name that is no text is no name that a pipeline could ask for.
        let Ok(name) = String::from_utf8(entry.path_bytes().into_owned()) else { continue };
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", &name));
        let wanted = file == MANIFEST && is_the_projects(folder) && entry.size() <= MANIFEST_BYTES_MAX;
        if wanted && manifests.len() < MANIFESTS_MAX {
            let mut text = Vec::new();
            entry.read_to_end(&mut text)?;
            manifests.insert(name.clone(), String::from_utf8_lossy(&text).into_owned());
        }
        names.push(name);
    }
    Ok(Files::new(names, &manifests))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_the_projects_own_manifests() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("source.tar");
        let mut tar = tar::Builder::new(File::create(&path).expect("made"));
        let long = format!("{{\"x\":\"{}\"}}", " ".repeat(300 << 10));
        let expo = r#"{"dependencies":{"expo":"1"}}"#;
        for (name, text) in [
            ("apps/a/package.json", expo),
            ("node_modules/b/package.json", expo),
            ("apps/c/package.json", &long),
            ("yarn.lock", "lock"),
        ] {
            let mut head = tar::Header::new_gnu();
            head.set_size(text.len() as u64);
            tar.append_data(&mut head, name, text.as_bytes()).expect("written");
        }
        tar.finish().expect("written");
        drop(tar);
        let files = files(&path).expect("read");
        let expo = ["expo".to_owned()];
        assert!(files.depends("apps/a", &expo).is_some());
        assert!(files.depends("node_modules/b", &expo).is_none() && files.depends("apps/c", &expo).is_none());
        assert!(files.any("", &["yarn.lock".to_owned()]).is_some() && files.has_folder("apps/c"));
        assert!(super::files(&dir.path().join("none")).is_err());
    }
}
