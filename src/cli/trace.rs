//! `preheat trace`: where a build's time went, as a table for people and a file for a viewer.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::client::Client;
use super::exit::Exit;
use super::problem::Problem;
use super::text::clean;
use super::{out, out_json, say};
use crate::api::timeline::{ChromeTrace, Share, TraceSummary, Turn, VmShares};
use crate::ids::BuildId;

/// Where a trace is opened.
const VIEWER: &str = "https://ui.perfetto.dev";
/// Stands for stdout.
const STDOUT: &str = "-";

/// Writes the trace to `file` (`-` is stdout), and says where the time went.
pub async fn command(
    client: &Client,
    id: BuildId,
    file: Option<PathBuf>,
    json: bool,
) -> Result<Exit, Problem> {
    let trace: ChromeTrace = client.get(&["api", "v1", "builds", &id.to_string(), "trace.json"], &[]).await?;
    let file = file.unwrap_or_else(|| format!("preheat-trace-{id}.json").into());
    let text =
        serde_json::to_string(&trace).map_err(|e| Problem::system(format!("cannot write JSON: {e}")))?;
    let to_stdout = file == Path::new(STDOUT);
    if to_stdout {
        out(&format!("{text}\n"));
    } else {
        std::fs::write(&file, text).map_err(|e| {
            Problem::system(format!("cannot write `{}`: {e}", file.display()))
                .hint("name another file with --out, or --out - for stdout")
        })?;
    }
    match (to_stdout, json) {
        // stdout is for one thing.
        (true, _) => say(table(&trace.other_data).trim_end()),
        (false, true) => out_json(&trace.other_data)?,
        (false, false) => out(&table(&trace.other_data)),
    }
    if !to_stdout {
        say(&format!("the trace is in {}: open it at {VIEWER}, or in chrome://tracing", file.display()));
    }
    Ok(Exit::Success)
}

/// Where the time went. Pure.
pub fn table(summary: &TraceSummary) -> String {
    let mut text = String::new();
    let result = summary.result.map_or("under way", |result| result.as_str());
    let (project, pool) = (clean(&summary.project), clean(&summary.pool));
    writeln!(text, "build {}: {result} ({project} on {pool})", summary.build).ok();
    for share in &summary.owners {
        line(&mut text, share, summary.total_us);
    }
    writeln!(text, "  {:<24} {:>10}", "total", micros(summary.total_us)).ok();
    for vm in &summary.vms {
        life(&mut text, vm);
    }
    for upload in &summary.uploads {
        writeln!(text, "{:<26} {:>10}{}", clean(&upload.owner), micros(upload.us), times(upload)).ok();
    }
    for note in &summary.notes {
        writeln!(text, "note: {}", clean(note)).ok();
    }
    text
}

fn line(text: &mut String, share: &Share, of: u64) {
    let percent = if of == 0 { 0.0 } else { share.us as f64 * 100.0 / of as f64 };
    let (owner, took) = (clean(&share.owner), micros(share.us));
    writeln!(text, "  {owner:<24} {took:>10} {percent:>5.1} %{}", times(share)).ok();
}

fn times(share: &Share) -> String {
    if share.times > 1 { format!("  {} times", share.times) } else { String::new() }
}

fn life(text: &mut String, vm: &VmShares) {
    writeln!(text, "vm {} in slot {}", clean(&vm.vm), clean(&vm.slot)).ok();
    for share in &vm.phases {
        let (owner, took) = (clean(&share.owner), micros(share.us));
        writeln!(text, "  {owner:<24} {took:>10}{}", times(share)).ok();
    }
    if let Some(before) = &vm.before {
        turn(text, "slot before", before);
    }
    if let Some(after) = &vm.after {
        turn(text, "slot after", after);
    }
}

fn turn(text: &mut String, when: &str, turn: &Turn) {
    let ahead = if turn.cloned_ahead { "cloned ahead" } else { "not cloned ahead" };
    let gap = turn.gap_us.map_or("-".to_owned(), micros);
    let warm = turn.warm_after_us.map(|us| format!(", warm {} after the death", micros(us)));
    let vm = clean(&turn.vm);
    writeln!(text, "  {when:<24} {gap:>10} empty  {vm}, {ahead}{}", warm.unwrap_or_default()).ok();
}

/// `0.04 ms`, `12.3 ms`, `1.25 s`, `192.0 s`.
fn micros(us: u64) -> String {
    let ms = us as f64 / 1e3;
    match us {
        0..10_000 => format!("{ms:.2} ms"),
        10_000..1_000_000 => format!("{ms:.1} ms"),
        1_000_000..60_000_000 => format!("{:.2} s", ms / 1e3),
        _ => format!("{:.1} s", ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::spec::BuildResult;
    use crate::clock::UnixMicros;

    fn share(owner: &str, us: u64, times: u32) -> Share {
        Share { owner: owner.into(), us, times }
    }

    #[test]
    fn the_table_says_who_had_the_time_and_how_long_the_slot_stood_empty() {
        let after = Turn {
            vm: "preheat-linux-0-3".into(),
            gap_us: Some(4_210),
            cloned_ahead: true,
            warm_after_us: Some(2_530_000),
        };
        let vm = VmShares {
            vm: "preheat-linux-0-1".into(),
            slot: "linux/0".into(),
            phases: vec![share("leased", 1_000_000, 1), share("kill", 12_340, 1)],
            before: None,
            after: Some(after),
        };
        let summary = TraceSummary {
            build: BuildId(7),
            project: "a\u{1b}b".into(),
            pool: "linux".into(),
            result: Some(BuildResult::Success),
            origin_us: UnixMicros(0),
            total_us: 2_000_000,
            unaccounted_us: 40,
            owners: vec![share("step make", 1_999_960, 2), share("unaccounted", 40, 1)],
            vms: vec![vm],
            uploads: vec![share("upload nas", 70_000_000, 3)],
            notes: vec!["something".into()],
        };
        assert_eq!(
            table(&summary),
            "build 7: success (a\u{fffd}b on linux)\n\
             \x20 step make                    2.00 s 100.0 %  2 times\n\
             \x20 unaccounted                 0.04 ms   0.0 %\n\
             \x20 total                        2.00 s\n\
             vm preheat-linux-0-1 in slot linux/0\n\
             \x20 leased                       1.00 s\n\
             \x20 kill                        12.3 ms\n\
             \x20 slot after                  4.21 ms empty  preheat-linux-0-3, cloned ahead, warm 2.53 s after the death\n\
             upload nas                     70.0 s  3 times\n\
             note: something\n"
        );
    }
}
