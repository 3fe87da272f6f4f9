//! What was written, and where: one [`Layer`] for each file and for the environment, and [`merge`], which puts them on top
//! of each other by way of the `config` crate.
//!
//! That crate reads a key as a path (`a.b`, `a[7]`), so that a quoted key could reach into another section or ask for a
//! list of four thousand million elements. Here a key is letters, digits, `-` and `_`, and any other is reported before
//! the crate sees it. It also forgets which variable or line a value came from; [`Origins`] remembers.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};

use config::{ConfigError, Map, Source, Value, ValueKind};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Mistake, Mistakes, Origin};

/// A table as the `config` crate has it.
pub type Table = Map<String, Value>;

/// Variables of the environment begin with this when they are keys of the configuration.
pub const ENV_PREFIX: &str = "PREHEAT__";

/// Where each key was set last.
#[derive(Debug, Clone, Default)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Where `key` was set; for a key that nobody set, where the nearest table around it was.
    pub fn of(&self, key: &str) -> Origin {
        let mut key = key;
        loop {
            if let Some(origin) = self.0.get(key) {
                return origin.clone();
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return Origin::Default,
            }
        }
    }
}

/// What one file, or the environment, says.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    table: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layer {
    /// Notes what this layer sets. A list replaces what was below it, so the places of the old elements go.
    fn cover(&self, origins: &mut BTreeMap<String, Origin>) {
        for (key, origin) in &self.origins {
            let elements = format!("{key}[");
            let below = origins.range(elements.clone()..).map(|(k, _)| k.clone());
            let below: Vec<_> = below.take_while(|k| k.starts_with(&elements)).collect();
            if !key.ends_with(']') {
                below.iter().for_each(|key| drop(origins.remove(key)));
            }
            origins.insert(key.clone(), origin.clone());
        }
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Table, ConfigError> {
        Ok(self.table.clone())
    }
}

/// The layers on top of each other.
#[derive(Debug, Clone, Default)]
pub struct Merged {
    pub table: Table,
    pub origins: Origins,
}

/// Puts `layers` on top of each other, the last one winning.
///
/// # Errors
/// When the `config` crate refuses them, which it has no reason to.
pub fn merge(layers: Vec<Layer>) -> Result<Merged, Mistakes> {
    let mut origins = BTreeMap::new();
    let mut builder = config::Config::builder();
    for layer in layers {
        layer.cover(&mut origins);
        builder = builder.add_source(layer);
    }
    let wrong = |e: ConfigError| Mistakes::from(Mistake::of("configuration", e.to_string()));
    let table = builder.build().and_then(|c| c.cache.into_table()).map_err(wrong)?;
    Ok(Merged { table, origins: Origins(origins) })
}

/// Which file a text is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Built into the program.
    Default,
    /// The operator's, or a project's.
    File,
    /// This host's.
    HostFile,
}

impl Role {
    fn origin(self, path: &Path, line: usize) -> Origin {
        match self {
            Self::Default => Origin::Default,
            Self::File => Origin::File { path: path.into(), line },
            Self::HostFile => Origin::HostFile { path: path.into(), line },
        }
    }
}

/// Reads a file of at most `bytes_max` bytes; `None` when it is not there.
///
/// # Errors
/// When it is there and cannot be read, is too long, or is not UTF-8.
pub fn read(path: &Path, bytes_max: usize) -> Result<Option<String>, Mistake> {
    let place = path.display().to_string();
    let cannot = |e: std::io::Error| Mistake::of(&place, format!("cannot be read: {e}"));
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(cannot(e)),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() > bytes_max {
        return Err(Mistake::of(&place, format!("is longer than {bytes_max} bytes, the most that is read")));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(e) => {
            let upto = e.utf8_error().valid_up_to();
            Err(Mistake::of(&place, format!("is not text: byte {upto} is no UTF-8")))
        }
    }
}

/// Parses a file's text.
///
/// # Errors
/// Every syntax error, with line and column, and every value that TOML has and no key takes.
pub fn parse(text: &str, path: &Path, role: Role) -> Result<Layer, Mistakes> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::of(text);
    if !errors.is_empty() {
        let mistakes = errors.iter().take(SYNTAX_ERRORS_MAX).map(|e| syntax(&lines, path, e));
        return Err(Mistakes(mistakes.collect()));
    }
    let mut reading =
        Reading { lines, path: path.into(), role, layer: Layer::default(), mistakes: Vec::new() };
    let table = reading.table("", document.into_inner());
    if !reading.mistakes.is_empty() {
        return Err(Mistakes(reading.mistakes).sorted());
    }
    Ok(Layer { table, origins: reading.layer.origins })
}

/// One slip can upset the rest of a file; more errors than these help nobody.
const SYNTAX_ERRORS_MAX: usize = 10;

fn syntax(lines: &Lines<'_>, path: &Path, error: &toml::de::Error) -> Mistake {
    let at = error.span().map_or(lines.text.len(), |span| span.start);
    let (line, column) = lines.position(at);
    let message = error.message().lines().next().unwrap_or_default();
    Mistake::of(format!("{}:{line}:{column}", path.display()), format!("is not TOML: {message}"))
}

/// A text and where its lines begin.
struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(ends).collect() }
    }

    /// Line and column of a byte, both from 1; the column counts characters.
    fn position(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        (line, self.text.get(start..at).unwrap_or("").chars().count() + 1)
    }
}

/// Turns a TOML document into the `config` crate's values, noting where each is.
struct Reading<'t> {
    lines: Lines<'t>,
    path: PathBuf,
    role: Role,
    layer: Layer,
    mistakes: Vec<Mistake>,
}

