//! What a build signs with, as it is checked on the host: real certificates, in each way that they come, and each mistake.

mod materials;

use std::collections::BTreeMap;

use materials::{Certificate, Materials, NAME, Profile, TEAM, UUID, Wish, bundle, der, openssl, spec};
use preheat::api::wire::SubmitSpec;
use preheat::clock::UnixMillis;
use preheat::config::mistake::Mistakes;
use preheat::signing::{self, Checked, vault};
use secrecy::{ExposeSecret as _, SecretString};

const PASSWORD: &str = "correct horse";

fn now() -> UnixMillis {
    UnixMillis::now()
}

/// A certificate and a profile for it.
fn made(lab: &Materials) -> (Certificate, Vec<u8>) {
    let certificate = lab.certificate(Wish::default());
    let profile = lab.profile(&Profile::default(), &[&certificate]);
    (certificate, profile)
}

fn refused(checked: Result<Checked, Mistakes>) -> Mistakes {
    let mistakes = checked.expect_err("it must be refused");
    let hinted = mistakes.0.iter().all(|mistake| mistake.hint.is_some());
    assert!(hinted && !mistakes.to_string().contains(PASSWORD), "{mistakes}");
    mistakes
}

/// The only mistake has the words.
fn is_one(mistakes: &Mistakes, words: &[&str]) {
    let lines = mistakes.lines();
    assert!(lines.len() == 1 && words.iter().all(|word| lines[0].contains(word)), "{words:?}: {lines:#?}");
}

#[test]
fn a_certificate_opens_however_its_file_is_sealed_and_says_whose_it_is() {
    let lab = Materials::new();
    let (certificate, profile) = made(&lab);
    for (old, password) in [(false, PASSWORD), (true, PASSWORD), (false, ""), (true, ""), (false, "Ünï")] {
        let p12 = lab.p12(&certificate, password, old);
        let checked = signing::check(&spec(&p12, password, std::slice::from_ref(&profile)), now())
            .unwrap_or_else(|mistakes| panic!("old: {old}, {password}: {mistakes}"));
        let signer = &checked.signer;
        assert_eq!((signer.name.as_str(), signer.team.as_str()), (NAME, TEAM));
        let print =
            openssl(&["x509", "-in", certificate.pem.to_str().expect("text"), "-noout", "-fingerprint"]);
        let print = String::from_utf8_lossy(&print).trim().replace(':', "");
        assert!(print.ends_with(&signer.identity), "{print} {}", signer.identity);
        assert_eq!(
            (signer.profiles[0].uuid.as_str(), signer.profiles[0].bundle_id()),
            (UUID, "com.acme.app")
        );
        let variables: BTreeMap<String, String> = signer.variables().into_iter().collect();
        assert_eq!(variables["PREHEAT_PROFILE_UUID_com_acme_app"], UUID);
        assert_eq!(variables["PREHEAT_TEAM_ID"], TEAM);
        let printed = format!("{checked:?} {:?}", spec(&p12, password, &[]));
        assert!(password.is_empty() || !printed.contains(password), "{printed}");
    }
}

#[test]
fn a_guest_is_given_a_file_that_every_mac_reads_under_a_password_of_its_own() {
    let lab = Materials::new();
    let (certificate, profile) = made(&lab);
    let checked = signing::check(&spec(&lab.p12(&certificate, PASSWORD, false), PASSWORD, &[profile]), now())
        .expect("fine");
    let file = lab.file(".p12", &checked.kit.p12);
    let file = file.to_str().expect("text");
    let password = format!("pass:{}", checked.kit.p12_password.expose_secret());
    let about = assert_cmd::Command::new("openssl")
        .args(["pkcs12", "-in", file, "-info", "-noout", "-passin", &password])
        .output()
        .expect("it runs");
    let about = String::from_utf8_lossy(&about.stderr).into_owned();
    assert!(about.contains("MAC: sha1"), "{about}");
    assert!(about.contains("pbeWithSHA1And3-KeyTripleDES-CBC") && !about.contains("PBES2"), "{about}");
    let key = openssl(&["pkcs12", "-in", file, "-nocerts", "-nodes", "-passin", &password]);
    let key = lab.file(".pem", &key);
    let public = |args: &[&str]| String::from_utf8(openssl(args)).expect("text");
    let of_key = public(&["pkey", "-in", key.to_str().expect("text"), "-pubout"]);
    let of_certificate =
        public(&["x509", "-in", certificate.pem.to_str().expect("text"), "-noout", "-pubkey"]);
    assert_eq!(of_key, of_certificate, "it is the key of the certificate");
    let old = format!("pass:{PASSWORD}");
    let opened = assert_cmd::Command::new("openssl")
        .args(["pkcs12", "-in", file, "-noout", "-passin", &old])
        .output()
        .expect("it runs");
    assert!(!opened.status.success(), "the user's password goes nowhere");
}

