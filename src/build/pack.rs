//! A folder made into a tar, on the laptop of whoever wants it built. Blocking code.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;
use tar::{EntryType, Header};

use super::archive::{append_link, layout};
use super::exact::Exact;
use super::index::{Index, Stamp};
use super::tree::{Content, Hashing, TreeHasher};
use crate::clock::UnixMillis;
use crate::ids::TreeId;

/// The folder itself, by its name in the archive.
const ROOT: &str = "./";

/// Where `preheat run` puts artifacts by default; never sent back as source.
const OUT_DIR: &str = "preheat-out";

/// Buffer for files.
const PIECE_BYTES: usize = 256 * 1024;

/// What comes along. The default is what a fresh clone would have, uncommitted changes included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Also `.git`, for builds that ask git for a version.
    pub git: bool,
    /// Also what .gitignore, .ignore and git's exclude files leave out.
    pub ignored: bool,
}

/// What was packed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Files and links.
    pub files: u64,
    /// Of the files' contents.
    pub bytes: u64,
    /// Sockets, pipes and devices, relative to the folder.
    pub skipped: Vec<PathBuf>,
    /// The name of what was packed.
    pub tree: TreeId,
}

/// Why a folder was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// There is nothing.
    #[error("there is no folder `{}`", .0.display())]
    Absent(PathBuf),
    /// It is a file.
    #[error("`{}` is not a folder", .0.display())]
    NotFolder(PathBuf),
    /// Nothing would be sent.
    #[error("there is no file to send in `{}`", .0.display())]
    Empty(PathBuf),
    /// A link that would lead elsewhere in the VM.
    #[error("the link `{}` leads to `{}`, out of the folder", path.display(), target.display())]
    Leaves { path: PathBuf, target: PathBuf },
    /// A file or folder that cannot be read, or that changed while it was.
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The tar could not be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

impl PackError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Absent(_) => Some("name the project's folder, as in `preheat run ./my-app`"),
            Self::NotFolder(_) => {
                Some("name the folder that it is in; an archive is sent with `preheat submit`")
            }
            Self::Empty(_) => Some("is everything in it ignored by .gitignore or .ignore?"),
            Self::Leaves { .. } => Some(
                "only the folder itself is sent: make the link relative and inside, copy the file, or add the link to .ignore",
            ),
            Self::Unreadable { .. } => Some("correct its permissions, or add it to .gitignore or .ignore"),
            Self::Write(_) => None,
        }
    }
}

/// Packs `dir` as a tar into `to`: names in order, owned by nobody in particular, modes and times kept, links kept as
/// links. Files whose names begin with a dot come along (`.npmrc`), `.git` and `preheat-out` do not.
///
/// # Errors
/// Whatever [`PackError`] lists; what was written by then is no archive.
pub fn pack(dir: &Path, options: PackOptions, to: impl Write) -> Result<Packed, PackError> {
    pack_noting(dir, options, to, &mut Index::default())
}

/// As [`pack`]; what was read is noted in `index`.
///
/// # Errors
/// As [`pack`].
pub fn pack_noting(
    dir: &Path,
    options: PackOptions,
    to: impl Write,
    index: &mut Index,
) -> Result<Packed, PackError> {
    let (root, entries) = look(dir, options)?;
    let mut packing = Packing { tar: tar::Builder::new(to), tree: TreeHasher::default(), index };
    let mut packed = Packed::default();
    // The root by name says that a single folder in it is no wrapping to be stripped.
    packing.folder(Path::new(ROOT), &root)?;
    for entry in &entries {
        packing.add(dir, entry, &mut packed)?;
    }
    if packed.files == 0 {
        return Err(PackError::Empty(dir.into()));
    }
    packing.tar.into_inner().and_then(|mut to| to.flush()).map_err(PackError::Write)?;
    packed.tree = packing.tree.finish();
    Ok(packed)
}

