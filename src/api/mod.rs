//! HTTP. `wire` is its JSON, `service` what it needs of the daemon; the rest is routes. No route knows an actor.

pub mod service;
pub mod wire;
