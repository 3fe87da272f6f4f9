//! Newtypes for what is counted and named. Parsing is the only way in, so a name that exists is a name that is valid.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest pool name: with the rest of a VM's name it stays under the 63 bytes of a DNS label, which guests use
/// as their host name.
pub const POOL_NAME_BYTES_MAX: usize = 32;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// The name has no characters.
    #[error("a name must not be empty")]
    Empty,
    /// The name is longer than the limit.
    #[error("`{name}` is longer than {max} bytes")]
    Long { name: String, max: usize },
    /// The name has a character that a VM's name cannot carry.
    #[error("`{0}` must start with a letter a-z and hold only a-z, 0-9 and single `-` inside")]
    Characters(String),
}

/// A pool's name: a letter, then letters, digits and single hyphens; at most [`POOL_NAME_BYTES_MAX`] bytes. It is part of
/// every VM's name, so copies share its text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolName(Arc<str>);

impl PoolName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PoolName {
    type Err = BadName;

    fn from_str(s: &str) -> Result<Self, BadName> {
        if s.is_empty() {
            return Err(BadName::Empty);
        }
        if s.len() > POOL_NAME_BYTES_MAX {
            return Err(BadName::Long { name: s.to_owned(), max: POOL_NAME_BYTES_MAX });
        }
        let letters = s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let starts = s.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
        if !letters || !starts || s.ends_with('-') || s.contains("--") {
            return Err(BadName::Characters(s.to_owned()));
        }
        Ok(Self(s.into()))
    }
}

impl TryFrom<String> for PoolName {
    type Error = BadName;
    fn try_from(s: String) -> Result<Self, BadName> {
        s.parse()
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A place for one running VM in a pool, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotId(pub u16);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which clone of a slot this is. It only grows, over restarts too, so that a name is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A build's number in this installation's journal, counted from 1 and never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildId(pub u64);

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for BuildId {
    type Err = std::num::ParseIntError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.strip_prefix('#').unwrap_or(s).parse().map(Self)
    }
}

/// A tree by what is in it: names, modes, times, contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TreeId(pub [u8; 32]);

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is no tree's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tree's name is 64 hexadecimal digits in lower case")]
pub struct BadTreeId;

impl FromStr for TreeId {
    type Err = BadTreeId;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let digits: Vec<u8> = s.bytes().map(|b| if b.is_ascii_uppercase() { b'x' } else { b }).collect();
        let mut id = Self::default();
        if digits.len() != 2 * id.0.len() {
            return Err(BadTreeId);
        }
        for (byte, pair) in id.0.iter_mut().zip(digits.chunks(2)) {
            let digit =
                |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or(BadTreeId);
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(id)
    }
}

/// The name of one run of a script in its guest. Whoever has written it down finds the run again, over another connection
/// or from another process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(String);

impl RunId {
    /// A name that no other run of the same guest has.
    pub fn new() -> Self {
        let mut name = uuid::Uuid::new_v4().simple().to_string();
        name.truncate(12);
        Self(name)
    }

    /// Letters and digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trees_name_is_read_as_it_is_written_and_nothing_else_is_one() {
        let id = TreeId(std::array::from_fn(|n| n as u8 * 7));
        assert_eq!(id.to_string().parse(), Ok(id));
        let text = id.to_string();
        for wrong in
            ["", "ab", &text[1..], &format!("{text}0"), &text.replace('e', "E"), &text.replace('0', "/")]
        {
            assert_eq!(wrong.parse::<TreeId>(), Err(BadTreeId), "{wrong}");
        }
    }

    #[test]
    fn a_pool_name_is_refused_when_a_vm_name_could_not_carry_it() {
        for bad in ["", "-a", "a-", "a--b", "A", "a_b", "1a", "ä", "a b", &"a".repeat(33)] {
            assert!(bad.parse::<PoolName>().is_err(), "{bad:?}");
        }
        for good in ["a", "linux", "xcode-26", "a1", &"a".repeat(32)] {
            assert_eq!(good.parse::<PoolName>().map(|p| p.to_string()), Ok(good.to_owned()));
        }
    }
}
