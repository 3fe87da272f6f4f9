//! The host's side of the guest agent: frames over a virtio-serial port (vm-setup/guest/init.c has the protocol).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::config::random_bytes;

/// Port 0 is the supervisor's; the others serve one command each.
pub const PORTS: usize = 5;

const ATTEMPT: Duration = Duration::from_secs(5);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(300);

pub fn socket_name(port: usize) -> String {
    format!("agent-{port}.sock")
}

pub struct Agent {
    stream: UnixStream,
    claim: Option<Flock<File>>,
}

pub struct Frame {
    pub kind: u8,
    pub payload: Vec<u8>,
}

/// Flags of a command.
pub struct Command<'a> {
    pub argv: &'a [String],
    pub tty: bool,
    pub input: bool,
    pub columns: u16,
    pub rows: u16,
}

impl Agent {
    /// Connects to a port of the VM in the *current* directory, and waits for the guest to answer.
    pub fn connect(ports: std::ops::Range<usize>, limit: Duration) -> io::Result<Self> {
        let (port, claim) = claim(ports)?;
        let deadline = Instant::now() + limit;
        loop {
            let mut agent = Self { stream: UnixStream::connect(socket_name(port))?, claim: None };
            agent.stream.set_read_timeout(Some(limit.min(ATTEMPT)))?;
            match agent.greet() {
                Ok(()) => {
                    agent.stream.set_read_timeout(Some(limit))?;
                    agent.claim = Some(claim);
                    return Ok(agent);
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                // The guest may still wait for the rest of a frame that a killed client began: it must see us go.
                Err(_) => drop(agent),
            }
            std::thread::sleep(BETWEEN_ATTEMPTS);
        }
    }

    /// Reads until the echo of a fresh nonce: whatever an earlier client left in the queue is skipped.
    fn greet(&mut self) -> io::Result<()> {
        let nonce = random_bytes::<16>();
        self.send(b'N', &nonce)?;
        let mut wanted = vec![b'n', 0, 0, 0, 16];
        wanted.extend_from_slice(&nonce);
        let mut seen = std::collections::VecDeque::with_capacity(wanted.len());
        let mut byte = [0];
        while seen != wanted {
            self.stream.read_exact(&mut byte)?;
            if seen.len() == wanted.len() {
                seen.pop_front();
            }
            seen.push_back(byte[0]);
        }
        Ok(())
    }

    pub fn send(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        send(&mut self.stream, kind, payload)
    }

    pub fn receive(&mut self) -> io::Result<Frame> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize];
        self.stream.read_exact(&mut payload)?;
        Ok(Frame { kind: head[0], payload })
    }

    fn ask(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        self.send(kind, payload)?;
        match self.receive()?.kind {
            b'k' => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    pub fn ping(&mut self) -> io::Result<()> {
        self.ask(b'P', &[])
    }

    pub fn power_off(&mut self) -> io::Result<()> {
        self.ask(b'O', &[])
    }

    pub fn fresh_host_keys(&mut self) -> io::Result<()> {
        self.ask(b'K', &[])
    }

    /// The host's clock, and entropy that no other guest has.
    pub fn synchronise(&mut self) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut payload = now.as_secs().to_be_bytes().to_vec();
        payload.extend_from_slice(&now.subsec_nanos().to_be_bytes());
        payload.extend_from_slice(&random_bytes::<64>());
        self.ask(b'S', &payload)
    }

    /// Starts a command; from now on silence is not an error. The copy of the stream is for its input.
    pub fn start(&mut self, command: &Command<'_>) -> io::Result<UnixStream> {
        let mut payload = vec![u8::from(command.tty) | u8::from(command.input) << 1];
        payload.extend_from_slice(&command.columns.to_be_bytes());
        payload.extend_from_slice(&command.rows.to_be_bytes());
        for word in command.argv {
            payload.extend_from_slice(word.as_bytes());
            payload.push(0);
        }
        self.send(b'R', &payload)?;
        self.stream.set_read_timeout(None)?;
        self.stream.try_clone()
    }
}

pub fn send(stream: &mut UnixStream, kind: u8, payload: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind);
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(payload);
    stream.write_all(&frame)
}

/// A port nobody uses. With all of them busy the last one is waited for.
fn claim(ports: std::ops::Range<usize>) -> io::Result<(usize, Flock<File>)> {
    let last = ports.end - 1;
    for port in ports {
        if !Path::new(&socket_name(port)).exists() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the VM has no agent socket"));
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(Path::new(&format!("agent-{port}.lock")))?;
        let mode = if port == last { FlockArg::LockExclusive } else { FlockArg::LockExclusiveNonblock };
        loop {
            match Flock::lock(file, mode) {
                Ok(lock) => return Ok((port, lock)),
                Err((again, Errno::EINTR)) => file = again,
                Err((_, Errno::EAGAIN)) => break,
                Err((_, error)) => return Err(error.into()),
            }
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}
