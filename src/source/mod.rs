//! Where builds come from: `local` is the daemon's own API, `trees` what it keeps of what came.

pub mod local;
pub mod trees;
