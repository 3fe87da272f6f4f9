//! `cache list`, `cache remove`: what builds left for later ones.

use super::args::CacheCommand;
use super::client::Client;
use super::exit::Exit;
use super::problem::Problem;
use super::text::{size, table, took};
use super::{out, out_json, say};
use crate::api::wire::{CacheEntryView, CacheList};
use crate::clock::UnixMillis;

/// `preheat cache ...`
pub async fn command(client: &Client, command: CacheCommand) -> Result<Exit, Problem> {
    match command {
        CacheCommand::List { project, json } => list(client, project.as_deref(), json).await,
        CacheCommand::Remove { caches, project, all, json } => {
            let chosen = match (project, all) {
                (None, false) => caches,
                (project, _) => ids(&of(all_of(client).await?, project.as_deref())),
            };
            remove(client, &chosen, json).await
        }
    }
}

async fn all_of(client: &Client) -> Result<CacheList, Problem> {
    Ok(client.get(&["api", "v1", "caches"], &[]).await?)
}

fn of(list: CacheList, project: Option<&str>) -> CacheList {
    let is_of = |cache: &CacheEntryView| project.is_none_or(|project| cache.project == project);
    CacheList { caches: list.caches.into_iter().filter(is_of).collect() }
}

fn ids(list: &CacheList) -> Vec<String> {
    list.caches.iter().map(|cache| cache.id.clone()).collect()
}

async fn list(client: &Client, project: Option<&str>, json: bool) -> Result<Exit, Problem> {
    let list = of(all_of(client).await?, project);
    if json {
        out_json(&list)?;
        return Ok(Exit::Success);
    }
    let now = UnixMillis::now();
    let ago = |at| format!("{} ago", took(now.since(at)));
    let row = |cache: &CacheEntryView| {
        let CacheEntryView { id, project, pool, bytes, saved_ms, used_ms, key, build: _, paths: _ } = cache;
        let (saved, used) = (ago(*saved_ms), ago(*used_ms));
        vec![id.clone(), project.clone(), pool.clone(), size(*bytes), saved, used, key.clone()]
    };
    let rows: Vec<_> = list.caches.iter().map(row).collect();
    out(&table(&["CACHE", "PROJECT", "POOL", "SIZE", "SAVED", "USED", "KEY"], &rows));
    Ok(Exit::Success)
}

async fn remove(client: &Client, chosen: &[String], json: bool) -> Result<Exit, Problem> {
    let mut removed = CacheList { caches: Vec::new() };
    for id in chosen {
        removed.caches.push(client.remove_cache(id).await?);
    }
    if json {
        out_json(&removed)?;
    } else {
        let bytes = removed.caches.iter().map(|cache| cache.bytes).sum();
        say(&format!("{} cache(s) removed, {}", removed.caches.len(), size(bytes)));
    }
    Ok(Exit::Success)
}
