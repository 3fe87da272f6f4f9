//! A key as a project writes it: text, and values between braces. Pure.
//!
//! | written | is |
//! |---|---|
//! | `{{ hash 'GLOB' .. }}` | a digest of the names and contents of the files that the globs mean in the source |
//! | `{{ env 'NAME' }}` | a variable of the build's `env` |
//! | `{{ pool }}`, `{{ image }}`, `{{ arch }}` | the pool, what its VMs are clones of, the host's architecture |

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use sha2::{Digest as _, Sha256};

/// What a digest's text is cut to: 128 bits, of which nobody finds two the same.
const DIGEST_CHARS: usize = 32;

/// The content of each file of a source that a key asks for, by its name.
pub type Digests = BTreeMap<Vec<u8>, [u8; 32]>;

/// A parsed key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Hash(Vec<String>),
    Env(String),
    Pool,
    Image,
    Arch,
}

/// What the values are.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    pub pool: &'a str,
    pub image: &'a str,
    pub arch: &'a str,
    pub env: &'a BTreeMap<String, String>,
    pub digests: &'a Digests,
}

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    #[error("a `{{{{` in it has no `}}}}`")]
    Open,
    #[error("`{0}` has a quote without an end")]
    Quote(String),
    #[error("`{{{{ {0} }}}}` is no value")]
    Unknown(String),
    #[error("`{word}` wants {wants}")]
    Arguments { word: &'static str, wants: &'static str },
    #[error("`{glob}` is no glob of files in the source: {why}")]
    Glob { glob: String, why: String },
}

/// Why a key has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoValue {
    #[error("`{0}` matches no file of the source")]
    File(String),
    #[error("`env` has no `{0}`")]
    Env(String),
}

impl BadTemplate {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown(word) if word == "os" => {
                "leave it out: a cache belongs to a pool, and a pool has one image".into()
            }
            Self::Open | Self::Quote(_) | Self::Unknown(_) | Self::Arguments { .. } => {
                "there is {{ hash 'GLOB' }}, {{ env 'NAME' }}, {{ pool }}, {{ image }} and {{ arch }}".into()
            }
            Self::Glob { .. } => "as {{ hash '**/*.lock' }}, relative to the source's root".into(),
        }
    }
}

impl NoValue {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::File(_) => {
                "globs are relative to the source's root; what .gitignore names is not sent along".into()
            }
            Self::Env(name) => format!("--env {name}=VALUE, or env = {{ {name} = \"VALUE\" }}"),
        }
    }
}

impl Template {
    /// Reads a key.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, inside)) = rest.split_once("{{") {
            let (value, after) = inside.split_once("}}").ok_or(BadTemplate::Open)?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(value_of(value.trim())?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The globs of all its hashes.
    pub fn globs(&self) -> impl Iterator<Item = &str> {
        let globs =
            self.0.iter().filter_map(|part| if let Part::Hash(globs) = part { Some(globs) } else { None });
        globs.flatten().map(String::as_str)
    }

    /// The key with its values.
    ///
    /// # Errors
    /// When a value is not there.
    pub fn render(&self, values: &Values<'_>) -> Result<String, NoValue> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Hash(globs) => text.push_str(&hash(globs, values.digests)?),
                Part::Env(name) => {
                    text.push_str(values.env.get(name).ok_or_else(|| NoValue::Env(name.clone()))?);
                }
                Part::Pool => text.push_str(values.pool),
                Part::Image => text.push_str(values.image),
                Part::Arch => text.push_str(values.arch),
            }
        }
        Ok(text)
    }
}

fn value_of(text: &str) -> Result<Part, BadTemplate> {
    let (word, arguments) = words(text)?;
    match (word, arguments.as_slice()) {
        ("hash", []) => Err(BadTemplate::Arguments { word: "hash", wants: "a glob in quotes, or several" }),
        ("hash", globs) => {
            globs.iter().try_for_each(|glob| matcher(glob).map(drop))?;
            Ok(Part::Hash(arguments))
        }
        ("env", [name]) => Ok(Part::Env(name.clone())),
        ("env", _) => Err(BadTemplate::Arguments { word: "env", wants: "one name in quotes" }),
        ("pool", []) => Ok(Part::Pool),
        ("image", []) => Ok(Part::Image),
        ("arch", []) => Ok(Part::Arch),
        (_, _) => Err(BadTemplate::Unknown(text.to_owned())),
    }
}

/// A word, and the quoted texts behind it.
fn words(text: &str) -> Result<(&str, Vec<String>), BadTemplate> {
    let end = text.find(|c: char| c.is_whitespace() || c == '\'' || c == '"').unwrap_or(text.len());
    let (word, mut rest) = text.split_at(end);
    let mut quoted = Vec::new();
    loop {
        rest = rest.trim_start();
        let Some(quote) = rest.chars().next() else { return Ok((word, quoted)) };
        if quote != '\'' && quote != '"' {
            return Err(BadTemplate::Unknown(text.to_owned()));
        }
        let closed = rest[1..].split_once(quote);
        let (inside, after) = closed.ok_or_else(|| BadTemplate::Quote(text.to_owned()))?;
        quoted.push(inside.to_owned());
        rest = after;
    }
}

/// The matcher of a glob: by its own words, as artifacts' globs.
pub fn matcher(glob: &str) -> Result<GlobMatcher, BadTemplate> {
    let bad = |why: &str| BadTemplate::Glob { glob: glob.to_owned(), why: why.to_owned() };
    let plain = glob.strip_prefix("./").unwrap_or(glob);
    if plain.is_empty() {
        return Err(bad("it is empty"));
    }
    if plain.starts_with(['/', '~']) || plain.split('/').any(|part| part == "..") {
        return Err(bad("it leaves the source"));
    }
    let built = GlobBuilder::new(plain).literal_separator(true).backslash_escape(true).build();
    built.map(|glob| glob.compile_matcher()).map_err(|e| bad(&e.kind().to_string()))
}

