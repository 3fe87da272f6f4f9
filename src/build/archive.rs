//! Source as it comes, made into one plain tar that holds nothing but a tree. Blocking code.
//!
//! An archive is read twice: once to know all of it (an entry is judged by the others: links, folders, doubles), once to
//! write it. Nothing is unpacked on this host.

pub(in crate::build) mod layout;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType, Header};

use self::layout::{Item, Kind, Layout, Offence, clean};
use super::exact::Exact;
use crate::guest::heads::{Heads, said};

/// The most entries of an archive, folders among them.
pub const ENTRIES_MAX: u64 = 500_000;

/// The most bytes of an archive's files together, unpacked.
pub const BYTES_MAX: u64 = 16 << 30;

/// The longest `.preheat.toml`.
pub const PROJECT_BYTES_MAX: u64 = 256 * 1024;

/// The longest target of a link.
const TARGET_BYTES_MAX: u64 = 4096;

/// The name of the project's file in the root.
const PROJECT_FILE: &[u8] = b".preheat.toml";

/// From here on a name does not fit into a tar's header, its slash among it.
const NAME_BYTES_SHORT: usize = 100;

/// Buffers of files.
const PIECE_BYTES: usize = 256 * 1024;

/// What a tar's blocks may add to an entry: headers, long names, padding.
const OVERHEAD_BYTES: u64 = 16 * 1024;

/// What is taken at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub entries_max: u64,
    /// For all files together, unpacked.
    pub bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries_max: ENTRIES_MAX, bytes_max: BYTES_MAX }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Files and links.
    pub files: u64,
    /// Of the files' contents.
    pub bytes: u64,
    /// The common folder that was left out, as in `zlib-1.3.1/`.
    pub stripped: Option<String>,
    /// The content of `.preheat.toml` in the root.
    pub project: Option<String>,
}

/// Why there is no source. All but the last are the sender's fault.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Nothing was sent.
    #[error("the archive is empty")]
    Empty,
    /// There are entries, but no file.
    #[error("the archive holds no file")]
    NoFile,
    /// It is no archive, or one of a kind that is not read.
    #[error("the archive is {found}, which is not read")]
    Unsupported { found: &'static str },
    /// It breaks off, or contradicts itself.
    #[error("the archive is cut off or damaged: {}", said(.0))]
    Damaged(io::Error),
    /// An entry that could land elsewhere or do harm.
    #[error("`{path}` in the archive has {why}")]
    Hostile { path: String, why: &'static str },
    /// More entries than the limit.
    #[error("the archive has more than {max} entries")]
    TooMany { max: u64 },
    /// More bytes than the limit.
    #[error("the archive holds more than {max} bytes unpacked")]
    TooLarge { max: u64 },
    /// The project's file cannot be read as text.
    #[error("`.preheat.toml` in the archive {0}")]
    Project(&'static str),
    /// This host's: the archive cannot be opened or the result not written.
    #[error("the source cannot be stored")]
    Host(#[source] io::Error),
}

impl ArchiveError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Empty | Self::Unsupported { .. } => Some("send a tar, tar.gz, tar.zst or zip"),
            Self::NoFile => Some("is everything in the folder ignored by .gitignore or .ignore?"),
            Self::Damaged(_) => Some("make the archive again, and compare its size with what was sent"),
            Self::Hostile { .. } => Some(
                "an archive may hold only files, folders and links that stay inside it: pack the folder itself, with relative paths",
            ),
            Self::TooMany { .. } | Self::TooLarge { .. } => Some(
                "leave out what the build makes or fetches by itself: .gitignore and .ignore are respected",
            ),
            Self::Project(_) => Some("it is a plain text file in TOML, at most 256 KiB long"),
            Self::Host(_) => None,
        }
    }
}

