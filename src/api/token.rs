//! The bearer token: one line in a file, the same file on both sides.

use std::io;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// The shortest token: 128 bits as hexadecimal are 32, as base64 22.
pub const TOKEN_BYTES_MIN: usize = 16;
/// The longest: it travels in a header.
pub const TOKEN_BYTES_MAX: usize = 512;

/// What a caller must know.
#[derive(Debug, Clone)]
pub struct Token(SecretString);

/// Why a token's file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read the token file `{path}`: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    /// It holds something else.
    #[error(
        "the token file `{path}` must hold one line of {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} visible ASCII characters"
    )]
    Malformed { path: PathBuf },
}

impl TokenError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "check the path and who may read it",
            Self::Malformed { .. } => "make one with `openssl rand -hex 32 > FILE; chmod 600 FILE`",
        }
    }
}

impl Token {
    /// Reads the file's one line.
    ///
    /// # Errors
    /// When it cannot be read or does not hold a token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenError::Unreadable { path: path.to_owned(), source })?;
        Self::new(text.trim_end_matches(['\r', '\n']))
            .ok_or_else(|| TokenError::Malformed { path: path.to_owned() })
    }

    /// A token, if `text` can be one.
    pub fn new(text: &str) -> Option<Self> {
        let fits = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&text.len());
        (fits && text.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(text.to_owned().into()))
    }

    /// Whether `offered` is the token. Digests are compared, so the time taken says nothing about the token.
    pub fn matches(&self, offered: &str) -> bool {
        Sha256::digest(offered) == Sha256::digest(self.0.expose_secret())
    }

    /// The token itself, for a header.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_of_visible_characters() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("token");
        for (text, good) in
            [("0123456789abcdef\n", true), ("short\n", false), ("0123456789 abcdef\n", false), ("", false)]
        {
            std::fs::write(&path, text).expect("written");
            assert_eq!(Token::read(&path).is_ok(), good, "{text:?}");
        }
        assert!(matches!(Token::read(&dir.path().join("none")), Err(TokenError::Unreadable { .. })));
    }

    #[test]
    fn only_the_token_matches_and_it_is_never_printed() {
        let token = Token::new("0123456789abcdef").expect("a token");
        assert!(token.matches("0123456789abcdef"));
        assert!(!token.matches("0123456789abcdeX") && !token.matches(""));
        assert!(!format!("{token:?}").contains("0123"));
    }
}
