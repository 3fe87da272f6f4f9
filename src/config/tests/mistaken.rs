//! What an operator reads when something is wrong, to the letter.

use super::{Installation, LINUX};

/// A file and all that is wrong with it; `F` stands for the file.
#[track_caller]
fn says(text: &str, expected: &[&str]) {
    let said = Installation::new().file("preheat.toml", text).mistakes().replace("$H/preheat.toml", "F");
    assert_eq!(said.split('\n').map(str::trim_start).collect::<Vec<_>>(), expected, "\n--- said:\n{said}\n");
}

#[test]
fn every_mistake_of_a_section_is_told_at_once() {
    says(
        "[host]\nvms = 0\nmacos_gests = 1\ncores = \"all\"\nmemory = 8\n",
        &[
            "F:host.vms: found 0, allowed is a whole number from 1 to 512 \
             (without a VM nothing is built, and no host runs more) (line 2)",
            "F:host.macos_gests: unknown key, allowed are vms, macos_guests, cores, memory, disk_free_min, \
             disk_free_low, builds_max (line 3)",
            "hint: did you mean `macos_guests`?",
            "F:host.cores: found \"all\", allowed is a whole number from 1 to 1024 (no host has more), \
             or \"unlimited\" (line 4)",
            "F:host.memory: found 8, allowed is a size from 256 MiB to 16 TiB \
             (with less no VM boots, and no host has more), or \"unlimited\" (line 5)",
            "hint: a size carries its unit: \"8 GiB\"",
        ],
    );
}

#[test]
fn an_unknown_section_is_named() {
    let allowed = "unknown key, allowed are host, runtime, api, builds, caches, stop, log, pool_defaults, pool, pipelines, upload, controllers";
    says(
        "[pools.linux]\nimage = \"x\"\n",
        &[&format!("F:pools: {allowed} (line 1)"), "hint: did you mean `pool`?"],
    );
}

#[test]
fn a_pool_needs_an_image_and_a_name() {
    says(
        "[pool.linux]\nwarm = 1\n",
        &[
            "F:pool.linux.image: is missing, and must be the name of an image, without spaces and not beginning \
           with `-` (line 1)",
        ],
    );
    says(
        "[pool.Xcode_26]\nimage = \"x\"\n",
        &[
            "F:pool.Xcode_26: the name of a pool is wrong: `Xcode_26` must start with a letter a-z and hold only \
             a-z, 0-9 and single `-` inside (line 1)",
            "hint: did you mean `xcode-26`?",
        ],
    );
    says(
        "[pool]\nwarm = 2\n",
        &[
            "F:pool.warm: allowed is a table with the keys of a pool (line 2)",
            "hint: keys of all pools belong in [pool_defaults]; a pool is [pool.<name>]",
        ],
    );
}

#[test]
fn units_and_quotes_are_explained() {
    says(
        &format!(
            "{LINUX}memory = \"8 GB\"\ndisk = \"50 GiB\"\nboot_timeout = 90\nmax_age = \"1y\"\ncpu = \"4\"\n"
        ),
        &[
            "F:pool.linux.memory: found \"8 GB\", allowed are whole multiples of 1 MiB (line 3)",
            "hint: the next larger one is \"7630 MiB\"",
            "F:pool.linux.disk: found \"50 GiB\", allowed are whole multiples of 1 GB (line 4)",
            "hint: the next larger one is \"54 GB\"",
            "F:pool.linux.boot_timeout: found 90, allowed is a duration from 100ms to 1h \
             (a guest needs some time to boot, and holds its slot while it does) (line 5)",
            "hint: a duration carries its unit: \"90s\"",
            "F:pool.linux.max_age: found \"1y\", allowed is a duration from 1s to 30days \
             (a VM is used up when it is replaced, and clocks and leases go stale) (line 6)",
            "F:pool.linux.cpu: found \"4\", allowed is a whole number from 1 to 256 \
             (a VM needs a core, and no host has more to give), or \"image\" (line 7)",
            "hint: write it without quotes",
        ],
    );
}

