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
    /// Stops the pool of that image and its settings, but for a slow probe.
    Image,
    /// The host's: it concerns every pool, and one slow probe stands for all of them.
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
    /// The VM runs: it cannot be started again, or deleted.
    AlreadyRunning,
    /// The VM is not running.
    NotRunning,
    /// macOS refuses one more macOS guest, and others' VMs or ours hold every place.
    SystemLimit,
    /// macOS refuses one more macOS guest although fewer run than it allows.
    SlotLeaked,
    /// The disk is full.
    DiskFull,
    /// The VM runtime does not know an argument.
    BadArguments,
    /// No login session or a locked keychain: macOS guests cannot start.
    HostKey,
    /// Softnet is missing or has no right to run.
    Softnet,
    /// A saved state could not be restored.
    RestoreRefused,
    /// A saved state is gone: the guest booted instead.
    StateLost,
    /// The guest saved its state and ended. Unasked, somebody else asked for it.
    Suspended,
    /// The guest's state could not be saved.
    SuspendFailed,
    /// A resumed guest could not be given a clock, randomness and host keys of its own.
    NotFresh,
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
    /// Source or artifacts did not get through: `tar` or SFTP in the guest failed, or was too slow.
    TransferFailed,
    /// The guest's own disk is full.
    GuestDiskFull,
}

impl Reason {
    /// Every reason, for metrics that start at zero.
    pub const ALL: [Self; 29] = [
        Self::VerbTimeout,
        Self::VerbFailed,
        Self::ProgramMissing,
        Self::ImageMissing,
        Self::ImageUnusable,
        Self::VmMissing,
        Self::AlreadyRunning,
        Self::NotRunning,
        Self::SystemLimit,
        Self::SlotLeaked,
        Self::DiskFull,
        Self::BadArguments,
        Self::HostKey,
        Self::Softnet,
        Self::RestoreRefused,
        Self::StateLost,
        Self::Suspended,
        Self::SuspendFailed,
        Self::NotFresh,
        Self::NoAddress,
        Self::GuestStopped,
        Self::SshTimeout,
        Self::SshAuth,
        Self::NoRoute,
        Self::ConnectionLost,
        Self::WarmupFailed,
        Self::ProbeFailed,
        Self::TransferFailed,
        Self::GuestDiskFull,
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
            Self::SlotLeaked => "slot_leaked",
            Self::DiskFull => "disk_full",
            Self::BadArguments => "bad_arguments",
            Self::HostKey => "host_key",
            Self::Softnet => "softnet",
            Self::RestoreRefused => "restore_refused",
            Self::StateLost => "state_lost",
            Self::Suspended => "suspended",
            Self::SuspendFailed => "suspend_failed",
            Self::NotFresh => "not_fresh",
            Self::NoAddress => "no_address",
            Self::GuestStopped => "guest_stopped",
            Self::SshTimeout => "ssh_timeout",
            Self::SshAuth => "ssh_auth",
            Self::NoRoute => "no_route",
            Self::ConnectionLost => "connection_lost",
            Self::WarmupFailed => "warmup_failed",
            Self::ProbeFailed => "probe_failed",
            Self::TransferFailed => "transfer_failed",
            Self::GuestDiskFull => "guest_disk_full",
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
            | Self::StateLost
            | Self::Suspended
            | Self::SuspendFailed
            | Self::NotFresh
            | Self::GuestStopped
            | Self::SshTimeout
            | Self::ConnectionLost
            | Self::ProbeFailed
            | Self::TransferFailed
            | Self::GuestDiskFull => FaultKind::Guest,
            // Softnet and arguments are what a pool asks for: pools that ask for neither go on.
            Self::ImageMissing
            | Self::ImageUnusable
            | Self::BadArguments
            | Self::Softnet
            | Self::SshAuth
            | Self::WarmupFailed => FaultKind::Image,
            Self::ProgramMissing
            | Self::SystemLimit
            | Self::SlotLeaked
            | Self::DiskFull
            | Self::HostKey
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
                "macOS runs two macOS guests at a time: stop the VMs that are not preheat's, or lower `host.macos_guests`",
            ),
            Self::SlotLeaked => Some(
                "stop VMs of other programs and other users; if there are none, a slot has leaked: reboot the host, or kill the process com.apple.Virtualization.VirtualMachine that no VM belongs to",
            ),
            Self::BadArguments => {
                Some("correct the pool's `run_args`; `tart run --help` shows what this version of Tart knows")
            }
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
            Self::GuestDiskFull => {
                Some("give the pool a larger `disk`, or let the build send and write less")
            }
            Self::NotFresh => Some(
                "the pool's `user` must be allowed `sudo` without a password in the image; or set the pool's `resume = false`",
            ),
            Self::WarmupFailed => Some("run the pool's `warmup` by hand in a VM of this image"),
            Self::VerbTimeout
            | Self::VerbFailed
            | Self::VmMissing
            | Self::AlreadyRunning
            | Self::NotRunning
            | Self::RestoreRefused
            | Self::StateLost
            | Self::Suspended
            | Self::SuspendFailed
            | Self::GuestStopped
            | Self::SshTimeout
            | Self::ConnectionLost
            | Self::ProbeFailed
            | Self::TransferFailed => None,
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
