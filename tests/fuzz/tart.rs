//! What Tart prints: whatever it is, it is understood or it is a fault with a reason.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use preheat::clock::Deadline;
use preheat::config::{Network, RuntimeConfig, VerbDeadlines};
use preheat::ids::{Generation, SlotId};
use preheat::runtime::tart::{Tart, classify};
use preheat::runtime::{Fault, Parsed, Runtime, Verb, VmName};
use proptest::prelude::*;

use crate::{any_json, any_text, block_on, cases, mutated};

/// A `tart` that prints what a file says and exits as another says.
struct Puppet {
    folder: tempfile::TempDir,
    tart: Tart,
}

impl Puppet {
    fn new(out: &[u8], err: &[u8], code: u8) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("out"), out).expect("written");
        fs::write(at("err"), err).expect("written");
        // Nobody writes to a program while it is started: it is made once, and finds its texts by TART_HOME.
        let limit = Duration::from_secs(60);
        let config = RuntimeConfig {
            program: program().display().to_string(),
            tart_home: folder.path().to_owned(),
            image_keep_age: Duration::from_secs(86400),
            deadlines: VerbDeadlines { clone: limit, set: limit, stop: limit, delete: limit, query: limit },
        };
        fs::write(at("code"), code.to_string()).expect("written");
        let tart = Tart::new(&config, at("logs"));
        Self { folder, tart }
    }
}

fn program() -> &'static Path {
    static PROGRAM: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    PROGRAM.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-tart-{}", std::process::id()));
        let script = "#!/bin/sh\ncat \"$TART_HOME/out\"\ncat \"$TART_HOME/err\" >&2\nread code <\"$TART_HOME/code\"\nexit \"$code\"\n";
        fs::write(&path, script).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        path
    })
}

fn assert_has_a_reason(fault: &Fault) {
    assert!(!fault.what.is_empty() && !fault.text.is_empty(), "{fault:?}");
    assert!(fault.text.len() < 64 * 1024, "a fault of {} bytes", fault.text.len());
}

fn vm() -> VmName {
    VmName { pool: "linux".parse().expect("a name"), slot: SlotId(0), generation: Generation(1) }
}

async fn ask_everything(out: &[u8], err: &[u8], code: u8) {
    let puppet = Puppet::new(out, err, code);
    match puppet.tart.list().await {
        Ok(rows) => assert!(code == 0 && rows.len() <= out.len()),
        Err(fault) => assert_has_a_reason(&fault),
    }
    match puppet.tart.image("linux").await {
        Ok(_) => assert_eq!(code, 0),
        Err(fault) => assert_has_a_reason(&fault),
    }
    if code == 0 {
        match puppet.tart.address(&vm(), &Network::Nat, Deadline::after(Duration::ZERO)).await {
            Ok(ip) => assert_eq!(String::from_utf8_lossy(out).trim().parse::<IpAddr>().ok(), Some(ip)),
            Err(fault) => assert_has_a_reason(&fault),
        }
    }
    for ended in [puppet.tart.stop(&vm()).await, puppet.tart.delete(&vm()).await] {
        if let Err(fault) = ended {
            assert_has_a_reason(&fault);
        }
    }
    puppet.tart.version().await.ok();
    assert!(puppet.folder.path().join("out").is_file());
}

const LIST: &str = r#"[{"Source":"local","Name":"preheat-linux-0-1","Disk":20,"Size":3,"Accessed":"2026-02-03T04:05:06Z","Running":true,"State":"running"},{"Source":"OCI","Name":"r/x:1","Running":false,"State":"stopped"}]"#;
const GET: &str = r#"{"OS":"linux","CPU":4,"Memory":4096,"Disk":20,"DiskFormat":"raw","Size":"3.1","Display":"1024x768","Running":false,"State":"stopped"}"#;

fn answer() -> impl Strategy<Value = Vec<u8>> {
    let rows = any_json().prop_flat_map(|value| {
        let row = |field: &str| {
            let mut row: serde_json::Value = serde_json::from_str(GET).expect("JSON");
            row[field] = value.clone();
            row.to_string().into_bytes()
        };
        prop::sample::select(vec![
            row("OS"),
            row("CPU"),
            row("Memory"),
            row("State"),
            format!("[{value}]").into_bytes(),
        ])
    });
    prop_oneof![
        mutated(LIST.into()),
        mutated(GET.into()),
        rows,
        any_json().prop_map(|json| json.to_string().into_bytes()),
        prop::collection::vec(any::<u8>(), 0..100),
        (1..200_000_usize).prop_map(|n| b"[".repeat(n)),
        (1..20_000_usize).prop_map(|n| br#"{"a":"#.repeat(n)),
        "(127\\.0\\.0\\.1|::1|fe80::1%en0|0x7f|999\\.1\\.1\\.1)[ \n\0]{0,2}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn whatever_tart_prints_is_understood_or_a_fault(out in answer(), err in answer(), code in prop::sample::select(&[0_u8, 0, 0, 1, 2, 64, 255])) {
        block_on(ask_everything(&out, &err, code));
    }
}

proptest! {
    #![proptest_config(cases(1))]

    #[test]
    fn whatever_tart_says_of_a_failure_has_a_reason(code in any::<Option<i32>>(), text in prop::collection::vec(any_text(), 0..8)) {
        for verb in [Verb::Clone, Verb::Run, Verb::Ip, Verb::List] {
            assert_has_a_reason(&classify(verb, code, &text.join("\n")));
        }
    }

    #[test]
    fn a_name_is_ours_only_when_we_would_give_it(name in prop_oneof![any_text(), "(preheat-)?[a-z0-9-]{0,12}-[0-9+ ]{0,7}-[0-9]{0,21}", "preheat-\\PC{0,20}"]) {
        if let Parsed::Ours(vm) = VmName::parse(&name) {
            prop_assert_eq!(vm.to_string(), name);
        }
    }
}
