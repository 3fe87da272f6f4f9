//! `preheat artifacts`

use std::path::PathBuf;

use super::client::Client;
use super::download::download;
use super::exit::Exit;
use super::problem::Problem;
use super::text::{size, table};
use super::{out, out_json};
use crate::api::wire::ArtifactList;
use crate::ids::BuildId;

/// Lists them, or fetches them into `folder`.
pub async fn command(
    client: &Client,
    id: BuildId,
    folder: Option<PathBuf>,
    json: bool,
) -> Result<Exit, Problem> {
    let list: ArtifactList = client.get(&["api", "v1", "builds", &id.to_string(), "artifacts"], &[]).await?;
    if let Some(folder) = &folder {
        download(client, id, &list.artifacts, folder).await?;
        super::say(&format!("{} artifacts in {}", list.artifacts.len(), folder.display()));
    }
    if json {
        out_json(&list)?;
    } else if folder.is_none() {
        let row = |a: &crate::api::wire::ArtifactView| vec![a.path.clone(), size(a.bytes), a.sha256.clone()];
        let rows: Vec<_> = list.artifacts.iter().map(row).collect();
        out(&table(&["ARTIFACT", "SIZE", "SHA-256"], &rows));
    }
    Ok(Exit::Success)
}
