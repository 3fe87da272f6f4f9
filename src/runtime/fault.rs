//! What can go wrong below a VM, in four kinds: the kind decides what it costs, the reason is the word that the log,
//! the metric's label and the API share.

use serde::Serialize;

/// What a fault costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// Tried again, under the restart intensity of its pool.
    Transient,
    /// Costs that VM.
    Guest,
    /// Stops the pool of that image, but for a slow probe.
    Image,
    /// Stops every pool, but for a slow probe.
    Host,
}

/// Why: a closed list, because it is a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A verb did not end within its deadline and was killed with its process group.
    VerbTimeout,
    /// A verb failed with a text that no other reason knows.
    VerbFailed,
    /// The runtime's program is not there or cannot be started.
    ProgramMissing,
    /// The image is not there.
    ImageMissing,
    /// The image cannot be used: its configuration does not parse, or a shape is out of its bounds.
    ImageUnusable,
    /// The VM is not there.
    VmMissing,
    /// The VM runs already.
    AlreadyRunning,
    /// The VM is not running.
    NotRunning,
    /// The host refuses one more macOS guest.
    SystemLimit,
    /// The disk is full.
    DiskFull,
    /// No login session or a locked keychain: macOS guests cannot start.
    HostKey,
    /// Softnet is missing or has no right to run.
    Softnet,
    /// A saved state could not be restored.
    RestoreRefused,
    /// The guest got no address in time.
    NoAddress,
    /// The guest crashed or powered itself off.
    GuestStopped,
    /// Nobody answered on the guest's SSH port in time.
    SshTimeout,
    /// The guest refused our key.
    SshAuth,
    /// The host has no route to the guest (on macOS: Local Network privacy).
    NoRoute,
    /// The connection to the guest broke or went silent.
    ConnectionLost,
    /// The guest's warm-up script failed.
    WarmupFailed,
    /// The guest did not answer a probe.
    ProbeFailed,
}

impl Reason {
    /// Every reason, for metrics that start at zero.
    pub const ALL: [Self; 21] = [
        Self::VerbTimeout,
        Self::VerbFailed,
        Self::ProgramMissing,
        Self::ImageMissing,
        Self::ImageUnusable,
        Self::VmMissing,
        Self::AlreadyRunning,
        Self::NotRunning,
        Self::SystemLimit,
        Self::DiskFull,
        Self::HostKey,
        Self::Softnet,
        Self::RestoreRefused,
        Self::NoAddress,
        Self::GuestStopped,
        Self::SshTimeout,
        Self::SshAuth,
        Self::NoRoute,
        Self::ConnectionLost,
        Self::WarmupFailed,
        Self::ProbeFailed,
    ];

    /// The word for labels and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VerbTimeout => "verb_timeout",
            Self::VerbFailed => "verb_failed",
            Self::ProgramMissing => "program_missing",
            Self::ImageMissing => "image_missing",
            Self::ImageUnusable => "image_unusable",
            Self::VmMissing => "vm_missing",
            Self::AlreadyRunning => "already_running",
            Self::NotRunning => "not_running",
            Self::SystemLimit => "system_limit",
            Self::DiskFull => "disk_full",
            Self::HostKey => "host_key",
            Self::Softnet => "softnet",
            Self::RestoreRefused => "restore_refused",
            Self::NoAddress => "no_address",
            Self::GuestStopped => "guest_stopped",
            Self::SshTimeout => "ssh_timeout",
            Self::SshAuth => "ssh_auth",
            Self::NoRoute => "no_route",
            Self::ConnectionLost => "connection_lost",
            Self::WarmupFailed => "warmup_failed",
            Self::ProbeFailed => "probe_failed",
        }
    }

    /// What a fault of this reason costs.
    pub fn kind(self) -> FaultKind {
        match self {
            Self::VerbTimeout | Self::VerbFailed => FaultKind::Transient,
            Self::VmMissing
            | Self::AlreadyRunning
            | Self::NotRunning
            | Self::RestoreRefused
            | Self::GuestStopped
            | Self::SshTimeout
            | Self::ConnectionLost
            | Self::ProbeFailed => FaultKind::Guest,
            Self::ImageMissing | Self::ImageUnusable | Self::SshAuth | Self::WarmupFailed => FaultKind::Image,
            Self::ProgramMissing
            | Self::SystemLimit
            | Self::DiskFull
            | Self::HostKey
            | Self::Softnet
            | Self::NoAddress
            | Self::NoRoute => FaultKind::Host,
        }
    }

    /// What an operator can do about it, where something can be done.
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::ProgramMissing => Some(
                "install Tart (`brew install openai/tools/tart`), or set `runtime.program`; `preheat doctor` checks it",
            ),
            Self::ImageMissing => Some(
                "pull or build the image into the pool's own TART_HOME (vm-setup/linux-guest or vm-setup/mac-image), or correct `image`",
            ),
            Self::ImageUnusable => {
                Some("`tart get IMAGE` shows the image's bounds; correct the pool's cpu, memory or disk")
            }
            Self::SystemLimit => Some(
                "macOS runs two macOS guests at a time: stop the other VMs; if none runs, a slot has leaked: reboot, or kill com.apple.Virtualization.VirtualMachine",
            ),
            Self::DiskFull => Some("free disk space; `preheat doctor` shows what the pool uses"),
            Self::HostKey => Some(
                "log in on the Mac's screen (an Aqua session with an unlocked login keychain), then try again",
            ),
            Self::Softnet => {
                Some("install softnet and give it its right to run (`vm-setup/mac-host --sudo`)")
            }
            Self::NoAddress => Some(
                "the host's DHCP may be out of addresses: set a lease time of 600 s (`vm-setup/mac-host` does)",
            ),
            Self::SshAuth => Some(
                "the image does not accept the pool's key for `user`: rebuild the image, or correct `key` and `user`",
            ),
            Self::NoRoute => Some("allow Local Network access for preheat in the Mac's privacy settings"),
            Self::WarmupFailed => Some("run the pool's `warmup` by hand in a VM of this image"),
            Self::VerbTimeout
            | Self::VerbFailed
            | Self::VmMissing
            | Self::AlreadyRunning
            | Self::NotRunning
            | Self::RestoreRefused
            | Self::GuestStopped
            | Self::SshTimeout
            | Self::ConnectionLost
            | Self::ProbeFailed => None,
        }
    }
}

/// A fault: a reason, and the words of whoever reported it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {text}")]
pub struct Fault {
    pub reason: Reason,
    /// What was being done, as `tart clone` or `ssh connect`.
    pub what: String,
    /// What came back: the last lines of stderr, an errno's text.
    pub text: String,
}

impl Fault {
    /// A fault of `reason` while doing `what`.
    pub fn new(reason: Reason, what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { reason, what: what.into(), text: text.into() }
    }

    /// What it costs.
    pub fn kind(&self) -> FaultKind {
        self.reason.kind()
    }
}
