//! Where a source comes from, and what must not be seen of a build's secrets. In the shared house.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use preheat::build::spec::BuildResult;
use preheat::ids::BuildId;

use crate::house::{HOLD, all_processes, command_line, contains, err, out, shared, until};
use crate::projects::tiny;

const SCRIPT: &str = "#!/bin/sh\necho built from $(ls | tr '\\n' ' ')\n";
const FILE: &str = "pool = \"linux\"\nsteps = [\"./build.sh\"]\n";

/// One folder at the top, as GitHub's tarballs have it.
fn tarball(at: &Path) -> PathBuf {
    let path = at.join("app-1.0.tar.gz");
    let file = fs::File::create(&path).expect("made");
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    for (name, text, mode) in [("build.sh", SCRIPT, 0o755), (".preheat.toml", FILE, 0o644)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, format!("app-1.0/{name}"), text.as_bytes()).expect("written");
    }
    tar.into_inner().and_then(GzEncoder::finish).expect("whole");
    path
}

fn zipped(at: &Path) -> PathBuf {
    let path = at.join("app.zip");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).expect("made"));
    for (name, text, mode) in [("build.sh", SCRIPT, 0o755), (".preheat.toml", FILE, 0o644)] {
        let options = zip::write::SimpleFileOptions::default().unix_permissions(mode);
        zip.start_file(name, options).expect("begun");
        zip.write_all(text.as_bytes()).expect("written");
    }
    zip.finish().expect("whole");
    path
}

#[test]
fn a_tarball_with_one_folder_and_a_zip_are_built() {
    let house = shared();
    let sources = [tarball(house.dir()), zipped(house.dir())];
    let ids = sources.map(|source| house.submit(&[&source.display().to_string()]));
    for id in ids {
        let build = house.over(id);
        assert_eq!(build.result, Some(BuildResult::Success), "{build:?}: {:#?}", house.log(id));
        assert!(house.log(id).iter().any(|line| line.text == "built from build.sh"), "{:#?}", house.log(id));
    }
}

/// Files below the folder that hold the text. Those with other names elsewhere are the image's, from before the build.
fn holding(folder: &Path, text: &str) -> Vec<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.is_file() && meta.nlink() == 1 {
                let bytes = fs::read(entry.path()).unwrap_or_default();
                found.extend(contains(&bytes, text.as_bytes()).then(|| entry.path()));
            }
        }
    }
    found
}

#[test]
fn a_secret_is_used_in_the_step_and_seen_nowhere_else() {
    let house = shared();
    let secret = format!("hunter2-{}", BuildId(u64::from(house.pid())).0 ^ 0x5eed_5eed_5eed);
    let step = format!("printf %s \"$DEPLOY_KEY\" | sha256sum; echo \"it is $DEPLOY_KEY.\"; {HOLD}");
    let project = tiny(house.dir());
    let newest = || house.get::<preheat::api::wire::BuildList>("builds").builds.first().map(|b| b.id.0);
    let before = newest();
    let mut run =
        house.command(&["run", &project, "--pool", "linux", "--secret", "DEPLOY_KEY", "--step", &step]);
    run.env("DEPLOY_KEY", &secret);
    let run = std::thread::spawn(move || run.output().expect("it runs"));
    let id = until("the build", || newest().filter(|id| Some(*id) != before));
    house.printed(id, "begun");
    let vm = house.view(id).vm.expect("it has one");

    let seen: Vec<String> =
        all_processes().into_iter().map(command_line).filter(|line| line.contains(&secret)).collect();
    assert!(seen.is_empty(), "on this host's command lines: {seen:?}");
    let inside = out(&house.tart(&["exec", &vm, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]));
    assert!(inside.contains("sshd") && !inside.contains(&secret), "on the guest's command lines: {inside}");
    assert_eq!(holding(&house.home(), &secret), Vec::<PathBuf>::new(), "while the build runs");
    house.release(&vm);
    let output = run.join().expect("no panic");
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));

    let digest = {
        let file = house.dir().join("secret");
        fs::write(&file, &secret).expect("written");
        crate::projects::sha256(&file)
    };
    let said = out(&output);
    assert!(said.contains(&digest), "the step had the value: {said}");
    assert!(said.contains("it is ***."), "{said}");
    assert!(!said.contains(&secret) && !err(&output).contains(&secret));
    let log = serde_json::to_string(&house.log(id)).expect("text");
    let answers = ["builds", &format!("builds/{id}"), "vms", "pools"]
        .map(|path| house.get::<serde_json::Value>(path).to_string());
    for text in answers.iter().chain([&log, &house.metrics(), &house.said()]) {
        assert!(!text.contains(&secret), "{text}");
    }
    assert_eq!(holding(&house.home(), &secret), Vec::<PathBuf>::new(), "after the build");
}

