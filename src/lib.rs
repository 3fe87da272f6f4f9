#![doc = include_str!("ARCHITECTURE.md")]

pub mod api;
pub mod build;
pub mod cli;
pub mod clock;
pub mod config;
pub mod guest;
pub mod ids;
pub mod runtime;
