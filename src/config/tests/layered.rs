//! Which layer wins, and what the environment can say.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::{Installation, LINUX};
use crate::config::changes::{Applies, diff, held_back};
use crate::config::file::{Env, Role, merge, parse};
use crate::config::load::{DEFAULT, load};
use crate::config::rules::Folders;
use crate::config::validate::validate;
use crate::config::{ByteSize, Config, Home, Network, Pool, Resolver};

fn pool(here: &Installation, name: &str) -> Pool {
    let config = here.load().unwrap_or_else(|e| panic!("{e}")).config;
    config.pools.get(&name.parse().expect("a name")).cloned().expect("the pool")
}

#[test]
fn the_environment_wins_over_the_host_and_the_host_over_the_file() {
    let here =
        Installation::new().file("preheat.toml", "[host]\nvms = 10\nmacos_guests = 1\nbuilds_max = 7\n");
    let here = here.file("hosts/studio-1.local.toml", "[host]\nvms = 20\nmacos_guests = 0\n");
    let here = here.var("PREHEAT__HOST__VMS", "30");
    let host = here.load().expect("no mistake").config.host;
    assert_eq!((host.vms, host.macos_guests, host.builds_max), (30, 0, 7));
}

#[test]
fn a_host_has_one_file_by_its_full_name_or_else_by_its_first() {
    let here = Installation::new()
        .file("hosts/studio-1.toml", "host.vms = 20")
        .file("hosts/other.toml", "host.vms = 9");
    assert_eq!(here.load().expect("no mistake").config.host.vms, 20);
    let here = here.file("hosts/studio-1.local.toml", "host.macos_guests = 0");
    let host = here.load().expect("no mistake").config.host;
    assert_eq!((host.vms, host.macos_guests), (4, 0));
}

#[test]
fn a_pool_wins_over_the_defaults_of_pools_whichever_layer_they_are_in() {
    let here = Installation::new().file("preheat.toml", &format!("{LINUX}warm = 0\n"));
    let here = here.var("PREHEAT__POOL_DEFAULTS__WARM", "2").var("PREHEAT__POOL_DEFAULTS__USER", "ci");
    let pool = pool(&here, "linux");
    assert_eq!((pool.warm, pool.user.as_str()), (0, "ci"));
}

#[test]
fn the_environment_reaches_pools_with_hyphens_numbers_lists_and_words() {
    let here = Installation::new().file("preheat.toml", "[pool.xcode-26]\nimage = \"x\"\n");
    let here = here
        .var("PREHEAT__POOL__XCODE_26__WARM", "2")
        .var("PREHEAT__POOL__XCODE_26__CPU", "4")
        .var("PREHEAT__POOL__XCODE_26__MEMORY", "8 GiB")
        .var("PREHEAT__POOL__XCODE_26__NETWORK__MODE", "softnet")
        .var("PREHEAT__POOL__XCODE_26__NETWORK__ALLOW", "10.0.0.0/8, 192.168.1.0/24")
        .var("PREHEAT__POOL__XCODE_26__RUN_ARGS", "")
        .var("PREHEAT__LOG__JSON", "true")
        .var("PREHEAT_HOME", "/not/a/key")
        .var("PREHEAT_URL", "not a key");
    let pool = pool(&here, "xcode-26");
    assert_eq!((pool.warm, pool.cpu, pool.memory), (2, Some(4), Some(ByteSize(8 << 30))));
    let allow = vec!["10.0.0.0/8".to_owned(), "192.168.1.0/24".to_owned()];
    assert_eq!(pool.network, Network::Softnet { allow, block: vec![] });
    assert!(here.load().expect("no mistake").config.log.json);
}

#[test]
fn texts_of_the_environment_stay_as_they_are() {
    let here =
        Installation::new().var("PREHEAT__POOL__A__IMAGE", "0123").var("PREHEAT__POOL__A__USER", "1e5");
    let pool = pool(&here, "a");
    assert_eq!((pool.image.as_str(), pool.user.as_str()), ("0123", "1e5"));
}

#[test]
fn a_network_that_says_its_mode_stands_for_itself() {
    let bridged = "[pool_defaults]\nnetwork = { mode = \"bridged\", interface = \"en0\" }\n";
    let here = |more: &str| Installation::new().file("preheat.toml", &format!("{bridged}{LINUX}{more}"));
    let of = |interface: &str, resolver| Network::Bridged { interface: interface.into(), resolver };
    assert_eq!(pool(&here(""), "linux").network, of("en0", Resolver::Dhcp));
    assert_eq!(pool(&here("network.resolver = \"arp\""), "linux").network, of("en0", Resolver::Arp));
    assert_eq!(pool(&here("network.mode = \"nat\""), "linux").network, Network::Nat);
    let here = here("network = { mode = \"bridged\", interface = \"en1\" }");
    let here = here.var("PREHEAT__POOL__LINUX__NETWORK__MODE", "nat");
    assert_eq!(pool(&here, "linux").network, Network::Nat);
}

