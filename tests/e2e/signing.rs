//! Builds that sign: what they sign with is checked before a VM is touched, signs a real file in a guest, and is nowhere when
//! they are over. The guest's `security` and `codesign` are stand-ins, laid there by the pool's warm-up.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use preheat::api::wire::{ErrorBody, SubmitSpec};
use preheat::build::spec::BuildResult;
use preheat::clock::UnixMillis;
use secrecy::ExposeSecret as _;

use crate::house::{HOLD, House, Plan, err, out, until, wait_for};
use crate::materials::{Certificate, Materials, NAME, Profile, TEAM, UUID, Wish, bundle, openssl, spec};
use crate::projects::{folder, tiny};
use crate::secrets::Search;

/// A pool whose guests have the Mac's tools, as far as they can be stood in for.
fn plan() -> Plan {
    plan_and("true")
}

/// The same, and what else is done in a guest while it warms.
fn plan_and(more: &str) -> Plan {
    let script = include_str!("stand_in/security");
    assert!(!script.contains("'''"), "it stands between them");
    let warmup = format!(
        "sudo tee /usr/bin/security >/dev/null <<'STAND_IN'\n{script}STAND_IN\n\
         sudo chmod 755 /usr/bin/security && sudo ln -sf security /usr/bin/codesign && openssl version && {more}"
    );
    Plan::pool(1, 1).and(&format!("warmup = '''\n{warmup}\n'''\n"))
}

/// What a build signs with, on this host and outside of the house.
struct Signing {
    lab: Materials,
    certificate: Certificate,
    password: String,
    p12: Vec<u8>,
    profile: Vec<u8>,
}

impl Signing {
    fn new() -> Self {
        let lab = Materials::new();
        let certificate = lab.certificate(Wish::default());
        let profile = lab.profile(&Profile::default(), &[&certificate]);
        let password = format!("p12-{}", uuid::Uuid::new_v4().simple());
        let p12 = lab.p12(&certificate, &password, false);
        Self { lab, certificate, password, p12, profile }
    }

    fn bundle(&self) -> String {
        let zip = bundle(&self.p12, &self.password, std::slice::from_ref(&self.profile));
        self.lab.file(".zip", &zip).display().to_string()
    }

    /// Pieces of the key in each form that it may have, of the file that was sent, and the password.
    fn secrets(&self) -> Vec<Vec<u8>> {
        let key = self.certificate.key.to_str().expect("text");
        let der = openssl(&["pkey", "-in", key, "-outform", "DER"]);
        let pem = fs::read(&self.certificate.key).expect("there");
        let lines = pem.split(|byte| *byte == b'\n').skip(12).take(3).map(<[u8]>::to_vec);
        // The last primes and exponents: nothing of them is in the certificate.
        let pieces = [&der[der.len() / 2..], &self.p12[self.p12.len() / 3..]].map(piece);
        pieces.into_iter().chain(lines).chain([self.password.clone().into_bytes()]).collect()
    }
}

/// Two dozen bytes without a line's end or a zero among them.
fn piece(bytes: &[u8]) -> Vec<u8> {
    let plain = |window: &&[u8]| !window.iter().any(|byte| matches!(byte, 0 | b'\n' | b'\r'));
    bytes.windows(24).find(plain).expect("some").to_vec()
}

/// The signature is the certificate's over exactly this file.
fn verifies(signing: &Signing, file: &Path) -> bool {
    let pem = signing.certificate.pem.to_str().expect("text");
    let signature = format!("{}.signature", file.display());
    let verified = assert_cmd::Command::new("openssl")
        .args(["cms", "-verify", "-binary", "-inform", "DER", "-in", &signature, "-content"])
        .arg(file)
        .args(["-CAfile", pem, "-certfile", pem, "-purpose", "any", "-out", "/dev/null"])
        .output()
        .expect("it runs");
    verified.status.success()
}

