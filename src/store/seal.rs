//! Secrets of builds that are not over lie in the journal sealed, so that an accepted build survives a restart whole.
//!
//! The key lies in a file beside the journal. Who has both has the secrets: who can read the daemon's files as its user
//! can read its memory too, and nothing here is against him. Who has the journal without the key (a copy of it, a backup
//! that leaves `keys/` out, a file that was attached to a report) has nothing. What is sealed is overwritten as soon as
//! the build has its result.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};

use crate::ids::BuildId;

/// The folder of keys, beside the journal.
const FOLDER: &str = "keys";
/// The journal's key in it.
const FILE: &str = "journal.key";
/// Of CHACHA20_POLY1305.
const KEY_BYTES: usize = 32;
/// The format of what is sealed; its first byte, and part of what is authenticated.
const VERSION: u8 = 1;

/// Values by name.
pub type Values = BTreeMap<String, SecretString>;

/// Why there is no key, or a value did not open.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key's file cannot be made or read.
    #[error("cannot use the journal's key `{path}`: {source}")]
    File { path: PathBuf, source: io::Error },
    /// Others than its owner may use it.
    #[error("the journal's key `{path}` is open to others (mode {mode:03o})")]
    Open { path: PathBuf, mode: u32 },
    /// It is no key.
    #[error("the journal's key `{path}` holds {found} bytes, and a key is {KEY_BYTES}")]
    Malformed { path: PathBuf, found: usize },
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The journal has no values for this build.
    #[error("the journal does not hold them")]
    Absent,
    /// Another key, or another text.
    #[error("they were sealed with another key than `{FOLDER}/{FILE}`, or were changed")]
    Sealed,
}

impl SealError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File { path, .. } => {
                Some(format!("check who may read and write `{}`", path.parent().unwrap_or(path).display()))
            }
            Self::Open { path, .. } => Some(format!(
                "chmod 600 {}; if others may have read it, delete it instead: a new one is made",
                path.display()
            )),
            Self::Malformed { path, .. } => Some(format!(
                "restore it, or delete {}: a new one is made, and waiting builds with secrets end as errors",
                path.display()
            )),
            Self::Absent | Self::Sealed => Some("submit the build again".into()),
            Self::Random => None,
        }
    }
}

/// The journal's key.
pub struct Key(LessSafeKey);

impl Key {
    /// Reads the key that belongs to `journal`, and makes it when there is none.
    ///
    /// # Errors
    /// When it cannot be made or read, is no key, or is open to others than its owner.
    pub fn beside(journal: &Path) -> Result<Self, SealError> {
        let folder = journal.with_file_name(FOLDER);
        let path = folder.join(FILE);
        let failed = |source| SealError::File { path: path.clone(), source };
        let bytes = match read(&path) {
            Err(SealError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make(&folder, &path)?;
                read(&path)?
            }
            read => read?,
        };
        let malformed = || SealError::Malformed { path: path.clone(), found: bytes.len() };
        if bytes.len() != KEY_BYTES {
            return Err(malformed());
        }
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes)
            .map_err(|_| failed(io::Error::other("it is refused as a key")))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Seals the values of one build: they open again for this build only.
    ///
    /// # Errors
    /// [`SealError::Random`]
    pub fn seal(&self, build: BuildId, values: &Values) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut text = plain(values);
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), bound_to(build), &mut text)
            .map_err(|_| SealError::Sealed)?;
        Ok([&[VERSION], nonce.as_slice(), &text, tag.as_ref()].concat())
    }

    /// Opens what was sealed for this build.
    ///
    /// # Errors
    /// [`SealError::Sealed`]
    pub fn open(&self, build: BuildId, sealed: &[u8]) -> Result<Values, SealError> {
        let rest = sealed.strip_prefix(&[VERSION]).ok_or(SealError::Sealed)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Sealed)?;
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.0.open_in_place(nonce, bound_to(build), &mut text).map_err(|_| SealError::Sealed)?;
        parse(plain).ok_or(SealError::Sealed)
    }
}

