//! HTTP. `wire` is its JSON and `timeline` that of traces, `service` what it needs of the daemon; the rest is routes. No route knows an actor.
//!
//! A request's way: `serve` (connections, bounded) -> `observe` (headers, the callback for metrics) -> `guard` (host,
//! origin, token) -> `routes` -> one handler -> `error` where it was refused.

pub mod artifacts;
pub mod error;
pub mod guard;
pub mod images;
pub mod intake;
pub mod lists;
pub mod log;
pub mod manage;
pub mod observe;
pub mod options;
pub mod query;
pub mod routes;
pub mod serve;
pub mod service;
pub mod stall;
pub mod submit;
pub mod timeline;
pub mod token;
pub mod wire;

pub use options::{Limits, Options};
pub use serve::{BindError, bind, serve};
