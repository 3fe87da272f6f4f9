//! The work of one attempt.
