//! The world's sinks. Each result that arrives is kept, and must be the one that arrived before.

use std::path::Path;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use preheat::api::wire::BuildView;
use preheat::config::Upload;
use preheat::runtime::{Fault, Reason};
use preheat::upload::sink::{Courier, SinkError};

use crate::host::Host;
use crate::step::Step;
use crate::world::{Inner, Received};

/// As the real one's for one file.
const LIMIT: Duration = Duration::from_secs(300);

impl Courier for Host {
    fn deliver<'a>(
        &'a self,
        upload: &'a Upload,
        build: &'a BuildView,
        artifacts: &'a Path,
    ) -> BoxFuture<'a, Result<(), SinkError>> {
        async move {
            let name = format!("{} to {}", build.id, upload.name);
            let receive = |world: &mut Inner| receive(world, upload, build, artifacts);
            let done = self.world.act(Step::Deliver, &name, LIMIT, receive).await;
            let mut world = self.world.lock();
            let life = world.life;
            if let (Ok(()), Some(received)) =
                (&done, world.received.get_mut(&(upload.name.clone(), build.id)))
            {
                received.answered_in = Some(life);
            }
            done.map_err(|fault| SinkError::Http(fault.to_string()))
        }
        .boxed()
    }
}

fn receive(world: &mut Inner, upload: &Upload, build: &BuildView, artifacts: &Path) -> Result<(), Fault> {
    if world.now() < world.sinks_down_until {
        return Err(Fault::new(Reason::NoRoute, "simulated sink", "it is down"));
    }
    let mut text = serde_json::to_string(build).expect("JSON");
    for artifact in &build.artifacts {
        let content = std::fs::read_to_string(artifacts.join(&artifact.path));
        text.push_str(&content.unwrap_or_else(|error| format!("BROKEN {error}")));
    }
    if text.contains("BROKEN") {
        world.violation(format!("an artifact of build {} is gone: {text}", build.id));
    }
    let key = (upload.name.clone(), build.id);
    let life = world.life;
    match world.received.get(&key).cloned() {
        None => {
            world.received.insert(key, Received { text, answered_in: None });
        }
        Some(before) if before.text != text => {
            world.violation(format!("{key:?} got two results: {} and {text}", before.text));
        }
        Some(before) if before.answered_in == Some(life) => {
            world.violation(format!("{key:?} got what it has, after it said so to the same daemon"));
        }
        Some(_) => {}
    }
    Ok(())
}
