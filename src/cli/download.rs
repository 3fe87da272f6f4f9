//! Artifacts from the daemon to a folder: checked while they come, in place only when they are whole.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::client::Client;
use super::problem::Problem;
use crate::api::artifacts::EXECUTABLE;
use crate::api::wire::ArtifactView;
use crate::ids::BuildId;

/// Between two pieces of a file.
const IDLE: Duration = Duration::from_secs(60);
/// A file that came damaged or broke off is fetched this often.
const TRIES: u32 = 3;

/// Fetches every artifact into `out`, which is made.
///
/// # Errors
/// When one cannot be had whole, or cannot be written. Those before it are in place.
pub async fn download(
    client: &Client,
    id: BuildId,
    artifacts: &[ArtifactView],
    out: &Path,
) -> Result<(), Problem> {
    // All names first: nothing is written for a build that names a bad one.
    let places = artifacts.iter().map(|a| place(out, &a.path)).collect::<Result<Vec<_>, _>>()?;
    for (artifact, place) in artifacts.iter().zip(&places) {
        let mut tries = 1;
        while let Err(problem) = fetch(client, id, artifact, place).await {
            if tries == TRIES || problem.code != "damaged" {
                return Err(problem.hint(format!("`preheat artifacts {id} --out DIR` tries again")));
            }
            tries += 1;
        }
    }
    Ok(())
}

/// Where a path from the daemon lies below `out`.
///
/// # Errors
/// When it lies elsewhere: the daemon is not believed.
pub fn place(out: &Path, path: &str) -> Result<PathBuf, Problem> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    let tidy = !path.split('/').any(|part| part.is_empty() || part == ".") && !path.contains(['\0', '\\']);
    if plain && tidy && !path.is_empty() {
        Ok(out.join(path))
    } else {
        Err(Problem::system(format!(
            "the daemon named the artifact `{path}`, which is not a path below the folder"
        )))
    }
}

async fn fetch(client: &Client, id: BuildId, artifact: &ArtifactView, place: &Path) -> Result<(), Problem> {
    let cannot = |e: std::io::Error| Problem::system(format!("cannot write `{}`: {e}", place.display()));
    let path = &artifact.path;
    let damaged =
        |how: String| Problem::system(format!("the artifact `{path}` of build {id} {how}")).code("damaged");
    let folder = place.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(cannot)?;

    let mut response = client.artifact(id, path).await?;
    let executable = response.headers().get(EXECUTABLE).is_some_and(|value| value == "1");
    let mode = if executable { 0o755 } else { 0o644 };
    let mut file = tempfile::Builder::new()
        .prefix(".preheat-")
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(folder)
        .map_err(cannot)?;
    let (mut bytes, mut digest) = (0, Sha256::new());
    loop {
        let piece = match timeout(IDLE, response.chunk()).await {
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) => break,
            Ok(Err(e)) => return Err(damaged(format!("broke off after {bytes} bytes: {e}"))),
            Err(_) => return Err(damaged(format!("stopped coming after {bytes} bytes"))),
        };
        bytes += piece.len() as u64;
        if bytes > artifact.bytes {
            break;
        }
        digest.update(&piece);
        file.write_all(&piece).map_err(cannot)?;
    }
    let sha256 = hex(&digest.finalize());
    if bytes != artifact.bytes {
        return Err(damaged(format!("has {bytes} bytes and should have {}", artifact.bytes)));
    }
    if !sha256.eq_ignore_ascii_case(&artifact.sha256) {
        return Err(damaged(format!(
            "came damaged: its SHA-256 is {sha256} and should be {}",
            artifact.sha256
        )));
    }
    file.persist(place).map(drop).map_err(|e| cannot(e.error))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_artifact_leaves_its_folder() {
        let out = Path::new("/out");
        assert_eq!(place(out, "a/b.txt"), Ok(PathBuf::from("/out/a/b.txt")));
        for bad in
            ["", "/etc/passwd", "../a", "a/../../b", "a/./b", "./a", "a//b", "a/", "a\\b", "a\0b", ".."]
        {
            assert!(place(out, bad).is_err(), "{bad:?}");
        }
    }
}
