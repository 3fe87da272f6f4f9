//! Certificates of a build on their way into its submission, and measures of its guest on their way out, by a service that
//! notes what it is given.

use std::io::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use preheat::api::service::Service as _;
use preheat::build::spec::BuildResult;
use preheat::config::Live;
use preheat::source::Sources;
use preheat::source::controller::{self, Parts};
use preheat::store::Store;
use serde_json::json;

use crate::common::{Ending, Fake};
use crate::fake_controller::{Bugs, FakeController, Speaks};
use crate::lab::{Lab, app, until};

fn bundle() -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let files: [(&str, &[u8]); 3] =
        [("dist.p12", b"the p12"), ("password.txt", b"in the bundle\n"), ("app.mobileprovision", b"profile")];
    for (name, bytes) in files {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).expect("begun");
        zip.write_all(bytes).expect("written");
    }
    zip.finish().expect("whole").into_inner()
}

/// Jobs run against a service that only notes what it is asked.
async fn asked(
    speaks: Speaks,
    bugs: Bugs,
    certificates: Option<Vec<u8>>,
) -> (Arc<Fake>, FakeController, String) {
    let controller = FakeController::start(speaks, bugs).await;
    let lab = Lab::closed(&controller.url(), 1);
    let fake = Fake::new();
    *fake.artifacts.lock().expect("whole") = vec![("app.ipa".into(), b"signed".to_vec())];
    let id = controller.submit_with(app("echo"), certificates);
    let (live, sources) = (Live::new(Arc::new(lab.config())), Sources::default());
    let store = Store::open(&lab.journal()).expect("a journal");
    let parts = Parts { live, service: fake.clone(), store };
    controller::begin(&sources, parts).await.expect("begun");
    controller.over(&id).await;
    sources.end().await;
    (fake, controller, id)
}

#[tokio::test]
async fn certificates_come_with_the_build_in_both_dialects() {
    for speaks in [Speaks::Keyed, Speaks::Tokened] {
        let (fake, controller, id) = asked(speaks, Bugs::default(), Some(bundle())).await;
        let specs = fake.specs.lock().expect("whole").clone();
        let signing = specs[0].signing.as_ref().expect("certificates");
        assert_eq!(
            STANDARD.decode(&signing.p12).expect("base64"),
            bundle(),
            "what the controller made of it"
        );
        assert_eq!((signing.password.as_str(), signing.profiles.len()), ("of-the-p12", 1));
        assert_eq!(specs[0].pipeline, None, "its own, or what its files say");
        assert_eq!(specs[0].env["PREHEAT_JOB"], format!("mesh/{id}"));
        assert_eq!(controller.build(&id).result.as_deref(), Some(&b"signed"[..]));
    }
}

#[tokio::test]
async fn a_controller_that_cannot_read_the_bundle_gives_the_bundle() {
    let bugs = || Bugs { certificates_fail: true, ..Bugs::default() };
    let (fake, _, _) = asked(Speaks::Keyed, bugs(), Some(bundle())).await;
    let specs = fake.specs.lock().expect("whole").clone();
    let signing = specs[0].signing.as_ref().expect("certificates");
    assert_eq!(STANDARD.decode(&signing.p12).expect("base64"), b"the p12");
    assert_eq!(signing.password, "in the bundle");
    // A raw certificate where a bundle should be, as one client sends it.
    let (fake, controller, id) = asked(Speaks::Keyed, bugs(), Some(b"a raw p12".to_vec())).await;
    assert!(fake.specs.lock().expect("whole").is_empty(), "no VM is used for it");
    let error = controller.build(&id).error.expect("a reason");
    assert!(error.starts_with("signing: the certificates cannot be used"), "{error}");
}

#[tokio::test]
async fn a_build_without_certificates_comes_without_any() {
    let (fake, controller, _) = asked(Speaks::Keyed, Bugs::default(), None).await;
    assert_eq!(fake.specs.lock().expect("whole")[0].signing, None);
    assert_eq!(controller.book().called("certs"), 0);
}

#[tokio::test]
async fn what_a_guest_needs_is_told_once_for_each_time_that_it_was_measured() {
    let controller =
        FakeController::start(Speaks::Keyed, Bugs { telemetry_fails: true, ..Bugs::default() }).await;
    let lab = Lab::closed(&controller.url(), 1);
    let fake = Fake::new();
    *fake.ending.lock().expect("whole") = Ending::Hangs;
    *fake.artifacts.lock().expect("whole") = vec![("app.ipa".into(), b"app".to_vec())];
    let id = controller.submit(app("echo"));
    let (live, sources) = (Live::new(Arc::new(lab.config())), Sources::default());
    let store = Store::open(&lab.journal()).expect("a journal");
    controller::begin(&sources, Parts { live, service: fake.clone(), store }).await.expect("begun");
    let build = until("accepted", async || fake.builds(1).await.ok()?.pop()).await.id;
    for (at, percent) in [(1_000, 42), (2_000, 7)] {
        let guest = json!({"cpu_percent": percent, "memory_used_bytes": 3_u64 << 30, "memory_total_bytes": 4_u64 << 30,
            "disk_used_bytes": 1, "disk_free_bytes": 1, "at_ms": at});
        fake.change(build, |view| view.guest = Some(serde_json::from_value(guest).expect("a guest")));
        let told =
            |body: &serde_json::Value| body["data"]["cpu_percent"].as_f64() == Some(f64::from(percent));
        controller.until("told", |book| book.builds[&id].telemetry.last().is_some_and(told)).await;
    }
    // Though the controller says that it failed, it was stored: it is not told again.
    controller.until("two heartbeats more", |book| book.builds[&id].heartbeats > 3).await;
    fake.end(build, BuildResult::Success);
    let build = controller.over(&id).await;
    assert_eq!(build.telemetry.len(), 2, "{:?}", build.telemetry);
    assert_eq!(build.telemetry[0]["type"], "cpu_snapshot");
    assert_eq!(build.telemetry[0]["timestamp"], "1970-01-01T00:00:01.000Z");
    assert_eq!(build.telemetry[0]["data"]["memory_mb"], 3072);
    sources.end().await;
}