#[test]
fn names_that_become_arguments_are_kept_from_being_options() {
    says(
        "[pool.linux]\nimage = \"-x\"\nuser = \"ci@host\"\nport = 70000\nrun_args = [\"--net-host\", \"--no-audio\"]\n",
        &[
            "F:pool.linux.image: found \"-x\", allowed is the name of an image, without spaces and not beginning \
             with `-` (line 2)",
            "F:pool.linux.user: found \"ci@host\", allowed is a name without spaces, `@` and `:`, not beginning \
             with `-` (line 3)",
            "F:pool.linux.port: found 70000, allowed is a whole number from 1 to 65535 (it is a TCP port) (line 4)",
            "F:pool.linux.run_args[0]: found \"--net-host\", which `network` decides (line 5)",
            "hint: set `network` of the pool instead",
        ],
    );
}

#[test]
fn an_image_is_not_one_of_our_vms() {
    says(
        "[pool.linux]\nimage = \"preheat-linux-0-1\"\n",
        &[
            "F:pool.linux.image: found \"preheat-linux-0-1\", which is the name of a VM of ours and would be \
             deleted (line 2)",
            "hint: rename the image: `tart rename`",
        ],
    );
}

#[test]
fn keys_that_depend_on_each_other_are_compared() {
    says(
        "host.cores = 4\nhost.memory = \"4 GiB\"\n[pool.a]\nimage = \"x\"\nwarm = 3\ncpu = 8\nmemory = \"8 GiB\"\n",
        &[
            "F:pool.a.warm: found 3, allowed is at most `max`, which is 2 (line 5)",
            "hint: raise `max`, or lower `warm`",
            "F:pool.a.cpu: found 8, allowed is at most `host.cores`, which is 4 (line 6)",
            "hint: no VM of this pool could ever start: raise `host.cores`, or lower `cpu`",
            "F:pool.a.memory: found \"8 GiB\", allowed is at most `host.memory`, which is \"4 GiB\" (line 7)",
            "hint: no VM of this pool could ever start: raise `host.memory`, or lower `memory`",
        ],
    );
}

#[test]
fn a_network_is_of_one_mode() {
    let pool = |network: &str| format!("{LINUX}network = {network}\n");
    says(
        &pool("{ mode = \"softnet\", allow = [\"10.0.0.1\", \"fd00::/8\", \"10/8\"], interface = \"en0\" }"),
        &[
            "F:pool.linux.network.allow[0]: found \"10.0.0.1\", allowed is an IPv4 network such as \"10.0.0.0/8\" \
             (line 3)",
            "hint: for this one address: \"10.0.0.1/32\"",
            "F:pool.linux.network.allow[1]: found \"fd00::/8\", allowed is an IPv4 network such as \"10.0.0.0/8\" \
             (line 3)",
            "hint: softnet filters IPv4 only",
            "F:pool.linux.network.allow[2]: found \"10/8\", allowed is an IPv4 network such as \"10.0.0.0/8\" (line 3)",
            "F:pool.linux.network.interface: is a key of mode \"bridged\" only (line 3)",
            "hint: add mode = \"bridged\", or take it out",
        ],
    );
    says(
        &pool("{ mode = \"bridge\" }"),
        &[
            "F:pool.linux.network.mode: found \"bridge\", allowed is \"nat\", \"softnet\" or \"bridged\" (line 3)",
            "hint: did you mean \"bridged\"?",
        ],
    );
    says(
        &pool("{ mode = \"bridged\", resolver = \"dns\" }"),
        &[
            "F:pool.linux.network.interface: is missing, and must be the name of an interface, such as \"en0\" \
             (line 3)",
            "F:pool.linux.network.resolver: found \"dns\", allowed is \"dhcp\", \"arp\" or \"agent\" (line 3)",
        ],
    );
    says(
        &pool("\"softnet\""),
        &["F:pool.linux.network: found \"softnet\", allowed is a table, as { mode = \"softnet\" } (line 3)"],
    );
}

