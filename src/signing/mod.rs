//! What a build signs with: a certificate with its key, and provisioning profiles. Checked here, on the host, before a VM is
//! touched; what comes of it is a [`Signer`], which everybody may know, and a [`Kit`], which goes into the guest.
//!
//! The libraries that open and seal a PKCS #12 free what they held without wiping it; what is ours is wiped.

pub mod bundle;
mod cms;
mod p12;
mod profile;
pub mod vault;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde::{Deserialize, Serialize};

use crate::api::wire::SigningSpec;
use crate::clock::UnixMillis;
use crate::config::mistake::{Mistake, Mistakes, Origin};
use p12::Identity;
use profile::Said;

/// The largest PKCS #12: with its whole chain one has ten kilobytes.
pub const P12_BYTES_MAX: usize = 256 << 10;
/// The largest profile: a hundred devices make one of twenty kilobytes.
pub const PROFILE_BYTES_MAX: usize = 1 << 20;
/// Profiles of one build: an app and its extensions have one each.
pub const PROFILES_MAX: usize = 64;
/// All of it together: it lies in memory, and sealed in the journal, until its build is over.
pub const KIT_BYTES_MAX: usize = 2 << 20;
/// The longest password.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Bytes of the passwords that are drawn.
const PASSWORD_BYTES: usize = 24;

/// Who signs, and what. No secret is in it: it is journalled with its build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// The certificate's SHA-1, as `security find-identity` writes it.
    pub identity: String,
    /// Whose the certificate is: `Apple Distribution: Acme Inc (AB12CD34EF)`.
    pub name: String,
    pub team: String,
    pub expires_ms: UnixMillis,
    pub profiles: Vec<Profile>,
}

/// What a profile says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub uuid: String,
    pub name: String,
    /// With the team before it: `AB12CD34EF.com.acme.app`; the end may be `*`.
    pub app_id: String,
    pub expires_ms: UnixMillis,
}

impl Profile {
    /// The app's identifier without its team.
    pub fn bundle_id(&self) -> &str {
        self.app_id.split_once('.').map_or(&self.app_id, |(_, bundle)| bundle)
    }
}

impl Signer {
    /// Variables for the steps.
    pub fn variables(&self) -> Vec<(String, String)> {
        let mut all = vec![
            ("PREHEAT_SIGNING_IDENTITY".to_owned(), self.identity.clone()),
            ("PREHEAT_TEAM_ID".to_owned(), self.team.clone()),
        ];
        let first = self.profiles.first();
        all.extend(first.map(|profile| ("PREHEAT_PROFILE_UUID".to_owned(), profile.uuid.clone())));
        all.extend(self.profiles.iter().map(|profile| {
            let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
            let bundle: String = profile.bundle_id().chars().map(letter).collect();
            (format!("PREHEAT_PROFILE_UUID_{bundle}"), profile.uuid.clone())
        }));
        all
    }

    /// For the build's log, a line each.
    pub fn said(&self) -> Vec<String> {
        let own = format!("signing as {} until {}", self.name, day(self.expires_ms));
        let profiles = self.profiles.iter().map(|profile| {
            let Profile { uuid, name, app_id, expires_ms } = profile;
            format!("profile {name} ({uuid}) for {app_id} until {}", day(*expires_ms))
        });
        std::iter::once(own).chain(profiles).collect()
    }
}

