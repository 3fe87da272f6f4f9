//! The host's side of taking files out: what comes from a guest, as hostile as it may be, becomes whole files below one
//! folder, or nothing. Blocking code.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};
use tokio::sync::mpsc;

use super::globs::checked;
use super::heads::{Heads, said};
use super::{TakeError, Taken};
use crate::runtime::{Fault, Reason};

/// Written to disk at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Where files are received, and how much of them.
#[derive(Debug)]
pub(super) struct Sink {
    into: PathBuf,
    max: u64,
    received: AtomicU64,
}

/// A file on its way, where it belongs: nobody looks into the folder before all of it is there. Dropped unfinished, it goes.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    sink: &'a Sink,
    path: String,
    place: PathBuf,
    file: File,
    hash: Sha256,
    bytes: u64,
    whole: bool,
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if !self.whole {
            fs::remove_file(&self.place).ok();
        }
    }
}

impl Sink {
    /// Into `into`, and at most `max` bytes.
    pub(super) fn new(into: &Path, max: u64) -> Self {
        Self { into: into.to_owned(), max, received: AtomicU64::new(0) }
    }

    /// Begins a file. Its name must have been [checked]; nothing may be there yet: two names may be one on this host's file
    /// system.
    pub(super) fn begin(&self, path: &str, executable: bool) -> Result<Incoming<'_>, TakeError> {
        let place = self.into.join(path);
        let mode = if executable { 0o755 } else { 0o644 };
        let made = match create(&place, mode) {
            // The first file of its folder. All others spare the question.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let folder = place.parent().unwrap_or(&self.into);
                fs::create_dir_all(folder).and_then(|()| create(&place, mode))
            }
            made => made,
        };
        let file = made.map_err(|e| misplaced(path, e))?;
        let path = path.to_owned();
        Ok(Incoming { sink: self, path, place, file, hash: Sha256::new(), bytes: 0, whole: false })
    }

    /// Refuses `bytes` more if they are too many. Counts nothing.
    pub(super) fn allow(&self, bytes: u64) -> Result<(), TakeError> {
        if self.received.load(Ordering::Relaxed).saturating_add(bytes) > self.max {
            return Err(TakeError::TooLarge { max: self.max });
        }
        Ok(())
    }
}

impl Incoming<'_> {
    /// Takes the next bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), TakeError> {
        let more = bytes.len() as u64;
        self.sink.allow(more)?;
        self.sink.received.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(TakeError::Host)
    }

    /// All of it is there.
    pub(super) fn finish(mut self) -> Taken {
        self.whole = true;
        let hash = std::mem::take(&mut self.hash);
        Taken { path: std::mem::take(&mut self.path), bytes: self.bytes, sha256: hex(&hash.finalize()) }
    }
}

/// A new file of this mode, whatever the daemon's own habits are.
fn create(place: &Path, mode: u32) -> io::Result<File> {
    let file = File::options().write(true).create_new(true).mode(mode).open(place)?;
    if file.metadata()?.permissions().mode() & 0o777 != mode {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(file)
}

/// A name that has no place beside the others is the guest's doing, not this host's: a file below a file, a part too
/// long, two names that are one here.
fn misplaced(path: &str, error: io::Error) -> TakeError {
    use io::ErrorKind::{AlreadyExists, InvalidFilename, IsADirectory, NotADirectory};
    if matches!(error.kind(), AlreadyExists | InvalidFilename | IsADirectory | NotADirectory) {
        return TakeError::Hostile { path: path.to_owned() };
    }
    TakeError::Host(error)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, b| {
        write!(text, "{b:02x}").ok();
        text
    })
}

