//! From what was written to [`Config`], or to every mistake in it. The pools are next door in `pools`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use config::ValueKind;

use super::file::{Merged, Table};
use super::found::{Refusal, plain, shown_text};
use super::limits as bound;
use super::mistake::Mistakes;
use super::rules::{self, Folders};
use super::walk::{Findings, Section, Walk};
use super::{
    Api, Builds, Caches, Config, Home, Host, Log, RuntimeConfig, Stop, Upload, UploadSink, VerbDeadlines,
    controllers, pipelines, pools,
};

/// The word for "no file" and "no script".
pub const NONE: &str = "none";
/// The word for a bound that is not there.
pub const UNLIMITED: &str = "unlimited";

/// Checks everything.
///
/// # Errors
/// Every mistake.
pub fn validate(merged: Merged, folders: &Folders) -> Result<(Config, Findings), Mistakes> {
    let (mut walk, table) = Walk::over(merged);
    let config = config(&mut walk, table, folders);
    if let Some(config) = &config {
        pools::warn(&mut walk, config);
    }
    walk.end(config)
}

fn config(walk: &mut Walk, table: Table, folders: &Folders) -> Option<Config> {
    let mut root = walk.section("", table);
    let host = host(root.table("host"));
    let runtime = runtime(root.table("runtime"), folders);
    let api = api(root.table("api"), folders);
    let builds = builds(root.table("builds"));
    let caches = caches(root.table("caches"));
    let stop = stop(root.table("stop"));
    let log = log(root.table("log"), folders);
    let (defaults, _) = root.raw_table("pool_defaults", "[pool_defaults]");
    let defaults = defaults.unwrap_or_default();
    pools::defaults(root.walk(), defaults.clone(), folders);
    let pools = pools::pools(root.table("pool"), &defaults, folders, host.as_ref());
    let pipelines = pipelines::pipelines(&mut root);
    let uploads = uploads(&mut root, folders);
    let controllers = controllers::controllers(&mut root, folders);
    controllers::check_pools(root.walk(), controllers.as_deref(), pools.as_ref());
    root.end();
    let home = Home::new(folders.home.clone());
    Some(Config {
        home,
        host: host?,
        runtime: runtime?,
        api: api?,
        builds: builds?,
        caches: caches?,
        stop: stop?,
        pools: pools?,
        pipelines: pipelines?,
        uploads: uploads?,
        controllers: controllers?,
        log: log?,
    })
}

fn host(mut s: Section<'_>) -> Option<Host> {
    let vms = s.count("vms", &bound::HOST_VMS);
    let macos_guests = s.count("macos_guests", &bound::MACOS_GUESTS);
    let cores = s.count_or("cores", &bound::HOST_CORES, UNLIMITED);
    let memory = s.size_or("memory", &bound::HOST_MEMORY, 1, UNLIMITED);
    let disk_free_min = s.size("disk_free_min", &bound::DISK_FREE_MIN);
    let disk_free_low = s.size("disk_free_low", &bound::DISK_FREE_LOW);
    let builds_max = s.count("builds_max", &bound::BUILDS_MAX);
    if macos_guests.is_some_and(|n: u16| n > 2) {
        let key = s.key("macos_guests");
        let text = "is more than two, and macOS refuses to start a third guest unless its quota was raised";
        s.walk().warn(&key, Refusal::says(text));
    }
    s.end();
    Some(Host {
        vms: vms?,
        macos_guests: macos_guests?,
        cores: cores?,
        memory: memory?,
        disk_free_min: disk_free_min?,
        disk_free_low: disk_free_low?,
        builds_max: builds_max?,
    })
}

fn runtime(mut s: Section<'_>, folders: &Folders) -> Option<RuntimeConfig> {
    let program = s.required(
        "program",
        "\"auto\", the name of a program, or a path",
        |found| program(found.text().ok_or_else(Refusal::usual)?, folders),
        |program| program.as_str().into(),
    );
    let tart_home = path(&mut s, "tart_home", folders);
    let image_keep_age = s.duration("image_keep_age", &bound::IMAGE_KEEP_AGE);
    let deadlines = deadlines(s.table("deadlines"));
    s.end();
    Some(RuntimeConfig {
        program: program?,
        tart_home: tart_home?,
        image_keep_age: image_keep_age?,
        deadlines: deadlines?,
    })
}

