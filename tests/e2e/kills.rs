//! The daemon is killed with -9 in every phase of a build, and started again: each build ends in one result, its log has
//! every line once, nothing of ours is left over, and what is not ours is still there.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use preheat::api::wire::{BuildState, BuildView, LogStream};
use preheat::build::spec::BuildResult;
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::house::{House, Plan, err, until, wait_for};
use crate::projects::{folder, tiny};

/// So large that its transfer takes seconds in an emulated guest, and is seen.
const LARGE: u64 = 48 << 20;
const LINES: usize = 40;

/// A step that prints for some seconds.
fn counting() -> String {
    format!("for i in $(seq 1 {LINES}); do echo line $i; sleep 0.1; done")
}

/// The house of one test: a slot, a VM that somebody cloned by hand, and where results go.
fn house(more: &str) -> House {
    let house = Plan::pool(1, 1).and(more).build();
    let cloned = house.tart(&["clone", "linux", "mine"]);
    assert!(cloned.status.success(), "{}", err(&cloned));
    house.start();
    house.whole();
    house
}

fn kill_daemon(house: &House) {
    house.end(Signal::SIGKILL);
    house.start();
}

fn in_phase(house: &House, id: u64, phase: &str) -> BuildView {
    house.when(id, phase, |view| view.phases.last().is_some_and(|p| p.phase == phase && p.took_ms.is_none()))
}

/// It succeeded, once, and of what each of its runs printed every line is in its log once.
fn ended_well(house: &House, id: u64) -> BuildView {
    let build = house.over(id);
    let log = house.log(id);
    assert_eq!(build.result, Some(BuildResult::Success), "{build:?}\n{log:#?}");
    let ends = log.iter().filter(|line| line.stream == LogStream::Sys && line.text == "success").count();
    assert_eq!(ends, 1, "{log:#?}");
    let mut seen = BTreeSet::new();
    for line in log.iter().filter(|line| line.stream == LogStream::Out) {
        assert!(seen.insert((line.run.clone(), line.end)), "{line:?} twice: {log:#?}");
    }
    build
}

/// In the attempt that counted, the step printed its lines once and in order.
fn counted(house: &House, id: u64) {
    let log = house.log(id);
    let run =
        log.iter().rev().find(|line| line.text == format!("line {LINES}")).and_then(|line| line.run.clone());
    let said = log
        .iter()
        .filter(|line| line.stream == LogStream::Out && line.run == run)
        .map(|line| line.text.clone());
    assert!(said.eq((1..=LINES).map(|n| format!("line {n}"))), "{log:#?}");
}

fn nothing_is_left(house: &House) {
    let mut expected: Vec<String> = house.whole().into_iter().map(|vm| vm.name).collect();
    expected.extend(["linux", "mine"].map(str::to_owned));
    expected.sort();
    until("orphans to be gone, and what is not ours to be there", || {
        (house.listed() == expected).then_some(())
    });
}

#[test]
fn a_daemon_killed_while_builds_are_queued_and_in_steps_goes_on_where_it_was() {
    let house = house("");
    let project = tiny(house.dir());
    let (first, second) = (counting(), counting());
    let running = house.submit(&[&project, "--pool", "linux", "--step", &first, "--step", &second]);
    let queued = house.submit(&[&project, "--pool", "linux", "--step", "echo second"]);
    house.printed(running, "line 3");
    assert_eq!(house.view(queued).state, BuildState::Queued);
    let vm = house.view(running).vm;
    kill_daemon(&house);
    // Again, in the second step.
    house.when(running, "in its second step", |view| {
        view.phases.iter().filter(|p| p.phase == "step").count() == 2
    });
    until("lines of the second step", || {
        (house.log(running).iter().filter(|line| line.text == "line 3").count() == 2).then_some(())
    });
    kill_daemon(&house);
    let build = ended_well(&house, running);
    assert_eq!((build.attempt, build.vm), (1, vm), "it went on in the VM that it had");
    let lines = house.log(running).iter().filter(|line| line.stream == LogStream::Out).count();
    assert_eq!(lines, 2 * LINES, "{:#?}", house.log(running));
    ended_well(&house, queued);
    nothing_is_left(&house);
}

#[test]
fn a_daemon_killed_while_source_or_artifacts_are_on_their_way_ends_each_build_once() {
    let house = house("");
    let project = folder(house.dir(), "large", &[("README", "large\n")]);
    let mut bytes = Vec::new();
    fs::File::open("/dev/urandom").expect("there").take(LARGE).read_to_end(&mut bytes).expect("read");
    fs::write(project.join("blob"), &bytes).expect("written");
    let step = format!("{}; mkdir out; cp blob out/", counting());
    let arguments = ["--pool", "linux", "--step", &step, "--artifact", "out/*"];
    let id = house.submit(&[&[project.to_str().expect("text")], &arguments[..]].concat());
    in_phase(&house, id, "source");
    kill_daemon(&house);
    in_phase(&house, id, "artifacts");
    let vm = house.view(id).vm;
    kill_daemon(&house);
    let build = ended_well(&house, id);
    assert_eq!(build.vm, vm, "the artifacts of a build that was done are taken, not built again");
    counted(&house, id);
    assert_eq!(
        build.artifacts.iter().map(|a| (a.path.as_str(), a.bytes)).collect::<Vec<_>>(),
        [("out/blob", LARGE)]
    );
    let kept = house.home().join("builds").join(id.to_string()).join("artifacts/out/blob");
    assert!(fs::read(kept).expect("kept") == bytes, "the artifact is what the guest had");
    nothing_is_left(&house);
}

#[test]
fn a_daemon_killed_while_a_guest_is_torn_down_or_a_result_is_on_its_way_delivers_it_once() {
    let later = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port");
    let house =
        house(&format!("[[upload]]\nname = \"store\"\nkind = \"http\"\nurl = \"http://{later}/ios\"\n"));
    let id = house.submit(&[&tiny(house.dir()), "--pool", "linux", "--step", &counting()]);
    house.printed(id, "line 3");
    let vm = house.view(id).vm.expect("it has one");
    let owner = house.vms().into_iter().find(|v| v.name == vm).and_then(|v| v.pid).expect("it runs");
    // Stopped, it does not hear that it is to end: the tear-down lasts until it is killed.
    kill(Pid::from_raw(owner.cast_signed()), Signal::SIGSTOP).expect("alive");
    in_phase(&house, id, "teardown");
    kill_daemon(&house);
    house.when(id, "owed to the sink", |view| view.state == BuildState::Uploading);
    kill_daemon(&house);
    let server = wait_for(async {
        let server =
            MockServer::builder().listener(TcpListener::bind(later).expect("the port")).start().await;
        Mock::given(method("PUT")).respond_with(ResponseTemplate::new(201)).mount(&server).await;
        server
    });
    let build = ended_well(&house, id);
    assert_eq!(
        (build.attempt, build.vm.as_deref()),
        (1, Some(vm.as_str())),
        "what was done is not done again"
    );
    counted(&house, id);
    let results = wait_for(server.received_requests()).expect("recorded");
    assert_eq!(results.iter().filter(|r| r.url.path().ends_with("result.json")).count(), 1);
    nothing_is_left(&house);
}
