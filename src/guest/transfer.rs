//! Trees and files in and out.
