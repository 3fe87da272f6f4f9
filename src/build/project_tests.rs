//! What a project's file may say, and what becomes of it with a request.

use proptest::prelude::*;

use super::*;
use crate::build::redact::Redactor;
use crate::config::ByteSize;
use crate::config::Network;

const MINUTE: Duration = Duration::from_secs(60);

fn defaults() -> Builds {
    Builds {
        timeout: 240 * MINUTE,
        step_timeout: 60 * MINUTE,
        retries: 2,
        guest_health: true,
        kill_grace: MINUTE,
        log_max: ByteSize(1 << 20),
        artifacts_max: ByteSize(1 << 20),
        keep: 10,
        keep_age: Duration::from_secs(3600),
        keep_bytes: None,
    }
}

fn pools(names: &[&str]) -> BTreeMap<PoolName, Pool> {
    let pool = Pool {
        image: "x".into(),
        generation: None,
        warm: 1,
        max: 1,
        cpu: None,
        memory: None,
        disk: None,
        user: "admin".into(),
        key: "/k".into(),
        port: 22,
        network: Network::Nat,
        provides: BTreeMap::new(),
        boot_timeout: MINUTE,
        probe_timeout: MINUTE,
        probe_interval: MINUTE,
        warmup: None,
        warmup_timeout: MINUTE,
        max_age: MINUTE,
        run_args: Vec::new(),
        resume: false,
        resume_timeout: MINUTE,
    };
    names.iter().map(|name| (name.parse().expect("a name"), pool.clone())).collect()
}

fn file(text: &str) -> Option<ProjectFile> {
    Some(ProjectFile::parse(text).unwrap_or_else(|e| panic!("{e}")))
}

fn request(json: &str) -> SubmitSpec {
    serde_json::from_str(json).expect("a request")
}

/// As a daemon with these pools merges it.
fn merge(
    project: Option<ProjectFile>,
    request: &SubmitSpec,
    builds: &Builds,
    pools: &BTreeMap<PoolName, Pool>,
    fallback_name: &str,
) -> Result<(BuildSpec, Secrets), Incomplete> {
    over(project, request, builds, pools, (&Files::default(), fallback_name))
}

fn over(
    project: Option<ProjectFile>,
    request: &SubmitSpec,
    builds: &Builds,
    pools: &BTreeMap<PoolName, Pool>,
    (files, fallback_name): (&Files, &str),
) -> Result<(BuildSpec, Secrets), Incomplete> {
    let (pipelines, standings) = (crate::config::pipelines::built_in(), Standings::new());
    let around = Around { builds, pools, pipelines: &pipelines, files, standings: &standings, fallback_name };
    super::merge(project, request, &around)
}

fn merged(text: &str, json: &str) -> BuildSpec {
    let merged = merge(file(text), &request(json), &defaults(), &pools(&["linux"]), "folder");
    merged.unwrap_or_else(|e| panic!("{e}")).0
}

fn refused(text: &str, json: &str) -> String {
    merge(file(text), &request(json), &defaults(), &pools(&["linux"]), "folder")
        .expect_err("a mistake")
        .to_string()
}

#[test]
fn the_example_in_the_documentation_is_a_project() {
    let head = include_str!("project.rs").lines().take_while(|line| line.starts_with("//!"));
    let inside =
        head.skip_while(|line| !line.contains("```toml")).skip(1).take_while(|line| !line.contains("```"));
    let text: String = inside.map(|line| format!("{}\n", line.trim_start_matches("//!").trim())).collect();
    let project = file(&text).expect("a project");
    let step = |name: Option<&str>, command: &str| StepSpec {
        name: name.map(Into::into),
        command: command.into(),
        ..Default::default()
    };
    let archive = StepSpec {
        dir: Some("ios".into()),
        timeout: Some(40 * MINUTE),
        retries: Some(1),
        ..step(Some("archive"), "make ipa")
    };
    assert_eq!(
        project,
        ProjectFile {
            project: Some("app".into()),
            pool: Some("xcode-26".into()),
            needs: Needs::new(),
            pipeline: None,
            dir: None,
            steps: vec![step(None, "npm ci"), archive],
            env: BTreeMap::from([("CI".into(), "true".into())]),
            secrets: vec!["MATCH_PASSWORD".into()],
            artifacts: vec!["build/**/*.ipa".into()],
            caches: vec![CacheSpec {
                key: "pods-{{ hash 'Podfile.lock' }}".into(),
                restore_keys: vec!["pods-".into()],
                paths: vec!["Pods".into(), "~/.cocoapods".into()],
            }],
            timeout: Some(60 * MINUTE),
            retries: Some(1),
            include_git: false,
        }
    );
}