#[test]
fn each_mistake_is_named_with_what_to_do_about_it() {
    let lab = Materials::new();
    let (certificate, profile) = made(&lab);
    let p12 = lab.p12(&certificate, PASSWORD, false);
    let check = |p12: &[u8], password: &str, profiles: &[Vec<u8>]| {
        signing::check(&spec(p12, password, profiles), now())
    };
    let one = std::slice::from_ref(&profile);
    is_one(&refused(check(&p12, "wrong", one)), &["signing.p12", "the password does not open it"]);
    is_one(
        &refused(check(&lab.p12(&certificate, PASSWORD, true), "wrong", one)),
        &["the password does not open it"],
    );
    is_one(&refused(check(b"no such file", PASSWORD, one)), &["is no PKCS #12 file"]);
    is_one(&refused(check(&p12[..p12.len() / 2], PASSWORD, one)), &["signing.p12"]);
    is_one(&refused(check(&p12, PASSWORD, &[])), &["signing.profiles", "there is none"]);
    is_one(&refused(check(&p12, PASSWORD, &[b"<plist/>".to_vec()])), &["profiles[0]", "no signed message"]);
    is_one(&refused(check(&p12, PASSWORD, &[profile.clone(), profile.clone()])), &["profiles[1]", "twice"]);

    let other = lab.certificate(Wish::default());
    let of_other = lab.profile(&Profile::default(), &[&other]);
    is_one(&refused(check(&p12, PASSWORD, &[of_other])), &["Acme App Store", UUID, "does not let", NAME]);
    let theirs = lab.profile(&Profile { team: "ZZ99ZZ99ZZ", ..Profile::default() }, &[&certificate]);
    is_one(&refused(check(&p12, PASSWORD, &[theirs])), &["team ZZ99ZZ99ZZ", TEAM]);
    let late =
        lab.profile(&Profile { expires: "2020-02-02T00:00:00Z", ..Profile::default() }, &[&certificate]);
    is_one(&refused(check(&p12, PASSWORD, &[late])), &["expired on 2020-02-02"]);

    let early = signing::check(&spec(&p12, PASSWORD, one), UnixMillis(0));
    is_one(&refused(early), &["is not valid before"]);
    let server = lab.certificate(Wish { usage: "serverAuth", ..Wish::default() });
    let of_server = lab.profile(&Profile::default(), &[&server]);
    is_one(
        &refused(check(&lab.p12(&server, PASSWORD, false), PASSWORD, &[of_server])),
        &["not for signing code"],
    );
}

#[test]
fn all_mistakes_come_at_once() {
    let lab = Materials::new();
    let old = lab.certificate(Wish { made: Some("2020-01-01 00:00:00"), ..Wish::default() });
    let wish = Profile { team: "ZZ99ZZ99ZZ", expires: "2020-02-02T00:00:00Z", ..Profile::default() };
    let profile = lab.profile(&wish, &[&old]);
    let sent = spec(&lab.p12(&old, PASSWORD, true), PASSWORD, &[profile, b"no profile".to_vec()]);
    let lines = refused(signing::check(&sent, now())).lines();
    let words = ["certificate", "no signed message", "expired on 2020-02-02", "team ZZ99ZZ99ZZ"];
    assert!(lines.len() == words.len() && lines[0].contains("expired on 2020-10-27"), "{lines:#?}");
    for (line, word) in lines.iter().zip(words) {
        assert!(line.contains(word), "`{word}`: {line}");
    }
}

