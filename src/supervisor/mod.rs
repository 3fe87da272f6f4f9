//! The daemon: `run` puts it together and takes it apart, `ending` says when; `core` is what HTTP sees of it, `actor` watches
//! the others, `reload` follows another configuration, `images` says what images' names mean, `intensity` says when watching is no use any more.

pub mod actor;
pub mod clearing;
pub mod core;
mod ending;
pub mod handle;
pub mod images;
pub mod intensity;
pub mod reload;
pub mod resume;
mod rounds;
mod run;

pub use run::{Daemon, Outside, RunError, run};
