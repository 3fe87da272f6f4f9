//! Requests over real sockets: each is taken or refused in the documented shape, and a refused one leaves nothing behind.

use std::sync::Arc;

use preheat::api::wire::ErrorBody;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{Fake, LONG, Server};
use crate::{any_json, any_text, block_on, cases, mutated};

struct Answer {
    status: u16,
    body: String,
}

/// Sends bytes and reads one answer; `None` when the connection was closed without one, as it is on noise.
async fn send(server: &Server, request: &[u8], whole: bool) -> Option<Answer> {
    let mut stream = TcpStream::connect(server.address).await.expect("connected");
    // The answer may come, and the connection go, before all was sent.
    stream.write_all(request).await.ok();
    if !whole {
        // The daemon would wait for the rest.
        stream.shutdown().await.ok();
    }
    let mut answer = Vec::new();
    tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.expect("an answer in time").ok();
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().expect("a status");
    Some(Answer { status, body: body.to_owned() })
}

fn request(method: &str, target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Taken, or refused as documented; refused, nothing is left of it.
async fn assert_is_answered(fake: &Arc<Fake>, server: &Server, request: &[u8]) {
    let before = fake.specs.lock().expect("whole").len();
    let answer = send(server, request, true).await;
    let taken = fake.specs.lock().expect("whole").len() - before;
    let shown = String::from_utf8_lossy(request);
    match answer {
        Some(answer) => {
            assert!(answer.status < 500, "{} for {shown:?}: {}", answer.status, answer.body);
            assert_eq!(taken, usize::from(answer.status == 201), "{} for {shown:?}", answer.status);
            if answer.status >= 400 && answer.body.starts_with('{') {
                let body: ErrorBody = serde_json::from_str(&answer.body).expect("the documented shape");
                assert!(!body.error.code.is_empty() && !body.error.message.is_empty());
            } else if answer.status >= 400 {
                // The connection's own refusal, before there is a request: no body, or the 405 of a HEAD.
                assert!(
                    answer.body.is_empty() || shown.starts_with("HEAD"),
                    "{} {:?}",
                    answer.status,
                    answer.body
                );
            }
        }
        None => assert_eq!(taken, 0, "{shown:?}"),
    }
    assert!(fake.spool_is_empty(), "a piece is left of {shown:?}");
}

/// A daemon for all cases of a test, with one build in it.
fn with_daemon(case: impl AsyncFnOnce(&Arc<Fake>, &Server)) {
    block_on(async {
        let fake = Fake::new();
        let server = Server::start(&fake).await;
        let id = fake.add();
        fake.end(id, preheat::build::spec::BuildResult::Success);
        case(&fake, &server).await;
        let health = send(&server, &request("GET", "/healthz", "", b""), true).await.expect("an answer");
        assert_eq!(health.status, 200);
        server.stop().await;
    });
}

fn escaped(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"./-_~".contains(&b) {
                (b as char).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop::sample::select(&["api", "v1", "builds", "1", "0", "18446744073709551615", "log", "artifacts", "pools", "vms", "metrics", "..", "%2e%2e", ".", "", "%00", "%ff", "%zz"]).prop_map(str::to_owned),
        1 => any_text().prop_map(|t| escaped(&t)),
    ];
    prop_oneof![
        prop::collection::vec(part.clone(), 0..7).prop_map(|parts| format!("/{}", parts.join("/"))),
        prop::collection::vec(part, 0..3)
            .prop_map(|parts| format!("/api/v1/builds/1/artifacts/{}", parts.join("/"))),
        Just("/api/v1/builds".to_owned()),
        Just("/api/v1/builds/1/log".to_owned()),
    ]
}

fn query() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        prop::sample::select(&[
            "pool", "step", "env", "timeout", "retries", "artifact", "project", "secret", "limit", "after",
            "follow", "format"
        ])
        .prop_map(str::to_owned),
        any_text().prop_map(|t| escaped(&t)),
    ];
    let value =
        prop_oneof![any_text(), any::<i64>().prop_map(|n| n.to_string()), "[0-9]{1,22}(ms|s|m|h|d|y)"];
    prop::collection::vec((name, value), 0..5).prop_map(|pairs| {
        pairs.iter().map(|(n, v)| format!("{n}={}", escaped(v))).collect::<Vec<_>>().join("&")
    })
}

