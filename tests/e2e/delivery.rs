//! Results go out when the guest is dead, to a folder and to a server that is down at first.

use std::net::{Ipv4Addr, TcpListener};

use preheat::api::wire::BuildView;
use preheat::build::spec::BuildResult;
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::house::{Plan, until, wait_for};
use crate::projects::tiny;

#[test]
fn a_result_is_delivered_to_each_sink_once_when_the_guest_is_dead() {
    let later = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port");
    let house = Plan::pool(1, 1).build();
    let share = house.dir().join("share");
    std::fs::create_dir(&share).expect("made");
    house.configure(&format!(
        "[pool.linux]\nimage = \"linux\"\nwarm = 1\nmax = 1\nport = 2222\n\
         [[upload]]\nname = \"share\"\nkind = \"folder\"\npath = \"{}\"\n\
         [[upload]]\nname = \"store\"\nkind = \"http\"\nurl = \"http://{later}/ios\"\n",
        share.display()
    ));
    house.start();
    let step = "mkdir out; echo one > out/a.txt; echo two > 'out/b c.txt'";
    let id = house.submit(&[&tiny(house.dir()), "--pool", "linux", "--step", step, "--artifact", "out/*"]);

    let json = share.join(id.to_string()).join("result.json");
    until("the folder's result", || json.is_file().then_some(()));
    let result: BuildView = serde_json::from_slice(&std::fs::read(&json).expect("there")).expect("a build");
    assert_eq!(result.result, Some(BuildResult::Success));
    assert!(
        result.phases.iter().any(|p| p.phase == "teardown" && p.took_ms.is_some()),
        "{:?}",
        result.phases
    );
    let vm = result.vm.expect("it had one");
    let alive = house.guest(&vm);
    assert!(alive.is_empty(), "delivered while the guest was alive: {alive:?}");
    let text = std::fs::read_to_string(json.with_file_name("out").join("b c.txt")).expect("there");
    assert_eq!(text, "two\n");

    let tries =
        |result| house.metric("preheat_upload_attempts_total", &[("sink", "store"), ("result", result)]);
    until("a failed try at the server", || tries("error").filter(|count| *count >= 1.0));
    assert_eq!(house.metric("preheat_uploads_pending", &[("sink", "store")]), Some(1.0));
    let server = wait_for(async {
        let server =
            MockServer::builder().listener(TcpListener::bind(later).expect("the port")).start().await;
        Mock::given(method("PUT")).respond_with(ResponseTemplate::new(201)).mount(&server).await;
        server
    });
    until("the delivery", || tries("ok").filter(|count| *count >= 1.0));
    until("nothing to be owed", || {
        house.metric("preheat_uploads_pending", &[("sink", "store")]).filter(|count| *count == 0.0)
    });
    let requests = wait_for(server.received_requests()).expect("recorded");
    let got: Vec<_> = requests.iter().map(|r| (r.url.path().to_owned(), r.body.len())).collect();
    let paths: Vec<_> = got.iter().map(|(path, _)| path.as_str()).collect();
    let expected = ["out/a.txt", "out/b%20c.txt", "result.json"].map(|name| format!("/ios/{id}/{name}"));
    assert_eq!(paths, expected, "each once, the result last");
    assert_eq!((got[0].1, got[1].1, tries("ok")), (4, 4, Some(1.0)));
}
