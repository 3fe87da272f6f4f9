//! A folder as a tar.