/// Reads `input`, a tar, tar.gz, tar.zst or zip whatever its name, checks every entry, leaves a single common folder out,
/// and writes a plain tar to `output`: folders first, modes and times kept, everything owned by nobody in particular. The
/// output appears whole and on disk, or not at all.
///
/// # Errors
/// Whatever [`ArchiveError`] lists.
pub fn normalise(input: &Path, output: &Path, limits: Limits) -> Result<Summary, ArchiveError> {
    let mut source = Source::open(input, limits)?;
    let mut entries = Vec::new();
    let mut bytes = 0_u64;
    source.walk(&mut |entry, _| {
        bytes = bytes.saturating_add(entry.size);
        if bytes > limits.bytes_max {
            return Err(ArchiveError::TooLarge { max: limits.bytes_max });
        }
        if entries.len() as u64 >= limits.entries_max {
            return Err(ArchiveError::TooMany { max: limits.entries_max });
        }
        entries.push(entry);
        Ok(())
    })?;
    let items: Vec<Item> = entries.iter().map(|e| e.item.clone()).collect();
    let layout = Layout::new(&items).map_err(hostile)?;
    if layout.rest.is_empty() {
        return Err(ArchiveError::NoFile);
    }
    let names = layout.rest.values().chain(layout.folders.keys());
    if let Some(name) = names.into_iter().find(|name| !can_be_written(name)) {
        return Err(hostile(Offence { name: name.clone(), why: "a long name that is no UTF-8 text" }));
    }
    write_all(&mut source, &entries, &layout, output, limits)
}

/// The library cuts a long name off for readers that know no long ones, and that it can only do with text.
fn can_be_written(name: &[u8]) -> bool {
    let head = &name[..name.len().min(NAME_BYTES_SHORT)];
    name.len() < NAME_BYTES_SHORT || std::str::from_utf8(head).map_or_else(|e| e.valid_up_to() > 0, |_| true)
}

fn write_all(
    source: &mut Source,
    entries: &[Entry],
    layout: &Layout,
    output: &Path,
    limits: Limits,
) -> Result<Summary, ArchiveError> {
    let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let part = tempfile::NamedTempFile::new_in(folder).map_err(ArchiveError::Host)?;
    let mut tar = tar::Builder::new(BufWriter::with_capacity(PIECE_BYTES, part.as_file()));
    for (name, index) in &layout.folders {
        let (mode, mtime) = index.map_or((0o755, 0), |i| (entries[i].mode, entries[i].mtime));
        // Its owner must be able to fill it.
        let mut header = header(EntryType::Directory, mode | 0o700, mtime, 0);
        let path = [name.as_slice(), b"/"].concat();
        tar.append_data(&mut header, path_of(&path), io::empty()).map_err(ArchiveError::Host)?;
    }
    let mut summary = Summary {
        files: layout.rest.len() as u64,
        bytes: 0,
        stripped: layout.top.as_deref().map(lossy),
        project: None,
    };
    let mut index = 0;
    source.walk(&mut |entry, content| {
        let name = layout.rest.get(&index);
        index += 1;
        let Some(name) = name else { return Ok(()) };
        summary.bytes = summary.bytes.saturating_add(entry.size);
        if summary.bytes > limits.bytes_max {
            return Err(ArchiveError::TooLarge { max: limits.bytes_max });
        }
        if let Some(text) = write_one(&mut tar, layout, &entry, name, content)? {
            summary.project = Some(text);
        }
        Ok(())
    })?;
    let mut buffer = tar.into_inner().map_err(ArchiveError::Host)?;
    buffer.flush().map_err(ArchiveError::Host)?;
    drop(buffer);
    part.as_file().sync_all().map_err(ArchiveError::Host)?;
    part.persist(output).map_err(|e| ArchiveError::Host(e.error))?;
    Ok(summary)
}

