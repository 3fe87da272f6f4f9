//! The whole, end to end: the real `preheat` on the real `tart-qemu`, with real guests and a real sshd in them.
//!
//! Each house (an installation with its daemon) is a folder of its own; the image is linked from the cache of
//! `vm-setup/linux-guest`, which takes some minutes when the cache is empty. Guests are emulated where there is no KVM, so
//! tests that boot some take turns, and those that can share one house do.

#![cfg(target_os = "linux")]

mod builds;
mod caches;
mod clock;
mod controllers;
mod deaths;
mod delivery;
mod ending;
#[path = "../fake_controller/mod.rs"]
mod fake_controller;
mod faults;
mod health;
mod house;
mod idle;
mod images;
mod kills;
#[expect(dead_code, reason = "the checks on the host need more of them")]
#[path = "../signing/materials.rs"]
mod materials;
mod pipelines;
mod projects;
mod refusals;
mod reloads;
mod restarts;
mod resumes;
mod secrets;
mod signing;
mod soak;
mod sources;
mod trace;
