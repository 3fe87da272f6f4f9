//! The log: text for people or one JSON object a line, to stderr or a file, filtered as the configuration says.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use super::log_file::LogFile;
use crate::config::Log;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter does not parse.
    #[error("log.filter: `{filter}` is not a filter: {text}")]
    Filter { filter: String, text: String },
    /// The file cannot be written.
    #[error("log.file: `{path}` cannot be opened: {source}")]
    File { path: PathBuf, source: std::io::Error },
    /// Somebody set a subscriber before.
    #[error("the log was set up twice")]
    Twice,
}

/// Sets the process-wide log up.
///
/// # Errors
/// When the filter does not parse, the file cannot be opened, or a log is there already.
pub fn install(log: &Log) -> Result<Filter, LoggingError> {
    let first = filter(&log.filter)?;
    let builder = tracing_subscriber::fmt()
        .with_writer(writer(log.file.as_deref())?)
        .with_ansi(log.file.is_none() && std::io::stderr().is_terminal())
        .with_target(false);
    // Twice the same, because each format makes another type of it.
    let (set, installed): (Set, _) = if log.json {
        let builder = builder.json().flatten_event(true).with_env_filter(first).with_filter_reloading();
        let handle = builder.reload_handle();
        (Box::new(move |filter| handle.reload(filter).is_ok()), builder.finish().try_init())
    } else {
        let builder = builder.with_env_filter(first).with_filter_reloading();
        let handle = builder.reload_handle();
        (Box::new(move |filter| handle.reload(filter).is_ok()), builder.finish().try_init())
    };
    installed.map_err(|_| LoggingError::Twice)?;
    Ok(Filter { set })
}

fn writer(file: Option<&Path>) -> Result<BoxMakeWriter, LoggingError> {
    let Some(path) = file else { return Ok(BoxMakeWriter::new(std::io::stderr)) };
    let failed = |source| LoggingError::File { path: path.to_owned(), source };
    let file = LogFile::open(path.to_owned()).map_err(failed)?;
    Ok(BoxMakeWriter::new(move || file.clone()))
}

type Set = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// The filter of a log that is set up.
pub struct Filter {
    set: Set,
}

impl Filter {
    /// Filters otherwise from now on.
    ///
    /// # Errors
    /// When the filter does not parse; it stays as it was.
    pub fn set(&self, text: &str) -> Result<(), LoggingError> {
        let gone = LoggingError::Filter { filter: text.to_owned(), text: "the log is closed".into() };
        if (self.set)(filter(text)?) { Ok(()) } else { Err(gone) }
    }
}

fn filter(text: &str) -> Result<EnvFilter, LoggingError> {
    // ractor wraps each actor's events into a span that says its number, which tells nobody anything; and that a file which was
    // watched is gone is no news.
    EnvFilter::try_new(format!("ractor=off,notify=warn,{text}"))
        .map_err(|e| LoggingError::Filter { filter: text.to_owned(), text: e.to_string() })
}
