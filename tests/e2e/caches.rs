//! Caches of real builds in real guests.

use preheat::api::wire::{BuildView, CacheList, CacheRestore, CacheSave};
use preheat::build::spec::BuildResult;

use crate::house::{House, Plan, err, out, shared};
use crate::projects::folder;

/// Fetches what is not there, and says whether it had to; what was fetched says for which lock file.
const FETCH: &str = "if [ -e Pods/lib ]; then echo had $(cat Pods/lib); else echo fetched; fi; \
                     mkdir -p Pods ~/.pods/deep && cp Podfile.lock Pods/lib && echo index >~/.pods/deep/index && \
                     ln -sf ../Pods/lib Pods/link && chmod 750 Pods/lib";

fn project(house: &House, name: &str, lock: &str, step: &str) -> String {
    let file = format!(
        "project = \"{name}\"\npool = \"linux\"\nsteps = [{{ name = \"fetch\", command = '''{FETCH}''' }}, '''{step}''']\n\
         [[caches]]\nkey = \"pods-{{{{ hash 'Podfile.lock' }}}}\"\nrestore_keys = [\"pods-\"]\npaths = [\"Pods\", \"~/.pods\"]\n"
    );
    folder(house.dir(), name, &[(".preheat.toml", &file), ("Podfile.lock", lock)]).display().to_string()
}

fn fetched(house: &House, build: &BuildView) -> String {
    let log = house.log(build.id.0);
    let line = log.iter().find(|line| line.step.as_deref() == Some("fetch")).expect("a line");
    line.text.clone()
}

fn restored(build: &BuildView) -> CacheRestore {
    build.caches.first().expect("it has one").restore
}

fn saved(build: &BuildView) -> Option<CacheSave> {
    build.caches.first().expect("it has one").saved.as_ref().map(|saved| saved.result)
}

#[test]
fn the_second_build_has_what_the_first_one_fetched_and_another_lock_file_takes_the_nearest() {
    let house = shared();
    let hits =
        |result| house.metric("preheat_cache_restores_total", &[("pool", "linux"), ("result", result)]);
    let (hit, miss, prefix) = (hits("hit"), hits("miss"), hits("prefix"));
    let path = project(
        &house,
        "app",
        "one",
        "test $(stat -c %a Pods/lib) = 750 && cat Pods/link ~/.pods/deep/index",
    );
    let (first, said) = house.run(&[&path]);
    assert_eq!((restored(&first), saved(&first)), (CacheRestore::Miss, Some(CacheSave::Saved)), "{said}");
    assert_eq!(fetched(&house, &first), "fetched");
    let (key, amount) = (&first.caches[0].key, "cache pods-");
    assert!(said.contains(&format!("cache {key}: miss; saved, ")), "{said}");

    let (second, said) = house.run(&[&path]);
    assert_eq!((restored(&second), saved(&second)), (CacheRestore::Hit, None), "{said}");
    assert_eq!(fetched(&house, &second), "had one");
    assert!(said.contains(amount) && said.contains(": hit, "), "{said}");
    let phases: Vec<_> = second.phases.iter().map(|phase| phase.phase.as_str()).collect();
    assert_eq!(phases, ["queue", "probe", "source", "cache_restore", "step", "step", "teardown"]);

    let path = project(&house, "app", "two", "true");
    let (third, said) = house.run(&[&path]);
    assert_eq!((restored(&third), saved(&third)), (CacheRestore::Prefix, Some(CacheSave::Saved)), "{said}");
    assert_eq!(third.caches[0].from.as_ref(), Some(key));
    assert_eq!(fetched(&house, &third), "had one");
    assert_eq!(fetched(&house, &house.run(&[&path]).0), "had two");

    let (none, _) = house.run(&[&path, "--no-cache"]);
    assert!(none.caches.is_empty());
    assert_eq!(fetched(&house, &none), "fetched");
    let more = |before: Option<f64>| before.map(|n| n + 1.0);
    assert_eq!((hits("miss"), hits("prefix")), (more(miss), more(prefix)));
    assert_eq!(hits("hit"), hit.map(|n| n + 2.0));
}

#[test]
fn another_project_finds_nothing_and_a_failing_build_leaves_nothing() {
    let house = shared();
    let path = project(&house, "mine", "same", "true");
    house.run(&[&path]);
    let path = project(&house, "theirs", "same", "exit 3");
    let output = house.preheat(&["run", "--json", &path]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let build: BuildView = serde_json::from_slice(&output.stdout).expect("a build");
    assert_eq!((build.result, restored(&build)), (Some(BuildResult::Failure), CacheRestore::Miss));
    assert_eq!((fetched(&house, &build).as_str(), saved(&build)), ("fetched", None));
    let caches = house.get::<CacheList>("caches").caches;
    assert_eq!(caches.iter().filter(|cache| cache.project == "mine").count(), 1);
    assert!(caches.iter().all(|cache| cache.project != "theirs"), "{caches:?}");

    let listed = house.preheat(&["cache", "list", "--project", "mine"]);
    assert!(out(&listed).contains(&caches[0].key) && out(&listed).starts_with("CACHE"), "{}", out(&listed));
    let removed = house.preheat(&["cache", "remove", "--project", "mine"]);
    assert!(err(&removed).contains("1 cache(s) removed"), "{}", err(&removed));
    let path = project(&house, "mine", "same", "true");
    assert_eq!(restored(&house.run(&[&path]).0), CacheRestore::Miss);
}

#[test]
fn a_key_that_hashes_a_file_which_is_not_there_is_refused_with_its_name() {
    let house = shared();
    let file = "steps = [\"true\"]\npool = \"linux\"\n[[caches]]\nkey = \"{{ hash 'Gemfile.lock' }}\"\npaths = [\"gems\"]\n";
    let path = folder(house.dir(), "nolock", &[(".preheat.toml", file)]).display().to_string();
    let output = house.preheat(&["run", &path]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    for says in [
        ".preheat.toml:caches[0].key: `Gemfile.lock` matches no file of the source",
        "hint: globs are relative",
    ] {
        assert!(err(&output).contains(says), "{says}: {}", err(&output));
    }
}

/// The host's copy is whole on its disk whenever the daemon dies, or it is not there.
#[test]
fn a_cache_outlives_its_daemon_and_one_whose_bits_flip_is_made_anew() {
    let house = Plan::pool(1, 1).open();
    house.whole();
    let path = project(&house, "app", "one", "true");
    house.run(&[&path]);
    house.end(nix::sys::signal::Signal::SIGKILL);
    let caches = house.home().join("caches");
    std::fs::write(caches.join("partial-left.tar"), "by a crash").expect("written");
    house.start();
    house.whole();
    let (build, _) = house.run(&[&path]);
    assert_eq!(restored(&build), CacheRestore::Hit);
    assert!(!caches.join("partial-left.tar").exists());

    let entry = house.get::<CacheList>("caches").caches.remove(0);
    let tar = caches.join(format!("{}.tar", entry.id));
    let mut bytes = std::fs::read(&tar).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&tar, bytes).expect("flipped");
    let (build, said) = house.run(&[&path]);
    assert_eq!((restored(&build), saved(&build)), (CacheRestore::Failed, Some(CacheSave::Saved)), "{said}");
    assert_eq!(fetched(&house, &build), "fetched");
    assert!(said.contains("what was saved is damaged, and was removed"), "{said}");
    assert_eq!(fetched(&house, &house.run(&[&path]).0), "had one");
}