/// Receives the files of a tar stream, or of several in a row. Every entry must be one of `wanted`, and each must come.
pub(super) fn receive_tar(from: impl Read, wanted: &[String], sink: &Sink) -> Result<Vec<Taken>, TakeError> {
    let mut wanted: HashSet<&str> = wanted.iter().map(String::as_str).collect();
    let mut taken: HashMap<String, Taken> = HashMap::new();
    let heads = Heads::default();
    let mut piece = vec![0; PIECE_BYTES];
    let mut archive = Archive::new(heads.bounded(from));
    archive.set_ignore_zeros(true);
    for entry in archive.entries().map_err(|e| broken(&e))? {
        let mut entry = entry.map_err(|e| broken(&e))?;
        heads.content_follows(entry.size());
        let raw = entry.path_bytes().into_owned();
        let hostile =
            || TakeError::Hostile { path: String::from_utf8_lossy(&raw).escape_debug().to_string() };
        let name = checked(without_dot(&raw)).ok_or_else(hostile)?;
        if !wanted.remove(name.as_str()) {
            return Err(hostile());
        }
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse) {
            let executable = entry.header().mode().unwrap_or(0) & 0o111 != 0;
            sink.allow(entry.size())?;
            let mut incoming = sink.begin(&name, executable)?;
            copy(&mut entry, &mut incoming, &mut piece)?;
            if incoming.bytes != entry.size() {
                // A stream that ends inside a file looks to the library like the file's end.
                return Err(broken(&io::ErrorKind::UnexpectedEof.into()));
            }
            taken.insert(name, incoming.finish());
        } else if matches!(kind, EntryType::Link) {
            // A second name of a file that came before: a file of its own here.
            let target = entry.link_name_bytes().and_then(|t| checked(without_dot(&t)));
            let target = target.filter(|t| taken.contains_key(t)).ok_or_else(hostile)?;
            let copied = copy_within(sink, &target, &name, &mut piece)?;
            taken.insert(name, copied);
        } else {
            return Err(hostile());
        }
    }
    match wanted.into_iter().min() {
        None => Ok(taken.into_values().collect()),
        Some(missing) => {
            Err(Fault::new(Reason::TransferFailed, "take artifacts", format!("`{missing}` did not come"))
                .into())
        }
    }
}

fn without_dot(name: &[u8]) -> &[u8] {
    name.strip_prefix(b"./").unwrap_or(name)
}

fn broken(error: &io::Error) -> TakeError {
    Fault::new(
        Reason::TransferFailed,
        "take artifacts",
        format!("the guest's tar stream is broken: {}", said(error)),
    )
    .into()
}

/// Through `piece`, which is made once: there may be ten thousand files.
fn copy(from: &mut impl Read, to: &mut Incoming<'_>, piece: &mut [u8]) -> Result<(), TakeError> {
    loop {
        match from.read(piece) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write(&piece[..n])?,
            Err(e) => return Err(broken(&e)),
        }
    }
}

fn copy_within(sink: &Sink, from: &str, to: &str, piece: &mut [u8]) -> Result<Taken, TakeError> {
    let mut source = fs::File::open(sink.into.join(from)).map_err(TakeError::Host)?;
    let executable = source.metadata().map_err(TakeError::Host)?.permissions().mode() & 0o111 != 0;
    let mut incoming = sink.begin(to, executable)?;
    copy(&mut source, &mut incoming, piece)?;
    Ok(incoming.finish())
}

