//! How a command can end. Scripts rely on these numbers.

use std::process::ExitCode;

use crate::build::spec::BuildResult;

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Done; a build succeeded.
    Success = 0,
    /// The build failed: a step exited with another code than 0, or an artifact was missing.
    BuildFailed = 1,
    /// Wrong flags, a folder that is not there, a description that the daemon refused.
    Usage = 2,
    /// Not the user's fault: the daemon cannot be reached, a build ended in `error`, `doctor` found a fault.
    System = 3,
    /// The build was cancelled.
    Cancelled = 4,
    /// The build or one of its steps ran out of time, or what was waited for did not happen in time.
    TimedOut = 5,
}

/// For `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  the build failed
  2  bad usage: wrong flags, a missing folder, a refused description
  3  the system failed: no daemon, a fault of a VM or of the host
  4  the build was cancelled
  5  the build timed out, or `drain --wait` did";

impl Exit {
    /// How `run` ends for a build that ended so.
    pub fn of(result: BuildResult) -> Self {
        match result {
            BuildResult::Success => Self::Success,
            BuildResult::Failure => Self::BuildFailed,
            BuildResult::Error => Self::System,
            BuildResult::Timeout => Self::TimedOut,
            BuildResult::Cancellation => Self::Cancelled,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_code() {
        let all =
            [Exit::Success, Exit::BuildFailed, Exit::Usage, Exit::System, Exit::Cancelled, Exit::TimedOut];
        for exit in all {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
        }
    }
}
