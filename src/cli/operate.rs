//! `status`, `drain`, `resume`, `reload`: the daemon as a whole.

use std::time::Duration;

use super::client::Client;
use super::exit::Exit;
use super::problem::Problem;
use super::text::{clean, took};
use super::{out, out_json, say};
use crate::api::wire::{ChangeView, ConfigView, ControllerView, DaemonState, ReloadView, StatusView};
use crate::clock::{Deadline, UnixMillis};

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
    out(&clean(&controller_lines(&status.controllers, UnixMillis::now())));
    out(&clean(&config_lines(&status.config, UnixMillis::now())));
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

fn controller_lines(controllers: &[ControllerView], now: UnixMillis) -> String {
    let line = |c: &ControllerView| {
        let (name, state, since) = (&c.name, c.state.as_str(), took(now.since(c.since_ms)));
        let error = c.error.as_ref().map(|error| format!("; {error}")).unwrap_or_default();
        format!("source  {name}: {state} for {since}, {} of {} lane(s) busy{error}\n", c.busy, c.lanes)
    };
    controllers.iter().map(line).collect()
}

fn config_lines(config: &ConfigView, now: UnixMillis) -> String {
    let ago = |at: UnixMillis| format!("{} ago", took(now.since(at)));
    let mut text = config.loaded_ms.map_or(String::new(), |at| format!("config  read {}\n", ago(at)));
    if let Some(at) = config.refused_ms {
        let count = config.mistakes.len();
        text.push_str(&format!("        one with {count} mistake(s) was refused {}:\n", ago(at)));
        for mistake in &config.mistakes {
            text.push_str(&format!("        {}\n", mistake.replace('\n', "\n        ")));
        }
    }
    text
}

/// `preheat reload`
pub async fn reload(client: &Client, json: bool) -> Result<Exit, Problem> {
    let reloaded: ReloadView = client.post(&["api", "v1", "config", "reload"], ANSWER).await?;
    for warning in &reloaded.warnings {
        say(&clean(&format!("warning: {warning}")));
    }
    if json {
        out_json(&reloaded)?;
    } else {
        out(&clean(&reload_lines(&reloaded)));
    }
    Ok(Exit::Success)
}

fn reload_lines(reloaded: &ReloadView) -> String {
    let ReloadView { changes, pools_added, pools_removed, builds_ended, warnings: _ } = reloaded;
    let mut lines: Vec<String> = changes.iter().map(change_line).collect();
    lines.extend(pools_added.iter().map(|pool| format!("pool.{pool}: added")));
    lines.extend(pools_removed.iter().map(|pool| {
        format!("pool.{pool}: removed; idle VMs go at once, those in use when their build is over")
    }));
    if *builds_ended > 0 {
        lines.push(format!("{builds_ended} build(s) that waited for a removed pool ended in error"));
    }
    if lines.is_empty() {
        lines.push("nothing differs from what is in force".to_owned());
    }
    lines.join("\n") + "\n"
}

fn change_line(change: &ChangeView) -> String {
    let ChangeView { key, from, to, applies } = change;
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
    let how = match applies.as_str() {
        "new_vms" => "; idle VMs are replaced one by one",
        "restart" => "; needs a restart, and stays as it was until then",
        _ => "",
    };
    format!("{key}: {} -> {}{how}", text(from), text(to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::ControllerState;

    #[test]
    fn a_controller_is_shown_with_why_it_fails() {
        let mut mesh = ControllerView {
            name: "mesh".into(),
            url: "https://controller.example.com".into(),
            state: ControllerState::Connected,
            since_ms: UnixMillis(0),
            error: None,
            lanes: 2,
            busy: 1,
        };
        let line = controller_lines(std::slice::from_ref(&mesh), UnixMillis(90_000));
        assert!(
            line.starts_with("source  mesh: connected for 1") && line.ends_with("1 of 2 lane(s) busy\n"),
            "{line}"
        );
        (mesh.state, mesh.error) = (ControllerState::Failing, Some("it cannot be reached".into()));
        assert!(controller_lines(&[mesh], UnixMillis(90_000)).ends_with("busy; it cannot be reached\n"));
    }
}
