//! The wall clock jumps by an hour under a daemon at work: time that is waited for is monotonic, time that is written down
//! is for people.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use preheat::api::wire::BuildState;
use preheat::build::spec::BuildResult;
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::house::{Plan, until, wait_for};
use crate::projects::tiny;

/// Debian's libfaketime, which `tests/run` installs.
const FAKETIME: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];

/// From now on the daemon's wall clock is off by so many hours.
fn jump(clock: &Path, hours: i32) {
    let new = clock.with_extension("new");
    std::fs::write(&new, format!("{:+}\n", hours * 3600)).expect("written");
    std::fs::rename(new, clock).expect("in its place");
}

#[test]
fn a_clock_that_jumps_by_an_hour_neither_ends_a_build_nor_holds_back_a_result() {
    let library =
        FAKETIME.into_iter().find(|path| Path::new(path).is_file()).expect("apt-get install faketime");
    let later = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port");
    let clock = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
    jump(&clock, 0);
    let house = Plan::pool(1, 1)
        .and(&format!("max_age = \"30m\"\n[builds]\nstep_timeout = \"30m\"\ntimeout = \"30m\"\n[[upload]]\nname = \"store\"\nkind = \"http\"\nurl = \"http://{later}/ios\"\n"))
        .variable("LD_PRELOAD", library)
        .variable("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string())
        .variable("FAKETIME_NO_CACHE", "1")
        .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .variable("DONT_FAKE_MONOTONIC", "1")
        .open();
    let warm = house.whole();
    let step = "for i in $(seq 1 30); do echo line $i; sleep 0.1; done";
    let id = house.submit(&[&tiny(house.dir()), "--pool", "linux", "--step", step]);
    house.printed(id, "line 3");
    jump(&clock, 1);
    let owed = house.when(id, "owed to the sink", |view| view.state == BuildState::Uploading);
    assert_eq!((owed.result, owed.attempt), (Some(BuildResult::Success), 1), "{owed:?}");
    assert_eq!(owed.vm.as_deref(), Some(warm[0].name.as_str()));
    let waited = owed.finished_ms.expect("over").since(owed.submitted_ms).as_secs();
    assert!(waited >= 3600, "the test's clock did not jump: {waited} s");
    until("a failed try at the server, an hour ahead", || {
        let tries = house.metric("preheat_upload_attempts_total", &[("sink", "store"), ("result", "error")]);
        tries.filter(|count| *count >= 1.0)
    });
    let warm = house.whole();
    jump(&clock, 0);
    let server = wait_for(async {
        let server =
            MockServer::builder().listener(TcpListener::bind(later).expect("the port")).start().await;
        Mock::given(method("PUT")).respond_with(ResponseTemplate::new(201)).mount(&server).await;
        server
    });
    house.over(id);
    assert!(!wait_for(server.received_requests()).expect("recorded").is_empty());
    assert_eq!(house.whole()[0].name, warm[0].name, "no VM got old by the clock on the wall");
}