/// The name of what [`pack`] would make of `dir`, without reading a file. `None` when that needs more than `index` knows.
///
/// # Errors
/// As [`pack`], as far as it shows.
pub fn survey(dir: &Path, options: PackOptions, index: &Index) -> Result<Option<TreeId>, PackError> {
    let (root, entries) = look(dir, options)?;
    let mut tree = TreeHasher::default();
    tree.add(ROOT.as_bytes(), mode(&root), mtime(&root), Content::Folder);
    let mut files = 0;
    for Entry { name, facts, target } in &entries {
        let (mode, mtime) = (mode(facts), mtime(facts));
        if let Some(target) = target {
            let target = target.as_os_str().as_bytes();
            tree.add(name.as_os_str().as_bytes(), mode, mtime, Content::Link { target });
        } else if facts.is_dir() {
            tree.add(name.join("").as_os_str().as_bytes(), mode, mtime, Content::Folder);
            continue;
        } else if facts.is_file() {
            let Some(hash) = index.get(name, facts) else { return Ok(None) };
            let content = Content::File { bytes: facts.len(), hash: &hash };
            tree.add(name.as_os_str().as_bytes(), mode, mtime, content);
        } else {
            continue;
        }
        files += 1;
    }
    Ok((files > 0).then(|| tree.finish()))
}

/// The folder itself, and everything in it that is sent along, in order.
fn look(dir: &Path, options: PackOptions) -> Result<(Metadata, Vec<Entry>), PackError> {
    let found = match fs::metadata(dir) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(PackError::Absent(dir.into())),
        Err(source) => return Err(PackError::Unreadable { path: dir.into(), source }),
    };
    if !found.is_dir() {
        return Err(PackError::NotFolder(dir.into()));
    }
    let entries = collect(dir, options)?;
    check_links(&entries)?;
    Ok((found, entries))
}

struct Entry {
    /// Relative to the folder.
    name: PathBuf,
    facts: Metadata,
    target: Option<PathBuf>,
}

fn collect(dir: &Path, options: PackOptions) -> Result<Vec<Entry>, PackError> {
    let mut walk = WalkBuilder::new(dir);
    let rules = !options.ignored;
    // In a repository the rules of the folders above count, and the user's own; outside of one, a stray ~/.gitignore must
    // not decide.
    let in_git = dir.canonicalize().is_ok_and(|d| d.ancestors().any(|a| a.join(".git").exists()));
    walk.standard_filters(false)
        .git_ignore(rules)
        .ignore(rules)
        .git_exclude(rules && in_git)
        .git_global(rules && in_git)
        .parents(rules && in_git)
        .require_git(false)
        .follow_links(false)
        .sort_by_file_name(std::ffi::OsStr::cmp);
    walk.filter_entry(move |e| {
        let out_dir = e.depth() == 1 && e.file_name() == OUT_DIR;
        let git = e.depth() > 0 && e.file_name() == ".git" && !options.git;
        !out_dir && !git
    });
    let mut entries = Vec::new();
    for found in walk.build() {
        let found = found.map_err(|e| unreadable(dir, e))?;
        let path = found.path();
        let Ok(name) = path.strip_prefix(dir) else { continue };
        if name.as_os_str().is_empty() {
            continue;
        }
        let failed = |source| PackError::Unreadable { path: path.into(), source };
        let facts = fs::symlink_metadata(path).map_err(failed)?;
        let target = facts.is_symlink().then(|| fs::read_link(path)).transpose().map_err(failed)?;
        entries.push(Entry { name: name.into(), facts, target });
    }
    Ok(entries)
}

/// The walker's error with its path taken out of its layers.
fn unreadable(dir: &Path, error: ignore::Error) -> PackError {
    let mut path = dir.to_owned();
    let mut layer = &error;
    loop {
        layer = match layer {
            ignore::Error::WithPath { path: p, err } => {
                path.clone_from(p);
                err
            }
            ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => err,
            ignore::Error::Partial(_)
            | ignore::Error::Loop { .. }
            | ignore::Error::Io(_)
            | ignore::Error::Glob { .. }
            | ignore::Error::UnrecognizedFileType(_)
            | ignore::Error::InvalidDefinition => break,
        };
    }
    let text = layer.to_string();
    PackError::Unreadable { path, source: error.into_io_error().unwrap_or_else(|| io::Error::other(text)) }
}

