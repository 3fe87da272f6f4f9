//! What a controller is told of a build: its result's file, the reason of a failure, and lines of its log. Plain functions.

use serde::Serialize;

use super::client::Said;
use super::wire::shortened;
use crate::api::service::Refused;
use crate::api::wire::{ArtifactView, BuildView, LogLine, LogStream};
use crate::build::spec::BuildResult;

/// A reason is read by people, in a column of a table.
const REASON_CHARS_MAX: usize = 4_000;
/// A line of a log; a longer one is machine's talk.
const LINE_CHARS_MAX: usize = 8_000;

/// Endings of what is built, the likeliest first.
const APPS: [&str; 3] = [".ipa", ".apk", ".aab"];

/// The file that is the build's result: an app where there is one, else the first that is not a log.
pub fn result(artifacts: &[ArtifactView]) -> Option<&ArtifactView> {
    let ends = |ending: &str| {
        artifacts
            .iter()
            .find(|a| a.path.len() > ending.len() && a.path.to_ascii_lowercase().ends_with(ending))
    };
    let app = APPS.into_iter().find_map(ends);
    app.or_else(|| artifacts.iter().find(|a| !a.path.ends_with(".log"))).or_else(|| artifacts.first())
}

/// The word of an enum or a text, as its JSON has it.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Why a build ended as it did: whose fault, where, what, and the lines that say why.
pub fn reason(view: &BuildView) -> String {
    let fallback = || view.reason.clone().unwrap_or_else(|| "no reason is known".into());
    let said = match &view.failure {
        Some(failure) => {
            let step = failure.step.as_ref().map(|step| format!(" in step `{step}`")).unwrap_or_default();
            let lines: String = failure.lines.iter().map(|line| format!("\n{line}")).collect();
            format!("{}{step}: {}{lines}", word(&failure.kind), failure.message)
        }
        None => {
            let kind = match view.result {
                Some(BuildResult::Success) => "success",
                Some(BuildResult::Failure) => "user",
                Some(BuildResult::Error) | None => "system",
                Some(BuildResult::Timeout) => "timeout",
                Some(BuildResult::Cancellation) => "cancelled on the worker",
            };
            format!("{kind}: {}", fallback())
        }
    };
    bounded(said)
}

/// Why a build was not accepted.
pub fn refusal(refused: &Refused) -> String {
    let hint = refused.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    bounded(format!("user: {refused}{hint}"))
}

fn bounded(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(REASON_CHARS_MAX) {
        text.truncate(end);
        text.push_str("..");
    }
    text
}

/// A line of a build's log. An empty one would be dropped over there, so it has a space in it.
pub fn line(line: &LogLine) -> Said {
    let level = match line.stream {
        LogStream::Out | LogStream::Sys => "info",
        LogStream::Err => "warn",
    };
    let text = shortened(&line.text, LINE_CHARS_MAX);
    let message = match line.stream {
        LogStream::Sys => format!("preheat: {text}"),
        LogStream::Out | LogStream::Err if text.is_empty() => " ".to_owned(),
        LogStream::Out | LogStream::Err => text,
    };
    Said { level, message }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::UnixMillis;
    use crate::store::BuildRecord;
    use crate::testing;

    fn artifacts(paths: &[&str]) -> Vec<ArtifactView> {
        // Further facts of an artifact are none of ours.
        let one = |path: &&str| json!({"path": path, "bytes": 1, "sha256": ""});
        paths.iter().map(|path| serde_json::from_value(one(path)).expect("an artifact")).collect()
    }

    #[test]
    fn the_app_is_the_result_wherever_it_stands() {
        let chosen = |paths: &[&str]| result(&artifacts(paths)).map(|a| a.path.clone()).unwrap_or_default();
        assert_eq!(chosen(&["xcodebuild.log", "dsym.zip", "out/App.IPA"]), "out/App.IPA");
        assert_eq!(chosen(&["a.aab", "b.apk"]), "b.apk");
        assert_eq!(chosen(&["build.log", "hello"]), "hello");
        assert_eq!(chosen(&["build.log"]), "build.log");
        assert_eq!(chosen(&[]), "");
    }

    #[test]
    fn a_reason_says_whose_where_and_what() {
        let mut record = BuildRecord::received(testing::spec(), String::new(), UnixMillis(1));
        record.result = Some(BuildResult::Failure);
        record.reason = Some("step `npm ci` exited with 1".into());
        let mut view = record.view(None);
        assert_eq!(reason(&view), "user: step `npm ci` exited with 1");
        let failure = json!({"kind": "user", "step": "npm ci", "message": "a package is missing",
            "lines": ["npm error code E404"]});
        view.failure = Some(serde_json::from_value(failure).expect("a failure"));
        assert_eq!(reason(&view), "user in step `npm ci`: a package is missing\nnpm error code E404");
        view.failure = None;
        view.reason = Some("x".repeat(10_000));
        assert!(reason(&view).len() < 5_000);
    }

    #[test]
    fn no_line_is_empty_or_more_than_a_line() {
        let said = |stream, text: &str| {
            line(&LogLine {
                n: 1,
                at_ms: UnixMillis(1),
                stream,
                step: None,
                text: text.into(),
                run: None,
                end: None,
            })
        };
        assert_eq!(said(LogStream::Out, "").message, " ");
        assert_eq!(said(LogStream::Sys, "begun").message, "preheat: begun");
        assert_eq!(said(LogStream::Err, "a\u{1b}[1mb"), Said { level: "warn", message: "a [1mb".into() });
        assert!(said(LogStream::Out, &"ä".repeat(100_000)).message.len() < 20_000);
    }
}
