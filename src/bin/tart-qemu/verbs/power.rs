//! `stop` and `suspend`: signals to the process that holds the VM's lock.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Failure, Outcome};
use crate::home::Home;
use crate::vm::State;

const TICK: Duration = Duration::from_millis(100);

pub fn stop(home: &Home, name: &str, timeout_seconds: u64) -> Outcome {
    let vm = home.open_vm(name)?;
    match vm.state() {
        State::Suspended => {
            vm.forget_saved_state();
            return Ok(());
        }
        State::Stopped => return Err(Failure::VmNotRunning(name.to_owned())),
        State::Running => {}
    }
    let Some(mut owner) = vm.owner() else { return Err(Failure::VmNotRunning(name.to_owned())) };
    let _ = kill(Pid::from_raw(owner), Signal::SIGINT);
    let deadline = Instant::now() + Duration::from_secs(timeout_seconds);
    while Instant::now() < deadline {
        match vm.owner() {
            None => return Ok(()),
            Some(pid) => owner = pid,
        }
        std::thread::sleep(TICK.min(deadline.saturating_duration_since(Instant::now())));
    }
    if vm.owner().is_none() {
        return Ok(());
    }
    kill(Pid::from_raw(owner), Signal::SIGKILL).map_err(|error| {
        Failure::TerminationFailed(format!(
            "failed to forcefully terminate the VM \"{name}\": {}",
            error.desc()
        ))
    })
}

pub fn suspend(home: &Home, name: &str) -> Outcome {
    let vm = home.open_vm(name)?;
    let Some(owner) = vm.owner() else {
        // Tart puts its whole sentence where the name belongs.
        return Err(Failure::VmNotRunning(format!("VM \"{name}\" is not running")));
    };
    kill(Pid::from_raw(owner), Signal::SIGUSR1).map_err(|_| {
        Failure::SuspendFailed(format!(
            "failed to send SIGUSR1 signal to the \"tart run\" process running VM \"{name}\""
        ))
    })
}
