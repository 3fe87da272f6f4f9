//! Tart's command line on QEMU.
fn main() {}
