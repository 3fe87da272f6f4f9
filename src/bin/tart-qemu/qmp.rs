//! QEMU's control protocol: one JSON object a line, events in between.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The second monitor, for others than the supervisor: QEMU serves one client per socket.
pub const GUEST_SOCKET: &str = "monitor.sock";

pub struct Qmp {
    writer: UnixStream,
    replies: Receiver<Value>,
}

impl Qmp {
    /// Speaks on an open connection; events go to `event`, and its end is reported as `None`.
    pub fn start(stream: UnixStream, event: impl Fn(Option<Value>) + Send + 'static) -> io::Result<Self> {
        let (sender, replies) = channel();
        let reader = BufReader::new(stream.try_clone()?);
        std::thread::spawn(move || read_lines(reader, &sender, &event));
        let mut qmp = Self { writer: stream, replies };
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub fn call(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        self.call_within(command, arguments, Duration::from_secs(30))
    }

    pub fn call_within(&mut self, command: &str, arguments: Value, limit: Duration) -> io::Result<Value> {
        writeln!(self.writer, "{}", json!({"execute": command, "arguments": arguments}))?;
        let reply = self.replies.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                io::Error::new(io::ErrorKind::TimedOut, format!("QEMU: `{command}`: no answer"))
            }
            RecvTimeoutError::Disconnected => io::Error::new(io::ErrorKind::BrokenPipe, "QEMU has gone"),
        })?;
        match reply.get("error") {
            Some(error) => Err(io::Error::other(format!(
                "QEMU: `{command}`: {}",
                error.get("desc").and_then(Value::as_str).unwrap_or("refused")
            ))),
            None => Ok(reply.get("return").cloned().unwrap_or(Value::Null)),
        }
    }

    /// A command of the human monitor; it answers with text, which is empty when all went well.
    pub fn human(&mut self, line: &str) -> io::Result<()> {
        let answer = self.call("human-monitor-command", json!({"command-line": line}))?;
        match answer.as_str().unwrap_or_default().trim() {
            "" => Ok(()),
            text => Err(io::Error::other(format!("QEMU: `{line}`: {text}"))),
        }
    }

    pub fn status(&mut self) -> io::Result<String> {
        let answer = self.call("query-status", json!({}))?;
        Ok(answer.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Polls `query-migrate` until it is over.
    pub fn wait_for_migration(&mut self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.call("query-migrate", json!({}))?;
            match answer.get("status").and_then(Value::as_str).unwrap_or_default() {
                "completed" => return Ok(()),
                "failed" | "cancelled" => {
                    let why = answer.get("error-desc").and_then(Value::as_str).unwrap_or("cannot be saved");
                    return Err(io::Error::other(why.to_owned()));
                }
                _ if Instant::now() > deadline => return Err(io::ErrorKind::TimedOut.into()),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

fn read_lines(reader: BufReader<UnixStream>, replies: &Sender<Value>, event: &impl Fn(Option<Value>)) {
    for line in reader.lines() {
        let Ok(value) = line.and_then(|line| serde_json::from_str::<Value>(&line).map_err(io::Error::from))
        else {
            break;
        };
        if value.get("event").is_some() {
            event(Some(value));
        } else if value.get("QMP").is_none() && replies.send(value).is_err() {
            break;
        }
    }
    event(None);
}

/// Makes the running guest of the VM at `path` go on in `disk.img.new`.
///
/// The socket's address is limited to about a hundred bytes, hence the way through the working directory.
pub fn move_to_overlay(path: &Path) -> io::Result<()> {
    std::env::set_current_dir(path)?;
    let mut qmp = Qmp::start(connect_within(Duration::from_secs(5))?, |_| ())?;
    qmp.call(
        "blockdev-snapshot-sync",
        json!({"device": "d0", "snapshot-file": path.join("disk.img.new"), "format": "qcow2", "mode": "existing"}),
    )?;
    Ok(())
}

/// A VM that was started a moment ago has no monitor yet.
fn connect_within(limit: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + limit;
    loop {
        match UnixStream::connect(GUEST_SOCKET) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
}
