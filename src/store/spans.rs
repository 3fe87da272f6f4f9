//! The lives of VMs, and what is done for builds after their phases, as timelines are drawn from them. A VM is in one phase at a time, so only
//! the beginning of each is written: it ends where the VM's next one begins. They are for people: the disk is not waited for,
//! and a power cut may take the last of them.

use std::ops::{Deref, DerefMut};

use rusqlite::{Connection, Row, ToSql, params};

use super::{Store, StoreError, key};
use crate::clock::UnixMicros;
use crate::ids::BuildId;

/// More VMs than one build can have, with every retry taken and as many dead VMs before each as count for nothing.
const VMS_OF_BUILD_MAX: u32 = 64;
/// More phases than a VM has, repeats of its removal included.
const PHASES_OF_VM_MAX: u32 = 64;
/// Rows of one build that are told; a sink that is away for long is tried more often than anybody reads.
const AFTER_BUILD_MAX: u32 = 200;

/// The result is written down.
pub const RECORD: &str = "record";
/// An attempt to deliver the result.
pub const UPLOAD: &str = "upload";

/// Which VM: a name taken apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VmKey {
    pub pool: String,
    pub slot: u16,
    pub generation: u64,
}

/// A phase of a VM's life began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpan {
    pub vm: VmKey,
    pub phase: String,
    pub began_us: UnixMicros,
    /// The build that has the VM from here on.
    pub build: Option<BuildId>,
    pub detail: Option<String>,
}

/// Something was done for a build that is none of its phases: its record is closed by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildSpan {
    pub build: BuildId,
    /// [`RECORD`] or [`UPLOAD`].
    pub name: String,
    /// Where it was delivered to.
    pub sink: Option<String>,
    pub attempt: u32,
    pub began_us: UnixMicros,
    pub ended_us: UnixMicros,
    /// Why it failed.
    pub error: Option<String>,
}

/// A VM's phases, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmLife {
    pub vm: VmKey,
    pub spans: Vec<VmSpan>,
}

/// A VM that a build had, and its neighbours in time in the same slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotLives {
    pub before: Option<VmLife>,
    pub own: VmLife,
    pub after: Option<VmLife>,
}

/// What is known beside a build's record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    /// In the order in which the build had the VMs.
    pub slots: Vec<SlotLives>,
    pub done: Vec<BuildSpan>,
}

impl Store {
    /// Writes down what began and what was tried, as one, without waiting for the disk.
    ///
    /// # Errors
    /// When the journal cannot be changed.
    pub async fn note_spans(&self, vms: Vec<VmSpan>, builds: Vec<BuildSpan>) -> Result<(), StoreError> {
        self.call(move |c| {
            let mut relaxed = Relaxed::new(c)?;
            let tx = relaxed.transaction()?;
            for span in &vms {
                let sql = "INSERT INTO vm_spans (pool, slot, generation, phase, began_us, build, detail)
                    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
                let VmKey { pool, slot, generation } = &span.vm;
                let (build, at) = (span.build.map(key), span.began_us.0);
                tx.prepare_cached(sql)?.execute(params![
                    pool,
                    slot,
                    signed(*generation),
                    span.phase,
                    at,
                    build,
                    span.detail
                ])?;
            }
            for span in &builds {
                let sql = "INSERT INTO build_spans (build, name, sink, attempt, began_us, ended_us, error)
                    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
                let BuildSpan { build, name, sink, attempt, began_us, ended_us, error } = span;
                let (build, from, to) = (key(*build), began_us.0, ended_us.0);
                tx.prepare_cached(sql)?.execute(params![build, name, sink, attempt, from, to, error])?;
            }
            Ok(tx.commit()?)
        })
        .await
    }

    /// What is known beside a build's record.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn timeline(&self, build: BuildId) -> Result<Timeline, StoreError> {
        self.call(move |c| {
            let mut slots = Vec::new();
            for vm in vms_of(c, build)? {
                let before = neighbour(c, &vm, BEFORE)?;
                let after = match neighbour(c, &vm, AFTER)? {
                    Some(after) => Some(after),
                    None => neighbour(c, &vm, COMING)?,
                };
                slots.push(SlotLives {
                    before: before.map(|vm| life(c, vm)).transpose()?,
                    own: life(c, vm)?,
                    after: after.map(|vm| life(c, vm)).transpose()?,
                });
            }
            Ok(Timeline { slots, done: done_for(c, build)? })
        })
        .await
    }

    /// Forgets what began before `before`, what is more than `keep` of a kind, and what was done for builds that are forgotten.
    ///
    /// # Errors
    /// When the journal cannot be changed.
    pub async fn forget_spans(&self, before: UnixMicros, keep: u32) -> Result<usize, StoreError> {
        self.call(move |c| {
            let mut relaxed = Relaxed::new(c)?;
            let tx = relaxed.transaction()?;
            let vms = tx.execute(
                "DELETE FROM vm_spans WHERE began_us < ?1 OR id <= (SELECT max(id) FROM vm_spans) - ?2",
                params![before.0, keep],
            )?;
            let builds = tx.execute(
                "DELETE FROM build_spans WHERE build NOT IN (SELECT id FROM builds)
                    OR id <= (SELECT max(id) FROM build_spans) - ?1",
                [keep],
            )?;
            tx.commit()?;
            Ok(vms + builds)
        })
        .await
    }
}

