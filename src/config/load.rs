//! Which layers there are and where: the built-in default, the operator's file, this host's file, the environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::file::{self, Env, Layer, Role};
use super::limits::FILE_BYTES_MAX;
use super::mistake::{Mistake, Mistakes};
use super::rules::Folders;
use super::walk::Setting;
use super::{Config, Home, validate};

/// `config/default.toml`: the defaults, and the documentation.
pub const DEFAULT: &str = include_str!("../../config/default.toml");

/// The variable that says where the installation is.
pub const HOME_VARIABLE: &str = "PREHEAT_HOME";

impl Home {
    /// `$PREHEAT_HOME`, else `~/.preheat`.
    ///
    /// # Errors
    /// When neither is there, or it is not absolute.
    pub fn discover(env: &Env) -> Result<Self, Mistake> {
        if let Some(home) = env.get(HOME_VARIABLE) {
            let path = PathBuf::from(home);
            let text = format!("found \"{}\", allowed is an absolute path", path.display());
            let wrong = || Mistake::of(HOME_VARIABLE, text).hint("write it in full, beginning with `/`");
            return if path.is_absolute() { Ok(Self::new(path)) } else { Err(wrong()) };
        }
        let Some(user) = env.get("HOME").map(PathBuf::from) else {
            let text = "is not set, and neither is HOME, below which the installation would be";
            return Err(Mistake::of(HOME_VARIABLE, text).hint("set PREHEAT_HOME to an absolute path"));
        };
        if user.is_absolute() {
            return Ok(Self::new(user.join(".preheat")));
        }
        let text = format!("found \"{}\", allowed is an absolute path", user.display());
        Err(Mistake::of("HOME", text).hint("set PREHEAT_HOME to an absolute path"))
    }
}

/// What decides about the layers.
#[derive(Debug, Clone)]
pub struct Inputs {
    pub home: Home,
    /// The file that was asked for by name; else `$PREHEAT_HOME/preheat.toml`, which need not be there.
    pub file: Option<PathBuf>,
    /// This host's name.
    pub hostname: String,
    pub env: Env,
}

impl Inputs {
    /// As this process was started.
    ///
    /// # Errors
    /// When the installation's folder cannot be told.
    pub fn of_process(file: Option<&Path>) -> Result<Self, Mistakes> {
        let env = Env::of_process();
        let home = Home::discover(&env)?;
        let hostname = nix::unistd::gethostname().map(OsString::into_string);
        let hostname = hostname.ok().and_then(Result::ok).unwrap_or_default();
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        Ok(Self { home, file: file.map(absolute), hostname, env })
    }
}

/// A configuration that is right.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// What is allowed and surely not meant.
    pub warnings: Vec<Mistake>,
    /// Every key as it takes effect, in the order of the documentation.
    pub settings: Vec<Setting>,
    /// The files that were read; for a reload also those that were looked for in vain.
    pub files: Vec<PathBuf>,
}

impl Loaded {
    /// What a key is set to, as it would be written; for a table its keys.
    pub fn value(&self, key: &str) -> Option<String> {
        if let Some(setting) = self.settings.iter().find(|s| s.key == key) {
            return Some(setting.value.to_string());
        }
        let below =
            |s: &Setting| s.key.strip_prefix(key)?.strip_prefix('.').map(|k| format!("{k} = {}", s.value));
        let keys: Vec<String> = self.settings.iter().filter_map(below).collect();
        if keys.is_empty() { None } else { Some(format!("{{ {} }}", keys.join(", "))) }
    }
}

/// Reads and checks everything.
///
/// # Errors
/// Every mistake. Files that do not parse come first, and alone: what the rest means is not known without them.
pub fn load(inputs: &Inputs) -> Result<Loaded, Mistakes> {
    let operators = inputs.file.clone().unwrap_or_else(|| inputs.home.config_file());
    let mut mistakes = Vec::new();
    let mut layers = Vec::new();
    let mut files = vec![operators.clone()];
    let mut take = |layer: Result<Option<Layer>, Mistakes>| match layer {
        Ok(layer) => layers.extend(layer),
        Err(Mistakes(found)) => mistakes.extend(found),
    };
    take(file::parse(DEFAULT, Path::new("default.toml"), Role::Default).map(Some));
    take(operators_layer(&operators, inputs.file.is_some()));
    let hosts = operators.parent().unwrap_or_else(|| inputs.home.path()).join("hosts");
    files.extend(host_files(&hosts, &inputs.hostname));
    take(host_layer(files.get(1..).unwrap_or_default()));
    take(file::environment(&inputs.env).map(Some));
    if !mistakes.is_empty() {
        return Err(Mistakes(mistakes));
    }
    let folders =
        Folders { home: inputs.home.path().into(), user: inputs.env.get("HOME").map(PathBuf::from) };
    let (config, findings) = validate::validate(file::merge(layers)?, &folders)?;
    Ok(Loaded { config, warnings: findings.warnings, settings: findings.settings, files })
}

fn operators_layer(path: &Path, asked_for: bool) -> Result<Option<Layer>, Mistakes> {
    match file::read(path, FILE_BYTES_MAX)? {
        Some(text) => file::parse(&text, path, Role::File).map(Some),
        None if asked_for => {
            let mistake = Mistake::of(path.display().to_string(), "is not there, and was asked for by name");
            Err(mistake.hint("correct --config; without it, $PREHEAT_HOME/preheat.toml is read").into())
        }
        None => Ok(None),
    }
}

/// The files that may hold what differs on this host, the first that is there being the one: by its full name, then by
/// the first part of it, as a Mac is `studio.local` at home and `studio.office.example` elsewhere.
fn host_files(folder: &Path, hostname: &str) -> Vec<PathBuf> {
    let safe = |name: &str| !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.');
    if !safe(hostname) {
        return Vec::new();
    }
    let mut names = vec![hostname];
    names.extend(hostname.split_once('.').map(|(first, _)| first));
    names.into_iter().map(|name| folder.join(format!("{name}.toml"))).collect()
}

fn host_layer(candidates: &[PathBuf]) -> Result<Option<Layer>, Mistakes> {
    for path in candidates {
        if let Some(text) = file::read(path, FILE_BYTES_MAX)? {
            return file::parse(&text, path, Role::HostFile).map(Some);
        }
    }
    Ok(None)
}
