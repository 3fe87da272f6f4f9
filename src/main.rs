//! argv -> cli -> exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: without a provider the first TLS connection would panic.
    rustls::crypto::ring::default_provider().install_default().ok();
    preheat::cli::main(std::env::args_os()).into()
}
