//! Certificates, PKCS #12 files and provisioning profiles, made by openssl in a folder that goes with them.

use std::fs;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use preheat::api::wire::SigningSpec;

/// The team of most of what is made here.
pub const TEAM: &str = "AB12CD34EF";
/// Whose certificate it is.
pub const NAME: &str = "Apple Distribution: Acme Inc (AB12CD34EF)";
/// Of the profile.
pub const UUID: &str = "0f3c1e7a-5b1d-4e1c-9f0e-7d2a6b8c9d10";

/// A folder of them.
pub struct Materials {
    dir: tempfile::TempDir,
}

/// How a certificate is to be.
#[derive(Clone, Copy)]
pub struct Wish<'a> {
    pub team: &'a str,
    /// What it may be used for.
    pub usage: &'a str,
    /// It begins then, and is good for 300 days.
    pub made: Option<&'a str>,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Self { team: TEAM, usage: "codeSigning", made: None }
    }
}

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub struct Certificate {
    pub pem: PathBuf,
    pub key: PathBuf,
}

/// How a profile is to be.
#[derive(Clone)]
pub struct Profile<'a> {
    pub name: &'a str,
    pub uuid: &'a str,
    pub team: &'a str,
    pub app: &'a str,
    pub expires: &'a str,
    /// In pieces of unknown lengths.
    pub streamed: bool,
}

impl Default for Profile<'_> {
    fn default() -> Self {
        let (name, app) = ("Acme App Store", "com.acme.app");
        Self { name, uuid: UUID, team: TEAM, app, expires: "2099-01-01T00:00:00Z", streamed: false }
    }
}

/// Runs openssl; its stdout.
pub fn openssl(args: &[&str]) -> Vec<u8> {
    run(None, args)
}

fn run(at: Option<&str>, args: &[&str]) -> Vec<u8> {
    let mut command = match at {
        Some(at) => {
            let mut command = assert_cmd::Command::new("faketime");
            command.args([at, "openssl"]);
            command
        }
        None => assert_cmd::Command::new("openssl"),
    };
    let done = command.args(args).output().expect("it runs");
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

impl Materials {
    /// An empty folder.
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder") }
    }

    /// A path in the folder that was not given before.
    pub fn path(&self, ending: &str) -> PathBuf {
        self.dir.path().join(format!("{}{ending}", uuid::Uuid::new_v4().simple()))
    }

    /// A file with this content.
    pub fn file(&self, ending: &str, content: &[u8]) -> PathBuf {
        let path = self.path(ending);
        fs::write(&path, content).expect("written");
        path
    }

    /// A new certificate with a new key, signed by itself.
    pub fn certificate(&self, wish: Wish<'_>) -> Certificate {
        let made = Certificate { pem: self.path(".crt"), key: self.path(".key") };
        let subject = format!("/CN=Apple Distribution: Acme Inc ({0})/OU={0}/O=Acme Inc/C=US", wish.team);
        let usage = format!("extendedKeyUsage=critical,{}", wish.usage);
        let key =
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "300", "-keyout", text(&made.key)];
        let rest = ["-out", text(&made.pem), "-subj", &subject, "-addext", &usage];
        run(wish.made, &[key.as_slice(), &rest].concat());
        made
    }

    /// Another certificate for the same key.
    pub fn renewed(&self, of: &Certificate) -> Certificate {
        let renewed = Certificate { pem: self.path(".crt"), key: of.key.clone() };
        let subject = format!("/CN={NAME}/OU={TEAM}/O=Acme Inc/C=US");
        let args =
            ["req", "-x509", "-key", text(&of.key), "-days", "300", "-out", text(&renewed.pem), "-subj"];
        openssl(&[args.as_slice(), &[&subject, "-addext", "extendedKeyUsage=critical,codeSigning"]].concat());
        renewed
    }

    /// The key with two certificates for it.
    pub fn p12_of(&self, certificates: [&Certificate; 2], password: &str) -> Vec<u8> {
        let both = certificates.map(|certificate| fs::read(&certificate.pem).expect("there")).concat();
        let both = Certificate { pem: self.file(".crt", &both), key: certificates[0].key.clone() };
        self.p12(&both, password, false)
    }

    /// The certificate with its key, as today's tools seal it or as those before.
    pub fn p12(&self, of: &Certificate, password: &str, old: bool) -> Vec<u8> {
        let password = format!("pass:{password}");
        let args =
            ["pkcs12", "-export", "-in", text(&of.pem), "-inkey", text(&of.key), "-passout", &password];
        let how: &[&str] = if old { &["-legacy", "-name", "key"] } else { &["-name", "key"] };
        openssl(&[&args, how].concat())
    }

    /// A profile for these certificates, signed by one of its own.
    pub fn profile(&self, wish: &Profile<'_>, certificates: &[&Certificate]) -> Vec<u8> {
        let Profile { name, uuid, team, app, expires, streamed } = wish;
        let data = |of: &&Certificate| format!("<data>{}</data>", STANDARD.encode(der(of)));
        let list = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
             \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n<plist version=\"1.0\">\n<dict>\n\
             <key>AppIDName</key><string>Acme</string>\n\
             <key>ApplicationIdentifierPrefix</key><array><string>{team}</string></array>\n\
             <key>CreationDate</key><date>2020-01-01T00:00:00Z</date>\n\
             <key>DeveloperCertificates</key><array>{}</array>\n\
             <key>Entitlements</key><dict><key>application-identifier</key><string>{team}.{app}</string></dict>\n\
             <key>ExpirationDate</key><date>{expires}</date>\n<key>Name</key><string>{name}</string>\n\
             <key>TeamIdentifier</key><array><string>{team}</string></array>\n\
             <key>UUID</key><string>{uuid}</string>\n</dict>\n</plist>\n",
            certificates.iter().map(data).collect::<String>()
        );
        let list = self.file(".plist", list.as_bytes());
        let signer = certificates.first().map_or_else(|| self.certificate(Wish::default()), |c| (*c).clone());
        let args = ["cms", "-sign", "-binary", "-nodetach", "-outform", "DER", "-in", text(&list), "-signer"];
        let rest = [text(&signer.pem), "-inkey", text(&signer.key)];
        let how: &[&str] = if *streamed { &["-stream"] } else { &[] };
        openssl(&[&args, rest.as_slice(), how].concat())
    }
}

/// The certificate as it is signed over.
pub fn der(of: &Certificate) -> Vec<u8> {
    openssl(&["x509", "-in", text(&of.pem), "-outform", "DER"])
}

/// What a build is submitted with.
pub fn spec(p12: &[u8], password: &str, profiles: &[Vec<u8>]) -> SigningSpec {
    let profiles = profiles.iter().map(|profile| STANDARD.encode(profile)).collect();
    let mut spec = SigningSpec::default();
    (spec.p12, spec.password, spec.profiles) = (STANDARD.encode(p12), password.to_owned(), profiles);
    spec
}

/// The same as a bundle.
pub fn bundle(p12: &[u8], password: &str, profiles: &[Vec<u8>]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, content: &[u8]| {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).expect("added");
        zip.write_all(content).expect("written");
    };
    add("certificate.p12", p12);
    add("password.txt", format!("{password}\n").as_bytes());
    for (n, profile) in profiles.iter().enumerate() {
        add(&format!("{n}.mobileprovision"), profile);
    }
    zip.finish().expect("finished").into_inner()
}
