//! A folder in a folder, and the proof that nothing around it was touched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// `<outer>/deep/inside` is where the work is done; whatever else there is in `<outer>` must stay as it is.
pub struct Surroundings {
    outer: tempfile::TempDir,
    before: BTreeMap<PathBuf, Vec<u8>>,
}

impl Surroundings {
    pub fn new() -> Self {
        let outer = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(outer.path().join("deep/inside")).expect("made");
        for name in ["x", "a", "passwd", "deep/x", "deep/a", "deep/out.tar"] {
            fs::write(outer.path().join(name), name).expect("written");
        }
        let mut here = Self { outer, before: BTreeMap::new() };
        here.before = here.around();
        here
    }

    /// Where everything must stay.
    pub fn inside(&self) -> PathBuf {
        self.outer.path().join("deep/inside")
    }

    fn around(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        gather(self.outer.path(), &self.inside(), &mut found);
        found
    }

    /// Nothing was made, changed or taken away outside.
    pub fn is_untouched(&self) -> bool {
        self.before == self.around()
    }

    /// What lies inside, by its name from there; a link by where it leads.
    pub fn names(&self) -> Vec<PathBuf> {
        let mut found = BTreeMap::new();
        gather(&self.inside(), Path::new(""), &mut found);
        found.into_keys().map(|path| path.strip_prefix(self.inside()).expect("inside").to_owned()).collect()
    }
}

fn gather(folder: &Path, except: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a kind");
        if path == except {
            continue;
        }
        if kind.is_dir() {
            found.insert(path.clone(), Vec::new());
            gather(&path, except, found);
        } else if kind.is_file() {
            found.insert(path.clone(), fs::read(&path).expect("read"));
        } else {
            let leads = fs::read_link(&path).map(|to| to.into_os_string().into_encoded_bytes());
            found.insert(path, leads.unwrap_or_default());
        }
    }
}
