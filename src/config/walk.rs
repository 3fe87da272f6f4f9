//! Reads a merged table key by key. Each key that is asked for is a key that exists, so that what is left over is unknown;
//! each answer is either a value or a mistake that was noted, so that one run finds them all. On the way every value is
//! noted with its place, which is what `preheat config show` prints.

use std::time::Duration;

use config::{Value, ValueKind};

use super::file::{Merged, Origins, Table};
use super::found::{Found, Refusal, count, duration, flag, list, nearest, one_of, size, text};
use super::limits::Bound;
use super::mistake::{Mistake, Mistakes, Origin};
use super::units::ByteSize;

/// One key as it takes effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Dotted: `pool.linux.network.mode`.
    pub key: String,
    /// As it would be written.
    pub value: toml::Value,
    pub origin: Origin,
    /// The key of `[pool_defaults]` that it comes from.
    pub inherited: Option<String>,
    /// What may be written.
    pub allowed: String,
}

/// What has been read so far.
#[derive(Debug, Default)]
pub struct Walk {
    origins: Origins,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
    settings: Vec<Setting>,
}

/// What a walk found besides the values.
#[derive(Debug, Default)]
pub struct Findings {
    pub warnings: Vec<Mistake>,
    pub settings: Vec<Setting>,
}

impl Walk {
    /// Starts to read.
    pub fn new(origins: Origins) -> Self {
        Self { origins, ..Self::default() }
    }

    /// Starts to read `merged`, with its outermost table.
    pub fn over(merged: Merged) -> (Self, Table) {
        (Self::new(merged.origins), merged.table)
    }

    /// A table as a section.
    pub fn section(&mut self, path: impl Into<String>, table: Table) -> Section<'_> {
        Section { walk: self, path: path.into(), own: table, base: None, known: Vec::new(), forgiving: false }
    }

    /// Notes a mistake at `key`, where it was set.
    pub fn wrong(&mut self, key: &str, refusal: Refusal) {
        let origin = self.origins.of(key);
        self.wrong_at(&origin, key, refusal);
    }

    /// Notes a mistake.
    pub fn note(&mut self, mistake: Mistake) {
        self.mistakes.push(mistake);
    }

    fn wrong_at(&mut self, origin: &Origin, key: &str, refusal: Refusal) {
        let mut mistake = Mistake::at(origin, key, refusal.text.unwrap_or_default());
        mistake.hint = refusal.hint;
        self.mistakes.push(mistake);
    }

    /// Notes something allowed that is surely not meant.
    pub fn warn(&mut self, key: &str, refusal: Refusal) {
        let mut warning = Mistake::at(&self.effective(key), key, refusal.text.unwrap_or_default());
        warning.hint = refusal.hint;
        self.warnings.push(warning);
    }

    /// How many settings were noted.
    pub fn settings_so_far(&self) -> usize {
        self.settings.len()
    }

    /// Takes back what was noted behind the first so many.
    pub fn forget_settings_after(&mut self, count: usize) {
        self.settings.truncate(count);
    }

    /// Notes a key as it was written: one that holds tables whose names its author chose.
    pub fn note_setting(&mut self, key: &str, value: toml::Value) {
        let origin = self.origins.of(key);
        let key = key.to_owned();
        self.settings.push(Setting { key, value, origin, inherited: None, allowed: String::new() });
    }

    /// Where the value that `key` has comes from, which may be another key that it inherits.
    pub fn effective(&self, key: &str) -> Origin {
        let setting = self.settings.iter().find(|s| s.key == key);
        setting.map_or_else(|| self.origins.of(key), |s| s.origin.clone())
    }

    /// Where `key` is set, or the nearest table around it.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.of(key)
    }

    /// The value, if no mistake was found.
    ///
    /// # Errors
    /// Every mistake.
    pub fn end<T>(self, value: Option<T>) -> Result<(T, Findings), Mistakes> {
        let Self { mut mistakes, warnings, settings, .. } = self;
        match value {
            Some(value) if mistakes.is_empty() => {
                Ok((value, Findings { warnings: Mistakes(warnings).sorted().0, settings }))
            }
            Some(_) | None => {
                if mistakes.is_empty() {
                    mistakes.push(Mistake::of("configuration", "is not complete"));
                }
                Err(Mistakes(mistakes).sorted())
            }
        }
    }
}

