//! What controllers have given us: which worker each lane is to them, which job of theirs is which build of ours, how much of
//! its log they have, and whether they had its result. It is what makes one result of one job, whoever is started anew.

use std::time::Duration;

use rusqlite::{OptionalExtension as _, Row, params};
use secrecy::{ExposeSecret as _, SecretString};

use super::{Store, StoreError, Values, key};
use crate::clock::UnixMillis;
use crate::ids::BuildId;

/// Jobs that ended are remembered for so long, should their controller offer one again.
const REMEMBERED: Duration = Duration::from_secs(90 * 86_400);

/// The name of the token among the sealed values.
const TOKEN: &str = "token";

/// Who a lane is to its controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// The controller's name for it.
    pub id: String,
    /// Whether the controller gives out tokens; else all workers share a key.
    pub tokened: bool,
}

/// A controller's job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub controller: String,
    /// The controller's name for it.
    pub id: String,
    pub lane: u16,
    /// Ours, once it was accepted.
    pub build: Option<BuildId>,
    /// Lines of its log that the controller has.
    pub logged: u64,
    /// How it ended; `None` while it is open.
    pub outcome: Option<String>,
}

const SELECT: &str = "SELECT controller, job, lane, build, logged, outcome FROM controller_jobs";

fn read(row: &Row<'_>) -> rusqlite::Result<Job> {
    let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(Job {
        controller: row.get(0)?,
        id: row.get(1)?,
        lane: row.get(2)?,
        build: row.get::<_, Option<i64>>(3)?.map(|id| BuildId(unsigned(id))),
        logged: unsigned(row.get(4)?),
        outcome: row.get(5)?,
    })
}

