//! A build from the daemon's own API: its archive made plain and safe, its project's file read, the request laid over it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use super::listing;
use super::trees::{About, Trees};
use crate::api::service::Refused;
use crate::api::wire::SubmitSpec;
use crate::blocking;
use crate::build::archive::{self, ArchiveError, Limits};
use crate::build::project::{self, Around, Incomplete, ProjectFile};
use crate::build::spec::BuildSpec;
use crate::build::tree;
use crate::cache::keys::{self, Of, Unsettled};
use crate::clock::UnixMillis;
use crate::config::mistake::Mistakes;
use crate::config::{Config, Pool};
use crate::ids::TreeId;
use crate::pipelines::files::Files;
use crate::pool::needs::Standings;
use crate::signing::{self, vault};
use crate::telemetry::events::Degraded;

/// The name of a project that nobody named.
const UNNAMED: &str = "unnamed";

/// The daemon as a build finds it.
#[derive(Debug, Clone)]
pub struct Daemon {
    pub config: Arc<Config>,
    /// How its pools stand, for a build that leaves the choice.
    pub pools: Standings,
}

/// A build that can be accepted.
pub struct Received {
    pub spec: BuildSpec,
    /// The values of its secrets, and what it signs with ([`vault`]).
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
    fn new(config: &Config) -> Self {
        let name = format!("{}.tar", Uuid::new_v4());
        Self { path: config.home.spool().join(&name), name, kept: false }
    }

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
    daemon: Daemon,
    request: SubmitSpec,
    source: tempfile::TempPath,
) -> Result<Received, Refused> {
    let done = blocking::run(move || receive_blocking(&daemon, &request, &source));
    done.await.map_err(|e| Refused::Internal(e.to_string()))?
}

/// As [`receive`], of a source whose tree has a name: what was sent is kept under it, and where nothing was sent, what is kept
/// is taken.
///
/// # Errors
/// As [`receive`]; when nothing is kept under the name, or what was sent has another one.
pub async fn receive_tree(
    daemon: Daemon,
    request: SubmitSpec,
    tree: TreeId,
    source: Option<tempfile::TempPath>,
) -> Result<Received, Refused> {
    let done = blocking::run(move || match source {
        Some(archive) => send_blocking(&daemon, &request, tree, &archive),
        None => lend_blocking(&daemon, &request, tree),
    });
    done.await.map_err(|e| Refused::Internal(e.to_string()))?
}

fn send_blocking(
    daemon: &Daemon,
    request: &SubmitSpec,
    tree: TreeId,
    archive: &Path,
) -> Result<Received, Refused> {
    let config = &daemon.config;
    // A name that somebody made up must not stand for another tree.
    if tree::of_archive(archive).ok().flatten() != Some(tree) {
        let text = format!("the source that was sent is not the tree {tree}");
        let hint = "something changed while it was packed: send it again, or send it without a name";
        return Err(Refused::BadSource { text, hint: Some(hint.into()) });
    }
    let (source, about) = spool(config, archive)?;
    let received = described(daemon, request, source, &about)?;
    let bytes = std::fs::metadata(&received.source.path).map_or(u64::MAX, |facts| facts.len());
    if config.api.source_keep_bytes.is_some_and(|max| bytes <= max.0) {
        let kept = Trees::new(config.home.trees()).keep(tree, &received.source.path, &about);
        if let Err(error) = kept {
            Degraded { what: "keeping a source", error: error.to_string() }.emit();
        }
    }
    Ok(received)
}

fn lend_blocking(daemon: &Daemon, request: &SubmitSpec, tree: TreeId) -> Result<Received, Refused> {
    let config = &daemon.config;
    let source = SpooledSource::new(config);
    let lent =
        config.api.source_keep_bytes.and_then(|_| Trees::new(config.home.trees()).lend(tree, &source.path));
    described(daemon, request, source, &lent.ok_or(Refused::TreeUnknown(tree))?)
}

fn receive_blocking(daemon: &Daemon, request: &SubmitSpec, archive: &Path) -> Result<Received, Refused> {
    let (source, about) = spool(&daemon.config, archive)?;
    described(daemon, request, source, &about)
}

fn spool(config: &Config, archive: &Path) -> Result<(SpooledSource, About), Refused> {
    let source = SpooledSource::new(config);
    let summary = archive::normalise(archive, &source.path, Limits::default()).map_err(bad_archive)?;
    Ok((source, About { stripped: summary.stripped, project: summary.project }))
}

