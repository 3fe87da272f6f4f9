//! The port to whatever runs VMs: Tart's verbs, and no more. `tart` drives Tart's command line, `sim` is the same in
//! memory under virtual time. Nothing above this folder knows a hypervisor.

pub mod command;
pub mod fault;
pub mod lock_owner;
pub mod sim;
pub mod tart;
pub mod verb;
pub mod vm_name;

use std::net::IpAddr;

use futures::future::BoxFuture;

use crate::clock::Deadline;
use crate::config::Network;
pub use fault::{Fault, FaultKind, Reason};
pub use verb::Verb;
pub use vm_name::{Parsed, VmName};

/// What a clone is set to before its first start. `None` keeps the image's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    pub cpus: Option<u16>,
    /// In MiB, Tart's unit.
    pub memory_mib: Option<u64>,
    /// In GB (10^9 bytes), Tart's unit. A disk only grows.
    pub disk_gb: Option<u64>,
    /// A serial number of its own: two running macOS guests with one are undefined behaviour, and Apple's asset
    /// downloads fail in a clone that shares its image's.
    pub fresh_serial: bool,
    /// A network address of its own, whatever the image's is: what is resumed from its saved state will keep it.
    pub fresh_mac: bool,
}

/// How a VM is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    pub network: Network,
    /// With devices whose state can be saved. A saved state is restored only under the options it was saved under.
    pub suspendable: bool,
    /// Further arguments of `tart run`, as the operator wrote them.
    pub extra_args: Vec<String>,
}

/// The guest's operating system, which decides whether Apple's limit of two counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestOs {
    Darwin,
    Linux,
}

/// What an image says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    pub os: GuestOs,
    pub cpus: u16,
    pub memory_mib: u64,
    /// Changes with the image's content, with the runtime's version and with the host's system: with each of them a state
    /// that was saved before is worth nothing.
    pub identity: String,
}

/// A VM's state as the runtime lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListedState {
    Running,
    Suspended,
    Stopped,
}

/// One row of the runtime's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name as the runtime has it: ours or anybody's.
    pub name: String,
    pub state: ListedState,
}

/// A started VM's process. Dropping it does not end the VM: only [`Runtime::stop`] or [`RunProcess::kill`] does, and the
/// janitor for what a crash leaves.
pub trait RunProcess: Send {
    /// Waits for the process to end by itself, and says why it did: nobody asked it to, so that is a fault. May be dropped
    /// and called again.
    fn ended(&mut self) -> BoxFuture<'_, Fault>;

    /// Ends the guest at once, without a word to it, and waits for its process to be gone.
    fn kill(&mut self, deadline: Deadline) -> BoxFuture<'_, Result<(), Fault>>;

    /// The process that owns the guest, where there is one.
    fn pid(&self) -> Option<u32>;
}

/// The verbs. Each has its own deadline inside; every error says which verb failed and how.
pub trait Runtime: Send + Sync + 'static {
    /// Clones `image` to `vm`. A clone takes no slot. That of a suspended VM is suspended, and has its network address.
    fn clone_image<'a>(&'a self, image: &'a str, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>>;

    /// Sets the shape of a clone that never ran.
    fn configure<'a>(&'a self, vm: &'a VmName, shape: &'a Shape) -> BoxFuture<'a, Result<(), Fault>>;

    /// Starts a VM and returns as soon as its process runs.
    fn start<'a>(
        &'a self,
        vm: &'a VmName,
        options: &'a RunOptions,
    ) -> BoxFuture<'a, Result<Box<dyn RunProcess>, Fault>>;

    /// Takes up a VM that an earlier process started: whoever holds its lock is its process. `None` when it does not run.
    fn adopt<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<Option<Box<dyn RunProcess>>, Fault>>;

    /// The address at which the guest can be reached, once it has one.
    fn address<'a>(
        &'a self,
        vm: &'a VmName,
        network: &'a Network,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<IpAddr, Fault>>;

    /// Waits until a VM that was started says that it goes on from its saved state.
    ///
    /// A fault of [`Reason::StateLost`] when it boots instead: the runtime does not call that a failure.
    fn restored<'a>(&'a self, vm: &'a VmName, deadline: Deadline) -> BoxFuture<'a, Result<(), Fault>>;

    /// Asks a running VM to save its state and end. Its process ends soon after: with [`Reason::Suspended`] when it did,
    /// and with any other when it died of it.
    fn suspend<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>>;

    /// How the runtime lists one VM.
    fn state<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<ListedState, Fault>>;

    /// Stops a VM that somebody else started (an orphan): a power cut.
    fn stop<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>>;

    /// Deletes a stopped VM. A VM that is gone already is no fault.
    fn delete<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(), Fault>>;

    /// Every local VM, ours and others'.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, Fault>>;

    /// What an image says of itself.
    fn image<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<ImageInfo, Fault>>;

    /// Removes images that were pulled and that nothing was cloned from for so many days. Local VMs are not touched.
    fn prune_images(&self, days: u64) -> BoxFuture<'_, Result<(), Fault>>;

    /// The program's version, for `doctor` and the log.
    fn version(&self) -> BoxFuture<'_, Result<String, Fault>>;
}
