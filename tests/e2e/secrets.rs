//! A planted secret: during a build that does its worst with it, and after it, it is found nowhere on the host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use preheat::api::wire::LogStream;
use preheat::build::spec::BuildResult;

use crate::house::{HOLD, House, Plan, all_processes, command_line, contains, err, out, wait_for};
use crate::projects::tiny;

/// For one search of all files, disks of guests among them. It takes about a second.
const SEARCH: Duration = Duration::from_secs(120);

/// In no file and no text of ours by chance: it is put together at run time.
fn planted(tag: &str) -> String {
    format!("{tag}-{}", uuid::Uuid::new_v4().simple())
}

/// As the guest's `base64` prints it, without what depends on what follows.
fn base64(text: &str) -> String {
    let mut encoder = assert_cmd::Command::new("base64");
    let encoded = encoder.arg("-w0").write_stdin(text).output().expect("it runs");
    out(&encoded)[..text.len() / 3 * 4].to_owned()
}

/// Values that must be nowhere. None has a line's end in it.
pub struct Search<'a> {
    values: Vec<&'a [u8]>,
    /// A file of several links that was last written before this cannot have them: the image's layers, large and linked
    /// from the cache.
    since: SystemTime,
}

impl<'a> Search<'a> {
    /// For texts.
    pub fn of(values: &[&'a str]) -> Self {
        Self::of_bytes(values.iter().map(|value| value.as_bytes()).collect())
    }

    /// For what need not be text.
    pub fn of_bytes(values: Vec<&'a [u8]>) -> Self {
        // By the clock that the files have.
        let since = tempfile::tempfile().and_then(|file| file.metadata()?.modified()).expect("a file");
        Self { values, since }
    }

    /// Files that may have been written since then, each once, whatever its links.
    fn changed(&self, dir: &Path, seen: &mut BTreeSet<(u64, u64)>) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                paths.extend(self.changed(&entry.path(), seen));
            } else if meta.is_file()
                && (meta.nlink() == 1 || meta.modified().is_ok_and(|at| at >= self.since))
                && seen.insert((meta.dev(), meta.ino()))
            {
                paths.push(entry.path());
            }
        }
        paths
    }

    /// Files of the house that have a value in them. `grep` looks: a disk is many times too large for an unoptimised build.
    /// The values go over its stdin, because arguments are searched too.
    pub fn files(&self, house: &House) -> Vec<String> {
        let paths = self.changed(house.dir(), &mut BTreeSet::new());
        assert!(paths.iter().any(|path| path.ends_with("journal.sqlite-wal")), "{paths:?}");
        let searched = assert_cmd::Command::new("grep")
            .env("LC_ALL", "C")
            .args(["--text", "--files-with-matches", "--fixed-strings", "--file=-", "--"])
            .args(&paths)
            .write_stdin(self.values.join(&b"\n"[..]))
            .timeout(SEARCH)
            .output()
            .expect("it runs");
        // A VM that goes takes its files with it; nothing else may stay unread.
        let unread: Vec<_> =
            err(&searched).lines().filter(|why| !why.contains("No such file")).map(str::to_owned).collect();
        assert!(unread.is_empty() && searched.status.code().is_some(), "{unread:?} {searched:?}");
        out(&searched).lines().map(str::to_owned).collect()
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        self.values.iter().any(|value| contains(bytes, value))
    }

    /// Every place on this host that has a value, by its name: files, what processes were started with, what the API says.
    pub fn places(&self, house: &House, build: u64) -> Vec<String> {
        let mut found = self.files(house);
        for pid in all_processes() {
            let line = command_line(pid);
            if self.is_in(line.as_bytes()) {
                found.push(format!("arguments of {line}"));
            }
        }
        for (pid, line) in house.processes() {
            if self.is_in(&fs::read(format!("/proc/{pid}/environ")).unwrap_or_default()) {
                found.push(format!("environment of {line}"));
            }
        }
        found.extend(
            pages(house, build).into_iter().filter(|page| self.is_in(page.1.as_bytes())).map(|p| p.0),
        );
        found
    }
}

/// All that the API says.
fn pages(house: &House, build: u64) -> Vec<(String, String)> {
    let of_build = ["", "/artifacts", "/log?follow=false"].map(|page| format!("api/v1/builds/{build}{page}"));
    let others =
        ["api/v1/builds", "api/v1/pools", "api/v1/vms", "api/v1/status", "metrics", "healthz", "readyz"];
    let all = of_build.into_iter().chain(others.map(str::to_owned));
    let fetched = all.map(|page| {
        let answer = wait_for(async { reqwest::get(format!("{}/{page}", house.url())).await?.text().await });
        (page, answer.expect("an answer"))
    });
    let mut pages: Vec<_> = fetched.collect();
    let mut refused = |method, page: &str| {
        let url = format!("{}/{page}", house.url());
        let sent = reqwest::Client::new().request(method, url).body("{").send();
        let answer = wait_for(async { sent.await?.text().await });
        pages.push((page.to_owned(), answer.expect("an answer")));
    };
    refused(reqwest::Method::POST, "api/v1/builds");
    refused(reqwest::Method::POST, "api/v1/config/reload");
    refused(reqwest::Method::GET, &format!("api/v1/builds/{build}/artifacts/none"));
    refused(reqwest::Method::GET, "api/v1/none");
    pages
}