const SIGN: &str =
    "codesign --force --sign \"$PREHEAT_SIGNING_IDENTITY\" --keychain \"$PREHEAT_KEYCHAIN\" app";

#[test]
fn a_build_signs_with_a_key_that_is_nowhere_on_the_host() {
    let signing = Signing::new();
    let house = plan().open();
    let project = folder(house.dir(), "app", &[("app", "the app\n")]).display().to_string();
    house.whole();
    let secrets = signing.secrets();
    let search = Search::of_bytes(secrets.iter().map(Vec::as_slice).collect());
    let there = format!(
        "f=\"$HOME/Library/MobileDevice/Provisioning Profiles/$PREHEAT_PROFILE_UUID_com_acme_app.mobileprovision\"\n\
         test -s \"$f\" && test {TEAM} = \"$PREHEAT_TEAM_ID\" && test {UUID} = \"$PREHEAT_PROFILE_UUID\"\n\
         security show-keychain-info \"$PREHEAT_KEYCHAIN\"; security list-keychains\n\
         env | grep -c signing/ || ls /dev/shm"
    );
    let kept = "kept-{{ pool }}=~/Library";
    let certs = signing.bundle();
    let id = house.submit(&[
        &project,
        "--pool",
        "linux",
        "--certs",
        &certs,
        "--step",
        SIGN,
        "--step",
        &there,
        "--step",
        HOLD,
        "--artifact",
        "app*",
        "--cache",
        kept,
    ]);
    house.printed(id, "begun");
    assert_eq!(search.places(&house, id), Vec::<String>::new(), "while it runs");
    house.release(house.view(id).vm.as_deref().expect("it has one"));
    let build = house.over(id);
    let log = house.log(id);
    assert_eq!(build.result, Some(BuildResult::Success), "{build:?} {log:#?}");
    assert_eq!(search.places(&house, id), Vec::<String>::new(), "when it is over");

    let said = |text: &str| log.iter().any(|line| line.text.contains(text));
    assert!(said(&format!("signing as {NAME} until ")) && said(UUID), "{log:#?}");
    assert!(said("no-timeout") && said("/login.keychain-db"), "{log:#?}");
    let phases: Vec<&str> = build.phases.iter().map(|phase| phase.phase.as_str()).collect();
    let around = |phase: &str| phases.iter().position(|name| *name == phase).expect(phase);
    assert!(around("signing") < around("step") && around("step") < around("signing_removal"), "{phases:?}");

    let fetched = signing.lab.path("");
    let fetched = fetched.to_str().expect("text");
    let done = house.preheat(&["artifacts", &id.to_string(), "--out", fetched]);
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    let app = Path::new(fetched).join("app");
    assert!(verifies(&signing, &app));
    fs::write(&app, "another app\n").expect("written");
    assert!(!verifies(&signing, &app));

    // Its cache was saved after the keychain and the profiles had gone.
    let holds = |words: &[&str]| {
        let words = words.iter().flat_map(|word| ["-e", word]);
        let found = assert_cmd::Command::new("grep")
            .arg("-rlaF")
            .args(words)
            .arg(house.home().join("caches"))
            .output();
        !out(&found.expect("it runs")).is_empty()
    };
    assert!(holds(&["stand-in-search-list"]), "the guest's ~/Library is in it");
    assert!(!holds(&["preheat.keychain", UUID]));

    the_stand_in_fails_as_a_mac_does(&house, &signing);
}

