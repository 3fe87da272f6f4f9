//! Pipelines in real guests. What is Apple's is stood in for by scripts that come with the source and are first in the PATH.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use preheat::api::wire::{AppKind, BuildView, FailureKind};
use preheat::build::spec::BuildResult;

use crate::house::{House, Plan, err, out, shared};
use crate::projects::folder;

/// The work folder's own programs before the guest's.
const PATH: &str = "PATH=/home/admin/work/apple:/home/admin/work/tools:/usr/local/bin:/usr/bin:/bin";

/// An installation in an emulated guest takes half a minute, and several on a busy machine.
const INSTALL: Duration = Duration::from_secs(900);

/// A release of npm that the guest's Node.js runs.
const NPM: &str = "npm@10.9.2";

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            // Its mode is copied too.
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

fn assets(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e").join(name)
}

/// A project for Xcode, with what stands in for Apple's tools.
fn xcode(house: &House, name: &str, more: &[(&str, &str)]) -> String {
    let project =
        [("App.xcodeproj/project.pbxproj", "// !$*UTF8*$!\n"), ("App/AppDelegate.swift", "// app\n")];
    let root = folder(house.dir(), name, &[&project, more].concat());
    copy(&assets("apple"), &root.join("apple"));
    root.display().to_string()
}

fn failed(output: &Output) -> BuildView {
    assert_eq!(output.status.code(), Some(1), "{}", err(output));
    serde_json::from_slice(&output.stdout).expect("a build")
}

#[test]
fn an_xcode_project_is_found_archived_and_signed_and_its_app_says_what_it_is() {
    let house = shared();
    // An old IPA in the source is not what was built.
    let project = xcode(&house, "signed", &[("old.ipa", "old"), ("build/old.ipa", "old")]);
    let signing = [
        "PREHEAT_TEAM_ID=ABCDE12345",
        "PREHEAT_PROFILE_UUID=0a1b-2c3d",
        "PREHEAT_SIGNING_IDENTITY=Apple Distribution: Example",
        "PREHEAT_KEYCHAIN=build.keychain-db",
    ];
    let env = signing.iter().chain([&PATH]).flat_map(|variable| ["--env", *variable]);
    let args: Vec<&str> =
        [project.as_str(), "--pool", "linux", "--out", "signed-out"].into_iter().chain(env).collect();
    let (build, said) = house.run(&args);

    assert_eq!((build.result, build.pipeline.as_deref()), (Some(BuildResult::Success), Some("xcode")));
    assert_eq!(build.failure, None);
    let log = house.log(build.id.0);
    let first = &log.first().expect("a line").text;
    assert_eq!(
        first, "pipeline xcode: there is App.xcodeproj/project.pbxproj",
        "the log begins with what was chosen"
    );
    let says = |text: &str| log.iter().any(|line| line.text.contains(text));
    assert!(says("preheat: left out, for this is not so: [ -e Podfile ]"), "{log:#?}");
    assert!(says("scheme App of App.xcodeproj, Release"), "{log:#?}");

    let names: Vec<&str> = build.artifacts.iter().map(|artifact| artifact.path.as_str()).collect();
    let all = ["App.ipa", "App.xcresult.zip", "dSYMs.zip", "xcodebuild.log"]
        .map(|name| format!("build/preheat/{name}"));
    assert_eq!(names, all);
    let app = build.artifacts[0].app.as_ref().expect("an app");
    assert_eq!((app.kind, app.bundle_id.as_deref()), (AppKind::Ipa, Some("org.example.app")));
    assert_eq!((app.version.as_deref(), app.build_number.as_deref()), (Some("1.4.0"), Some("214")));
    assert_eq!((app.team_id.as_deref(), app.profile.as_deref()), (Some("ABCDE12345"), Some("0a1b-2c3d")));
    assert!(said.contains("org.example.app 1.4.0 (214), iOS 15.1 or later, team ABCDE12345"), "{said}");
    let xcodes =
        fs::read_to_string(house.dir().join("signed-out/build/preheat/xcodebuild.log")).expect("there");
    assert!(
        xcodes.contains("** ARCHIVE SUCCEEDED **") && xcodes.contains("** EXPORT SUCCEEDED **"),
        "{xcodes}"
    );
}