/// A name is looked for on the PATH, anything with a `/` in it is a file.
fn program(written: &str, folders: &Folders) -> Result<String, Refusal> {
    plain(written)?;
    if written == "auto" {
        return Ok(if cfg!(target_os = "macos") { "tart" } else { "tart-qemu" }.into());
    }
    if written.starts_with('-') {
        return Err(Refusal::usual());
    }
    if !written.contains('/') && !written.starts_with('~') {
        return Ok(written.to_owned());
    }
    let path = folders.path(written)?;
    path.into_os_string().into_string().map_err(|_| Refusal::says("found a path that is not UTF-8"))
}

fn deadlines(mut s: Section<'_>) -> Option<VerbDeadlines> {
    let clone = s.duration("clone", &bound::VERB_DEADLINE);
    let set = s.duration("set", &bound::VERB_DEADLINE);
    let stop = s.duration("stop", &bound::VERB_DEADLINE);
    let delete = s.duration("delete", &bound::VERB_DEADLINE);
    let query = s.duration("query", &bound::VERB_DEADLINE);
    s.end();
    Some(VerbDeadlines { clone: clone?, set: set?, stop: stop?, delete: delete?, query: query? })
}

fn api(mut s: Section<'_>, folders: &Folders) -> Option<Api> {
    let listen = s.required(
        "listen",
        "an IP address and a port",
        |found| rules::listen(found.text().ok_or_else(Refusal::usual)?),
        |listen: &SocketAddr| listen.to_string().into(),
    );
    let source_max = s.size("source_max", &bound::SOURCE_MAX);
    let source_keep_bytes = s.size_or("source_keep_bytes", &bound::SOURCE_KEEP_BYTES, 1, NONE);
    let source_keep_age = s.duration("source_keep_age", &bound::KEEP_AGE);
    let token_file = path_or_none(&mut s, "token_file", folders, false);
    if let (Some(listen), Some(None)) = (listen, &token_file)
        && !listen.ip().is_loopback()
    {
        let key = s.key("listen");
        let text =
            format!("found \"{listen}\", which others reach; without a `token_file` it must be loopback");
        s.walk().wrong(
            &key,
            Refusal::says(text).hint("write a token into a file and name it as `api.token_file`"),
        );
    }
    s.end();
    Some(Api {
        listen: listen?,
        source_max: source_max?,
        source_keep_bytes: source_keep_bytes?,
        source_keep_age: source_keep_age?,
        token_file: token_file?,
    })
}

fn builds(mut s: Section<'_>) -> Option<Builds> {
    let timeout = s.duration("timeout", &bound::BUILD_TIMEOUT);
    let step_timeout = s.duration("step_timeout", &bound::BUILD_TIMEOUT);
    let retries = s.count("retries", &bound::RETRIES);
    let kill_grace = s.duration("kill_grace", &bound::KILL_GRACE);
    let guest_health = s.flag("guest_health");
    let log_max = s.size("log_max", &bound::LOG_MAX);
    let artifacts_max = s.size("artifacts_max", &bound::ARTIFACTS_MAX);
    let keep = s.count("keep", &bound::KEEP);
    let keep_age = s.duration("keep_age", &bound::KEEP_AGE);
    let keep_bytes = s.size_or("keep_bytes", &bound::KEEP_BYTES, 1, UNLIMITED);
    s.end();
    Some(Builds {
        timeout: timeout?,
        step_timeout: step_timeout?,
        retries: retries?,
        kill_grace: kill_grace?,
        guest_health: guest_health?,
        log_max: log_max?,
        artifacts_max: artifacts_max?,
        keep: keep?,
        keep_age: keep_age?,
        keep_bytes: keep_bytes?,
    })
}

fn caches(mut s: Section<'_>) -> Option<Caches> {
    let bytes_max = s.size("bytes_max", &bound::CACHES_BYTES_MAX);
    let entry_max = s.size("entry_max", &bound::CACHE_ENTRY_MAX);
    let keep_age = s.duration("keep_age", &bound::KEEP_AGE);
    let timeout = s.duration("timeout", &bound::CACHES_TIMEOUT);
    s.end();
    Some(Caches { bytes_max: bytes_max?, entry_max: entry_max?, keep_age: keep_age?, timeout: timeout? })
}

fn stop(mut s: Section<'_>) -> Option<Stop> {
    let drain_timeout = s.duration("drain_timeout", &bound::DRAIN_TIMEOUT);
    s.end();
    Some(Stop { drain_timeout: drain_timeout? })
}

