//! A few files out of a guest, over an SFTP server that is up before it is asked: most builds give back one archive or two,
//! and for those a listing and a stream, each with its processes in the guest, would be most of the wait.
//!
//! It only ever finds: where there is much to look through, where something is odd or missing, it leaves the word to the
//! listing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::{join_all, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};
use openssh_sftp_client::error::{Error, SftpErrorKind};
use openssh_sftp_client::metadata::FileType;
use openssh_sftp_client::{Sftp, SftpOptions};
use tokio::time::timeout;

use super::connection::Connection;
use super::globs::{Globs, Verdict};
use super::receive::Sink;
use super::takeout::{CLOSE_LIMIT, fetch};
use super::{TakeError, Taken, WORK_DIR};

/// So many questions are asked before `find` would have answered sooner, and files taken before a stream would have
/// brought them sooner: each costs the guest a turn.
const QUESTIONS_MAX: usize = 32;
const FILES_MAX: usize = 16;

/// Names in the folders that are looked through: what comes back in one answer or two each.
const NAMES_MAX: usize = 1_000;

/// A stream is quicker from here on.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Files on their way at once.
const FETCHES_MAX: usize = 4;

/// Takes what the globs mean, if that is a few files. `None`: nothing was taken, and it is not said whether there is
/// anything.
pub(super) async fn pick(
    on: &Connection,
    globs: &Globs,
    sink: &Arc<Sink>,
) -> Result<Option<Vec<Taken>>, TakeError> {
    let wire = &on.wire;
    let sftp = match on.take_sftp() {
        Some(sftp) => sftp,
        None => {
            let opened = Sftp::from_clonable_session(wire.session(), SftpOptions::default());
            let Ok(sftp) = wire.or_lost(opened).await? else { return Ok(None) };
            sftp
        }
    };
    let taken = match wire.or_lost(find(&sftp, globs)).await? {
        Some(names) => {
            let files: Vec<_> = names.iter().map(|name| fetch(wire, &sftp, WORK_DIR, name, sink)).collect();
            let files = stream::iter(files).buffered(FETCHES_MAX).try_collect::<Vec<_>>();
            Some(wire.or_lost(files).await??)
        }
        None => None,
    };
    // Nobody waits for its end.
    tokio::spawn(async move { timeout(CLOSE_LIMIT, sftp.close()).await });
    Ok(taken)
}

/// The names of all files that the globs mean; `None` when there are none for one of them, or too many.
async fn find(sftp: &Sftp, globs: &Globs) -> Option<Vec<String>> {
    let roots = globs.roots();
    let mut questions: BTreeSet<&str> = BTreeSet::from(["."]);
    for root in roots.iter().filter(|root| *root != ".") {
        questions.extend(root.match_indices('/').map(|(at, _)| &root[..at]).chain([root.as_str()]));
    }
    let mut asked = questions.len();
    if asked > QUESTIONS_MAX {
        return None;
    }
    let kinds = join_all(questions.iter().map(|name| kind(sftp, name))).await;
    let is = |name: &str, wanted: fn(&FileType) -> bool| {
        let found = questions.iter().zip(&kinds).find(|(asked, _)| **asked == name);
        found.is_some_and(|(_, kind)| matches!(kind, Ok(Some(kind)) if wanted(kind)))
    };
    if kinds.iter().any(Result::is_err) || !is(".", FileType::is_dir) {
        return None;
    }
    let (mut files, mut folders) = (BTreeSet::new(), Vec::new());
    for root in &roots {
        // A link on the way leads nowhere.
        let reached = root.match_indices('/').all(|(at, _)| is(&root[..at], FileType::is_dir));
        if reached && is(root, FileType::is_dir) {
            folders.push(root.clone());
        } else if reached && is(root, FileType::is_file) {
            note(globs, root, &mut files)?;
        }
    }
    let mut names = 0;
    while !folders.is_empty() {
        asked += folders.len();
        if asked > QUESTIONS_MAX {
            return None;
        }
        let listed = try_join_all(folders.iter().map(|folder| list(sftp, folder))).await.ok()?;
        let entries: Vec<(String, FileType)> = listed.into_iter().flatten().collect();
        names += entries.len();
        if names > NAMES_MAX {
            return None;
        }
        folders.clear();
        for (name, kind) in entries {
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_file() {
                note(globs, &name, &mut files)?;
            }
        }
    }
    let all_found = globs.unmatched(files.iter().map(String::as_str)).is_none();
    (all_found && files.len() <= FILES_MAX).then(|| files.into_iter().collect())
}

/// Adds a file that is meant; `None` for one that must not be taken.
fn note(globs: &Globs, name: &str, files: &mut BTreeSet<String>) -> Option<()> {
    match globs.judge(name.as_bytes()) {
        Verdict::No => {}
        Verdict::Yes(name) => _ = files.insert(name),
        Verdict::Hostile(_) => return None,
    }
    Some(())
}

/// Where a name of the work folder is, for a server that begins in the user's home.
fn place(name: &str) -> PathBuf {
    if name == "." { WORK_DIR.into() } else { Path::new(WORK_DIR).join(name) }
}

fn odd() -> std::io::Error {
    std::io::ErrorKind::InvalidData.into()
}

/// What has this name; `None` when nothing has.
async fn kind(sftp: &Sftp, name: &str) -> Result<Option<FileType>, Error> {
    match sftp.fs().symlink_metadata(place(name)).await {
        Ok(facts) if facts.len().is_some_and(|len| len > FILE_BYTES_MAX) => Err(odd().into()),
        Ok(facts) => Ok(facts.file_type()),
        Err(Error::SftpError(SftpErrorKind::NoSuchFile, _)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names in a folder, with what they are.
async fn list(sftp: &Sftp, folder: &str) -> Result<Vec<(String, FileType)>, Error> {
    let mut entries = Box::pin(sftp.fs().open_dir(place(folder)).await?.read_dir());
    let mut found = Vec::new();
    while let Some(entry) = entries.next().await {
        let entry = entry?;
        let name = entry.filename().to_str().ok_or_else(odd)?;
        if matches!(name, "." | "..") {
            continue;
        }
        let large = entry.metadata().len().is_some_and(|len| len > FILE_BYTES_MAX);
        if large || found.len() > NAMES_MAX {
            return Err(odd().into());
        }
        let name = if folder == "." { name.to_owned() } else { format!("{folder}/{name}") };
        found.push((name, entry.file_type().ok_or_else(odd)?));
    }
    Ok(found)
}
