//! One value of the configuration: what it is, whether it will do, and how it is shown to whoever has to mend it. In the
//! environment everything is text, so numbers, flags and lists are read from texts there, and only there.

use std::time::Duration;

use config::{Value, ValueKind};

use super::limits::{Bound, LIST_MAX, TEXT_BYTES_MAX, Unit};
use super::mistake::{Mistake, Origin};
use super::units::ByteSize;

/// Why a value was refused. What is not said is said for it: `found .., allowed is ..`.
#[derive(Debug, Default)]
pub struct Refusal {
    pub text: Option<String>,
    pub hint: Option<String>,
}

impl Refusal {
    /// In its own words.
    pub fn says(text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), hint: None }
    }

    /// In the usual words.
    pub fn usual() -> Self {
        Self::default()
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// As a mistake about `found`.
    pub fn mistake(self, origin: &Origin, key: &str, found: &str, allowed: &str) -> Mistake {
        let text = self.text.unwrap_or_else(|| format!("found {}, allowed is {allowed}", shown_text(found)));
        let mut mistake = Mistake::at(origin, key, text);
        mistake.hint = self.hint;
        mistake
    }
}

/// A value that was found.
#[derive(Debug)]
pub struct Found {
    /// Where it was found, which for an inherited value is another key than the one asked for.
    pub key: String,
    pub kind: ValueKind,
    pub origin: Origin,
    pub inherited: bool,
}

impl Found {
    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        if let ValueKind::String(text) = &self.kind { Some(text) } else { None }
    }

    fn is_from_env(&self) -> bool {
        matches!(self.origin, Origin::Environment { .. })
    }

    /// A whole number; in the environment numbers are texts.
    fn whole(&self) -> Option<i64> {
        match self.text() {
            Some(text) if self.is_from_env() => text.parse().ok(),
            Some(_) => None,
            None => {
                if let ValueKind::I64(n) = self.kind {
                    Some(n)
                } else {
                    None
                }
            }
        }
    }

    fn flag(&self) -> Option<bool> {
        match self.text() {
            Some("true") if self.is_from_env() => Some(true),
            Some("false") if self.is_from_env() => Some(false),
            Some(_) => None,
            None => {
                if let ValueKind::Boolean(flag) = self.kind {
                    Some(flag)
                } else {
                    None
                }
            }
        }
    }

    /// A list of texts; in the environment they are separated by commas.
    fn list(&self) -> Option<Vec<String>> {
        if let (Some(text), true) = (self.text(), self.is_from_env()) {
            return Some(
                text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
            );
        }
        let ValueKind::Array(items) = &self.kind else { return None };
        let text = |v: &Value| if let ValueKind::String(s) = &v.kind { Some(s.clone()) } else { None };
        items.iter().map(text).collect()
    }

    /// As it is shown to the operator.
    pub fn shown(&self) -> String {
        match &self.kind {
            ValueKind::String(text) => shown_text(text),
            ValueKind::Table(_) => "a table".into(),
            ValueKind::Array(items) => shown_list(items),
            ValueKind::Nil => "nothing".into(),
            ValueKind::Boolean(_)
            | ValueKind::I64(_)
            | ValueKind::I128(_)
            | ValueKind::U64(_)
            | ValueKind::U128(_)
            | ValueKind::Float(_) => self.kind.to_string(),
        }
    }
}

/// A text in quotes, cut when it is long.
pub fn shown_text(text: &str) -> String {
    const SHOWN_MAX: usize = 60;
    let cut: String = text.chars().take(SHOWN_MAX).collect();
    let more = if cut.len() < text.len() { ".." } else { "" };
    format!("\"{}{more}\"", cut.escape_debug().to_string().replace("\\'", "'"))
}

fn shown_list(items: &[Value]) -> String {
    let texts = items.iter().all(|v| matches!(v.kind, ValueKind::String(_)));
    if items.is_empty() {
        "an empty list".into()
    } else if texts {
        "a list of texts".into()
    } else {
        "a list of other things than texts".into()
    }
}

/// `true` or `false`.
pub fn flag(found: &Found) -> Result<bool, Refusal> {
    match (found.flag(), found.text()) {
        (Some(flag), _) => Ok(flag),
        (None, Some("true" | "false")) => Err(Refusal::usual().hint("write it without quotes")),
        (None, Some(_) | None) => Err(Refusal::usual()),
    }
}

/// A whole number within `bound`.
pub fn count<T: TryFrom<u64>>(found: &Found, bound: &Bound) -> Result<T, Refusal> {
    let quoted = || found.text().is_some_and(|t| t.parse::<i64>().is_ok());
    let Some(n) = found.whole() else {
        return Err(if quoted() {
            Refusal::usual().hint("write it without quotes")
        } else {
            Refusal::usual()
        });
    };
    let n = u64::try_from(n).ok().filter(|n| bound.holds(*n));
    n.and_then(|n| T::try_from(n).ok()).ok_or_else(Refusal::usual)
}

