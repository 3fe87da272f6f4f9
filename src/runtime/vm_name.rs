//! VM names carry their meaning: `preheat-<pool>-<slot>-<generation>`. Read back, a name is ours, not ours, or malformed.
//! What is not ours is never touched; what is malformed is reported and left alone.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::ids::{Generation, PoolName, SlotId};

/// The first part of every name that this program gives.
pub const PREFIX: &str = "preheat-";

/// The name of one VM of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmName {
    pub pool: PoolName,
    pub slot: SlotId,
    pub generation: Generation,
}

/// What a name found on the host turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// One of ours.
    Ours(VmName),
    /// Somebody else's: never touched.
    NotOurs,
    /// Starts like ours and is not one: reported, never touched.
    Malformed,
}

impl VmName {
    /// Reads a name found on the host.
    pub fn parse(name: &str) -> Parsed {
        let Some(rest) = name.strip_prefix(PREFIX) else { return Parsed::NotOurs };
        let mut parts = rest.rsplitn(3, '-');
        let (Some(generation), Some(slot), Some(pool)) = (parts.next(), parts.next(), parts.next()) else {
            return Parsed::Malformed;
        };
        let (Ok(pool), Some(slot), Some(generation)) = (pool.parse(), canonical(slot), canonical(generation))
        else {
            return Parsed::Malformed;
        };
        let Ok(slot) = u16::try_from(slot) else { return Parsed::Malformed };
        Parsed::Ours(Self { pool, slot: SlotId(slot), generation: Generation(generation) })
    }
}

/// A decimal number as we write it: no sign, no leading zero.
fn canonical(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if plain { digits.parse().ok() } else { None }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}-{}", self.pool, self.slot, self.generation)
    }
}

impl Serialize for VmName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_of_ours_is_read_back_as_it_was_written(pool in "[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,5}){0,3}", slot: u16, generation: u64) {
            let name = VmName { pool: pool.parse().expect("valid"), slot: SlotId(slot), generation: Generation(generation) };
            prop_assert_eq!(VmName::parse(&name.to_string()), Parsed::Ours(name));
        }

        #[test]
        fn only_what_we_could_have_written_is_ours(text in "(preheat-)?[a-z0-9-]{0,24}") {
            if let Parsed::Ours(name) = VmName::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }

    #[test]
    fn what_only_looks_like_ours_is_malformed() {
        for name in [
            "preheat-",
            "preheat-a",
            "preheat-a-1",
            "preheat-a-01-1",
            "preheat-a-1-+1",
            "preheat-A-1-1",
            "preheat-a-99999-1",
        ] {
            assert_eq!(VmName::parse(name), Parsed::Malformed, "{name}");
        }
        for name in ["linux", "Preheat-a-1-1", "my-preheat-a-1-1", ""] {
            assert_eq!(VmName::parse(name), Parsed::NotOurs, "{name}");
        }
    }
}