/// Writes one entry; returns its text when it is the project's file.
fn write_one(
    tar: &mut tar::Builder<impl Write>,
    layout: &Layout,
    entry: &Entry,
    name: &[u8],
    content: &mut dyn Read,
) -> Result<Option<String>, ArchiveError> {
    let is_project = name == PROJECT_FILE;
    match &entry.item.kind {
        Kind::Symlink(_) | Kind::Hardlink(_) if is_project => Err(ArchiveError::Project("is a link")),
        Kind::Symlink(target) => {
            let mut header = header(EntryType::Symlink, 0o777, entry.mtime, 0);
            append_link(tar, &mut header, path_of(name), target).map_err(ArchiveError::Host)?;
            Ok(None)
        }
        Kind::Hardlink(target) => {
            let mut header = header(EntryType::Link, entry.mode, entry.mtime, 0);
            let target = layout.stripped(target);
            append_link(tar, &mut header, path_of(name), target).map_err(ArchiveError::Host)?;
            Ok(None)
        }
        Kind::File => {
            let mut header = header(EntryType::Regular, entry.mode | 0o400, entry.mtime, entry.size);
            let mut kept = None;
            let mut exact = Exact::new(content, entry.size, "a file ends before its announced size");
            let copied = if is_project {
                let text = read_project(&mut exact, entry.size)?;
                let copied = tar.append_data(&mut header, path_of(name), text.as_bytes());
                kept = Some(text);
                copied
            } else {
                tar.append_data(&mut header, path_of(name), &mut exact)
            };
            match (exact.failed, copied) {
                (Some(error), _) => Err(ArchiveError::Damaged(error)),
                (None, Err(error)) => Err(ArchiveError::Host(error)),
                (None, Ok(())) => Ok(kept),
            }
        }
        Kind::Folder => Ok(None),
    }
}

fn read_project(from: &mut impl Read, size: u64) -> Result<String, ArchiveError> {
    if size > PROJECT_BYTES_MAX {
        return Err(ArchiveError::Project("is longer than 256 KiB"));
    }
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).map_err(ArchiveError::Damaged)?;
    String::from_utf8(bytes).map_err(|_| ArchiveError::Project("is no UTF-8 text"))
}

fn header(kind: EntryType, mode: u32, mtime: u64, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o777);
    header.set_mtime(mtime);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header
}

/// Appends a link with its target as it is: the library's own way drops every `.` from it, and with that a link to `.`.
pub(in crate::build) fn append_link(
    tar: &mut tar::Builder<impl Write>,
    header: &mut Header,
    name: &Path,
    target: &[u8],
) -> io::Result<()> {
    if header.set_link_name_literal(target).is_ok() {
        tar.append_data(header, name, io::empty())
    } else {
        // Too long for the header; a long one is kept as it is.
        tar.append_link(header, name, path_of(target))
    }
}

fn path_of(name: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name))
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}

fn hostile(offence: Offence) -> ArchiveError {
    ArchiveError::Hostile { path: lossy(&offence.name), why: offence.why }
}

/// An entry as the archive describes it.
#[derive(Debug, Clone)]
struct Entry {
    item: Item,
    mode: u32,
    /// Seconds since 1970.
    mtime: u64,
    size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Tar,
    Gzip,
    Zstd,
    Zip,
}

/// An archive that can be walked from its beginning again and again.
struct Source {
    file: File,
    format: Format,
    /// Of the whole stream unpacked, whatever its headers say.
    stream_max: u64,
    limits: Limits,
}

type Visit<'a> = dyn FnMut(Entry, &mut dyn Read) -> Result<(), ArchiveError> + 'a;

impl Source {
    fn open(input: &Path, limits: Limits) -> Result<Self, ArchiveError> {
        let mut file = File::open(input).map_err(ArchiveError::Host)?;
        let mut head = Vec::new();
        (&mut file).take(512).read_to_end(&mut head).map_err(ArchiveError::Host)?;
        let format = sniff(&head)?;
        let stream_max = limits.bytes_max.saturating_add(limits.entries_max.saturating_mul(OVERHEAD_BYTES));
        Ok(Self { file, format, stream_max, limits })
    }

