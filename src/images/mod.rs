//! What an image's name means. An operator names an image (`macos`); what VMs are cloned from is one generation of it, a local
//! VM (`macos-g3`). `generation` is how they are named, `choice` which one it is, which were good before it, and when to go back.
//! `supervisor::images` does what is decided here.

pub mod choice;
pub mod generation;

pub use choice::{Choice, Choices};
pub use generation::Which;