fn described(
    daemon: &Daemon,
    request: &SubmitSpec,
    source: SpooledSource,
    about: &About,
) -> Result<Received, Refused> {
    let project = about.project.as_deref().map(ProjectFile::parse).transpose().map_err(wrong)?;
    let fallback = about.stripped.as_deref().unwrap_or(UNNAMED);
    let config = &daemon.config;
    let files = match project::wants_files(project.as_ref(), request) {
        true => listing::files(&source.path).map_err(|e| unreadable(&source.path, &e))?,
        false => Files::default(),
    };
    let around = Around {
        builds: &config.builds,
        pools: &config.pools,
        pipelines: &config.pipelines,
        files: &files,
        standings: &daemon.pools,
        fallback_name: fallback,
    };
    let merged = project::merge(project, request, &around);
    let (mut spec, values) = merged.map_err(|incomplete| match incomplete {
        Incomplete::PoolUnknown { pool, known } => Refused::PoolUnknown { pool, known },
        Incomplete::Wrong(mistakes) => wrong(mistakes),
    })?;
    settle_caches(config, request, &mut spec, &source.path)?;
    let mut secrets = values.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    if let Some(signing) = &request.signing {
        let checked = signing::check(signing, UnixMillis::now()).map_err(unsigned)?;
        spec.signing = Some(vault::keep(checked, &mut secrets));
    }
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
    let image = config.pools.get(&spec.pool).map_or_else(String::new, Pool::base);
    let BuildSpec { caches, pool, env, .. } = spec;
    let of = Of { pool: pool.as_str(), image: &image, env, place };
    keys::settle(caches, of, source).map_err(|unsettled| match unsettled {
        Unsettled::Wrong(mistakes) => wrong(mistakes),
        Unsettled::Host(error) => unreadable(source, &error),
    })
}

fn unreadable(source: &Path, error: &std::io::Error) -> Refused {
    Refused::Internal(format!("cannot read `{}`: {error}", source.display()))
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

fn unsigned(mistakes: Mistakes) -> Refused {
    Refused::BadSigning { mistakes: mistakes.lines(), hint: Some(mistakes.hints()).filter(|h| !h.is_empty()) }
}

fn wrong(mistakes: Mistakes) -> Refused {
    let hint = mistakes.0.iter().find_map(|mistake| mistake.hint.clone());
    Refused::BadSpec { mistakes: mistakes.lines(), hint }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::build::pack::{PackOptions, pack};
    use crate::config::Home;
    use crate::testing;

    struct Lab {
        dir: tempfile::TempDir,
        config: Config,
    }

    fn lab() -> Lab {
        let dir = tempfile::tempdir().expect("a folder");
        let mut config = testing::config();
        config.home = Home::new(dir.path().join("home"));
        config.pools.insert("linux".parse().expect("a name"), testing::pool("linux"));
        fs::create_dir_all(config.home.spool()).expect("made");
        fs::create_dir(dir.path().join("app")).expect("made");
        fs::write(dir.path().join("app/.preheat.toml"), "steps = [\"make\"]\n").expect("written");
        Lab { dir, config }
    }

    impl Lab {
        fn daemon(&self) -> Daemon {
            Daemon { config: Arc::new(self.config.clone()), pools: Standings::new() }
        }

        /// The app as a tar, and its name.
        fn packed(&self) -> (TreeId, PathBuf) {
            let path = self.dir.path().join("tar");
            let tar = fs::File::create(&path).expect("made");
            let packed = pack(&self.dir.path().join("app"), PackOptions::default(), tar).expect("packed");
            (packed.tree, path)
        }

        fn lend(&self, tree: TreeId) -> Result<Received, Refused> {
            lend_blocking(&self.daemon(), &SubmitSpec::default(), tree)
        }

        fn send(&self, tree: TreeId, tar: &Path) -> Result<Received, Refused> {
            send_blocking(&self.daemon(), &SubmitSpec::default(), tree, tar)
        }

        fn spooled(&self) -> usize {
            fs::read_dir(self.config.home.spool()).expect("there").count()
        }
    }

    #[test]
    fn what_was_sent_by_its_name_is_there_the_next_time() {
        let lab = lab();
        let (tree, tar) = lab.packed();
        assert!(matches!(lab.lend(tree), Err(Refused::TreeUnknown(t)) if t == tree));
        let sent = lab.send(tree, &tar).unwrap_or_else(|e| panic!("{e}"));
        let bytes = fs::read(&sent.source.path).expect("there");
        drop(sent);
        let lent = lab.lend(tree).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(lent.spec.steps[0].command, "make", "its project's file is known");
        assert!(fs::read(&lent.source.path).expect("there") == bytes);
        drop(lent);
        assert_eq!(lab.spooled(), 0);
    }

    #[test]
    fn a_source_under_the_name_of_another_tree_is_refused_and_not_kept() {
        let lab = lab();
        let (_, tar) = lab.packed();
        let other = TreeId([7; 32]);
        assert!(matches!(lab.send(other, &tar), Err(Refused::BadSource { .. })));
        assert!(matches!(lab.lend(other), Err(Refused::TreeUnknown(_))));
        let whole = fs::read(&tar).expect("there");
        fs::write(&tar, &whole[..whole.len() / 2]).expect("cut");
        assert!(matches!(lab.send(other, &tar), Err(Refused::BadSource { .. })));
        assert_eq!(lab.spooled(), 0);
    }

    #[test]
    fn nothing_is_kept_where_the_operator_says_so_and_nothing_that_is_too_large() {
        for keep in [None, Some(crate::config::ByteSize(10))] {
            let mut lab = lab();
            lab.config.api.source_keep_bytes = keep;
            let (tree, tar) = lab.packed();
            drop(lab.send(tree, &tar).unwrap_or_else(|e| panic!("{e}")));
            assert!(matches!(lab.lend(tree), Err(Refused::TreeUnknown(_))));
        }
    }
}
