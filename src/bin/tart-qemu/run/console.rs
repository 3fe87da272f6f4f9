//! The guest's serial console: searched for the lines in which its init reports, and passed on if asked.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;

use crate::args;
use crate::error::{Failure, Outcome};

/// What the guest's init says on its console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    NetworkUp,
    SshUp,
}

const REPORTS: [(&[u8], Report); 2] =
    [(b"tart-qemu: network up", Report::NetworkUp), (b"tart-qemu: ssh up", Report::SshUp)];
const LINE_LIMIT: usize = 4096;

/// Where the console goes besides its log: a new terminal for `--serial`, an existing one for `--serial-path`.
pub fn outlet(args: &args::Run) -> Outcome<Option<File>> {
    let fail = |_| Failure::Configuration("Failed to create PTY".to_owned());
    if args.serial {
        let terminal = openpty(None, None).map_err(fail)?;
        let name = nix::unistd::ttyname(terminal.slave.as_fd()).map_err(fail)?;
        println!("Successfully open pty {}", name.display());
        // Nobody may be reading on the other side, and the guest must not wait for them.
        fcntl(terminal.master.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(fail)?;
        // The slave stays open on purpose: without one, reads of the master fail until somebody attaches.
        std::mem::forget(terminal.slave);
        return Ok(Some(File::from(terminal.master)));
    }
    match &args.serial_path {
        Some(path) => OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map(Some)
            .map_err(|_| Failure::Configuration("Failed to open PTY".to_owned())),
        None => Ok(None),
    }
}

/// Reads until the guest ends.
pub fn follow(mut console: UnixStream, outlet: Option<File>, report: impl Fn(Report) + Send + 'static) {
    if let (Some(outlet), Ok(console)) =
        (outlet.as_ref().and_then(|file| file.try_clone().ok()), console.try_clone())
    {
        std::thread::spawn(move || pass_input(outlet, console));
    }
    std::thread::spawn(move || {
        let mut outlet = outlet;
        let mut line = Vec::new();
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = console.read(&mut bytes) {
            if let Some(outlet) = &mut outlet {
                let _ = outlet.write_all(&bytes[..count]);
            }
            for byte in &bytes[..count] {
                match byte {
                    b'\n' => {
                        reports_in(&line).for_each(&report);
                        line.clear();
                    }
                    byte if line.len() < LINE_LIMIT => line.push(*byte),
                    _ => {}
                }
            }
        }
    });
}

fn reports_in(line: &[u8]) -> impl Iterator<Item = Report> {
    let said = |(text, _): &(&[u8], Report)| line.windows(text.len()).any(|window| window == *text);
    REPORTS.into_iter().filter(said).map(|(_, report)| report).collect::<Vec<Report>>().into_iter()
}

fn pass_input(mut from: File, mut to: UnixStream) {
    let mut bytes = [0; 1024];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) if to.write_all(&bytes[..count]).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            Err(_) => return,
        }
    }
}
