//! The configuration as it takes effect, as TOML: each key with the place it comes from. What is printed can be read back,
//! and means the same.

use super::load::Loaded;
use super::mistake::Origin;
use super::walk::Setting;

/// Comments begin in this column, where the value leaves room.
const COMMENT_COLUMN: usize = 40;

/// Sections that are tables of their own; all other keys with dots stay in the section around them.
const OWN_SECTIONS: [&str; 1] = ["runtime.deadlines"];

/// Renders what takes effect.
pub fn show(loaded: &Loaded) -> String {
    let mut out = String::new();
    let mut header = String::new();
    for setting in &loaded.settings {
        let (section, name) = split(&setting.key);
        let wanted = heading(section);
        if wanted != header {
            if !out.is_empty() {
                out.push('\n');
            }
            out.push_str(&wanted_line(&wanted));
            header = wanted;
        }
        let line = format!("{name} = {}", setting.value);
        out.push_str(&format!("{line:<COMMENT_COLUMN$} # {}\n", comment(setting)));
    }
    out
}

/// Two elements of a list have the same header, so the header holds the number until it is printed.
fn wanted_line(heading: &str) -> String {
    let plain = heading.split_once('#').map_or(heading, |(plain, _)| plain);
    format!("{plain}\n")
}

/// `pool.linux.network.mode` is `network.mode` of `pool.linux`.
fn split(key: &str) -> (&str, &str) {
    let parts = if OWN_SECTIONS.iter().any(|s| key.starts_with(s))
        || key.starts_with("pool.")
        || key.starts_with("pipelines.")
    {
        2
    } else {
        1
    };
    let ends = key.match_indices('.').nth(parts - 1).map_or(key.len(), |(at, _)| at);
    (&key[..ends], key.get(ends + 1..).unwrap_or_default())
}

fn heading(section: &str) -> String {
    match section.split_once('[') {
        Some((list, number)) => format!("[[{list}]]#{number}"),
        None => format!("[{section}]"),
    }
}

fn comment(setting: &Setting) -> String {
    let place = match &setting.origin {
        Origin::Default => "default".to_owned(),
        Origin::File { .. } | Origin::HostFile { .. } | Origin::Environment { .. } | Origin::Request => {
            setting.origin.to_string().escape_debug().to_string()
        }
    };
    match &setting.inherited {
        Some(key) => format!("{place}, {}", key.split('.').next().unwrap_or(key)),
        None => place,
    }
}
