//! Caches out of one guest and into another: what belongs to them comes whole, what does not goes nowhere.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use preheat::clock::Deadline;
use preheat::guest::{Channel, PutCache, TakeCache, TakeError, TakenCache};
use preheat::runtime::{Fault, Reason};
use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::sshd::{PATIENT, Sshd, eventually};

const PODS: &str = "work/Pods";
const HOME: &str = ".cocoapods";

fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, content).expect("written");
}

fn paths(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn take(
    channel: &Arc<dyn Channel>,
    names: &[&str],
    into: &Path,
    bytes_max: u64,
) -> Result<TakenCache, TakeError> {
    let deadline = Deadline::after(PATIENT);
    channel.take_cache(&TakeCache { paths: paths(names), into: into.to_owned(), bytes_max, deadline }).await
}

async fn put(channel: &Arc<dyn Channel>, names: &[&str], tar: &Path) -> Result<u64, Fault> {
    let deadline = Deadline::after(PATIENT);
    channel.put_cache(&PutCache { tar: tar.to_owned(), paths: paths(names), deadline }).await
}

/// A guest with a cache in it.
fn filled() -> Sshd {
    let sshd = Sshd::started();
    let pods = sshd.work().join("Pods");
    for i in 0..300 {
        write(&pods.join(format!("pod {}/file {i}", i % 7)), format!("content {i}"));
    }
    write(&pods.join("run.sh"), "#!/bin/sh\n");
    fs::set_permissions(pods.join("run.sh"), fs::Permissions::from_mode(0o775)).expect("set");
    symlink("run.sh", pods.join("link")).expect("made");
    symlink("/nowhere/at/all", pods.join("away")).expect("made");
    fs::create_dir(pods.join("empty")).expect("made");
    fs::create_dir(pods.join("sealed")).expect("made");
    write(&pods.join("sealed/file"), "as in a cache of modules");
    fs::set_permissions(pods.join("sealed"), fs::Permissions::from_mode(0o555)).expect("set");
    write(&sshd.home().join(".cocoapods/repos/trunk"), "index");
    write(&sshd.work().join("main.swift"), "source");
    sshd
}

fn same(one: &Path, other: &Path) {
    let differ = Command::new("diff").args(["-r", "--no-dereference"]).arg(one).arg(other).output();
    let differ = differ.expect("diff");
    assert!(differ.status.success(), "{}", String::from_utf8_lossy(&differ.stdout));
}

/// What a guest has beside its caches is as it was: no file of a transfer is left.
fn no_rest(sshd: &Sshd) {
    let mut folders = vec![sshd.home().join(".preheat")];
    let mut rest: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if path.to_string_lossy().contains("/cache-") {
                rest.push(path);
            }
        }
    }
    assert_eq!(rest, Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_cache_comes_out_of_one_guest_and_into_another_as_it_was() {
    let dir = tempfile::tempdir().expect("a folder");
    let tar = dir.path().join("cache.tar");
    let one = filled();
    let channel = one.channel().await;
    let taken = take(&channel, &[PODS, HOME, "work/absent"], &tar, 1 << 30).await.expect("taken");
    let content = fs::read(&tar).expect("written");
    let sum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((taken.bytes, &taken.sha256), (content.len() as u64, &sum));
    assert_eq!(taken.absent, ["work/absent"]);

    let other = Sshd::started();
    write(&other.work().join("main.swift"), "another source");
    let channel = other.channel().await;
    assert_eq!(put(&channel, &[PODS, HOME, "work/absent"], &tar).await.expect("put"), taken.bytes);
    same(&one.work().join("Pods"), &other.work().join("Pods"));
    same(&one.home().join(HOME), &other.home().join(HOME));
    let mode = |name: &str| fs::metadata(other.work().join("Pods").join(name)).expect("there").mode() & 0o777;
    assert_eq!((mode("run.sh"), mode("sealed")), (0o775, 0o555));
    let age = |sshd: &Sshd| fs::metadata(sshd.work().join("Pods/run.sh")).expect("there").mtime();
    assert_eq!(age(&one), age(&other), "tools go by times");
    assert_eq!(fs::read(other.work().join("main.swift")).expect("there"), b"another source");
    no_rest(&other);
}

#[tokio::test]
async fn what_an_image_brings_along_stays_under_the_cache() {
    let dir = tempfile::tempdir().expect("a folder");
    let tar = dir.path().join("cache.tar");
    let one = filled();
    write(&one.work().join("tool"), "the cache's");
    let names = [PODS, HOME, "work/tool"];
    take(&one.channel().await, &names, &tar, 1 << 30).await.expect("taken");
    let other = Sshd::started();
    write(&other.home().join(".cocoapods/repos/trunk"), "old");
    write(&other.home().join(".cocoapods/repos/mirror"), "the image's");
    write(&other.work().join("tool/folder/file"), "a folder in its place");
    put(&other.channel().await, &names, &tar).await.expect("put");
    let read = |name: &str| fs::read_to_string(other.home().join(name)).expect("there");
    assert_eq!(read(".cocoapods/repos/trunk"), "index");
    assert_eq!(read(".cocoapods/repos/mirror"), "the image's");
    assert_eq!(read("work/tool"), "the cache's");
    same(&one.work().join("Pods"), &other.work().join("Pods"));
    no_rest(&other);
}

#[tokio::test]
async fn too_much_and_nothing_are_told_apart() {
    let dir = tempfile::tempdir().expect("a folder");
    let tar = dir.path().join("cache.tar");
    let sshd = filled();
    let channel = sshd.channel().await;
    let none = take(&channel, &["work/absent", "neither"], &tar, 1 << 30).await;
    assert!(
        matches!(&none, Err(TakeError::Missing { glob }) if glob == "work/absent`, `neither"),
        "{none:?}"
    );
    write(&sshd.work().join("Pods/large"), vec![7; 8 << 20]);
    let large = take(&channel, &[PODS], &tar, 1 << 20).await;
    assert!(matches!(large, Err(TakeError::TooLarge { max }) if max == 1 << 20), "{large:?}");
    assert!(fs::metadata(&tar).expect("there").len() <= 1 << 20);
    take(&channel, &[HOME], &tar, 1 << 20).await.expect("the channel goes on");
}

#[tokio::test]
async fn a_name_with_anything_in_it_is_one_path() {
    let dir = tempfile::tempdir().expect("a folder");
    let tar = dir.path().join("cache.tar");
    let names = ["work/it's $(touch /tmp/never) `x`", "work/-rf", "two  words/ and more"];
    let (one, other) = (Sshd::started(), Sshd::started());
    names.iter().for_each(|name| write(&one.home().join(name).join("file"), name));
    fs::create_dir_all(one.work()).expect("made");
    take(&one.channel().await, &names, &tar, 1 << 30).await.expect("taken");
    put(&other.channel().await, &names, &tar).await.expect("put");
    for name in names {
        assert_eq!(fs::read_to_string(other.home().join(name).join("file")).expect("there"), name);
    }
    no_rest(&other);
}

/// Name, kind, content, target.
type Entry<'a> = (&'a str, EntryType, &'a [u8], &'a str);

