//! The journal's schema, as a list of steps that only grows. `user_version` says how many have been done.

use std::time::Duration;

use rusqlite::Connection;

/// Somebody else (an operator's `sqlite3`) may hold the journal for so long.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(5);

const STEPS: &[&str] = &[
    "
    CREATE TABLE builds (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        project TEXT NOT NULL,
        pool TEXT NOT NULL,
        attempt INTEGER NOT NULL DEFAULT 0,
        result TEXT,
        reason TEXT,
        submitted_ms INTEGER NOT NULL,
        finished_ms INTEGER,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX builds_unfinished ON builds (id) WHERE result IS NULL;
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        build INTEGER NOT NULL,
        sink TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        next_ms INTEGER NOT NULL,
        last_error TEXT,
        UNIQUE (build, sink)
    ) STRICT;
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
",
    "
    CREATE TABLE secrets (build INTEGER PRIMARY KEY, sealed BLOB NOT NULL) STRICT;
",
    "
    CREATE TABLE goldens (vm TEXT PRIMARY KEY, key TEXT NOT NULL) STRICT;
",
    "
    CREATE TABLE vm_spans (
        id INTEGER PRIMARY KEY,
        pool TEXT NOT NULL,
        slot INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        phase TEXT NOT NULL,
        began_us INTEGER NOT NULL,
        build INTEGER,
        detail TEXT
    ) STRICT;
    CREATE INDEX vm_spans_vm ON vm_spans (pool, slot, generation);
    CREATE INDEX vm_spans_build ON vm_spans (build) WHERE build IS NOT NULL;
    CREATE INDEX vm_spans_age ON vm_spans (began_us);
    CREATE TABLE build_spans (
        id INTEGER PRIMARY KEY,
        build INTEGER NOT NULL,
        name TEXT NOT NULL,
        sink TEXT,
        attempt INTEGER NOT NULL,
        began_us INTEGER NOT NULL,
        ended_us INTEGER NOT NULL,
        error TEXT
    ) STRICT;
    CREATE INDEX build_spans_build ON build_spans (build);
",
    "
    CREATE TABLE images (name TEXT PRIMARY KEY, choice TEXT NOT NULL) STRICT;
",
    "
    CREATE TABLE controller_workers (
        controller TEXT NOT NULL,
        lane INTEGER NOT NULL,
        worker TEXT NOT NULL,
        tokened INTEGER NOT NULL,
        PRIMARY KEY (controller, lane)
    ) STRICT;
    CREATE TABLE controller_jobs (
        controller TEXT NOT NULL,
        job TEXT NOT NULL,
        lane INTEGER NOT NULL,
        build INTEGER,
        token BLOB,
        logged INTEGER NOT NULL DEFAULT 0,
        taken_ms INTEGER NOT NULL,
        ended_ms INTEGER,
        outcome TEXT,
        PRIMARY KEY (controller, job)
    ) STRICT;
    CREATE INDEX controller_jobs_open ON controller_jobs (build) WHERE ended_ms IS NULL;
",
];

/// Sets a connection up and runs the steps that are missing.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), String> {
    prepare_with(connection, STEPS)
}

/// The journal as the daemon made it that knew so many steps.
#[cfg(test)]
pub(super) fn prepare_as_of(connection: &mut Connection, steps: usize) {
    prepare_with(connection, &STEPS[..steps]).expect("an old journal");
}

fn prepare_with(connection: &mut Connection, steps: &[&str]) -> Result<(), String> {
    let text = |e: rusqlite::Error| e.to_string();
    connection.busy_timeout(BUSY_MAX).map_err(text)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(text)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(text)?;
    // On macOS a plain fsync does not reach the disk.
    connection.pragma_update(None, "fullfsync", true).map_err(text)?;
    // What is deleted is overwritten: among it are secrets, though sealed.
    connection.pragma_update(None, "secure_delete", true).map_err(text)?;
    let done: u32 = connection.pragma_query_value(None, "user_version", |r| r.get(0)).map_err(text)?;
    let done = usize::try_from(done).unwrap_or(usize::MAX);
    if done > steps.len() {
        return Err(format!(
            "it is of version {done}, and this preheat knows {}: use a newer one",
            steps.len()
        ));
    }
    for (step, sql) in (1u32..).zip(steps).skip(done) {
        let tx = connection.transaction().map_err(text)?;
        tx.execute_batch(sql).map_err(text)?;
        tx.pragma_update(None, "user_version", step).map_err(text)?;
        tx.commit().map_err(text)?;
    }
    Ok(())
}