/// One table of the configuration. [`Section::end`] reports the keys that nobody asked for.
#[must_use]
pub struct Section<'w> {
    walk: &'w mut Walk,
    path: String,
    own: Table,
    /// What a key that is absent is taken from.
    base: Option<(String, Table)>,
    known: Vec<&'static str>,
    /// What is missing has been reported: the table is something else, or is inherited.
    forgiving: bool,
}

impl Section<'_> {
    /// Takes what is absent from `table`, which is at `path` and has been checked.
    pub fn with_base(mut self, path: &str, table: Table) -> Self {
        self.base = Some((path.to_owned(), table));
        self
    }

    /// The whole key of one of its keys.
    pub fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// What all sections share.
    pub fn walk(&mut self) -> &mut Walk {
        self.walk
    }

    /// Whether the table itself has the key.
    pub fn has(&self, name: &str) -> bool {
        self.own.contains_key(name)
    }

    fn find(&mut self, name: &'static str) -> Option<Found> {
        self.known.push(name);
        let found = |key: String, value: &Value, walk: &Walk, inherited| Found {
            origin: walk.origins.of(&key),
            kind: value.kind.clone(),
            key,
            inherited,
        };
        if let Some(value) = self.own.get(name) {
            return Some(found(self.key(name), value, self.walk, false));
        }
        let (path, table) = self.base.as_ref()?;
        table.get(name).map(|value| found(format!("{path}.{name}"), value, self.walk, true))
    }

    /// A key that need not be there, read by `read`. The outer `None` is a mistake.
    pub fn optional<T>(
        &mut self,
        name: &'static str,
        allowed: &str,
        read: impl FnOnce(&Found) -> Result<T, Refusal>,
        write: impl FnOnce(&T) -> toml::Value,
    ) -> Option<Option<T>> {
        let Some(found) = self.find(name) else { return Some(None) };
        match read(&found) {
            Ok(value) => {
                let setting = Setting {
                    key: self.key(name),
                    value: write(&value),
                    origin: found.origin,
                    inherited: found.inherited.then_some(found.key),
                    allowed: allowed.to_owned(),
                };
                self.walk.settings.push(setting);
                Some(Some(value))
            }
            Err(mut refusal) => {
                let usual = || format!("found {}, allowed is {allowed}", found.shown());
                refusal.text = Some(refusal.text.unwrap_or_else(usual));
                // An inherited mistake has been told where it was made.
                if !found.inherited {
                    self.walk.wrong_at(&found.origin, &found.key, refusal);
                }
                None
            }
        }
    }

    /// A key that must be there, read by `read`.
    pub fn required<T>(
        &mut self,
        name: &'static str,
        allowed: &str,
        read: impl FnOnce(&Found) -> Result<T, Refusal>,
        write: impl FnOnce(&T) -> toml::Value,
    ) -> Option<T> {
        let found = self.optional(name, allowed, read, write)?;
        if found.is_none() {
            self.missing(name, allowed);
        }
        found
    }

    fn missing(&mut self, name: &str, allowed: &str) {
        if !self.forgiving {
            let key = self.key(name);
            self.walk.wrong(&key, Refusal::says(format!("is missing, and must be {allowed}")));
        }
    }

    /// A whole number within its bound.
    pub fn count<T: TryFrom<u64> + Copy + Into<u64>>(
        &mut self,
        name: &'static str,
        bound: &Bound,
    ) -> Option<T> {
        self.required(name, &allowed(bound), |found| count(found, bound), |n: &T| number((*n).into()))
    }

    /// The same, where it need not be there.
    pub fn count_if<T: TryFrom<u64> + Copy + Into<u64>>(
        &mut self,
        name: &'static str,
        bound: &Bound,
    ) -> Option<Option<T>> {
        self.optional(name, &allowed(bound), |found| count(found, bound), |n: &T| number((*n).into()))
    }

    /// The same, or a word for "none".
    pub fn count_or<T: TryFrom<u64> + Copy + Into<u64>>(
        &mut self,
        name: &'static str,
        bound: &Bound,
        word: &str,
    ) -> Option<Option<T>> {
        let read =
            |found: &Found| if found.text() == Some(word) { Ok(None) } else { count(found, bound).map(Some) };
        let write = |n: &Option<T>| n.map_or_else(|| word.into(), |n| number(n.into()));
        self.required(name, &format!("{}, or \"{word}\"", allowed(bound)), read, write)
    }

    /// A size within its bound, in whole multiples of `step`.
    pub fn size(&mut self, name: &'static str, bound: &Bound) -> Option<ByteSize> {
        self.required(name, &allowed(bound), |found| size(found, bound, 1), |s| s.to_string().into())
    }

    /// The same, or a word for "none".
    pub fn size_or(
        &mut self,
        name: &'static str,
        bound: &Bound,
        step: u64,
        word: &str,
    ) -> Option<Option<ByteSize>> {
        let read = |found: &Found| {
            if found.text() == Some(word) { Ok(None) } else { size(found, bound, step).map(Some) }
        };
        let write = |s: &Option<ByteSize>| s.map_or_else(|| word.into(), |s| s.to_string().into());
        self.required(name, &format!("{}, or \"{word}\"", allowed(bound)), read, write)
    }

    /// A duration within its bound.
    pub fn duration(&mut self, name: &'static str, bound: &Bound) -> Option<Duration> {
        self.required(name, &allowed(bound), |found| duration(found, bound), written_duration)
    }

    /// A duration that need not be there.
    pub fn duration_if(&mut self, name: &'static str, bound: &Bound) -> Option<Option<Duration>> {
        self.optional(name, &allowed(bound), |found| duration(found, bound), written_duration)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &'static str) -> Option<bool> {
        self.required(name, TRUE_OR_FALSE, flag, |flag| (*flag).into())
    }

    /// The same, where it need not be there.
    pub fn flag_if(&mut self, name: &'static str) -> Option<Option<bool>> {
        self.optional(name, TRUE_OR_FALSE, flag, |flag| (*flag).into())
    }

    /// A text that `check` accepts.
    pub fn text(
        &mut self,
        name: &'static str,
        allowed: &str,
        check: impl FnOnce(&str) -> Result<(), Refusal>,
    ) -> Option<String> {
        self.required(name, allowed, |found| text(found, check), |s| s.as_str().into())
    }

    /// The same, where it need not be there.
    pub fn text_if(
        &mut self,
        name: &'static str,
        allowed: &str,
        check: impl FnOnce(&str) -> Result<(), Refusal>,
    ) -> Option<Option<String>> {
        self.optional(name, allowed, |found| text(found, check), |s| s.as_str().into())
    }

    /// A list of texts that `check` accepts, each; every one that it does not accept is told. Absent, it is empty.
    pub fn list(
        &mut self,
        name: &'static str,
        each: &str,
        check: impl Fn(&str) -> Result<(), Refusal>,
    ) -> Option<Vec<String>> {
        let allowed = format!("a list, each element {each}");
        let mut place = None;
        let read = |found: &Found| {
            place = Some((found.key.clone(), found.inherited));
            list(found)
        };
        let items = self.optional(name, &allowed, read, |items| items.clone().into())?.unwrap_or_default();
        let Some((key, inherited)) = place else { return Some(items) };
        let mut right = true;
        for (n, item) in items.iter().enumerate() {
            let Err(refusal) = check(item) else { continue };
            right = false;
            if !inherited {
                let key = format!("{key}[{n}]");
                let origin = self.walk.origins.of(&key);
                self.walk.note(refusal.mistake(&origin, &key, item, each));
            }
        }
        right.then_some(items)
    }

    /// One of a few words.
    pub fn choice<T: Copy + PartialEq>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
        absent: Option<T>,
    ) -> Option<T> {
        let allowed = one_of(words.iter().map(|(word, _)| *word));
        let read = |found: &Found| {
            let chosen = words.iter().find(|(word, _)| found.text() == Some(word));
            let near = || found.text().and_then(|t| nearest(t, words.iter().map(|(word, _)| *word)));
            chosen.map(|(_, value)| *value).ok_or_else(|| match near() {
                Some(near) => Refusal::usual().hint(format!("did you mean \"{near}\"?")),
                None => Refusal::usual(),
            })
        };
        let write = |value: &T| {
            let word = words.iter().find(|(_, v)| v == value);
            word.map_or("", |(word, _)| *word).into()
        };
        match (self.optional(name, &allowed, read, write)?, absent) {
            (Some(value), _) | (None, Some(value)) => Some(value),
            (None, None) => {
                self.missing(name, &allowed);
                None
            }
        }
    }

    /// A table within it. One that is absent is empty.
    pub fn table(&mut self, name: &'static str) -> Section<'_> {
        let path = self.key(name);
        let (table, not_a_table) = self.raw_table(name, &format!("[{path}]"));
        let mut section = self.walk.section(path, table.unwrap_or_default());
        section.forgiving = not_a_table;
        section
    }

    /// A table within it as it stands, its own before the base's, and whether something else is there.
    pub fn raw_table(&mut self, name: &'static str, example: &str) -> (Option<Table>, bool) {
        let Some(found) = self.find(name) else { return (None, false) };
        let shown = found.shown();
        if let ValueKind::Table(table) = found.kind {
            return (Some(table), false);
        }
        if !found.inherited {
            let text = format!("found {shown}, allowed is a table, as {example}");
            self.walk.wrong_at(&found.origin, &found.key, Refusal::says(text));
        }
        (None, true)
    }

    /// The elements of a list of anything, each with its key; `None` when it is something else, which is for the
    /// caller to report.
    pub fn elements(&mut self, name: &'static str) -> Option<Vec<(String, Value)>> {
        let Some(found) = self.find(name) else { return Some(Vec::new()) };
        let ValueKind::Array(items) = found.kind else { return None };
        Some(items.into_iter().enumerate().map(|(n, v)| (format!("{}[{n}]", found.key), v)).collect())
    }

    /// Takes a key for known without reading it.
    pub fn knows(&mut self, name: &'static str) {
        self.known.push(name);
    }

    /// Says nothing about missing keys from here on.
    pub fn forgive_missing(&mut self) {
        self.forgiving = true;
    }

    /// Ends without a word about keys that nobody asked for.
    pub fn silently(self) {}

    /// Every key of it with its value: for tables whose keys are names.
    pub fn entries(&mut self) -> Vec<(String, Value)> {
        let mut entries: Vec<_> = self.own.drain().collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries
    }

    /// Reports every key that is there and was not asked for.
    pub fn end(self) {
        let mut unknown: Vec<&String> =
            self.own.keys().filter(|k| !self.known.contains(&k.as_str())).collect();
        unknown.sort();
        for name in unknown {
            let key = self.key(name);
            let text = format!("unknown key, allowed are {}", self.known.join(", "));
            let refusal = match nearest(name, self.known.iter().copied()) {
                Some(near) => Refusal::says(text).hint(format!("did you mean `{near}`?")),
                None => Refusal::says(text),
            };
            self.walk.wrong(&key, refusal);
        }
    }
}

const TRUE_OR_FALSE: &str = "true or false";

/// What a bound allows, with its reason.
fn allowed(bound: &Bound) -> String {
    format!("{} ({})", bound.allowed(), bound.why)
}

fn number(n: u64) -> toml::Value {
    toml::Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}

/// As a duration is written in a file.
pub fn written_duration(d: &Duration) -> toml::Value {
    humantime::format_duration(*d).to_string().into()
}
