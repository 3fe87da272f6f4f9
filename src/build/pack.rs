//! A folder made into a tar, on the laptop of whoever wants it built. Blocking code.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;
use tar::{EntryType, Header};

use super::archive::{append_link, layout};
use super::exact::Exact;

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
    let mut packed = Packed::default();
    let mut tar = tar::Builder::new(to);
    // The root by name says that a single folder in it is no wrapping to be stripped.
    append(&mut tar, EntryType::Directory, Path::new("./"), &found, 0, io::empty())
        .map_err(PackError::Write)?;
    for entry in &entries {
        add(&mut tar, dir, entry, &mut packed)?;
    }
    if packed.files == 0 {
        return Err(PackError::Empty(dir.into()));
    }
    tar.into_inner().and_then(|mut to| to.flush()).map_err(PackError::Write)?;
    Ok(packed)
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

fn add(
    tar: &mut tar::Builder<impl Write>,
    dir: &Path,
    entry: &Entry,
    packed: &mut Packed,
) -> Result<(), PackError> {
    let (name, facts) = (&entry.name, &entry.facts);
    if let Some(target) = &entry.target {
        packed.files += 1;
        let mut header = header(EntryType::Symlink, facts, 0);
        return append_link(tar, &mut header, name, target.as_os_str().as_bytes()).map_err(PackError::Write);
    }
    if facts.is_dir() {
        return append(tar, EntryType::Directory, &name.join(""), facts, 0, io::empty())
            .map_err(PackError::Write);
    }
    if !facts.is_file() {
        packed.skipped.push(name.clone());
        return Ok(());
    }
    let path = dir.join(name);
    let failed = |source| PackError::Unreadable { path: path.clone(), source };
    let file = File::open(&path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let reader = BufReader::with_capacity(PIECE_BYTES, file);
    let mut whole = Exact::new(reader, size, "it became shorter while it was read");
    let written = append(tar, EntryType::Regular, name, facts, size, &mut whole);
    match (whole.failed, written) {
        (Some(source), _) => Err(failed(source)),
        (None, Err(error)) => Err(PackError::Write(error)),
        (None, Ok(())) => {
            packed.files += 1;
            packed.bytes += size;
            Ok(())
        }
    }
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    kind: EntryType,
    name: &Path,
    facts: &Metadata,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    tar.append_data(&mut header(kind, facts, size), name, content)
}

fn header(kind: EntryType, facts: &Metadata, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(facts.permissions().mode() & 0o777);
    header.set_mtime(u64::try_from(facts.mtime()).unwrap_or(0));
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
            let added = add(
                &mut tar::Builder::new(io::sink()),
                Path::new("/nowhere"),
                &entry,
                &mut Packed::default(),
            );
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
