//! `state.vzvmsave`: one line that says which machine was saved, then QEMU's own stream.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// While it is written; a half-written state must never look like one.
pub const UNFINISHED: &str = "state.vzvmsave.unfinished";
const NAME: &str = "state.vzvmsave";

/// Writes the first line. QEMU appends the rest itself.
pub fn begin(shape: &str) -> io::Result<()> {
    fs::write(UNFINISHED, format!("{shape}\n"))
}

pub fn finish() -> io::Result<()> {
    fs::rename(UNFINISHED, NAME)
}

/// The state, positioned at QEMU's stream, if it was saved by a machine of this shape.
pub fn open(path: &Path, shape: &str) -> io::Result<Option<File>> {
    let mut file = File::open(path)?;
    let mut start = vec![0; shape.len() + 1];
    if file.read_exact(&mut start).is_err()
        || start[..shape.len()] != *shape.as_bytes()
        || start[shape.len()] != b'\n'
    {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(start.len() as u64))?;
    Ok(Some(file))
}
