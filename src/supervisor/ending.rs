//! How the daemon ends:
//!
//! ```text
//!   serving --first signal--> draining --nothing runs, or the deadline, or a second signal--> stopping --VMs gone--> over
//!      |                                                                                       |   |
//!      +--it broke-----------------------------------------------------------------------------+   +--one more signal--> exit
//! ```
//!
//! Draining: no build is taken or begun, idle VMs go, builds that run go on. Stopping: what still runs is cut short, and the
//! journal has it for the next start. An exit leaves VMs behind, which the next start takes away.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::run::{Daemon, RunError};
use crate::api::service::Service;
use crate::telemetry::events::{DaemonCut, DaemonStopping};

enum Told {
    End,
    Reload,
}

/// The signals that mean something to the daemon.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on they no longer end the process by themselves.
    ///
    /// # Errors
    /// When the system does not let us.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn told(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    /// Waits for one that means to end, and returns its number.
    pub async fn end(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}

/// Waits for a signal to end, or for the daemon to break; on the way it reads its configuration anew as often as it is told.
///
/// # Errors
/// Why it broke.
pub async fn told(signals: &mut Signals, daemon: &mut Daemon) -> Result<(), RunError> {
    let core = daemon.core.clone();
    loop {
        tokio::select! {
            end = signals.told() => match end {
                Told::End => return Ok(()),
                // Whatever comes of it is in the log.
                Told::Reload => drop(core.reload().await),
            },
            why = daemon.broke() => return Err(RunError::Broken(why)),
        }
    }
}

/// Ends the daemon: drains it first when it is `whole`. Returns when its VMs are gone, and does not return when a signal
/// comes while they go.
pub async fn end(mut daemon: Daemon, signals: &mut Signals, whole: bool) {
    let why = if whole { daemon.drain(signals.end()).await } else { "it broke" };
    DaemonStopping { why, running: daemon.context.live.running() }.emit();
    let code = tokio::select! {
        () = daemon.stop() => return,
        signal = signals.end() => 128 + signal,
    };
    DaemonCut { code }.emit();
    // Not by returning: the runtime would wait for threads that may hang in a system call.
    std::process::exit(code)
}
