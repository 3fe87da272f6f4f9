//! The journal: SQLite. What has been accepted is here before anybody is told so. An operator can read it with `sqlite3`
//! while the daemon runs.

pub mod controllers;
mod goldens;
mod images;
mod migrations;
pub mod record;
pub mod seal;
pub mod spans;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::blocking;
use crate::clock::UnixMillis;
use crate::ids::{BuildId, Generation};
pub use record::BuildRecord;
pub use seal::{SealError, Values};

/// Why the journal did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or migrated.
    #[error("cannot open the journal `{path}`: {text}")]
    Open { path: PathBuf, text: String },
    /// A statement failed.
    #[error("the journal failed: {0}")]
    Sql(#[from] rusqlite::Error),
    /// A row does not parse.
    #[error("the journal holds a row that does not parse: {0}")]
    Row(#[from] serde_json::Error),
    /// Secrets cannot be sealed or opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The runtime is being shut down under it.
    #[error("the journal is closed")]
    Closed,
}

/// The journal. Clones share it.
#[derive(Clone)]
pub struct Store {
    connection: Arc<Mutex<Connection>>,
    key: Arc<seal::Key>,
}

/// A delivery that is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub id: i64,
    pub build: BuildId,
    pub sink: String,
    /// Attempts so far.
    pub attempts: u32,
    pub next_ms: UnixMillis,
}

/// A build that is over, as far as keeping it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub id: BuildId,
    pub finished_ms: UnixMillis,
    /// A delivery of it is still in the outbox, or a controller has not had its result yet.
    pub owed: bool,
}

