//! From a folder or an archive and flags to a submission.

use std::collections::BTreeMap;
use std::path::Path;

use secrecy::SecretString;
use tokio_util::io::ReaderStream;

use super::args::Inputs;
use super::client::{Client, Failure};
use super::parts;
use super::problem::Problem;
use super::progress::Progress;
use super::text::size;
use crate::api::wire::{BuildView, SecretValues, StepSpec, SubmitSpec};
use crate::ids::TreeId;

/// A smaller source, when it had to be read, is sent at once: asking whether it is known takes as long.
const OFFER_BYTES_MIN: u64 = 256 << 10;

/// What a daemon from before trees had names says to one.
const NO_WORD: &str = "malformed";

/// What is read of the source at a time.
const READ_BYTES: usize = 64 << 10;

/// Describes, packs and sends a build.
///
/// # Errors
/// When something of it is missing, or the daemon refuses it.
pub async fn submit(client: &Client, inputs: &Inputs, progress: &Progress) -> Result<BuildView, Problem> {
    let source = inputs.source.as_path();
    let missing = |e: std::io::Error| {
        Problem::usage(format!("there is no folder or archive `{}`: {e}", source.display()))
            .hint("name the project's folder, or an archive of it")
    };
    let meta = std::fs::metadata(source).map_err(missing)?;
    let mut spec = described(inputs);
    if let Some(bundle) = inputs.certs.clone() {
        progress.now("checking the certificate");
        let project = inputs.source.clone();
        spec.signing = Some(blocking(move || parts::certs(&bundle, &project)).await?);
    }
    let mut wanted = inputs.secrets.clone();
    let file = if meta.is_dir() {
        let project = parts::project(source)?;
        wanted.extend(project.secrets);
        spec.project = project.name.is_none().then(|| folder_name(source)).flatten();
        spec.secrets = secrets(&wanted, |name| std::env::var(name).ok())?.into();
        return submit_folder(client, &spec, source, project.include_git, progress).await;
    } else if meta.is_file() {
        spec.secrets = secrets(&wanted, |name| std::env::var(name).ok())?.into();
        std::fs::File::open(source).map_err(missing)?
    } else {
        return Err(Problem::usage(format!("`{}` is neither a folder nor a file", source.display())));
    };
    send(client, &spec, None, file, progress).await
}

/// A folder that the daemon has already is neither read nor sent.
async fn submit_folder(
    client: &Client,
    spec: &SubmitSpec,
    folder: &Path,
    include_git: bool,
    progress: &Progress,
) -> Result<BuildView, Problem> {
    progress.now("packing");
    let path = folder.to_owned();
    let surveyed = blocking(move || parts::survey(&path, include_git)).await?;
    let mut answer = Offered::Unknown;
    if let Some(tree) = surveyed {
        answer = offer(client, spec, tree).await?;
    }
    if let Offered::Taken(build) = answer {
        return Ok(*build);
    }
    let (file, tree) = pack(folder, include_git).await?;
    let large = file.metadata().is_ok_and(|facts| facts.len() >= OFFER_BYTES_MIN);
    // What was read anew may be what it was.
    if large && surveyed != Some(tree) {
        answer = offer(client, spec, tree).await?;
    }
    match answer {
        Offered::Taken(build) => Ok(*build),
        Offered::Unknown => {
            let again = file.try_clone().map_err(|e| cannot(&e))?;
            match send(client, spec, Some(tree), file, progress).await {
                Err(problem) if problem.code == NO_WORD => {
                    std::io::Seek::rewind(&mut &again).map_err(|e| cannot(&e))?;
                    send(client, spec, None, again, progress).await
                }
                sent => sent,
            }
        }
        Offered::NoWord => send(client, spec, None, file, progress).await,
    }
}

/// What a daemon says to a tree's name.
enum Offered {
    Taken(Box<BuildView>),
    /// It does not have it.
    Unknown,
    /// It is from before trees had names.
    NoWord,
}

/// Submits without a source.
async fn offer(client: &Client, spec: &SubmitSpec, tree: TreeId) -> Result<Offered, Problem> {
    match client.submit_tree(spec, Some(tree), None).await {
        Ok(build) => Ok(Offered::Taken(Box::new(build))),
        Err(Failure::Refused { view, .. }) if view.code == "tree_unknown" => Ok(Offered::Unknown),
        Err(Failure::Refused { view, .. }) if view.code == NO_WORD => Ok(Offered::NoWord),
        Err(failure) => Err(failure.into()),
    }
}

async fn send(
    client: &Client,
    spec: &SubmitSpec,
    tree: Option<TreeId>,
    file: std::fs::File,
    progress: &Progress,
) -> Result<BuildView, Problem> {
    let bytes = file.metadata().map_err(|e| cannot(&e))?.len();
    progress.now(&format!("sending {}", size(bytes)));
    let body = ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ_BYTES);
    Ok(client.submit_tree(spec, tree, Some((reqwest::Body::wrap_stream(body), bytes))).await?)
}

fn described(inputs: &Inputs) -> SubmitSpec {
    let step = |command: &String| StepSpec { command: command.clone(), ..StepSpec::default() };
    SubmitSpec {
        project: None,
        pool: inputs.pool.clone(),
        needs: inputs.needs.iter().cloned().collect(),
        pipeline: inputs.pipeline.clone(),
        dir: inputs.dir.clone(),
        steps: inputs.steps.iter().map(step).collect(),
        env: inputs.env.iter().cloned().collect(),
        secrets: SecretValues::default(),
        signing: None,
        artifacts: inputs.artifacts.clone(),
        caches: (inputs.no_cache || !inputs.caches.is_empty()).then(|| inputs.caches.clone()),
        timeout: inputs.timeout,
        retries: inputs.retries,
    }
}

/// Each secret's value; every one that is missing is named.
fn secrets(
    names: &[String],
    value: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, SecretString>, Problem> {
    let mut missing: Vec<_> =
        names.iter().filter(|name| value(name).is_none()).map(|n| format!("`{n}`")).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(names.iter().filter_map(|name| Some((name.clone(), value(name)?.into()))).collect());
    }
    Err(Problem::usage(format!("the build needs the secret {}, which is not set here", missing.join(", ")))
        .hint("a secret's value is taken from the environment variable of its name: export it first"))
}

/// The name of a project that does not name itself.
fn folder_name(folder: &Path) -> Option<String> {
    folder.canonicalize().ok()?.file_name()?.to_str().map(str::to_owned)
}

/// The folder as a tar, in a file without a name: whatever happens to us, it is gone.
async fn pack(folder: &Path, include_git: bool) -> Result<(std::fs::File, TreeId), Problem> {
    let folder = folder.to_owned();
    blocking(move || {
        let mut file = tempfile::tempfile().map_err(|e| cannot(&e))?;
        let tree = parts::pack(&folder, include_git, &mut file)?;
        std::io::Seek::rewind(&mut file).map_err(|e| cannot(&e))?;
        Ok((file, tree))
    })
    .await
}

fn cannot(error: &std::io::Error) -> Problem {
    Problem::system(format!("cannot use a temporary file: {error}"))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Problem::system(format!("packing failed: {e}")))?
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn every_missing_secret_is_named() {
        let names = ["A".to_owned(), "B".to_owned(), "C".to_owned()];
        let problem =
            secrets(&names, |name| (name == "B").then(|| "x".to_owned())).expect_err("two are missing");
        assert!(problem.what.contains("`A`, `C`") && problem.hint.is_some(), "{problem:?}");
        let all = secrets(&names[1..2], |_| Some("x".into())).expect("there");
        assert_eq!(all["B"].expose_secret(), "x");
    }
}
