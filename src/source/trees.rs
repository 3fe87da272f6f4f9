//! Trees that were sent once and need not be sent again: `$PREHEAT_HOME/trees/<name>/`, each with the plain tar that builds
//! are given and what else is known of it. A folder appears whole or not at all, and is never changed: builds hold their
//! source by a link of their own, so that a tree may go while one runs. Blocking code.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::ids::TreeId;
use crate::janitor::disk::Entry;
use crate::janitor::retain::{self, Item, Policy};

const TAR: &str = "tree.tar";
const ABOUT: &str = "about.json";

/// Folders on their way in or out begin so.
const PART: &str = ".part-";

/// What is known of a tree besides what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The common folder that was left out.
    pub stripped: Option<String>,
    /// The text of its `.preheat.toml`.
    pub project: Option<String>,
}

/// The trees below one folder.
#[derive(Debug, Clone)]
pub struct Trees(PathBuf);

impl Trees {
    /// Below `folder`, which need not be there.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    fn place(&self, tree: TreeId) -> PathBuf {
        self.0.join(tree.to_string())
    }

    /// Keeps a plain tar, which is on the disk already, under the name that it was found to have. It stays where it is, too.
    ///
    /// # Errors
    /// When it cannot be kept; nothing is lost by that but time.
    pub fn keep(&self, tree: TreeId, tar: &Path, about: &About) -> io::Result<()> {
        let place = self.place(tree);
        if place.exists() {
            return touch(&place);
        }
        fs::create_dir_all(&self.0)?;
        let part = tempfile::Builder::new().prefix(PART).tempdir_in(&self.0)?;
        fs::hard_link(tar, part.path().join(TAR))?;
        fs::set_permissions(part.path().join(TAR), Permissions::from_mode(0o400))?;
        // Cut off by a crash it is no JSON, and the tree is not there.
        fs::write(part.path().join(ABOUT), serde_json::to_vec(about)?)?;
        match fs::rename(part.path(), &place) {
            // Another client sent the same at the same time.
            Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty) => Ok(()),
            done => done,
        }
    }

    /// Puts a link to the tree at `to`. `None` when it is not there; what cannot be used is removed.
    pub fn lend(&self, tree: TreeId, to: &Path) -> Option<About> {
        let place = self.place(tree);
        let text = fs::read(place.join(ABOUT)).ok()?;
        let lent = serde_json::from_slice(&text).map_err(io::Error::other);
        let lent = lent.and_then(|about| fs::hard_link(place.join(TAR), to).map(|()| about));
        match lent {
            Ok(about) => {
                touch(&place).ok();
                Some(about)
            }
            Err(_) => {
                self.remove(&tree.to_string()).ok();
                None
            }
        }
    }

    /// What is there, the one that was used last first.
    pub fn list(&self, now: UnixMillis) -> Vec<Entry> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let mut all: Vec<Entry> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let used = UnixMillis(entry.metadata().ok()?.mtime().saturating_mul(1000));
                let bytes = fs::metadata(entry.path().join(TAR)).map_or(0, |tar| tar.blocks() * 512);
                Some(Entry { name, bytes, age: now.since(used) })
            })
            .collect();
        all.sort_by(|a, b| a.age.cmp(&b.age).then_with(|| b.name.cmp(&a.name)));
        all
    }

    /// Removes one. Who holds it goes on holding it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let out = self.0.join(format!("{PART}{name}"));
        // Half a tree must never stand under its name.
        match fs::rename(self.0.join(name), &out) {
            Ok(()) => fs::remove_dir_all(out),
            Err(_) => fs::remove_dir_all(self.0.join(name)),
        }
    }
}

/// Those of a [list](Trees::list) that go: by `policy`, all where there is none. What is no tree, because a crash came before it
/// was one or while it was removed, goes when it is older than `leftover_age`: before that it may be on its way.
pub fn surplus(list: Vec<Entry>, policy: Option<&Policy>, leftover_age: Duration) -> Vec<Entry> {
    let (trees, others): (Vec<_>, Vec<_>) = list.into_iter().partition(|e| e.name.parse::<TreeId>().is_ok());
    let mut gone: Vec<Entry> = others.into_iter().filter(|entry| entry.age >= leftover_age).collect();
    match policy {
        None => gone.extend(trees),
        Some(policy) => {
            let item = |entry: &Entry| Item { bytes: entry.bytes, age: entry.age, held: false };
            let items: Vec<Item> = trees.iter().map(item).collect();
            gone.extend(retain::plan(&items, policy).into_iter().map(|n| trees[n].clone()));
        }
    }
    gone
}