fn expo() -> Files {
    let manifest = r#"{"dependencies":{"expo":"1"}}"#.to_owned();
    let names = ["apps/mobile/package.json", "package-lock.json", "build.sh"].map(str::to_owned);
    Files::new(names, &BTreeMap::from([("apps/mobile/package.json".to_owned(), manifest)]))
}

fn planned(text: &str, json: &str) -> Result<BuildSpec, String> {
    let merged = over(file(text), &request(json), &defaults(), &pools(&["linux"]), (&expo(), "folder"));
    merged.map(|(spec, _)| spec).map_err(|e| e.to_string())
}

fn names(spec: &BuildSpec) -> Vec<&str> {
    spec.steps.iter().map(|step| step.name.as_str()).collect()
}

#[test]
fn a_project_names_a_pipeline_and_says_what_differs() {
    let head = include_str!("project.rs").lines().take_while(|line| line.starts_with("//!"));
    let inside = head
        .skip_while(|line| !line.contains("Instead of all its steps"))
        .skip_while(|l| !l.contains("```toml"));
    let inside = inside.skip(1).take_while(|line| !line.contains("```"));
    let text: String = inside.map(|line| format!("{}\n", line.trim_start_matches("//!"))).collect();
    assert!(wants_files(file(&text).as_ref(), &SubmitSpec::default()));
    let mut pools = pools(&["linux"]);
    let facts = BTreeMap::from([("xcode".to_owned(), "26.2".to_owned())]);
    pools.values_mut().for_each(|pool| pool.provides.clone_from(&facts));
    let (spec, _) = over(file(&text), &request("{}"), &defaults(), &pools, (&expo(), "f"))
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(names(&spec), ["install", "lint", "prebuild", "archive", "export", "collect"]);
    assert_eq!(spec.pipeline.as_deref(), Some("expo"));
    assert_eq!(
        (spec.steps[0].dir.as_str(), spec.steps[0].timeout),
        ("", 20 * MINUTE),
        "where the lock file is"
    );
    assert_eq!((spec.steps[0].command.starts_with("npm ci"), spec.steps[0].retries), (true, 1));
    assert_eq!((spec.steps[1].dir.as_str(), spec.steps[1].timeout), ("apps/mobile", 60 * MINUTE));
    assert_eq!(spec.artifacts, ["apps/mobile/build/preheat/*"]);
    assert_eq!(spec.env["XCODE_CONFIGURATION"], "Release");
    assert_eq!(spec.said[0], "pipeline expo: as .preheat.toml says");
    assert_eq!(spec.said.last().map(String::as_str), Some("pool linux provides xcode 26.2"));
}