impl Store {
    /// Who the lane is to the controller.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn worker(&self, controller: &str, lane: u16) -> Result<Option<Worker>, StoreError> {
        let controller = controller.to_owned();
        self.call(move |c| {
            let sql = "SELECT worker, tokened FROM controller_workers WHERE controller = ?1 AND lane = ?2";
            let read = |r: &Row<'_>| Ok(Worker { id: r.get(0)?, tokened: r.get(1)? });
            Ok(c.query_row(sql, params![controller, lane], read).optional()?)
        })
        .await
    }

    /// Writes that down; `None` forgets it.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_worker(
        &self,
        controller: &str,
        lane: u16,
        worker: Option<Worker>,
    ) -> Result<(), StoreError> {
        let controller = controller.to_owned();
        self.call(move |c| {
            let done = match worker {
                Some(Worker { id, tokened }) => c.execute(
                    "INSERT OR REPLACE INTO controller_workers (controller, lane, worker, tokened)
                     VALUES (?1, ?2, ?3, ?4)",
                    params![controller, lane, id, tokened],
                ),
                None => c.execute(
                    "DELETE FROM controller_workers WHERE controller = ?1 AND lane = ?2",
                    params![controller, lane],
                ),
            };
            Ok(done.map(drop)?)
        })
        .await
    }

    /// Writes down that the lane has the job. One that was open before is as it was, and so is one of which the controller was
    /// told the result: that is told again. Any other begins anew.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn take_job(&self, controller: &str, job: &str, lane: u16) -> Result<Job, StoreError> {
        let (controller, job) = (controller.to_owned(), job.to_owned());
        self.call(move |c| {
            let tx = c.transaction()?;
            let sql = "INSERT INTO controller_jobs (controller, job, lane, taken_ms) VALUES (?1, ?2, ?3, ?4)
                ON CONFLICT (controller, job) DO UPDATE SET lane = excluded.lane, ended_ms = NULL, outcome = NULL,
                build = CASE WHEN outcome IS NULL OR outcome IN ('success', 'failure') THEN build END,
                logged = CASE WHEN outcome IS NULL OR outcome IN ('success', 'failure') THEN logged ELSE 0 END";
            tx.execute(sql, params![controller, job, lane, UnixMillis::now().0])?;
            let sql = format!("{SELECT} WHERE controller = ?1 AND job = ?2");
            let taken = tx.query_row(&sql, params![controller, job], read)?;
            tx.commit()?;
            Ok(taken)
        })
        .await
    }

    /// A lane's jobs that are open, oldest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn open_jobs(&self, controller: &str, lane: u16) -> Result<Vec<Job>, StoreError> {
        let controller = controller.to_owned();
        self.call(move |c| {
            let sql = format!(
                "{SELECT} WHERE controller = ?1 AND lane = ?2 AND ended_ms IS NULL ORDER BY taken_ms, job"
            );
            let mut statement = c.prepare(&sql)?;
            let jobs = statement.query_map(params![controller, lane], read)?;
            Ok(jobs.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Writes down which build of ours the job is, with the token of this job alone, sealed.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn link_job(
        &self,
        controller: &str,
        job: &str,
        build: BuildId,
        token: Option<SecretString>,
    ) -> Result<(), StoreError> {
        let (controller, job, sealing) = (controller.to_owned(), job.to_owned(), self.key.clone());
        self.call(move |c| {
            let seal = |token| sealing.seal(build, &Values::from([(TOKEN.to_owned(), token)]));
            let sealed = token.map(seal).transpose()?;
            let sql = "UPDATE controller_jobs SET build = ?3, token = ?4 WHERE controller = ?1 AND job = ?2";
            Ok(c.execute(sql, params![controller, job, key(build), sealed]).map(drop)?)
        })
        .await
    }

    /// The token of a job, if it was kept and opens.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn job_token(&self, job: &Job) -> Result<Option<SecretString>, StoreError> {
        let (job, opening) = (job.clone(), self.key.clone());
        self.call(move |c| {
            let Some(build) = job.build else { return Ok(None) };
            let sql = "SELECT token FROM controller_jobs WHERE controller = ?1 AND job = ?2";
            let read = |r: &Row<'_>| r.get::<_, Option<Vec<u8>>>(0);
            let sealed = c.query_row(sql, params![job.controller, job.id], read).optional()?.flatten();
            let opened = sealed.and_then(|sealed| opening.open(build, &sealed).ok());
            Ok(opened.and_then(|mut values| values.remove(TOKEN)).filter(|t| !t.expose_secret().is_empty()))
        })
        .await
    }

    /// The controller has so many lines of the job's log.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn note_logged(&self, controller: &str, job: &str, lines: u64) -> Result<(), StoreError> {
        let (controller, job) = (controller.to_owned(), job.to_owned());
        self.call(move |c| {
            let sql =
                "UPDATE controller_jobs SET logged = max(logged, ?3) WHERE controller = ?1 AND job = ?2";
            Ok(c.execute(sql, params![controller, job, i64::try_from(lines).unwrap_or(i64::MAX)])
                .map(drop)?)
        })
        .await
    }

    /// The job is over: nothing is owed to the controller any more. Its token goes.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn end_job(
        &self,
        controller: &str,
        job: &str,
        outcome: &'static str,
    ) -> Result<(), StoreError> {
        let (controller, job) = (controller.to_owned(), job.to_owned());
        self.call(move |c| {
            let now = UnixMillis::now().0;
            let tx = c.transaction()?;
            let sql = "UPDATE controller_jobs SET ended_ms = ?3, outcome = ?4, token = NULL
                WHERE controller = ?1 AND job = ?2";
            tx.execute(sql, params![controller, job, now, outcome])?;
            let remembered = i64::try_from(REMEMBERED.as_millis()).unwrap_or(i64::MAX);
            tx.execute("DELETE FROM controller_jobs WHERE ended_ms < ?1", [now.saturating_sub(remembered)])?;
            Ok(tx.commit()?)
        })
        .await
    }

    /// The build that was accepted with this variable in its environment: the newest, if there is one.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn build_with(&self, name: &str, value: &str) -> Result<Option<BuildId>, StoreError> {
        let (path, value) = (format!("$.spec.env.{name}"), value.to_owned());
        self.call(move |c| {
            let sql = "SELECT id FROM builds WHERE json_extract(record, ?1) = ?2 ORDER BY id DESC LIMIT 1";
            let id: Option<i64> = c.query_row(sql, params![path, value], |r| r.get(0)).optional()?;
            Ok(id.map(|id| BuildId(u64::try_from(id).unwrap_or(0))))
        })
        .await
    }

    /// Ends what is open of controllers and lanes that are not among `lanes` any more: nobody would deliver it. Says what it was.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn end_orphaned_jobs(&self, lanes: Vec<(String, u16)>) -> Result<Vec<Job>, StoreError> {
        self.call(move |c| {
            let tx = c.transaction()?;
            let open: Vec<Job> = {
                let mut statement = tx.prepare(&format!("{SELECT} WHERE ended_ms IS NULL"))?;
                statement.query_map([], read)?.collect::<Result<_, _>>()?
            };
            let served =
                |job: &Job| lanes.iter().any(|(name, lanes)| *name == job.controller && job.lane < *lanes);
            let orphaned: Vec<Job> = open.into_iter().filter(|job| !served(job)).collect();
            for job in &orphaned {
                let sql = "UPDATE controller_jobs SET ended_ms = ?3, outcome = 'orphaned', token = NULL
                    WHERE controller = ?1 AND job = ?2";
                tx.execute(sql, params![job.controller, job.id, UnixMillis::now().0])?;
            }
            tx.commit()?;
            Ok(orphaned)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::build::spec::BuildResult;
    use crate::store::BuildRecord;
    use crate::testing;

    fn journal() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(&dir.path().join("journal.sqlite")).expect("it opens");
        (dir, store)
    }

    #[tokio::test]
    async fn a_job_is_one_build_over_a_restart_and_its_token_is_sealed() {
        let (dir, store) = journal();
        let worker = Worker { id: "w-1".into(), tokened: true };
        store.note_worker("mesh", 1, Some(worker.clone())).await.expect("written");
        let taken = store.take_job("mesh", "job", 1).await.expect("written");
        assert_eq!((taken.build, taken.logged), (None, 0));
        store
            .link_job("mesh", "job", BuildId(7), Some("hunter2-hunter2".to_owned().into()))
            .await
            .expect("on disk");
        store.note_logged("mesh", "job", 12).await.expect("written");
        drop(store);
        for file in std::fs::read_dir(dir.path()).expect("there").flatten().filter(|f| f.path().is_file()) {
            let bytes = std::fs::read(file.path()).expect("read");
            assert!(!bytes.windows(7).any(|w| w == b"hunter2"), "{}", file.path().display());
        }
        let store = Store::open(&dir.path().join("journal.sqlite")).expect("it opens again");
        assert_eq!(store.worker("mesh", 1).await.expect("read"), Some(worker));
        let again = store.take_job("mesh", "job", 1).await.expect("written");
        assert_eq!((again.build, again.logged), (Some(BuildId(7)), 12));
        let token = store.job_token(&again).await.expect("read").expect("kept");
        assert_eq!(token.expose_secret(), "hunter2-hunter2");
        store.end_job("mesh", "job", "success").await.expect("written");
        assert!(store.open_jobs("mesh", 1).await.expect("read").is_empty());
        assert!(store.job_token(&again).await.expect("read").is_none());
    }

    #[tokio::test]
    async fn a_job_that_was_told_is_told_again_and_one_that_was_cancelled_begins_anew() {
        let (_dir, store) = journal();
        for (outcome, kept) in [("success", Some(BuildId(7))), ("cancelled", None)] {
            store.take_job("mesh", outcome, 0).await.expect("written");
            store.link_job("mesh", outcome, BuildId(7), None).await.expect("written");
            store.end_job("mesh", outcome, outcome).await.expect("written");
            assert_eq!(store.take_job("mesh", outcome, 1).await.expect("written").build, kept);
        }
    }

    #[tokio::test]
    async fn a_build_is_kept_while_a_controller_has_not_had_it() {
        let (_dir, store) = journal();
        let mut spec = testing::spec();
        spec.env.insert("PREHEAT_JOB".into(), "mesh/job".into());
        let record = BuildRecord::received(spec, "source.tar".into(), UnixMillis(1));
        let mut record = store.insert(record, Arc::default()).await.expect("written");
        store.take_job("mesh", "job", 0).await.expect("written");
        assert_eq!(store.build_with("PREHEAT_JOB", "mesh/job").await.expect("read"), Some(record.id));
        assert_eq!(store.build_with("PREHEAT_JOB", "mesh/other").await.expect("read"), None);
        store.link_job("mesh", "job", record.id, None).await.expect("written");
        record.result = Some(BuildResult::Success);
        store.finish(record.clone(), Vec::new()).await.expect("written");
        assert!(store.ended().await.expect("read")[0].owed);
        assert!(store.forget(vec![record.id]).await.expect("asked").is_empty());
        store.end_job("mesh", "job", "success").await.expect("written");
        assert_eq!(store.forget(vec![record.id]).await.expect("asked"), [record.id]);
    }

    #[tokio::test]
    async fn what_nobody_would_deliver_any_more_is_ended() {
        let (_dir, store) = journal();
        for (controller, lane) in [("mesh", 0), ("mesh", 2), ("gone", 0)] {
            store.take_job(controller, &format!("{controller}-{lane}"), lane).await.expect("written");
        }
        let ended = store.end_orphaned_jobs(vec![("mesh".into(), 2)]).await.expect("written");
        let mut names: Vec<_> = ended.iter().map(|job| job.id.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["gone-0", "mesh-2"]);
        assert_eq!(store.open_jobs("mesh", 0).await.expect("read").len(), 1);
    }
}