impl Reading<'_> {
    fn table(&mut self, at: &str, table: DeTable<'_>) -> Table {
        let mut out = Table::new();
        for (name, value) in table {
            let key = join(at, name.get_ref());
            let origin = self.origin(name.span().start);
            if !is_key(name.get_ref()) {
                self.mistakes.push(strange_key(&origin, &key));
                continue;
            }
            self.layer.origins.insert(key.clone(), origin);
            if let Some(value) = self.value(&key, value) {
                out.insert(name.into_inner().into_owned(), value);
            }
        }
        out
    }

    fn value(&mut self, key: &str, value: Spanned<DeValue<'_>>) -> Option<Value> {
        let origin = self.origin(value.span().start);
        let mut refuse = |text: String| {
            self.mistakes.push(Mistake::at(&origin, key, text));
            None
        };
        let kind = match value.into_inner() {
            DeValue::String(text) => ValueKind::String(text.into_owned()),
            DeValue::Boolean(flag) => ValueKind::Boolean(flag),
            DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
                Ok(n) => ValueKind::I64(n),
                Err(_) => return refuse(format!("found {n}, a number too large for any key")),
            },
            DeValue::Float(n) => match n.as_str().parse() {
                Ok(n) => ValueKind::Float(n),
                Err(_) => return refuse(format!("found {n}, which is no number")),
            },
            DeValue::Datetime(date) => {
                return refuse(format!(
                    "found the date {date}, and no key takes one; a text is put in quotes"
                ));
            }
            DeValue::Table(table) => ValueKind::Table(self.table(key, table)),
            DeValue::Array(array) => ValueKind::Array(self.array(key, array)),
        };
        Some(Value::new(None, kind))
    }

    fn array(&mut self, at: &str, array: toml::de::DeArray<'_>) -> Vec<Value> {
        let mut out = Vec::new();
        for (n, value) in array.into_iter().enumerate() {
            let key = format!("{at}[{n}]");
            let origin = self.origin(value.span().start);
            self.layer.origins.insert(key.clone(), origin);
            out.extend(self.value(&key, value));
        }
        out
    }

    fn origin(&self, at: usize) -> Origin {
        self.role.origin(&self.path, self.lines.position(at).0)
    }
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

fn is_key(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn strange_key(origin: &Origin, key: &str) -> Mistake {
    let key = key.escape_debug().to_string();
    Mistake::at(origin, key, "unknown key; a key holds letters, digits, `-` and `_` only")
}

/// The environment, as it was when it was read.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<OsString, OsString>);

impl std::fmt::Debug for Env {
    /// Without the values: there are secrets among them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Env({} variables)", self.0.len())
    }
}

impl Env {
    /// This process's.
    pub fn of_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// One variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(vars: I) -> Self {
        Self(vars.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

/// The variables that begin with [`ENV_PREFIX`], each a key. All values are texts; what reads them turns them into
/// numbers, lists and so on.
///
/// # Errors
/// Every variable that cannot be a key, or that gets in another one's way.
pub fn environment(env: &Env) -> Result<Layer, Mistakes> {
    let mut layer = Layer::default();
    let mut mistakes = Vec::new();
    for (variable, value) in &env.0 {
        // A name that is not Unicode is no key; one that only looks like ours after the loss is nobody's.
        let variable = variable.to_string_lossy();
        let Some(rest) = variable.strip_prefix(ENV_PREFIX) else { continue };
        let origin = Origin::Environment { variable: variable.clone().into_owned() };
        let parts = key_parts(rest);
        let key = parts.join(".");
        let Some(value) = value.to_str() else {
            mistakes.push(Mistake::at(&origin, key, "the value is not UTF-8"));
            continue;
        };
        if !parts.iter().all(|part| is_key(part)) {
            mistakes.push(strange_key(&origin, &key).hint("write two underscores between the parts"));
            continue;
        }
        if let Err(other) = insert(&mut layer, &parts, value, &origin) {
            let text = format!("gets in the way of {other}, which sets the same key or a part of it");
            mistakes.push(Mistake::at(&origin, key, text).hint("unset one of the two"));
        }
    }
    if mistakes.is_empty() { Ok(layer) } else { Err(Mistakes(mistakes)) }
}

/// `POOL__XCODE_26__WARM` as `pool`, `xcode-26`, `warm`. Names of pools have hyphens and no underscores, and names of
/// variables the other way round, so nothing is ambiguous.
fn key_parts(rest: &str) -> Vec<String> {
    let mut parts: Vec<String> = rest.to_ascii_lowercase().split("__").map(str::to_owned).collect();
    if parts.first().is_some_and(|first| first == "pool")
        && let Some(name) = parts.get_mut(1)
    {
        *name = name.replace('_', "-");
    }
    parts
}

/// Sets a key; the error is the place that was there first.
fn insert(layer: &mut Layer, parts: &[String], value: &str, origin: &Origin) -> Result<(), String> {
    let Some((last, tables)) = parts.split_last() else { return Ok(()) };
    let Layer { table, origins } = layer;
    let first = |origins: &BTreeMap<String, Origin>, key: &str| {
        origins.get(key).map_or_else(String::new, Origin::to_string)
    };
    let mut table = table;
    let mut key = String::new();
    for name in tables {
        key = join(&key, name);
        origins.entry(key.clone()).or_insert_with(|| origin.clone());
        let entry = table.entry(name.clone()).or_insert_with(|| Value::new(None, Table::new()));
        let ValueKind::Table(inner) = &mut entry.kind else { return Err(first(origins, &key)) };
        table = inner;
    }
    key = join(&key, last);
    if table.contains_key(last) {
        return Err(first(origins, &key));
    }
    table.insert(last.clone(), Value::new(None, value));
    origins.insert(key, origin.clone());
    Ok(())
}