#[test]
fn the_pipeline_is_found_from_the_files_when_nobody_says_how_to_build() {
    let spec = planned("", r#"{"dir":"apps/mobile/"}"#).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(spec.said[0], "pipeline expo: package.json depends on expo");
    assert_eq!(planned("", "{}").map(|spec| spec.pipeline), Ok(Some("shell".to_owned())));
    let auto = planned("pipeline = \"auto\"\ndir = \"apps\"", "{}").expect_err("nothing there");
    assert!(
        auto.starts_with(".preheat.toml:pipeline: no pipeline fits the source's files; looked for `expo`: "),
        "{auto}"
    );
    assert!(auto.contains("hint: `apps/mobile` looks like `expo`"), "{auto}");
}

#[test]
fn the_requests_pipeline_wins_and_its_steps_stand_for_all_where_it_names_none() {
    let text = "pipeline = \"expo\"\ndir = \"apps/mobile\"\nenv = { PLATFORM = \"android\" }\nsteps = [{ name = \"install\", timeout = \"1m\" }]";
    let spec = planned(text, "{}").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(names(&spec), ["install", "prebuild", "gradle", "collect-android"]);
    let only = planned(text, r#"{"steps":[{"command":"npm test"}]}"#).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        (only.pipeline.as_deref(), only.steps.len(), only.steps[0].dir.as_str()),
        (None, 1, "apps/mobile")
    );
    let other = planned(text, r#"{"pipeline":"shell","dir":"."}"#).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((other.pipeline.as_deref(), names(&other)), (Some("shell"), vec!["build"]));
    let both = r#"{"pipeline":"shell","dir":"","steps":[{"name":"build","timeout":"5m"},{"command":"true"}],"timeout":"3m"}"#;
    let both = planned(text, both).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((names(&both), both.steps[0].timeout), (vec!["build", "true"], 3 * MINUTE));
}

#[test]
fn a_secret_takes_the_place_of_a_pipelines_variable() {
    let json =
        r#"{"pipeline":"expo","dir":"apps/mobile","secrets":{"XCODE_TEAM_ID":"T","XCODE_SCHEME":"App"}}"#;
    let spec = planned("", json).unwrap_or_else(|e| panic!("{e}"));
    assert!(!spec.env.contains_key("XCODE_SCHEME") && spec.env.contains_key("XCODE_PROJECT"));
}

#[test]
fn what_is_wrong_with_a_pipeline_is_told_with_its_place() {
    for (text, json, says) in [
        (
            "",
            r#"{"pipeline":"exop"}"#,
            "request:pipeline: there is no pipeline `exop`; there is `expo`, `react-native`",
        ),
        ("pipeline = \"exop\"", "{}", ".preheat.toml:pipeline: there is no pipeline `exop`"),
        ("", r#"{"pipeline":"shell","dir":"no"}"#, "request:dir: there is no folder `no` in the source"),
        ("", r#"{"pipeline":"shell","dir":"../x"}"#, "request:dir: found \"../x\""),
        (
            "",
            r#"{"pipeline":"shell","steps":[{"name":"x"}]}"#,
            "request:steps[0]: step `x` is new, so it needs a `command`",
        ),
        (
            "pipeline = \"shell\"\nsteps = [{ name = \"x\", command = \"y\", after = \"z\" }]",
            "{}",
            ".preheat.toml:steps[0]: there is no step `z` to come after; there is `build`",
        ),
        (
            "",
            r#"{"steps":[{"command":"x","after":"y"}]}"#,
            "request:steps[0].after: is for a step over those of a pipeline",
        ),
        (
            "",
            r#"{"steps":[{"name":"x"}]}"#,
            "request:steps[0].command: found \"\", allowed is a shell command",
        ),
        ("needs = { xcode = \">=\" }", "{}", ".preheat.toml:needs.xcode: found \">=\", which is neither"),
        ("needs = { xcode = 26.2 }", "{}", "hint: put it in quotes"),
        (
            "",
            r#"{"needs":{"xcode":">=26"},"steps":[{"command":"x"}]}"#,
            "request:needs: no pool provides xcode >=26; `linux` says nothing of itself",
        ),
    ] {
        let told = match ProjectFile::parse(text) {
            Ok(_) => planned(text, json).expect_err("a mistake"),
            Err(mistakes) => mistakes.to_string(),
        };
        assert!(told.contains(says), "{says}\n{told}");
    }
}

#[test]
fn every_mistake_of_a_project_is_told_at_once() {
    let text = "projct = \"a\"\npool = \"Linux\"\ntimeout = 90\nretries = 11\n\
        steps = [\"\", { command = \"make\", dir = \"../x\" }, { name = \"b\", retries = 6 }, 3]\n\
        artifacts = [\"/etc/*\", \"a/../b\", \"a[\"]\nsecrets = [\"A-B\"]\n[env]\n2X = \"1\"\nJOBS = 4\nL = []\n";
    assert_eq!(
        ProjectFile::parse(text).expect_err("mistakes").to_string(),
        "\
.preheat.toml:projct: unknown key, allowed are project, pool, needs, pipeline, dir, steps, env, secrets, artifacts, caches, timeout, retries, include_git (line 1)
    hint: did you mean `project`?
.preheat.toml:pool: found \"Linux\", allowed is the name of a pool (line 2)
.preheat.toml:timeout: found 90, allowed is a duration from 100ms to 30days (a build needs some time, and must not hold a VM for ever) (line 3)
    hint: a duration carries its unit: \"90s\"
.preheat.toml:retries: found 11, allowed is a whole number from 0 to 10 (what fails that often will fail again) (line 4)
.preheat.toml:steps[0]: found \"\", allowed is a shell command (line 5)
.preheat.toml:steps[1].dir: found \"../x\", allowed is a folder in the source, relative and without `..` (line 5)
.preheat.toml:steps[2].command: is missing, and must be a shell command (line 5)
.preheat.toml:steps[2].retries: found 6, allowed is a whole number from 0 to 5 (each run holds the VM; what fails that often is not a matter of luck) (line 5)
.preheat.toml:steps[3]: allowed is a command, or a table with `command` (line 5)
.preheat.toml:artifacts[0]: found \"/etc/*\", allowed is a glob relative to the source, without `..` (line 6)
.preheat.toml:artifacts[1]: found \"a/../b\", allowed is a glob relative to the source, without `..` (line 6)
.preheat.toml:artifacts[2]: found \"a[\", which is no glob: unclosed character class; missing ']' (line 6)
.preheat.toml:secrets[0]: found \"A-B\", allowed is a name of letters, digits and `_`, not beginning with a digit (line 7)
.preheat.toml:env.2X: found \"2X\", allowed is a name of letters, digits and `_`, not beginning with a digit (line 9)
.preheat.toml:env.L: allowed is a text, a whole number, true or false (line 11)"
    );
}

#[test]
fn the_request_wins_over_the_project_and_the_project_over_the_defaults() {
    let text = "project = \"app\"\nsteps = [\"make\"]\nartifacts = [\"a\"]\ntimeout = \"30m\"\nenv = { A = 1, B = true }\n";
    let spec = merged(text, "{}");
    assert_eq!((spec.project.as_str(), spec.pool.as_str(), spec.retries), ("app", "linux", 2));
    assert_eq!((spec.timeout, spec.steps[0].timeout), (30 * MINUTE, 30 * MINUTE));
    let json = r#"{"project":"mine","steps":[{"command":"test","timeout":"1m"}],"artifacts":["b"],"timeout":"2h",
                   "retries":0,"env":{"A":"2","C":"3"}}"#;
    let spec = merged(text, json);
    assert_eq!((spec.project.as_str(), spec.retries, spec.timeout), ("mine", 0, 120 * MINUTE));
    assert_eq!(
        (spec.steps.len(), spec.steps[0].command.as_str(), spec.steps[0].timeout),
        (1, "test", MINUTE)
    );
    assert_eq!(spec.artifacts, ["b"]);
    let env: Vec<_> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["A=2", "B=true", "C=3"]);
    assert_eq!(merged("steps = [\"make\"]", "{}").project, "folder");
}

#[test]
fn a_step_without_a_name_is_called_by_its_command() {
    let text = "steps = [\"npm ci\", \"npm ci\", \"#!/bin/sh\\nset -e\\n  make   all\", \
                \"xcodebuild -workspace App.xcworkspace -scheme App archive\", { name = \"npm ci\", command = \"x\" }]";
    let names: Vec<String> = merged(text, "{}").steps.into_iter().map(|s| s.name).collect();
    assert_eq!(
        names,
        ["npm ci (2)", "npm ci (3)", "make all", "xcodebuild -workspace App.xcworkspace -s..", "npm ci"]
    );
}

#[test]
fn the_only_pool_is_taken_and_an_unknown_one_is_its_own_refusal() {
    let make = "steps = [\"make\"]";
    let unknown = merge(file(make), &request(r#"{"pool":"x"}"#), &defaults(), &pools(&["a", "b"]), "f");
    let known = "`a`, `b`".to_owned();
    assert_eq!(unknown.expect_err("unknown"), Incomplete::PoolUnknown { pool: "x".into(), known });
    let several = merge(file(make), &request("{}"), &defaults(), &pools(&["a", "b"]), "f");
    assert_eq!(
        several.expect_err("several").to_string(),
        "request:pool: none is named, and there is more than one: `a`, `b`\n    \
         hint: --pool NAME, or pool = \"NAME\" in .preheat.toml"
    );
    let none = merge(file(make), &request("{}"), &defaults(), &pools(&[]), "f");
    assert_eq!(
        none.expect_err("none").to_string(),
        "request:pool: there is none: the daemon has no pool\n    \
         hint: add a section [pool.<name>] to the daemon's preheat.toml"
    );
}

#[test]
fn every_mistake_of_a_request_is_told_at_once() {
    let json = r#"{"steps":[{"command":" ","dir":"/x","timeout":"31days","name":"a","retries":6},{"command":"x","name":"a"}],
                   "env":{"A B":"1"},"artifacts":["../x"],"retries":11,"secrets":{"T":""}}"#;
    assert_eq!(
        refused("secrets = [\"KEY\", \"E\"]\nenv = { E = \"1\" }", json),
        "\
request:steps[0].command: found \" \", allowed is a shell command
request:steps[0].dir: found \"/x\", allowed is a folder in the source, relative and without `..`
request:steps[0].timeout: found \"1month 13h 26m 24s\", allowed is a duration from 100ms to 30days
request:steps[0].retries: found 6, allowed is a whole number from 0 to 5
request:steps[1].name: found \"a\", which an earlier step has; names must differ
request:env.A B: found \"A B\", allowed is a name of letters, digits and `_`, not beginning with a digit
request:artifacts[0]: found \"../x\", allowed is a glob relative to the source, without `..`
request:retries: found 11, allowed is a whole number from 0 to 10
request:secrets.E: has no value, and the build needs it
    hint: export E, and give --secret E
request:secrets.E: is in `env` too, where it is no secret
    hint: take E out of one of the two
request:secrets.KEY: has no value, and the build needs it
    hint: export KEY, and give --secret KEY
request:secrets.T: has no value, and the build needs it
    hint: export T, and give --secret T"
    );
}

#[test]
fn a_build_without_a_step_is_told_how_to_get_one() {
    let none = merge(None, &request("{}"), &defaults(), &pools(&["linux"]), "f").expect_err("no step");
    assert_eq!(
        none.to_string(),
        "request:steps: there is none, and a build needs one at least\n    \
         hint: --step 'make', or steps = [\"make\"] in .preheat.toml"
    );
}

#[test]
fn secrets_are_named_in_the_build_and_never_printed() {
    let json = r#"{"secrets":{"KEY":"hunter2","MORE":"hunter3"}}"#;
    let project = file("steps = [\"make\"]\nsecrets = [\"KEY\"]");
    let (spec, secrets) =
        merge(project, &request(json), &defaults(), &pools(&["linux"]), "f").expect("complete");
    assert_eq!(spec.secrets, ["KEY", "MORE"]);
    let printed = format!("{secrets:?} {spec:?}");
    assert!(!printed.contains("hunter") && printed.contains("REDACTED"), "{printed}");
    let long = format!(r#"{{"secrets":{{"KEY":"{}"}}}}"#, "hunter2".repeat(20_000));
    let said = refused("steps = [\"make\"]", &long);
    assert!(said.contains("140000 bytes") && !said.contains("hunter"), "{said}");
}

#[test]
fn a_file_that_is_not_there_is_none_and_one_that_is_too_long_is_refused() {
    let source = tempfile::tempdir().expect("a folder");
    assert_eq!(ProjectFile::read(source.path()), Ok(None));
    std::fs::write(source.path().join(FILE_NAME), "#".repeat(300 << 10)).expect("written");
    let said = ProjectFile::read(source.path()).expect_err("too long").to_string();
    assert_eq!(said, ".preheat.toml: is longer than 262144 bytes, the most that is read");
}

#[test]
fn what_a_request_names_is_shown_so_that_no_terminal_obeys_it() {
    for json in [
        r#"{"secrets":{"\u001b[2J\n":""}}"#,
        r#"{"secrets":{"\u001b[2J":"x"},"env":{"\u001b[2J":"x"}}"#,
        r#"{"needs":{"\u001b[2J":"\u001b"}}"#,
        r#"{"pipeline":"\u001b[2J"}"#,
        r#"{"pipeline":"shell","steps":[{"name":"\u001b","after":"\u001b[2J"}]}"#,
        r#"{"pipeline":"shell","dir":"\u001b"}"#,
    ] {
        let merged =
            merge(file("steps = [\"make\"]"), &request(json), &defaults(), &pools(&["linux"]), "folder");
        let Err(Incomplete::Wrong(mistakes)) = merged else { panic!("{merged:?}") };
        assert!(!mistakes.lines().iter().any(|line| line.chars().any(char::is_control)), "{mistakes:?}");
    }
}

proptest! {
    #[test]
    fn no_project_makes_it_panic(text in "((project|pool|steps|env|secrets|artifacts|timeout)(\\.[a-z])? = (1|true|\"\\PC{0,5}\"|\\[\"\\PC{0,5}\"\\]|\\{ command = \"\\PC{0,9}\" \\})\n){0,4}\\PC{0,9}") {
        if let Ok(project) = ProjectFile::parse(&text) {
            let _ = merge(Some(project), &SubmitSpec::default(), &defaults(), &pools(&["linux"]), &text);
        }
    }

    #[test]
    fn steps_have_names_that_differ(commands in prop::collection::vec("(a|b|\\PC{0,50})", 1..6)) {
        let step = |command: &String| StepSpec { command: command.clone(), ..StepSpec::default() };
        let steps = complete_steps(&commands.iter().map(step).collect::<Vec<_>>(), MINUTE);
        let names: BTreeSet<_> = steps.iter().map(|s| &s.name).collect();
        prop_assert_eq!(names.len(), steps.len());
        prop_assert!(steps.iter().all(|s| !s.name.is_empty() && s.name.len() < 256));
    }
}

proptest! {
    #[test]
    fn nothing_that_has_a_secret_prints_it(value in "[A-Z0-9'\"\\\\ ]{12,60}", cut in 1_usize..9) {
        let json = serde_json::json!({"steps": [{"command": "make"}], "secrets": {"KEY": value}}).to_string();
        let request = request(&json);
        let (spec, secrets) =
            merge(None, &request, &defaults(), &pools(&["linux"]), "f").expect("a build");
        let redactor = Redactor::new(request.secrets.values());
        // Broken off, and of another type: what a client is told.
        let broken = serde_json::from_str::<SubmitSpec>(&json[..json.len() - cut]).expect_err("broken off");
        let wrong = serde_json::json!({"secrets": value}).to_string();
        let wrong = serde_json::from_str::<SubmitSpec>(&wrong).expect_err("no object");
        let printed = [
            format!("{request:?} {request:#?}"),
            format!("{:?} {:#?}", request.secrets, request.secrets),
            format!("{spec:?} {secrets:?} {secrets:#?} {redactor:?} {redactor:#?}"),
            format!("{broken} {broken:?} {wrong} {wrong:?}"),
        ]
        .concat();
        let escaped = format!("{value:?}");
        for form in [value.as_str(), &escaped[1..escaped.len() - 1]] {
            prop_assert!(!printed.contains(form), "{}", printed);
        }
        prop_assert!(printed.contains("KEY") && printed.contains("REDACTED"));
    }
}
