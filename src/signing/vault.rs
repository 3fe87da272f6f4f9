//! What a build signs with among its secrets' values: in memory, and sealed in the journal, it is one more of them. The names
//! have a letter that no variable's name has, so that none of it gets into a step's environment.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};

use super::{Checked, Kit, Signer};

/// Values by name.
type Values = BTreeMap<String, SecretString>;

/// Begins each name here.
const PREFIX: &str = "signing/";
const P12: &str = "signing/p12";
const P12_PASSWORD: &str = "signing/p12-password";
const KEYCHAIN_PASSWORD: &str = "signing/keychain-password";
/// The user's own.
const PASSWORD: &str = "signing/password";
/// Before a profile's UUID.
const PROFILE: &str = "signing/profile/";

/// Puts it among a build's values, and returns what everybody may know.
pub fn keep(checked: Checked, values: &mut Values) -> Signer {
    let Checked { signer, kit, password } = checked;
    let text = |bytes: &[u8]| SecretString::from(STANDARD.encode(bytes));
    for (uuid, profile) in &kit.profiles {
        values.insert(format!("{PROFILE}{uuid}"), text(profile));
    }
    values.insert(P12.to_owned(), text(&kit.p12));
    values.insert(P12_PASSWORD.to_owned(), kit.p12_password);
    values.insert(KEYCHAIN_PASSWORD.to_owned(), kit.keychain_password);
    values.insert(PASSWORD.to_owned(), password);
    signer
}

/// What goes into the guest; `None` when it is not, or not wholly, among the values.
pub fn kit(signer: &Signer, values: &Values) -> Option<Kit> {
    let bytes = |name: &str| STANDARD.decode(values.get(name)?.expose_secret()).ok();
    let profiles = signer.profiles.iter().map(|profile| {
        let uuid = &profile.uuid;
        Some((uuid.clone(), bytes(&format!("{PROFILE}{uuid}"))?))
    });
    Some(Kit {
        identity: signer.identity.clone(),
        p12: Zeroizing::new(bytes(P12)?),
        p12_password: values.get(P12_PASSWORD)?.clone(),
        keychain_password: values.get(KEYCHAIN_PASSWORD)?.clone(),
        profiles: profiles.collect::<Option<_>>()?,
    })
}

/// The secrets that are variables of the steps.
pub fn variables(values: &Values) -> impl Iterator<Item = (&String, &SecretString)> {
    values.iter().filter(|(name, _)| !name.starts_with(PREFIX))
}

/// What must not be read in a log: all but the files, which no step ever sees.
pub fn unspeakable(values: &Values) -> impl Iterator<Item = &SecretString> {
    values.iter().filter(|(name, _)| *name != P12 && !name.starts_with(PROFILE)).map(|(_, value)| value)
}
