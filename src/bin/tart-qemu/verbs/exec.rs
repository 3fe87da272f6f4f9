//! `exec`: a command in the guest, through its agent and not through its network.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::agent::{self, Agent, PORTS};
use crate::args;
use crate::error::{Failure, Outcome};
use crate::home::Home;

/// How long a guest under emulation may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

pub fn exec(home: &Home, args: &args::Exec) -> Outcome {
    let vm = home.open_vm(&args.name)?;
    if vm.owner().is_none() {
        return Err(Failure::VmNotRunning(args.name.clone()));
    }
    let lost = |error: io::Error| {
        Failure::Generic(format!(
            "Failed to connect to the VM using its control socket: {error}, is the Tart Guest Agent running?"
        ))
    };
    std::env::set_current_dir(vm.path()).map_err(lost)?;
    let mut agent = Agent::connect(1..PORTS, ANSWER_LIMIT).map_err(lost)?;
    let _raw = if args.tty && io::stdin().is_terminal() { Some(RawTerminal::enter()?) } else { None };
    let (columns, rows) = if args.tty { terminal_size() } else { (0, 0) };
    let command =
        agent::Command { argv: &args.command, tty: args.tty, input: args.interactive, columns, rows };
    let input = agent.start(&command).map_err(lost)?;
    if args.interactive {
        std::thread::spawn(move || send_input(input));
    }
    let code = receive_output(&mut agent).map_err(lost)?;
    if code == 0 { Ok(()) } else { Err(Failure::Exit(code)) }
}

fn send_input(mut stream: UnixStream) {
    let mut bytes = [0; 64 * 1024];
    let mut stdin = io::stdin().lock();
    while let Ok(count) = stdin.read(&mut bytes) {
        let sent = match count {
            0 => agent::send(&mut stream, b'E', &[]),
            count => agent::send(&mut stream, b'I', &bytes[..count]),
        };
        if sent.is_err() || count == 0 {
            return;
        }
    }
}

fn receive_output(agent: &mut Agent) -> io::Result<u8> {
    loop {
        let frame = agent.receive()?;
        match frame.kind {
            b'o' => io::stdout().write_all(&frame.payload).and_then(|()| io::stdout().flush())?,
            b'e' => io::stderr().write_all(&frame.payload)?,
            b'x' => return Ok(frame.payload.last().copied().unwrap_or(255)),
            _ => {}
        }
    }
}

fn terminal_size() -> (u16, u16) {
    let output = Command::new("stty").arg("size").stdin(Stdio::inherit()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    let (rows, columns) = (numbers.next().unwrap_or(24), numbers.next().unwrap_or(80));
    (columns, rows)
}

/// The terminal as it was comes back on drop.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Outcome<Self> {
        let fail = |error: nix::errno::Errno| {
            Failure::Generic(format!("failed to set terminal parameters: {}", error.desc()))
        };
        let before = tcgetattr(io::stdin()).map_err(fail)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).map_err(fail)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