/// The slot's VM that ran before.
const BEFORE: &str = "SELECT max(generation) FROM vm_spans
    WHERE pool = ?1 AND slot = ?2 AND generation < ?3 AND phase = 'started'";
/// The slot's VM that ran afterwards.
const AFTER: &str = "SELECT min(generation) FROM vm_spans
    WHERE pool = ?1 AND slot = ?2 AND generation > ?3 AND phase = 'started'";
/// The one that is to.
const COMING: &str = "SELECT max(generation) FROM vm_spans WHERE pool = ?1 AND slot = ?2 AND generation > ?3";

fn vms_of(c: &Connection, build: BuildId) -> rusqlite::Result<Vec<VmKey>> {
    let sql = "SELECT pool, slot, generation FROM vm_spans WHERE build = ?1
        GROUP BY pool, slot, generation ORDER BY min(id) LIMIT ?2";
    let read = |r: &Row<'_>| Ok(VmKey { pool: r.get(0)?, slot: r.get(1)?, generation: unsigned(r.get(2)?) });
    rows(c, sql, params![key(build), VMS_OF_BUILD_MAX], read)
}

fn neighbour(c: &Connection, vm: &VmKey, sql: &str) -> rusqlite::Result<Option<VmKey>> {
    let VmKey { pool, slot, generation } = vm;
    let found: Option<i64> = c.query_row(sql, params![pool, slot, signed(*generation)], |r| r.get(0))?;
    Ok(found.map(|found| VmKey { generation: unsigned(found), ..vm.clone() }))
}

fn life(c: &Connection, vm: VmKey) -> rusqlite::Result<VmLife> {
    let sql = "SELECT phase, began_us, build, detail FROM vm_spans
        WHERE pool = ?1 AND slot = ?2 AND generation = ?3 ORDER BY id LIMIT ?4";
    let spans = rows(c, sql, params![vm.pool, vm.slot, signed(vm.generation), PHASES_OF_VM_MAX], |r| {
        Ok(VmSpan {
            vm: vm.clone(),
            phase: r.get(0)?,
            began_us: UnixMicros(r.get(1)?),
            build: r.get::<_, Option<i64>>(2)?.map(|id| BuildId(unsigned(id))),
            detail: r.get(3)?,
        })
    })?;
    Ok(VmLife { vm, spans })
}

fn done_for(c: &Connection, build: BuildId) -> rusqlite::Result<Vec<BuildSpan>> {
    let sql = "SELECT name, sink, attempt, began_us, ended_us, error FROM build_spans WHERE build = ?1
        ORDER BY id DESC LIMIT ?2";
    let mut newest = rows(c, sql, params![key(build), AFTER_BUILD_MAX], |r| {
        Ok(BuildSpan {
            build,
            name: r.get(0)?,
            sink: r.get(1)?,
            attempt: r.get(2)?,
            began_us: UnixMicros(r.get(3)?),
            ended_us: UnixMicros(r.get(4)?),
            error: r.get(5)?,
        })
    })?;
    newest.reverse();
    Ok(newest)
}

fn rows<T>(
    c: &Connection,
    sql: &str,
    with: &[&dyn ToSql],
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    c.prepare_cached(sql)?.query_map(with, read)?.collect()
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// The connection while it does not wait for the disk. Dropped, it does again: everything else in the journal is on disk
/// before anybody hears of it.
struct Relaxed<'c>(&'c mut Connection);

impl<'c> Relaxed<'c> {
    fn new(c: &'c mut Connection) -> rusqlite::Result<Self> {
        c.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(Self(c))
    }
}

impl Drop for Relaxed<'_> {
    fn drop(&mut self) {
        self.0.pragma_update(None, "synchronous", "FULL").ok();
    }
}

impl Deref for Relaxed<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        self.0
    }
}

impl DerefMut for Relaxed<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0
    }
}

#[cfg(test)]
#[path = "spans_tests.rs"]
mod tests;