/// A way to the daemon that counts what goes there.
struct Gauge {
    url: String,
    sent: Arc<AtomicU64>,
}

impl Gauge {
    fn before(daemon: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let daemon = daemon.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let sent = Arc::new(AtomicU64::new(0));
        let counted = sent.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&daemon).expect("connected");
                let back = (server.try_clone().expect("cloned"), client.try_clone().expect("cloned"));
                let counted = counted.clone();
                std::thread::spawn(move || {
                    let (mut client, mut server) = (client, server);
                    let mut piece = vec![0; 64 << 10];
                    while let Ok(n @ 1..) = client.read(&mut piece) {
                        counted.fetch_add(n as u64, Ordering::Relaxed);
                        if server.write_all(&piece[..n]).is_err() {
                            break;
                        }
                    }
                    server.shutdown(Shutdown::Write).ok();
                });
                std::thread::spawn(move || {
                    let (mut server, mut client) = back;
                    std::io::copy(&mut server, &mut client).ok();
                    client.shutdown(Shutdown::Write).ok();
                });
            }
        });
        Self { url, sent }
    }

    /// Since it was asked last.
    fn sent(&self) -> u64 {
        self.sent.swap(0, Ordering::Relaxed)
    }
}

#[test]
fn an_unchanged_tree_is_not_sent_twice() {
    let house = shared();
    let noise: String = (0..120_000_u32).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9))).collect();
    let root = crate::projects::folder(house.dir(), "once", &[("noise", &noise), ("word", "first\n")]);
    let gauge = Gauge::before(&house.url());
    let project = root.display().to_string();
    let built = || {
        let args =
            ["--url", &gauge.url, "run", &project, "--pool", "linux", "--step", "cat word; wc -c <noise"];
        let output = house.preheat(&args);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        (out(&output), gauge.sent())
    };
    let (printed, sent) = built();
    let size = format!("{}\n", noise.len());
    assert!(printed.contains("first\n") && printed.contains(&size), "{printed}");
    assert!(sent > noise.len() as u64, "the daemon had never seen it: {sent}");
    let (again, sent) = built();
    assert!(again.contains("first\n") && again.contains(&size), "{again}");
    assert!(sent < noise.len() as u64 / 10, "{sent} bytes were sent of what was there");
    fs::write(root.join("word"), "other\n").expect("written");
    let (printed, sent) = built();
    assert!(printed.contains("other\n") && printed.contains(&size), "{printed}");
    assert!(sent > noise.len() as u64, "{sent}");
}

#[test]
fn a_shell_in_a_running_build_is_a_word_away() {
    let house = shared();
    let id = house.submit(&[&tiny(house.dir()), "--step", HOLD, "--pool", "linux"]);
    house.printed(id, "begun");
    let output = house.preheat(&["ssh", &id.to_string(), "--", "id -un"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), "admin\n"), "{}", err(&output));
    house.release(house.view(id).vm.as_deref().expect("it has one"));
    assert_eq!(house.over(id).result, Some(BuildResult::Success));
}
