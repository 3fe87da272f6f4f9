//! What an operator asks of the daemon as a whole, over HTTP and by the real program: how it is, to drain, to go on, to
//! read its configuration anew, which caches there are, and what images mean.

mod common;

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use common::{Fake, LONG, Server, cached, project};
use preheat::api::token::Token;
use preheat::api::wire::{CacheList, ChangeView, DaemonState, ErrorBody, ImageList, ReloadView, StatusView};
use preheat::build::spec::BuildResult;
use reqwest::{Client, RequestBuilder};

async fn post(server: &Server, path: &str) -> reqwest::Response {
    sent(Client::new().post(server.at(path))).await
}

async fn sent(request: RequestBuilder) -> reqwest::Response {
    request.timeout(LONG).send().await.expect("an answer")
}

/// Runs the program; its exit code, stdout and stderr.
async fn preheat(server: &Server, dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_preheat"));
    command.current_dir(dir).env("PREHEAT_URL", &server.url).env("HOME", dir).env_remove("PREHEAT_HOME");
    command.args(args).timeout(LONG);
    let done = tokio::task::spawn_blocking(move || command.output().expect("it runs"));
    let Output { status, stdout, stderr } = done.await.expect("no panic");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

async fn house() -> (Arc<Fake>, Server, tempfile::TempDir) {
    let (fake, dir) = (Fake::new(), tempfile::tempdir().expect("a folder"));
    project(dir.path());
    let server = Server::start(&fake).await;
    (fake, server, dir)
}

#[tokio::test]
async fn draining_is_asked_for_seen_and_ended_over_http() {
    let (fake, server, _dir) = house().await;
    let id = fake.add();
    let status: StatusView =
        sent(Client::new().get(server.at("/api/v1/status"))).await.json().await.expect("a status");
    assert_eq!((status.state, status.builds_running), (DaemonState::Serving, 1));
    for _ in 0..2 {
        let response = post(&server, "/api/v1/drain").await;
        assert_eq!(response.status(), 202, "asked again, the answer is the same");
        let status: StatusView = response.json().await.expect("a status");
        assert_eq!(status.state, DaemonState::Draining);
    }
    let refused = sent(Client::new().post(server.at("/api/v1/builds?pool=linux")).body("tar")).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "60");
    let ErrorBody { error } = refused.json().await.expect("an error");
    assert_eq!(error.code, "draining");
    assert_eq!(error.hint.as_deref(), Some("`preheat resume` lets it go on"));
    fake.end(id, BuildResult::Success);
    let status: StatusView = post(&server, "/api/v1/drain").await.json().await.expect("a status");
    assert_eq!(status.state, DaemonState::Drained);
    let response = post(&server, "/api/v1/resume").await;
    assert_eq!(response.status(), 200);
    let status: StatusView = response.json().await.expect("a status");
    assert_eq!(status.state, DaemonState::Serving);
    let get = sent(Client::new().get(server.at("/api/v1/drain"))).await;
    assert_eq!(get.status(), 405, "to look is not to drain");
}

