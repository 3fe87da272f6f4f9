//! The uploader: reads what is owed from the outbox, delivers what is due, a few at a time, and writes down what arrived.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio_util::task::AbortOnDropHandle;

use super::sink::Courier;
use crate::build::actor::artifacts_path;
use crate::clock::{self, UnixMillis};
use crate::config::Live;
use crate::jitter;
use crate::store::{Delivery, Store, StoreError};
use crate::telemetry::events::{BuildPhaseEnded, Degraded, UploadTried, UploadsPending};
use crate::trace::chronicle::Chronicle;

/// Deliveries at a time: a slow sink must not starve the others, and the disk is shared with builds.
const AT_ONCE_MAX: usize = 4;
/// The outbox is read at least this often.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The pause after the first failed attempt; it doubles.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
/// And is not longer than this.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// What the uploader hears.
pub enum UploadMessage {
    /// There may be something to do.
    Look,
    /// What the outbox held, and after how many attempts it was asked.
    Owed(u64, Vec<Delivery>),
    Tried(i64),
    /// Answered when everything that is due was tried.
    Settle(RpcReplyPort<()>),
}

/// What the uploader is made from.
#[derive(Clone)]
pub struct UploadArguments {
    pub config: Live,
    pub store: Store,
    pub courier: Arc<dyn Courier>,
    pub chronicle: Chronicle,
}

/// The actor. Its state is in [`Outgoing`].
pub struct Uploader;

/// What the uploader knows.
pub struct Outgoing {
    args: UploadArguments,
    under_way: HashMap<i64, AbortOnDropHandle<()>>,
    /// Attempts that are over.
    tried: u64,
    reading: Option<AbortOnDropHandle<()>>,
    timer: Option<AbortOnDropHandle<()>>,
    /// Somebody asked to look while a look was under way.
    again: bool,
    /// Who waits until everything that is due was tried.
    settling: Vec<RpcReplyPort<()>>,
}

impl Actor for Uploader {
    type Msg = UploadMessage;
    type State = Outgoing;
    type Arguments = UploadArguments;

    async fn pre_start(
        &self,
        me: ActorRef<UploadMessage>,
        args: UploadArguments,
    ) -> Result<Outgoing, ActorProcessingErr> {
        me.cast(UploadMessage::Look)?;
        Ok(Outgoing {
            args,
            under_way: HashMap::new(),
            tried: 0,
            reading: None,
            timer: None,
            again: false,
            settling: Vec::new(),
        })
    }

    async fn handle(
        &self,
        me: ActorRef<UploadMessage>,
        message: UploadMessage,
        outgoing: &mut Outgoing,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            UploadMessage::Look => outgoing.look(&me),
            UploadMessage::Owed(tried, owed) => {
                outgoing.reading = None;
                // What has arrived meanwhile may stand in it still, and would be delivered twice.
                let stale = tried != outgoing.tried;
                if !stale {
                    outgoing.owed(&me, owed);
                }
                if std::mem::take(&mut outgoing.again) || stale {
                    outgoing.look(&me);
                }
            }
            UploadMessage::Tried(id) => {
                outgoing.tried += 1;
                outgoing.under_way.remove(&id);
                outgoing.look(&me);
            }
            UploadMessage::Settle(reply) => {
                outgoing.settling.push(reply);
                outgoing.look(&me);
            }
        }
        outgoing.settle();
        Ok(())
    }
}

/// Spawns the uploader under `supervisor`.
///
/// # Errors
/// When the actor system refuses.
pub async fn spawn(
    arguments: UploadArguments,
    supervisor: ActorCell,
) -> Result<ActorRef<UploadMessage>, ractor::SpawnErr> {
    Ok(Uploader::spawn_linked(None, Uploader, arguments, supervisor).await?.0)
}

