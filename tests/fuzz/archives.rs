//! Sources as archives: what is written is one file where it belongs, within its bounds; and what it holds, unpacked by the
//! system's own `tar`, stays in its folder.

use std::io::{Cursor, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use preheat::build::archive::{ArchiveError, Limits, normalise};
use proptest::prelude::*;
use tar::EntryType;

use crate::surroundings::Surroundings;
use crate::{any_text, cases, mutated};

const LIMITS: Limits = Limits { entries_max: 12, bytes_max: 4096 };

#[derive(Debug, Clone)]
struct Entry {
    name: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    content: Vec<u8>,
    /// What the header says, where it lies.
    size: Option<u64>,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        5 => prop::sample::select(&["a", "b", "A", "d", "l", ".", "..", "", "x", "e\u{301}", "\u{e9}", ".preheat.toml", "C:", "a\\..\\b"]).prop_map(str::to_owned),
        1 => any_text(),
    ];
    prop_oneof![
        8 => prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/").into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..120),
        1 => (100..400_usize).prop_map(|n| b"long/".repeat(n / 5)),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![4 => Just(b'0'), 3 => Just(b'2'), 3 => Just(b'1'), 2 => Just(b'5'), 2 => prop::sample::select(b"\x00346 7SLKVxgXAN".to_vec())];
    let content =
        prop_oneof![prop::collection::vec(any::<u8>(), 0..40), (0..3000_usize).prop_map(|n| vec![0; n])];
    let size = prop_oneof![9 => Just(None), 1 => any::<u64>().prop_map(Some)];
    (name(), kind, name(), content, size).prop_map(|(name, kind, link, content, size)| Entry {
        name,
        kind,
        link,
        content,
        size,
    })
}

/// By hand, as the library would refuse to write most of it.
fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        for (kind, long) in [(b'L', &entry.name), (b'K', &entry.link)] {
            if long.len() > 99 {
                let mut head = tar::Header::new_gnu();
                head.as_mut_bytes()[..13].copy_from_slice(b"././@LongLink");
                head.set_entry_type(EntryType::new(kind));
                head.set_size(long.len() as u64 + 1);
                head.set_cksum();
                tar.append(&head, [long.as_slice(), b"\0"].concat().as_slice()).expect("in memory");
            }
        }
        let mut head = tar::Header::new_gnu();
        let fit = |bytes: &[u8]| bytes[..bytes.len().min(99)].to_vec();
        head.as_mut_bytes()[..fit(&entry.name).len()].copy_from_slice(&fit(&entry.name));
        head.as_mut_bytes()[157..157 + fit(&entry.link).len()].copy_from_slice(&fit(&entry.link));
        head.set_entry_type(EntryType::new(entry.kind));
        head.set_mode(0o644);
        head.set_size(entry.size.unwrap_or(entry.content.len() as u64));
        head.set_cksum();
        tar.append(&head, entry.content.as_slice()).expect("in memory");
    }
    tar.into_inner().expect("in memory")
}

fn zip_of(entries: &[Entry]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for entry in entries {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let mode = match entry.kind {
            b'2' => 0o120_777,
            b'5' => 0o040_755,
            b'6' => 0o010_644,
            _ => 0o100_644,
        };
        let options = zip::write::SimpleFileOptions::default().unix_permissions(mode);
        let made = match entry.kind {
            b'2' => zip.add_symlink(name, String::from_utf8_lossy(&entry.link), options),
            b'5' => zip.add_directory(name, options),
            _ => zip.start_file(name, options),
        };
        // A name twice is refused by the library.
        if made.is_ok() && !matches!(entry.kind, b'2' | b'5') {
            zip.write_all(&entry.content).expect("in memory");
        }
    }
    zip.finish().expect("in memory").into_inner()
}

fn packed(tar: Vec<u8>, how: u8) -> Vec<u8> {
    match how {
        0 => tar,
        1 => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&tar).and_then(|()| gzip.finish()).expect("in memory")
        }
        _ => zstd::encode_all(tar.as_slice(), 1).expect("in memory"),
    }
}

/// Makes it plain, and unpacks what came of it.
fn assert_stays_inside(bytes: &[u8]) {
    let here = Surroundings::new();
    let inside = here.inside();
    std::fs::write(inside.join("in"), bytes).expect("written");
    let made = normalise(&inside.join("in"), &inside.join("out.tar"), LIMITS);
    let names = here.names();
    assert!(here.is_untouched(), "something was written outside");
    match made {
        Ok(summary) => {
            assert_eq!(names, [Path::new("in"), Path::new("out.tar")]);
            assert!(summary.bytes <= LIMITS.bytes_max && summary.files <= LIMITS.entries_max);
            std::fs::create_dir(inside.join("tree")).expect("made");
            unpack(&inside);
            assert!(here.is_untouched(), "its own tar leads outside");
            assert_leads_nowhere(&inside.join("tree"), &inside.join("tree"));
        }
        Err(error) => {
            assert_eq!(names, [Path::new("in")], "whole or not at all: {error}");
            assert!(
                !matches!(error, ArchiveError::Host(_)),
                "the sender's fault is taken for ours: {error:?}"
            );
            let text = error.to_string();
            assert!(!text.chars().any(char::is_control), "a terminal would obey: {text:?}");
        }
    }
}

/// As the guest does it. A name too long for a file system is refused there; where it writes is what matters here.
fn unpack(inside: &Path) {
    let mut tar = Command::new("tar");
    tar.args(["-xf", "../out.tar"]).current_dir(inside.join("tree")).stderr(Stdio::null());
    tar.status().expect("tar runs");
}

/// Every link that leads anywhere leads into the tree.
fn assert_leads_nowhere(tree: &Path, folder: &Path) {
    let tree = tree.canonicalize().expect("there");
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        if let Ok(real) = entry.path().canonicalize() {
            assert!(real.starts_with(&tree), "{} leads to {}", entry.path().display(), real.display());
        }
        if entry.file_type().expect("a kind").is_dir() {
            assert_leads_nowhere(&tree, &entry.path());
        }
    }
}

proptest! {
    #![proptest_config(cases(4))]

    #[test]
    fn no_tar_leads_out_of_its_folder(entries in prop::collection::vec(entry(), 0..8), how in 0..3_u8) {
        assert_stays_inside(&packed(tar_of(&entries), how));
    }

    #[test]
    fn no_zip_leads_out_of_its_folder(entries in prop::collection::vec(entry(), 0..8)) {
        assert_stays_inside(&zip_of(&entries));
    }

    #[test]
    fn a_damaged_archive_is_read_or_refused(
        bytes in (prop::collection::vec(entry(), 1..4), 0..4_u8)
            .prop_map(|(entries, how)| if how == 3 { zip_of(&entries) } else { packed(tar_of(&entries), how) })
            .prop_flat_map(mutated)
    ) {
        assert_stays_inside(&bytes);
    }

    #[test]
    fn noise_with_the_head_of_an_archive_is_refused(
        head in prop::sample::select(vec![&b"\x1f\x8b\x08\0"[..], b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PK\x05\x06", b""]),
        rest in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        assert_stays_inside(&[head, &rest].concat());
    }
}