impl Store {
    /// Opens the journal, makes it when it is not there, and brings an older one up to date; and the same with the key
    /// beside it.
    ///
    /// # Errors
    /// [`StoreError::Open`] when the file cannot be used, or was written by a newer version; [`StoreError::Seal`] when the
    /// key cannot be used.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |text: String| StoreError::Open { path: path.to_owned(), text };
        let mut connection = Connection::open(path).map_err(|e| failed(e.to_string()))?;
        migrations::prepare(&mut connection).map_err(failed)?;
        let key = Arc::new(seal::Key::beside(path)?);
        Ok(Self { connection: Arc::new(Mutex::new(connection)), key })
    }

    /// The disk stands still until `go` is dropped.
    #[cfg(test)]
    pub fn stand_still(&self, go: std::sync::mpsc::Receiver<()>) {
        let (connection, (tell, still)) = (self.connection.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            let held = connection.lock();
            tell.send(()).ok();
            go.recv().ok();
            drop(held);
        });
        still.recv().ok();
    }

    /// On a thread that may block. A statement that panicked left its transaction rolled back, so the lock may be taken over.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let connection = self.connection.clone();
        let done =
            blocking::run(move || work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner)));
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// Writes a new build down, with its secrets sealed, and gives it its number.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn insert(
        &self,
        mut record: BuildRecord,
        secrets: Arc<Values>,
    ) -> Result<BuildRecord, StoreError> {
        let sealing = self.key.clone();
        self.call(move |c| {
            let tx = c.transaction()?;
            tx.execute(
                "INSERT INTO builds (project, pool, submitted_ms, record) VALUES ('', '', 0, '{}')",
                [],
            )?;
            record.id = BuildId(u64::try_from(tx.last_insert_rowid()).unwrap_or(0));
            update(&tx, &record)?;
            if !secrets.is_empty() {
                let sealed = sealing.seal(record.id, &secrets)?;
                tx.execute(
                    "INSERT INTO secrets (build, sealed) VALUES (?1, ?2)",
                    params![key(record.id), sealed],
                )?;
            }
            tx.commit()?;
            Ok(record)
        })
        .await
    }

    /// Writes a build's progress down.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn save(&self, record: BuildRecord) -> Result<(), StoreError> {
        self.call(move |c| update(c, &record)).await
    }

    /// The secrets of a build that is not over.
    ///
    /// # Errors
    /// When the journal cannot be read; [`StoreError::Seal`] when they are not there, or do not open.
    pub async fn secrets(&self, id: BuildId) -> Result<Values, StoreError> {
        let sealing = self.key.clone();
        self.call(move |c| {
            let sql = "SELECT sealed FROM secrets WHERE build = ?1";
            let sealed: Option<Vec<u8>> = c.query_row(sql, [key(id)], |r| r.get(0)).optional()?;
            Ok(sealing.open(id, &sealed.ok_or(SealError::Absent)?)?)
        })
        .await
    }

    /// Writes a build's result down, and with it what is owed to each sink. Its secrets go.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn finish(&self, record: BuildRecord, sinks: Vec<String>) -> Result<(), StoreError> {
        self.call(move |c| {
            let tx = c.transaction()?;
            update(&tx, &record)?;
            for sink in sinks {
                let sql =
                    "INSERT OR IGNORE INTO outbox (build, sink, attempts, next_ms) VALUES (?1, ?2, 0, ?3)";
                tx.execute(sql, params![key(record.id), sink, UnixMillis::now().0])?;
            }
            let held = tx.execute("DELETE FROM secrets WHERE build = ?1", [key(record.id)])?;
            tx.commit()?;
            if held > 0 {
                empty_wal(c);
            }
            Ok(())
        })
        .await
    }

    /// One build.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn build(&self, id: BuildId) -> Result<Option<BuildRecord>, StoreError> {
        self.call(move |c| {
            let row = c.query_row(&format!("{SELECT} WHERE id = ?1"), [key(id)], read_row).optional()?;
            row.map(parse).transpose()
        })
        .await
    }

    /// Builds, newest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn builds(&self, limit: u32) -> Result<Vec<BuildRecord>, StoreError> {
        self.call(move |c| select(c, "ORDER BY id DESC LIMIT ?1", i64::from(limit))).await
    }

    /// Builds without a result, oldest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn unfinished(&self) -> Result<Vec<BuildRecord>, StoreError> {
        self.call(|c| select(c, "WHERE result IS NULL AND id > ?1 ORDER BY id", 0)).await
    }

    /// Deliveries that are owed, those that are due first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn owed(&self) -> Result<Vec<Delivery>, StoreError> {
        self.call(|c| {
            let mut rows =
                c.prepare("SELECT id, build, sink, attempts, next_ms FROM outbox ORDER BY next_ms, id")?;
            let read = rows.query_map([], |r| {
                let build = BuildId(u64::try_from(r.get::<_, i64>(1)?).unwrap_or(0));
                Ok(Delivery {
                    id: r.get(0)?,
                    build,
                    sink: r.get(2)?,
                    attempts: r.get(3)?,
                    next_ms: UnixMillis(r.get(4)?),
                })
            })?;
            Ok(read.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// A delivery arrived.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn delivered(&self, id: i64) -> Result<(), StoreError> {
        self.call(move |c| Ok(c.execute("DELETE FROM outbox WHERE id = ?1", [id]).map(drop)?)).await
    }

    /// A delivery failed and is tried again at `next`.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn not_delivered(&self, id: i64, next: UnixMillis, error: String) -> Result<(), StoreError> {
        self.call(move |c| {
            let sql =
                "UPDATE outbox SET attempts = attempts + 1, next_ms = ?2, last_error = ?3 WHERE id = ?1";
            Ok(c.execute(sql, params![id, next.0, error]).map(drop)?)
        })
        .await
    }

    /// Builds that are over, newest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn ended(&self) -> Result<Vec<Ended>, StoreError> {
        self.call(|c| {
            let sql = "SELECT id, finished_ms, EXISTS (SELECT 1 FROM outbox WHERE outbox.build = builds.id)
                OR EXISTS (SELECT 1 FROM controller_jobs AS jobs WHERE jobs.build = builds.id AND jobs.ended_ms IS NULL)
                FROM builds WHERE result IS NOT NULL ORDER BY id DESC";
            let mut statement = c.prepare(sql)?;
            let read = statement.query_map([], |r| {
                let id = BuildId(u64::try_from(r.get::<_, i64>(0)?).unwrap_or(0));
                let finished_ms = UnixMillis(r.get::<_, Option<i64>>(1)?.unwrap_or(0));
                Ok(Ended { id, finished_ms, owed: r.get(2)? })
            })?;
            Ok(read.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Forgets those of `ids` that are over and of which nothing is owed, and says which those were.
    ///
    /// # Errors
    /// When the journal cannot be changed.
    pub async fn forget(&self, ids: Vec<BuildId>) -> Result<Vec<BuildId>, StoreError> {
        self.call(move |c| {
            let tx = c.transaction()?;
            let sql = "DELETE FROM builds WHERE id = ?1 AND result IS NOT NULL
                AND id NOT IN (SELECT build FROM outbox)
                AND NOT EXISTS (SELECT 1 FROM controller_jobs AS jobs WHERE jobs.build = builds.id AND jobs.ended_ms IS NULL)";
            let mut forgotten = Vec::new();
            for id in ids {
                if tx.execute(sql, [key(id)])? > 0 {
                    forgotten.push(id);
                }
            }
            tx.commit()?;
            Ok(forgotten)
        })
        .await
    }

    /// The greatest generation that a VM was given.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn generation(&self) -> Result<Generation, StoreError> {
        self.call(|c| {
            let sql = "SELECT value FROM counters WHERE name = 'generation'";
            let value: Option<i64> = c.query_row(sql, [], |r| r.get(0)).optional()?;
            Ok(Generation(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(0)))
        })
        .await
    }

    /// Writes a generation down.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_generation(&self, generation: Generation) -> Result<(), StoreError> {
        self.call(move |c| {
            let sql = "INSERT INTO counters (name, value) VALUES ('generation', ?1)
                ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)";
            Ok(c.execute(sql, [i64::try_from(generation.0).unwrap_or(i64::MAX)]).map(drop)?)
        })
        .await
    }

    /// Whether an operator drained the daemon and has not let it go on.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn draining(&self) -> Result<bool, StoreError> {
        self.call(|c| {
            let sql = "SELECT value FROM counters WHERE name = 'draining'";
            let value: Option<i64> = c.query_row(sql, [], |r| r.get(0)).optional()?;
            Ok(value.unwrap_or(0) != 0)
        })
        .await
    }

    /// Writes down whether the daemon is drained, so that a restart does not end it.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_draining(&self, draining: bool) -> Result<(), StoreError> {
        self.call(move |c| {
            let sql = "INSERT OR REPLACE INTO counters (name, value) VALUES ('draining', ?1)";
            Ok(c.execute(sql, [i64::from(draining)]).map(drop)?)
        })
        .await
    }

    /// Whether the journal answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn answers(&self) -> Result<(), StoreError> {
        self.call(|c| Ok(c.query_row("SELECT 1", [], |_| Ok(()))?)).await
    }
}