fn bound_to(build: BuildId) -> Aad<Vec<u8>> {
    Aad::from([b"preheat secrets", [VERSION].as_slice(), &build.0.to_be_bytes()].concat())
}

/// Reads the file, unless it is open to others.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let failed = |source| SealError::File { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SealError::Open { path: path.to_owned(), mode });
    }
    // One byte more than a key, to tell a longer file; the buffer never grows, so no copy is left behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * KEY_BYTES));
    io::Read::read_to_end(&mut io::Read::take(&mut file, KEY_BYTES as u64 + 1), &mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// Makes a key: whole or not at all, and on the disk before anything is sealed with it.
fn make(folder: &Path, path: &Path) -> Result<(), SealError> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    SystemRandom::new().fill(key.as_mut()).map_err(|_| SealError::Random)?;
    let written = || -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(key.as_ref())?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    written().map_err(|source| SealError::File { path: path.to_owned(), source })
}

/// Each name and value after its length, in a buffer that does not grow: a buffer that moved would leave a copy behind.
fn plain(values: &Values) -> Zeroizing<Vec<u8>> {
    let words = || values.iter().flat_map(|(name, value)| [name.as_str(), value.expose_secret()]);
    let mut text = Zeroizing::new(Vec::with_capacity(words().map(|word| word.len() + 4).sum()));
    for word in words() {
        text.extend_from_slice(&u32::try_from(word.len()).unwrap_or(u32::MAX).to_be_bytes());
        text.extend_from_slice(word.as_bytes());
    }
    text
}

/// The reverse of [`plain`].
fn parse(mut text: &[u8]) -> Option<Values> {
    let mut word = || -> Option<&str> {
        let (length, rest) = text.split_first_chunk::<4>()?;
        let (word, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        text = rest;
        std::str::from_utf8(word).ok()
    };
    let mut values = Values::new();
    while let Some(name) = word() {
        values.insert(name.to_owned(), SecretString::from(word()?));
    }
    text.is_empty().then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        [("TOKEN", "hunter2-hunter2"), ("KEY", "-----BEGIN\nAAAA\n"), ("EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), SecretString::from(value)))
            .into()
    }

    fn exposed(values: &Values) -> Vec<(&str, &str)> {
        values.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect()
    }

    #[test]
    fn what_is_sealed_opens_for_its_build_with_its_key_only() {
        let (dir, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let key = Key::beside(&dir.path().join("journal")).expect("a key");
        let sealed = key.seal(BuildId(7), &values()).expect("sealed");
        assert!(!sealed.windows(4).any(|w| w == b"hunt" || w == b"TOKE"));
        assert_ne!(sealed, key.seal(BuildId(7), &values()).expect("sealed"), "a nonce is used once");
        // The same file again, as after a restart.
        let key = Key::beside(&dir.path().join("journal")).expect("a key");
        assert_eq!(exposed(&key.open(BuildId(7), &sealed).expect("opens")), exposed(&values()));
        let stranger = Key::beside(&other.path().join("journal")).expect("a key");
        for (key, build) in [(&key, 8), (&stranger, 7)] {
            assert!(matches!(key.open(BuildId(build), &sealed), Err(SealError::Sealed)));
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open(BuildId(7), &changed).is_err(), "byte {at}");
            assert!(key.open(BuildId(7), &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_key_is_its_owners_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let journal = dir.path().join("journal");
        Key::beside(&journal).expect("made");
        let path = dir.path().join("keys/journal.key");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&dir.path().join("keys"))), (0o600, 0o700));
        for open in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(open)).expect("set");
            let error = Key::beside(&journal).err().expect("refused");
            assert!(error.to_string().contains(&format!("mode {open:03o}")), "{error}");
            assert!(error.hint().expect("a hint").contains("chmod 600"));
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("set");
        for length in [0, 31, 33, 4096] {
            std::fs::write(&path, vec![7; length]).expect("written");
            let error = Key::beside(&journal).err().expect("refused");
            assert!(matches!(error, SealError::Malformed { .. }), "{error}");
        }
    }
}