/// The pieces of a stream, for code that blocks on them.
pub(super) struct Pieces {
    pub from: mpsc::Receiver<Bytes>,
    pub at: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at.is_empty() {
            match self.from.blocking_recv() {
                Some(piece) => self.at = piece,
                None => return Ok(0),
            }
        }
        let n = into.len().min(self.at.len());
        self.at.copy_to_slice(&mut into[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive(entries: &[(&str, EntryType, &[u8], &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, content, link) in entries {
            let mut header = tar::Header::new_gnu();
            let field = &mut header.as_gnu_mut().expect("gnu").name;
            field[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            if !link.is_empty() {
                header.set_link_name(link).expect("a short name");
            }
            header.set_cksum();
            tar.append(&header, *content).expect("written");
        }
        tar.into_inner().expect("written")
    }

    fn receive(
        bytes: &[u8],
        wanted: &[&str],
        max: u64,
    ) -> (Result<Vec<Taken>, TakeError>, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a folder");
        let wanted: Vec<String> = wanted.iter().map(|w| (*w).to_owned()).collect();
        (receive_tar(bytes, &wanted, &Sink::new(dir.path(), max)), dir)
    }

    #[test]
    fn files_come_whole_with_their_sum_and_bit_also_from_streams_in_a_row() {
        let file = EntryType::Regular;
        let mut bytes = archive(&[("./a/b", file, b"abc", ""), ("./a/c", EntryType::Link, b"", "./a/b")]);
        bytes.extend(archive(&[("./d", file, b"", "")]));
        let (taken, dir) = receive(&bytes, &["a/b", "a/c", "d"], 6);
        let mut taken = taken.expect("fine");
        taken.sort_by(|a, b| a.path.cmp(&b.path));
        assert_eq!(
            taken.iter().map(|t| (t.path.as_str(), t.bytes)).collect::<Vec<_>>(),
            [("a/b", 3), ("a/c", 3), ("d", 0)]
        );
        assert_eq!(taken[0].sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let mode = fs::metadata(dir.path().join("a/c")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn what_was_not_asked_for_is_hostile() {
        let cases: [(&str, EntryType, &str); 7] = [
            ("../a", EntryType::Regular, ""),
            ("/a", EntryType::Regular, ""),
            ("other", EntryType::Regular, ""),
            ("a", EntryType::Symlink, "/etc/passwd"),
            ("a", EntryType::Link, "../../etc/passwd"),
            ("a", EntryType::Fifo, ""),
            ("a", EntryType::Directory, ""),
        ];
        for (name, kind, link) in cases {
            let (taken, dir) = receive(&archive(&[(name, kind, b"", link)]), &["a", "b"], 100);
            assert!(matches!(taken, Err(TakeError::Hostile { .. })), "{name} {kind:?} {taken:?}");
            assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
        }
        let twice = archive(&[("a", EntryType::Regular, b"1", ""), ("a", EntryType::Regular, b"2", "")]);
        assert!(matches!(receive(&twice, &["a"], 100).0, Err(TakeError::Hostile { .. })));
    }

    #[test]
    fn too_much_and_too_little_are_told_apart_and_leave_no_piece() {
        let bytes = archive(&[("a", EntryType::Regular, b"12345", "")]);
        let (taken, dir) = receive(&bytes, &["a"], 4);
        assert!(matches!(taken, Err(TakeError::TooLarge { max: 4 })));
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
        assert!(matches!(receive(&bytes, &["a", "b"], 9).0, Err(TakeError::Guest(_))));
        let (taken, dir) = receive(&bytes[..514], &["a"], 9);
        assert!(matches!(taken, Err(TakeError::Guest(_))), "{taken:?}");
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
    }

    #[test]
    fn a_name_without_a_place_is_the_guests_fault() {
        let file = EntryType::Regular;
        for (first, second) in [("a", "a/b"), ("a/b", "a")] {
            let bytes = archive(&[(first, file, b"1", ""), (second, file, b"2", "")]);
            let (taken, _dir) = receive(&bytes, &[first, second], 9);
            assert!(matches!(taken, Err(TakeError::Hostile { .. })), "{taken:?}");
        }
    }

    fn hostile_entry() -> impl Strategy<Value = (String, EntryType, Vec<u8>, String)> {
        let name = || {
            let part = prop::sample::select(&["a", "b", "..", ".", "", "x", "A", "e\u{301}", "\u{e9}"]);
            prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
        };
        let kind =
            prop_oneof![3 => Just(b'0'), 2 => Just(b'1'), 1 => prop::sample::select(b"23456L7xg".to_vec())];
        let content = prop::collection::vec(any::<u8>(), 0..30);
        (name(), kind, content, name()).prop_map(|(n, k, c, l)| (n, EntryType::new(k), c, l))
    }

    proptest! {
        #[test]
        fn whatever_a_guest_sends_stays_in_its_folder(
            entries in prop::collection::vec(hostile_entry(), 0..6),
            wanted in prop::collection::btree_set("[abx](/[ab])?", 0..5),
            cut in any::<prop::sample::Index>(), whole in any::<bool>(),
        ) {
            let borrowed: Vec<_> =
                entries.iter().map(|(n, k, c, l)| (n.as_str(), *k, c.as_slice(), l.as_str())).collect();
            let mut bytes = archive(&borrowed);
            if !whole {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            let outer = tempfile::tempdir().expect("a folder");
            let into = outer.path().join("into");
            fs::create_dir(&into).expect("made");
            fs::write(outer.path().join("a"), "there").expect("written");
            let wanted: Vec<String> = wanted.into_iter().collect();
            let taken = receive_tar(bytes.as_slice(), &wanted, &Sink::new(&into, 60));
            let around: Vec<_> = fs::read_dir(outer.path()).expect("there").flatten().collect();
            prop_assert_eq!(around.len(), 2);
            prop_assert_eq!(fs::read(outer.path().join("a")).expect("there"), b"there");
            match taken {
                Ok(taken) => prop_assert!(taken.iter().map(|t| t.bytes).sum::<u64>() <= 60),
                // What a guest sends is the guest's fault: a fault of the host would cost all others.
                Err(error) => prop_assert!(!matches!(error, TakeError::Host(_)), "{:?}", error),
            }
        }
    }
}
