//! Why a step failed, from what it printed: the lines in which its tool says so, and one line of ours over them. `tail`* keeps
//! what may matter of an output that can be millions of lines long; `tools`* knows how the tools of app builds speak.

pub mod tail;
mod tools;

use crate::api::wire::{FailureKind, FailureView};
use crate::build::redact::Redactor;
use crate::build::spec::BuildResult;

/// Lines that are told; more are in the log.
const LINES_MAX: usize = 20;

/// The longest of them: a command line of a compiler is thousands.
const LINE_CHARS_MAX: usize = 400;

/// What the lines say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    kind: FailureKind,
    message: String,
    lines: Vec<String>,
}

impl Said {
    fn by_the_user(message: impl Into<String>, lines: Vec<String>) -> Self {
        Self { kind: FailureKind::User, message: message.into(), lines }
    }
}

/// Why a step failed that exited with `code`, from its last lines and those that look like an error.
pub fn of_step(step: &str, code: i32, lines: &[String], redactor: &Redactor) -> FailureView {
    let silent =
        || Said::by_the_user(format!("step `{step}` exited with {code} and printed nothing"), Vec::new());
    let Said { kind, message, lines } = tools::read(lines).unwrap_or_else(silent);
    view(kind, Some(step), &message, lines, redactor)
}

/// Why a step failed that did not end in time: its last lines say what it was at.
pub fn of_late_step(step: &str, reason: &str, lines: &[String], redactor: &Redactor) -> FailureView {
    const LAST: usize = 5;
    let last = lines[lines.len().saturating_sub(LAST)..].to_vec();
    view(FailureKind::Timeout, Some(step), reason, last, redactor)
}

/// Why a guest cannot sign.
pub fn of_signing(reason: &str, redactor: &Redactor) -> FailureView {
    view(FailureKind::Signing, None, reason, Vec::new(), redactor)
}

fn view(
    kind: FailureKind,
    step: Option<&str>,
    message: &str,
    lines: Vec<String>,
    redactor: &Redactor,
) -> FailureView {
    let told = |text: &str| cut(&redactor.redact(text));
    let mut lines: Vec<String> = lines.iter().map(|line| told(line)).collect();
    lines.truncate(LINES_MAX);
    FailureView { kind, step: step.map(str::to_owned), message: told(message), lines }
}

/// What is told of a build's end where nothing more is known than its reason.
pub fn of_result(result: BuildResult, reason: Option<&str>) -> Option<FailureView> {
    let kind = match result {
        BuildResult::Success | BuildResult::Cancellation => return None,
        BuildResult::Failure => FailureKind::User,
        BuildResult::Error => FailureKind::System,
        BuildResult::Timeout => FailureKind::Timeout,
    };
    let message = reason.unwrap_or("no reason is known").to_owned();
    Some(FailureView { kind, step: None, message, lines: Vec::new() })
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(LINE_CHARS_MAX) {
        None => line.to_owned(),
        Some((end, _)) => format!("{}..", &line[..end]),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    #[test]
    fn a_secret_is_masked_before_a_line_is_cut() {
        let secret = SecretString::from("hunter2-hunter2");
        let redactor = Redactor::new([&secret]);
        let long = format!("error: {}hunter2-hunter2", "x".repeat(LINE_CHARS_MAX - 10));
        let told = of_step("a", 1, &[long], &redactor);
        assert!(!format!("{told:?}").contains("hunter"), "{told:?}");
        assert!(told.lines[0].chars().count() <= LINE_CHARS_MAX + 2);
    }

    #[test]
    fn what_ended_well_or_was_cancelled_did_not_fail() {
        assert_eq!(of_result(BuildResult::Success, None), None);
        assert_eq!(of_result(BuildResult::Cancellation, Some("cancelled")), None);
        let late = of_result(BuildResult::Timeout, Some("the build took longer than 1h")).expect("it failed");
        assert_eq!(
            (late.kind, late.message.as_str()),
            (FailureKind::Timeout, "the build took longer than 1h")
        );
        let lost = of_result(BuildResult::Error, Some("guest lost")).expect("it failed");
        assert_eq!(lost.kind, FailureKind::System);
    }

    #[test]
    fn a_step_that_says_nothing_is_told_by_its_code() {
        let told = of_step("make", 3, &[], &Redactor::none());
        assert_eq!(told.message, "step `make` exited with 3 and printed nothing");
        let late = of_late_step(
            "pods",
            "step `pods` took longer than 20m",
            &["Downloading".into()],
            &Redactor::none(),
        );
        assert_eq!((late.kind, late.lines.len()), (FailureKind::Timeout, 1));
    }
}
