//! What must have come of everything: of the journal after each life, and of all of it at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use preheat::api::wire::LogLine;
use preheat::build::actor::{BuildContext, log_path};
use preheat::build::redact::MASK;
use preheat::build::spec::BuildResult;
use preheat::config::Config;
use preheat::ids::RunId;
use preheat::store::BuildRecord;

use rusqlite::Connection;

use crate::life::FOREIGN;
use crate::plan::SECRET;
use crate::world::{Inner, Sent, Vm, World};

/// The first thing that is still to be done, or `None`.
pub async fn left_to_do(world: &Arc<World>, daemon: &BuildContext) -> Option<String> {
    let to_come = {
        let inner = world.lock();
        inner
            .jobs
            .iter()
            .find(|c| matches!(c.state, Sent::No | Sent::UnderWay))
            .map(|c| c.job.project.clone())
    };
    if let Some(job) = to_come {
        return Some(format!("{job} is not accepted"));
    }
    if world.lock().operated {
        return Some("an operator is not done".into());
    }
    let unfinished = daemon.store.unfinished().await.expect("the journal reads");
    if let Some(first) = unfinished.first() {
        let waits = daemon.pool.snapshot().waits_for(first.id);
        return Some(format!(
            "{} builds have no result; the first waits for {waits:?}: {first:?}",
            unfinished.len()
        ));
    }
    let owed = daemon.store.owed().await.expect("the journal reads");
    if let Some(first) = owed.first() {
        return Some(format!("{} deliveries are owed: {first:?}", owed.len()));
    }
    let spool = std::fs::read_dir(daemon.config.get().home.spool()).expect("the spool").count();
    if spool > 0 {
        return Some(format!("{spool} files are in the spool"));
    }
    pool_at_rest(world, daemon)
}

/// Each pool has what it should keep warm, and the host has what the pools say.
fn pool_at_rest(world: &World, daemon: &BuildContext) -> Option<String> {
    let snapshot = daemon.pool.snapshot();
    let inner = world.lock();
    for pool in &snapshot.pools {
        let warm =
            snapshot.vms.iter().filter(|vm| vm.pool == pool.name.as_str() && vm.state == "warm").count();
        if warm != usize::from(pool.warm) {
            return Some(format!(
                "pool {} has {warm} warm VMs of {}: {:?}",
                pool.name, pool.warm, snapshot.vms
            ));
        }
    }
    let booked: BTreeSet<&str> = snapshot.vms.iter().map(|vm| vm.name.as_str()).collect();
    let there: BTreeSet<&str> =
        inner.vms.keys().map(String::as_str).filter(|name| FOREIGN.iter().all(|(f, _)| f != name)).collect();
    if booked != there {
        return Some(format!("the pool has {booked:?}, and the host {there:?}"));
    }
    let busy =
        snapshot.vms.iter().find(|vm| !matches!(vm.state.as_str(), "warm" | "configured" | "suspended"));
    busy.map(|vm| format!("{} is {}", vm.name, vm.state))
}

/// What the journal says now is what it said before, and more.
pub fn of_journal(world: &mut Inner, config: &Config) {
    let journal = Connection::open(config.home.journal()).expect("the journal");
    let mut rows = journal.prepare("SELECT id, result, reason FROM builds").expect("a statement");
    let rows = rows.query_map([], |r| Ok((r.get::<_, i64>(0)?, r.get(1)?, r.get(2)?))).expect("rows");
    let rows: BTreeMap<u64, (Option<String>, Option<String>)> = rows
        .map(|row| row.expect("a row"))
        .map(|(id, result, reason)| (u64::try_from(id).expect("a number"), (result, reason)))
        .collect();
    for client in world.jobs.clone() {
        if let Sent::Accepted(id) = client.state
            && !rows.contains_key(&id.0)
        {
            world.violation(format!("{} was accepted as {id} and is lost", client.job.project));
        }
    }
    for (id, (result, reason)) in rows {
        let now = result.map(|result| (result, reason));
        match (world.results.get(&id).cloned(), now) {
            (Some(before), now) if now.as_ref() != Some(&before) => {
                world.violation(format!("build {id} had the result {before:?} and has {now:?}"));
            }
            (None, Some(now)) => {
                world.results.insert(id, now);
            }
            (Some(_) | None, _) => {}
        }
    }
}

/// VMs that the next daemon can resume from.
pub fn suspended(config: &Config) -> BTreeSet<String> {
    let journal = Connection::open(config.home.journal()).expect("the journal");
    let mut rows = journal.prepare("SELECT vm FROM goldens").expect("a statement");
    let rows = rows.query_map([], |r| r.get(0)).expect("rows");
    rows.map(|row| row.expect("a row")).collect()
}

/// No secret lies anywhere.
pub fn of_files(world: &mut Inner, folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let path = entry.path();
        if entry.file_type().expect("a type").is_dir() {
            of_files(world, &path);
        } else if String::from_utf8_lossy(&std::fs::read(&path).expect("a file")).contains(SECRET) {
            world.violation(format!("a secret is in {}", path.display()));
        }
    }
}

