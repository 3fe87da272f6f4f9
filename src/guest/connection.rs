//! A connection into a guest with what stands by on it: a wrapper that waits for its script, a receiver that waits for the
//! source, and an SFTP server that waits to be asked for artifacts, so that none of them waits for a process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use openssh::ChildStderr;
use openssh_sftp_client::{Sftp, SftpOptions};
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::sync::DropGuard;

use super::master::{self, Master, Miss};
use super::wire::{Exec, Status, Wire, write};
use super::wrapper::{GO, LOGIN, READY, question, receive_command, wrapper_command};
use super::{Fresh, Target, fresh, transfer};
use crate::clock::{Deadline, now};
use crate::ids::RunId;
use crate::runtime::{Fault, Reason};

/// Waiting for a banner: the first dial's patience, and its limit as it grows by a quarter each time. A dial that is given
/// up costs a booting guest a process, so they are few.
const PATIENCE_MIN: Duration = Duration::from_millis(300);
const PATIENCE_MAX: Duration = Duration::from_secs(4);

/// Between two dials that were turned away at once; grows by a third each time.
const PAUSE_MIN: Duration = Duration::from_millis(40);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A refused key is believed when it was refused twice so far apart: sshd may be up before the user's keys are.
const DENIED_PAUSE: Duration = Duration::from_secs(2);

/// For the first command after the handshake.
const FIRST_COMMAND: Duration = Duration::from_secs(20);

/// A new standby is made when a step has had this long for itself: its fork is not to slow down the step's first output.
const STANDBY_DELAY: Duration = Duration::from_millis(300);

/// One attempt after the other until a full handshake and a command have been answered, or the deadline has passed. What is
/// `fresh` is the first thing that a resumed guest is given.
pub(super) async fn connect(
    target: &Target,
    fresh: Option<&Fresh>,
    deadline: Deadline,
) -> Result<Connection, Fault> {
    let (mut patience, mut pause) = (PATIENCE_MIN, PAUSE_MIN);
    let mut denied = false;
    let mut last = Fault::new(Reason::SshTimeout, "ssh connect", "no answer in time");
    while deadline.left() > Duration::ZERO {
        let again_after = match attempt(target, fresh, patience, deadline).await {
            Ok(connection) => return Ok(connection),
            Err(Miss::Hopeless(fault)) => return Err(fault),
            Err(Miss::Denied(text)) => {
                last = Fault::new(Reason::SshAuth, "ssh connect", text);
                if denied {
                    return Err(last);
                }
                denied = true;
                DENIED_PAUSE
            }
            Err(miss) => {
                denied = false;
                let (reason, text, quick) = match miss {
                    Miss::NoRoute(text) => (Reason::NoRoute, text, true),
                    Miss::Closed(text) => (Reason::SshTimeout, text, true),
                    Miss::Silent(text) | Miss::Denied(text) => (Reason::SshTimeout, text, false),
                    Miss::Hopeless(fault) => return Err(fault),
                };
                last = Fault::new(reason, "ssh connect", text);
                patience = (patience * 5 / 4).min(PATIENCE_MAX);
                if quick {
                    pause = (pause * 4 / 3).min(PAUSE_MAX);
                    pause
                } else {
                    Duration::ZERO
                }
            }
        };
        sleep(again_after.min(deadline.left())).await;
    }
    if last.reason == Reason::SshAuth {
        // Refused once only: that is not enough to blame the image.
        last.reason = Reason::SshTimeout;
    }
    Err(last)
}

