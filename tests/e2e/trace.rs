//! Where a build's time went: the trace is one that viewers open, names nearly all of the time, and knows the slot.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::Signal;
use preheat::api::timeline::{ChromeTrace, TraceEvent};
use serde_json::Value;

use crate::house::{HOLD, House, Plan, err, out, until, wait_for};
use crate::projects::{folder, tiny};

/// What Chrome's trace event format asks for, looked at as JSON and not through our own types: each complete event has its
/// times and its thread, each thread and process has a name, and on a thread events lie in each other or side by side.
fn valid(text: &str) {
    let trace: Value = serde_json::from_str(text).expect("JSON");
    assert!(["ms", "ns"].contains(&trace["displayTimeUnit"].as_str().expect("a unit")));
    let (mut named, mut used, mut open) = (Vec::new(), Vec::new(), BTreeMap::<_, Vec<(u64, u64)>>::new());
    for event in trace["traceEvents"].as_array().expect("events") {
        let number = |key: &str| event[key].as_u64().unwrap_or_else(|| panic!("no `{key}`: {event}"));
        let (thread, ts) = ((number("pid"), number("tid")), number("ts"));
        assert!(event["name"].is_string(), "{event}");
        match event["ph"].as_str().expect("a kind") {
            "M" => {
                let what = event["name"].as_str().unwrap_or_default();
                let key = if what.ends_with("_name") { "name" } else { "sort_index" };
                assert!(!event["args"][key].is_null(), "{event}");
                named.extend(what.eq("thread_name").then_some(thread));
            }
            "i" => assert!(["t", "p", "g"].contains(&event["s"].as_str().expect("a scope")), "{event}"),
            "X" => {
                let to = ts + number("dur");
                used.push(thread);
                let stack = open.entry(thread).or_default();
                while stack.last().is_some_and(|(_, end)| *end <= ts && *end < to) {
                    stack.pop();
                }
                let inside = stack.last().is_none_or(|(from, end)| (*from <= ts && to <= *end) || ts == to);
                assert!(inside, "{event} crosses {:?}", stack.last());
                stack.push((ts, to));
            }
            other => panic!("`{other}` is written by nobody here"),
        }
    }
    assert!(used.iter().all(|thread| named.contains(thread)), "a line without a name");
    let mut tids: Vec<u64> = named.iter().map(|(_, tid)| *tid).collect();
    tids.sort_unstable();
    assert!(tids.windows(2).all(|pair| pair[0] != pair[1]), "{tids:?}");
}

/// The trace of a build, as the API gives it and a viewer takes it.
fn trace(house: &House, id: u64) -> ChromeTrace {
    let url = format!("{}/api/v1/builds/{id}/trace.json", house.url());
    let text = wait_for(async { reqwest::get(url).await?.text().await }).expect("an answer");
    valid(&text);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn spans<'a>(trace: &'a ChromeTrace, cat: &str) -> Vec<&'a TraceEvent> {
    trace.trace_events.iter().filter(|e| e.ph == "X" && e.cat.as_deref() == Some(cat)).collect()
}

fn names<'a>(trace: &'a ChromeTrace, cat: &str) -> Vec<&'a str> {
    spans(trace, cat).iter().map(|event| event.name.as_str()).collect()
}

/// All of the build's time is somebody's, or shown not to be, and nearly all is somebody's.
fn covered(trace: &ChromeTrace) {
    let figures = &trace.other_data;
    assert_eq!(figures.owners.iter().map(|share| share.us).sum::<u64>(), figures.total_us);
    let named = figures.total_us - figures.unaccounted_us;
    assert!(named as f64 >= figures.total_us as f64 * 0.95, "{figures:#?}");
}

