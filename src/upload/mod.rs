//! Results on their way out. What is owed stands in the journal's outbox; `actor` works it off, `sink` delivers.

pub mod actor;
pub mod sink;
