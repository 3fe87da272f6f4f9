//! What lies below `$PREHEAT_HOME/caches`: each entry a tar and a note beside it, and all notes in memory.
//!
//! ```text
//!   partial-*.tar --checked, renamed--> <id>.tar --its note, renamed--> <id>.json     an entry: there, whole, for good
//!        |                                 |                                |
//!        `-- dropped, or a crash           `-- a crash                      `-- evicted, asked, damaged: the note goes first
//!            v                                 v                                v
//!            nothing: the next start removes what has no note
//! ```
//!
//! Nothing is synced: what a power cut tears does not fit its sum, and is found when it is to be restored. Blocking code,
//! but for what only looks into memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::TempPath;

use crate::api::wire::CacheEntryView;
use crate::clock::UnixMillis;
use crate::config::Caches;
use crate::ids::BuildId;
use crate::janitor::retain::{self, Item, Policy};
use crate::jitter;
use crate::telemetry::caching::{CacheRemoved, Removal};

/// Of notes. Another one's entries are nobody's.
const VERSION: u32 = 1;

/// Entries of all projects: their notes are in memory. Beyond it the least recently used go.
const ENTRIES_MAX: usize = 10_000;

/// A note is a few hundred bytes; its paths make it longer.
const NOTE_BYTES_MAX: u64 = 256 << 10;

/// Characters of an entry's name.
const ID_CHARS: usize = 12;

/// Read at once.
const PIECE_BYTES: usize = 256 * 1024;

const TAR: &str = "tar";
const NOTE: &str = "json";
const PARTIAL: &str = "partial-";

/// Whose caches, and of which folders: only what was saved from the same paths is restored to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    pub project: &'a str,
    pub pool: &'a str,
    pub paths: &'a [String],
}

/// An entry's note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    version: u32,
    pub id: String,
    pub project: String,
    pub pool: String,
    pub key: String,
    pub paths: Vec<String>,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    pub saved_ms: UnixMillis,
    /// Which build saved it.
    pub build: BuildId,
    /// When it was restored last; the note's own time of change on the disk.
    #[serde(skip, default = "never")]
    pub used_ms: UnixMillis,
}

fn never() -> UnixMillis {
    UnixMillis(0)
}

impl Entry {
    fn is_of(&self, scope: &Scope<'_>) -> bool {
        self.project == scope.project && self.pool == scope.pool && self.paths == scope.paths
    }

    /// As it goes over HTTP.
    pub fn view(&self) -> CacheEntryView {
        CacheEntryView {
            id: self.id.clone(),
            project: self.project.clone(),
            pool: self.pool.clone(),
            key: self.key.clone(),
            paths: self.paths.clone(),
            bytes: self.bytes,
            saved_ms: self.saved_ms,
            used_ms: self.used_ms,
            build: self.build,
        }
    }
}

/// An entry to be restored. While it is held, it is not evicted.
#[derive(Debug, Clone)]
pub struct Found {
    pub entry: Entry,
    /// Its key is the one that was asked for.
    pub exact: bool,
    pub tar: PathBuf,
    _held: Arc<()>,
}

/// A tar on its way to the shelf. Dropped, it was never there.
#[derive(Debug)]
pub struct Partial {
    path: TempPath,
}

impl Partial {
    /// The file to write to; it is there, and empty.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What was received.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    pub bytes: u64,
    pub sha256: &'a str,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    Saved(Entry),
    /// Another build was first, and the same key never means two things.
    Present,
}

/// The shelf. Clones share it.
#[derive(Debug, Clone)]
pub struct Shelf {
    folder: PathBuf,
    entries: Arc<Mutex<BTreeMap<String, Lying>>>,
}

#[derive(Debug)]
struct Lying {
    entry: Entry,
    /// Counts who holds it.
    held: Arc<()>,
}

impl Shelf {
    /// Reads the notes in `folder`, which need not be there, and removes what a crash left. For whoever has the
    /// installation to himself.
    pub fn open(folder: PathBuf) -> Self {
        let mut entries = BTreeMap::new();
        let files: Vec<String> = fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|file| file.file_name().into_string().ok())
            .collect();
        for name in files.iter().filter_map(|name| name.strip_suffix(".json")) {
            if let Some(entry) = read_note(&folder, name) {
                entries.insert(name.to_owned(), Lying { entry, held: Arc::default() });
            }
        }
        for name in files.iter().filter(|name| is_stray(name, &entries)) {
            fs::remove_file(folder.join(name)).ok();
        }
        Self { folder, entries: Arc::new(Mutex::new(entries)) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Lying>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, id: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{id}.{extension}"))
    }

