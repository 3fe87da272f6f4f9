//! How a VM goes: its guest dies first and at once, which frees the slot; then its files go. What cannot be proven gone is
//! reported, never assumed.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Deadline;
use crate::runtime::{Fault, Reason, RunProcess, Runtime, VmName};

/// Pauses before each try to delete: a verb that fails once may fail because a sibling holds Tart's lock.
const DELETE_PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(5)];

/// Starting a process takes milliseconds; one that hangs there is not waited for when it is to go.
const START_ENDS: Duration = Duration::from_secs(5);
/// From a task's report to what its actor does about it.
const REPORT_ARRIVES: Duration = Duration::from_secs(5);

/// The owner of a guest's process: it says when the process ends, and ends it when it is asked to.
pub struct Watch {
    kill: mpsc::Sender<(Deadline, oneshot::Sender<Result<(), Fault>>)>,
}

impl Watch {
    /// Owns `process`; `ended` is called once if it ends unasked.
    pub fn new(mut process: Box<dyn RunProcess>, ended: impl FnOnce(Fault) + Send + 'static) -> Self {
        let (kill, mut asked) = mpsc::channel::<(Deadline, oneshot::Sender<Result<(), Fault>>)>(1);
        tokio::spawn(async move {
            let unasked = tokio::select! {
                biased;
                request = asked.recv() => Err(request),
                end = process.ended() => Ok(end),
            };
            match unasked {
                Ok(end) => {
                    ended(end);
                    // Whoever asks from now on hears that it is dead.
                    while let Some((_, reply)) = asked.recv().await {
                        reply.send(Ok(())).ok();
                    }
                }
                Err(Some((deadline, reply))) => {
                    reply.send(process.kill(deadline).await).ok();
                }
                Err(None) => {}
            }
        });
        Self { kill }
    }

    /// Ends the guest and waits until its process is gone.
    ///
    /// # Errors
    /// When the process could not be ended before the deadline.
    pub async fn kill(&self, deadline: Deadline) -> Result<(), Fault> {
        let (reply, answer) = oneshot::channel();
        let stuck = |text: &str| Fault::new(Reason::VerbTimeout, "kill the guest", text);
        self.kill.send((deadline, reply)).await.map_err(|_| stuck("its owner is gone"))?;
        match timeout(deadline.left(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(stuck("its owner is gone")),
            Err(_) => Err(stuck("it did not end in time")),
        }
    }
}

/// The process that `starting` started, if it did: its report goes by way of the VM's actor. One that does not come to an end
/// in time is aborted, and its process, should there be one, is left to the runtime's `stop`.
pub async fn started(
    starting: AbortOnDropHandle<()>,
    late: oneshot::Receiver<Watch>,
    deadline: Deadline,
) -> Option<Watch> {
    timeout(START_ENDS.min(deadline.left()), starting).await.ok()?.ok()?;
    timeout(REPORT_ARRIVES.min(deadline.left()), late).await.ok()?.ok()
}

/// Ends the guest: through its owner, else through the runtime, which finds the process by its lock.
///
/// # Errors
/// When the guest may still be alive.
pub async fn end_guest(
    runtime: &dyn Runtime,
    vm: &VmName,
    watch: Option<Watch>,
    deadline: Deadline,
) -> Result<(), Fault> {
    let ended = match watch {
        Some(watch) => watch.kill(deadline).await,
        None => Err(Fault::new(Reason::NotRunning, "kill the guest", "nobody owns it")),
    };
    match ended {
        Ok(()) => Ok(()),
        Err(_) => bounded(deadline, "tart stop", runtime.stop(vm)).await,
    }
}

/// Deletes the VM's files.
///
/// # Errors
/// The last fault, when they may still be there.
pub async fn delete(runtime: &dyn Runtime, vm: &VmName, deadline: Deadline) -> Result<(), Fault> {
    let mut last = Fault::new(Reason::VerbTimeout, "tart delete", "there was no time left for it");
    for pause in DELETE_PAUSES {
        sleep(pause.min(deadline.left())).await;
        match bounded(deadline, "tart delete", runtime.delete(vm)).await {
            Ok(()) => return Ok(()),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

async fn bounded(
    deadline: Deadline,
    what: &str,
    verb: impl Future<Output = Result<(), Fault>>,
) -> Result<(), Fault> {
    let late = || Fault::new(Reason::VerbTimeout, what, "removal's time was over");
    timeout(deadline.left(), verb).await.unwrap_or_else(|_| Err(late()))
}
