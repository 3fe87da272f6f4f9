//! A controller as a source of builds: it hands them out over HTTP, and this is its worker, or rather several.
//!
//! ```text
//!   lane, lane ..   each a worker of its own: asks, and has one job at a time
//!     errand        one job: bring (source, certificates, accepted) -> its build -> deliver
//!       beside      heartbeats, looks, measures, the worker's token; nothing of it hurts the build
//!       forward     the build's log
//!   client          the calls of both dialects; wire is their JSON, told* the texts, standing* what its words mean for us
//! ```
//!
//! Which job is which build, and whether its result was taken, is in the journal before anything depends on it. So a restart of
//! either side gives one result: ours goes on from the journal, and the controller is asked how a job stands before it is
//! claimed, and before its result is brought a second time.

mod beside;
mod board;
mod bring;
mod client;
mod deliver;
mod desk;
mod errand;
mod forward;
mod key;
mod lane;
mod standing;
mod told;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, join_all};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

pub use self::board::Board;
use self::client::Client;
use self::desk::Desk;
use self::lane::Lane;
use super::{Ends, Source, Sources};
use crate::api::service::Service;
use crate::config::Live;
use crate::host;
use crate::store::{Store, StoreError};
use crate::telemetry::controlling::{JobEnded, Outcome};
use crate::telemetry::events::Degraded;

/// The name of a machine that has none.
const NAMELESS: &str = "preheat";

/// Before a lane that broke is made anew: what broke it may be there still.
const LANE_PAUSE: Duration = Duration::from_secs(10);

/// What controllers are made from.
pub struct Parts {
    pub live: Live,
    pub service: Arc<dyn Service>,
    pub store: Store,
}

/// A controller that is asked for builds.
struct Controller(Arc<Desk>);

impl Source for Controller {
    fn settles(&self) -> bool {
        true
    }

    fn run(self: Box<Self>, ends: Ends) -> BoxFuture<'static, ()> {
        async move {
            join_all((0..self.0.config.lanes).map(|number| keep(self.0.clone(), number, ends.clone()))).await;
        }
        .boxed()
    }
}

/// A lane that breaks is made anew: what it had is in the journal.
async fn keep(desk: Arc<Desk>, number: u16, ends: Ends) {
    loop {
        let lane = Lane::new(desk.clone(), number).run(ends.clone());
        let Err(broken) = AbortOnDropHandle::new(tokio::spawn(lane)).await else { return };
        Degraded { what: "a controller's lane", error: broken.to_string() }.emit();
        if ends.over.run_until_cancelled(sleep(LANE_PAUSE)).await.is_none() {
            return;
        }
    }
}

/// Begins to ask every controller of the configuration, and says how we stand with each.
///
/// # Errors
/// When the journal cannot be read.
pub async fn begin(sources: &Sources, parts: Parts) -> Result<Vec<Board>, StoreError> {
    let config = parts.live.get();
    let lanes = config.controllers.iter().map(|c| (c.name.clone(), c.lanes)).collect();
    for job in parts.store.end_orphaned_jobs(lanes).await? {
        let why = "its controller, or its lane, is not in the configuration any more";
        let (controller, id) = (job.controller.as_str(), job.id.as_str());
        JobEnded { controller, job: id, build: job.build, outcome: Outcome::Orphaned, why }.emit();
    }
    let host = Some(host::name()).filter(|name| !name.is_empty()).unwrap_or_else(|| NAMELESS.into());
    let mut boards = Vec::new();
    for controller in &config.controllers {
        let board = Board::new(controller);
        let client = match Client::new(&controller.url, controller.api_key_file.clone(), board.clone()) {
            Ok(client) => client,
            Err(error) => {
                Degraded { what: "a controller", error }.emit();
                continue;
            }
        };
        let desk = Desk {
            config: controller.clone(),
            live: parts.live.clone(),
            client,
            board: board.clone(),
            service: parts.service.clone(),
            store: parts.store.clone(),
            host: host.clone(),
        };
        sources.begin(Box::new(Controller(Arc::new(desk))));
        boards.push(board);
    }
    Ok(boards)
}
