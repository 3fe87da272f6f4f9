//! Each fault, alone, on an otherwise sound host.

use std::path::PathBuf;

use super::super::facts::HomeFacts;
use super::*;
use crate::api::wire::TroubleView;
use crate::clock::UnixMillis;
use crate::config::ByteSize;
use crate::runtime::{GuestOs, ImageInfo, Reason};

fn sound() -> Facts {
    let info = ImageInfo { os: GuestOs::Linux, cpus: 2, memory_mib: 512, identity: String::new() };
    Facts {
        config: Ok(Configured {
            pools: 1,
            home: HomeFacts {
                path: "/h".into(),
                writable: Ok(()),
                free: Some(ByteSize(100 << 30)),
                free_min: ByteSize(10 << 30),
            },
            program: "tart".into(),
            version: Ok("2.30.0".into()),
            images: vec![ImageFacts { pool: "linux".into(), image: "linux".into(), found: Ok(info) }],
            keys: vec![KeyFacts { pool: "linux".into(), path: "/h/key".into(), mode: Ok(0o100_600) }],
            listen: ([127, 0, 0, 1], 7780).into(),
            port: Port::Free,
            troubles: Vec::new(),
            control_socket: "/h/run/0".into(),
        }),
        ssh: Ok("OpenSSH_9.2".into()),
        descriptors: Some(65_536),
        host: HostFacts::Linux(LinuxFacts { qemu: Ok("7.2".into()), kvm: Ok(()) }),
    }
}

fn mac() -> MacFacts {
    MacFacts {
        session: true,
        keychain: Ok(()),
        dhcp_lease_s: Some(600),
        version: Some(14),
        root: false,
        sleep_min: Some(0),
    }
}

/// One wrong thing: what is changed, the check that must tell, and how.
type Case = (fn(&mut Configured), &'static str, Status);

/// The same for a Mac.
type MacCase = (fn(&mut MacFacts), &'static str, Status);

const CONFIGURED: [Case; 9] = [
    (|c| c.home.writable = Err("read-only".into()), "home", Status::Fail),
    (|c| c.home.free = Some(ByteSize(1 << 30)), "disk", Status::Fail),
    (|c| c.home.free = None, "disk", Status::Warn),
    (
        |c| c.version = Err(Fault::new(Reason::ProgramMissing, "tart --version", "no")),
        "runtime",
        Status::Fail,
    ),
    (|c| c.images[0].found = Err(Fault::new(Reason::ImageMissing, "tart get", "no")), "image", Status::Fail),
    (|c| c.keys[0].mode = Ok(0o100_644), "key", Status::Fail),
    (|c| c.keys[0].mode = Err("no such file".into()), "key", Status::Fail),
    (|c| c.port = Port::Taken { why: "in use".into(), hint: "api.listen".into() }, "api", Status::Fail),
    (|c| c.control_socket = PathBuf::from("/x".repeat(50)), "control socket", Status::Fail),
];

fn worst(facts: &Facts) -> Vec<Check> {
    evaluate(facts).into_iter().filter(|c| c.status != Status::Ok).collect()
}

#[test]
fn a_sound_host_has_no_complaint() {
    assert_eq!(worst(&sound()), []);
    assert_eq!(worst(&Facts { host: HostFacts::Mac(mac()), ..sound() }), []);
}

#[test]
fn each_fault_is_told_once_with_a_hint() {
    for (spoil, name, status) in CONFIGURED {
        let mut facts = sound();
        facts.config.as_mut().map(spoil).expect("configured");
        let told = worst(&facts);
        assert_eq!(told.len(), 1, "{name}: {told:?}");
        assert_eq!((told[0].check.as_str(), told[0].status), (name, status));
        assert!(told[0].hint.is_some(), "{name}");
    }
}

#[test]
fn each_fault_of_a_mac_is_told() {
    let cases: [MacCase; 6] = [
        (|m| m.session = false, "login session", Status::Fail),
        (|m| m.keychain = Err("locked".into()), "keychain", Status::Fail),
        (|m| m.dhcp_lease_s = None, "dhcp lease", Status::Warn),
        (|m| m.version = Some(15), "local network", Status::Warn),
        (|m| m.sleep_min = Some(10), "sleep", Status::Warn),
        (|m| m.sleep_min = None, "sleep", Status::Warn),
    ];
    for (spoil, name, status) in cases {
        let mut facts = mac();
        spoil(&mut facts);
        let told = worst(&Facts { host: HostFacts::Mac(facts), ..sound() });
        assert_eq!(told.iter().map(|c| (c.check.as_str(), c.status)).collect::<Vec<_>>(), [(name, status)]);
    }
}

#[test]
fn the_rest_is_told_without_a_configuration() {
    let facts = Facts {
        config: Err(vec!["a".into(), "b".into()]),
        ssh: Err("not installed".into()),
        descriptors: Some(256),
        host: HostFacts::Linux(LinuxFacts {
            qemu: Err("not installed".into()),
            kvm: Err("no such file".into()),
        }),
    };
    let told: Vec<_> = worst(&facts).into_iter().map(|c| (c.check, c.status)).collect();
    let fail = |name: &str| (name.to_owned(), Status::Fail);
    let warn = |name: &str| (name.to_owned(), Status::Warn);
    assert_eq!(
        told,
        [fail("config"), fail("config"), fail("ssh"), warn("open files"), fail("qemu"), warn("kvm")]
    );
}

#[test]
fn a_running_daemons_trouble_is_told() {
    let mut facts = sound();
    let trouble = TroubleView {
        reason: "no_route".into(),
        text: "no route".into(),
        hint: Some("allow it".into()),
        failures: 3,
        next_try_ms: UnixMillis(0),
        scope: crate::api::wire::TroubleScope::Pool,
    };
    facts.config.as_mut().expect("configured").troubles.push(("linux".into(), trouble));
    assert_eq!(worst(&facts)[0].check, "pool");
}
