//! The source in, artifacts out.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use preheat::clock::Deadline;
use preheat::guest::{Channel, Ended, Take, TakeError, Taken};

use crate::sshd::{PATIENT, Sshd, eventually, sh};

fn fill(path: &Path, bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_u32;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(bytes)
    .collect();
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, &content).expect("written");
    content
}

struct Out {
    dir: tempfile::TempDir,
    taken: Result<Vec<Taken>, TakeError>,
}

async fn take(channel: &Arc<dyn Channel>, globs: &[&str], bytes_max: u64) -> Out {
    let dir = tempfile::tempdir().expect("a folder");
    let globs = globs.iter().map(|g| (*g).to_owned()).collect();
    let take = Take { globs, into: dir.path().to_owned(), bytes_max, deadline: Deadline::after(PATIENT) };
    let taken = channel.take(&take).await;
    Out { dir, taken }
}

impl Out {
    fn names(&self) -> Vec<&str> {
        self.taken.as_ref().expect("taken").iter().map(|t| t.path.as_str()).collect()
    }
}

#[tokio::test]
async fn a_tree_of_three_thousand_files_goes_in() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let dir = tempfile::tempdir().expect("a folder");
    for i in 0..3_000 {
        fill(&dir.path().join(format!("tree/{}/file {i}", i % 50)), 100 + i % 700);
    }
    let tar_path = dir.path().join("tree.tar");
    let mut tar = tar::Builder::new(fs::File::create(&tar_path).expect("made"));
    tar.append_dir_all(".", dir.path().join("tree")).expect("packed");
    tar.finish().expect("packed");
    let sent = channel.put_tree(&tar_path, Deadline::after(PATIENT)).await.expect("sent");
    assert_eq!(sent, fs::metadata(&tar_path).expect("there").len());
    let differ =
        Command::new("diff").arg("-r").arg(dir.path().join("tree")).arg(sshd.home().join("work")).status();
    assert!(differ.expect("diff").success());

    fs::write(&tar_path, vec![b'x'; 4096]).expect("written");
    let fault = channel.put_tree(&tar_path, Deadline::after(PATIENT)).await.expect_err("no tar");
    assert!(fault.text.contains("tar in the guest ended with"), "{fault}");
    let fault =
        channel.put_tree(&dir.path().join("absent"), Deadline::after(PATIENT)).await.expect_err("absent");
    assert!(fault.text.contains("absent"), "{fault}");
}

#[tokio::test]
async fn the_source_goes_in_whatever_became_of_its_folder_and_its_receiver() {
    let sshd = Sshd::started();
    let dir = tempfile::tempdir().expect("a folder");
    let tar_path = dir.path().join("tree.tar");
    fill(&dir.path().join("tree/file"), 100);
    let mut tar = tar::Builder::new(fs::File::create(&tar_path).expect("made"));
    tar.append_dir_all(".", dir.path().join("tree")).expect("packed");
    tar.finish().expect("packed");

    let channel = sshd.channel().await;
    let replaced = sh(&channel, "cd && rm -rf work && mkdir -p work").await;
    assert_eq!(replaced.0, Ended::Exited(0));
    channel.put_tree(&tar_path, Deadline::after(PATIENT)).await.expect("sent");
    assert!(sshd.home().join("work/file").exists());

    let channel = sshd.channel().await;
    fs::remove_dir_all(sshd.home().join("work")).expect("removed");
    sshd.kill_commands();
    channel.put_tree(&tar_path, Deadline::after(PATIENT)).await.expect("sent");
    assert!(sshd.home().join("work/file").exists());
}

#[tokio::test]
async fn artifacts_come_out_as_they_are() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let work = sshd.work();
    let large = fill(&work.join("out/big one.ipa"), (20 << 20) + 12_345);
    let edge = fill(&work.join("out/edge.ipa"), 8 << 20);
    let small = fill(&work.join("out/deep/er/small.txt"), 1_000);
    fill(&work.join("out/empty"), 0);
    fill(&work.join("other/no"), 10);
    fs::set_permissions(work.join("out/big one.ipa"), fs::Permissions::from_mode(0o750)).expect("set");
    fs::set_permissions(work.join("out/deep/er/small.txt"), fs::Permissions::from_mode(0o700)).expect("set");
    let out = take(&channel, &["out/**/*.ipa", "out/**/small.txt", "*/empty", "-no", "out"], 1 << 30).await;
    assert!(matches!(&out.taken, Err(TakeError::Missing { glob }) if glob == "-no"), "{:?}", out.taken);
    let out = take(&channel, &["out/**/*.ipa", "out/**/small.txt", "*/empty"], 1 << 30).await;
    assert_eq!(out.names(), ["out/big one.ipa", "out/deep/er/small.txt", "out/edge.ipa", "out/empty"]);
    for (name, content, executable) in [
        ("out/big one.ipa", large, true),
        ("out/edge.ipa", edge, false),
        ("out/deep/er/small.txt", small, true),
    ] {
        assert!(fs::read(out.dir.path().join(name)).expect("there") == content, "{name}");
        let mode = fs::metadata(out.dir.path().join(name)).expect("there").permissions().mode();
        assert_eq!(mode & 0o111 != 0, executable, "{name}");
        let sum = Command::new("sha256sum").arg(work.join(name)).output().expect("sha256sum").stdout;
        let told = out.taken.as_ref().expect("taken").iter().find(|t| t.path == name).expect("listed");
        assert!(String::from_utf8_lossy(&sum).starts_with(&told.sha256));
        assert_eq!(told.bytes, content.len() as u64);
    }
    let too_large = take(&channel, &["out"], 8 << 20).await;
    assert!(matches!(too_large.taken, Err(TakeError::TooLarge { .. })), "{:?}", too_large.taken);
    let left: Vec<_> =
        fs::read_dir(too_large.dir.path()).expect("there").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with(".preheat")), "{left:?}");
}

