//! The project's file.
