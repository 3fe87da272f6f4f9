//! Tart's command line on QEMU: the same verbs, files, signals, exit codes and texts; the guests are real.
//!
//! ```text
//! args -> verbs -> vm (files, clone)  home (locks, sweep)  leases  oci
//!               \-> run: address, slots -> machine (QEMU's command line) -> supervise (signals, QMP, agent)
//! ```
//!
//! Environment: `TART_HOME`; `TART_QEMU_REGISTRY` (a directory that stands for every registry), `TART_QEMU_ONLINE=1`
//! (guests may reach the network), `TART_QEMU_ACCEL` (kvm, hvf or tcg), `TART_QEMU_HOST_DIR` (where the slots for
//! macOS guests are counted; default: the home), `TART_QEMU_FRESH_HOST_KEYS=1` (a resumed guest makes a host key of its
//! own), `TART_QEMU_FAULTS` (see [`faults`]).
#![expect(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    reason = "this program's job is to print, to read the time and to start QEMU; the bans are for the daemon"
)]

mod agent;
mod args;
mod config;
mod error;
mod faults;
mod home;
mod json;
mod leases;
mod lock;
mod oci;
mod qcow2;
mod qmp;
mod run;
mod table;
mod verbs;
mod vm;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::Cli;
use error::{Failure, Outcome};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    match verbs::perform(cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    let text = failure.to_string();
    if !text.is_empty() {
        eprintln!("{text}");
    }
    ExitCode::from(failure.exit_code())
}

fn refuse_arguments(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let text = error.to_string();
        print!(
            "{}",
            text.strip_prefix("tart ").filter(|_| error.kind() == ErrorKind::DisplayVersion).unwrap_or(&text)
        );
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    eprint!("{}", text.replacen("error: ", "Error: ", 1));
    ExitCode::from(64)
}

/// Parses nothing twice: what a verb answers when it does not exist on QEMU.
fn unsupported(verb: &str) -> Outcome {
    Err(Failure::Foreign(format!(
        "\"tart {verb}\" is not available on QEMU; build an image with vm-setup/linux-guest, or pull one from TART_QEMU_REGISTRY"
    )))
}
