//! The two locks of Tart: fcntl on a VM's `config.json` (its holder is the VM's process), flock on the home.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::io::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;

/// A handle on the fcntl lock of a `config.json`.
///
/// The kernel drops the lock when *any* descriptor of that file is closed by the holder, so whoever holds it must
/// never open the file a second time.
pub struct PidLock(File);

/// The lock kinds are wider than the field they go into on Linux, and as wide on a Mac.
fn whole_file(kind: libc::c_short) -> libc::flock {
    libc::flock { l_type: kind, l_whence: libc::SEEK_SET as libc::c_short, l_start: 0, l_len: 0, l_pid: 0 }
}

impl PidLock {
    pub fn open(config: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().read(true).write(true).open(config)?))
    }

    /// The PID of the process that runs the VM.
    pub fn owner(&self) -> io::Result<Option<i32>> {
        let mut probe = whole_file(libc::F_RDLCK as libc::c_short);
        fcntl(self.0.as_fd(), FcntlArg::F_GETLK(&mut probe))?;
        Ok((probe.l_type != libc::F_UNLCK as libc::c_short && probe.l_pid > 0).then_some(probe.l_pid))
    }

    pub fn try_lock(&self) -> io::Result<bool> {
        match fcntl(self.0.as_fd(), FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK as libc::c_short))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Waits for the flock of a file or directory; released on drop.
pub fn exclusive(path: &Path) -> io::Result<Flock<File>> {
    let mut file = File::open(path)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, error)) => return Err(error.into()),
        }
    }
}

pub fn try_exclusive(path: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EAGAIN)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}
