//! The runtime in memory.