#[test]
fn an_app_that_does_not_compile_fails_with_the_error_and_one_that_is_none_with_the_reason() {
    let house = shared();
    let broken = xcode(&house, "broken", &[("App/broken.swift", "// broken\n")]);
    let build = failed(&house.preheat(&["run", "--json", &broken, "--pool", "linux", "--env", PATH]));
    assert_eq!(build.reason.as_deref(), Some("step `archive` exited with 65"));
    let failure = build.failure.expect("it failed");
    assert_eq!((failure.kind, failure.step.as_deref()), (FailureKind::User, Some("archive")));
    assert_eq!(failure.message, "broken.swift:12:5: cannot find 'Bridge' in scope");
    assert!(failure.lines.iter().any(|line| line.starts_with("SwiftCompile normal arm64")), "{failure:?}");

    let unsigned = xcode(&house, "unsigned", &[]);
    let (build, _) = house.run(&[&unsigned, "--pool", "linux", "--env", PATH, "--out", "unsigned-out"]);
    assert_eq!(build.artifacts[0].app.as_ref().and_then(|app| app.team_id.clone()), None);

    let rubbish = xcode(&house, "rubbish", &[]);
    let signing = [
        "--env",
        "PREHEAT_PROFILE_UUID=x",
        "--env",
        "PREHEAT_TEAM_ID=T",
        "--env",
        "STAND_IN_EXPORTS=rubbish",
    ];
    let args: Vec<&str> =
        ["run", "--json", &rubbish, "--pool", "linux", "--env", PATH].into_iter().chain(signing).collect();
    let build = failed(&house.preheat(&args));
    let why = "artifact `build/preheat/App.ipa` is no ipa: it is no zip archive: ";
    assert!(build.reason.as_deref().is_some_and(|reason| reason.starts_with(why)), "{:?}", build.reason);
    assert!(build.artifacts.is_empty() && build.failure.is_some());
}