fn tar_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, content, link) in entries {
        let mut head = tar::Header::new_gnu();
        head.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        head.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        head.set_entry_type(*kind);
        head.set_size(content.len() as u64);
        head.set_mode(0o755);
        head.set_cksum();
        tar.append(&head, *content).expect("written");
    }
    tar.into_inner().expect("written")
}

/// A guest that saves a cache may be anybody's: in a later one it gets to the cache's own paths and nowhere else.
#[tokio::test]
async fn a_hostile_tar_writes_nowhere_but_to_the_paths_of_its_cache() {
    let dir = tempfile::tempdir().expect("a folder");
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).expect("made");
    let away = outside.display().to_string();
    let (file, link, hard) = (EntryType::Regular, EntryType::Symlink, EntryType::Link);
    let key = "../../.ssh/authorized_keys";
    let through = format!("{away}/from-absolute");
    let cases: Vec<Vec<Entry<'_>>> = vec![
        vec![("work/main.swift", file, b"evil", "")],
        vec![(".profile", file, b"evil", ""), ("./.ssh/authorized_keys", file, b"evil", "")],
        vec![("../escaped", file, b"evil", ""), ("../../escaped", file, b"evil", "")],
        vec![("work/Pods/../../.profile", file, b"evil", "")],
        vec![(through.as_str(), file, b"evil", "")],
        vec![("work/Pods", link, b"", away.as_str()), ("work/Pods/file", file, b"evil", "")],
        vec![("work", link, b"", away.as_str()), ("work/Pods/file", file, b"evil", "")],
        vec![("work", link, b"", "../../work"), ("work/main.swift", file, b"evil", "")],
        vec![("work/Pods/a", hard, b"", key), ("work/Pods/a", file, b"evil", "")],
        vec![("work/Pods", link, b"", "../main.swift")],
    ];
    for entries in cases {
        let tar = dir.path().join("hostile.tar");
        fs::write(&tar, tar_of(&entries)).expect("written");
        let sshd = Sshd::started();
        write(&sshd.work().join("main.swift"), "source");
        write(&sshd.home().join(".profile"), "");
        write(&sshd.home().join(".ssh/authorized_keys"), "keys");
        // Whether the guest's tar refuses it or not.
        put(&sshd.channel().await, &[PODS], &tar).await.ok();
        let read = |name: &str| fs::read_to_string(sshd.home().join(name)).unwrap_or_default();
        assert_eq!(read("work/main.swift"), "source", "{entries:?}");
        assert_eq!(
            (read(".profile").as_str(), read(".ssh/authorized_keys").as_str()),
            ("", "keys"),
            "{entries:?}"
        );
        assert_eq!(fs::read_dir(&outside).expect("there").count(), 0, "{entries:?}");
        assert!(!sshd.home().join("escaped").exists() && !sshd.dir.path().join("escaped").exists());
        let work: Vec<_> =
            fs::read_dir(sshd.work()).expect("there").flatten().map(|e| e.file_name()).collect();
        assert!(work.iter().all(|name| name == "main.swift" || name == "Pods"), "{entries:?}: {work:?}");
    }
}

