//! What can be observed: `names` is the catalogue of metrics, `events` the only place that logs and counts, `export` sets
//! the recorder up and renders it. Everything else says what happened by emitting a struct of `events`.

#[expect(clippy::disallowed_macros, reason = "the only place that logs and counts, beside `export`")]
pub mod caching;
#[expect(clippy::disallowed_macros, reason = "the only place that logs and counts, beside `export`")]
pub mod controlling;
#[expect(clippy::disallowed_macros, reason = "the only place that logs and counts, beside `export`")]
pub mod events;
pub mod export;
#[expect(clippy::disallowed_macros, reason = "the only place that logs and counts, beside `export`")]
pub mod guests;
#[expect(clippy::disallowed_macros, reason = "the only place that logs and counts, beside `export`")]
pub mod images;
mod log_file;
pub mod logging;
pub mod names;
mod process;
