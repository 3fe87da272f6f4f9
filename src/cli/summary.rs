//! The end of a build, for people. Pure.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::progress::phase_line;
use super::text::{clean, size, took};
use crate::api::wire::{BuildView, CacheRestore, CacheSave, CacheView, Claim};

/// What happened, in the order in which it happened.
pub fn summary(build: &BuildView, out: Option<&Path>) -> String {
    let mut text = String::new();
    let result = build.result.map_or("not over", |result| result.as_str());
    let (project, pool) = (clean(&build.project), clean(&build.pool));
    writeln!(text, "build {}: {result} ({project} on {pool})", build.id).ok();
    if let Some(reason) = &build.reason {
        writeln!(text, "  {}", clean(reason)).ok();
    }
    let last = build.phases.iter().map(|p| p.attempt).max().unwrap_or(1);
    if last > 1 {
        writeln!(text, "  {:<14} {last}, of which the last is shown", "attempts").ok();
    }
    for (at, phase) in build.phases.iter().filter(|p| p.attempt == last).enumerate() {
        // The VM stands between the wait for it and what was done in it.
        if at == usize::from(build.phases.iter().any(|p| p.attempt == last && p.phase == "queue")) {
            vm(&mut text, build);
        }
        if phase.took_ms.is_some() {
            writeln!(text, "  {}", phase_line(phase)).ok();
        }
    }
    if let Some(finished) = build.finished_ms {
        let total = took(finished.since(build.submitted_ms));
        writeln!(text, "  {:<14} {total:>8}", "total").ok();
    }
    for cache in &build.caches {
        writeln!(text, "{}", cache_line(cache)).ok();
    }
    artifacts(&mut text, build, out);
    text
}

fn vm(text: &mut String, build: &BuildView) {
    let Some(vm) = &build.vm else { return };
    let claim = match build.claim {
        Some(Claim::Hit) => " (hit: it was warm)",
        Some(Claim::Miss) => " (miss: it had to be waited for)",
        None => "",
    };
    writeln!(text, "  {:<14} {}{claim}", "vm", clean(vm)).ok();
}

/// `cache pods-1a2b: miss; saved, 12.0 MB in 0.31 s`
fn cache_line(cache: &CacheView) -> String {
    let amount = |bytes, ms| format!("{} in {}", size(bytes), took(Duration::from_millis(ms)));
    let restored = match (cache.restore, &cache.from) {
        (CacheRestore::Hit, _) => format!("hit, {}", amount(cache.bytes, cache.took_ms)),
        (CacheRestore::Prefix, Some(from)) => {
            format!("restored from {}, {}", clean(from), amount(cache.bytes, cache.took_ms))
        }
        (CacheRestore::Prefix | CacheRestore::Miss | CacheRestore::Failed, _) => "miss".to_owned(),
    };
    let saved = match &cache.saved {
        None => String::new(),
        Some(saved) => match saved.result {
            CacheSave::Saved => format!("; saved, {}", amount(saved.bytes, saved.took_ms)),
            CacheSave::Present => "; another build saved it first".to_owned(),
            CacheSave::Failed => {
                format!("; not saved: {}", clean(saved.why.as_deref().unwrap_or_default()))
            }
        },
    };
    format!("cache {}: {restored}{saved}", clean(&cache.key))
}

fn artifacts(text: &mut String, build: &BuildView, out: Option<&Path>) {
    let Some(out) = out.filter(|_| !build.artifacts.is_empty()) else { return };
    let bytes = build.artifacts.iter().map(|a| a.bytes).sum();
    let count = match build.artifacts.len() {
        1 => "1 artifact".to_owned(),
        n => format!("{n} artifacts"),
    };
    writeln!(text, "{count}, {}, in {}", size(bytes), out.display()).ok();
    for artifact in &build.artifacts {
        let short = artifact.sha256.get(..12).unwrap_or(&artifact.sha256);
        writeln!(text, "  {:>10}  {}  {}", size(artifact.bytes), clean(short), clean(&artifact.path)).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::CacheSavedView;

    #[test]
    fn a_cache_is_told_in_one_line() {
        let saved = |result, why: Option<&str>| {
            Some(CacheSavedView { result, bytes: 12_000_000, took_ms: 310, why: why.map(str::to_owned) })
        };
        let line = |restore, from: Option<&str>, saved| {
            let (key, from) = ("k-2".to_owned(), from.map(str::to_owned));
            cache_line(&CacheView { key, restore, from, bytes: 4_000, took_ms: 20, saved })
        };
        assert_eq!(line(CacheRestore::Hit, None, None), "cache k-2: hit, 4.0 kB in 0.02 s");
        assert_eq!(
            line(CacheRestore::Prefix, Some("k-1"), saved(CacheSave::Saved, None)),
            "cache k-2: restored from k-1, 4.0 kB in 0.02 s; saved, 12.0 MB in 0.31 s"
        );
        assert_eq!(
            line(CacheRestore::Miss, None, saved(CacheSave::Failed, Some("no\u{1b}room"))),
            "cache k-2: miss; not saved: no\u{fffd}room"
        );
    }
}