#[test]
fn what_no_pipeline_and_no_pool_is_for_is_refused_before_a_vm_is_used() {
    let house = shared();
    let nothing = folder(house.dir(), "nothing", &[("README", "x\n"), ("apps/a/pubspec.yaml", "name: a\n")]);
    let nothing = nothing.display().to_string();
    let output = house.preheat(&["run", &nothing, "--pipeline", "auto"]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    for says in [
        "no pipeline fits the source's files",
        "`expo`: a package.json that depends on expo",
        "`apps/a` looks like `flutter`",
    ] {
        assert!(err(&output).contains(says), "{says}: {}", err(&output));
    }
    let output = house.preheat(&["run", &nothing, "--step", "true", "--need", "xcode=>=26"]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(
        err(&output).contains("no pool provides xcode >=26; `linux` says nothing of itself"),
        "{}",
        err(&output)
    );
    let listed = house.preheat(&["pipelines"]);
    assert!(out(&listed).starts_with("PIPELINE") && out(&listed).contains("\nflutter"), "{}", out(&listed));
    let one = house.preheat(&["pipelines", "expo"]);
    assert!(out(&one).contains("[[pipelines.expo.steps]]") && out(&one).contains("npm ci"), "{}", out(&one));
    assert_eq!(house.preheat(&["pipelines", "exop"]).status.code(), Some(2));
}

/// What the host's npm is configured to; nothing where there is no npm.
fn npm_says(key: &str) -> Option<String> {
    let said = assert_cmd::Command::new("npm").args(["config", "get", key]).output().ok()?;
    let text = out(&said).trim().to_owned();
    (said.status.success() && !text.is_empty() && text != "null" && text != "undefined").then_some(text)
}

/// The app with npm, for guests that have none, and with the host's way to the registry. Nothing where the host has no npm
/// either: then the test is left out, and says so.
fn expo(house: &House, name: &str) -> Option<(String, Vec<String>)> {
    let Some(registry) = npm_says("registry") else {
        writeln!(std::io::stderr(), "left out: this host has no npm").ok();
        return None;
    };
    let root = house.dir().join(name);
    copy(&assets("expo"), &root);
    copy(&assets("apple"), &root.join("apple"));
    let tools = root.join("tools");
    fs::create_dir(&tools).expect("made");
    let mut pack = assert_cmd::Command::new("npm");
    let packed = pack.args(["pack", "--silent", NPM]).current_dir(&tools).output().expect("it runs");
    assert!(packed.status.success(), "the host's npm cannot fetch {NPM}: {}", err(&packed));
    let tar = tools.join(out(&packed).trim());
    let unpacked =
        assert_cmd::Command::new("tar").arg("-xzf").arg(&tar).current_dir(&tools).output().expect("it runs");
    assert!(unpacked.status.success(), "{}", err(&unpacked));
    fs::remove_file(tar).expect("removed");
    for program in ["npm", "npx"] {
        let script =
            format!("#!/bin/sh\nexec node /home/admin/work/tools/package/bin/{program}-cli.js \"$@\"\n");
        let path = tools.join(program);
        fs::write(&path, script).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    }
    let mut env = vec![
        PATH.to_owned(),
        format!("NPM_CONFIG_REGISTRY={registry}"),
        // The step itself is run again, so that nothing is waited for here.
        "NPM_CONFIG_FETCH_RETRIES=0".to_owned(),
        "NPM_CONFIG_UPDATE_NOTIFIER=false".to_owned(),
    ];
    if let Some(authorities) = npm_says("cafile") {
        fs::copy(authorities, root.join("authorities.pem")).expect("copied");
        env.push("NPM_CONFIG_CAFILE=/home/admin/work/authorities.pem".to_owned());
    }
    Some((root.display().to_string(), env))
}

fn run(house: &House, project: &str, env: &[String], more: &[&str]) -> Output {
    let env = env.iter().flat_map(|variable| ["--env", variable.as_str()]);
    let args: Vec<&str> =
        ["run", "--json", project].into_iter().chain(more.iter().copied()).chain(env).collect();
    house.command(&args).timeout(INSTALL).output().expect("it runs")
}

#[test]
fn a_real_npm_project_is_installed_bundled_and_packed_by_the_expo_pipeline() {
    let house =
        Plan::pool(1, 1).and("provides = { node = \"18\" }\n").variable("TART_QEMU_ONLINE", "1").open();
    let Some((project, env)) = expo(&house, "app") else { return };
    let output = run(&house, &project, &env, &["--need", "node=>=18", "--out", "result"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let build: BuildView = serde_json::from_slice(&output.stdout).expect("a build");
    assert_eq!(build.pipeline.as_deref(), Some("expo"));
    let steps: Vec<&str> = build.phases.iter().filter_map(|phase| phase.step.as_deref()).collect();
    assert_eq!(steps, ["install", "prebuild", "pods", "archive", "export", "collect"]);
    let log = house.log(build.id.0);
    let says = |text: &str| log.iter().any(|line| line.text.contains(text));
    for text in [
        "pipeline expo: package.json depends on expo",
        "step install: npm ci --no-audit --no-fund (there is package-lock.json)",
        "pool linux provides node 18",
        "Pod installation complete!",
    ] {
        assert!(says(text), "{text}: {log:#?}");
    }
    let installed =
        log.iter().find_map(|line| line.text.strip_prefix("added ")?.split(' ').next()?.parse::<u32>().ok());
    assert!(installed.is_some_and(|packages| packages >= 24), "{installed:?} packages: {log:#?}");

    let app = build.artifacts.iter().find_map(|artifact| artifact.app.as_ref()).expect("an app");
    assert_eq!(app.bundle_id.as_deref(), Some("org.example.app"));
    let ipa = house.dir().join("result/build/preheat/App.ipa");
    let bundle = assert_cmd::Command::new("unzip")
        .arg("-p")
        .arg(ipa)
        .arg("Payload/App.app/main.jsbundle")
        .output()
        .expect("it runs");
    assert!(out(&bundle).contains("JSON.stringify(chunk("), "{}", out(&bundle));
}

#[test]
fn without_a_network_it_fails_with_the_reason_that_a_developer_understands() {
    let house = Plan::pool(1, 1).open();
    let Some((project, env)) = expo(&house, "app") else { return };
    // Once is enough to see it fail.
    let file = "pipeline = \"expo\"\nsteps = [{ name = \"install\", retries = 0 }]\n";
    fs::write(Path::new(&project).join(".preheat.toml"), file).expect("written");
    let output = run(&house, &project, &env, &[]);
    let build = failed(&output);
    let failure = build.failure.expect("it failed");
    assert_eq!((failure.kind, failure.step.as_deref()), (FailureKind::System, Some("install")));
    let message = failure.message.as_str();
    assert!(message.starts_with("the npm registry"), "{failure:?}");
    assert!(message.contains("cannot be reached from the guest"), "{failure:?}");
    let said = err(&output);
    assert!(said.contains("not by the build's own doing: the npm registry"), "{said}");
}
