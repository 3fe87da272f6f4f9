//! `tart-qemu` against real guests: what a client of Tart may rely on holds here too.
#![expect(
    clippy::disallowed_methods,
    reason = "tests start programs and wait with deadlines; the bans are for the daemon"
)]

#[path = "tart_qemu/bed.rs"]
mod bed;
#[path = "tart_qemu/faults.rs"]
mod faults;
#[path = "tart_qemu/files.rs"]
mod files;
#[path = "tart_qemu/guests.rs"]
mod guests;
#[path = "tart_qemu/image.rs"]
mod image;
#[path = "tart_qemu/suspend.rs"]
mod suspend;
#[path = "tart_qemu/texts.rs"]
mod texts;
