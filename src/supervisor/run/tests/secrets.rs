//! Builds with secrets: over a restart, and where one would come out.

use super::*;
use crate::build::actor::artifacts_path;

#[tokio::test(start_paused = true)]
async fn a_build_with_secrets_has_them_after_a_restart() {
    let world = world(0, 1).await;
    world.sim.always(Step::Connect, Behaviour::Never);
    let id = world.submit("echo it is tokentoken", |spec| spec.secrets = vec!["TOKEN".into()]).await;
    let World { daemon, sim, config, dir } = world;
    daemon.stop().await;
    sim.always(Step::Connect, Behaviour::Ok);
    let daemon = start(&config, &sim).await;
    assert_eq!(over(&daemon, id).await.result, Some(BuildResult::Success));
    // The value is known again: it is masked.
    let lines: Vec<_> = log::read(log_path(&config, id), 0, None).map(|line| line.text).collect().await;
    assert!(lines.contains(&"it is ***".to_owned()), "{lines:?}");
    assert!(daemon.context.store.secrets(id).await.is_err(), "they went with the result");
    drop(dir);
}

#[tokio::test(start_paused = true)]
async fn a_secret_in_an_artifacts_name_fails_the_build() {
    let world = world(1, 1).await;
    let named = |name: &'static str| {
        move |spec: &mut BuildSpec| {
            spec.secrets = vec!["TOKEN".into()];
            spec.artifacts = vec!["plain".into(), name.into()];
        }
    };
    let id = world.submit("echo", named("app-tokentoken.bin")).await;
    let view = world.over(id).await;
    // The user's own failure: it is not attempted again.
    assert_eq!((view.result, view.attempt), (Some(BuildResult::Failure), 1), "{view:?}");
    let reason = view.reason.expect("a reason");
    assert!(reason.contains("`app-***.bin` has a secret in it"), "{reason}");
    assert_eq!(view.artifacts, []);
    let kept = artifacts_path(&world.config, id);
    assert!(!kept.exists() && !kept.with_extension("partial").exists(), "{}", kept.display());

    let id = world.submit("echo", named("app.bin")).await;
    assert_eq!(world.over(id).await.result, Some(BuildResult::Success));
    assert!(artifacts_path(&world.config, id).join("app.bin").exists());
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_secrets_do_not_open_after_a_restart_ends_and_says_so() {
    let world = world(0, 1).await;
    world.sim.always(Step::Connect, Behaviour::Never);
    let id = world.submit("echo", |spec| spec.secrets = vec!["TOKEN".into()]).await;
    let World { daemon, sim, config, dir } = world;
    daemon.stop().await;
    std::fs::remove_file(dir.path().join("keys/journal.key")).expect("removed");
    let daemon = start(&config, &sim).await;
    let view = over(&daemon, id).await;
    assert_eq!(view.result, Some(BuildResult::Error));
    let reason = view.reason.expect("a reason");
    assert!(reason.contains("`TOKEN` are lost") && reason.contains("keys/journal.key"), "{reason}");
}