/// Notes that it was used just now.
fn touch(place: &Path) -> io::Result<()> {
    File::open(place)?.set_modified(std::time::UNIX_EPOCH + UnixMillis::now().since(UnixMillis(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    struct Lab {
        dir: tempfile::TempDir,
        trees: Trees,
    }

    fn lab() -> Lab {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("spooled"), "a tar").expect("written");
        let trees = Trees::new(dir.path().join("trees"));
        Lab { dir, trees }
    }

    impl Lab {
        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn keep(&self, n: u8) {
            self.trees.keep(TreeId([n; 32]), &self.at("spooled"), &about()).expect("kept");
        }

        fn names(&self) -> Vec<String> {
            self.trees.list(UnixMillis::now()).into_iter().map(|entry| entry.name).collect()
        }
    }

    fn about() -> About {
        About { stripped: None, project: Some("pool = \"linux\"".into()) }
    }

    #[test]
    fn a_tree_outlives_the_build_that_brought_it_and_a_build_outlives_its_tree() {
        let lab = lab();
        let tree = TreeId([1; 32]);
        assert_eq!(lab.trees.lend(tree, &lab.at("none")), None);
        lab.keep(1);
        lab.keep(1);
        fs::remove_file(lab.at("spooled")).expect("removed");
        assert_eq!(lab.trees.lend(tree, &lab.at("one")), Some(about()));
        assert_eq!(lab.trees.lend(tree, &lab.at("two")), Some(about()));
        fs::remove_file(lab.at("two")).expect("removed");
        lab.trees.remove(&tree.to_string()).expect("removed");
        assert_eq!(lab.names(), Vec::<String>::new());
        assert_eq!(fs::read_to_string(lab.at("one")).expect("held"), "a tar");
        assert_eq!(lab.trees.lend(tree, &lab.at("three")), None);
    }

    #[test]
    fn what_a_crash_left_is_no_tree() {
        let lab = lab();
        for (n, damage) in [(1, ABOUT), (2, TAR)] {
            lab.keep(n);
            let place = lab.trees.place(TreeId([n; 32]));
            if damage == TAR {
                fs::remove_file(place.join(TAR)).expect("removed");
            } else {
                fs::write(place.join(ABOUT), "{\"stripped\":").expect("cut off");
            }
            assert_eq!(lab.trees.lend(TreeId([n; 32]), &lab.at("one")), None);
            assert!(!place.exists() && !lab.at("one").exists());
        }
    }

    #[test]
    fn trees_go_by_age_and_bytes_and_leftovers_when_nobody_can_be_at_work_on_them() {
        let entry = |name: String, bytes, hours| Entry { name, bytes, age: HOUR * hours };
        let tree = |n: u8, bytes, hours| entry(TreeId([n; 32]).to_string(), bytes, hours);
        let list = || {
            let parts = [entry(".part-new".into(), 9, 0), entry(".part-old".into(), 9, 2)];
            parts.into_iter().chain([tree(1, 10, 1), tree(2, 10, 2), tree(3, 10, 30)]).collect()
        };
        let policy = Policy { count: 100, age: HOUR * 24, bytes: Some(100), short_of: 0 };
        let names = |policy: Option<&Policy>| -> Vec<String> {
            surplus(list(), policy, HOUR).into_iter().map(|e| e.name).collect()
        };
        let name = |n: u8| TreeId([n; 32]).to_string();
        assert_eq!(names(Some(&policy)), [".part-old".into(), name(3)]);
        let small = Policy { bytes: Some(10), ..policy };
        assert_eq!(names(Some(&small)), [".part-old".into(), name(3), name(2)]);
        assert_eq!(names(None), [".part-old".into(), name(1), name(2), name(3)]);
    }

    #[test]
    fn the_one_that_was_used_last_is_first() {
        let lab = lab();
        let hours = |n| UnixMillis::now().since(UnixMillis(0)) - HOUR * n;
        for n in 1..=3 {
            lab.keep(n);
            let folder = File::open(lab.trees.place(TreeId([n; 32]))).expect("there");
            folder.set_modified(std::time::UNIX_EPOCH + hours(u32::from(n))).expect("set");
        }
        lab.trees.lend(TreeId([3; 32]), &lab.at("one")).expect("there");
        let want = [3, 1, 2].map(|n| TreeId([n; 32]).to_string());
        assert_eq!(lab.names(), want);
    }
}