#[test]
fn relative_paths_start_at_the_installation_and_a_tilde_is_the_users_home() {
    let here = Installation::new().file("preheat.toml", &format!("{LINUX}key = \"~/.ssh/ci\"\n"));
    let config = here.load().expect("no mistake").config;
    assert_eq!(pool(&here, "linux").key, PathBuf::from("/Users/ci/.ssh/ci"));
    assert_eq!(config.runtime.tart_home, here.path().join("tart"));
    let plain = Installation::new().file("preheat.toml", LINUX);
    assert_eq!(pool(&plain, "linux").key, plain.path().join("keys/id_ed25519"));
}

#[test]
fn words_for_nothing_mean_nothing() {
    let here =
        Installation::new().file("preheat.toml", &format!("{LINUX}cpu = \"image\"\nwarmup = \"none\"\n"));
    let pool = pool(&here, "linux");
    let config = here.load().expect("no mistake").config;
    assert_eq!((pool.cpu, pool.memory, pool.disk, pool.warmup), (None, None, None, None));
    assert_eq!((config.host.cores, config.host.memory, config.api.token_file), (None, None, None));
}

#[test]
fn a_file_asked_for_by_name_is_read_with_the_hosts_beside_it() {
    let here = Installation::new().file("preheat.toml", "host.vms = 1").file("other/my.toml", "host.vms = 2");
    let here = here.file("other/hosts/studio-1.toml", "host.builds_max = 3");
    let mut inputs = here.inputs();
    inputs.file = Some(here.path().join("other/my.toml"));
    let host = load(&inputs).expect("no mistake").config.host;
    assert_eq!((host.vms, host.builds_max), (2, 3));
}

#[test]
fn the_installation_is_where_the_environment_says() {
    let home = |vars: &[(&str, &str)]| Home::discover(&vars.iter().copied().collect::<Env>());
    let path = |vars: &[(&str, &str)]| home(vars).map(|h| h.path().display().to_string());
    assert_eq!(path(&[("PREHEAT_HOME", "/opt/p"), ("HOME", "/u")]), Ok("/opt/p".into()));
    assert_eq!(path(&[("PREHEAT_HOME", ""), ("HOME", "/u")]), Ok("/u/.preheat".into()));
    let said = |vars: &[(&str, &str)]| home(vars).expect_err("no home").to_string();
    assert_eq!(
        said(&[("PREHEAT_HOME", "~/p")]),
        "PREHEAT_HOME: found \"~/p\", allowed is an absolute path\n    hint: write it in full, beginning with `/`"
    );
    assert_eq!(
        said(&[]),
        "PREHEAT_HOME: is not set, and neither is HOME, below which the installation would be\n    \
         hint: set PREHEAT_HOME to an absolute path"
    );
}

fn changed(before: &str, after: &str) -> Vec<(String, Applies)> {
    let load = |text: &str| {
        let mut config =
            Installation::new().file("preheat.toml", text).load().unwrap_or_else(|e| panic!("{e}")).config;
        config.home = Home::new("/h".into());
        config.runtime.tart_home = "/h/tart".into();
        config.pools.values_mut().for_each(|p| p.key = "/h/key".into());
        config
    };
    diff(&load(before), &load(after)).changed.into_iter().map(|c| (c.key, c.applies)).collect()
}

#[test]
fn a_change_says_what_it_takes() {
    use Applies::{Live, NewVms, Restart};
    let before = format!("{LINUX}network = {{ mode = \"bridged\", interface = \"en0\" }}\n");
    assert_eq!(changed(&before, &before), vec![]);
    for (from, to, key, applies) in [
        ("[host]\nvms = 3", "[host]\nvms = 4", "host.vms", Live),
        ("[api]\nlisten = \"127.0.0.1:1\"", "", "api.listen", Restart),
        ("[pool.a]\nimage = \"a\"", "[pool.a]\nimage = \"b\"", "pool.a.image", NewVms),
        ("[pool.a]\nimage = \"a\"", "[pool.a]\nimage = \"a\"\nwarm = 2", "pool.a.warm", Live),
        ("[pool.a]\nimage = \"a\"\ncpu = 2", "[pool.a]\nimage = \"a\"\ncpu = 3", "pool.a.cpu", NewVms),
        (&before, &before.replace("en0", "en1"), "pool.linux.network", NewVms),
        (&before, &before.replace("\"en0\"", "\"en0\", resolver = \"arp\""), "pool.linux.network", Live),
    ] {
        assert_eq!(changed(from, to), vec![(key.to_owned(), applies)], "{from} -> {to}");
    }
}

