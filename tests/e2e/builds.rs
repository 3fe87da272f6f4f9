//! Builds in the shared house.

use std::os::unix::fs::PermissionsExt;

use preheat::api::wire::{BuildState, Claim, LogStream};
use preheat::build::spec::BuildResult;

use crate::house::{HOLD, err, out, shared, until};
use crate::projects::{hello, sha256, tiny};

#[test]
fn a_warm_vm_serves_a_build_and_its_artifact_works() {
    let house = shared();
    let before = house.whole();
    let hits = house.metric("preheat_claims_total", &[("pool", "linux"), ("result", "hit")]).expect("there");
    let project = hello(house.dir(), "hello").display().to_string();
    let (build, _) = house.run(&[&project, "--out", "result"]);

    assert_eq!((build.result, build.claim, build.attempt), (Some(BuildResult::Success), Some(Claim::Hit), 1));
    let vm = build.vm.clone().expect("it had one");
    assert!(before.iter().any(|warm| warm.name == vm), "{vm} was not warm before");
    let phases: Vec<_> = build.phases.iter().map(|phase| phase.phase.as_str()).collect();
    assert_eq!(phases, ["queue", "probe", "source", "step", "step", "step", "artifacts", "teardown"]);
    assert!(build.phases.iter().all(|phase| phase.took_ms.is_some()), "{:?}", build.phases);

    let result = house.dir().join("result/out");
    let ran = assert_cmd::Command::new(result.join("hello")).output().expect("it runs on the host");
    assert_eq!(out(&ran), "hello from a warm VM\n");
    let mode = std::fs::metadata(result.join("check.sh")).expect("there").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "it is still executable");
    assert_eq!(build.artifacts.len(), 2);
    for artifact in &build.artifacts {
        assert_eq!(sha256(&house.dir().join("result").join(&artifact.path)), artifact.sha256);
    }

    let log = house.log(build.id.0);
    assert!(log.iter().map(|line| line.n).eq(1..=log.len() as u64), "no line is missing");
    let counted = log.iter().filter(|line| line.step.as_deref() == Some("count"));
    assert!(counted.map(|line| line.text.clone()).eq((1..=3000).map(|n: u32| n.to_string())));
    assert!(log.iter().any(|line| line.step.as_deref() == Some("check") && line.text == "dot"));

    let after = house.whole();
    assert!(after.iter().all(|warm| warm.name != vm), "a used VM is never offered again");
    assert!(!house.listed().contains(&vm), "and nothing of it stays on the disk");
    let now = house.metric("preheat_claims_total", &[("pool", "linux"), ("result", "hit")]);
    assert_eq!(now, Some(hits + 1.0));
}

#[test]
fn two_builds_run_at_once_and_the_third_says_what_it_waits_for() {
    let house = shared();
    let project = tiny(house.dir());
    let submit = || house.submit(&[&project, "--step", HOLD, "--pool", "linux"]);
    let ids = [submit(), submit(), submit()];
    let first = [ids[0], ids[1]].map(|id| {
        house.printed(id, "begun");
        house.view(id)
    });
    assert_ne!(first[0].vm, first[1].vm);
    let third = house.when(ids[2], "queued with a reason", |view| {
        view.waiting_for.as_deref().is_some_and(|why| why.contains("all 2 are in use"))
    });
    assert_eq!(third.state, BuildState::Queued);
    house.release(first[0].vm.as_deref().expect("it has one"));
    house.printed(ids[2], "begun");
    for id in [ids[1], ids[2]] {
        house.release(house.view(id).vm.as_deref().expect("it has one"));
    }
    let claims = ids.map(|id| {
        let view = house.over(id);
        assert_eq!(view.result, Some(BuildResult::Success), "{view:?}");
        view.claim
    });
    assert_eq!(claims, [Some(Claim::Hit), Some(Claim::Hit), Some(Claim::Miss)]);
}

#[test]
fn a_failing_step_ends_in_one_and_says_which() {
    let house = shared();
    let project = tiny(house.dir());
    let steps = ["--step", "echo fine", "--step", "echo bad >&2; exit 7", "--step", "echo never"];
    let args: Vec<&str> = ["run", &project, "--pool", "linux"].into_iter().chain(steps).collect();
    let output = house.preheat(&args);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert_eq!(out(&output), "fine\n");
    assert!(err(&output).contains("exited with 7") && err(&output).contains("bad\n"), "{}", err(&output));
}

/// Its grandchild in the guest says that it was told to end. What it says can only come from a process that was reached.
const FAMILY: &str = "sh -c 'trap \"echo grandchild was told; exit\" TERM; echo grandchild is up; \
                      while :; do sleep 0.2; done' & setsid sh -c 'trap \"echo runaway was told; exit\" TERM; \
                      echo runaway is up; while :; do sleep 0.2; done' & wait; sleep 600";

fn told(log: &[preheat::api::wire::LogLine]) {
    for who in ["grandchild", "runaway"] {
        let said = |text: String| log.iter().any(|l| l.stream == LogStream::Out && l.text == text);
        assert!(said(format!("{who} is up")) && said(format!("{who} was told")), "{who}: {log:#?}");
    }
}

#[test]
fn cancelling_reaches_the_whole_process_tree_in_the_guest() {
    let house = shared();
    let project = tiny(house.dir());
    let newest = || house.get::<preheat::api::wire::BuildList>("builds").builds.first().map(|b| b.id.0);
    let before = newest();
    let run = house.beside(&["run", &project, "--pool", "linux", "--step", FAMILY]);
    let id = until("the build", || newest().filter(|id| Some(*id) != before));
    house.printed(id, "grandchild is up");
    house.printed(id, "runaway is up");
    assert_eq!(house.preheat(&["cancel", &id.to_string()]).status.code(), Some(0));
    let output = run.join().expect("no panic");
    assert_eq!(output.status.code(), Some(4), "{}", err(&output));
    told(&house.log(id));
    assert_eq!(house.view(id).result, Some(BuildResult::Cancellation));
}

#[test]
fn a_step_out_of_time_takes_its_process_tree_along() {
    let house = shared();
    let file = format!(
        "pool = \"linux\"\nsteps = [{{ name = \"long\", command = '''{FAMILY}''', timeout = \"8s\" }}, \"echo never\"]\n"
    );
    let project = crate::projects::folder(house.dir(), "slow", &[(".preheat.toml", &file)]);
    let output = house.preheat(&["run", "--json", &project.display().to_string()]);
    assert_eq!(output.status.code(), Some(5), "{}", err(&output));
    let build: preheat::api::wire::BuildView = serde_json::from_slice(&output.stdout).expect("a build");
    assert_eq!(build.reason.as_deref(), Some("step `long` took longer than 8s"));
    let log = house.log(build.id.0);
    told(&log);
    assert!(!log.iter().any(|line| line.text == "never"));
}
