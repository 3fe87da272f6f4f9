//! Sizes as people write them: `"8 GiB"`, `"500 MB"`. Durations are humantime's (`"90s"`, `"2h 30m"`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size; write a whole number and one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB")]
pub struct BadSize(pub String);

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let bad = || BadSize(text.to_owned());
        let text = text.trim();
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let count: u64 = digits.parse().map_err(|_| bad())?;
        let unit = unit.trim();
        let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(bad)?;
        count.checked_mul(*factor).map(Self).ok_or_else(bad)
    }
}

impl TryFrom<String> for ByteSize {
    type Error = BadSize;
    fn try_from(text: String) -> Result<Self, BadSize> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> String {
        size.to_string()
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that keeps the number whole, so that what is printed can be read back unchanged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        let (name, factor) = whole.copied().unwrap_or(("B", 1));
        write!(f, "{} {name}", self.0 / factor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_size_is_read_back_as_it_was_written(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }

    #[test]
    fn sizes_need_a_unit_and_must_fit() {
        assert_eq!("8 GiB".parse(), Ok(ByteSize(8 << 30)));
        assert_eq!("8gib".parse(), Ok(ByteSize(8 << 30)));
        for bad in ["", "8", "GiB", "-1 B", "1.5 GiB", "99999999999 TiB", "8 Gi"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }
}
