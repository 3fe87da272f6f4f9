//! One build in one leased VM. `spec` is what was asked for, `project` reads it from `.preheat.toml`, `state` decides,
//! `pipeline` does, `actor` ties the two; `place` is where it is, `phases` times it and `recorder` writes it down; `log` is what came out,
//! `archive` and `pack` are how source comes in, `tree` names it and `index` spares reading it again; `caching` is what it
//! finds of earlier builds and leaves for later ones; `signing` is when its guest can sign, `vitals` is how it is meanwhile;
//! `app` looks into the packages that come out, and `failure` says why a step failed.

pub mod actor;
pub mod app;
pub mod archive;
pub mod caching;
mod exact;
pub mod failure;
pub mod index;
pub mod live;
pub mod log;
pub mod pack;
pub mod phases;
pub mod pipeline;
pub mod place;
pub mod project;
pub mod recorder;
pub mod redact;
mod signing;
pub mod spec;
pub mod state;
pub mod tree;
mod vitals;