    fn walk(&mut self, visit: &mut Visit<'_>) -> Result<(), ArchiveError> {
        self.file.seek(SeekFrom::Start(0)).map_err(ArchiveError::Host)?;
        let file = BufReader::with_capacity(PIECE_BYTES, &self.file);
        let max = self.stream_max;
        match self.format {
            Format::Tar => walk_tar(file, visit),
            Format::Gzip => {
                walk_tar(BufReader::with_capacity(PIECE_BYTES, MultiGzDecoder::new(file).take(max)), visit)
            }
            Format::Zstd => {
                let decoder = zstd::Decoder::with_buffer(file).map_err(ArchiveError::Damaged)?;
                walk_tar(BufReader::with_capacity(PIECE_BYTES, decoder.take(max)), visit)
            }
            Format::Zip => walk_zip(file, self.limits, visit),
        }
    }
}

fn sniff(head: &[u8]) -> Result<Format, ArchiveError> {
    let is_tar = |head: &[u8]| head.len() == 512 && (head[257..262] == *b"ustar" || sum_is_right(head));
    match head {
        [] => Err(ArchiveError::Empty),
        [0x1F, 0x8B, ..] => Ok(Format::Gzip),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Ok(Format::Zstd),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Ok(Format::Zip),
        [0xFD, b'7', b'z', b'X', b'Z', ..] => Err(ArchiveError::Unsupported { found: "xz" }),
        [b'B', b'Z', b'h', ..] => Err(ArchiveError::Unsupported { found: "bzip2" }),
        [b'7', b'z', 0xBC, 0xAF, ..] => Err(ArchiveError::Unsupported { found: "7-Zip" }),
        head if is_tar(head) => Ok(Format::Tar),
        head if head.iter().all(|b| *b == 0) => Err(ArchiveError::NoFile),
        _ => Err(ArchiveError::Unsupported { found: "of an unknown kind" }),
    }
}

/// A tar from before `ustar` is known by its header's checksum only.
fn sum_is_right(head: &[u8]) -> bool {
    let mut header = Header::new_old();
    header.as_mut_bytes().copy_from_slice(head);
    let told = header.cksum().ok();
    header.set_cksum();
    told.is_some() && told == header.cksum().ok()
}

fn walk_tar(from: impl Read, visit: &mut Visit<'_>) -> Result<(), ArchiveError> {
    let heads = Heads::default();
    let mut archive = Archive::new(heads.bounded(from));
    let mut entries = archive.entries().map_err(ArchiveError::Damaged)?;
    loop {
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry.map_err(ArchiveError::Damaged)?;
        heads.content_follows(entry.size());
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            // A remark of `git archive`.
            continue;
        }
        let raw = entry.path_bytes().into_owned();
        let name = clean(&raw).map_err(hostile)?;
        let target = entry.link_name_bytes().map(|t| t.into_owned()).unwrap_or_default();
        // The oldest tars have no folders, only names that end in a slash.
        let is_folder = matches!(kind, EntryType::Directory)
            || (matches!(kind, EntryType::Regular) && raw.last() == Some(&b'/'));
        let kind = if is_folder {
            Kind::Folder
        } else if matches!(kind, EntryType::Regular | EntryType::Continuous) {
            Kind::File
        } else if matches!(kind, EntryType::Symlink) {
            Kind::Symlink(target)
        } else if matches!(kind, EntryType::Link) {
            Kind::Hardlink(clean(&target).map_err(|o| hostile(Offence { name: raw.clone(), ..o }))?)
        } else {
            let why = if matches!(kind, EntryType::GNUSparse) {
                "holes (a sparse file)"
            } else {
                "a kind that is no file, folder or link"
            };
            return Err(hostile(Offence { name: raw, why }));
        };
        let size = if kind == Kind::File { entry.size() } else { 0 };
        let (mode, mtime) = (entry.header().mode().unwrap_or(0o644), entry.header().mtime().unwrap_or(0));
        visit(Entry { item: Item { name, kind }, mode, mtime, size }, &mut entry)?;
    }
}

