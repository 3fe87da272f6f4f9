//! What is sent to a wrapper, and the marks by which it, and whoever follows the run later, speaks to us.
//!
//! Marks travel inside the two outputs, so that they keep their order with what the step printed. They carry the run's
//! name, which a step has no reason to print between two record separators.

use secrecy::ExposeSecret as _;
use secrecy::zeroize::Zeroizing;

use super::{Script, WORK_DIR};
use crate::ids::RunId;

/// The longest command with all its variables. Linux takes no single string over 128 KiB into a new process.
pub const SCRIPT_BYTES_MAX: usize = 120 * 1024;

/// Begins the line of a variable.
const EXPORT: &str = "export ";

/// Up to here the wrapper reads with the shell's own `read`, a system call a byte; above, `head` is worth its fork.
const READ_BYTES_MAX: usize = 4 * 1024;

/// The longest mark: a name, a word, a code.
const MARK_BYTES_MAX: usize = 96;

/// Begins and ends a mark.
const MARK: u8 = 0x1E;

/// Why a script is not even sent. The user's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadScript {
    #[error(
        "the command and its variables hold {0} bytes, and no more than {SCRIPT_BYTES_MAX} can be passed on"
    )]
    TooLong(usize),
    #[error("`{0}` is no name of a variable")]
    BadName(String),
    #[error("{0} contains a NUL byte")]
    Nul(String),
}

/// A script as its wrapper wants it. `id` ends it. Wiped when it is dropped, for secrets are in it.
pub(super) fn payload(id: &RunId, script: &Script) -> Result<Zeroizing<Vec<u8>>, BadScript> {
    let (id, text) = (id.as_str(), step_text(script)?);
    let (head, end) = if text.len() > READ_BYTES_MAX {
        // No line end behind the name: `$(..)` would take it away.
        (format!("run {}\n", text.len() + 1 + id.len()), "")
    } else {
        ("run 0\n".to_owned(), "\n")
    };
    let parts = [head.as_str(), &text, "\n", id, end];
    let mut sent = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
    for part in parts {
        sent.extend_from_slice(part.as_bytes());
    }
    Ok(sent)
}

/// What the login shell evaluates: after its profile, so that the build's variables win.
fn step_text(script: &Script) -> Result<Zeroizing<String>, BadScript> {
    let beginning = change_folder(&script.dir)?;
    for (name, value) in &script.env {
        if !is_name(name) {
            return Err(BadScript::BadName(name.clone()));
        }
        if value.expose_secret().contains('\0') {
            return Err(BadScript::Nul(format!("the variable `{name}`")));
        }
    }
    if script.command.contains('\0') {
        return Err(BadScript::Nul("the command".into()));
    }
    let variables = script
        .env
        .iter()
        .map(|(name, value)| EXPORT.len() + name.len() + 1 + quoted_bytes(value.expose_secret()) + 1);
    let bytes = beginning.len() + variables.sum::<usize>() + script.command.len();
    if bytes > SCRIPT_BYTES_MAX {
        return Err(BadScript::TooLong(bytes));
    }
    // Of its size at once: a text that grew would leave copies of the secrets behind.
    let mut text = Zeroizing::new(String::with_capacity(bytes));
    text.push_str(&beginning);
    for (name, value) in &script.env {
        for part in [EXPORT, name, "="] {
            text.push_str(part);
        }
        push_quoted(&mut text, value.expose_secret());
        text.push('\n');
    }
    text.push_str(&script.command);
    debug_assert_eq!(text.len(), bytes, "the size that was reckoned");
    Ok(text)
}

/// The text up to the first variable. No secret is in it.
fn change_folder(dir: &str) -> Result<String, BadScript> {
    let mut text = format!(
        "unset PREHEAT_STEP\nCDPATH= cd -- \"$HOME/{WORK_DIR}\" 2>/dev/null || \
         {{ mkdir -p -- \"$HOME/{WORK_DIR}\" && CDPATH= cd -- \"$HOME/{WORK_DIR}\"; }} || exit 1\n"
    );
    if dir.contains('\0') {
        return Err(BadScript::Nul("the folder's name".into()));
    }
    if !matches!(dir, "" | "." | "./") {
        let path = if dir.starts_with('/') { dir.to_owned() } else { format!("./{dir}") };
        let complaint =
            quote(&format!("preheat: `{dir}` is no folder in the guest, so the step cannot start"));
        text += &format!(
            "CDPATH= cd -- {} 2>/dev/null || {{ printf '%s\\n' {complaint} >&2; exit 1; }}\n",
            quote(&path)
        );
    }
    Ok(text)
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
}

