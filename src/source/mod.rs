//! Where builds come from: `local` is the daemon's own API, `trees` what it keeps of what came, `listing` what
//! files are in it.

mod listing;
pub mod local;
pub mod trees;