/// In the next VM of the same house: it shows that the build before was signed for good reasons.
fn the_stand_in_fails_as_a_mac_does(house: &House, signing: &Signing) {
    let sent = spec(&signing.p12, &signing.password, std::slice::from_ref(&signing.profile));
    let kit = preheat::signing::check(&sent, UnixMillis::now()).expect("fine").kit;
    let root = folder(house.dir(), "mine", &[("f", "a file\n")]);
    fs::write(root.join("id.p12"), &*kit.p12).expect("written");
    fs::write(root.join("modern.p12"), &signing.p12).expect("written");
    let step = "set -eu; k=$HOME/Library/Keychains/mine.keychain-db; mkdir -p \"${k%/*}\"\n\
        fails() { want=$1; shift; if out=$(\"$@\" 2>&1); then echo \"it went: $*\"; exit 1; fi\n\
        case $out in *\"$want\"*) ;; *) echo \"$* said $out\"; exit 1 ;; esac; }\n\
        security create-keychain -p kc \"$k\"\n\
        fails 'already exists' security create-keychain -p kc \"$k\"\n\
        fails 'MAC verification failed' security import id.p12 -k \"$k\" -P wrong -T /usr/bin/codesign\n\
        fails 'MAC verification failed' security import modern.p12 -k \"$k\" -P \"$MODERN\" -T /usr/bin/codesign\n\
        security import id.p12 -k \"$k\" -P \"$GIVEN\" -T /usr/bin/codesign\n\
        id=$(security find-identity -v -p codesigning \"$k\" | sed -n 's/.*) \\([0-9A-F]\\{40\\}\\) .*/\\1/p')\n\
        fails 'no identity found' codesign -s \"$id\" f\n\
        security list-keychains -d user -s \"$k\"\n\
        fails errSecInternalComponent codesign -s \"$id\" f\n\
        fails 'not correct' security set-key-partition-list -S apple-tool:,apple: -s -k wrong \"$k\"\n\
        security set-key-partition-list -S apple-tool:,apple: -s -k kc \"$k\" >/dev/null\n\
        codesign -s \"$id\" f\n\
        security lock-keychain \"$k\"\n\
        fails errSecInternalComponent codesign -f -s \"$id\" f\n\
        fails 'not correct' security unlock-keychain -p wrong \"$k\"\n\
        echo \"unlock-keychain -p \\\"kc\\\" '$k'\" | security -i\n\
        SSH_CONNECTION=another fails errSecInternalComponent codesign -f -s \"$id\" f\n\
        codesign -f -s \"$id\" f; echo all of it";
    let source = root.display().to_string();
    let args = ["run", &source, "--pool", "linux", "--step", step, "--secret", "GIVEN", "--secret", "MODERN"];
    let mut run = house.command(&args);
    run.env("GIVEN", kit.p12_password.expose_secret()).env("MODERN", &signing.password);
    let done = run.output().expect("it runs");
    assert!(done.status.success() && out(&done).contains("all of it"), "{} {}", out(&done), err(&done));
}

#[test]
fn a_build_goes_on_signing_when_its_daemon_was_killed() {
    let signing = Signing::new();
    let house = plan().open();
    let project = folder(house.dir(), "app", &[("app", "the app\n")]).display().to_string();
    house.whole();
    let secrets = signing.secrets();
    let search = Search::of_bytes(secrets.iter().map(Vec::as_slice).collect());
    let certs = signing.bundle();
    let id = house.submit(&[
        &project,
        "--pool",
        "linux",
        "--certs",
        &certs,
        "--step",
        HOLD,
        "--step",
        SIGN,
        "--artifact",
        "app*",
    ]);
    house.printed(id, "begun");
    house.end(Signal::SIGKILL);
    assert_eq!(search.files(&house), Vec::<String>::new(), "while nobody runs");
    house.start();
    house.release(house.view(id).vm.as_deref().expect("it has one"));
    let build = house.over(id);
    assert_eq!(
        (build.result, build.attempt),
        (Some(BuildResult::Success), 1),
        "{build:?} {:#?}",
        house.log(id)
    );
    let fetched = signing.lab.path("");
    house.preheat(&["artifacts", &id.to_string(), "--out", fetched.to_str().expect("text")]);
    assert!(verifies(&signing, &fetched.join("app")));
}

