//! The end of a build, for people. Pure.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::progress::phase_line;
use super::text::{clean, size, took};
use crate::api::wire::{
    AppView, BuildView, CacheRestore, CacheSave, CacheView, Claim, FailureKind, FailureView,
};

/// What happened, in the order in which it happened.
pub fn summary(build: &BuildView, out: Option<&Path>) -> String {
    let mut text = String::new();
    let result = build.result.map_or("not over", |result| result.as_str());
    let (project, pool) = (clean(&build.project), clean(&build.pool));
    writeln!(text, "build {}: {result} ({project} on {pool})", build.id).ok();
    if let Some(reason) = &build.reason {
        writeln!(text, "  {}", clean(reason)).ok();
    }
    if let Some(failure) = &build.failure {
        failed(&mut text, failure, build.reason.as_deref());
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

/// What the failing step said, as far as the reason does not say it.
fn failed(text: &mut String, failure: &FailureView, reason: Option<&str>) {
    let kind = match failure.kind {
        FailureKind::User | FailureKind::Timeout => "",
        FailureKind::System => "not by the build's own doing: ",
        FailureKind::Signing => "signing: ",
    };
    if reason != Some(failure.message.as_str()) {
        writeln!(text, "  {kind}{}", clean(&failure.message)).ok();
    }
    for line in failure.lines.iter().filter(|line| **line != failure.message) {
        writeln!(text, "    | {}", clean(line)).ok();
    }
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
        if let Some(app) = artifact.app.as_ref().and_then(app_line) {
            writeln!(text, "  {:>10}  {}", "", clean(&app)).ok();
        }
    }
}

/// `org.example.app 1.4.0 (214), iOS 15.1 or later, team ABCDE12345`
fn app_line(app: &AppView) -> Option<String> {
    let mut line = app.bundle_id.clone()?;
    line.extend(app.version.iter().map(|version| format!(" {version}")));
    line.extend(app.build_number.iter().map(|number| format!(" ({number})")));
    line.extend(app.minimum_os.iter().map(|os| format!(", iOS {os} or later")));
    match (&app.team_id, &app.team_name) {
        (Some(id), Some(name)) => line.push_str(&format!(", team {id} ({name})")),
        (Some(id), None) => line.push_str(&format!(", team {id}")),
        (None, _) => line.push_str(", not signed for a team"),
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::{AppKind, CacheSavedView};

    #[test]
    fn a_failure_is_told_with_the_lines_that_say_why() {
        let failure = FailureView {
            kind: FailureKind::System,
            step: Some("install".into()),
            message: "the npm registry cannot be reached from the guest (EAI_AGAIN)".into(),
            lines: vec!["code EAI_AGAIN".into(), "\u{1b}[2Jx".into()],
        };
        let mut text = String::new();
        failed(&mut text, &failure, Some("step `install` exited with 1"));
        assert_eq!(
            text,
            "  not by the build's own doing: the npm registry cannot be reached from the guest (EAI_AGAIN)\n\
             \u{20}   | code EAI_AGAIN\n    | \u{fffd}[2Jx\n"
        );
        let mut text = String::new();
        let late =
            FailureView { kind: FailureKind::Timeout, message: "late".into(), lines: Vec::new(), ..failure };
        failed(&mut text, &late, Some("late"));
        assert_eq!(text, "", "the reason says it");
    }

    #[test]
    fn an_app_is_told_in_one_line() {
        let mut app = AppView {
            kind: AppKind::Ipa,
            name: Some("App".into()),
            bundle_id: Some("org.example.app".into()),
            version: Some("1.4.0".into()),
            build_number: Some("214".into()),
            minimum_os: Some("15.1".into()),
            team_id: Some("ABCDE12345".into()),
            team_name: None,
            profile: None,
        };
        let want = "org.example.app 1.4.0 (214), iOS 15.1 or later, team ABCDE12345";
        assert_eq!(app_line(&app).as_deref(), Some(want));
        (app.team_id, app.minimum_os) = (None, None);
        assert_eq!(app_line(&app).as_deref(), Some("org.example.app 1.4.0 (214), not signed for a team"));
        app.bundle_id = None;
        assert_eq!(app_line(&app), None);
    }

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