    /// Every entry, the last used first. From memory.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.lock().values().map(|lying| lying.entry.clone()).collect();
        entries.sort_by(|a, b| b.used_ms.cmp(&a.used_ms).then_with(|| (&a.key, &a.id).cmp(&(&b.key, &b.id))));
        entries
    }

    /// Whether the key has an entry. From memory.
    pub fn has(&self, scope: &Scope<'_>, key: &str) -> bool {
        self.lock().values().any(|lying| lying.entry.is_of(scope) && lying.entry.key == key)
    }

    /// The entry of the key; else, for the first of `restore_keys` that has any, the newest whose key begins so. From
    /// memory.
    pub fn find(&self, scope: &Scope<'_>, key: &str, restore_keys: &[String]) -> Option<Found> {
        let entries = self.lock();
        let of_scope = || entries.values().filter(|lying| lying.entry.is_of(scope));
        let exact = of_scope().find(|lying| lying.entry.key == key);
        let newest = |prefix: &String| {
            let begin_so = of_scope().filter(|lying| lying.entry.key.starts_with(prefix.as_str()));
            begin_so
                .max_by_key(|lying| (lying.entry.saved_ms, lying.entry.key.clone(), lying.entry.id.clone()))
        };
        let lying = exact.or_else(|| restore_keys.iter().find_map(newest))?;
        Some(Found {
            entry: lying.entry.clone(),
            exact: lying.entry.key == key,
            tar: self.file(&lying.entry.id, TAR),
            _held: lying.held.clone(),
        })
    }

    /// As [`find`](Self::find), with its tar read and compared with its sum. One that does not fit is removed, and the next
    /// one is looked for. The second value says how many were.
    pub fn find_whole(
        &self,
        scope: &Scope<'_>,
        key: &str,
        restore_keys: &[String],
    ) -> (Option<Found>, usize) {
        let mut damaged = 0;
        while let Some(found) = self.find(scope, key, restore_keys) {
            let fits = sum(&found.tar)
                .is_ok_and(|(bytes, sha256)| bytes == found.entry.bytes && sha256 == found.entry.sha256);
            if fits {
                return (Some(found), damaged);
            }
            damaged += usize::from(self.remove(&found.entry.id, Removal::Damaged).is_some());
        }
        (None, damaged)
    }

    /// Notes that an entry was restored. Should the disk not take it, the memory has it.
    pub fn note_use(&self, id: &str, at: UnixMillis) {
        if let Some(lying) = self.lock().get_mut(id) {
            lying.entry.used_ms = lying.entry.used_ms.max(at);
        }
        let since = Duration::from_millis(u64::try_from(at.0).unwrap_or(0));
        if let Ok(note) = File::options().write(true).open(self.file(id, NOTE)) {
            note.set_modified(UNIX_EPOCH + since).ok();
        }
    }

    /// A place for a tar.
    ///
    /// # Errors
    /// When the disk gives none.
    pub fn begin(&self) -> io::Result<Partial> {
        // Caches may hold what is not for everybody's eyes.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let file = tempfile::Builder::new().prefix(PARTIAL).suffix(".tar").tempfile_in(&self.folder)?;
        Ok(Partial { path: file.into_temp_path() })
    }

    /// Puts a whole tar on the shelf, unless another build was first.
    ///
    /// # Errors
    /// When the disk does not take it; then nothing of it is there.
    pub fn keep(
        &self,
        partial: Partial,
        content: Content<'_>,
        scope: &Scope<'_>,
        key: &str,
        (build, at): (BuildId, UnixMillis),
    ) -> io::Result<Kept> {
        // Held over both renames: of two builds with the same key one is first.
        let mut entries = self.lock();
        if entries.values().any(|lying| lying.entry.is_of(scope) && lying.entry.key == key) {
            return Ok(Kept::Present);
        }
        let mut id = some_id();
        id.truncate(ID_CHARS);
        let entry = Entry {
            version: VERSION,
            id: id.clone(),
            project: scope.project.to_owned(),
            pool: scope.pool.to_owned(),
            key: key.to_owned(),
            paths: scope.paths.to_vec(),
            bytes: content.bytes,
            sha256: content.sha256.to_owned(),
            saved_ms: at,
            build,
            used_ms: at,
        };
        let tar = self.file(&id, TAR);
        partial.path.persist_noclobber(&tar).map_err(|e| e.error)?;
        if let Err(error) = self.write_note(&entry) {
            fs::remove_file(tar).ok();
            return Err(error);
        }
        entries.insert(id, Lying { entry: entry.clone(), held: Arc::default() });
        Ok(Kept::Saved(entry))
    }

    fn write_note(&self, entry: &Entry) -> io::Result<()> {
        let note = tempfile::Builder::new().prefix(PARTIAL).suffix(".json").tempfile_in(&self.folder)?;
        serde_json::to_writer(note.as_file(), entry)?;
        note.persist_noclobber(self.file(&entry.id, NOTE)).map_err(|e| e.error)?;
        Ok(())
    }

    /// Removes an entry; `None` when there is none. Whoever has its tar open reads on.
    pub fn remove(&self, id: &str, why: Removal) -> Option<Entry> {
        let entry = self.lock().remove(id)?.entry;
        // The note first: a tar without one is a stray.
        fs::remove_file(self.file(id, NOTE)).ok();
        fs::remove_file(self.file(id, TAR)).ok();
        CacheRemoved { id, project: &entry.project, key: &entry.key, bytes: entry.bytes, why }.emit();
        Some(entry)
    }

    /// Removes what the bounds do not keep: the least recently used first, and nothing that is being restored. Returns how
    /// many there are left.
    pub fn evict(&self, bounds: &Caches, short_of: u64, now: UnixMillis) -> usize {
        let entries = self.entries();
        let items: Vec<Item> = {
            let lying = self.lock();
            let held = |id: &str| lying.get(id).is_some_and(|lying| Arc::strong_count(&lying.held) > 1);
            let item = |e: &Entry| Item { bytes: e.bytes, age: now.since(e.used_ms), held: held(&e.id) };
            entries.iter().map(item).collect()
        };
        let gone = retain::plan(&items, &policy(bounds, short_of));
        for n in &gone {
            self.remove(&entries[*n].id, Removal::Evicted);
        }
        entries.len() - gone.len()
    }
}

