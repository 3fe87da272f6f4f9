//! Certificates as a zip: one `*.p12`, its password in `password.txt` at the root, any number of `*.mobileprovision`. It came
//! from somebody's laptop, so it is read with bounds. Blocking code.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::api::wire::SigningSpec;

/// The largest bundle.
pub const BYTES_MAX: u64 = 10 << 20;
/// Of all that is in it.
const UNPACKED_MAX: u64 = 50 << 20;
/// Files in it.
const ENTRIES_MAX: usize = 1000;
/// The file with the password.
const PASSWORD: &str = "password.txt";

/// Why a bundle is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is no zip, or a damaged one.
    #[error("it is no zip that can be read: {0}")]
    NoZip(String),
    /// A name that could lead elsewhere.
    #[error("`{0}` in it is no name of a file")]
    Name(String),
    /// More than anybody signs with.
    #[error("it holds more than {ENTRIES_MAX} files or {UNPACKED_MAX} bytes")]
    TooLarge,
    /// Nothing to sign with.
    #[error("it holds no `.p12`")]
    NoCertificate,
    /// The password is no text.
    #[error("`{PASSWORD}` is no text")]
    Password,
}

/// Reads a bundle. Of several certificates the last counts.
///
/// # Errors
/// Whatever [`BundleError`] lists.
pub fn read(path: &Path) -> Result<SigningSpec, BundleError> {
    let no_zip = |e: zip::result::ZipError| BundleError::NoZip(e.to_string());
    let file = File::open(path).map_err(|e| BundleError::NoZip(e.to_string()))?;
    let mut zip = zip::ZipArchive::new(file).map_err(no_zip)?;
    if zip.len() > ENTRIES_MAX {
        return Err(BundleError::TooLarge);
    }
    let (mut signing, mut found, mut left) = (SigningSpec::default(), false, UNPACKED_MAX);
    for index in 0..zip.len() {
        let entry = zip.by_index(index).map_err(no_zip)?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        if name.starts_with('/') || name.contains('\\') || name.split('/').any(|part| part == "..") {
            return Err(BundleError::Name(name));
        }
        if entry.is_dir() {
            continue;
        }
        let mut bytes = Vec::new();
        entry.take(left + 1).read_to_end(&mut bytes).map_err(|e| BundleError::NoZip(e.to_string()))?;
        left = left.checked_sub(bytes.len() as u64).ok_or(BundleError::TooLarge)?;
        let lower = name.to_ascii_lowercase();
        if lower.ends_with(".p12") {
            (signing.p12, found) = (STANDARD.encode(&bytes), true);
        } else if lower.ends_with(".mobileprovision") {
            signing.profiles.push(STANDARD.encode(&bytes));
        } else if name == PASSWORD {
            let text = String::from_utf8(bytes).map_err(|_| BundleError::Password)?;
            signing.password = text.trim().to_owned();
        }
    }
    if found { Ok(signing) } else { Err(BundleError::NoCertificate) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn bundle(files: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut zip = zip::ZipWriter::new(file.reopen().expect("open"));
        for (name, bytes) in files {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).expect("begun");
            zip.write_all(bytes).expect("written");
        }
        zip.finish().expect("whole");
        file
    }

    #[test]
    fn a_bundle_is_read_and_its_password_is_trimmed() {
        let files: [(&str, &[u8]); 4] = [
            ("cert.p12", b"p12"),
            ("password.txt", b" hunter2\n"),
            ("a.mobileprovision", b"one"),
            ("profiles/b.mobileprovision", b"two"),
        ];
        let signing = read(bundle(&files).path()).expect("read");
        assert_eq!((signing.p12.as_str(), signing.password.as_str()), ("cDEy", "hunter2"));
        assert_eq!(signing.profiles, ["b25l", "dHdv"]);
        assert!(!format!("{signing:?}").contains("hunter2"));
        assert_eq!(read(bundle(&files[..1]).path()).expect("read").password, "");
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        assert!(matches!(read(bundle(&[("../cert.p12", b"x")]).path()), Err(BundleError::Name(_))));
        assert!(matches!(read(bundle(&[("a\\cert.p12", b"x")]).path()), Err(BundleError::Name(_))));
        assert!(matches!(read(bundle(&[("readme", b"x")]).path()), Err(BundleError::NoCertificate)));
        let zeros = vec![0; usize::try_from(UNPACKED_MAX).expect("fits") + 1];
        assert!(matches!(read(bundle(&[("cert.p12", &zeros)]).path()), Err(BundleError::TooLarge)));
        let raw = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(raw.path(), "a raw p12").expect("written");
        assert!(matches!(read(raw.path()), Err(BundleError::NoZip(_))));
    }
}
