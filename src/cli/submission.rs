//! From a folder or an archive and flags to a submission.

use std::collections::BTreeMap;
use std::path::Path;

use secrecy::SecretString;
use tokio_util::io::ReaderStream;

use super::args::Inputs;
use super::client::Client;
use super::parts;
use super::problem::Problem;
use super::progress::Progress;
use super::text::size;
use crate::api::wire::{BuildView, SecretValues, StepSpec, SubmitSpec};

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
    let mut wanted = inputs.secrets.clone();
    let file = if meta.is_dir() {
        let project = parts::project(source)?;
        wanted.extend(project.secrets);
        spec.project = project.name.is_none().then(|| folder_name(source)).flatten();
        spec.secrets = secrets(&wanted, |name| std::env::var(name).ok())?.into();
        progress.now("packing");
        pack(source, project.include_git).await?
    } else if meta.is_file() {
        spec.secrets = secrets(&wanted, |name| std::env::var(name).ok())?.into();
        std::fs::File::open(source).map_err(missing)?
    } else {
        return Err(Problem::usage(format!("`{}` is neither a folder nor a file", source.display())));
    };
    let bytes = file.metadata().map_err(missing)?.len();
    progress.now(&format!("sending {}", size(bytes)));
    let body = ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ_BYTES);
    Ok(client.submit(&spec, reqwest::Body::wrap_stream(body), bytes).await?)
}

fn described(inputs: &Inputs) -> SubmitSpec {
    let step = |command: &String| StepSpec { command: command.clone(), ..StepSpec::default() };
    SubmitSpec {
        project: None,
        pool: inputs.pool.clone(),
        steps: inputs.steps.iter().map(step).collect(),
        env: inputs.env.iter().cloned().collect(),
        secrets: SecretValues::default(),
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
async fn pack(folder: &Path, include_git: bool) -> Result<std::fs::File, Problem> {
    let folder = folder.to_owned();
    let packed = tokio::task::spawn_blocking(move || {
        let cannot = |e: std::io::Error| Problem::system(format!("cannot make a temporary file: {e}"));
        let mut file = tempfile::tempfile().map_err(cannot)?;
        parts::pack(&folder, include_git, &mut file)?;
        std::io::Seek::rewind(&mut file).map_err(cannot)?;
        Ok(file)
    });
    packed.await.map_err(|e| Problem::system(format!("packing failed: {e}")))?
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
