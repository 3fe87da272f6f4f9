//! A provisioning profile: which certificates of which team may sign which app, and until when.

use plist::{Dictionary, Value};

use super::{Profile, cms};
use crate::clock::UnixMillis;

/// Mentions of lists and tables. A profile has some fifty; thousands within each other would be more than a stack holds.
const TABLES_MAX: usize = 2000;

/// Digits and dashes: it becomes a file's name.
const UUID_BYTES: usize = 36;

/// What a profile says.
#[derive(Debug)]
pub(super) struct Said {
    pub profile: Profile,
    pub teams: Vec<String>,
    /// The certificates that it lets sign, as DER.
    pub certificates: Vec<Vec<u8>>,
}

/// Reads a `*.mobileprovision`. An `Err` is why it is none, to follow its name.
pub(super) fn read(bytes: &[u8]) -> Result<Said, String> {
    let text = cms::content(bytes).ok_or("is no provisioning profile: it is no signed message (CMS)")?;
    if mentions(&text, b"dict") + mentions(&text, b"array") > TABLES_MAX {
        return Err("is no provisioning profile: its property list has too many lists and tables".into());
    }
    let list = Value::from_reader_xml(text.as_slice())
        .map_err(|e| format!("is no provisioning profile: its property list cannot be read: {e}"))?;
    let list = list.as_dictionary().ok_or("is no provisioning profile: its property list is no table")?;
    let uuid = text_of(list, "UUID")?;
    let plain = uuid.len() == UUID_BYTES && uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if !plain {
        return Err("has a `UUID` that is none".into());
    }
    let expires =
        list.get("ExpirationDate").and_then(Value::as_date).ok_or_else(|| lacks("ExpirationDate"))?;
    let app = list.get("Entitlements").and_then(Value::as_dictionary);
    let app = app.and_then(|rights| rights.get("application-identifier")).and_then(Value::as_string);
    let app_id = app.ok_or_else(|| lacks("Entitlements.application-identifier"))?;
    if !is_app_id(app_id) {
        return Err("has an `application-identifier` that is none".into());
    }
    let profile = Profile {
        uuid: uuid.to_owned(),
        name: one_line(text_of(list, "Name")?),
        app_id: app_id.to_owned(),
        expires_ms: millis(expires),
    };
    let teams = all(list, "TeamIdentifier", Value::as_string);
    let certificates = all(list, "DeveloperCertificates", Value::as_data);
    Ok(Said {
        profile,
        teams: teams.ok_or_else(|| lacks("TeamIdentifier"))?.into_iter().map(str::to_owned).collect(),
        certificates: certificates
            .ok_or_else(|| lacks("DeveloperCertificates"))?
            .into_iter()
            .map(<[u8]>::to_vec)
            .collect(),
    })
}

fn lacks(key: &str) -> String {
    format!("is no provisioning profile: it has no `{key}`")
}

fn text_of<'a>(list: &'a Dictionary, key: &str) -> Result<&'a str, String> {
    list.get(key).and_then(Value::as_string).ok_or_else(|| lacks(key))
}

fn all<'a, T>(list: &'a Dictionary, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Option<Vec<T>> {
    list.get(key)?.as_array()?.iter().map(read).collect()
}

/// It goes into names of variables and lines of the log.
fn is_app_id(text: &str) -> bool {
    text.split_once('.').is_some_and(|(team, app)| !team.is_empty() && !app.is_empty())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_*".contains(&b))
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn millis(date: plist::Date) -> UnixMillis {
    let at = std::time::SystemTime::from(date);
    let whole = |time: std::time::Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    match at.duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => UnixMillis(whole(since)),
        Err(before) => UnixMillis(-whole(before.duration())),
    }
}

/// How often a word stands in a text: never less often than there are elements of that name.
fn mentions(text: &[u8], word: &[u8]) -> usize {
    text.windows(word.len()).filter(|window| *window == word).count()
}
