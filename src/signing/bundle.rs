//! Signing material as a zip: one `*.p12`, its password as `password.txt` in the root, or none, and any `*.mobileprovision`.

use std::io::{Cursor, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;
use zip::ZipArchive;
use zip::read::ZipFile;

use super::{P12_BYTES_MAX, PASSWORD_BYTES_MAX, PROFILE_BYTES_MAX, PROFILES_MAX};
use crate::api::wire::SigningSpec;

/// The largest bundle, as it is sent.
pub const BUNDLE_BYTES_MAX: usize = 10 << 20;
/// And unpacked.
const UNPACKED_BYTES_MAX: u64 = 50 << 20;
/// What may be in it: beside ours, files that nobody looks at.
const ENTRIES_MAX: usize = 1000;

const PASSWORD: &str = "password.txt";

/// Why a bundle is of no use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBundle {
    #[error("the bundle has {bytes} bytes, allowed are {max}")]
    TooLarge { bytes: u64, max: u64 },
    #[error("the bundle has {0} entries, allowed are {ENTRIES_MAX}")]
    TooMany(usize),
    #[error("the bundle is no zip, or is damaged: {0}")]
    Damaged(String),
    #[error("the bundle has an entry `{0}`, whose name leads out of it")]
    Outside(String),
    #[error("`{name}` in the bundle is larger than {max} bytes")]
    EntryTooLarge { name: String, max: usize },
    #[error("the bundle has no *.p12")]
    NoP12,
    #[error("the bundle has more than one *.p12: `{0}` and `{1}`")]
    SeveralP12(String, String),
    #[error("the bundle has more than {PROFILES_MAX} *.mobileprovision")]
    TooManyProfiles,
    #[error("`{PASSWORD}` in the bundle is no text")]
    PasswordNoText,
}

impl BadBundle {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Outside(_) | Self::Damaged(_) => {
                "pack it anew: `zip -j certs.zip certificate.p12 password.txt *.mobileprovision`"
            }
            Self::TooLarge { .. }
            | Self::TooMany(_)
            | Self::EntryTooLarge { .. }
            | Self::NoP12
            | Self::SeveralP12(..)
            | Self::TooManyProfiles => {
                "put one *.p12, `password.txt` and the app's *.mobileprovision into it, and nothing else"
            }
            Self::PasswordNoText => "write the password of the .p12 into it as UTF-8",
        }
    }
}

/// What is in a bundle, not yet checked beyond its form: [`check`](super::check) does that.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn read(bundle: &[u8]) -> Result<SigningSpec, BadBundle> {
    if bundle.len() > BUNDLE_BYTES_MAX {
        return Err(BadBundle::TooLarge { bytes: bundle.len() as u64, max: BUNDLE_BYTES_MAX as u64 });
    }
    let mut archive = ZipArchive::new(Cursor::new(bundle)).map_err(damaged)?;
    if archive.len() > ENTRIES_MAX {
        return Err(BadBundle::TooMany(archive.len()));
    }
    let mut spec = SigningSpec::default();
    let (mut p12, mut unpacked): (Option<String>, u64) = (None, 0);
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at).map_err(damaged)?;
        let name = entry.name().map_err(damaged)?.into_owned();
        if leads_out(&name) {
            return Err(BadBundle::Outside(name.escape_debug().to_string()));
        }
        unpacked = unpacked.saturating_add(entry.size());
        if unpacked > UNPACKED_BYTES_MAX {
            return Err(BadBundle::TooLarge { bytes: unpacked, max: UNPACKED_BYTES_MAX });
        }
        match kind(&name) {
            Kind::P12 => {
                spec.p12 = STANDARD.encode(content(&mut entry, &name, P12_BYTES_MAX)?.as_slice());
                if let Some(first) = p12.replace(name.clone()) {
                    return Err(BadBundle::SeveralP12(first, name));
                }
            }
            Kind::Password => {
                let text = content(&mut entry, &name, PASSWORD_BYTES_MAX)?;
                let text = std::str::from_utf8(&text).map_err(|_| BadBundle::PasswordNoText)?;
                text.trim().clone_into(&mut spec.password);
            }
            Kind::Profile if spec.profiles.len() == PROFILES_MAX => return Err(BadBundle::TooManyProfiles),
            Kind::Profile => {
                let profile = content(&mut entry, &name, PROFILE_BYTES_MAX)?;
                spec.profiles.push(STANDARD.encode(profile.as_slice()));
            }
            Kind::Other => {}
        }
    }
    if p12.is_none() { Err(BadBundle::NoP12) } else { Ok(spec) }
}

