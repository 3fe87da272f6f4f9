//! What may be written.