#[tokio::test]
async fn a_tar_that_is_broken_or_cut_off_puts_nothing_in_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let tar = dir.path().join("cache.tar");
    let one = filled();
    write(&one.work().join("Pods/large"), vec![7; 8 << 20]);
    take(&one.channel().await, &[PODS], &tar, 1 << 30).await.expect("taken");
    let whole = fs::read(&tar).expect("there");
    let other = Sshd::started();
    let channel = other.channel().await;
    // In the middle of the large file: a cut between two files is nothing to some tars, and is found by the host.
    for broken in [&whole[..whole.len() / 2], &[b'x'; 4096][..]] {
        fs::write(&tar, broken).expect("broken");
        let fault = put(&channel, &[PODS], &tar).await.expect_err("broken");
        assert_eq!(fault.reason, Reason::TransferFailed, "{fault}");
        assert!(!other.work().join("Pods").exists());
        no_rest(&other);
    }
    fs::write(&tar, &whole).expect("whole");
    put(&channel, &[PODS], &tar).await.expect("put");
    same(&one.work().join("Pods"), &other.work().join("Pods"));
}

#[tokio::test]
async fn a_cache_that_was_cut_off_goes_over_the_next_connection_whole() {
    let dir = tempfile::tempdir().expect("a folder");
    let tar = dir.path().join("cache.tar");
    let one = filled();
    for i in 0..60 {
        write(&one.work().join(format!("Pods/large {i}")), vec![u8::try_from(i).expect("small"); 3 << 20]);
    }
    let channel = one.channel().await;
    let taking = {
        let (channel, tar) = (Arc::clone(&channel), tar.clone());
        tokio::spawn(async move { take(&channel, &[PODS], &tar, 1 << 30).await })
    };
    let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    eventually("some of it is there", || size(&tar) > 4 << 20).await;
    assert!(!taking.is_finished());
    one.kill_masters();
    let taken = taking.await.expect("no panic").expect("taken");
    assert_eq!(taken.bytes, size(&tar));

    let other = Sshd::started();
    let channel = other.channel().await;
    let putting = {
        let (channel, tar) = (Arc::clone(&channel), tar.clone());
        tokio::spawn(async move { put(&channel, &[PODS], &tar).await })
    };
    let begun = || fs::read_dir(other.home().join(".preheat")).into_iter().flatten().flatten();
    let unpacks = || {
        begun().any(|e| {
            e.path().join("work/Pods/run.sh").exists() || e.path().join("work/Pods/large 1").exists()
        })
    };
    eventually("some of it is there", unpacks).await;
    assert!(!putting.is_finished());
    other.kill_masters();
    putting.await.expect("no panic").expect("put");
    same(&one.work().join("Pods"), &other.work().join("Pods"));
    no_rest(&other);
}
