//! Caches: what a build leaves for the next one of its project. `template`* is a key as a project writes it, `digest` reads
//! what it hashes, `keys` makes the two into a key, and `shelf` is what lies on the disk.
//!
//! ```text
//!   .preheat.toml             accepted                in a VM                            over
//!   key = "pods-{{ hash       hashed from the  -->    restored: the exact key, else      saved under its key, where
//!          'Podfile.lock' }}" source, no guest        the newest with a prefix, else     the shelf has none: an
//!                                                     nothing                            entry never changes
//! ```
//!
//! An entry is one tar as a guest wrote it. This host never looks into it, let alone unpacks it: it is streamed to a later
//! guest of the same project and pool, which reads a copy of its own. So guests share nothing that one of them could write.

pub mod digest;
pub mod keys;
pub mod shelf;
pub mod template;

use serde::{Deserialize, Serialize};

/// A cache of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// As the project writes it until [`keys::settle`] has put the values in.
    pub key: String,
    /// Beginnings of keys; the first that an entry has is restored where the key itself has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_keys: Vec<String>,
    /// Relative to the source's root, or below the user's home with `~/`; in plain parts, no one inside another.
    pub paths: Vec<String>,
}
