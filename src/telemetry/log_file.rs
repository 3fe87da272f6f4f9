//! The log as a file that others may move away: whoever rotates logs renames it, and the next line goes into a new one. Nobody
//! has to be told.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Its owner's and its group's: what a log says is not for everybody.
const MODE: u32 = 0o640;

/// A log's file. Clones share it.
#[derive(Clone)]
pub struct LogFile {
    path: Arc<PathBuf>,
    open: Arc<Mutex<File>>,
}

impl LogFile {
    /// Opens it, behind what is in it.
    ///
    /// # Errors
    /// When it cannot be opened, or its folder not be made.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = appending(&path)?;
        Ok(Self { path: Arc::new(path), open: Arc::new(Mutex::new(file)) })
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut file = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if was_moved(&self.path, &file)
            && let Ok(new) = appending(&self.path)
        {
            *file = new;
        }
        // A line that does not fit on the disk is lost, but heard.
        file.write_all(line).or_else(|_| io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn appending(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(MODE).open(path)
}

/// What lies at the path is another file, or none.
fn was_moved(path: &PathBuf, file: &File) -> bool {
    let (Ok(there), Ok(ours)) = (std::fs::metadata(path), file.metadata()) else { return true };
    (there.dev(), there.ino()) != (ours.dev(), ours.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_moved_away_goes_on_in_a_new_file_and_loses_no_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, moved) = (dir.path().join("logs/daemon.log"), dir.path().join("logs/daemon.log.0"));
        let mut log = LogFile::open(path.clone()).expect("opened");
        let mut other = log.clone();
        writeln!(log, "one").expect("written");
        std::fs::rename(&path, &moved).expect("moved");
        writeln!(other, "two").expect("written");
        writeln!(log, "three").expect("written");
        let read = |path: &PathBuf| std::fs::read_to_string(path).expect("there");
        assert_eq!((read(&moved), read(&path)), ("one\n".into(), "two\nthree\n".into()));
        // newsyslog makes the new one itself.
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "made by another\n").expect("written");
        writeln!(log, "four").expect("written");
        assert_eq!(read(&path), "made by another\nfour\n");
        let mut again = LogFile::open(path.clone()).expect("opened");
        writeln!(again, "five").expect("written");
        assert!(read(&path).ends_with("four\nfive\n"));
    }
}