/// One word for any shell.
pub(super) fn quote(word: &str) -> String {
    let mut text = String::with_capacity(quoted_bytes(word));
    push_quoted(&mut text, word);
    text
}

/// What stands for `'` in a word that is between two of them.
const QUOTED_QUOTE: &str = r"'\''";

/// As [`quote`], at the end of `text`: no copy of the word is left behind.
fn push_quoted(text: &mut String, word: &str) {
    text.push('\'');
    for (n, part) in word.split('\'').enumerate() {
        if n > 0 {
            text.push_str(QUOTED_QUOTE);
        }
        text.push_str(part);
    }
    text.push('\'');
}

/// How long a word is when it is quoted.
fn quoted_bytes(word: &str) -> usize {
    2 + word.len() + word.matches('\'').count() * (QUOTED_QUOTE.len() - 1)
}

/// What is said of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// The script was read whole; from now on the stream is the step's.
    Go,
    /// The step is over, and nothing of it follows in this stream.
    Exit(i32),
    /// The run was never begun, and cannot begin any more.
    Never,
    /// The run was begun, and what it left is no longer there.
    Gone,
}

/// Takes the marks out of a stream, and what came before the first one: a profile's chatter.
#[derive(Debug)]
pub(super) struct MarkFilter {
    prefix: Vec<u8>,
    /// What may be the beginning of a mark.
    held: Vec<u8>,
    going: bool,
}

impl MarkFilter {
    /// For the marks of one run.
    pub(super) fn new(id: &RunId) -> Self {
        let mut prefix = vec![MARK];
        prefix.extend_from_slice(id.as_str().as_bytes());
        prefix.push(b' ');
        Self { prefix, held: Vec::new(), going: false }
    }

    /// Takes the next bytes; returns the step's own ones and the marks between them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> (Vec<u8>, Vec<Mark>) {
        let (mut out, mut marks) = (Vec::new(), Vec::new());
        self.held.extend_from_slice(bytes);
        let mut from = 0;
        loop {
            let Some(at) = self.held[from..].iter().position(|b| *b == MARK).map(|at| from + at) else {
                self.pass(from, self.held.len(), &mut out);
                self.held.clear();
                return (out, marks);
            };
            self.pass(from, at, &mut out);
            let rest = &self.held[at..];
            let common = rest.iter().zip(&self.prefix).take_while(|(a, b)| a == b).count();
            let end = rest.iter().skip(1).take(MARK_BYTES_MAX).position(|b| *b == MARK).map(|end| end + 1);
            from = if common < self.prefix.len().min(rest.len()) {
                self.pass(at, at + 1, &mut out);
                at + 1
            } else if let Some(end) = end {
                let mark = parse_mark(rest.get(self.prefix.len()..end).unwrap_or_default());
                self.going |= mark == Some(Mark::Go);
                marks.extend(mark);
                at + end + 1
            } else if rest.len() > MARK_BYTES_MAX {
                self.pass(at, at + 1, &mut out);
                at + 1
            } else {
                self.held.drain(..at);
                return (out, marks);
            };
        }
    }

    fn pass(&self, from: usize, to: usize, out: &mut Vec<u8>) {
        if self.going {
            out.extend_from_slice(&self.held[from..to]);
        }
    }
}

