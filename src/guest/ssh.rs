//! The channel over one SSH control connection.