#[test]
fn a_guest_whose_security_hangs_ends_the_build_and_names_what_hung() {
    let signing = Signing::new();
    let house = plan_and("touch /tmp/stand-in-hangs-set-key-partition-list").open();
    let (project, certs) = (tiny(house.dir()), signing.bundle());
    house.whole();
    let run = house.preheat(&[
        "run",
        &project,
        "--pool",
        "linux",
        "--certs",
        &certs,
        "--step",
        "true",
        "--timeout",
        "40s",
    ]);
    assert_eq!(run.status.code(), Some(5), "{}", err(&run));
    let why = "signing: `set-key-partition-list` in the guest took longer than ";
    assert!(err(&run).contains(why), "{}", err(&run));
}

/// Sends a description as a program would; the status and the answer.
fn posted(house: &House, spec: &SubmitSpec) -> (u16, ErrorBody) {
    let source = house.dir().join("source.tar");
    let mut tar = tar::Builder::new(fs::File::create(&source).expect("made"));
    tar.append_dir_all(".", tiny(house.dir())).expect("packed");
    tar.into_inner().expect("whole");
    let form = reqwest::multipart::Form::new()
        .text("spec", serde_json::to_string(spec).expect("json"))
        .part("source", reqwest::multipart::Part::bytes(fs::read(&source).expect("there")));
    let url = format!("{}/api/v1/builds", house.url());
    wait_for(async {
        let answer = reqwest::Client::new().post(url).multipart(form).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("an error's shape"))
    })
}

#[test]
fn what_cannot_sign_is_refused_before_a_vm_is_used() {
    let house = Plan::bare("[pool.ghost]\nimage = \"nowhere\"\n").open();
    let signing = Signing::new();
    let (lab, certificate) = (&signing.lab, &signing.certificate);
    let old = lab.certificate(Wish { made: Some("2020-01-01 00:00:00"), ..Wish::default() });
    let of_old = lab.profile(&Profile::default(), &[&old]);
    let foreign = lab.profile(&Profile { team: "ZZ99ZZ99ZZ", ..Profile::default() }, &[certificate]);
    let one = std::slice::from_ref(&signing.profile);
    let cases = [
        (spec(&signing.p12, "wrong", one), "the password does not open it"),
        (spec(&lab.p12(&old, "x", true), "x", &[of_old]), "expired on 2020-10-27"),
        (spec(&signing.p12, &signing.password, &[foreign]), "is of the team ZZ99ZZ99ZZ"),
        (spec(&signing.p12, &signing.password, &[]), "there is none, and an app cannot be signed"),
    ];
    for (sent, words) in cases {
        let request = SubmitSpec {
            pool: Some("ghost".into()),
            steps: vec![preheat::api::wire::StepSpec { command: "true".into(), ..Default::default() }],
            signing: Some(sent),
            ..SubmitSpec::default()
        };
        let (status, body) = posted(&house, &request);
        let shown = format!("{body:?}");
        assert_eq!((status, body.error.code.as_str()), (422, "bad_signing"), "{shown}");
        assert!(body.error.message.contains(words) && body.error.hint.is_some(), "{words}: {shown}");
        assert!(!shown.contains(&signing.password));
    }
    // The command line says it without asking.
    let bad = lab.file(".zip", &bundle(&signing.p12, "wrong", one)).display().to_string();
    let run =
        house.preheat(&["run", &tiny(house.dir()), "--pool", "ghost", "--step", "true", "--certs", &bad]);
    assert_eq!(run.status.code(), Some(2), "{}", err(&run));
    for word in ["the password does not open it", "hint: ", &bad] {
        assert!(err(&run).contains(word), "`{word}`: {}", err(&run));
    }
    let builds: preheat::api::wire::BuildList = house.get("builds");
    assert_eq!(builds.builds, []);
    until("the spool to be empty", || {
        (fs::read_dir(house.home().join("spool")).expect("there").count() == 0).then_some(())
    });
}
