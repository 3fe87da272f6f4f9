//! A bound on what a tar may put before an entry. The library gathers long names and remarks in memory, however long they
//! say they are, before it shows an entry: a few packed kilobytes would take all the memory there is. Pure.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// The most bytes between two entries: headers, long names, remarks, padding. Names are of 4 KiB at most where there is a
/// bound; a Mac's remarks hold a file's extended attributes.
const HEAD_BYTES_MAX: u64 = 1 << 20;

/// What is kept of the library's words.
const SAID_CHARS_MAX: usize = 300;

/// How much may still be read before the next entry must be there.
#[derive(Debug, Clone)]
pub(crate) struct Heads(Rc<Cell<u64>>);

/// A tar's stream under that bound.
#[derive(Debug)]
pub(crate) struct Bounded<R> {
    from: R,
    left: Heads,
}

impl Default for Heads {
    fn default() -> Self {
        Self(Rc::new(Cell::new(HEAD_BYTES_MAX)))
    }
}

impl Heads {
    /// `from` under this bound.
    pub(crate) fn bounded<R: Read>(&self, from: R) -> Bounded<R> {
        Bounded { from, left: self.clone() }
    }

    /// An entry is there, and `bytes` of it follow before the next head.
    pub(crate) fn content_follows(&self, bytes: u64) {
        self.0.set(bytes.saturating_add(HEAD_BYTES_MAX));
    }
}

/// What the library says of a broken stream. It quotes what it found, which may be anything; a terminal would obey it.
pub(crate) fn said(error: &io::Error) -> String {
    let plain = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    error.to_string().chars().take(SAID_CHARS_MAX).map(plain).collect()
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.left.0.get();
        if left == 0 && !into.is_empty() {
            let text = format!("more than {HEAD_BYTES_MAX} bytes of names and remarks before an entry");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let want = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.from.read(&mut into[..want])?;
        self.left.0.set(left - read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A long name that says it has 64 MiB, and has them.
    fn bomb() -> impl Read {
        let mut head = tar::Header::new_gnu();
        head.set_entry_type(tar::EntryType::GNULongName);
        head.set_size(64 << 20);
        head.set_cksum();
        io::Cursor::new(head.as_bytes().to_vec()).chain(io::repeat(b'a'))
    }

    struct Counted<R>(R, Rc<Cell<u64>>);

    impl<R: Read> Read for Counted<R> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(into)?;
            self.1.set(self.1.get() + read as u64);
            Ok(read)
        }
    }

    #[test]
    fn a_name_as_long_as_the_memory_is_not_gathered() {
        let read = Rc::new(Cell::new(0));
        let mut archive = tar::Archive::new(Heads::default().bounded(Counted(bomb(), Rc::clone(&read))));
        let first = archive.entries().expect("a stream").next().expect("something");
        assert!(first.is_err_and(|e| e.kind() == io::ErrorKind::InvalidData));
        assert!(read.get() <= HEAD_BYTES_MAX, "{} bytes", read.get());
    }

    #[test]
    fn a_broken_head_says_nothing_that_a_terminal_obeys() {
        let mut head = tar::Header::new_gnu();
        head.as_mut_bytes()[..9].copy_from_slice(b"\x1b[2J\n\x07abc");
        head.as_mut_bytes()[148..156].copy_from_slice(b"zzzzzzzz");
        let mut archive = tar::Archive::new(head.as_bytes().as_slice());
        let first = archive.entries().expect("a stream").next().expect("something");
        let text = said(&first.err().expect("broken"));
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }

    #[test]
    fn contents_are_not_counted() {
        let heads = Heads::default();
        let mut tar = tar::Builder::new(Vec::new());
        for name in ["a", "b"] {
            let mut head = tar::Header::new_gnu();
            head.set_size(3 << 20);
            head.set_mode(0o644);
            tar.append_data(&mut head, name, io::repeat(7).take(3 << 20)).expect("in memory");
        }
        let bytes = tar.into_inner().expect("in memory");
        let mut archive = tar::Archive::new(heads.bounded(bytes.as_slice()));
        let mut sizes = Vec::new();
        for entry in archive.entries().expect("a stream") {
            let entry = entry.expect("whole");
            heads.content_follows(entry.size());
            sizes.push(entry.size());
        }
        assert_eq!(sizes, [3 << 20; 2]);
    }
}