fn form() -> Vec<u8> {
    b"--B\r\ncontent-disposition: form-data; name=\"spec\"\r\ncontent-type: application/json\r\n\r\n{\"pool\":\"linux\"}\r\n\
      --B\r\ncontent-disposition: form-data; name=\"source\"; filename=\"a.tar\"\r\n\r\narchive\r\n--B--\r\n"
        .to_vec()
}

const FORM: &str = "content-type: multipart/form-data; boundary=B\r\n";

proptest! {
    #![proptest_config(cases(4))]

    #[test]
    fn any_path_and_query_is_answered(
        method in prop::sample::select(&["GET", "POST", "DELETE", "HEAD", "PUT", "OPTIONS", "BREW"]),
        path in path(), query in query(), body in prop::collection::vec(any::<u8>(), 0..30),
    ) {
        with_daemon(async |fake, server| {
            // Following a log that never ends would never end; this one has ended.
            assert_is_answered(fake, server, &request(method, &format!("{path}?{query}"), "", &body)).await;
        });
    }

    #[test]
    fn any_form_is_answered(damaged in mutated(form()), boundary in prop_oneof![Just("B".to_owned()), any_text()]) {
        let header = boundary.chars().filter(|c| !c.is_control()).collect::<String>();
        let headers = format!("content-type: multipart/form-data; boundary={header}\r\n");
        with_daemon(async |fake, server| {
            for headers in [FORM, &headers] {
                assert_is_answered(fake, server, &request("POST", "/api/v1/builds", headers, &damaged)).await;
            }
        });
    }

    #[test]
    fn any_spec_in_a_form_is_answered(json in any_json(), text in any_text()) {
        with_daemon(async |fake, server| {
            for spec in [json.to_string(), format!("{{\"pool\":\"linux\",\"timeout\":{json}}}"), format!("{{\"retries\":{json}}}"), text] {
                let body = String::from_utf8(form()).expect("text").replace("{\"pool\":\"linux\"}", &spec);
                assert_is_answered(fake, server, &request("POST", "/api/v1/builds", FORM, body.as_bytes())).await;
            }
        });
    }

    #[test]
    fn any_headers_are_answered(name in "[a-zA-Z-]{1,12}", value in any_text(), known in prop::sample::select(&["authorization", "origin", "host", "range", "last-event-id", "content-type", "accept", "if-none-match"])) {
        let value: String = value.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        with_daemon(async |fake, server| {
            for target in ["/api/v1/builds", "/api/v1/builds/1/log"] {
                let headers = format!("{name}: {value}\r\n{known}: {value}\r\n");
                assert_is_answered(fake, server, &request("GET", target, &headers, b"")).await;
                assert_is_answered(fake, server, &request("POST", target, &headers, b"archive")).await;
            }
        });
    }

    #[test]
    fn noise_in_place_of_a_request_is_answered_or_hung_up_on(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            mutated(request("POST", "/api/v1/builds?pool=linux", "content-type: application/x-tar\r\n", b"archive")),
            mutated(b"POST /api/v1/builds?pool=linux HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n7\r\narchive\r\n0\r\n\r\n".to_vec()),
        ],
    ) {
        with_daemon(async |_, server| {
            // Whether a mutated one is taken is its own affair; it is answered, and the daemon goes on.
            send(server, &bytes, false).await.iter().for_each(|answer| assert!(answer.status < 500 || answer.status == 505, "{}", answer.status));
        });
    }
}