fn check_links(entries: &[Entry]) -> Result<(), PackError> {
    let links: BTreeMap<&[u8], &[u8]> = entries
        .iter()
        .filter_map(|e| Some((e.name.as_os_str().as_bytes(), e.target.as_ref()?.as_os_str().as_bytes())))
        .collect();
    for entry in entries {
        if let Some(target) = &entry.target {
            let (name, to) = (entry.name.as_os_str().as_bytes(), target.as_os_str().as_bytes());
            layout::follow(&links, name, to)
                .map_err(|_| PackError::Leaves { path: entry.name.clone(), target: target.clone() })?;
        }
    }
    Ok(())
}

/// An archive that is being written, and what is learnt on the way.
struct Packing<'a, W: Write> {
    tar: tar::Builder<W>,
    tree: TreeHasher,
    index: &'a mut Index,
}

impl<W: Write> Packing<'_, W> {
    fn add(&mut self, dir: &Path, entry: &Entry, packed: &mut Packed) -> Result<(), PackError> {
        let (name, facts) = (&entry.name, &entry.facts);
        if let Some(target) = &entry.target {
            packed.files += 1;
            let target = target.as_os_str().as_bytes();
            self.tree.add(name.as_os_str().as_bytes(), mode(facts), mtime(facts), Content::Link { target });
            let mut header = header(EntryType::Symlink, facts, 0);
            return append_link(&mut self.tar, &mut header, name, target).map_err(PackError::Write);
        }
        if facts.is_dir() {
            return self.folder(&name.join(""), facts);
        }
        if !facts.is_file() {
            packed.skipped.push(name.clone());
            return Ok(());
        }
        packed.bytes += self.file(&dir.join(name), name, facts)?;
        packed.files += 1;
        Ok(())
    }

    fn folder(&mut self, name: &Path, facts: &Metadata) -> Result<(), PackError> {
        self.tree.add(name.as_os_str().as_bytes(), mode(facts), mtime(facts), Content::Folder);
        let mut header = header(EntryType::Directory, facts, 0);
        self.tar.append_data(&mut header, name, io::empty()).map_err(PackError::Write)
    }

    /// Packs one file, and returns how long it is.
    fn file(&mut self, path: &Path, name: &Path, facts: &Metadata) -> Result<u64, PackError> {
        let failed = |source| PackError::Unreadable { path: path.to_owned(), source };
        let begun = UnixMillis::now();
        let file = File::open(path).map_err(failed)?;
        let before = file.metadata().map_err(failed)?;
        let bytes = before.len();
        let reader = Hashing::new(BufReader::with_capacity(PIECE_BYTES, &file));
        let mut whole = Exact::new(reader, bytes, "it became shorter while it was read");
        let written = self.tar.append_data(&mut header(EntryType::Regular, facts, bytes), name, &mut whole);
        match (whole.failed, written) {
            (Some(source), _) => return Err(failed(source)),
            (None, Err(error)) => return Err(PackError::Write(error)),
            (None, Ok(())) => {}
        }
        let hash = whole.from.finish();
        let content = Content::File { bytes, hash: &hash };
        self.tree.add(name.as_os_str().as_bytes(), mode(facts), mtime(facts), content);
        let stamp = Stamp::of(&before);
        if file.metadata().is_ok_and(|after| Stamp::of(&after) == stamp) {
            self.index.note(name, stamp, hash, begun);
        }
        Ok(bytes)
    }
}

fn mode(facts: &Metadata) -> u32 {
    facts.permissions().mode() & 0o777
}

fn mtime(facts: &Metadata) -> u64 {
    u64::try_from(facts.mtime()).unwrap_or(0)
}

