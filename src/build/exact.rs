//! Exactly the bytes that were announced, neither fewer nor more: a tar's header is written before its content is read. The
//! input's failure is kept apart, because the writer that reads from here would report it as its own.

use std::io::{self, Read};

/// Reads `announced` bytes of something.
pub(super) struct Exact<R> {
    pub(super) from: R,
    left: u64,
    short: &'static str,
    /// Why reading failed, if it did.
    pub(super) failed: Option<io::Error>,
}

impl<R: Read> Exact<R> {
    /// Reads `announced` bytes of `from`; `short` says what it means when there are fewer.
    pub(super) fn new(from: R, announced: u64, short: &'static str) -> Self {
        Self { from, left: announced, short, failed: None }
    }
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let want = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let failure = match self.from.read(&mut into[..want]) {
            Ok(0) => io::Error::new(io::ErrorKind::UnexpectedEof, self.short),
            Ok(n) => {
                self.left -= n as u64;
                return Ok(n);
            }
            Err(error) => error,
        };
        let told = io::Error::new(failure.kind(), failure.to_string());
        self.failed = Some(failure);
        Err(told)
    }
}
