//! Many VMs, and who gets which. `ledger` is the books, `policy` reads them and says the next thing to do, `admission` says
//! what a build waits for; `trouble` how long a pool waits after failures, `breaker` the host, and `limit` what is left of
//! macOS's slots, `baking` when a VM is suspended for others to resume from, `gap` how long slots stand empty, `trial` whether an image
//! ever came up: all of them are pure. `actor` performs; `recipe` is what a VM is
//! made from.

pub mod actor;
pub mod admission;
pub mod baking;
pub mod breaker;
pub mod follow;
pub mod gap;
pub mod handle;
pub mod ledger;
pub mod limit;
pub mod needs;
pub mod policy;
pub mod recipe;
pub mod snapshot;
pub mod trial;
pub mod trouble;