/// A size within `bound`, in whole multiples of `step`.
pub fn size(found: &Found, bound: &Bound, step: u64) -> Result<ByteSize, Refusal> {
    let Some(text) = found.text() else {
        let hint = |n| format!("a size carries its unit: \"{n} GiB\"");
        return Err(found.whole().map_or_else(Refusal::usual, |n| Refusal::usual().hint(hint(n))));
    };
    let wrong =
        || Refusal::usual().hint("a size is a whole number and B, kB, MB, GB, TB, KiB, MiB, GiB or TiB");
    let size: ByteSize = text.parse().map_err(|_| wrong())?;
    if !bound.holds(size.0) {
        return Err(Refusal::usual());
    }
    if !size.0.is_multiple_of(step) {
        let unit = ByteSize(step).to_string();
        let text = format!("found \"{text}\", allowed are whole multiples of {unit}");
        let above = format!("{}{}", size.0.div_ceil(step), unit.trim_start_matches('1'));
        return Err(Refusal::says(text).hint(format!("the next larger one is \"{above}\"")));
    }
    Ok(size)
}

/// A duration within `bound`.
pub fn duration(found: &Found, bound: &Bound) -> Result<Duration, Refusal> {
    debug_assert!(bound.unit == Unit::Millis, "a bound of durations counts milliseconds");
    let Some(text) = found.text() else {
        let hint = |n| format!("a duration carries its unit: \"{n}s\"");
        return Err(found.whole().map_or_else(Refusal::usual, |n| Refusal::usual().hint(hint(n))));
    };
    let wrong = || Refusal::usual().hint("a duration is written like \"90s\", \"500ms\" or \"2h 30m\"");
    let duration = humantime::parse_duration(text).map_err(|_| wrong())?;
    if within(duration, bound) { Ok(duration) } else { Err(Refusal::usual()) }
}

/// Whether a duration is within a bound of milliseconds.
pub fn within(duration: Duration, bound: &Bound) -> bool {
    (Duration::from_millis(bound.min)..=Duration::from_millis(bound.max)).contains(&duration)
}

/// A text that `check` accepts.
pub fn text(found: &Found, check: impl FnOnce(&str) -> Result<(), Refusal>) -> Result<String, Refusal> {
    let text = found.text().ok_or_else(Refusal::usual)?;
    check(text)?;
    Ok(text.to_owned())
}

/// A list of texts.
pub fn list(found: &Found) -> Result<Vec<String>, Refusal> {
    let Some(items) = found.list() else {
        let hint = |text| format!("write a list: [{}]", shown_text(text));
        return Err(found.text().map_or_else(Refusal::usual, |text| Refusal::usual().hint(hint(text))));
    };
    if items.len() > LIST_MAX {
        return Err(Refusal::says(format!("found {} elements, allowed are {LIST_MAX} at most", items.len())));
    }
    Ok(items)
}

/// A value as the text that a variable of the environment would hold: texts, whole numbers, true and false.
pub fn variable_text(value: &Value) -> Option<String> {
    match &value.kind {
        ValueKind::String(text) => Some(text.clone()),
        ValueKind::I64(n) => Some(n.to_string()),
        ValueKind::Boolean(flag) => Some(flag.to_string()),
        ValueKind::Nil
        | ValueKind::I128(_)
        | ValueKind::U64(_)
        | ValueKind::U128(_)
        | ValueKind::Float(_)
        | ValueKind::Table(_)
        | ValueKind::Array(_) => None,
    }
}

/// A text of one line, not empty and not too long.
pub fn plain(text: &str) -> Result<(), Refusal> {
    if text.trim().is_empty() {
        return Err(Refusal::usual());
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(Refusal::says(format!("found {} bytes, allowed are {TEXT_BYTES_MAX}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Refusal::says(format!(
            "found {}, which has a control character in it",
            shown_text(text)
        )));
    }
    Ok(())
}

/// `"a", "b" or "c"`.
pub fn one_of<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut quoted: Vec<String> = words.map(|w| format!("\"{w}\"")).collect();
    let last = quoted.pop().unwrap_or_default();
    if quoted.is_empty() { last } else { format!("{} or {last}", quoted.join(", ")) }
}

/// The word that a typo was probably meant to be.
pub fn nearest<'a>(typo: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typo = typo.to_ascii_lowercase().replace('-', "_");
    // `ssh_user` for `user`: a word with something before or after it is nearer than its letters say.
    let longer = |word: &str| typo.ends_with(&format!("_{word}")) || typo.starts_with(&format!("{word}_"));
    let distance = |word: &str| if longer(word) { 1 } else { strsim::damerau_levenshtein(&typo, word) };
    let (distance, word) = words.map(|word| (distance(word), word)).min()?;
    (distance <= 1 + word.len() / 5).then_some(word)
}