impl Outgoing {
    fn look(&mut self, me: &ActorRef<UploadMessage>) {
        if self.args.config.get().uploads.is_empty() {
            return;
        }
        if self.reading.is_some() {
            self.again = true;
            return;
        }
        let (store, me, tried) = (self.args.store.clone(), me.clone(), self.tried);
        self.reading = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let owed = store.owed().await.unwrap_or_else(|error| {
                Degraded { what: "outbox", error: error.to_string() }.emit();
                Vec::new()
            });
            me.cast(UploadMessage::Owed(tried, owed)).ok();
        })));
    }

    /// After each delivery the outbox is read again: when that has begun nothing, nothing is due.
    fn settle(&mut self) {
        if self.reading.is_none() && self.under_way.is_empty() {
            for reply in self.settling.drain(..) {
                reply.send(()).ok();
            }
        }
    }

    fn owed(&mut self, me: &ActorRef<UploadMessage>, owed: Vec<Delivery>) {
        let now = UnixMillis::now();
        for upload in &self.args.config.get().uploads {
            let pending = owed.iter().filter(|d| d.sink == upload.name).count() as u64;
            UploadsPending { sink: &upload.name, pending }.emit();
        }
        let mut next = LOOK_EVERY;
        for delivery in owed {
            if let Some(wait) = wait(delivery.next_ms, now) {
                next = next.min(wait);
            } else if self.under_way.len() < AT_ONCE_MAX && !self.under_way.contains_key(&delivery.id) {
                self.begin(me, delivery);
            }
        }
        let me = me.clone();
        self.timer = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(next).await;
            me.cast(UploadMessage::Look).ok();
        })));
    }

    fn begin(&mut self, me: &ActorRef<UploadMessage>, delivery: Delivery) {
        let (args, me, id) = (self.args.clone(), me.clone(), delivery.id);
        let task = tokio::spawn(async move {
            if let Err(error) = attempt(&args, &delivery).await {
                Degraded { what: "outbox", error: error.to_string() }.emit();
            }
            me.cast(UploadMessage::Tried(delivery.id)).ok();
        });
        self.under_way.insert(id, AbortOnDropHandle::new(task));
    }
}

/// How long until then; `None` when it is due. The outbox keeps wall-clock times: one that lies further ahead than any pause
/// was written before the clock was set back.
fn wait(due: UnixMillis, now: UnixMillis) -> Option<Duration> {
    let wait = due.since(now);
    (!wait.is_zero() && wait <= PAUSE_MAX).then_some(wait)
}

async fn attempt(args: &UploadArguments, delivery: &Delivery) -> Result<(), StoreError> {
    let config = args.config.get();
    let sink = config.uploads.iter().find(|upload| upload.name == delivery.sink);
    let (Some(upload), Some(record)) = (sink, args.store.build(delivery.build).await?) else {
        // The sink was taken out of the configuration, or the build out of the journal: nothing is owed any more.
        return args.store.delivered(delivery.id).await;
    };
    let artifacts = artifacts_path(&config, delivery.build);
    let began = clock::now();
    let delivered = args.courier.deliver(upload, &record.view(None), &artifacts).await;
    let error = delivered.err().map(|e| e.to_string());
    if error.is_none() {
        BuildPhaseEnded { build: delivery.build, phase: "upload", step: None, took: began.elapsed() }.emit();
    }
    let attempt = delivery.attempts + 1;
    args.chronicle.upload(delivery.build, &upload.name, attempt, began, error.as_deref());
    UploadTried { build: delivery.build, sink: &upload.name, error: error.clone(), attempt }.emit();
    match error {
        None => args.store.delivered(delivery.id).await,
        Some(error) => {
            // With jitter: what a sink's failure held up must not come back all at once.
            let pause = jitter::backoff(PAUSE_FIRST, PAUSE_MAX, attempt, jitter::next());
            let millis = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
            let next = UnixMillis(UnixMillis::now().0.saturating_add(millis));
            args.store.not_delivered(delivery.id, next, error).await
        }
    }
}