/// What a careless build does with a secret.
const STEPS: [&str; 5] = [
    "echo whole $TOKEN; echo $TOKEN >&2",
    "printf %.8s $TOKEN; sleep 1; printf '%s\\n' ${TOKEN#????????}",
    "echo \"$KEY\"; printf '%s' \"$TOKEN\" | base64",
    // The cut after 64 KiB lies in the secret.
    "head -c 65516 /dev/zero | tr '\\0' x; printf '%s' $TOKEN; head -c 16000 /dev/zero | tr '\\0' y; echo",
    HOLD,
];

#[test]
fn a_planted_secret_is_found_nowhere_on_the_host() {
    let house = Plan::pool(1, 1).open();
    let (token, first, second) = (planted("token"), planted("first"), planted("second"));
    let key = format!("-----BEGIN KEY-----\n{first}\n{second}\n-----END KEY-----\n");
    let (mark, encoded) = (planted("mark"), base64(&token));
    let (head, tail) = (&token[..20], &token[token.len() - 20..]);
    let project = tiny(house.dir());
    house.whole();
    let search = Search::of(&[head, tail, &first, &second, &encoded]);
    let control = Search::of(&[&mark]);
    let mut submit =
        house.command(&["submit", &project, "--pool", "linux", "--secret", "TOKEN", "--secret", "KEY"]);
    let kept = format!("echo {mark} > ~/kept; sync");
    let last = "sh -c 'exit 3' || exit 7";
    for step in [kept.as_str()].into_iter().chain(STEPS).chain([last]) {
        submit.args(["--step", step]);
    }
    let submitted = submit.env("TOKEN", &token).env("KEY", &key).output().expect("it runs");
    assert_eq!(submitted.status.code(), Some(0), "{}", err(&submitted));
    let id: u64 = out(&submitted).trim().parse().expect("a number");

    house.printed(id, "begun");
    assert_eq!(search.places(&house, id), Vec::<String>::new(), "while it runs");
    // What the build writes to its guest's disk is found there, and what is in its steps in the journal: it was looked.
    let seen = control.places(&house, id);
    for place in ["/tart/vms/preheat-", "/journal.sqlite-wal"] {
        assert!(seen.iter().any(|name| name.contains(place)), "not in {place}: {seen:?}");
    }
    house.release(house.view(id).vm.as_deref().expect("it has one"));
    let build = house.over(id);
    assert_eq!(build.result, Some(BuildResult::Failure), "{build:?}");
    let followed = house.preheat(&["logs", "--follow", &id.to_string()]);
    let listed = house.preheat(&["status"]);
    assert_eq!(search.places(&house, id), Vec::<String>::new(), "when it is over");
    for said in [&submitted, &followed, &listed] {
        assert!(!search.is_in(&said.stdout) && !search.is_in(&said.stderr), "{said:?}");
    }

    // It was there to be found.
    let log = house.log(id);
    let said = |stream, text: &str| log.iter().any(|line| line.stream == stream && line.text == text);
    assert!(said(LogStream::Out, "whole ***") && said(LogStream::Err, "***"), "{log:#?}");
    assert!(log.iter().any(|line| line.text.starts_with("***y") && line.text.len() > 16000));
}

#[test]
fn a_build_with_secrets_survives_a_kill_and_leaves_nothing() {
    let house = Plan::pool(1, 1).open();
    let token = planted("token");
    let project = tiny(house.dir());
    house.whole();
    let search = Search::of(&[&token]);
    let running = house.submit(&[&project, "--pool", "linux", "--step", HOLD]);
    house.printed(running, "begun");
    // Its length proves the value, which the log would not show.
    let step = format!("test ${{#TOKEN}} = {} && echo it is $TOKEN", token.len());
    let mut submit =
        house.command(&["submit", &project, "--pool", "linux", "--secret", "TOKEN", "--step", &step]);
    let submitted = submit.env("TOKEN", &token).output().expect("it runs");
    assert_eq!(submitted.status.code(), Some(0), "{}", err(&submitted));
    let id: u64 = out(&submitted).trim().parse().expect("a number");

    house.end(Signal::SIGKILL);
    assert_eq!(search.files(&house), Vec::<String>::new(), "while nobody runs");

    house.start();
    assert_eq!(house.preheat(&["cancel", &running.to_string()]).status.code(), Some(0));
    let build = house.over(id);
    assert_eq!(build.result, Some(BuildResult::Success), "{build:?}");
    assert!(house.log(id).iter().any(|line| line.text == "it is ***"), "{:#?}", house.log(id));
    assert_eq!(search.places(&house, id), Vec::<String>::new(), "when it is over");
    let journal = rusqlite::Connection::open(house.home().join("journal.sqlite")).expect("it opens");
    let left: i64 = journal.query_row("SELECT count(*) FROM secrets", [], |row| row.get(0)).expect("counted");
    assert_eq!(left, 0, "sealed secrets of builds that are over");
}

#[test]
fn no_process_of_ours_may_write_a_core_file() {
    let house = Plan::pool(1, 1).open();
    house.whole();
    let processes = house.processes();
    assert!(processes.len() > 1, "{processes:?}");
    for (pid, line) in processes
        .into_iter()
        .chain([(nix::unistd::Pid::from_raw(house.pid().cast_signed()), "daemon".into())])
    {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("readable");
        let core = limits.lines().find(|limit| limit.starts_with("Max core file size")).expect("a line");
        let words: Vec<_> = core.split_whitespace().collect();
        assert_eq!(words[4..6], ["0", "0"], "{line}");
    }
}
