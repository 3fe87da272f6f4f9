//! The key that all workers of a controller share: one line in a file that only its owner may read. It is read for each call,
//! so that a new one is in force when it is in the file.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use secrecy::SecretString;

use crate::api::token::{Token, TokenError};
use crate::blocking;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read, or is none.
    #[error("{0}")]
    Useless(#[from] TokenError),
    /// Others may read it.
    #[error("the key `{path}` is open to others (mode {mode:03o})")]
    Open { path: PathBuf, mode: u32 },
    /// The daemon is going down.
    #[error("the key cannot be read now")]
    Closed,
}

impl KeyError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Useless(error) => error.hint().to_owned(),
            Self::Open { path, .. } => format!("chmod 600 {}", path.display()),
            Self::Closed => "try again".into(),
        }
    }
}

/// Reads the key.
///
/// # Errors
/// Whatever [`KeyError`] lists.
pub async fn read(path: PathBuf) -> Result<SecretString, KeyError> {
    blocking::run(move || read_blocking(path)).await.map_err(|_| KeyError::Closed)?
}

fn read_blocking(path: PathBuf) -> Result<SecretString, KeyError> {
    let unreadable = |source: io::Error| TokenError::Unreadable { path: path.clone(), source };
    let mode = std::fs::metadata(&path).map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Open { path, mode });
    }
    Ok(Token::read(&path)?.expose().to_owned().into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[tokio::test]
    async fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("key");
        std::fs::write(&path, "0123456789abcdef\n").expect("written");
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("set");
            let read = read(path.clone()).await;
            assert_eq!(read.is_ok(), good, "{mode:o}");
            match read {
                Ok(key) => assert_eq!(key.expose_secret(), "0123456789abcdef"),
                Err(error) => assert!(error.hint().contains("chmod 600"), "{error}"),
            }
        }
        assert!(matches!(read(dir.path().join("none")).await, Err(KeyError::Useless(_))));
    }
}
