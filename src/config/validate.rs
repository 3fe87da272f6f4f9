//! From file to Config.
