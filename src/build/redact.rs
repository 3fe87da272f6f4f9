//! Secrets are taken out of what a build says before it reaches the disk or a client.
//!
//! Ways by which a secret could leave, and what stands in each:
//! - a step prints it: every line of a log passes [`Redactor`], also where a line was cut in two (`log`);
//! - why a build ended, or is tried again: passes it before the actor hears of it, so the journal, the API, the daemon's
//!   own log and the uploads have it masked;
//! - a file's name among the artifacts: the build fails, for a name cannot be masked and still be fetched;
//! - a file's content: it is the user's own, and is not searched;
//! - an answer to a request that does not parse: it says where, and never what stood there (`api::wire`);
//! - argument lists, environments: values go to the guest over a channel's stdin; ours hold none;
//! - the disk: sealed in the journal (`store::seal`), and in no other file; no core files (`host`).
//!
//! Looked for are the value, each of its lines, and the same in base64 and in a URL's escapes. What a step does to a value
//! beyond that (reversed, one letter a line, in another cipher) goes through. The searcher's own tables and the buffers of
//! HTTP and TLS are freed without being wiped; values themselves are wiped.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

/// What stands in a secret's place.
pub const MASK: &str = "***";

/// A shorter secret, or line of a secret, is not looked for: it would be found in every other word.
pub const SECRET_BYTES_MIN: usize = 4;

/// In base64 a few letters say less, and the first and last of them depend on their neighbours.
const BASE64_BYTES_MIN: usize = 8;

/// Replaces secrets by [`MASK`].
#[derive(Clone, Default)]
pub struct Redactor {
    found: Option<Arc<Needles>>,
}

struct Needles {
    texts: Vec<Zeroizing<String>>,
    finder: AhoCorasick,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redactor").finish_non_exhaustive()
    }
}

impl Redactor {
    /// Replaces nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Replaces each of `secrets`, and each line of those that have several.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let mut texts: Vec<Zeroizing<String>> = Vec::new();
        for secret in secrets {
            let whole = secret.expose_secret();
            let lines = whole.split(['\n', '\r']).map(str::trim).filter(|l| l.len() >= SECRET_BYTES_MIN);
            for line in lines {
                texts.push(Zeroizing::new(line.to_owned()));
                texts.extend(other_forms(line));
            }
            if whole.trim().contains(['\n', '\r']) {
                texts.extend(other_forms(whole));
            }
        }
        texts.sort_by(|a, b| a.as_str().cmp(b));
        texts.dedup_by(|a, b| a.as_str() == b.as_str());
        if texts.is_empty() {
            return Self::none();
        }
        let finder = AhoCorasick::new(texts.iter().map(|text| text.as_bytes())).ok();
        Self { found: finder.map(|finder| Arc::new(Needles { texts, finder })) }
    }

    /// The text without its secrets.
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let ranges = self.ranges(text);
        if ranges.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len());
        let mut from = 0;
        for range in ranges {
            out.push_str(&text[from..range.start]);
            out.push_str(MASK);
            from = range.end;
        }
        out.push_str(&text[from..]);
        Cow::Owned(out)
    }

    /// Whether a secret is in it.
    pub fn finds(&self, text: &str) -> bool {
        self.found.as_ref().is_some_and(|found| found.finder.is_match(text))
    }

    /// From where on `text`, which goes on in a piece that is not there yet, may be a part of a secret: what lies before can
    /// be judged now. Its length when nothing need wait.
    pub fn settled(&self, text: &str) -> usize {
        let Some(found) = &self.found else { return text.len() };
        let open = found.texts.iter().map(|needle| begun(text.as_bytes(), needle.as_bytes())).max();
        let mut settled = text.len() - open.unwrap_or(0);
        // A secret that reaches over the edge waits whole. Needles are text, so this is never within a character.
        while let Some(range) = self.ranges(text).into_iter().find(|r| r.start < settled && settled < r.end) {
            settled = range.start;
        }
        settled
    }

    /// Where secrets are; those that overlap as one.
    fn ranges(&self, text: &str) -> Vec<Range<usize>> {
        let Some(found) = self.found.as_ref().filter(|found| found.finder.is_match(text)) else {
            return Vec::new();
        };
        let mut all: Vec<Range<usize>> =
            found.finder.find_overlapping_iter(text).map(|found| found.range()).collect();
        all.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<usize>> = Vec::new();
        for range in all {
            match joined.last_mut().filter(|last| range.start < last.end) {
                Some(last) => last.end = last.end.max(range.end),
                None => joined.push(range),
            }
        }
        joined
    }
}

