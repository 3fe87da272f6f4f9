//! A build's log.
