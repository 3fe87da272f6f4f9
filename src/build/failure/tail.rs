//! What is kept of a step's output while it runs: the last lines, and of those before them the ones that look like an error.

use std::collections::VecDeque;

use crate::build::redact::Redactor;

/// The last lines, whatever they say.
const LAST_MAX: usize = 120;

/// Lines before them that look like an error. The first say most, so later ones are dropped.
const TELLING_MAX: usize = 120;

/// Of a line; the rest of it says no more.
const LINE_BYTES_MAX: usize = 2048;

/// The lines that are kept.
#[derive(Debug, Default)]
pub struct Tail {
    redactor: Redactor,
    /// The line that comes goes on with one that was cut, and is dropped with it: nobody can tell what is in its middle.
    goes_on: bool,
    telling: Vec<String>,
    last: VecDeque<String>,
}

impl Tail {
    /// Without the secrets that `redactor` knows.
    pub fn new(redactor: Redactor) -> Self {
        Self { redactor, ..Self::default() }
    }

    /// Takes a line; `split` is one that the next goes on with.
    pub fn push(&mut self, line: &str, split: bool) {
        if std::mem::replace(&mut self.goes_on, split) || split {
            return;
        }
        let line = plain(line);
        let line = cut(self.redactor.redact(&line).trim_end());
        if self.last.len() == LAST_MAX
            && let Some(old) = self.last.pop_front()
            && self.telling.len() < TELLING_MAX
            && is_telling(&old)
        {
            self.telling.push(old);
        }
        self.last.push_back(line);
    }

    /// Them, in their order.
    pub fn lines(self) -> Vec<String> {
        self.telling.into_iter().chain(self.last).collect()
    }
}

/// Whether a line may say why something failed.
pub(super) fn is_telling(line: &str) -> bool {
    const WORDS: [&str; 9] =
        ["error", "err!", "failed", "fatal", "[!]", "cannot", "not found", "undefined symbol", "exception"];
    let small = line.to_ascii_lowercase();
    WORDS.iter().any(|word| small.contains(word))
}

/// Without colours and what else moves a cursor; of what was written over, the last.
fn plain(line: &str) -> String {
    let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
    if !line.contains(char::is_control) {
        return line.to_owned();
    }
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // `ESC [ .. letter`; any other sequence is two characters long.
            if chars.next() == Some('[') {
                while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {}
            }
        } else if !c.is_control() || c == '\t' {
            out.push(c);
        }
    }
    out
}

fn cut(line: &str) -> String {
    let mut end = line.len().min(LINE_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_kept_however_much_is_printed_behind_them() {
        let mut tail = Tail::default();
        tail.push("main.swift:3:5: error: cannot find 'x' in scope", false);
        for n in 0..10_000 {
            tail.push(&format!("CompileSwift {n}"), false);
        }
        tail.push("** ARCHIVE FAILED **", false);
        let lines = tail.lines();
        assert!(lines[0].contains("error: cannot find"), "{}", lines[0]);
        assert_eq!((lines.len(), lines[LAST_MAX].as_str()), (1 + LAST_MAX, "** ARCHIVE FAILED **"));
        let mut tail = Tail::default();
        for n in 0..10_000 {
            tail.push(&format!("error {n}"), false);
        }
        let lines = tail.lines();
        assert_eq!((lines[0].as_str(), lines.len()), ("error 0", TELLING_MAX + LAST_MAX));
    }

    #[test]
    fn colours_and_what_was_written_over_are_not_told() {
        assert_eq!(plain("\u{1b}[31m\u{1b}[1mError:\u{1b}[0m no\r"), "Error: no");
        assert_eq!(plain("10%\r50%\rdone"), "done");
        assert_eq!(plain("a\u{7}b\tc"), "ab\tc");
        assert_eq!(plain("\u{1b}"), "");
        assert!(cut(&"ä".repeat(5000)).len() <= LINE_BYTES_MAX);
    }

    #[test]
    fn no_part_of_a_secret_is_kept_wherever_a_line_is_cut() {
        let secret = secrecy::SecretString::from("hunter2-secret");
        let mut tail = Tail::new(Redactor::new([&secret]));
        tail.push(&format!("error: {}hunter2-secret", "x".repeat(LINE_BYTES_MAX - 12)), false);
        tail.push("error: hun\u{1b}[0mter2-secret", false);
        tail.push("error: hunter2", true);
        tail.push("-sec", true);
        tail.push("ret", false);
        tail.push("error: after", false);
        let lines = tail.lines();
        assert!(!lines.iter().any(|line| line.contains("hunter2") || line.contains("sec")), "{lines:?}");
        assert_eq!((lines.len(), lines[2].as_str()), (3, "error: after"));
    }
}