#[test]
fn pools_that_come_and_go_are_named_and_those_to_roll_too() {
    let load = |text: &str| Installation::new().file("preheat.toml", text).load().expect("no mistake").config;
    let mut before = load("[pool.a]\nimage = \"a\"\n[pool.b]\nimage = \"b\"\n");
    let mut after = load("[pool.b]\nimage = \"c\"\ncpu = 2\n[pool.d]\nimage = \"d\"\n");
    for config in [&mut before, &mut after] {
        config.pools.values_mut().for_each(|p| p.key = "/h/key".into());
    }
    let changes = diff(&before, &after);
    let names = |pools: &[crate::ids::PoolName]| pools.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&changes.pools_added), ["d"]);
    assert_eq!(names(&changes.pools_removed), ["a"]);
    assert_eq!(names(&changes.pools_to_roll()), ["b"]);
}

#[test]
fn what_needs_a_restart_is_held_back_and_nothing_else_is() {
    let load = |text: &str| Installation::new().file("preheat.toml", text).load().expect("no mistake").config;
    let before = load("");
    let after = load(
        "[api]\nlisten = \"127.0.0.1:9\"\ntoken_file = \"token\"\nsource_max = \"1 GiB\"\n[log]\njson = true\nfilter = \"warn\"\n\
         [runtime]\nprogram = \"other\"\ntart_home = \"elsewhere\"\n[runtime.deadlines]\nclone = \"7s\"\n",
    );
    let all = diff(&before, &after);
    assert!(
        all.is_held_back("api.listen") && all.is_held_back("home") && !all.is_held_back("api.source_max")
    );
    let held: Vec<_> = all.need_restart().map(|c| c.key.as_str()).collect();
    assert_eq!(
        held,
        ["home", "runtime.program", "runtime.tart_home", "api.listen", "api.token_file", "log.json"]
    );
    let applied = diff(&before, &held_back(&before, after));
    assert_eq!(applied.need_restart().count(), 0);
    let live = |changes: &crate::config::changes::Changes| -> Vec<String> {
        changes.changed.iter().filter(|c| c.applies != Applies::Restart).map(|c| c.key.clone()).collect()
    };
    assert_eq!(live(&applied), live(&all));
}

fn checked(text: &str) -> Option<Config> {
    let layers = vec![
        parse(DEFAULT, "default.toml".as_ref(), Role::Default).ok()?,
        parse(text, "preheat.toml".as_ref(), Role::File).ok()?,
    ];
    let folders = Folders { home: "/h".into(), user: Some("/u".into()) };
    merge(layers).and_then(|merged| validate(merged, &folders)).ok().map(|(config, _)| config)
}

fn key() -> impl Strategy<Value = String> {
    let known = "host|vms|pool|a|x-1|pool_defaults|network|mode|allow|upload|kind|warm|memory|log|api|listen|runtime|deadlines";
    prop_oneof![known.prop_map(|s| s), Just("\"a[4000000000].b\"".into()), "[a-z]{1,3}"]
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:?}").replace("NaN", "nan")),
        any::<bool>().prop_map(|b| b.to_string()),
        Just("1979-05-27".to_owned()),
        "\\PC{0,12}".prop_map(|s| toml::Value::String(s).to_string()),
        "(0s|1ms|5m|99999999999d|8 GiB|0 B|image|none|unlimited|nat|softnet|folder)"
            .prop_map(|s| format!("\"{s}\"")),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|items| format!("[{}]", items.join(", "))),
            (key(), inner).prop_map(|(k, v)| format!("{{ {k} = {v} }}")),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|\n){0,200}") {
        let _ = checked(&text);
    }

    #[test]
    fn no_toml_makes_it_panic(lines in prop::collection::vec((prop::collection::vec(key(), 1..4), value()), 0..6)) {
        let line = |(keys, value): &(Vec<String>, String)| format!("{} = {value}\n", keys.join("."));
        let text: String = lines.iter().map(line).collect();
        if let Some(config) = checked(&text) {
            prop_assert!(config.builds.timeout > Duration::ZERO);
        }
    }

    #[test]
    fn no_environment_makes_it_panic(name in "(HOST|POOL|A|VMS|_|__|\\[9\\]|\\.){0,6}", value in "\\PC{0,8}") {
        let here = Installation::new().var(&format!("PREHEAT__{name}"), &value);
        let _ = here.load();
    }
}
