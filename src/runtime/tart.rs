//! Tart's command line as the runtime.
