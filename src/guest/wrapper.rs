//! The supervisor under which a script runs in the guest, and what takes its run up, or ends it, later.
//!
//! ```text
//!   host                               guest: wrapper.sh, leader of its own session (sshd sees to that)
//!    |  <------------- ready ----------- |   (waits, for hours if need be: a standby)
//!    |  -- ask -----> <---- here ------- |   (asked whether it is there: no fork, no file)
//!    |  -- login ----------------------> |-- $SHELL -l, past its profile, waits for its text (only where nothing of the
//!    |                                   |   user's runs before the step that might change the profile)
//!    |  -- run, text, name ------------> |   on stdin; nothing of it is ever an argument
//!    |  <-------------- go ------------- |-- `begun` is made: by it, or by whoever was told "never"
//!    |  <----------- output ------ tee --|-- $SHELL -l: eval "$PREHEAT_STEP"
//!    |                    files <-- tee -|   (the step goes on when nobody reads, and nobody misses a line)
//!    |  <----------- exit code --------- |   behind all output, in the files too
//!    |  -- bye ------------------------> |   kill -KILL 0: the group, the wrapper with it
//! ```
//!
//! A step outlives its connection: when our end of stdin closes, the wrapper goes on and keeps its end for
//! `attach.sh`, which is a fresh command: it reads the files from where a reader had got to, and follows them.
//! `stop.sh`, another fresh command, ends a run that is cancelled or over its time.
//!
//! Everything that a claim needs is there before it: the folder, the two `tee`s, the watcher, the reader, and the login
//! shell. Nothing is forked at the claim but what the step forks.
//!
//! What a profile prints goes nowhere: it would come before the step as often as not.
//!
//! The step writes into pipes, not into the files: `echo >/dev/stderr` cuts a file off on Linux.
//!
//! What is killed: the process group always. On a cancel and at a time-out also whatever else is in the session, and
//! every process that carries the step's `PREHEAT_STEP_ID` in its environment, which finds daemons that made a session of
//! their own (Linux: by /proc; elsewhere by `ps -E`, group and environment only). Not caught: a process of another user
//! (sudo), and one that made a session *and* cleared its environment. After a step that ended by itself, a daemon that
//! made a session of its own lives on, for the steps that come; what merely stayed in the background does not.
//!
//! The scripts are POSIX, for dash, bash as sh and busybox, and have no single quote in them. Forks are dear in an
//! emulated guest.

use std::sync::LazyLock;
use std::time::Duration;

use super::{Position, WORK_DIR};
use crate::ids::RunId;

/// What the wrapper prints on stderr when it is up.
pub(super) const READY: &[u8] = b"\x1Epreheat ready\x1E";

/// What has a wrapper start its login shell before it knows what to run in it. Said once.
pub(super) const LOGIN: &[u8] = b"login\n";

/// What has a receiver start its tar.
pub(super) const GO: &[u8] = b"go\n";

/// What ends a wrapper whose run is over, with all that is left of its group.
pub(super) const BYE: &[u8] = b"bye\n";

/// The longest grace that is passed on: an hour.
const GRACE_TENTHS_MAX: u64 = 36_000;

const PLACE: &str = include_str!("sh/place.sh");
const LEFT: &str = include_str!("sh/left.sh");
const CLAIM: &str = include_str!("sh/claim.sh");

static WRAPPER: LazyLock<String> = LazyLock::new(|| joined(&[PLACE, LEFT, include_str!("sh/wrapper.sh")]));
static ATTACH: LazyLock<String> = LazyLock::new(|| joined(&[PLACE, CLAIM, include_str!("sh/attach.sh")]));
static STOP: LazyLock<String> = LazyLock::new(|| joined(&[PLACE, LEFT, CLAIM, include_str!("sh/stop.sh")]));

/// One script of several parts, without their comments, which the guest need not read.
pub(super) fn joined(parts: &[&str]) -> String {
    let lines = parts.iter().flat_map(|part| part.lines());
    let code: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.trim_start().starts_with('#')).collect();
    code.join("\n")
}

/// The command that starts a wrapper for the run `id`, behind the lines `before`. What the runs `over` left in the guest's memory is removed.
pub(super) fn wrapper_command(before: &str, id: &RunId, over: &[RunId]) -> String {
    let over: String = over.iter().map(|id| format!(" {}", id.as_str())).collect();
    format!("exec /bin/sh -c '{before}\n{}' preheat {}{over}", *WRAPPER, id.as_str())
}

