//! A build's life.
