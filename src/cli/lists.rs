//! `builds`, `pool`, `vms`, `cancel`: one question, one answer.

use super::client::Client;
use super::exit::Exit;
use super::problem::Problem;
use super::text::{table, took};
use super::{out, out_json};
use crate::api::wire::{BuildList, BuildState, BuildView, PoolList, PoolView, VmList};
use crate::clock::UnixMillis;
use crate::ids::BuildId;

/// `preheat builds`
pub async fn builds(client: &Client, limit: u32, json: bool) -> Result<Exit, Problem> {
    let list: BuildList = client.get(&["api", "v1", "builds"], &[("limit", limit.to_string())]).await?;
    if json {
        out_json(&list)?;
    } else {
        let now = UnixMillis::now();
        let rows: Vec<_> = list.builds.iter().map(|build| build_row(build, now)).collect();
        out(&table(&["BUILD", "PROJECT", "POOL", "STATE", "VM", "SUBMITTED", "TOOK"], &rows));
    }
    Ok(Exit::Success)
}

fn build_row(build: &BuildView, now: UnixMillis) -> Vec<String> {
    let state = match (build.state, build.result) {
        (BuildState::Done, Some(result)) => result.as_str().to_owned(),
        (BuildState::Done, None) => "done".to_owned(),
        (BuildState::Uploading, _) => "uploading".to_owned(),
        (BuildState::Running, _) => "running".to_owned(),
        (BuildState::Queued, _) => match &build.waiting_for {
            Some(what) => format!("queued ({what})"),
            None => "queued".to_owned(),
        },
    };
    vec![
        build.id.to_string(),
        build.project.clone(),
        build.pool.clone(),
        state,
        build.vm.clone().unwrap_or_else(|| "-".into()),
        format!("{} ago", took(now.since(build.submitted_ms))),
        took(build.finished_ms.unwrap_or(now).since(build.submitted_ms)),
    ]
}

/// `preheat pool`
pub async fn pools(client: &Client, json: bool) -> Result<Exit, Problem> {
    let list: PoolList = client.get(&["api", "v1", "pools"], &[]).await?;
    if json {
        out_json(&list)?;
        return Ok(Exit::Success);
    }
    let rows: Vec<_> = list.pools.iter().map(pool_row).collect();
    out(&table(&["POOL", "IMAGE", "WARM", "MAX", "WAITING", "VMS"], &rows));
    let now = UnixMillis::now();
    for pool in &list.pools {
        if pool.lost > 0 {
            let what = if pool.lost == 1 { "slot is" } else { "slots are" };
            out(&format!("\npool {}: {} {what} lost until somebody looks\n", pool.name, pool.lost));
        }
        if let Some(trouble) = &pool.trouble {
            let next = took(trouble.next_try_ms.since(now));
            let failed = format!("{} failures in a row, next try in {next}", trouble.failures);
            let what = format!("\npool {}: {} ({}; {failed})\n", pool.name, trouble.text, trouble.reason);
            out(&super::text::clean(&what));
            if let Some(hint) = &trouble.hint {
                out(&format!("hint: {}\n", super::text::clean(hint)));
            }
        }
    }
    Ok(Exit::Success)
}

fn pool_row(pool: &PoolView) -> Vec<String> {
    let warm = pool.vms.get("warm").copied().unwrap_or(0);
    let vms = pool.vms.iter().filter(|(_, count)| **count > 0);
    let vms: Vec<_> = vms.map(|(state, count)| format!("{count} {state}")).collect();
    vec![
        pool.name.clone(),
        pool.image.clone(),
        format!("{warm}/{}", pool.warm_target),
        pool.max.to_string(),
        pool.waiting.to_string(),
        if vms.is_empty() { "-".into() } else { vms.join(", ") },
    ]
}

/// `preheat vms`
pub async fn vms(client: &Client, json: bool) -> Result<Exit, Problem> {
    let list: VmList = client.get(&["api", "v1", "vms"], &[]).await?;
    if json {
        out_json(&list)?;
        return Ok(Exit::Success);
    }
    let now = UnixMillis::now();
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let rows: Vec<_> = list
        .vms
        .into_iter()
        .map(|vm| {
            let build = text(vm.build.map(|id| id.to_string()));
            let (address, pid) = (text(vm.address), text(vm.pid.map(|pid| pid.to_string())));
            vec![vm.name, vm.state, took(now.since(vm.since_ms)), address, build, pid]
        })
        .collect();
    out(&table(&["VM", "STATE", "FOR", "ADDRESS", "BUILD", "PID"], &rows));
    Ok(Exit::Success)
}

/// `preheat cancel`
pub async fn cancel(client: &Client, id: BuildId) -> Result<Exit, Problem> {
    client.cancel(id).await?;
    super::say(&format!("build {id} is being cancelled"));
    Ok(Exit::Success)
}