/// Whether a name is meant.
pub fn means(glob: &GlobMatcher, name: &[u8]) -> bool {
    glob.is_match(Path::new(OsStr::from_bytes(name)))
}

/// One digest over the names, in their order, and contents of all that the globs mean.
fn hash(globs: &[String], digests: &Digests) -> Result<String, NoValue> {
    // They were read when the template was.
    let matchers: Vec<(&String, GlobMatcher)> =
        globs.iter().filter_map(|glob| Some((glob, matcher(glob).ok()?))).collect();
    let unmatched = matchers.iter().find(|(_, glob)| !digests.keys().any(|name| means(glob, name)));
    if let Some((glob, _)) = unmatched {
        return Err(NoValue::File((*glob).clone()));
    }
    let mut all = Sha256::new();
    for (name, content) in digests.iter().filter(|(name, _)| matchers.iter().any(|(_, g)| means(g, name))) {
        all.update((name.len() as u64).to_be_bytes());
        all.update(name);
        all.update(content);
    }
    let mut text = String::with_capacity(64);
    for byte in all.finalize() {
        write!(text, "{byte:02x}").ok();
    }
    text.truncate(DIGEST_CHARS);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digests(files: &[(&str, u8)]) -> Digests {
        files.iter().map(|(name, content)| (name.as_bytes().to_vec(), [*content; 32])).collect()
    }

    fn rendered(text: &str, files: &[(&str, u8)]) -> Result<String, NoValue> {
        let env = BTreeMap::from([("XCODE".to_owned(), "26.1".to_owned())]);
        let digests = digests(files);
        let values =
            Values { pool: "xcode", image: "macos:26", arch: "aarch64", env: &env, digests: &digests };
        Template::parse(text).unwrap_or_else(|e| panic!("{text}: {e}")).render(&values)
    }

    #[test]
    fn a_key_is_text_with_values_in_it() {
        for (text, key) in [
            ("pods", "pods"),
            ("{{pool}}-{{ image }}-{{ arch}}", "xcode-macos:26-aarch64"),
            ("a }} b", "a }} b"),
            ("xc{{ env 'XCODE' }}", "xc26.1"),
            ("xc{{env \"XCODE\"}}", "xc26.1"),
        ] {
            assert_eq!(rendered(text, &[]).as_deref(), Ok(key), "{text}");
        }
        assert_eq!(rendered("{{ env 'NONE' }}", &[]), Err(NoValue::Env("NONE".into())));
    }

    #[test]
    fn a_hash_follows_names_and_contents_of_what_is_meant_and_nothing_else() {
        let text = "pods-{{ hash 'Podfile.lock' '**/*.resolved' }}";
        let files = [("Podfile.lock", 1), ("a/b/Package.resolved", 2)];
        let key = rendered(text, &files).expect("there");
        assert!(key.starts_with("pods-") && key.len() == "pods-".len() + DIGEST_CHARS, "{key}");
        let more = [files[0], files[1], ("main.swift", 9)];
        assert_eq!(rendered(text, &more).as_ref(), Ok(&key), "another file changes nothing");
        for other in [
            [("Podfile.lock", 3), ("a/b/Package.resolved", 2)],
            [("Podfile.lock", 1), ("a/c/Package.resolved", 2)],
            [("Podfile.lock", 2), ("a/b/Package.resolved", 1)],
        ] {
            assert_ne!(rendered(text, &other).as_ref(), Ok(&key), "{other:?}");
        }
        assert_eq!(rendered(text, &files[..1]), Err(NoValue::File("**/*.resolved".into())));
        assert_eq!(
            rendered("{{ hash './Podfile.lock' }}", &files),
            rendered("{{ hash 'Podfile.lock' }}", &files)
        );
    }

    #[test]
    fn what_is_no_key_says_why_and_what_to_do() {
        for (text, says) in [
            ("{{ hash 'a'", "no `}}`"),
            ("{{ hash 'a }}", "quote without an end"),
            ("{{ hash }}", "a glob in quotes"),
            ("{{ hash a }}", "is no value"),
            ("{{ hash '' }}", "it is empty"),
            ("{{ hash '/etc/passwd' }}", "leaves the source"),
            ("{{ hash '../a' }}", "leaves the source"),
            ("{{ hash '~/a' }}", "leaves the source"),
            ("{{ hash 'a[' }}", "no glob"),
            ("{{ env }}", "one name"),
            ("{{ env 'A' 'B' }}", "one name"),
            ("{{ os }}", "is no value"),
            ("{{ checksum 'a' }}", "is no value"),
            ("{{ pool 'a' }}", "is no value"),
            ("{{}}", "is no value"),
        ] {
            let bad = Template::parse(text).expect_err(text);
            assert!(bad.to_string().contains(says), "{text}: {bad}");
            assert!(!bad.hint().is_empty());
        }
        assert!(Template::parse("{{ os }}").expect_err("none").hint().contains("pool"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_a_mistake(text in "[a-z{}' \"]{0,20}") {
            if let Ok(template) = Template::parse(&text)
                && template.globs().next().is_none()
                && !text.contains("{{")
            {
                let (env, digests) = (BTreeMap::new(), Digests::new());
                let values = Values { pool: "", image: "", arch: "", env: &env, digests: &digests };
                prop_assert_eq!(template.render(&values), Ok(text));
            }
        }
    }
}
