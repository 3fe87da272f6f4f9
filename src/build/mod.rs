//! One build in one leased VM. `spec` is what was asked for, `project` reads it from `.preheat.toml`, `state` decides,
//! `pipeline` does, `actor` ties the two; `log` is what came out, `archive` and `pack` are how source comes in.

pub mod actor;
pub mod archive;
mod exact;
pub mod live;
pub mod log;
pub mod pack;
pub mod pipeline;
pub mod project;
pub mod redact;
pub mod spec;
pub mod state;
