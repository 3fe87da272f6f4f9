//! Bytes to lines.

/// The longest line that is kept whole; a longer one is split, so that a step without line ends cannot take our memory.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