/// What a guest is given. Wiped when it is dropped.
pub struct Kit {
    /// As in [`Signer::identity`].
    pub identity: String,
    /// PKCS #12, sealed for the guest alone.
    pub p12: Zeroizing<Vec<u8>>,
    pub p12_password: SecretString,
    /// Of the keychain that is made for the build.
    pub keychain_password: SecretString,
    /// By their UUIDs.
    pub profiles: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for Kit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kit").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What does: a build may be signed with it now.
#[derive(Debug)]
pub struct Checked {
    pub signer: Signer,
    pub kit: Kit,
    /// The user's own, of the file that was sent: only to keep it out of the log.
    pub password: SecretString,
}

/// Checks what a build is to be signed with.
///
/// # Errors
/// Every mistake, each with its hint.
pub fn check(spec: &SigningSpec, now: UnixMillis) -> Result<Checked, Mistakes> {
    let mut mistakes = Vec::new();
    let identity = identity(spec, now, &mut mistakes);
    let profiles = profiles(spec, &mut mistakes);
    for Read { at, said, .. } in &profiles {
        fits(said, &key_of(*at), identity.as_ref(), now, &mut mistakes);
    }
    let drawn =
        || drawn_password().map_err(|text| Mistakes::from(Mistake::at(&Origin::Request, "signing", text)));
    let (Some(identity), true) = (identity, mistakes.is_empty()) else { return Err(Mistakes(mistakes)) };
    let (p12_password, keychain_password) = (drawn()?, drawn()?);
    let p12 = identity
        .sealed(&p12_password)
        .map_err(|e| Mistakes::from(Mistake::at(&Origin::Request, "signing.p12", e.to_string())))?;
    let sha1 = fingerprint(&identity.certificate);
    let signer = Signer {
        identity: sha1.clone(),
        name: identity.name.clone(),
        team: identity.team.clone().unwrap_or_default(),
        expires_ms: identity.expires_ms,
        profiles: profiles.iter().map(|read| read.said.profile.clone()).collect(),
    };
    let secret = |text: &Zeroizing<String>| SecretString::from(text.as_str());
    let kit = Kit {
        identity: sha1,
        p12,
        p12_password: secret(&p12_password),
        keychain_password: secret(&keychain_password),
        profiles: profiles.into_iter().map(|read| (read.said.profile.uuid, read.file)).collect(),
    };
    Ok(Checked { signer, kit, password: SecretString::from(spec.password.as_str()) })
}

fn key_of(profile: usize) -> String {
    format!("signing.profiles[{profile}]")
}

fn wrong(mistakes: &mut Vec<Mistake>, key: &str, text: impl Into<String>, hint: &str) {
    mistakes.push(Mistake::at(&Origin::Request, key, text).hint(hint));
}

/// The certificate with its key, when it can be used at all: what is wrong with it otherwise is among the mistakes.
fn identity(spec: &SigningSpec, now: UnixMillis, mistakes: &mut Vec<Mistake>) -> Option<Identity> {
    const KEY: &str = "signing.p12";
    if spec.password.len() > PASSWORD_BYTES_MAX {
        let text = format!("is longer than {PASSWORD_BYTES_MAX} bytes");
        wrong(mistakes, "signing.password", text, "send the password of the .p12 alone");
        return None;
    }
    let file = match decoded(&spec.p12, P12_BYTES_MAX) {
        Ok(file) => file,
        Err(text) => {
            wrong(mistakes, KEY, text, "send the .p12 as it was exported, in base64");
            return None;
        }
    };
    let identity = match Identity::open(&file, &spec.password) {
        Ok(identity) => identity,
        Err(unusable) => {
            wrong(mistakes, KEY, unusable.to_string(), unusable.hint());
            return None;
        }
    };
    let name = &identity.name;
    if now >= identity.expires_ms {
        let text = format!("the certificate `{name}` expired on {}", day(identity.expires_ms));
        wrong(mistakes, KEY, text, "renew it at developer.apple.com, with its profiles, and export it anew");
    }
    if now < identity.begins_ms {
        let text = format!("the certificate `{name}` is not valid before {}", day(identity.begins_ms));
        wrong(mistakes, KEY, text, "is the clock of the daemon's host right?");
    }
    if !identity.signs_code {
        let text = format!("the certificate `{name}` is not for signing code");
        wrong(mistakes, KEY, text, "export an `Apple Development` or `Apple Distribution` certificate");
    }
    if identity.team.is_none() {
        let text = format!("the certificate `{name}` names no team (OU)");
        wrong(mistakes, KEY, text, "export an `Apple Development` or `Apple Distribution` certificate");
    }
    Some(identity)
}

/// A profile that was read.
struct Read {
    /// Its place among those that were sent.
    at: usize,
    said: Said,
    file: Vec<u8>,
}

/// Each profile that can be read.
fn profiles(spec: &SigningSpec, mistakes: &mut Vec<Mistake>) -> Vec<Read> {
    const KEY: &str = "signing.profiles";
    const HINT: &str = "send each .mobileprovision as it was downloaded, in base64";
    let whole = spec.p12.len() + spec.profiles.iter().map(String::len).sum::<usize>();
    if spec.profiles.is_empty() {
        let text = "there is none, and an app cannot be signed without its provisioning profile";
        wrong(mistakes, KEY, text, "add the app's .mobileprovision, from developer.apple.com");
    }
    if spec.profiles.len() > PROFILES_MAX || whole / 4 * 3 > KIT_BYTES_MAX {
        let text = format!(
            "found {} profiles and {} bytes with the .p12, allowed are {PROFILES_MAX} and {KIT_BYTES_MAX}",
            spec.profiles.len(),
            whole / 4 * 3
        );
        wrong(mistakes, KEY, text, "send the profiles of this app and its extensions only");
        return Vec::new();
    }
    let mut all: Vec<Read> = Vec::new();
    for (at, text) in spec.profiles.iter().enumerate() {
        let file = decoded(text, PROFILE_BYTES_MAX).map(|file| file.to_vec());
        match file.and_then(|file| profile::read(&file).map(|said| Read { at, said, file })) {
            Ok(read) if all.iter().any(|other| other.said.profile.uuid == read.said.profile.uuid) => {
                let text = format!("`{}` is there twice", read.said.profile.uuid);
                wrong(mistakes, &key_of(at), text, "send each profile once");
            }
            Ok(read) => all.push(read),
            Err(text) => wrong(mistakes, &key_of(at), text, HINT),
        }
    }
    all
}

/// Whether a profile lets this certificate sign now.
fn fits(said: &Said, key: &str, identity: Option<&Identity>, now: UnixMillis, mistakes: &mut Vec<Mistake>) {
    let Profile { uuid, name, expires_ms, .. } = &said.profile;
    if now >= *expires_ms {
        let text = format!("`{name}` ({uuid}) expired on {}", day(*expires_ms));
        wrong(mistakes, key, text, "renew the profile at developer.apple.com");
    }
    let Some(identity) = identity else { return };
    if let Some(team) = identity.team.as_ref().filter(|team| !said.teams.contains(team)) {
        let theirs = said.teams.join(", ");
        let text = format!("`{name}` ({uuid}) is of the team {theirs}, and the certificate of {team}");
        wrong(mistakes, key, text, "send a profile of the certificate's team");
    } else if !said.certificates.contains(&identity.certificate) {
        let text = format!(
            "`{name}` ({uuid}) does not let `{}` sign: it is not among the profile's {} certificates",
            identity.name,
            said.certificates.len()
        );
        let hint = "add the certificate to the profile at developer.apple.com and download it anew";
        wrong(mistakes, key, text, hint);
    }
}

/// A file in base64, with line ends or without. An `Err` is what is wrong with it.
fn decoded(text: &str, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    let letters = text.bytes().filter(|b| !b.is_ascii_whitespace());
    let mut plain = Zeroizing::new(Vec::with_capacity(text.len()));
    plain.extend(letters);
    if plain.is_empty() {
        return Err("is empty".into());
    }
    if plain.len() / 4 * 3 > bytes_max + 3 {
        return Err(format!("has {} bytes, allowed are {bytes_max}", plain.len() / 4 * 3));
    }
    let mut file = Zeroizing::new(Vec::with_capacity(plain.len()));
    // What it says of the place could quote it.
    STANDARD.decode_vec(plain.as_slice(), &mut file).map_err(|_| "is no base64".to_owned())?;
    Ok(file)
}

/// As `security find-identity` writes it.
fn fingerprint(certificate: &[u8]) -> String {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, certificate).as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// In letters that need no quoting anywhere.
fn drawn_password() -> Result<Zeroizing<String>, String> {
    let mut bytes = Zeroizing::new([0; PASSWORD_BYTES]);
    SystemRandom::new().fill(bytes.as_mut()).map_err(|_| "the host has no randomness to give".to_owned())?;
    let mut text = Zeroizing::new(String::with_capacity(PASSWORD_BYTES * 2));
    for byte in bytes.iter() {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    Ok(text)
}

/// The day in UTC.
fn day(at: UnixMillis) -> String {
    match jiff::Timestamp::from_millisecond(at.0) {
        Ok(time) => time.strftime("%Y-%m-%d").to_string(),
        Err(_) => at.to_string(),
    }
}
