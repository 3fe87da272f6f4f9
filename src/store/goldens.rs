//! Suspended VMs that others are cloned from: those that are written down here outlive the daemon, the rest is cleared away.

use rusqlite::params;

use super::{Store, StoreError};

impl Store {
    /// Every golden VM that is written down, by its name, and what its state depends on.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn goldens(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.call(|c| {
            let mut rows = c.prepare("SELECT vm, key FROM goldens ORDER BY vm")?;
            let read = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
            Ok(read.collect::<Result<Vec<_>, _>>()?)
        })
        .await
    }

    /// Writes one down.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_golden(&self, vm: String, key: String) -> Result<(), StoreError> {
        self.call(move |c| {
            let sql = "INSERT OR REPLACE INTO goldens (vm, key) VALUES (?1, ?2)";
            Ok(c.execute(sql, params![vm, key]).map(drop)?)
        })
        .await
    }

    /// Forgets one.
    ///
    /// # Errors
    /// When that is not on disk.
    pub async fn forget_golden(&self, vm: String) -> Result<(), StoreError> {
        self.call(move |c| Ok(c.execute("DELETE FROM goldens WHERE vm = ?1", [vm]).map(drop)?)).await
    }
}
