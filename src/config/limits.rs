//! Bounds with reasons.