fn log(mut s: Section<'_>, folders: &Folders) -> Option<Log> {
    let filter = s.text("filter", "a level, or levels by module", rules::log_filter);
    let json = s.flag("json");
    let file = path_or_none(&mut s, "file", folders, false);
    let vm_keep = s.count("vm_keep", &bound::VM_KEEP);
    let vm_keep_age = s.duration("vm_keep_age", &bound::KEEP_AGE);
    let vm_keep_bytes = s.size_or("vm_keep_bytes", &bound::VM_KEEP_BYTES, 1, UNLIMITED);
    s.end();
    Some(Log {
        filter: filter?,
        json: json?,
        file: file?,
        vm_keep: vm_keep?,
        vm_keep_age: vm_keep_age?,
        vm_keep_bytes: vm_keep_bytes?,
    })
}

fn uploads(root: &mut Section<'_>, folders: &Folders) -> Option<Vec<Upload>> {
    let Some(elements) = root.elements("upload") else {
        root.walk().wrong("upload", Refusal::says("allowed is a list of tables, each as [[upload]]"));
        return None;
    };
    if elements.len() > bound::UPLOADS_MAX {
        let text = format!("found {} uploads, allowed are {}", elements.len(), bound::UPLOADS_MAX);
        root.walk().wrong("upload", Refusal::says(text));
        return None;
    }
    let mut uploads = Some(Vec::new());
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for (key, element) in elements {
        let ValueKind::Table(table) = element.kind else {
            root.walk().wrong(&key, Refusal::says("allowed is a table, as [[upload]]"));
            uploads = None;
            continue;
        };
        if let Some(name) = table.get("name").and_then(|v| v.clone().into_string().ok())
            && let Some(first) = names.insert(name.clone(), key.clone())
        {
            let text = format!("found {}, which {first} has already; names must differ", shown_text(&name));
            root.walk().wrong(&format!("{key}.name"), Refusal::says(text));
        }
        let read = upload(root.walk().section(&key, table), folders);
        uploads = uploads.zip(read).map(|(mut all, one)| {
            all.push(one);
            all
        });
    }
    uploads
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SinkKind {
    Folder,
    Http,
}

fn upload(mut s: Section<'_>, folders: &Folders) -> Option<Upload> {
    let name = s.text("name", "a name of letters, digits, `-`, `_` and `.`", rules::upload_name);
    let kind = s.choice("kind", &[("folder", SinkKind::Folder), ("http", SinkKind::Http)], None);
    let sink = match kind {
        Some(SinkKind::Folder) => folder(&mut s, folders),
        Some(SinkKind::Http) => http(&mut s, folders),
        // Which keys belong here nobody knows, so none of them is unknown.
        None => return None,
    };
    s.end();
    Some(Upload { name: name?, sink: sink? })
}

fn folder(s: &mut Section<'_>, folders: &Folders) -> Option<UploadSink> {
    let read = |text: Option<&str>| rules::folder(text.ok_or_else(Refusal::usual)?, folders);
    let path = s.required("path", "an absolute path", |found| read(found.text()), written_path)?;
    Some(UploadSink::Folder { path })
}

fn http(s: &mut Section<'_>, folders: &Folders) -> Option<UploadSink> {
    let url = s.text("url", "an https:// URL, or http:// to loopback", rules::url);
    let token_file = path_or_none(s, "token_file", folders, true);
    Some(UploadSink::Http { url: url?, token_file: token_file? })
}

/// A path, made absolute.
pub fn path(s: &mut Section<'_>, name: &'static str, folders: &Folders) -> Option<PathBuf> {
    let read = |text: Option<&str>| folders.path(text.ok_or_else(Refusal::usual)?);
    s.required(name, "a path", |found| read(found.text()), written_path)
}

/// A path or the word "none"; `absent` says whether nothing means "none" too.
pub fn path_or_none(
    s: &mut Section<'_>,
    name: &'static str,
    folders: &Folders,
    absent: bool,
) -> Option<Option<PathBuf>> {
    let read = |text: Option<&str>| match text.ok_or_else(Refusal::usual)? {
        NONE => Ok(None),
        written => folders.path(written).map(Some),
    };
    let write = |path: &Option<PathBuf>| path.as_ref().map_or_else(|| NONE.into(), written_path);
    let allowed = "a path, or \"none\"";
    if absent {
        return s.optional(name, allowed, |found| read(found.text()), write).map(Option::flatten);
    }
    s.required(name, allowed, |found| read(found.text()), write)
}

#[expect(clippy::ptr_arg, reason = "it stands for a function of the value that was read")]
fn written_path(path: &PathBuf) -> toml::Value {
    path.to_string_lossy().into_owned().into()
}
