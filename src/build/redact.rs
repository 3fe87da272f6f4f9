//! Secrets are taken out of a build's log before a line reaches the disk.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};
use secrecy::{ExposeSecret, SecretString};

/// What stands in a secret's place.
pub const MASK: &str = "***";

/// A shorter secret, or line of a secret, is not looked for: it would be found in every other word.
pub const SECRET_BYTES_MIN: usize = 4;

/// Replaces secrets by [`MASK`].
#[derive(Debug, Clone)]
pub struct Redactor {
    finder: Option<AhoCorasick>,
}

impl Redactor {
    /// Replaces nothing.
    pub fn none() -> Self {
        Self { finder: None }
    }

    /// Replaces each of `secrets`, and each line of those that have several.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let mut needles: Vec<&str> = Vec::new();
        for secret in secrets {
            needles.extend(
                secret.expose_secret().lines().map(str::trim).filter(|l| l.len() >= SECRET_BYTES_MIN),
            );
        }
        if needles.is_empty() {
            return Self::none();
        }
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(needles).ok();
        Self { finder }
    }

    /// The text without its secrets.
    pub fn redact<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let Some(finder) = self.finder.as_ref().filter(|finder| finder.is_match(text)) else {
            return Cow::Borrowed(text);
        };
        let mut out = String::with_capacity(text.len());
        finder.replace_all_with(text, &mut out, |_, _, out| {
            out.push_str(MASK);
            true
        });
        Cow::Owned(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_the_longest_first_and_line_by_line() {
        let secrets =
            ["hunter2", "hunter2-long", "-----BEGIN\nAAAABBBB\nxy\n", "abc"].map(SecretString::from);
        let redactor = Redactor::new(&secrets);
        let table = [
            ("password=hunter2!", "password=***!"),
            ("hunter2-long", "***"),
            ("a line AAAABBBB of a key", "a line *** of a key"),
            ("abc and xy are too short to hide", "abc and xy are too short to hide"),
            ("nothing here", "nothing here"),
        ];
        for (text, masked) in table {
            assert_eq!(redactor.redact(text), masked);
        }
    }
}
