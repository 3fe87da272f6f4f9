//! Whatever failed, whatever was killed and whenever clocks were set: each build has a trace that is whole.

use std::sync::Arc;

use preheat::api::service::Service;

use crate::world::World;

/// More builds than any seed has.
const BUILDS_MAX: u32 = 500;

/// Looks at the trace of every build.
pub async fn are_whole(world: &World, service: &Arc<dyn Service>) {
    let builds = match service.builds(BUILDS_MAX).await {
        Ok(builds) => builds,
        Err(refused) => return world.lock().violation(format!("builds are not listed: {refused}")),
    };
    for build in builds {
        let whole = match service.trace(build.id).await {
            Ok(trace) => trace.audit(),
            Err(refused) => Err(refused.to_string()),
        };
        if let Err(why) = whole {
            world.lock().violation(format!("the trace of build {}: {why}", build.id));
        }
    }
}
