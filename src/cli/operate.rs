//! `status`, `drain`, `resume`: the daemon as a whole.

use std::time::Duration;

use super::client::Client;
use super::exit::Exit;
use super::problem::Problem;
use super::{out, out_json, say};
use crate::api::wire::{DaemonState, StatusView};
use crate::clock::Deadline;

/// The daemon answers when it has begun, which is a matter of its pool's next turn.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two looks while a drain is awaited.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// `preheat status`
pub async fn status(client: &Client, json: bool) -> Result<Exit, Problem> {
    let status = client.status().await?;
    if json {
        out_json(&status)?;
        return Ok(Exit::Success);
    }
    out(&format!("daemon  {}\n", state_line(status.state)));
    out(&format!("builds  {} running, {} waiting\n", status.builds_running, status.builds_waiting));
    out(&match status.vms_quarantined {
        0 => format!("vms     {}\n", status.vms),
        lost => format!("vms     {}, and {lost} that cannot be removed (`preheat vms`)\n", status.vms),
    });
    Ok(Exit::Success)
}

fn state_line(state: DaemonState) -> &'static str {
    match state {
        DaemonState::Serving => "serving",
        DaemonState::Draining => "draining: no builds are taken or begun; `preheat resume` ends that",
        DaemonState::Drained => "drained: nothing runs; `preheat resume` ends that",
        DaemonState::Stopping => "stopping: builds that run go on to their end for a while",
    }
}

/// What is left to wait for.
fn left(status: &StatusView) -> String {
    let StatusView { builds_running, builds_waiting, vms, .. } = status;
    format!("{builds_running} build(s) run, {builds_waiting} wait, {vms} VM(s) are left")
}

/// `preheat drain`
pub async fn drain(
    client: &Client,
    wait: bool,
    timeout: Option<Duration>,
    json: bool,
) -> Result<Exit, Problem> {
    let mut status: StatusView = client.post(&["api", "v1", "drain"], ANSWER).await?;
    if wait {
        status = until_drained(client, status, timeout.map(Deadline::after)).await?;
    }
    if json {
        out_json(&status)?;
    } else if status.state == DaemonState::Drained {
        say("drained: nothing runs, no VM is left; `preheat resume` goes on");
    } else {
        say(&format!("draining: {}; `preheat resume` goes on", left(&status)));
    }
    Ok(Exit::Success)
}

async fn until_drained(
    client: &Client,
    mut status: StatusView,
    deadline: Option<Deadline>,
) -> Result<StatusView, Problem> {
    let mut said = String::new();
    loop {
        match status.state {
            DaemonState::Drained => return Ok(status),
            DaemonState::Draining | DaemonState::Stopping => {}
            DaemonState::Serving => {
                return Err(Problem::system("the daemon serves again: somebody resumed it").code("resumed"));
            }
        }
        let now = left(&status);
        if said != now {
            say(&format!("draining: {now}"));
            said = now;
        }
        if deadline.is_some_and(|deadline| deadline.left().is_zero()) {
            let problem = Problem::system(format!("not drained in time: {said}")).code("drain_timeout");
            let problem = problem.hint("it goes on draining: wait again, or `preheat cancel` what runs");
            return Err(Problem { exit: Exit::TimedOut, ..problem });
        }
        tokio::time::sleep(LOOK_EVERY.min(deadline.map_or(LOOK_EVERY, Deadline::left))).await;
        status = client.status().await?;
    }
}

/// `preheat resume`
pub async fn resume(client: &Client, json: bool) -> Result<Exit, Problem> {
    let status: StatusView = client.post(&["api", "v1", "resume"], ANSWER).await?;
    if json {
        out_json(&status)?;
    } else {
        say(&format!(
            "the daemon goes on: {} build(s) wait, {} run",
            status.builds_waiting, status.builds_running
        ));
    }
    Ok(Exit::Success)
}
