//! The configuration: files, layers and variables. Either it is right, or every mistake says where it is.

use std::path::Path;

use preheat::config::load::{DEFAULT, load};
use preheat::config::{Home, Inputs, Loaded, Mistakes, show};
use proptest::prelude::*;

use crate::{any_text, cases, mutated};

fn inputs(home: &Path, vars: &[(String, String)]) -> Inputs {
    let vars = vars.iter().filter(|(name, _)| name.starts_with("PREHEAT__")).cloned();
    Inputs {
        home: Home::new(home.to_owned()),
        file: None,
        hostname: "studio-1.local".into(),
        env: [("HOME".to_owned(), "/Users/ci".to_owned())].into_iter().chain(vars).collect(),
    }
}

fn loaded(file: &[u8], host: Option<&[u8]>, vars: &[(String, String)]) -> Result<Loaded, Mistakes> {
    let home = tempfile::tempdir().expect("a folder");
    std::fs::write(home.path().join("preheat.toml"), file).expect("written");
    if let Some(host) = host {
        std::fs::create_dir(home.path().join("hosts")).expect("made");
        std::fs::write(home.path().join("hosts/studio-1.toml"), host).expect("written");
    }
    let result = load(&inputs(home.path(), vars));
    if let Ok(loaded) = &result {
        assert_is_shown_as_it_is(loaded, home.path());
    }
    result
}

/// What `config show` prints, read back, is the same configuration.
fn assert_is_shown_as_it_is(loaded: &Loaded, home: &Path) {
    let shown = show::show(loaded);
    let again = home.join("again");
    std::fs::create_dir(&again).expect("made");
    let file = again.join("shown.toml");
    std::fs::write(&file, &shown).expect("written");
    let mut inputs = inputs(home, &[]);
    inputs.file = Some(file);
    inputs.hostname = String::new();
    let back = load(&inputs).unwrap_or_else(|e| panic!("what was shown is refused: {e}\n{shown}"));
    assert_eq!(back.config, loaded.config, "{shown}");
}

fn assert_says_where(result: &Result<Loaded, Mistakes>) {
    let Err(mistakes) = result else { return };
    assert!(!mistakes.0.is_empty(), "a refusal without a reason");
    for mistake in &mistakes.0 {
        assert!(!mistake.place.is_empty() && !mistake.text.is_empty(), "{mistake:?}");
        let in_file = mistake.place.ends_with(".toml") && !mistake.key.is_empty();
        assert!(!in_file || mistake.line.is_some() || mistake.place.contains(':'), "no line: {mistake:?}");
        assert!(!mistake.line_text().chars().any(char::is_control), "a terminal would obey: {mistake:?}");
    }
}

/// The default with its examples switched on, so that every key is there to be broken.
fn whole_default() -> String {
    let mut text: String =
        DEFAULT.lines().filter(|line| !line.starts_with("# ")).map(|l| format!("{l}\n")).collect();
    text.push_str(
        "[pool.linux]\nimage = \"linux\"\nwarm = 1\nmax = 2\n[[upload]]\nname = \"u\"\nfolder = \"/tmp/u\"\n",
    );
    text
}

fn keys() -> Vec<(String, String)> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in whole_default().lines() {
        let line = line.trim();
        if line.starts_with('[') {
            section = line.to_owned();
        } else if let Some((key, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            keys.push((section.clone(), key.trim().to_owned()));
        }
    }
    keys
}

fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| if n.is_finite() { format!("{n:?}") } else { "nan".into() }),
        any_text().prop_map(|t| toml::Value::String(t).to_string()),
        "[0-9]{1,22} ?(ms|s|m|h|d|y|B|KiB|MiB|GiB|TiB|EiB)?".prop_map(|t| format!("\"{t}\"")),
        prop::collection::vec(any_text(), 0..4)
            .prop_map(
                |all| toml::Value::Array(all.into_iter().map(toml::Value::String).collect()).to_string()
            ),
        prop::sample::select(&[
            "true",
            "false",
            "[]",
            "{}",
            "[[]]",
            "{ a = { b = {} } }",
            "1979-05-27",
            "07:32:00",
            "inf",
            "-nan",
            "0x7fffffffffffffff"
        ])
        .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(cases(1))]

    #[test]
    fn a_file_of_any_bytes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        assert_says_where(&loaded(&bytes, None, &[]));
    }

    #[test]
    fn a_damaged_default_is_read_or_refused(bytes in mutated(whole_default().into_bytes())) {
        assert_says_where(&loaded(&bytes, None, &[]));
    }

    #[test]
    fn a_key_may_be_set_to_anything(
        set in prop::collection::vec((prop::sample::select(keys()), hostile()), 1..6),
        pool in "[a-z\"'.\\- ]{0,10}",
    ) {
        let mut text = String::new();
        for ((section, key), value) in &set {
            text.push_str(&format!("{section}\n{key} = {value}\n"));
        }
        text.push_str(&format!("[pool.{pool}]\nimage = \"linux\"\n"));
        assert_says_where(&loaded(text.as_bytes(), None, &[]));
        // One by one, so that a section named twice does not hide the rest.
        for ((section, key), value) in &set {
            assert_says_where(&loaded(format!("{section}\n{key} = {value}\n").as_bytes(), None, &[]));
        }
    }

    #[test]
    fn layers_and_variables_may_contradict_each_other(
        file in prop::sample::select(keys()), host in prop::sample::select(keys()), values in (hostile(), hostile()),
        vars in prop::collection::vec(("(HOST|POOL|API|UPLOAD|BUILDS|LINUX|VMS|IMAGE|LISTEN|__|_|[A-Z0-9.]){1,6}", "[^\0]{0,20}"), 0..4),
    ) {
        let vars: Vec<_> = vars.into_iter().map(|(name, value)| (format!("PREHEAT__{name}"), value)).collect();
        let line = |(section, key): &(String, String), value: &str| format!("{section}\n{key} = {value}\n");
        let (file, host) = (line(&file, &values.0), line(&host, &values.1));
        assert_says_where(&loaded(file.as_bytes(), Some(host.as_bytes()), &vars));
    }
}
