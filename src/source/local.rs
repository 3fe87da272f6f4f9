//! A build from the daemon's own API: its archive made plain and safe, its project's file read, the request laid over it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use crate::api::service::Refused;
use crate::api::wire::SubmitSpec;
use crate::blocking;
use crate::build::archive::{self, ArchiveError, Limits};
use crate::build::project::{self, Incomplete, ProjectFile};
use crate::build::spec::BuildSpec;
use crate::cache::keys::{self, Of, Unsettled};
use crate::config::Config;
use crate::config::mistake::Mistakes;

/// The name of a project that nobody named.
const UNNAMED: &str = "unnamed";

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

/// Reads what was sent, unpacks nothing: the archive becomes a plain tar in the spool.
///
/// # Errors
/// When the archive or the description cannot be used.
pub async fn receive(
    config: Arc<Config>,
    request: SubmitSpec,
    source: tempfile::TempPath,
) -> Result<Received, Refused> {
    let done = blocking::run(move || receive_blocking(&config, &request, &source));
    done.await.map_err(|e| Refused::Internal(e.to_string()))?
}

fn receive_blocking(config: &Config, request: &SubmitSpec, archive: &Path) -> Result<Received, Refused> {
    let name = format!("{}.tar", Uuid::new_v4());
    let source = SpooledSource { path: config.home.spool().join(&name), name, kept: false };
    let summary = archive::normalise(archive, &source.path, Limits::default()).map_err(bad_archive)?;
    let project = summary.project.as_deref().map(ProjectFile::parse).transpose().map_err(wrong)?;
    let fallback = summary.stripped.as_deref().unwrap_or(UNNAMED);
    let merged = project::merge(project, request, &config.builds, &config.pools, fallback);
    let (mut spec, secrets) = merged.map_err(|incomplete| match incomplete {
        Incomplete::PoolUnknown { pool, known } => Refused::PoolUnknown { pool, known },
        Incomplete::Wrong(mistakes) => wrong(mistakes),
    })?;
    settle_caches(config, request, &mut spec, &source.path)?;
    let secrets = secrets.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    Ok(Received { spec, secrets, source })
}

/// The keys of its caches, from the source as it was accepted.
fn settle_caches(
    config: &Config,
    request: &SubmitSpec,
    spec: &mut BuildSpec,
    source: &Path,
) -> Result<(), Refused> {
    let place = if request.caches.is_some() { "request" } else { project::FILE_NAME };
    let image = config.pools.get(&spec.pool).map_or("", |pool| pool.image.as_str());
    let BuildSpec { caches, pool, env, .. } = spec;
    let of = Of { pool: pool.as_str(), image, env, place };
    keys::settle(caches, of, source).map_err(|unsettled| match unsettled {
        Unsettled::Wrong(mistakes) => wrong(mistakes),
        Unsettled::Host(error) => Refused::Internal(format!("cannot read `{}`: {error}", source.display())),
    })
}

fn bad_archive(error: ArchiveError) -> Refused {
    let text = match std::error::Error::source(&error) {
        Some(inner) => format!("{error}: {inner}"),
        None => error.to_string(),
    };
    // Only the last kind is this host's fault.
    if matches!(error, ArchiveError::Host(_)) {
        return Refused::Internal(text);
    }
    Refused::BadSource { text, hint: error.hint().map(str::to_owned) }
}

fn wrong(mistakes: Mistakes) -> Refused {
    let hint = mistakes.0.iter().find_map(|mistake| mistake.hint.clone());
    Refused::BadSpec { mistakes: mistakes.lines(), hint }
}