fn policy(bounds: &Caches, short_of: u64) -> Policy {
    Policy { count: ENTRIES_MAX, age: bounds.keep_age, bytes: Some(bounds.bytes_max.0), short_of }
}

fn read_note(folder: &Path, id: &str) -> Option<Entry> {
    let file = File::open(folder.join(format!("{id}.{NOTE}"))).ok()?;
    let written = UnixMillis(file.metadata().ok()?.mtime().saturating_mul(1000));
    let mut entry: Entry = serde_json::from_reader(file.take(NOTE_BYTES_MAX)).ok()?;
    entry.used_ms = written.max(entry.saved_ms);
    let tar = fs::symlink_metadata(folder.join(format!("{id}.{TAR}"))).ok()?;
    let right = entry.version == VERSION && entry.id == id && tar.is_file() && tar.len() == entry.bytes;
    right.then_some(entry)
}

/// A name that nothing has. By the seeded chance, so that a simulated history is the same for the same seed.
fn some_id() -> String {
    let word = || (jitter::next() * f64::from(u32::MAX)) as u32;
    format!("{:08x}{:08x}{:08x}{:08x}", word(), word(), word(), word())
}

/// A file that is named as ours are and belongs to no entry. What is named otherwise is somebody's.
fn is_stray(name: &str, entries: &BTreeMap<String, Lying>) -> bool {
    let Some((stem, extension)) = name.rsplit_once('.') else { return false };
    let is_id = stem.len() == ID_CHARS && stem.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(extension, TAR | NOTE) && (name.starts_with(PARTIAL) || (is_id && !entries.contains_key(stem)))
}

