//! The build's actor.
