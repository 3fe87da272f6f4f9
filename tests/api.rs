//! The HTTP side over real sockets.

mod common;

use std::time::Duration;

use common::{Ending, Fake, LONG, Server};
use preheat::api::timeline::ChromeTrace;
use preheat::api::token::Token;
use preheat::api::wire::*;
use preheat::api::{BindError, bind};
use preheat::build::spec::BuildResult;
use preheat::ids::BuildId;
use reqwest::{Client, RequestBuilder, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn http() -> Client {
    Client::builder().no_proxy().timeout(LONG).build().expect("a client")
}

async fn sent(request: RequestBuilder) -> Response {
    request.send().await.expect("an answer")
}

/// The status, and the error's word.
async fn refused(request: RequestBuilder) -> (u16, String) {
    let response = sent(request).await;
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").cloned();
    assert_eq!(kind.expect("typed"), "application/json");
    let body: ErrorBody = response.json().await.expect("an error's shape");
    assert!(!body.error.message.is_empty());
    (status, body.error.code)
}

fn form(spec: &str, source: Vec<u8>) -> reqwest::multipart::Form {
    let part = reqwest::multipart::Part::bytes;
    reqwest::multipart::Form::new().part("spec", part(spec.as_bytes().to_vec())).part("source", part(source))
}

/// Bytes without a length known beforehand.
fn unmeasured(pieces: Vec<Vec<u8>>) -> reqwest::Body {
    reqwest::Body::wrap_stream(futures::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>)))
}