fn walk_zip(from: impl Read + Seek, limits: Limits, visit: &mut Visit<'_>) -> Result<(), ArchiveError> {
    let damaged = |e: zip::result::ZipError| ArchiveError::Damaged(io::Error::other(e.to_string()));
    let mut archive = zip::ZipArchive::new(from).map_err(damaged)?;
    if archive.len() as u64 > limits.entries_max {
        return Err(ArchiveError::TooMany { max: limits.entries_max });
    }
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(damaged)?;
        let raw = entry.name_raw().to_owned();
        if raw.contains(&b'\\') {
            return Err(hostile(Offence { name: raw, why: "backslashes in its path" }));
        }
        let name = clean(&raw).map_err(hostile)?;
        let mode = entry.unix_mode();
        let mtime = entry.last_modified().map_or(0, seconds);
        // The upper bits of a Unix mode are the file's kind.
        let special = mode.is_some_and(|m| !matches!(m & 0o170_000, 0 | 0o040_000 | 0o100_000 | 0o120_000));
        if special {
            return Err(hostile(Offence { name: raw, why: "a kind that is no file, folder or link" }));
        }
        let kind = if entry.is_dir() {
            Kind::Folder
        } else if entry.is_symlink() {
            let mut target = Vec::new();
            (&mut entry).take(TARGET_BYTES_MAX).read_to_end(&mut target).map_err(ArchiveError::Damaged)?;
            Kind::Symlink(target)
        } else {
            Kind::File
        };
        let size = if kind == Kind::File { entry.size() } else { 0 };
        let mode =
            mode.filter(|m| m & 0o777 != 0).unwrap_or(if kind == Kind::Folder { 0o755 } else { 0o644 });
        visit(Entry { item: Item { name, kind }, mode, mtime, size }, &mut entry)?;
    }
    Ok(())
}