#[test]
fn a_profile_in_pieces_of_unknown_lengths_is_read_as_apples_own_tools_write_it() {
    let lab = Materials::new();
    let certificate = lab.certificate(Wish::default());
    let streamed = lab.profile(&Profile { streamed: true, ..Profile::default() }, &[&certificate]);
    assert_eq!(streamed[1], 0x80, "it has no length");
    let sent = bundle(&lab.p12(&certificate, PASSWORD, true), PASSWORD, &[streamed]);
    let sent = signing::bundle::read(&sent).expect("a bundle");
    let checked = signing::check(&sent, now()).expect("fine");
    assert_eq!(checked.signer.profiles[0].uuid, UUID);
    assert!(der(&certificate).len() > 500);
}

#[test]
fn a_certificate_that_was_renewed_for_the_same_key_wins_over_the_old_one() {
    let lab = Materials::new();
    let old = lab.certificate(Wish { made: Some("2020-01-01 00:00:00"), ..Wish::default() });
    let renewed = lab.renewed(&old);
    let profile = lab.profile(&Profile::default(), &[&renewed]);
    for certificates in [[&old, &renewed], [&renewed, &old]] {
        let p12 = lab.p12_of(certificates, PASSWORD);
        let checked = signing::check(&spec(&p12, PASSWORD, std::slice::from_ref(&profile)), now());
        assert!(checked.is_ok_and(|checked| checked.signer.expires_ms > now()));
    }
}

#[test]
fn a_description_that_does_not_parse_quotes_nothing_of_it() {
    for wrong in [
        r#"{"signing": {"p12": "hunter2hunter2", "password": 4711471147}}"#,
        r#"{"signing": {"p12": "x", "password": "hunter2hunter2", "profiles": "hunter2hunter2"}}"#,
        r#"{"signing": {"p12": "x", "hunter2hunter2": "x"}}"#,
        r#"{"signing": "hunter2hunter2"}"#,
    ] {
        let error = serde_json::from_str::<SubmitSpec>(wrong).expect_err(wrong).to_string();
        assert!(
            !error.contains("hunter2") && !error.contains("4711") && error.contains("`signing`"),
            "{error}"
        );
    }
    let sent = SubmitSpec {
        signing: Some(spec(b"p12", "hunter2", &[b"profile".to_vec()])),
        ..SubmitSpec::default()
    };
    let json = serde_json::to_string(&sent).expect("json");
    assert_eq!(serde_json::from_str::<SubmitSpec>(&json).expect("the same"), sent);
    assert!(!format!("{sent:?}").contains("hunter2"));
    assert_eq!(serde_json::to_string(&SubmitSpec::default()).expect("json"), "{}");
}

#[test]
fn what_is_kept_of_it_comes_back_whole_and_is_no_variable_of_a_step() {
    let lab = Materials::new();
    let (certificate, profile) = made(&lab);
    let checked = signing::check(
        &spec(&lab.p12(&certificate, PASSWORD, true), PASSWORD, std::slice::from_ref(&profile)),
        now(),
    )
    .expect("fine");
    let (p12, keychain) = (checked.kit.p12.clone(), checked.kit.keychain_password.clone());
    let mut values = BTreeMap::from([("TOKEN".to_owned(), SecretString::from("value"))]);
    let signer = vault::keep(checked, &mut values);
    let kit = vault::kit(&signer, &values).expect("whole");
    assert_eq!((&*kit.p12, &kit.profiles), (&*p12, &vec![(UUID.to_owned(), profile)]));
    assert_eq!(vault::variables(&values).map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["TOKEN"]);
    let masked: Vec<&str> = vault::unspeakable(&values).map(|value| value.expose_secret()).collect();
    for secret in [PASSWORD, keychain.expose_secret(), kit.p12_password.expose_secret(), "value"] {
        assert!(masked.contains(&secret));
    }
    assert_eq!(masked.len(), 4, "no file");
    for name in values.keys().filter(|name| *name != "TOKEN").cloned().collect::<Vec<_>>() {
        let mut some = values.clone();
        some.remove(&name);
        let whole = name == "signing/password";
        assert_eq!(vault::kit(&signer, &some).is_some(), whole, "without {name}");
    }
}