/// `owed` says whether a delivery of it is still in the outbox.
const SELECT: &str =
    "SELECT record, EXISTS (SELECT 1 FROM outbox WHERE outbox.build = builds.id) AS owed FROM builds";

fn key(id: BuildId) -> i64 {
    i64::try_from(id.0).unwrap_or(i64::MAX)
}

fn read_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, bool)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn parse((json, owed): (String, bool)) -> Result<BuildRecord, StoreError> {
    let mut record: BuildRecord = serde_json::from_str(&json)?;
    record.owed = owed;
    Ok(record)
}

fn select(c: &Connection, rest: &str, parameter: i64) -> Result<Vec<BuildRecord>, StoreError> {
    let mut statement = c.prepare(&format!("{SELECT} {rest}"))?;
    let rows = statement.query_map([parameter], read_row)?.collect::<Result<Vec<_>, _>>()?;
    rows.into_iter().map(parse).collect()
}

/// Deleted pages are zeros, but the write-ahead log still has what they held. With a reader in the way it stays until the
/// log is written over: it is sealed, and nobody waits for that.
fn empty_wal(c: &Connection) {
    c.busy_timeout(Duration::ZERO).ok();
    c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).ok();
    c.busy_timeout(migrations::BUSY_MAX).ok();
}

/// The columns are for people and indexes; the whole record is JSON beside them. A build that has a result is not written
/// again: progress that was on its way meanwhile comes too late, and a second result is none.
fn update(c: &Connection, record: &BuildRecord) -> Result<(), StoreError> {
    let result = record.result.map(|r| r.as_str());
    let sql = "UPDATE builds SET project = ?2, pool = ?3, attempt = ?4, result = ?5, reason = ?6, submitted_ms = ?7,
        finished_ms = ?8, record = ?9 WHERE id = ?1 AND result IS NULL";
    c.execute(
        sql,
        params![
            key(record.id),
            record.spec.project,
            record.spec.pool.as_str(),
            record.attempt,
            result,
            record.reason,
            record.submitted_ms.0,
            record.finished_ms.map(|t| t.0),
            serde_json::to_string(record)?
        ],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