#[test]
fn nearly_every_moment_of_a_build_has_an_owner_and_its_slot_is_drawn_from_death_to_birth() {
    let house = Plan::pool(1, 1).build();
    let share = house.dir().join("share");
    fs::create_dir(&share).expect("made");
    house.configure(&format!(
        "[pool.linux]\nimage = \"linux\"\nwarm = 1\nmax = 1\nport = 2222\n\
         [[upload]]\nname = \"share\"\nkind = \"folder\"\npath = \"{}\"\n",
        share.display()
    ));
    house.start();
    let first = house.submit(&[&tiny(house.dir()), "--pool", "linux", "--step", "true"]);
    house.over(first);
    house.whole();
    let file = "pool = \"linux\"\nsteps = [{ name = \"flaky\", retries = 2, \
                command = \"echo x >> tries; test $(wc -l < tries) = 3\" }, \"mkdir out; echo one > out/a\"]\n\
                artifacts = [\"out/*\"]\n";
    let project = folder(house.dir(), "flaky", &[(".preheat.toml", file)]).display().to_string();
    let (build, _) = house.run(&[&project]);
    house.over(build.id.0);
    house.whole();
    let trace = trace(&house, build.id.0);
    covered(&trace);
    let phases = names(&trace, "build");
    let runs = ["step flaky", "step flaky (run 2)", "step flaky (run 3)"];
    assert!(runs.iter().all(|run| phases.iter().filter(|name| *name == run).count() == 1), "{phases:?}");
    assert!(
        ["receive", "accept", "queue", "probe", "source", "artifacts", "teardown", "record"]
            .iter()
            .all(|name| phases.contains(name)),
        "{phases:?}"
    );

    assert_eq!(names(&trace, "upload"), ["upload share"]);

    let vm = build.vm.as_deref().expect("it had one");
    let [life] = &trace.other_data.vms[..] else { panic!("{:#?}", trace.other_data) };
    assert_eq!((life.vm.as_str(), life.slot.as_str()), (vm, "linux/0"));
    let went: Vec<&str> = life.phases.iter().map(|share| share.owner.as_str()).collect();
    let whole = [
        "clone",
        "configure",
        "wait for the slot",
        "start",
        "address",
        "connect",
        "warm-up",
        "warm",
        "leased",
        "kill",
        "delete",
    ];
    assert_eq!(went, whole);
    for turn in [&life.before, &life.after] {
        let turn = turn.as_ref().expect("a neighbour");
        assert!(turn.cloned_ahead && turn.gap_us.is_some() && turn.warm_after_us.is_some(), "{turn:?}");
    }
    assert_eq!(
        names(&trace, "slot").iter().filter(|name| **name == "gap").count(),
        2,
        "{:#?}",
        trace.other_data
    );
    let gaps = house.metric("preheat_slot_gap_seconds_count", &[("pool", "linux")]).expect("there");
    assert!(gaps >= 2.0, "{gaps}");
    assert_eq!(house.metric("preheat_trace_spans_dropped_total", &[]), Some(0.0));

    let shown = house.preheat(&["trace", &build.id.to_string(), "--out", "t.json"]);
    assert_eq!(shown.status.code(), Some(0), "{}", err(&shown));
    valid(&fs::read_to_string(house.dir().join("t.json")).expect("written"));
    assert!(out(&shown).contains("step flaky") && out(&shown).contains("slot after"), "{}", out(&shown));
    assert!(err(&shown).contains("ui.perfetto.dev"), "{}", err(&shown));
    let piped = house.preheat(&["trace", &build.id.to_string(), "--out", "-"]);
    valid(&out(&piped));
}

#[test]
fn a_build_that_went_on_under_another_daemon_has_one_trace_of_both() {
    let house = Plan::pool(1, 1).open();
    house.whole();
    let id = house.submit(&[&tiny(house.dir()), "--pool", "linux", "--step", HOLD]);
    house.printed(id, "begun");
    // Asked for, it is on disk, so that the kill takes nothing of it.
    let so_far = trace(&house, id);
    assert!(spans(&so_far, "vm").iter().any(|span| span.name == "leased" && span.args["open"] == true));
    house.end(Signal::SIGKILL);
    house.start();
    let vm = house.view(id).vm.expect("it has one");
    until("its VM to be its own again", || {
        house.vms().into_iter().find(|row| row.name == vm && row.state == "leased")
    });
    house.release(&vm);
    house.over(id);
    house.whole();
    let trace = trace(&house, id);
    covered(&trace);
    let lived = names(&trace, "vm");
    let own: Vec<&str> = lived.iter().copied().take_while(|name| *name != "delete").collect();
    assert!(own.contains(&"clone") && own.contains(&"warm"), "{own:?}");
    assert!(own.contains(&"adopt") && own.iter().filter(|name| **name == "leased").count() == 2, "{own:?}");
    assert_eq!(trace.other_data.vms.iter().map(|life| life.vm.as_str()).collect::<Vec<_>>(), [vm]);
}

#[test]
fn a_trace_of_no_build_is_refused_with_a_hint() {
    let house = Plan::bare("").open();
    let refused = house.preheat(&["trace", "99"]);
    assert_eq!(refused.status.code(), Some(2), "{}", err(&refused));
    assert!(err(&refused).contains("no build 99") && err(&refused).contains("hint: "), "{}", err(&refused));
    assert!(!house.dir().join("preheat-trace-99.json").exists());
}