/// Everything is over: each build, each delivery, each log, each VM.
pub fn at_the_end(world: &mut Inner, config: &Config) {
    let journal = Connection::open(config.home.journal()).expect("the journal");
    let mut rows = journal.prepare("SELECT record FROM builds ORDER BY id").expect("a statement");
    let rows = rows.query_map([], |r| r.get::<_, String>(0)).expect("rows");
    let records: Vec<BuildRecord> =
        rows.map(|row| serde_json::from_str(&row.expect("a row")).expect("a record")).collect();
    for record in &records {
        let (id, project) = (record.id, &record.spec.project);
        let Some(result) = record.result else {
            world.violation(format!("build {id} has no result"));
            continue;
        };
        for upload in &config.uploads {
            if !world.received.contains_key(&(upload.name.clone(), id)) {
                world.violation(format!("{} never got build {id}", upload.name));
            }
        }
        if let Err(why) = honest(world, record, result) {
            world.violation(format!("build {id} ({project}): {why}: {record:?}"));
        }
        if let Err(why) = whole_log(world, config, record, result) {
            world.violation(format!("the log of build {id} ({project}): {why}"));
        }
    }
    for (name, state) in FOREIGN {
        if world.vms.get(name).is_none_or(|vm| vm.state != state || !vm.runs.is_empty()) {
            world.violation(format!("{name}, which is not ours, was touched"));
        }
    }
}

fn vms(world: &Inner) -> impl Iterator<Item = &Vm> {
    world.vms.values().chain(world.past.values())
}

/// A result is what happened in some guest.
fn honest(world: &Inner, record: &BuildRecord, result: BuildResult) -> Result<(), String> {
    let project = &record.spec.project;
    let client = world.jobs.iter().find(|client| client.job.project == *project);
    let client = client.ok_or("nobody asked for it")?;
    let now = Duration::MAX;
    let mine = || vms(world).filter(|vm| vm.project.as_ref() == Some(project));
    let exited = |vm: &Vm, command: &str| {
        vm.runs.values().find(|run| run.command == command).and_then(|run| vm.exited(run, now))
    };
    match result {
        BuildResult::Success => {
            let whole = mine().any(|vm| {
                record.spec.steps.iter().all(|step| exited(vm, &step.command) == Some(0))
                    && (record.spec.artifacts.is_empty() || vm.taken)
            });
            let nothing = record.spec.steps.is_empty();
            if whole || nothing { Ok(()) } else { Err("it succeeded, and no guest did all of it".into()) }
        }
        BuildResult::Failure => {
            let failed = |vm: &Vm| {
                let by_step =
                    record.spec.steps.iter().any(|s| exited(vm, &s.command).is_some_and(|c| c != 0));
                by_step || record.spec.artifacts.iter().any(|glob| glob == crate::plan::MISSING)
            };
            if mine().any(failed) { Ok(()) } else { Err("it failed, and no step of it did".into()) }
        }
        BuildResult::Cancellation => {
            if client.cancelled {
                Ok(())
            } else {
                Err("nobody cancelled it".into())
            }
        }
        BuildResult::Timeout => {
            let late = |vm: &Vm| vm.runs.values().any(|run| run.killed_at.is_some());
            if mine().any(late) { Ok(()) } else { Err("nothing of it was too late".into()) }
        }
        BuildResult::Error => {
            if world.counts.keys().any(|(_, word)| *word != "ok") || world.life > 1 {
                Ok(())
            } else {
                Err("nothing failed under it".into())
            }
        }
    }
}

/// Numbered without a gap; of each run its first lines, each once; of the runs that decided, all.
fn whole_log(
    world: &Inner,
    config: &Config,
    record: &BuildRecord,
    result: BuildResult,
) -> Result<(), String> {
    let client = world.jobs.iter().find(|client| client.job.project == record.spec.project);
    let client = client.ok_or("nobody asked for it")?;
    let path = log_path(config, record.id);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<LogLine> = text
        .lines()
        .map(|line| serde_json::from_str(line).map_err(|e| format!("`{line}`: {e}")))
        .collect::<Result<_, _>>()?;
    let masked = |text: &str| match &client.job.secret {
        Some(secret) => text.replace(secret, MASK),
        None => text.to_owned(),
    };
    let mut runs: BTreeMap<&RunId, Vec<(u64, String)>> = BTreeMap::new();
    for (expected, line) in (1..).zip(&lines) {
        if line.n != expected {
            return Err(format!("line {} comes where {expected} should", line.n));
        }
        if let (Some(run), Some(end)) = (&line.run, line.end) {
            runs.entry(run).or_default().push((end, line.text.clone()));
        }
    }
    for (id, seen) in &runs {
        let run = vms(world).find_map(|vm| vm.runs.get(id)).ok_or("it has lines of no run")?;
        let printed = run.lines.iter().map(|(_, line)| (line.end, masked(&line.text)));
        let printed: Vec<_> = printed.take(seen.len()).collect();
        if printed != *seen {
            return Err(format!("a run printed {printed:?}, and it has {seen:?}"));
        }
    }
    if result != BuildResult::Success {
        return Ok(());
    }
    for step in &record.spec.steps {
        let whole = vms(world).filter(|vm| vm.project.as_deref() == Some(&record.spec.project)).any(|vm| {
            let ran = vm.runs.iter().find(|(_, run)| run.command == step.command);
            ran.is_some_and(|(id, run)| runs.get(id).map_or(0, Vec::len) == run.lines.len())
        });
        if !whole {
            return Err(format!("no run of `{}` is whole in it", step.command));
        }
    }
    Ok(())
}