/// One dial, and one command over it: the standby's greeting.
async fn attempt(
    target: &Target,
    fresh: Option<&Fresh>,
    patience: Duration,
    deadline: Deadline,
) -> Result<Connection, Miss> {
    let Master { session, lost, alive } = master::dial(target, patience, deadline).await?;
    let wire = Wire::new(session, lost);
    let limit = Deadline::after(FIRST_COMMAND).min(deadline);
    let id = RunId::new();
    let before = fresh.map_or("", |_| fresh::HAND_OVER);
    let command = wrapper_command(before, &id, &[]);
    let mut standby = wire.open(&command).await.map_err(|f| Miss::Closed(f.text))?;
    if let Some(fresh) = fresh {
        // It is taken once: another attempt would find nobody.
        fresh::give(&wire, &mut standby, fresh, deadline).await.map_err(Miss::Hopeless)?;
    }
    let Some(stderr) = standby.stderr.as_mut() else { return Err(Miss::Closed("no stderr".into())) };
    match timeout_at(limit.instant(), wire.or_lost(said(stderr, READY))).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return Err(Miss::Closed("the guest's /bin/sh does not run our wrapper".into())),
        Ok(Err(fault)) => return Err(Miss::Closed(fault.text)),
        Err(_) => return Err(Miss::Silent("a first command was not answered in time".into())),
    }
    // It is up by the time that a build has a source; nobody waits for it here.
    let receiver = wire.open(&receive_command()).await.map_err(|f| Miss::Closed(f.text))?;
    let standby = Mutex::new(Some(Standby { id, exec: standby, logged_in: false }));
    Ok(Connection {
        wire,
        standby,
        receiver: Mutex::new(Some(Receiver { exec: receiver, going: false })),
        ready: AtomicBool::new(false),
        sftp: Mutex::default(),
        over: Mutex::default(),
        _alive: alive,
    })
}

/// Reads until `words` have come; `false` when the stream ends before.
async fn said(stream: &mut ChildStderr, words: &[u8]) -> bool {
    let mut seen = Vec::new();
    let mut piece = [0; 512];
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        seen.extend_from_slice(&piece[..n]);
        if seen.windows(words.len()).any(|w| w == words) {
            return true;
        }
        // Chatter of a profile, however much of it.
        seen.drain(..seen.len().saturating_sub(words.len()));
    }
    false
}

/// An open connection into one guest. Dropped, it is closed.
#[derive(Debug)]
pub(super) struct Connection {
    pub wire: Wire,
    /// A wrapper that is up and waits for its script. Closed, it goes.
    standby: Mutex<Option<Standby>>,
    /// A shell, or already its tar, that is up and waits for the source.
    receiver: Mutex<Option<Receiver>>,
    /// Nothing of the user's runs before the next script: whatever stands by is to be as far as it gets.
    ready: AtomicBool,
    /// An SFTP server that was asked nothing yet.
    sftp: Mutex<Option<Sftp>>,
    /// Runs that were followed to their ends over it.
    over: Mutex<Vec<RunId>>,
    _alive: DropGuard,
}

/// A wrapper that waits, and the name of the run that it will be.
#[derive(Debug)]
struct Standby {
    id: RunId,
    exec: Exec,
    logged_in: bool,
}

/// What waits for the source.
#[derive(Debug)]
pub(super) struct Receiver {
    pub exec: Exec,
    /// Its tar was started: what it reads from now on is the archive.
    pub going: bool,
}

impl Connection {
    fn standby(&self) -> MutexGuard<'_, Option<Standby>> {
        self.standby.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the run that a wrapper waits for.
    pub(super) fn reserved(&self) -> Option<RunId> {
        self.standby().as_ref().map(|standby| standby.id.clone())
    }

    /// A wrapper for the run `id`: the one that stands by, if it has that name.
    pub(super) async fn wrapper(self: &Arc<Self>, id: &RunId) -> Result<Exec, Fault> {
        self.ready.store(false, Ordering::Relaxed);
        let standby = self.standby().take_if(|standby| standby.id == *id);
        if let Some(standby) = standby {
            self.restock();
            return Ok(standby.exec);
        }
        self.wire.open(&wrapper_command("", id, &[])).await
    }