#[tokio::test]
async fn a_page_or_a_caller_without_the_token_cannot_drain() {
    let fake = Fake::new();
    let server = Server::start(&fake).await;
    let foreign = Client::new().post(server.at("/api/v1/drain")).header("origin", "http://evil.example");
    assert_eq!(sent(foreign).await.status(), 403);
    let token = "0123456789abcdef0123456789abcdef";
    let guarded = Server::with(&fake, ([127, 0, 0, 1], 0).into(), |o| o.token = Token::new(token)).await;
    for path in ["/api/v1/drain", "/api/v1/resume", "/api/v1/config/reload"] {
        assert_eq!(post(&guarded, path).await.status(), 401, "{path}");
    }
    assert!(!*fake.draining.lock().expect("whole"));
    let known = Client::new().post(guarded.at("/api/v1/drain")).bearer_auth(token);
    assert_eq!(sent(known).await.status(), 202);
    assert!(*fake.draining.lock().expect("whole"));
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_waits_for_what_runs_when_asked_to_and_gives_up_in_time() {
    let (fake, server, dir) = house().await;
    let id = fake.add();
    let (code, out, err) = preheat(&server, dir.path(), &["drain"]).await;
    assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
    assert!(err.contains("draining: 1 build(s) run"), "{err}");
    let (code, _, err) = preheat(&server, dir.path(), &["drain", "--wait", "--timeout", "100ms"]).await;
    assert_eq!(code, Some(5), "{err}");
    assert!(err.contains("not drained in time: 1 build(s) run") && err.contains("hint: "), "{err}");
    let ended = async {
        // It ends while the command waits.
        fake.until(id, |_| true).await;
        fake.end(id, BuildResult::Success);
    };
    let (done, ()) = tokio::join!(preheat(&server, dir.path(), &["drain", "--wait", "--json"]), ended);
    let status: StatusView = serde_json::from_str(&done.1).unwrap_or_else(|e| panic!("{e}: {done:?}"));
    assert_eq!((done.0, status.state), (Some(0), DaemonState::Drained));
    let (code, _, err) = preheat(&server, dir.path(), &["run", "app", "--pool", "linux"]).await;
    assert_eq!(code, Some(3), "a drained daemon is not the user's fault: {err}");
    assert!(err.contains("is drained and takes no builds") && err.contains("preheat resume"), "{err}");
    let (code, out, _) = preheat(&server, dir.path(), &["status"]).await;
    assert_eq!(code, Some(0));
    assert_eq!(
        out,
        "daemon  drained: nothing runs; `preheat resume` ends that\nbuilds  0 running, 0 waiting\n\
         vms     0, and 1 that cannot be removed (`preheat vms`)\n"
    );
    let (code, _, err) = preheat(&server, dir.path(), &["resume"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(!*fake.draining.lock().expect("whole"));
    let (code, _, err) = preheat(&server, dir.path(), &["drain", "--timeout", "1s"]).await;
    assert_eq!(code, Some(2), "a time without `--wait` bounds nothing: {err}");
}

fn changed(key: &str, from: &str, to: &str, applies: &str) -> ChangeView {
    let [key, from, to, applies] = [key, from, to, applies].map(str::to_owned);
    ChangeView { key, from: Some(from), to: Some(to), applies }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_says_what_applies_how_and_names_every_mistake() {
    let (fake, server, dir) = house().await;
    let (code, out, err) = preheat(&server, dir.path(), &["reload"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "nothing differs from what is in force\n"), "{err}");
    let view = ReloadView {
        changes: vec![
            changed("pool.linux.warm", "1", "2", "live"),
            changed("pool.linux.image", "\"a\"", "\"b\"", "new_vms"),
            changed("api.listen", "\"127.0.0.1:1\"", "\"127.0.0.1:2\"", "restart"),
        ],
        pools_added: vec!["new".into()],
        pools_removed: vec!["old".into()],
        builds_ended: 3,
        warnings: vec!["preheat.toml:pool: odd".into()],
    };
    *fake.reload.lock().expect("whole") = Ok(view.clone());
    let (code, out, err) = preheat(&server, dir.path(), &["reload"]).await;
    assert_eq!(
        (code, out.as_str()),
        (
            Some(0),
            "pool.linux.warm: 1 -> 2\n\
             pool.linux.image: \"a\" -> \"b\"; idle VMs are replaced one by one\n\
             api.listen: \"127.0.0.1:1\" -> \"127.0.0.1:2\"; needs a restart, and stays as it was until then\n\
             pool.new: added\n\
             pool.old: removed; idle VMs go at once, those in use when their build is over\n\
             3 build(s) that waited for a removed pool ended in error\n"
        )
    );
    assert_eq!(err, "warning: preheat.toml:pool: odd\n");
    let (_, out, _) = preheat(&server, dir.path(), &["reload", "--json"]).await;
    assert_eq!(serde_json::from_str::<ReloadView>(&out).expect("a view"), view);

    let mistakes = ["preheat.toml:host.vms: found 0\n    hint: more", "preheat.toml:foo: unknown key"];
    *fake.reload.lock().expect("whole") = Err(mistakes.map(str::to_owned).to_vec());
    let (code, out, err) = preheat(&server, dir.path(), &["reload"]).await;
    assert_eq!((code, out.as_str()), (Some(2), ""));
    let wanted = "preheat.toml:host.vms: found 0\n    hint: more\npreheat.toml:foo: unknown key\n\
                  error: the configuration has 2 mistake(s), and the one before stays in force\nhint: correct it";
    assert!(err.starts_with(wanted), "{err}");
    let (_, out, _) = preheat(&server, dir.path(), &["reload", "--json"]).await;
    let ErrorBody { error } = serde_json::from_str(&out).expect("an error");
    assert_eq!((error.code.as_str(), error.mistakes), ("bad_config", mistakes.map(str::to_owned).to_vec()));
    assert_eq!(post(&server, "/api/v1/config/reload").await.status(), 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_are_listed_and_removed_by_name_by_project_or_all() {
    let (fake, server, dir) = house().await;
    let all = [("0a", "app"), ("0b", "app"), ("0c", "other\u{1b}[2J"), ("0d", "more")];
    *fake.caches.lock().expect("whole") = all.map(|(id, project)| cached(id, project)).to_vec();
    let left = || fake.caches.lock().expect("whole").iter().map(|c| c.id.clone()).collect::<Vec<_>>();
    let (code, out, err) = preheat(&server, dir.path(), &["cache", "list"]).await;
    assert_eq!(code, Some(0), "{err}");
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["CACHE", "PROJECT", "POOL", "SIZE", "SAVED", "USED", "KEY"]);
    assert_eq!(
        (lines[1][..5].to_vec(), lines[1].last()),
        (vec!["0a", "app", "linux", "4.2", "kB"], Some(&"app-key"))
    );
    assert!(lines.len() == 5 && !out.contains('\u{1b}'), "{out}");
    let (_, out, _) = preheat(&server, dir.path(), &["cache", "list", "--project", "app", "--json"]).await;
    assert_eq!(
        serde_json::from_str::<CacheList>(&out).expect("a list").caches,
        [cached("0a", "app"), cached("0b", "app")]
    );

    let (code, _, err) = preheat(&server, dir.path(), &["cache", "remove", "0d"]).await;
    assert_eq!((code, err.as_str()), (Some(0), "1 cache(s) removed, 4.2 kB\n"));
    let (code, _, err) = preheat(&server, dir.path(), &["cache", "remove", "0d"]).await;
    assert_eq!(code, Some(2), "{err}");
    assert!(
        err.contains("there is no cache `0d`") && err.contains("`preheat cache list` lists them"),
        "{err}"
    );
    let (code, out, _) =
        preheat(&server, dir.path(), &["cache", "remove", "--project", "app", "--json"]).await;
    assert_eq!((code, left()), (Some(0), vec!["0c".to_owned()]));
    assert_eq!(serde_json::from_str::<CacheList>(&out).expect("a list").caches.len(), 2);
    preheat(&server, dir.path(), &["cache", "remove", "--all"]).await;
    assert_eq!(left(), Vec::<String>::new());
    let (code, _, err) = preheat(&server, dir.path(), &["cache", "remove"]).await;
    assert_eq!(code, Some(2), "all of them only when that is said: {err}");
}

#[tokio::test]
async fn images_are_listed_chosen_and_gone_back_from() {
    let (fake, server, dir) = house().await;
    let (code, listed, _) = preheat(&server, dir.path(), &["image", "list"]).await;
    assert_eq!(code, Some(0));
    let rows: Vec<_> =
        listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let wanted = [
        "IMAGE GENERATION VM STATE POOLS ABOUT",
        "macos 1 macos-g1 current xcode xcode 26.1",
        "macos 2 macos-g2 unused xcode 26.2",
    ];
    assert_eq!(rows, wanted);
    let (code, _, said) = preheat(&server, dir.path(), &["image", "use", "macos@2"]).await;
    assert_eq!((code, said.as_str()), (Some(0), "image macos: macos-g2 from now on; in use by xcode\n"));
    assert_eq!(*fake.image.lock().expect("whole"), 2);
    let (code, json, _) = preheat(&server, dir.path(), &["image", "list", "--json"]).await;
    let list: ImageList = serde_json::from_str(&json).expect("a list");
    assert_eq!((code, list.images[0].base.as_str()), (Some(0), "macos-g2"));
    let (code, _, said) = preheat(&server, dir.path(), &["image", "rollback", "macos"]).await;
    assert!(code == Some(0) && said.contains("macos-g1 from now on"), "{said}");
    let (code, _, said) = preheat(&server, dir.path(), &["image", "rollback", "macos"]).await;
    assert!(
        code != Some(0) && said.contains("nothing to roll `macos` back to") && said.contains("hint:"),
        "{said}"
    );
    let (code, _, said) = preheat(&server, dir.path(), &["image", "use", "macos@7"]).await;
    assert!(code != Some(0) && said.contains("there is no image `macos-g7`"), "{said}");
    let (code, _, _) = preheat(&server, dir.path(), &["image", "use", "macos"]).await;
    assert_eq!(code, Some(2), "which one is not said");
    let response = post(&server, "/api/v1/images/macos/use/newest").await;
    assert_eq!(response.status(), 400);
}
