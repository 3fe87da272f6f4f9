//! What images' names mean: chosen while a daemon runs, and in force for those after it.

use rusqlite::params;

use super::{Store, StoreError};
use crate::images::{Choice, Choices};

impl Store {
    /// Every image for which somebody has chosen.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn images(&self) -> Result<Choices, StoreError> {
        self.call(|c| {
            let mut rows = c.prepare("SELECT name, choice FROM images ORDER BY name")?;
            let read = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
            let rows: Vec<(String, String)> = read.collect::<Result<_, _>>()?;
            rows.into_iter().map(|(name, text)| Ok((name, serde_json::from_str(&text)?))).collect()
        })
        .await
    }

    /// Writes one down.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_image(&self, name: String, choice: Choice) -> Result<(), StoreError> {
        self.call(move |c| {
            let sql = "INSERT OR REPLACE INTO images (name, choice) VALUES (?1, ?2)";
            Ok(c.execute(sql, params![name, serde_json::to_string(&choice)?]).map(drop)?)
        })
        .await
    }
}
