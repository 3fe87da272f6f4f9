//! Where builds come from: `local` is the daemon's own API.

pub mod local;
