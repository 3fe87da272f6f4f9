//! One VM and its life. `state` decides, `birth` and `removal` do, `actor` ties them to messages, `handle` is what others
//! hold. Nothing here knows a build or another VM.

pub mod actor;
pub mod birth;
pub mod handle;
pub mod removal;
pub mod state;