/// A file's length and digest.
fn sum(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hash, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok((bytes, hex(&hash.finalize()))),
            n => {
                bytes += n as u64;
                hash.update(&piece[..n]);
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, b| {
        write!(text, "{b:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ByteSize;

    const DAY: Duration = Duration::from_secs(86_400);

    struct Bed {
        dir: tempfile::TempDir,
        shelf: Shelf,
    }

    fn bed() -> Bed {
        let dir = tempfile::tempdir().expect("a folder");
        let shelf = Shelf::open(dir.path().join("caches"));
        Bed { dir, shelf }
    }

    fn paths(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    impl Bed {
        fn save_for(&self, (project, pool): (&str, &str), key: &str, content: &[u8], at: i64) -> Kept {
            let partial = self.shelf.begin().expect("a place");
            fs::write(partial.path(), content).expect("written");
            let sha256 = hex(&Sha256::digest(content));
            let content = Content { bytes: content.len() as u64, sha256: &sha256 };
            let scope = Scope { project, pool, paths: &paths(&["Pods"]) };
            self.shelf.keep(partial, content, &scope, key, (BuildId(1), UnixMillis(at))).expect("kept")
        }

        fn save(&self, key: &str, content: &[u8], at: i64) -> Kept {
            self.save_for(("app", "mac"), key, content, at)
        }

        fn find(&self, key: &str, restore_keys: &[&str]) -> Option<(String, bool)> {
            let scope = Scope { project: "app", pool: "mac", paths: &paths(&["Pods"]) };
            let found = self.shelf.find(&scope, key, &paths(restore_keys))?;
            Some((found.entry.key, found.exact))
        }

        fn files(&self) -> Vec<String> {
            let there = fs::read_dir(self.dir.path().join("caches")).into_iter().flatten().flatten();
            let mut names: Vec<String> =
                there.map(|f| f.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }

        fn open_anew(&self) -> Shelf {
            Shelf::open(self.dir.path().join("caches"))
        }

        fn keys(&self) -> Vec<String> {
            self.shelf.entries().into_iter().map(|entry| entry.key).collect()
        }
    }

    fn bounds(bytes_max: u64, keep_age: Duration) -> Caches {
        let (bytes_max, entry_max) = (ByteSize(bytes_max), ByteSize(bytes_max));
        Caches { bytes_max, entry_max, keep_age, timeout: DAY }
    }

    #[test]
    fn a_key_finds_its_entry_and_else_the_newest_of_the_first_prefix_that_has_one() {
        let bed = bed();
        for (key, at) in [("pods-1", 1000), ("pods-2", 3000), ("pods-3", 2000), ("gems-1", 9000)] {
            assert!(matches!(bed.save(key, b"x", at), Kept::Saved(_)));
        }
        let hit = |key: &str, exact| Some((key.to_owned(), exact));
        assert_eq!(bed.find("pods-1", &["pods-"]), hit("pods-1", true));
        assert_eq!(bed.find("pods-9", &["pods-"]), hit("pods-2", false));
        assert_eq!(bed.find("pods-9", &["none-", "gems-", "pods-"]), hit("gems-1", false));
        assert_eq!(bed.find("pods-9", &[]), None);
        assert_eq!(bed.find("pods", &[]), None, "a key is no prefix");
    }

    #[test]
    fn no_project_pool_or_set_of_paths_finds_anothers_cache() {
        let bed = bed();
        bed.save_for(("app", "mac"), "k", b"mine", 1);
        for (project, pool, of) in
            [("other", "mac", "Pods"), ("app", "linux", "Pods"), ("app", "mac", "Gems")]
        {
            let scope = Scope { project, pool, paths: &paths(&[of]) };
            assert!(bed.shelf.find(&scope, "k", &paths(&["k"])).is_none(), "{project} {pool} {of}");
            assert!(!bed.shelf.has(&scope, "k"));
        }
        assert!(matches!(bed.save_for(("other", "mac"), "k", b"theirs", 1), Kept::Saved(_)));
    }

    #[test]
    fn the_first_that_saves_a_key_wins_and_it_never_changes() {
        let bed = bed();
        let (first, second) = (bed.shelf.begin().expect("a place"), bed.shelf.begin().expect("a place"));
        drop((first, second));
        assert!(matches!(bed.save("k", b"one", 1), Kept::Saved(_)));
        assert_eq!(bed.save("k", b"two", 2), Kept::Present);
        let scope = Scope { project: "app", pool: "mac", paths: &paths(&["Pods"]) };
        let found = bed.shelf.find_whole(&scope, "k", &[]).0.expect("there");
        assert_eq!(fs::read(found.tar).expect("there"), b"one");
        assert_eq!(bed.files().len(), 2, "{:?}", bed.files());
    }

    #[test]
    fn a_restart_finds_what_was_kept_and_removes_what_a_crash_left_and_nothing_else() {
        let bed = bed();
        bed.save("k", b"kept", 1000);
        let Kept::Saved(torn) = bed.save("torn", b"torn", 1000) else { panic!("saved") };
        let at = |name: &str| bed.dir.path().join("caches").join(name);
        fs::write(at(&format!("{}.tar", torn.id)), b"to").expect("torn");
        for name in ["partial-abc.tar", "partial-abc.json", "0123456789ab.tar", "0123456789ac.json"] {
            fs::write(at(name), b"left").expect("written");
        }
        fs::write(at("notes.txt"), b"somebody's").expect("written");
        let used = bed.shelf.entries().into_iter().find(|e| e.key == "k").expect("there");
        bed.shelf.note_use(&used.id, UnixMillis(7_000_000_000_000));
        let anew = bed.open_anew();
        let entries = anew.entries();
        assert_eq!(entries.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["k"]);
        assert_eq!(entries[0].used_ms, UnixMillis(7_000_000_000_000), "its use outlives the daemon");
        let mut left = vec![format!("{}.json", used.id), format!("{}.tar", used.id), "notes.txt".into()];
        left.sort();
        assert_eq!(bed.files(), left);
    }

    #[test]
    fn a_tar_that_does_not_fit_its_sum_is_removed_and_the_next_one_is_taken() {
        let bed = bed();
        let ids: Vec<String> = [("a-1", 1), ("a-2", 2), ("a-3", 3)]
            .map(|(key, at)| match bed.save(key, b"content", at) {
                Kept::Saved(entry) => entry.id,
                Kept::Present => panic!("new"),
            })
            .to_vec();
        let tar = |n: usize| bed.dir.path().join("caches").join(format!("{}.tar", ids[n]));
        fs::write(tar(2), b"contenT").expect("a bit of it flips");
        fs::remove_file(tar(1)).expect("gone");
        let scope = Scope { project: "app", pool: "mac", paths: &paths(&["Pods"]) };
        let (found, damaged) = bed.shelf.find_whole(&scope, "a-9", &paths(&["a-"]));
        assert_eq!((found.expect("one is whole").entry.key.as_str(), damaged), ("a-1", 2));
        assert_eq!(bed.keys(), ["a-1"]);
        assert_eq!(bed.files().len(), 2);
    }

    #[test]
    fn the_least_recently_used_go_by_bytes_and_by_age_and_never_what_is_being_restored() {
        let bed = bed();
        let day = i64::try_from(DAY.as_millis()).expect("small");
        for (n, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
            bed.save(key, &[7; 10], day * i64::try_from(n).expect("small"));
        }
        let a = bed.shelf.entries().into_iter().find(|e| e.key == "a").expect("there");
        bed.shelf.note_use(&a.id, UnixMillis(4 * day));
        assert_eq!(bed.keys(), ["a", "d", "c", "b"]);
        let now = UnixMillis(4 * day);
        assert_eq!(bed.shelf.evict(&bounds(40, 100 * DAY), 0, now), 4, "nothing is over");
        let scope = Scope { project: "app", pool: "mac", paths: &paths(&["Pods"]) };
        let held = bed.shelf.find(&scope, "b", &[]).expect("there");
        assert_eq!(bed.shelf.evict(&bounds(30, 100 * DAY), 0, now), 3);
        assert_eq!(bed.keys(), ["a", "d", "b"], "b is being restored");
        drop(held);
        assert_eq!(bed.shelf.evict(&bounds(30, DAY), 0, now), 2);
        assert_eq!(bed.keys(), ["a", "d"]);
        assert_eq!(bed.shelf.evict(&bounds(30, 100 * DAY), 1, now), 1, "the disk is short");
        assert_eq!(bed.files().len(), 2);
    }
}