fn parse_mark(words: &[u8]) -> Option<Mark> {
    let words: Vec<&str> = std::str::from_utf8(words).ok()?.split(' ').collect();
    match words.as_slice() {
        ["go"] => Some(Mark::Go),
        ["exit", code] => Some(Mark::Exit(code.parse().ok()?)),
        ["never"] => Some(Mark::Never),
        ["gone"] => Some(Mark::Gone),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn script(command: &str) -> Script {
        Script {
            command: command.into(),
            dir: String::new(),
            env: Vec::new(),
            timeout: Duration::from_secs(1),
            kill_grace: Duration::from_millis(1_250),
        }
    }

    fn id() -> RunId {
        serde_json::from_str("\"n0\"").expect("a name")
    }

    fn filter(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Mark>) {
        let mut filter = MarkFilter::new(&id());
        let (mut out, mut marks) = (Vec::new(), Vec::new());
        for piece in pieces {
            let (o, m) = filter.push(piece);
            out.extend(o);
            marks.extend(m);
        }
        (out, marks)
    }

    #[test]
    fn a_short_script_ends_in_the_runs_name_and_a_long_one_says_its_length() {
        let short = payload(&id(), &script("true")).expect("fine");
        let text = str::from_utf8(&short).expect("text");
        assert!(text.starts_with("run 0\n") && text.ends_with("true\nn0\n"), "{text}");
        let long = payload(&id(), &script(&"x".repeat(READ_BYTES_MAX))).expect("fine");
        let text = str::from_utf8(&long).expect("text");
        let (head, body) = text.split_once('\n').expect("two parts");
        assert_eq!(head.split(' ').nth(1), Some(body.len().to_string().as_str()));
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        assert!(matches!(payload(&id(), &script(&"x".repeat(SCRIPT_BYTES_MAX))), Err(BadScript::TooLong(_))));
        assert!(matches!(payload(&id(), &script("a\0b")), Err(BadScript::Nul(_))));
        for name in ["", "1A", "A-B", "A=B", "ä", "A;B"] {
            let env = vec![(name.to_owned(), "".into())];
            assert!(
                matches!(payload(&id(), &Script { env, ..script("") }), Err(BadScript::BadName(_))),
                "{name}"
            );
        }
    }

    #[test]
    fn marks_are_taken_out_wherever_a_read_cuts_them() {
        let whole: &[u8] =
            b"motd\x1Epreheat ready\x1E\x1En0 go\x1Ea\x1Eb\x1En0 exit 7\x1Ec\x1En\x1En0 never\x1E";
        let want = (b"a\x1Ebc\x1En".to_vec(), vec![Mark::Go, Mark::Exit(7), Mark::Never]);
        assert_eq!(filter(&[whole]), want);
        for at in 0..whole.len() {
            assert_eq!(filter(&[&whole[..at], &whole[at..]]), want, "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn a_value_is_in_what_is_sent_and_in_nothing_that_is_printed(
            value in "[A-Z0-9'\\\\ \n]{12,200}",
            name in "[A-Z_]{1,9}",
            nul in any::<bool>(),
        ) {
            let whole = if nul { format!("{value}\0") } else { value.clone() };
            let script = Script { env: vec![(name.clone(), whole.into())], ..script("true") };
            let printed = format!("{script:?} {script:#?}");
            match payload(&id(), &script) {
                Ok(sent) => {
                    let line = format!("\nexport {name}={}\ntrue\nn0\n", quote(&value));
                    prop_assert!(str::from_utf8(&sent).expect("text").ends_with(&line));
                }
                Err(bad) => {
                    prop_assert!(nul);
                    for text in [bad.to_string(), format!("{bad:?}")] {
                        prop_assert!(text.contains(&name) && !text.contains(&value), "{}", text);
                    }
                }
            }
            let escaped = format!("{value:?}");
            for form in [value.as_str(), &escaped[1..escaped.len() - 1]] {
                prop_assert!(!printed.contains(form), "{}", printed);
            }
        }

        #[test]
        fn a_filter_lets_every_byte_of_the_step_through(
            bytes in prop::collection::vec(
                prop_oneof![Just(0x1E_u8), Just(b'n'), Just(b'0'), Just(b' '), any::<u8>()], 0..300),
            cut in 0_usize..300,
        ) {
            prop_assume!(!bytes.windows(4).any(|w| w == b"\x1En0 "));
            let cut = cut.min(bytes.len());
            let (out, marks) = filter(&[b"\x1En0 go\x1E", &bytes[..cut], &bytes[cut..], b"\x1En0 exit 3\x1E"]);
            prop_assert_eq!(out, bytes);
            prop_assert_eq!(marks, vec![Mark::Go, Mark::Exit(3)]);
        }

        #[test]
        fn a_quoted_word_is_one_word_without_open_ends(word in "[a-z'\"\\\\ $`\n]{0,30}") {
            let quoted = quote(&word);
            prop_assert!(quoted.starts_with('\'') && quoted.ends_with('\''));
            prop_assert_eq!(quoted[1..quoted.len() - 1].replace(r"'\''", "'"), word);
        }
    }
}
