//! What can go wrong, in Tart's own words and with Tart's own exit codes.

use std::fmt;
use std::io;

/// Every refusal of this program. Tart knows two ways to print: its own errors bare, everything else behind `Error: `.
#[derive(Debug)]
pub enum Failure {
    VmDoesNotExist(String),
    /// `run` looks for the VM while it checks its arguments, and Tart prints such errors another way.
    VmDoesNotExistAtRun(String),
    VmMissingFiles,
    VmIsRunning(String),
    VmNotRunning(String),
    VmAlreadyRunning(String),
    NoIpAddress(String),
    InvalidDiskSize(String),
    SuspendFailed(String),
    TerminationFailed(String),
    LimitExceeded(Vec<String>),
    RestoreRefused,
    OciStorage(String),
    Configuration(String),
    Softnet(String),
    Generic(String),
    /// A validation error: exit code 64 and a usage line.
    Usage {
        verb: &'static str,
        text: String,
    },
    /// Any error that is not Tart's own: `Error: ` and exit code 1.
    Foreign(String),
    OutOfSpace(String),
    /// The guest's own exit code, from `exec`.
    Exit(u8),
    /// What a fault file asked for.
    Scripted {
        code: u8,
        text: String,
    },
    Faults(String),
}

pub type Outcome<T = ()> = Result<T, Failure>;

pub const RESTORE_REFUSED: &str = "Error Domain=VZErrorDomain Code=12 \"The virtual machine failed to restore with error “invalid argument”.\"";
pub const LIMIT_AT_RESTORE: &str = "Error Domain=VZErrorDomain Code=6 \"The maximum supported number of active virtual machines has been reached.\"";

impl Failure {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::VmDoesNotExist(_) | Self::VmNotRunning(_) | Self::VmAlreadyRunning(_) => 2,
            Self::Usage { .. } | Self::Faults(_) => 64,
            Self::Exit(code) | Self::Scripted { code, .. } => *code,
            Self::VmDoesNotExistAtRun(_)
            | Self::VmMissingFiles
            | Self::VmIsRunning(_)
            | Self::NoIpAddress(_)
            | Self::InvalidDiskSize(_)
            | Self::SuspendFailed(_)
            | Self::TerminationFailed(_)
            | Self::LimitExceeded(_)
            | Self::RestoreRefused
            | Self::OciStorage(_)
            | Self::Configuration(_)
            | Self::Softnet(_)
            | Self::Generic(_)
            | Self::Foreign(_)
            | Self::OutOfSpace(_) => 1,
        }
    }

    pub fn usage(verb: &'static str, text: impl Into<String>) -> Self {
        Self::Usage { verb, text: text.into() }
    }

    /// An I/O error on `what`, with a full disk told apart.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::StorageFull {
            return Self::OutOfSpace(what.to_string());
        }
        Self::Foreign(format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VmDoesNotExist(name) => write!(f, "the specified VM \"{name}\" does not exist"),
            Self::VmDoesNotExistAtRun(name) => write!(f, "Error: the specified VM \"{name}\" does not exist"),
            Self::VmMissingFiles => f.write_str(
                "VM is missing files for a supported layout: standalone requires config.json, disk.img and nvram.bin; \
                 stacked requires config.json, manifest.json, overlay.asif and nvram.bin",
            ),
            Self::VmIsRunning(name) => write!(f, "VM \"{name}\" is running"),
            Self::VmNotRunning(name) => write!(f, "VM \"{name}\" is not running"),
            Self::VmAlreadyRunning(name) => write!(f, "VM \"{name}\" is already running!"),
            Self::SuspendFailed(why) => write!(f, "Failed to suspend the VM: {why}"),
            Self::LimitExceeded(others) if others.is_empty() => {
                f.write_str("The number of VMs exceeds the system limit")
            }
            Self::LimitExceeded(others) => {
                write!(
                    f,
                    "The number of VMs exceeds the system limit (other running VMs: {})",
                    others.join(", ")
                )
            }
            Self::RestoreRefused => f.write_str(RESTORE_REFUSED),
            Self::OciStorage(why) => write!(f, "OCI storage error: {why}"),
            Self::Softnet(why) => write!(f, "Softnet failed: {why}"),
            Self::NoIpAddress(text)
            | Self::InvalidDiskSize(text)
            | Self::TerminationFailed(text)
            | Self::Configuration(text)
            | Self::Generic(text)
            | Self::Scripted { text, .. } => f.write_str(text),
            Self::Usage { verb, text } => write!(
                f,
                "Error: {text}\nUsage: tart {verb}\n  See 'tart {} --help' for more information.",
                verb.split(' ').next().unwrap_or(verb)
            ),
            Self::Foreign(text) => write!(f, "Error: {text}"),
            Self::OutOfSpace(what) => {
                write!(
                    f,
                    "Error: {what} couldn’t be written because there isn’t enough space.: No space left on device"
                )
            }
            Self::Exit(_) => Ok(()),
            Self::Faults(text) => write!(f, "TART_QEMU_FAULTS: {text}"),
        }
    }
}

impl std::error::Error for Failure {}
