//! What the texts of a build's description may hold, with the words that whoever wrote another is told.

use std::collections::BTreeMap;

use crate::config::found::{Refusal, plain, shown_text, variable_text};
use crate::config::limits as bound;
use crate::config::rules;
use crate::config::walk::Section;

pub(crate) const NAME: &str = "a name in one line";
pub(crate) const COMMAND: &str = "a shell command";
pub(crate) const DIR: &str = "a folder in the source, relative and without `..`";
pub(crate) const GLOB: &str = "a glob relative to the source, without `..`";
pub(crate) const VARIABLE: &str = "a name of letters, digits and `_`, not beginning with a digit";

/// A table of variables, each of which will do.
pub(crate) fn env(mut s: Section<'_>) -> Option<BTreeMap<String, String>> {
    let mut env = Some(BTreeMap::new());
    for (name, value) in s.entries() {
        let key = s.key(&name);
        let text = variable_text(&value);
        let checked = variable_name(&name).and(text.as_deref().map_or_else(not_a_variable, variable_value));
        if let Err(refusal) = checked {
            let origin = s.walk().origin(&key);
            s.walk().note(refusal.mistake(&origin, &key, &name, VARIABLE));
            env = None;
        }
        env = env.zip(text).map(|(mut all, text)| {
            all.insert(name, text);
            all
        });
    }
    env
}

fn not_a_variable() -> Result<(), Refusal> {
    Err(Refusal::says("allowed is a text, a whole number, true or false"))
}

/// A name in one line.
pub(crate) fn name(text: &str, bytes_max: usize) -> Result<(), Refusal> {
    plain(text)?;
    if text.len() > bytes_max {
        return Err(Refusal::says(format!("found {} bytes, allowed are {bytes_max}", text.len())));
    }
    Ok(())
}

/// A step's command.
pub(crate) fn command(text: &str) -> Result<(), Refusal> {
    let max = bound::COMMAND_BYTES_MAX;
    if text.len() > max {
        let refusal = Refusal::says(format!("found {} bytes, allowed are {max}", text.len()));
        return Err(refusal.hint("put the script into the source and call it"));
    }
    if text.trim().is_empty() || text.contains('\0') { Err(Refusal::usual()) } else { Ok(()) }
}

/// A folder of the source.
pub(crate) fn dir(text: &str) -> Result<(), Refusal> {
    let fits = text.len() <= bound::TEXT_BYTES_MAX && !text.chars().any(char::is_control);
    if fits && rules::stays_below(text) { Ok(()) } else { Err(Refusal::usual()) }
}

/// A glob in the source.
pub(crate) fn glob(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    if !rules::stays_below(text) {
        return Err(Refusal::usual());
    }
    match globset::GlobBuilder::new(text).literal_separator(true).build() {
        Ok(_) => Ok(()),
        Err(e) => Err(Refusal::says(format!("found {}, which is no glob: {}", shown_text(text), e.kind()))),
    }
}

/// A variable's name.
pub(crate) fn variable_name(text: &str) -> Result<(), Refusal> {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let fits = text.len() <= bound::VARIABLE_NAME_BYTES_MAX;
    if starts && letters && fits { Ok(()) } else { Err(Refusal::usual()) }
}

/// The value itself is never shown: it may be a secret.
pub(crate) fn variable_value(text: &str) -> Result<(), Refusal> {
    let max = bound::VARIABLE_VALUE_BYTES_MAX;
    if text.len() > max {
        let refusal = Refusal::says(format!("found a value of {} bytes, allowed are {max}", text.len()));
        return Err(refusal.hint("put it into a file of the source"));
    }
    if text.contains('\0') { Err(Refusal::says("found a value with a NUL byte in it")) } else { Ok(()) }
}
