//! PKCS #12: a certificate and its private key, sealed with a password. Opened on the host, in each of the ways that Keychain
//! Access, Xcode and OpenSSL seal it; and sealed anew for a guest.
//!
//! A guest gets another file than the one that was sent, under a password that was drawn for it. So the user's password goes
//! nowhere; and what `security import` of an older macOS cannot read (AES and SHA-256, of which it says that the password is
//! wrong) or does not take (an empty password, or one with an umlaut) is no matter. That file is sealed with 3DES and SHA-1,
//! which every macOS reads, and whose weakness 192 random bits make up for; it lives for a second.

use p12_keystore::error::Error;
use p12_keystore::{
    Certificate, CertificateBag, EncryptionAlgorithm, KeyStore, KeyStoreEntry, MacAlgorithm, Pkcs12Archive,
    PrivateKey, PrivateKeyChain,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, RsaKeyPair};
use secrecy::zeroize::Zeroizing;
use x509_parser::certificate::X509Certificate;

use crate::clock::UnixMillis;

/// Rounds of the key's derivation, and of the seal's, in what a guest is given: as Keychain Access writes it.
const ROUNDS: u32 = 2048;

/// What the key and its certificate are known to each other by.
const LOCAL_KEY_ID: &str = "preheat";

/// A certificate with its key.
pub(super) struct Identity {
    pub certificate: Vec<u8>,
    /// Whose it is: the subject's common name.
    pub name: String,
    /// The subject's organizational unit: with Apple that is the team.
    pub team: Option<String>,
    pub begins_ms: UnixMillis,
    pub expires_ms: UnixMillis,
    /// It may sign code.
    pub signs_code: bool,
    key: PrivateKey,
    /// The certificates that came along: of who issued it.
    others: Vec<Certificate>,
}

/// Why a file is of no use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("the password does not open it")]
    Password,
    #[error("it is sealed in a way that is not known here")]
    Sealed,
    #[error("it is no PKCS #12 file: {0}")]
    Malformed(String),
    #[error("it holds no private key")]
    NoKey,
    #[error("it holds a private key, and no certificate for it")]
    NoCertificate,
    #[error("it holds {0} private keys with certificates, and it must be one")]
    Several(usize),
    #[error("its certificate cannot be read")]
    Certificate,
}

impl Unusable {
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Password => {
                "send the password that the file was exported with (in a bundle: `password.txt` in its root)"
            }
            Self::Sealed | Self::Malformed(_) | Self::Certificate => {
                "export it anew: in Keychain Access, My Certificates, as .p12"
            }
            Self::NoKey | Self::NoCertificate => {
                "export the certificate together with its key: in Keychain Access, under My Certificates, not under Certificates"
            }
            Self::Several(_) => "export only the certificate that signs",
        }
    }
}

impl Identity {
    /// Opens a file.
    pub(super) fn open(file: &[u8], password: &str) -> Result<Self, Unusable> {
        let archive = Pkcs12Archive::from_pkcs12(file, password).map_err(|e| unusable(&e))?;
        if archive.keys.is_empty() {
            return Err(Unusable::NoKey);
        }
        let mut found = Vec::new();
        for key in &archive.keys {
            let public = public_key(key.key.as_der());
            let id = key.local_key_id.as_ref().map(|id| id.0.as_slice());
            let is_its = |bag: &CertificateBag| match &public {
                Some(public) => certified(bag.cert.as_der()).as_ref() == Some(public),
                // Of a kind that is not known here: the file's own word.
                None => id.is_some() && bag.local_key_id.as_deref() == id,
            };
            let its = (0..archive.certs.len()).filter(|at| is_its(&archive.certs[*at]));
            // One that was renewed is for the same key.
            let its = its.max_by_key(|at| expiry(archive.certs[*at].cert.as_der()));
            found.extend(its.map(|at| (at, key.key.clone())));
        }
        // Some write the same twice.
        found.sort_by_key(|(at, _)| *at);
        found.dedup_by_key(|(at, _)| *at);
        let Some((at, key)) = found.pop() else { return Err(Unusable::NoCertificate) };
        if !found.is_empty() {
            return Err(Unusable::Several(found.len() + 1));
        }
        let others = archive.certs.iter().enumerate().filter(|(other, _)| *other != at);
        let others = others.map(|(_, bag)| bag.cert.clone()).collect();
        Self::of(archive.certs[at].cert.as_der(), key, others).ok_or(Unusable::Certificate)
    }

    fn of(certificate: &[u8], key: PrivateKey, others: Vec<Certificate>) -> Option<Self> {
        let read = parse(certificate)?;
        let subject = read.subject();
        let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        let team = subject.iter_organizational_unit().next().and_then(|unit| unit.as_str().ok());
        let usage = read.extended_key_usage().ok()?;
        Some(Self {
            name: name.unwrap_or_default().chars().filter(|c| !c.is_control()).collect(),
            team: team.map(str::to_owned),
            begins_ms: UnixMillis(read.validity().not_before.timestamp().saturating_mul(1000)),
            expires_ms: expiry(certificate)?,
            signs_code: usage.is_some_and(|usage| usage.value.code_signing),
            certificate: certificate.to_vec(),
            key,
            others,
        })
    }

    /// The same for a guest, under another password.
    pub(super) fn sealed(&self, password: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let own = Certificate::from_der(&self.certificate)?;
        let certificates = std::iter::once(own).chain(self.others.iter().cloned());
        let chain = PrivateKeyChain::new(LOCAL_KEY_ID, self.key.clone(), certificates);
        let mut store = KeyStore::new();
        store.add_entry(&self.name, KeyStoreEntry::PrivateKeyChain(chain));
        let writer = store.writer(password).mac_algorithm(MacAlgorithm::HmacSha1).mac_iterations(ROUNDS);
        let encryption = EncryptionAlgorithm::PbeWithShaAnd3KeyTripleDesCbc;
        writer.encryption_algorithm(encryption).encryption_iterations(ROUNDS).write().map(Zeroizing::new)
    }
}

fn unusable(error: &Error) -> Unusable {
    if matches!(error, Error::MacError(_) | Error::UnpadError | Error::Pkcs5Error(_)) {
        Unusable::Password
    } else if matches!(error, Error::UnsupportedEncryptionScheme | Error::UnsupportedMacAlgorithm) {
        Unusable::Sealed
    } else {
        Unusable::Malformed(error.to_string())
    }
}

fn parse(certificate: &[u8]) -> Option<X509Certificate<'_>> {
    x509_parser::parse_x509_certificate(certificate).ok().map(|(_, certificate)| certificate)
}

fn expiry(certificate: &[u8]) -> Option<UnixMillis> {
    parse(certificate).map(|read| UnixMillis(read.validity().not_after.timestamp().saturating_mul(1000)))
}

/// The public key that a certificate is for.
fn certified(certificate: &[u8]) -> Option<Vec<u8>> {
    parse(certificate).map(|read| read.public_key().subject_public_key.data.to_vec())
}

/// The public key that belongs to a private one, in the form in which certificates have it.
fn public_key(key: &[u8]) -> Option<Vec<u8>> {
    let rsa = || RsaKeyPair::from_pkcs8(key).ok().map(|pair| pair.public_key().as_ref().to_vec());
    let ecdsa = || {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key, &SystemRandom::new()).ok();
        pair.map(|pair| pair.public_key().as_ref().to_vec())
    };
    rsa().or_else(ecdsa)
}
