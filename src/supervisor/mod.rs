//! The daemon: `run` puts it together and takes it apart, `core` is what HTTP sees of it, `actor` watches the others,
//! `intensity` says when watching is no use any more.

pub mod actor;
pub mod clearing;
pub mod core;
pub mod handle;
pub mod intensity;
pub mod resume;
mod rounds;
mod run;

pub use run::{Daemon, RunError, run};
