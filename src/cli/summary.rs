//! The end of a build, for people. Pure.

use std::fmt::Write as _;
use std::path::Path;

use super::progress::phase_line;
use super::text::{clean, size, took};
use crate::api::wire::{BuildView, Claim};

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
