//! The command line: the only module that prints. `args` is what may be typed, `exit` what it may end in, `problem` how
//! an error reads; each command has a file. What a command knows of the daemon it knows over HTTP (`client`); what it
//! needs of other rooms, it takes from `parts`. Even here nothing is printed by macro: `println!` panics when its reader
//! has left.

pub mod args;
pub mod artifacts;
pub mod cache;
pub mod client;
pub mod configuration;
pub mod doctor;
pub mod download;
pub mod exit;
pub mod follow;
pub mod image;
pub mod lists;
pub mod logs;
pub mod operate;
pub mod parts;
pub mod problem;
pub mod progress;
pub mod run;
pub mod sse;
pub mod ssh;
pub mod submission;
pub mod summary;
pub mod text;
pub mod trace;

use std::ffi::OsString;
use std::io::Write;

use clap::Parser;

use args::{Args, Command};
use client::Client;
use exit::Exit;
use problem::Problem;

/// Reads the arguments, does what they say, prints what is wrong.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> Exit {
    let args = match Args::try_parse_from(argv) {
        Ok(args) => args,
        Err(e) => {
            e.print().ok();
            return if e.use_stderr() { Exit::Usage } else { Exit::Success };
        }
    };
    let json = args.command.json();
    match dispatch(args) {
        Ok(exit) => exit,
        Err(problem) => {
            problem.print(json);
            problem.exit
        }
    }
}

fn dispatch(args: Args) -> Result<Exit, Problem> {
    if args.command.holds_secrets() {
        crate::host::forbid_core_files().map_err(|e| {
            Problem::system(format!("cannot forbid core files, which would hold secrets: {e}"))
        })?;
    }
    if let Command::Serve { config } = &args.command {
        let loaded = configuration::load(config.as_deref())?;
        let served = parts::serve(loaded, config.as_deref());
        runtime(tokio::runtime::Builder::new_multi_thread())?.block_on(served)?;
        return Ok(Exit::Success);
    }
    if let Command::Config { command } = &args.command {
        return configuration::command(command);
    }
    if let Command::Pipelines { name, config } = &args.command {
        return configuration::pipelines(name.as_deref(), config.as_deref());
    }
    let runtime = runtime(tokio::runtime::Builder::new_current_thread())?;
    let done = runtime.block_on(ask(args));
    // The look-up of a name may hang in a thread: nothing here waits for it.
    runtime.shutdown_background();
    done
}

fn runtime(mut builder: tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, Problem> {
    builder.enable_all().build().map_err(|e| Problem::system(format!("cannot start: {e}")))
}

/// The commands that speak to the daemon, or look at this host.
async fn ask(args: Args) -> Result<Exit, Problem> {
    if let Command::Doctor { config, json } = &args.command {
        return doctor::command(config.as_deref(), *json).await;
    }
    let client = Client::new(&args.url, args.token_file.as_deref())?;
    match args.command {
        Command::Run(run) => run::command(&client, run).await,
        Command::Submit { inputs, json } => run::submit(&client, &inputs, json).await,
        Command::Builds { limit, json } => lists::builds(&client, limit, json).await,
        Command::Logs { follow, build, json, reconnect } => {
            logs::command(&client, build, follow, json, reconnect).await
        }
        Command::Cancel { build } => lists::cancel(&client, build).await,
        Command::Artifacts { build, out, json } => artifacts::command(&client, build, out, json).await,
        Command::Trace { build, out, json } => trace::command(&client, build, out, json).await,
        Command::Cache { command } => cache::command(&client, command).await,
        Command::Image { command } => image::command(&client, command).await,
        Command::Pool { json } => lists::pools(&client, json).await,
        Command::Vms { json } => lists::vms(&client, json).await,
        Command::Status { json } => operate::status(&client, json).await,
        Command::Drain { wait, timeout, json } => operate::drain(&client, wait, timeout, json).await,
        Command::Resume { json } => operate::resume(&client, json).await,
        Command::Reload { json } => operate::reload(&client, json).await,
        Command::Ssh { vm, config, command } => ssh::command(&client, &vm, config.as_deref(), &command).await,
        // Done above, without a daemon.
        Command::Serve { .. }
        | Command::Config { .. }
        | Command::Doctor { .. }
        | Command::Pipelines { .. } => Ok(Exit::Success),
    }
}

/// Says a line to people, on stderr.
fn say(line: &str) {
    let mut line = line.to_owned();
    line.push('\n');
    std::io::stderr().write_all(line.as_bytes()).ok();
}

/// Prints to stdout. A reader that has left (`preheat builds | head -1`) is no error.
fn out(text: &str) {
    std::io::stdout().write_all(text.as_bytes()).ok();
}

/// Prints one JSON value to stdout.
fn out_json(value: &impl serde::Serialize) -> Result<(), Problem> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Problem::system(format!("cannot write JSON: {e}")))?;
    out(&format!("{text}\n"));
    Ok(())
}
