//! Builds from a controller: the whole daemon but its guests, which are simulated, against a controller of our own over real
//! HTTP, with what is wrong with the real ones. `tests/e2e/controllers.rs` has real guests.

#[path = "../common/mod.rs"]
mod common;
#[path = "../fake_controller/mod.rs"]
mod fake_controller;

mod bugs;
mod keyed;
mod lab;
mod restarts;
mod signing;
mod tokened;
