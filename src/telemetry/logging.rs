//! The log: text for people or one JSON object a line, to stderr, filtered as the configuration says.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Log;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter does not parse.
    #[error("log.filter: `{filter}` is not a filter: {text}")]
    Filter { filter: String, text: String },
    /// Somebody set a subscriber before.
    #[error("the log was set up twice")]
    Twice,
}

/// Sets the process-wide log up.
///
/// # Errors
/// When the filter does not parse, or a log is there already.
pub fn install(log: &Log) -> Result<(), LoggingError> {
    // ractor wraps each actor's events into a span that says its number, which tells nobody anything.
    let filter = EnvFilter::try_new(format!("ractor=off,{}", log.filter))
        .map_err(|e| LoggingError::Filter { filter: log.filter.clone(), text: e.to_string() })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let installed = if log.json {
        builder.json().flatten_event(true).with_target(false).finish().try_init()
    } else {
        builder.with_target(false).finish().try_init()
    };
    installed.map_err(|_| LoggingError::Twice)
}