/// A zip's times have no zone; they are taken as UTC.
fn seconds(at: zip::DateTime) -> u64 {
    let field = |v: u8| i8::try_from(v).unwrap_or(1);
    let date = i16::try_from(at.year()).ok().and_then(|year| {
        jiff::civil::DateTime::new(
            year,
            field(at.month()),
            field(at.day()),
            field(at.hour()),
            field(at.minute()),
            field(at.second().min(59)),
            0,
        )
        .ok()
    });
    let zoned = date.and_then(|d| d.to_zoned(jiff::tz::TimeZone::UTC).ok());
    zoned.and_then(|z| u64::try_from(z.timestamp().as_second()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    fn run(program: &str, args: &[&str], dir: &Path) {
        #[expect(
            clippy::disallowed_methods,
            reason = "the archives of other people's programs are what is read"
        )]
        let done = Command::new(program).args(args).current_dir(dir).output().expect("installed");
        assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join("p-1").join(name);
        std::fs::create_dir_all(at("src/deep")).expect("made");
        std::fs::write(at(".preheat.toml"), "steps = []\n").expect("written");
        std::fs::write(at("src/a.sh"), "#!/bin/sh\n").expect("written");
        std::fs::set_permissions(at("src/a.sh"), std::fs::Permissions::from_mode(0o755)).expect("set");
        std::fs::write(at(&format!("src/deep/{}", "n".repeat(180))), "long").expect("written");
        std::os::unix::fs::symlink("../src/./a.sh", at("src/link")).expect("made");
        std::os::unix::fs::symlink(".", at("src/here")).expect("made");
        std::os::unix::fs::symlink(format!("./{}", "n".repeat(180)), at("src/deep/far")).expect("made");
        std::fs::hard_link(at("src/a.sh"), at("src/hard")).expect("made");
        dir
    }

    fn normal(bytes: &[u8], limits: Limits) -> (Result<Summary, ArchiveError>, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("in"), bytes).expect("written");
        let made = normalise(&dir.path().join("in"), &dir.path().join("out.tar"), limits);
        let names: Vec<_> =
            std::fs::read_dir(dir.path()).expect("there").flatten().map(|e| e.file_name()).collect();
        assert_eq!(names.len(), 1 + usize::from(made.is_ok()), "whole or not at all: {names:?}");
        (made, dir)
    }

    fn tar_of(entries: &[(&str, EntryType, &[u8], &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, content, link) in entries {
            let mut head = header(*kind, 0o644, 1_700_000_000, content.len() as u64);
            head.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            head.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
            head.set_cksum();
            tar.append(&head, *content).expect("written");
        }
        tar.into_inner().expect("written")
    }

    #[test]
    fn every_supported_kind_comes_to_the_same_tree() {
        let dir = tree();
        for (name, args) in [
            ("a.tar", vec!["tar", "-cf", "a.tar", "p-1"]),
            ("a.tgz", vec!["tar", "-czf", "a.tgz", "p-1"]),
            ("a.pax", vec!["tar", "--format=pax", "-cf", "a.pax", "p-1"]),
            ("a.v7", vec!["tar", "--format=v7", "--exclude=nnn*", "--exclude=far", "-cf", "a.v7", "p-1"]),
            ("a.zst", vec![]),
        ] {
            if let [program, args @ ..] = args.as_slice() {
                run(program, args, dir.path());
            } else {
                let plain = std::fs::read(dir.path().join("a.tar")).expect("there");
                let packed = zstd::encode_all(plain.as_slice(), 1).expect("packed");
                std::fs::write(dir.path().join(name), packed).expect("written");
            }
            let (made, out) =
                normal(&std::fs::read(dir.path().join(name)).expect("there"), Limits::default());
            let made = made.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(made.stripped.as_deref(), Some("p-1"), "{name}");
            assert_eq!(made.project.as_deref(), Some("steps = []\n"), "{name}");
            let unpacked = out.path().join("unpacked");
            std::fs::create_dir(&unpacked).expect("made");
            run("tar", &["-xf", "../out.tar"], &unpacked);
            if name == "a.v7" {
                continue;
            }
            run(
                "diff",
                &["-r", "--no-dereference", "unpacked", &dir.path().join("p-1").display().to_string()],
                out.path(),
            );
            let link = std::fs::read_link(unpacked.join("src/link")).expect("a link");
            assert_eq!(link.to_str(), Some("../src/./a.sh"), "{name}");
            let mode = std::fs::metadata(unpacked.join("src/hard")).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o755, "{name}");
        }
    }

    fn zip_of(entries: &[(&str, u32, &[u8])]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, mode, content) in entries {
            let options = zip::write::SimpleFileOptions::default().unix_permissions(*mode);
            if mode & 0o170_000 == 0o120_000 {
                zip.add_symlink(*name, String::from_utf8_lossy(content), options).expect("added");
            } else {
                zip.start_file(*name, options).expect("added");
                zip.write_all(content).expect("written");
            }
        }
        zip.finish().expect("finished").into_inner()
    }

    #[test]
    fn a_zip_is_read_with_its_modes_and_links() {
        let bytes = zip_of(&[
            ("p/run", 0o100_755, b"x"),
            ("p/d/l", 0o120_777, b"../run"),
            ("p/.preheat.toml", 0o644, b""),
        ]);
        let (made, out) = normal(&bytes, Limits::default());
        let made = made.expect("fine");
        assert_eq!((made.files, made.bytes, made.stripped.as_deref()), (3, 1, Some("p")));
        run("tar", &["-xf", "out.tar"], out.path());
        let mode = std::fs::metadata(out.path().join("d/l")).expect("a link that leads").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        for (name, mode, content) in [
            ("../a", 0o644, &b""[..]),
            ("/a", 0o644, b""),
            ("a\\b", 0o644, b""),
            ("a", 0o120_777, b"/etc/passwd"),
            ("a", 0o120_777, b".."),
            ("a", 0o120_777, b"b\0c"),
        ] {
            let (made, _) = normal(&zip_of(&[("b", 0o644, b""), (name, mode, content)]), Limits::default());
            assert!(matches!(made, Err(ArchiveError::Hostile { .. })), "{name} {made:?}");
        }
    }

    #[test]
    fn what_could_land_elsewhere_is_refused_by_name() {
        let cases: [(&str, EntryType, &str); 9] = [
            ("../../tmp/x", EntryType::Regular, ""),
            ("/etc/x", EntryType::Regular, ""),
            ("a/../../x", EntryType::Regular, ""),
            ("l", EntryType::Symlink, "/etc"),
            ("l", EntryType::Symlink, "../x"),
            ("h", EntryType::Link, "../x"),
            ("d", EntryType::Char, ""),
            ("d", EntryType::Block, ""),
            ("f", EntryType::Fifo, ""),
        ];
        for (name, kind, link) in cases {
            let bytes = tar_of(&[("ok", EntryType::Regular, b"1", ""), (name, kind, b"", link)]);
            let (made, _) = normal(&bytes, Limits::default());
            let Err(error @ ArchiveError::Hostile { .. }) = made else { panic!("{name} {kind:?}: {made:?}") };
            assert!(error.to_string().contains(name) && error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn a_long_name_that_is_no_text_is_the_senders_fault() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut head = header(EntryType::GNULongName, 0o644, 0, 201);
        head.set_cksum();
        let name = [vec![0x80; 200], vec![0]].concat();
        tar.append(&head, name.as_slice()).expect("written");
        let mut head = header(EntryType::Regular, 0o644, 0, 1);
        head.set_cksum();
        tar.append(&head, &b"1"[..]).expect("written");
        let (made, _) = normal(&tar.into_inner().expect("written"), Limits::default());
        assert!(matches!(made, Err(ArchiveError::Hostile { .. })), "{made:?}");
    }

    #[test]
    fn what_is_no_archive_says_what_would_be_one() {
        for bytes in [&b""[..], b"hello", b"\xFD7zXZ\0abc", b"BZh91AY", &[0; 1024], &[7; 600]] {
            let (made, _) = normal(bytes, Limits::default());
            assert!(made.expect_err("no archive").hint().is_some());
        }
        let whole = tar_of(&[("a", EntryType::Regular, &[1; 5000], "")]);
        for cut in [600, 5000] {
            assert!(matches!(normal(&whole[..cut], Limits::default()).0, Err(ArchiveError::Damaged(_))));
        }
        let zip = zip_of(&[("a", 0o644, &[1; 5000])]);
        assert!(matches!(normal(&zip[..30], Limits::default()).0, Err(ArchiveError::Damaged(_))));
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let few = Limits { entries_max: 2, bytes_max: 1000 };
        let file = EntryType::Regular;
        let many = tar_of(&[("a", file, b"", ""), ("b", file, b"", ""), ("c", file, b"", "")]);
        assert!(matches!(normal(&many, few).0, Err(ArchiveError::TooMany { max: 2 })));
        let large = tar_of(&[("a", file, &[0; 1001], "")]);
        let packed = zstd::encode_all(large.as_slice(), 1).expect("packed");
        assert!(matches!(normal(&packed, few).0, Err(ArchiveError::TooLarge { max: 1000 })));
        assert!(matches!(
            normal(&zip_of(&[("a", 0o644, &[0; 1001])]), few).0,
            Err(ArchiveError::TooLarge { .. })
        ));
    }

    #[test]
    fn the_projects_file_is_bounded_text_and_no_link() {
        let file = EntryType::Regular;
        let long = vec![b'#'; 257 * 1024];
        for (kind, content, link) in
            [(file, &long[..], ""), (file, b"\xFF", ""), (EntryType::Symlink, b"", "a")]
        {
            let (made, _) = normal(
                &tar_of(&[("a", file, b"", ""), (".preheat.toml", kind, content, link)]),
                Limits::default(),
            );
            assert!(matches!(made, Err(ArchiveError::Project(_))), "{made:?}");
        }
    }
}