#[test]
fn a_mistake_in_the_defaults_of_pools_is_told_once() {
    says(
        "[pool_defaults]\nuser = \"\"\nnetwork = { mode = \"bridged\" }\n[pool.a]\nimage = \"x\"\n[pool.b]\nimage = \"x\"\n",
        &[
            "F:pool_defaults.user: found \"\", allowed is a name without spaces, `@` and `:`, not beginning with `-` \
             (line 2)",
            "F:pool_defaults.network.interface: is missing, and must be the name of an interface, such as \"en0\" \
             (line 3)",
        ],
    );
}

#[test]
fn the_api_is_not_open_to_everybody_by_accident() {
    says(
        "[api]\nlisten = \"0.0.0.0:7780\"\n",
        &[
            "F:api.listen: found \"0.0.0.0:7780\", which others reach; without a `token_file` it must be loopback \
             (line 2)",
            "hint: write a token into a file and name it as `api.token_file`",
        ],
    );
    says(
        "[api]\nlisten = \"localhost:7780\"\ntoken_file = 3\n",
        &[
            "F:api.listen: found \"localhost:7780\", allowed is an IP address and a port (line 2)",
            "hint: write \"127.0.0.1:7780\"",
            "F:api.token_file: found 3, allowed is a path, or \"none\" (line 3)",
        ],
    );
}

#[test]
fn uploads_are_told_apart_and_keep_secrets_out_of_logs() {
    let folder = "[[upload]]\nname = \"a\"\nkind = \"folder\"\npath = \"/out\"\n";
    let http =
        |name: &str, url: &str| format!("[[upload]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"{url}\"\n");
    let uploads = [
        folder,
        &http("a", "http://nas.local/x"),
        &http("b", "https://u:secret@nas/x"),
        &http("c c", "ftp://x"),
    ];
    says(
        &uploads.concat(),
        &[
            "F:upload[1].name: found \"a\", which upload[0] has already; names must differ (line 6)",
            "F:upload[1].url: found \"http://nas.local/x\", which is plain http to another host (line 8)",
            "hint: write https://, or send it through a proxy on this host",
            "F:upload[2].url: found a URL with a user name or password in it, which logs would show (line 12)",
            "hint: put a token into a file and name it as `token_file`",
            "F:upload[3].name: found \"c c\", allowed is a name of letters, digits, `-`, `_` and `.` (line 14)",
            "F:upload[3].url: found \"ftp://x\", allowed is an https:// URL, or http:// to loopback (line 16)",
        ],
    );
    says("[upload]\nname = \"a\"\n", &["F:upload: allowed is a list of tables, each as [[upload]] (line 1)"]);
}

#[test]
fn what_is_no_toml_has_line_and_column() {
    says("[host]\nvms = \n", &["F:2:7: is not TOML: string values must be quoted, expected literal string"]);
    says("[host\nvms = 1\n", &["F:1:6: is not TOML: unclosed table, expected `]`"]);
    says("[host]\nvms = 1\nvms = 2\n", &["F:3:1: is not TOML: duplicate key"]);
}

#[test]
fn wrong_types_are_named() {
    says("host = 3\n", &["F:host: found 3, allowed is a table, as [host] (line 1)"]);
    says(
        "[host]\nvms = 99999999999999999999\nmacos_guests = 2026-01-01\n",
        &[
            "F:host.vms: found 99999999999999999999, a number too large for any key (line 2)",
            "F:host.macos_guests: found the date 2026-01-01, and no key takes one; a text is put in quotes (line 3)",
        ],
    );
    says(
        "[log]\njson = \"true\"\nfilter = []\n",
        &[
            "F:log.json: found \"true\", allowed is true or false (line 2)",
            "hint: write it without quotes",
            "F:log.filter: found an empty list, allowed is a level, or levels by module (line 3)",
        ],
    );
}