    /// What waits for the source, once.
    pub(super) fn take_receiver(&self) -> Option<Receiver> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The SFTP server that stands by, once.
    pub(super) fn take_sftp(&self) -> Option<Sftp> {
        self.sftp.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Starts what a claim would have to wait for. Nothing of the user's may run until its step: it could change the
    /// profile, which the login shell has read then, and the folder, in which the tar is.
    pub(super) async fn make_ready(self: &Arc<Self>) {
        // One that is still to come, after a warm-up, is told when it comes.
        self.ready.store(true, Ordering::Relaxed);
        let standby = self.standby().take_if(|standby| !standby.logged_in);
        if let Some(mut standby) = standby {
            standby.logged_in = told(&mut standby.exec, LOGIN).await;
            self.standby().get_or_insert(standby);
        }
        let receiver = self.take_receiver();
        if let Some(mut receiver) = receiver {
            receiver.going = receiver.going || told(&mut receiver.exec, GO).await;
            self.receiver.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(receiver);
        }
        let connection = Arc::downgrade(self);
        tokio::spawn(async move {
            let Some(wire) = connection.upgrade().map(|connection| connection.wire.clone()) else { return };
            let opened = wire.or_lost(Sftp::from_clonable_session(wire.session(), SftpOptions::default()));
            if let (Ok(Ok(sftp)), Some(connection)) = (opened.await, connection.upgrade()) {
                connection.sftp.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(sftp);
            }
        });
    }

    /// Notes that the run `id` was followed to its end.
    pub(super) fn note_over(&self, id: &RunId) {
        self.over.lock().unwrap_or_else(PoisonError::into_inner).push(id.clone());
    }

    /// Makes a new standby a little later, if the connection still lives then.
    fn restock(self: &Arc<Self>) {
        // Another run begins, so nobody will ask for the ones before it again.
        let over = std::mem::take(&mut *self.over.lock().unwrap_or_else(PoisonError::into_inner));
        let connection: Weak<Self> = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep(STANDBY_DELAY).await;
            let Some(connection) = connection.upgrade() else { return };
            if connection.standby().is_some() {
                return;
            }
            let id = RunId::new();
            if let Ok(mut exec) = connection.wire.open(&wrapper_command("", &id, &over)).await {
                let ready = connection.ready.load(Ordering::Relaxed);
                let logged_in = ready && told(&mut exec, LOGIN).await;
                connection.standby().get_or_insert(Standby { id, exec, logged_in });
            }
        });
    }

    /// Asks the standby; one that is dead, which its step may have done to it, is no word of the guest.
    pub(super) async fn greet(&self, limit: Duration) -> Result<(), Fault> {
        let limit = Deadline::after(limit);
        let standby = self.standby().take();
        if let Some(mut standby) = standby {
            let answered = timeout_at(limit.instant(), self.wire.or_lost(asked(&mut standby.exec))).await;
            match answered.map_err(|_| failed("the waiting shell did not answer in time"))?? {
                true => {
                    self.standby().get_or_insert(standby);
                    return Ok(());
                }
                false => drop(standby),
            }
        }
        self.probe(limit.left()).await
    }

    pub(super) async fn probe(&self, limit: Duration) -> Result<(), Fault> {
        let begun = now();
        let answered = timeout(limit, async {
            let _turn = self.wire.take_turn().await;
            let nonce = uuid::Uuid::new_v4().simple().to_string();
            // `echo` is in every shell: one fork for the guest, no program.
            let mut exec = self.wire.open(&format!("echo {nonce}")).await?;
            let answer = transfer::read_all(&self.wire, &mut exec).await?;
            match exec.wait().await {
                Status::Code(0) if answer.out.contains(&nonce) => Ok(()),
                status @ (Status::Code(_) | Status::Killed) => {
                    Err(failed(&format!("a command came back with {status:?} and {:?}", answer.err)))
                }
            }
        });
        answered.await.unwrap_or_else(|_| Err(failed(&format!("no answer within {:?}", begun.elapsed()))))
    }
}

fn failed(text: &str) -> Fault {
    Fault::new(Reason::ProbeFailed, "probe", text)
}

/// Whether what stands by took a word. One that is dead shows when it is needed.
async fn told(exec: &mut Exec, word: &[u8]) -> bool {
    match exec.stdin.as_mut() {
        Some(stdin) => write(stdin, word).await.is_ok(),
        None => false,
    }
}

/// Whether a waiting wrapper answers.
async fn asked(standby: &mut Exec) -> bool {
    let (Some(stdin), Some(stderr)) = (standby.stdin.as_mut(), standby.stderr.as_mut()) else { return false };
    let (question, answer) = question(&uuid::Uuid::new_v4().simple().to_string());
    write(stdin, &question).await.is_ok() && said(stderr, &answer).await
}