enum Kind {
    P12,
    Password,
    Profile,
    Other,
}

fn kind(name: &str) -> Kind {
    let file = name.rsplit('/').next().unwrap_or_default();
    // What a Mac packs along of each file's attributes has its name.
    if file.is_empty() || file.starts_with("._") || name.starts_with("__MACOSX/") {
        return Kind::Other;
    }
    let ending = file.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    match ending.as_deref() {
        _ if name == PASSWORD => Kind::Password,
        Some("p12") => Kind::P12,
        Some("mobileprovision") => Kind::Profile,
        Some(_) | None => Kind::Other,
    }
}

fn leads_out(name: &str) -> bool {
    name.starts_with('/') || name.contains(['\\', '\0']) || name.split('/').any(|part| part == "..")
}

/// What an entry says of its size need not be so.
fn content(
    entry: &mut ZipFile<'_, Cursor<&[u8]>>,
    name: &str,
    max: usize,
) -> Result<Zeroizing<Vec<u8>>, BadBundle> {
    // Of its greatest size at once: one that grew would leave copies behind.
    let room = usize::try_from(entry.size()).unwrap_or(max).min(max) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    let read = entry.take(max as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| BadBundle::Damaged(format!("`{name}`: {e}")))?;
    if bytes.len() > max {
        return Err(BadBundle::EntryTooLarge { name: name.to_owned(), max });
    }
    Ok(bytes)
}

fn damaged(error: zip::result::ZipError) -> BadBundle {
    BadBundle::Damaged(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in entries {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).expect("added");
            zip.write_all(content).expect("written");
        }
        zip.finish().expect("finished").into_inner()
    }

    #[test]
    fn a_bundle_is_read_whatever_else_a_mac_packs_along() {
        let bundle = zip(&[
            ("certs/Dist.P12", b"p12"),
            ("__MACOSX/certs/._Dist.P12", b"attributes"),
            ("._password.txt", b"attributes"),
            ("password.txt", b" secret\n"),
            ("certs/password.txt", b"another"),
            ("a.mobileprovision", b"a"),
            ("deep/b.mobileprovision", b"b"),
            ("README", b"text"),
        ]);
        let spec = read(&bundle).expect("fine");
        let profiles = [b"a", b"b"].map(|profile| STANDARD.encode(profile));
        assert_eq!((spec.p12.as_str(), spec.password.as_str()), (&*STANDARD.encode(b"p12"), "secret"));
        assert_eq!(spec.profiles, profiles);
        assert_eq!(read(&zip(&[("a.p12", b"p12")])).expect("fine").password, "", "it may have none");
    }

    #[test]
    fn what_leads_out_of_a_bundle_or_bursts_it_is_refused() {
        for name in ["../a.p12", "/a.p12", "a\\b.p12", "a/../../b"] {
            let refused = read(&zip(&[("fine.p12", b"p12"), (name, b"x")]));
            assert!(matches!(refused, Err(BadBundle::Outside(_))), "{name}: {refused:?}");
        }
        let large = vec![0; PROFILE_BYTES_MAX + 1];
        let refused = read(&zip(&[("a.p12", b"p12"), ("a.mobileprovision", &large)]));
        assert!(matches!(refused, Err(BadBundle::EntryTooLarge { .. })), "{refused:?}");
        let bomb = vec![0; 51 << 20];
        let refused = read(&zip(&[("a.p12", b"p12"), ("README", &bomb)]));
        assert!(matches!(refused, Err(BadBundle::TooLarge { .. })), "{refused:?}");
        assert!(matches!(read(&vec![0; BUNDLE_BYTES_MAX + 1]), Err(BadBundle::TooLarge { .. })));
        assert!(matches!(read(b"no zip"), Err(BadBundle::Damaged(_))));
        assert_eq!(read(&zip(&[("password.txt", b"x")])), Err(BadBundle::NoP12));
        assert!(matches!(read(&zip(&[("a.p12", b"x"), ("b.p12", b"y")])), Err(BadBundle::SeveralP12(..))));
        let refused = read(&zip(&[("a.p12", b"x"), ("password.txt", &[0xFF, 0xFE])]));
        assert_eq!(refused, Err(BadBundle::PasswordNoText));
    }
}