fn header(kind: EntryType, facts: &Metadata, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode(facts));
    header.set_mtime(mtime(facts));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::build::archive::{Limits, normalise};

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        for name in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, name).expect("written");
        }
        dir
    }

    fn packed(dir: &Path, options: PackOptions) -> (Packed, Vec<String>, Vec<u8>) {
        let mut bytes = Vec::new();
        let report = pack(dir, options, &mut bytes).expect("packed");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names = archive
            .entries()
            .expect("a tar")
            .map(|e| e.expect("whole").path().expect("a name").display().to_string());
        let names: Vec<String> = names.filter(|n| !n.ends_with('/')).collect();
        (report, names, bytes)
    }

    #[test]
    fn rules_are_respected_without_a_repository_and_dotfiles_come() {
        let dir = tree(&[
            ".npmrc",
            ".github/ci.yml",
            "src/a",
            "target/x",
            "sub/.gitignore",
            "sub/b.log",
            "sub/keep.txt",
            "preheat-out/app",
            "deep/preheat-out/kept",
            ".git/config",
            "vendor/lib/.git/x",
            "secret",
        ]);
        fs::write(dir.path().join(".gitignore"), "target/\n").expect("written");
        fs::write(dir.path().join("sub/.gitignore"), "*.log\n").expect("written");
        fs::write(dir.path().join(".ignore"), "secret\n").expect("written");
        let (report, names, _) = packed(dir.path(), PackOptions::default());
        let want = [
            ".github/ci.yml",
            ".gitignore",
            ".ignore",
            ".npmrc",
            "deep/preheat-out/kept",
            "src/a",
            "sub/.gitignore",
            "sub/keep.txt",
        ];
        assert_eq!(names, want);
        assert_eq!(report.files, want.len() as u64);
        let (_, all, _) = packed(dir.path(), PackOptions { git: true, ignored: true });
        for name in ["target/x", "secret", ".git/config", "vendor/lib/.git/x", "sub/b.log"] {
            assert!(all.iter().any(|n| n == name), "{name}");
        }
        assert!(!all.iter().any(|n| n == "preheat-out/app"));
    }

    #[test]
    fn a_rule_above_counts_in_a_repository_only() {
        let dir = tree(&["app/a", "app/b.tmp"]);
        fs::write(dir.path().join(".gitignore"), "*.tmp\n").expect("written");
        assert_eq!(packed(&dir.path().join("app"), PackOptions::default()).1, ["a", "b.tmp"]);
        fs::create_dir(dir.path().join(".git")).expect("made");
        assert_eq!(packed(&dir.path().join("app"), PackOptions::default()).1, ["a"]);
    }

    #[test]
    fn the_same_tree_makes_the_same_archive_and_the_daemon_takes_it() {
        let dir = tree(&["only/b", "only/a", "only/c/d"]);
        symlink("../a", dir.path().join("only/c/l")).expect("made");
        let (_, names, bytes) = packed(dir.path(), PackOptions::default());
        assert_eq!(names, ["only/a", "only/b", "only/c/d", "only/c/l"]);
        assert!(bytes == packed(dir.path(), PackOptions::default()).2);
        let out = tempfile::tempdir().expect("a folder");
        fs::write(out.path().join("in"), bytes).expect("written");
        let taken =
            normalise(&out.path().join("in"), &out.path().join("out"), Limits::default()).expect("taken");
        assert_eq!((taken.files, taken.stripped), (4, None));
    }

    /// Packed, with an index that knows all of it: as if it had lain there for a while.
    fn known(dir: &Path) -> (TreeId, Index) {
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let mut index = Index::default();
        let all = PackOptions { git: true, ignored: true };
        for entry in collect(dir, all).expect("there").into_iter().filter(|e| e.facts.is_file()) {
            let path = dir.join(&entry.name);
            File::open(&path).and_then(|f| f.set_modified(long_ago)).expect("set");
            let facts = fs::metadata(&path).expect("there");
            let mut content = Hashing::new(File::open(&path).expect("there"));
            io::copy(&mut content, &mut io::sink()).expect("read");
            let later = UnixMillis(UnixMillis::now().0 + 60_000);
            index.note(&entry.name, Stamp::of(&facts), content.finish(), later);
        }
        let packed = pack(dir, PackOptions::default(), io::sink()).expect("packed");
        (packed.tree, index)
    }

    #[test]
    fn sender_and_receiver_give_a_tree_the_same_name() {
        let long = format!("{}/{}", "folder".repeat(12), "name".repeat(20));
        let dir = tree(&["only/b", "only/c/d", &long]);
        symlink("../b", dir.path().join("only/c/l")).expect("made");
        symlink(&long, dir.path().join("far")).expect("made");
        fs::set_permissions(dir.path().join("only/b"), fs::Permissions::from_mode(0o755)).expect("set");
        let (report, _, bytes) = packed(dir.path(), PackOptions::default());
        let tar = dir.path().join("tar");
        fs::write(&tar, &bytes).expect("written");
        assert_eq!(super::super::tree::of_archive(&tar).expect("a tar"), Some(report.tree));
        for damaged in [&bytes[..bytes.len() / 2], b"no tar at all".as_slice()] {
            fs::write(&tar, damaged).expect("written");
            assert!(super::super::tree::of_archive(&tar).ok().flatten() != Some(report.tree));
        }
    }

    #[test]
    fn an_unchanged_tree_is_named_without_reading_it() {
        let dir = tree(&["a", "sub/b", "sub/c"]);
        symlink("a", dir.path().join("l")).expect("made");
        let (name, index) = known(dir.path());
        let survey = |index: &Index| survey(dir.path(), PackOptions::default(), index).expect("looked at");
        assert_eq!(survey(&index), Some(name));
        assert_eq!(survey(&Index::default()), None);
    }

    #[test]
    fn a_tree_that_was_changed_in_any_way_has_another_name_or_is_read() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 6] = [
            ("content", |dir| fs::write(dir.join("a"), "other").expect("written")),
            ("mode", |dir| {
                fs::set_permissions(dir.join("a"), fs::Permissions::from_mode(0o755)).expect("set");
            }),
            ("removed", |dir| fs::remove_file(dir.join("a")).expect("removed")),
            ("added", |dir| fs::write(dir.join("new"), "").expect("written")),
            ("renamed", |dir| fs::rename(dir.join("a"), dir.join("z")).expect("renamed")),
            ("link", |dir| {
                fs::remove_file(dir.join("l")).expect("removed");
                symlink("sub", dir.join("l")).expect("made");
            }),
        ];
        for (what, change) in changes {
            let dir = tree(&["a", "sub/b"]);
            symlink("a", dir.path().join("l")).expect("made");
            let (name, index) = known(dir.path());
            change(dir.path());
            let seen = survey(dir.path(), PackOptions::default(), &index).expect("looked at");
            assert_ne!(seen, Some(name), "{what}");
        }
    }

    #[test]
    fn what_cannot_be_packed_is_named() {
        let dir = tree(&["a"]);
        let fails = |path: &Path| pack(path, PackOptions::default(), io::sink()).expect_err("no archive");
        assert!(matches!(fails(&dir.path().join("absent")), PackError::Absent(_)));
        assert!(matches!(fails(&dir.path().join("a")), PackError::NotFolder(_)));
        assert!(matches!(fails(tree(&["preheat-out/a"]).path()), PackError::Empty(_)));
        for target in ["/etc/passwd", "../x", "here/../.."] {
            let dir = tree(&["a"]);
            symlink(".", dir.path().join("here")).expect("made");
            symlink(target, dir.path().join("l")).expect("made");
            let error = fails(dir.path());
            assert!(matches!(&error, PackError::Leaves { path, .. } if path == Path::new("l")), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn sockets_are_left_out_and_reported() {
        let dir = tree(&["a"]);
        let _socket = UnixListener::bind(dir.path().join("s")).expect("bound");
        let (report, names, _) = packed(dir.path(), PackOptions::default());
        assert_eq!((names, report.skipped), (vec!["a".to_owned()], vec![PathBuf::from("s")]));
    }

    #[test]
    fn an_unreadable_file_is_an_error_with_its_name() {
        if nix::unistd::geteuid().is_root() {
            // Root reads everything; a file that vanished is as unreadable.
            let entry = Entry {
                name: "gone".into(),
                facts: fs::metadata("/etc/passwd").expect("there"),
                target: None,
            };
            let mut packing = Packing {
                tar: tar::Builder::new(io::sink()),
                tree: TreeHasher::default(),
                index: &mut Index::default(),
            };
            let added = packing.add(Path::new("/nowhere"), &entry, &mut Packed::default());
            assert!(
                matches!(added, Err(PackError::Unreadable { path, .. }) if path == Path::new("/nowhere/gone"))
            );
            return;
        }
        let dir = tree(&["a", "b"]);
        fs::set_permissions(dir.path().join("b"), fs::Permissions::from_mode(0o000)).expect("set");
        let error = pack(dir.path(), PackOptions::default(), io::sink()).expect_err("unreadable");
        assert!(error.to_string().contains("/b"), "{error}");
    }
}