#[tokio::test]
async fn many_small_artifacts_come_as_one() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let work = sshd.work();
    for i in 0..3_000 {
        fill(&work.join(format!("out/a folder with a long name/{}/{i}", i % 40)), i % 900);
    }
    fs::hard_link(work.join("out/a folder with a long name/1/1"), work.join("out/linked")).expect("linked");
    let out = take(&channel, &["out"], 1 << 30).await;
    assert_eq!(out.names().len(), 3_001);
    let differ =
        Command::new("diff").arg("-r").arg(work.join("out")).arg(out.dir.path().join("out")).status();
    assert!(differ.expect("diff").success());
}

#[tokio::test]
async fn names_and_links_that_would_do_harm_do_none() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let work = sshd.work();
    fill(&work.join("out/fine"), 5);
    fill(&work.join("out/-rf"), 5);
    fill(&work.join("out/it's $(x) \"q\""), 5);
    fill(&sshd.home().join("outside/secret"), 5);
    symlink("/etc/passwd", work.join("out/link")).expect("linked");
    symlink("fine", work.join("out/inner")).expect("linked");
    symlink(sshd.home().join("outside"), work.join("out/dir")).expect("linked");
    symlink(sshd.home().join("outside"), work.join("away")).expect("linked");
    let fifo = Command::new("mkfifo").arg(work.join("out/fifo")).status();
    assert!(fifo.expect("mkfifo").success());
    let out = take(&channel, &["out", "out/*"], 1 << 20).await;
    assert_eq!(out.names(), ["out/-rf", "out/fine", "out/it's $(x) \"q\""]);
    for glob in ["away/secret", "away/*", "out/dir/secret", "out/link", "../outside/secret", "/etc/passwd"] {
        let out = take(&channel, &["out/fine", glob], 1 << 20).await;
        assert!(
            matches!(&out.taken, Err(TakeError::Missing { glob: g }) if g == glob),
            "{glob} {:?}",
            out.taken
        );
    }
    fill(&work.join("bad/two\nlines"), 5);
    let out = take(&channel, &["bad/*"], 1 << 20).await;
    assert!(
        matches!(&out.taken, Err(TakeError::Hostile { path }) if path.contains("two\\nlines")),
        "{:?}",
        out.taken
    );
}

#[tokio::test]
async fn a_source_that_was_cut_off_is_sent_again() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let dir = tempfile::tempdir().expect("a folder");
    for i in 0..100 {
        fill(&dir.path().join(format!("tree/{i}")), 2 << 20);
    }
    let tar_path = dir.path().join("tree.tar");
    let mut tar = tar::Builder::new(fs::File::create(&tar_path).expect("made"));
    tar.append_dir_all(".", dir.path().join("tree")).expect("packed");
    tar.finish().expect("packed");
    fill(&sshd.work().join("of the image"), 10);
    let sending = {
        let (channel, tar_path) = (Arc::clone(&channel), tar_path.clone());
        tokio::spawn(async move { channel.put_tree(&tar_path, Deadline::after(PATIENT)).await })
    };
    let work = sshd.work();
    eventually("some files are there", || fs::read_dir(&work).expect("there").count() > 5).await;
    assert!(!sending.is_finished());
    sshd.kill_masters();
    let sent = sending.await.expect("no panic").expect("sent");
    assert_eq!(sent, fs::metadata(&tar_path).expect("there").len());
    fs::remove_file(work.join("of the image")).expect("it is still there");
    let differ = Command::new("diff").arg("-r").arg(dir.path().join("tree")).arg(&work).status();
    assert!(differ.expect("diff").success());
}

#[tokio::test]
async fn artifacts_that_were_cut_off_are_taken_again() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let work = sshd.work();
    for i in 0..40 {
        fill(&work.join(format!("out/small {i}")), 2 << 20);
    }
    let large = fill(&work.join("out/zz large"), 60 << 20);
    let dir = tempfile::tempdir().expect("a folder");
    let into = dir.path().join("into");
    fs::create_dir(&into).expect("made");
    let taking = {
        let (channel, into) = (Arc::clone(&channel), into.clone());
        let take =
            Take { globs: vec!["out".into()], into, bytes_max: 1 << 30, deadline: Deadline::after(PATIENT) };
        tokio::spawn(async move { channel.take(&take).await })
    };
    eventually("some files are there", || fs::read_dir(into.join("out")).is_ok_and(|d| d.count() > 5)).await;
    assert!(!taking.is_finished());
    sshd.kill_masters();
    let taken = taking.await.expect("no panic").expect("taken");
    assert_eq!(taken.len(), 41);
    assert!(fs::read(into.join("out/zz large")).expect("there") == large);
    let differ = Command::new("diff").arg("-r").arg(work.join("out")).arg(into.join("out")).status();
    assert!(differ.expect("diff").success());
}