/// The command that takes up a run. It sends the byte before each position too, where there is one.
pub(super) fn attach_command(id: &RunId, from: Position) -> String {
    let (out, err) = (from.out.max(1), from.err.max(1));
    format!("exec /bin/sh -c '{}' preheat {} {out} {err}", *ATTACH, id.as_str())
}

/// The command that ends a run, or sees to it that it never begins. It succeeds when no process of it is left.
pub(super) fn stop_command(id: &RunId, grace: Duration) -> String {
    let grace = u64::try_from(grace.as_millis().div_ceil(100)).unwrap_or(u64::MAX).min(GRACE_TENTHS_MAX);
    format!("exec /bin/sh -c '{}' preheat {} {grace}", *STOP, id.as_str())
}

/// What a waiting wrapper is sent, and what it prints on stderr for it.
pub(super) fn question(word: &str) -> (Vec<u8>, Vec<u8>) {
    (format!("ask {word}\n").into_bytes(), format!("\x1E{word} here\x1E").into_bytes())
}

/// Says on stdout whether it could take a compressed tree, waits for a line, then unpacks what follows it, through `zstd`
/// if the line says so. Owner and group are not the archive's: in the guest everything is the user's. The folder is entered
/// only now: until then, scripts may do with it what they like.
pub(super) fn receive_command() -> String {
    receive("read -r how || exit 1")
}

/// As [`receive_command`], after a transfer that broke off: what received it is ended first, so that it writes no more. That
/// is a group, for one that decompresses is more than one process.
pub(super) fn receive_again_command() -> String {
    receive(
        "read -r how || exit 1; read -r p <\"$n\" && kill -KILL \"-$p\" && n2=0 && \
         while kill -0 \"-$p\" && [ \"$n2\" -lt 10 ]; do n2=$((n2 + 1)); sleep 0.1 || sleep 1; done 2>/dev/null",
    )
}

/// Takes a compressed tree.
pub(super) const RECEIVES_ZSTD: &[u8] = b"\x1Ereceives zstd\x1E";

/// Ends what a receiver says first, whatever it takes.
pub(super) const RECEIVES: u8 = 0x1E;

fn receive(wait: &str) -> String {
    let records = tar_records(&TREE_RECORD_BLOCKS.to_string());
    format!(
        "exec /bin/sh -c 'd=\"$HOME/{WORK_DIR}\" n=\"$HOME/.preheat/receiver\" z=tar; mkdir -p \"$d\" \"$HOME/.preheat\"; \
         ! command -v zstd >/dev/null || z=zstd; printf \"\\036receives %s\\036\" \"$z\"; {wait}; \
         true 2>/dev/null >\"$n\" && echo $$ >\"$n\"; {records}; \
         cd \"$d\" 2>/dev/null || {{ mkdir -p \"$d\" && cd \"$d\"; }} || exit 1; \
         [ \"$how\" != zstd ] || {{ zstd -d -c -q | tar -x $b -o -f -; exit; }}; exec tar -x $b -o -f -'"
    )
}

/// Blocks of 512 bytes that tar reads, or writes, at once when there is much: a megabyte. With its usual ten kilobytes an
/// emulated guest spends a fifth of a transfer on switching between tar and sshd.
pub(super) const TREE_RECORD_BLOCKS: u32 = 2048;

/// What lets a tar that follows move so many blocks at once, `$b` among its arguments. Only GNU's reads the variable, and
/// Apple's takes the option; others (busybox) know neither, and are not disturbed.
pub(super) fn tar_records(blocks: &str) -> String {
    format!("export TAR_OPTIONS=-b{blocks} COPYFILE_DISABLE=1; b=; [ ! -d /System/Library ] || b=-b{blocks}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_can_stand_between_single_quotes() {
        for script in [&*WRAPPER, &*ATTACH, &*STOP] {
            assert!(!script.contains('\'') && !script.contains("# "), "{script}");
        }
    }

    #[test]
    fn a_run_is_read_from_the_byte_before_its_position() {
        let id = RunId::new();
        assert!(attach_command(&id, Position::default()).ends_with(&format!("{} 1 1", id.as_str())));
        assert!(attach_command(&id, Position { out: 7, err: 1 }).ends_with(" 7 1"));
        assert!(stop_command(&id, Duration::from_millis(1_250)).ends_with(" 13"));
    }
}
