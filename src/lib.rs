#![doc = include_str!("ARCHITECTURE.md")]

pub mod api;
pub mod blocking;
pub mod build;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod guest;
pub mod host;
pub mod ids;
pub mod images;
pub mod janitor;
pub mod jitter;
pub mod pipelines;
pub mod pool;
pub mod runtime;
pub mod signing;
pub mod source;
pub mod store;
pub mod supervisor;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod trace;
pub mod upload;
pub mod vm;