/// How many bytes at the end of `text` are a beginning of `needle`, but not the whole of it: Knuth, Morris and Pratt.
fn begun(text: &[u8], needle: &[u8]) -> usize {
    let mut back = vec![0; needle.len()];
    let mut matched = 0;
    for at in 1..needle.len() {
        while matched > 0 && needle[at] != needle[matched] {
            matched = back[matched - 1];
        }
        matched += usize::from(needle[at] == needle[matched]);
        back[at] = matched;
    }
    let mut matched = 0;
    for byte in &text[text.len().saturating_sub(needle.len() - 1)..] {
        while matched > 0 && *byte != needle[matched] {
            matched = back[matched - 1];
        }
        matched += usize::from(*byte == needle[matched]);
    }
    matched
}

/// A text in base64, wherever in a longer one it stands, and escaped for a URL.
fn other_forms(text: &str) -> Vec<Zeroizing<String>> {
    let mut forms = Vec::new();
    for special in [b"+/", b"-_"] {
        for before in 0..3 {
            let form = base64(text.as_bytes(), before, special);
            if form.len() >= BASE64_BYTES_MIN {
                forms.push(form);
            }
        }
    }
    for digits in [b"0123456789ABCDEF", b"0123456789abcdef"] {
        let mut form = Zeroizing::new(String::with_capacity(text.len() * 3));
        for byte in text.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                form.push(char::from(byte));
            } else {
                form.push('%');
                form.push(char::from(digits[usize::from(byte >> 4)]));
                form.push(char::from(digits[usize::from(byte & 15)]));
            }
        }
        forms.push(form);
    }
    forms
}

/// The letters that stand for `bytes` alone, when `before` others (modulo 3) come first: those at the edges that also stand
/// for a neighbour are left out.
fn base64(bytes: &[u8], before: usize, special: &[u8; 2]) -> Zeroizing<String> {
    let letter = |six: u8| match six {
        0..=25 => b'A' + six,
        26..=51 => b'a' + six - 26,
        52..=61 => b'0' + six - 52,
        _ => special[usize::from(six & 1)],
    };
    let bit = |at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    let first = (6 - before * 8 % 6) % 6;
    let mut out = Zeroizing::new(String::with_capacity(bytes.len() * 2));
    let mut at = first;
    while at + 6 <= bytes.len() * 8 {
        out.push(char::from(letter((at..at + 6).fold(0, |six, at| six << 1 | bit(at)))));
        at += 6;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_with_all_that_overlaps_and_line_by_line() {
        let secrets = ["hunter2", "hunter2-long", "-----BEGIN\nAAAABBBB\nxy\n", "abc", "abcdef", "cdefgh"]
            .map(SecretString::from);
        let redactor = Redactor::new(&secrets);
        let table = [
            ("password=hunter2!", "password=***!"),
            ("hunter2-long", "***"),
            ("a line AAAABBBB of a key", "a line *** of a key"),
            ("abc and xy are too short to hide", "abc and xy are too short to hide"),
            ("abcdefgh", "***"),
            ("hunter2hunter2", "******"),
            ("nothing here", "nothing here"),
        ];
        for (text, masked) in table {
            assert_eq!(redactor.redact(text), masked);
        }
        assert!(!format!("{redactor:?}").contains("hunter2"));
    }

    #[test]
    fn base64_and_escapes_of_a_secret_are_masked_too() {
        // `printf %s 'p@ss w0rd/+' | base64`, the same behind `u:`, behind `ux:`, and with a line's end.
        let redactor = Redactor::new(&[SecretString::from("p@ss w0rd/+")]);
        for encoded in
            ["cEBzcyB3MHJkLys=", "dTpwQHNzIHcwcmQvKw==", "dXg6cEBzcyB3MHJkLys=", "cEBzcyB3MHJkLysK"]
        {
            let masked = redactor.redact(encoded).into_owned();
            assert!(masked.contains(MASK) && masked.len() <= MASK.len() + 7, "{encoded} -> {masked}");
        }
        for escaped in ["p%40ss%20w0rd%2F%2B", "p%40ss%20w0rd%2f%2b"] {
            assert_eq!(redactor.redact(escaped), MASK);
        }
    }

    #[test]
    fn what_may_go_on_as_a_secret_is_not_settled() {
        let redactor = Redactor::new(&["abcabd", "xabc"].map(SecretString::from));
        for (text, settled) in [
            ("", 0),
            ("nothing", 7),
            ("is abca", 3),
            ("is abcabc", 6),
            ("is abcabd", 9),
            // A whole secret that may be the beginning of another.
            ("is xabc", 3),
            ("is x", 3),
        ] {
            assert_eq!(redactor.settled(text), settled, "{text}");
        }
        assert_eq!(Redactor::none().settled("abc"), 3);
    }
}
