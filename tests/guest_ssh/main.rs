//! The channel against a real sshd of this host: started by each test on a loopback port of its own, as the current
//! user, with keys, configuration and home folder of its own. `openssh-server` must be installed.

#![expect(
    clippy::disallowed_methods,
    reason = "tests start an sshd, look at the process table and read the time"
)]

mod caches;
mod cuts;
mod health;
mod reach;
mod ready;
mod sshd;
mod steps;
mod trees;