#[test]
fn keys_that_are_paths_to_other_keys_are_refused() {
    says(
        "\"host.vms\" = 1\n\"upload[4000000000]\" = 2\n",
        &[
            "F:host.vms: unknown key; a key holds letters, digits, `-` and `_` only (line 1)",
            "F:upload[4000000000]: unknown key; a key holds letters, digits, `-` and `_` only (line 2)",
        ],
    );
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    let wrong = Installation::new().var("PREHEAT__HOST__VMS", "many").var("PREHEAT__FOO", "1");
    assert_eq!(
        wrong.mistakes(),
        "PREHEAT__FOO:foo: unknown key, allowed are host, runtime, api, builds, caches, stop, log, pool_defaults, pool, pipelines, upload, controllers\n\
         PREHEAT__HOST__VMS:host.vms: found \"many\", allowed is a whole number from 1 to 512 \
         (without a VM nothing is built, and no host runs more)"
    );
    let twice =
        Installation::new().var("PREHEAT__HOST__VMS", "1").var("PREHEAT__HOST", "1").var("PREHEAT__A__", "1");
    assert_eq!(
        twice.mistakes(),
        "PREHEAT__A__:a.: unknown key; a key holds letters, digits, `-` and `_` only\n    \
         hint: write two underscores between the parts\n\
         PREHEAT__HOST__VMS:host.vms: gets in the way of PREHEAT__HOST, which sets the same key or a part of it\n    \
         hint: unset one of the two"
    );
}

#[test]
fn a_mistake_in_a_hosts_file_names_that_file() {
    let here =
        Installation::new().file("preheat.toml", "host.vms = 2").file("hosts/studio-1.toml", "host.vms = -1");
    let said = here.mistakes();
    assert!(said.starts_with("$H/hosts/studio-1.toml:host.vms: found -1, allowed is"), "{said}");
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let here = Installation::new().file("preheat.toml/x", "");
    assert_eq!(here.mistakes(), "$H/preheat.toml: cannot be read: Is a directory (os error 21)");
    let mut inputs = Installation::new().inputs();
    inputs.file = Some("/nowhere/my.toml".into());
    assert_eq!(
        crate::config::load::load(&inputs).expect_err("not there").to_string(),
        "/nowhere/my.toml: is not there, and was asked for by name\n    \
         hint: correct --config; without it, $PREHEAT_HOME/preheat.toml is read"
    );
}

#[test]
fn what_is_surely_not_meant_is_warned_of() {
    let text = "[host]\nvms = 3\nmacos_guests = 3\ncores = 4\nmemory = \"4 GiB\"\n\
                [pool.a]\nimage = \"preheat-a\"\nwarm = 2\nmax = 5\ncpu = 4\nmemory = \"3 GiB\"\nprobe_timeout = \"1m\"\n\
                [pool.b]\nimage = \"b\"\nwarm = 2\nmax_age = \"1m\"\n";
    let said = Installation::new().file("preheat.toml", text).warnings().replace("$H/preheat.toml", "F");
    let expected = "\
F:host.vms: is 3, and the pools keep 4 VMs warm: they can never be warm at once (line 2)
    hint: raise `host.vms`, or lower `warm` of a pool
F:host.macos_guests: is more than two, and macOS refuses to start a third guest unless its quota was raised (line 3)
F:host.cores: is 4, and the warm VMs of all pools have 8 cores: they can never be warm at once (line 4)
    hint: raise `host.cores`, or lower `warm` of a pool
F:host.memory: is 4 GiB, and the warm VMs of all pools have 6 GiB: they can never be warm at once (line 5)
    hint: raise `host.memory`, or lower `warm` of a pool
F:pool.a.image: begins like the names of our VMs, and will be reported as a malformed one (line 7)
    hint: rename the image: `tart rename`
F:pool.a.max: is 5, and `host.vms` is 3 (in F:2): so many never run at once (line 9)
F:pool.a.probe_timeout: is longer than `probe_interval`: a slow VM is always being probed (line 12)
F:pool.b.max_age: is no longer than `boot_timeout`: a VM may be too old when it is ready (line 16)";
    assert_eq!(said, expected);
}