/// Speaks raw HTTP and returns all that comes back.
async fn raw(server: &Server, text: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.expect("connected");
    stream.write_all(text.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.expect("in time").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn every_route_answers() {
    let fake = Fake::new();
    fake.artifacts.lock().expect("whole").push(("out/app.zip".into(), b"artifact".to_vec()));
    let server = Server::start(&fake).await;
    let http = http();

    let response =
        sent(http.post(server.at("/api/v1/builds")).multipart(form(r#"{"pool":"linux"}"#, b"tar".into())))
            .await;
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["location"], "/api/v1/builds/1");
    let build: BuildView = response.json().await.expect("a build");
    assert_eq!(build.id, BuildId(1));
    assert_eq!(*fake.sources.lock().expect("whole"), [b"tar".to_vec()]);

    let list: BuildList =
        sent(http.get(server.at("/api/v1/builds?limit=5"))).await.json().await.expect("a list");
    assert_eq!(list.builds.len(), 1);
    let build: BuildView = sent(http.get(server.at("/api/v1/builds/1"))).await.json().await.expect("a build");
    assert_eq!(build.result, Some(BuildResult::Success));
    let artifacts: ArtifactList =
        sent(http.get(server.at("/api/v1/builds/1/artifacts"))).await.json().await.expect("a list");
    assert_eq!(artifacts.artifacts[0].path, "out/app.zip");
    let trace: ChromeTrace =
        sent(http.get(server.at("/api/v1/builds/1/trace.json"))).await.json().await.expect("a trace");
    assert_eq!((trace.other_data.build, trace.audit()), (BuildId(1), Ok(())));
    for none in ["/api/v1/builds/7/trace.json", "/api/v1/builds/x/trace.json"] {
        let body: ErrorBody = sent(http.get(server.at(none))).await.json().await.expect("an error's shape");
        assert!(!body.error.message.is_empty(), "{none}");
    }
    fake.caches.lock().expect("whole").push(common::cached("0a1b", "app"));
    let list: CacheList = sent(http.get(server.at("/api/v1/caches"))).await.json().await.expect("a list");
    assert_eq!(list.caches, [common::cached("0a1b", "app")]);
    let removed: CacheEntryView =
        sent(http.delete(server.at("/api/v1/caches/0a1b"))).await.json().await.expect("what was removed");
    assert_eq!(removed.id, "0a1b");
    let again = refused(http.delete(server.at("/api/v1/caches/0a1b"))).await;
    assert_eq!(again, (404, "cache_unknown".to_owned()));
    let _: PoolList = sent(http.get(server.at("/api/v1/pools"))).await.json().await.expect("a list");
    let _: VmList = sent(http.get(server.at("/api/v1/vms"))).await.json().await.expect("a list");
    for (path, starts) in [("/healthz", "ok"), ("/readyz", "ready"), ("/metrics", "preheat_up 1")] {
        let response = sent(http.get(server.at(path))).await;
        assert_eq!(response.status(), 200);
        assert!(response.text().await.expect("text").starts_with(starts), "{path}");
    }
    let metrics = sent(http.get(server.at("/metrics"))).await;
    assert_eq!(metrics.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(metrics.headers()["x-content-type-options"], "nosniff");
    server.stop().await;
}

#[tokio::test]
async fn each_answer_is_counted_under_its_routes_pattern() {
    let server = Server::start(&Fake::new()).await;
    for path in ["/api/v1/builds/7", "/nowhere", "/healthz"] {
        sent(http().get(server.at(path))).await;
    }
    sent(http().request("BREW".parse().expect("a method"), server.at("/healthz"))).await;
    let seen: Vec<_> =
        server.seen.lock().expect("whole").iter().map(|(r, m, s)| format!("{m} {r} {s}")).collect();
    let wanted = ["GET /api/v1/builds/{id} 404", "GET other 404", "GET /healthz 200", "OTHER /healthz 405"];
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn a_plain_body_is_a_source_and_the_query_describes_it() {
    let fake = Fake::new();
    let server = Server::start(&fake).await;
    let url = server.at("/api/v1/builds?pool=linux&step=make&step=make%20test&env=A=1");
    for kind in [
        "application/x-tar",
        "application/gzip",
        "application/zip",
        "application/zstd",
        "application/x-www-form-urlencoded",
    ] {
        let response = sent(http().post(&url).header("content-type", kind).body("archive")).await;
        assert_eq!(response.status(), 201, "{kind}");
    }
    let specs = fake.specs.lock().expect("whole");
    assert_eq!((specs.len(), specs[0].steps.len(), specs[0].env["A"].as_str()), (5, 2, "1"));
    assert!(fake.spool_is_empty());
}

#[tokio::test]
async fn a_tree_is_asked_for_by_name_before_it_is_sent() {
    let fake = Fake::new();
    let server = Server::start(&fake).await;
    let url = server.at("/api/v1/builds");
    let name = "0123456789abcdef".repeat(4);
    let asked = |tree: &str| {
        let form = reqwest::multipart::Form::new().text("spec", r#"{"pool":"linux"}"#);
        form.text("tree", tree.to_owned())
    };
    let post = |form| http().post(&url).multipart(form);
    assert_eq!(refused(post(asked(&name))).await, (404, "tree_unknown".into()));
    let source = reqwest::multipart::Part::bytes(b"tar".to_vec());
    assert_eq!(sent(post(asked(&name).part("source", source))).await.status(), 201);
    assert_eq!(*fake.sources.lock().expect("whole"), [b"tar".to_vec()]);
    for tree in ["", "x", &name[1..], &name.to_uppercase(), &"a".repeat(1 << 20)] {
        assert_eq!(refused(post(asked(tree))).await, (400, "malformed".into()), "{tree:.80}");
    }
    let backwards = form("{}", b"tar".to_vec()).text("tree", name.clone());
    assert_eq!(refused(post(backwards)).await, (400, "malformed".into()));
    assert_eq!(refused(post(asked(&name).text("more", "x"))).await, (400, "malformed".into()));
    assert!(fake.spool_is_empty());
}

#[tokio::test]
async fn a_large_source_is_taken_in_either_way() {
    let fake = Fake::new();
    let server = Server::with(&fake, ([127, 0, 0, 1], 0).into(), |options| {
        options.source_max = std::sync::Arc::new(|| preheat::config::ByteSize(32 << 20));
    })
    .await;
    let large = vec![7; 20 << 20];
    let url = server.at("/api/v1/builds");
    let as_form = http().post(&url).multipart(form(r#"{"pool":"linux"}"#, large.clone()));
    assert_eq!(sent(as_form).await.status(), 201);
    let as_body = http().post(format!("{url}?pool=linux")).header("content-type", "application/x-tar");
    assert_eq!(sent(as_body.body(large.clone())).await.status(), 201);
    assert!(*fake.sources.lock().expect("whole") == [large.clone(), large]);
}

#[tokio::test]
async fn every_refusal_has_a_word_in_json() {
    let fake = Fake::new();
    let server = Server::start(&fake).await;
    let over = fake.add();
    fake.end(over, BuildResult::Success);
    let http = http();
    let get = |path: &str| http.get(server.at(path));
    let post = |form| http.post(server.at("/api/v1/builds")).multipart(form);
    let plain = |query: &str| http.post(server.at(&format!("/api/v1/builds{query}"))).body("archive");
    let other_first = reqwest::multipart::Form::new().text("source", "x").text("spec", "{}");
    let third = form("{}", b"x".into()).text("more", "x");
    let cases = [
        (get("/nowhere"), 404, "not_found"),
        (get("/api/v1/builds/9"), 404, "build_unknown"),
        (get("/api/v1/builds/x"), 400, "malformed"),
        (get("/api/v1/builds/%ff"), 400, "malformed"),
        (get("/api/v1/builds?limit=0"), 400, "bad_query"),
        (get("/api/v1/builds/1/log?follow=maybe"), 400, "bad_query"),
        (get("/api/v1/builds/1/log").header("last-event-id", "x"), 400, "bad_query"),
        (get("/api/v1/builds/1/artifacts/none"), 404, "artifact_unknown"),
        (get("/api/v1/builds/1/artifacts/..%2f..%2fetc%2fpasswd"), 404, "artifact_unknown"),
        (http.put(server.at("/api/v1/builds")), 405, "method_not_allowed"),
        (http.delete(server.at("/api/v1/builds/1")), 409, "build_over"),
        (http.delete(server.at("/api/v1/builds/9")), 404, "build_unknown"),
        (plain("?pool=none"), 422, "pool_unknown"),
        (plain("?colour=red"), 400, "bad_query"),
        (plain("?secret=A=b"), 400, "bad_query"),
        (plain("").body(""), 400, "malformed"),
        (plain("").header("content-type", "text/html"), 415, "media_type_unknown"),
        (plain("").header("content-type", "multipart/form-data"), 400, "malformed"),
        (plain("").header("content-type", "multipart/form-data; boundary=x"), 400, "malformed"),
        (post(form("{", b"x".into())), 400, "malformed"),
        (post(form(r#"{"stepz":[]}"#, b"x".into())), 400, "malformed"),
        (post(form("{}", Vec::new())), 400, "malformed"),
        (post(form(&" ".repeat((4 << 20) + 1), b"x".into())), 413, "body_too_large"),
        (post(other_first), 400, "malformed"),
        (post(third), 400, "malformed"),
    ];
    for (at, (request, status, code)) in cases.into_iter().enumerate() {
        assert_eq!(refused(request).await, (status, code.to_owned()), "case {at}");
    }
    assert!(fake.sources.lock().expect("whole").is_empty() && fake.spool_is_empty());
    *fake.ready.lock().expect("whole") = Err("the journal does not answer".into());
    assert_eq!(refused(get("/readyz")).await, (503, "not_ready".into()));
}

#[tokio::test]
async fn a_source_over_the_limit_is_refused_while_it_comes() {
    let fake = Fake::new();
    let server = Server::start(&fake).await;
    let url = server.at("/api/v1/builds");
    let http = http();
    let pieces = || vec![vec![0; 64 << 10]; 17];
    let part = reqwest::multipart::Part::stream(unmeasured(pieces()));
    let form = reqwest::multipart::Form::new().text("spec", "{}").part("source", part);
    let tar = || http.post(&url).header("content-type", "application/x-tar");
    // Far over the limit and declared so: not read at all, and the answer still arrives.
    let cases =
        [tar().body(unmeasured(pieces())), http.post(&url).multipart(form), tar().body(vec![0; 64 << 20])];
    for (at, request) in cases.into_iter().enumerate() {
        assert_eq!(refused(request).await, (413, "body_too_large".into()), "case {at}");
    }
    assert_eq!(sent(tar().body(vec![1; 1 << 20])).await.status(), 201, "as large as allowed");
    assert!(fake.spool_is_empty());
}

#[tokio::test]
async fn a_form_that_never_names_a_part_is_cut_before_it_fills_the_memory() {
    let server = Server::start(&Fake::new()).await;
    let request =
        http().post(server.at("/api/v1/builds")).header("content-type", "multipart/form-data; boundary=x");
    assert_eq!(
        refused(request.body(unmeasured(vec![vec![b'a'; 64 << 10]; 100]))).await,
        (413, "body_too_large".into())
    );
}

#[tokio::test]
async fn a_body_and_a_head_that_do_not_come_are_given_up() {
    let fake = Fake::new();
    let server = Server::with(&fake, ([127, 0, 0, 1], 0).into(), |o| {
        o.limits.body_idle = Duration::from_millis(100);
        o.limits.head_read = Duration::from_millis(100);
    })
    .await;
    let head = "POST /api/v1/builds HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nContent-Length: 9\r\n\r\nabc";
    let answer = raw(&server, head).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_slow"), "{answer}");
    assert!(fake.spool_is_empty());
    assert!(!raw(&server, "GET /healthz HTTP/1.1\r\nHo").await.contains(" 200 "));
}

#[tokio::test]
async fn a_full_queue_is_told_before_the_source_is_read_and_places_come_back() {
    let fake = Fake::with_places(1);
    let server = Server::start(&fake).await;
    let url = server.at("/api/v1/builds");
    let place = fake.clone();
    let held = preheat::api::service::Service::admit(&*place, None).expect("free");
    assert_eq!(refused(http().post(&url).body(vec![0; 1 << 20])).await, (429, "queue_full".into()));
    drop(held);
    // A refused submission gives its place back, too.
    for _ in 0..3 {
        assert_eq!(refused(http().post(&url).body("")).await.0, 400);
    }
    assert_eq!(sent(http().post(&url).body("x")).await.status(), 201);
}

#[tokio::test]
async fn a_client_that_goes_on_sending_after_the_refusal_still_reads_it() {
    let server = Server::start(&Fake::with_places(0)).await;
    let mut stream = TcpStream::connect(server.address).await.expect("connected");
    let head = "POST /api/v1/builds HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("written");
    stream.readable().await.expect("an answer");
    // Closed at once, the connection would be reset here.
    for _ in 0..8 {
        stream.write_all(&[0; 64 << 10]).await.expect("the other side still listens");
    }
    stream.shutdown().await.expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    assert!(answer.contains("queue_full"), "{answer}");
}

#[tokio::test]
async fn a_log_is_taken_up_again_without_a_line_twice_or_lost() {
    let fake = Fake::new();
    let server = Server::start(&fake).await;
    let id = fake.add();
    for n in 1..=5 {
        fake.print(id, LogStream::Out, &format!("line {n}"));
    }
    fake.end(id, BuildResult::Failure);
    let read = async |query: &str, last: Option<&str>| {
        let mut request = http().get(server.at(&format!("/api/v1/builds/1/log{query}")));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        sent(request).await.text().await.expect("text")
    };
    let ids =
        |text: &str| text.lines().filter_map(|l| l.strip_prefix("id: ")?.parse().ok()).collect::<Vec<u64>>();
    let all = read("", None).await;
    assert!(all.starts_with("retry: 1000\n\n"), "{all}");
    assert_eq!(ids(&all), [1, 2, 3, 4, 5]);
    let end = all.split("event: end\ndata: ").nth(1).expect("an end").trim();
    assert_eq!(serde_json::from_str::<BuildView>(end).expect("a build").result, Some(BuildResult::Failure));
    assert_eq!(ids(&read("", Some("3")).await), [4, 5]);
    assert_eq!(ids(&read("?after=1", None).await), [2, 3, 4, 5]);
    assert_eq!(ids(&read("?after=1", Some("4")).await), [5]);
    assert_eq!(ids(&read("?after=99", None).await), [] as [u64; 0]);
    assert_eq!(read("?format=text&after=3", None).await, "line 4\nline 5\n");
}

#[tokio::test]
async fn a_followed_log_shows_lines_as_they_come_and_signs_of_life_between() {
    let fake = Fake::new();
    let server =
        Server::with(&fake, ([127, 0, 0, 1], 0).into(), |o| o.limits.ping = Duration::from_millis(50)).await;
    let id = fake.add();
    let mut log = sent(http().get(server.at("/api/v1/builds/1/log"))).await;
    assert_eq!(log.headers()["content-type"], "text/event-stream");
    let mut until = async |wanted: &str| {
        let mut text = String::new();
        while !text.contains(wanted) {
            let piece = tokio::time::timeout(LONG, log.chunk()).await.expect("in time").expect("open");
            text.push_str(&String::from_utf8_lossy(&piece.expect("not at its end")));
        }
    };
    until("event: ping\ndata: ping\n\n").await;
    fake.print(id, LogStream::Out, "now");
    until("\"text\":\"now\"").await;
    // What is there is shown without waiting for more.
    let text =
        sent(http().get(server.at("/api/v1/builds/1/log?follow=false"))).await.text().await.expect("text");
    assert!(text.contains("id: 1\n") && !text.contains("event: end"), "{text}");
    fake.end(id, BuildResult::Success);
    until("event: end").await;
}

#[tokio::test]
async fn only_so_many_follow_and_send_at_once() {
    let fake = Fake::new();
    let server = Server::with(&fake, ([127, 0, 0, 1], 0).into(), |o| {
        o.limits.followers = 1;
        o.limits.submissions = 1;
    })
    .await;
    fake.add();
    let url = server.at("/api/v1/builds/1/log");
    let first = sent(http().get(&url)).await;
    assert_eq!(refused(http().get(&url)).await, (503, "too_many_followers".into()));
    drop(first);
    until(async || sent(http().get(&url)).await.status() == 200).await;

    let mut slow = TcpStream::connect(server.address).await.expect("connected");
    let head = "POST /api/v1/builds HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc";
    slow.write_all(head.as_bytes()).await.expect("written");
    let post = || http().post(server.at("/api/v1/builds?limit=no")).body("x");
    // The query is read first; a refusal of it shows that the turn is not asked for.
    assert_eq!(refused(post()).await.1, "bad_query");
    let post = || http().post(server.at("/api/v1/builds")).body("x");
    until(async || sent(post()).await.status() == 503).await;
    drop(slow);
    until(async || sent(post()).await.status() == 201).await;
}

/// Level-triggered: asks again until it is so.
async fn until(so: impl AsyncFn() -> bool) {
    let wait = async {
        while !so().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("in time");
}

#[tokio::test]
async fn a_foreign_page_and_a_rebound_name_are_refused() {
    let server = Server::start(&Fake::new()).await;
    let get = || http().get(server.at("/api/v1/pools"));
    for host in ["evil.example", "evil.example:7780", "127.0.0.1.nip.io", ""] {
        assert_eq!(refused(get().header("host", host)).await, (403, "host_refused".into()), "{host}");
    }
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        let post = http().post(server.at("/api/v1/builds")).header("origin", origin).body("x");
        assert_eq!(refused(post).await, (403, "origin_refused".into()), "{origin}");
    }
    let image = get().header("sec-fetch-site", "cross-site").header("sec-fetch-mode", "no-cors");
    assert_eq!(refused(image).await.1, "origin_refused");
    assert_eq!(
        sent(get().header("host", "localhost:1").header("origin", "http://localhost:1")).await.status(),
        200
    );
    let old = raw(&server, "GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(old.contains("host_refused"), "{old}");
    let absolute = raw(
        &server,
        "GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(absolute.contains("host_refused"), "{absolute}");
}

#[tokio::test]
async fn with_a_token_all_but_the_health_needs_it() {
    let token = "0123456789abcdef0123456789abcdef";
    let server =
        Server::with(&Fake::new(), ([127, 0, 0, 1], 0).into(), |o| o.token = Token::new(token)).await;
    let get = |path: &str| http().get(server.at(path));
    assert_eq!(sent(get("/healthz")).await.status(), 200);
    for path in ["/readyz", "/metrics", "/api/v1/pools", "/nowhere"] {
        assert_eq!(refused(get(path)).await, (401, "unauthorized".into()), "{path}");
        assert_eq!(refused(get(path).bearer_auth("0123456789abcdef")).await.0, 401, "{path}");
    }
    assert_eq!(sent(get("/api/v1/pools").bearer_auth(token)).await.status(), 200);
    // The token shows that no page of somebody else's asks, so the Mac may be called by its name.
    assert_eq!(
        sent(get("/api/v1/pools").bearer_auth(token).header("host", "studio.local")).await.status(),
        200
    );
}

#[tokio::test]
async fn an_artifact_comes_whole_with_its_digest() {
    let fake = Fake::new();
    let big: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let names = ["out/app.zip", "a b/ü#?.txt", "page.html"];
    fake.artifacts.lock().expect("whole").extend(names.map(|name| (name.to_owned(), big.clone())));
    let server = Server::start(&fake).await;
    let id = fake.add();
    fake.end(id, BuildResult::Success);
    let url = server.at("/api/v1/builds/1/artifacts/");
    let response = sent(http().get(format!("{url}out/app.zip"))).await;
    let digest = format!("\"{}\"", common::artifact("x", &big).sha256);
    for (name, value) in [
        ("content-length", "1000000"),
        ("content-type", "application/zip"),
        ("etag", digest.as_str()),
        ("content-disposition", "attachment"),
        ("x-preheat-executable", "0"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    assert!(response.bytes().await.expect("whole") == big);
    let known = sent(http().get(format!("{url}out/app.zip")).header("if-none-match", &digest)).await;
    assert_eq!(known.status(), 304);
    assert_eq!(sent(http().get(format!("{url}a%20b/%C3%BC%23%3F.txt"))).await.status(), 200);
    let page = sent(http().get(format!("{url}page.html"))).await;
    assert!(page.headers()["content-security-policy"].to_str().expect("text").contains("sandbox"));

    fake.change(id, |view| view.artifacts[0].bytes += 1);
    assert_eq!(refused(http().get(format!("{url}out/app.zip"))).await, (500, "internal".into()));
}

#[tokio::test]
async fn cancelling_twice_is_the_same_as_once_until_it_is_over() {
    let fake = Fake::new();
    *fake.ending.lock().expect("whole") = Ending::Hangs;
    let server = Server::start(&fake).await;
    assert_eq!(sent(http().post(server.at("/api/v1/builds")).body("x")).await.status(), 201);
    assert_eq!(sent(http().delete(server.at("/api/v1/builds/1"))).await.status(), 202);
    assert_eq!(refused(http().delete(server.at("/api/v1/builds/1"))).await, (409, "build_over".into()));
}

#[tokio::test]
async fn it_stops_while_a_log_is_followed() {
    let fake = Fake::new();
    let server = Server::start(&fake).await;
    let id = fake.add();
    fake.print(id, LogStream::Out, "one");
    let log = sent(http().get(server.at("/api/v1/builds/1/log"))).await;
    let address = server.address;
    server.stop().await;
    // It ends without an end: the build goes on, and the client knows that it must come back.
    let text = log.text().await.expect("a whole answer");
    assert!(text.contains("id: 1\n") && !text.contains("event: end"), "{text}");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_reader_that_stopped_is_cut_and_does_not_hold_up_the_end() {
    // Either bound must do it alone: the other one is longer than the test waits.
    for (drain, write_idle) in
        [(Duration::from_millis(200), LONG * 9), (LONG * 9, Duration::from_millis(200))]
    {
        let fake = Fake::new();
        fake.artifacts.lock().expect("whole").push(("big".into(), vec![7; 64 << 20]));
        let server = Server::with(&fake, ([127, 0, 0, 1], 0).into(), |o| {
            o.limits.drain = drain;
            o.limits.write_idle = write_idle;
        })
        .await;
        let id = fake.add();
        fake.end(id, BuildResult::Success);
        let mut stuck = TcpStream::connect(server.address).await.expect("connected");
        let head = b"GET /api/v1/builds/1/artifacts/big HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stuck.write_all(head).await.expect("written");
        stuck.read_exact(&mut [0; 12]).await.expect("an answer");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_port_in_use_is_named_with_the_key_that_sets_it() {
    let server = Server::start(&Fake::new()).await;
    let error = bind(server.address).await.expect_err("in use");
    assert!(matches!(error, BindError::InUse { .. }));
    assert!(error.to_string().contains(&server.address.port().to_string()));
    assert!(error.hint().contains("api.listen"));
    let error = bind(([192, 0, 2, 1], 7780).into()).await.expect_err("not ours");
    assert!(matches!(error, BindError::NoAddress { .. }), "{error}");
}
