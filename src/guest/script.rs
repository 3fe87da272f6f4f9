//! The wrapper under which a script runs in the guest, and what it and we say to each other.
//!
//! ```text
//!   host                               guest: /bin/sh -c WRAPPER, leader of its own session (sshd sees to that)
//!    |  <------------- ready ----------- |   (waits, for hours if need be: a standby)
//!    |  -- word -----> <--- word here --- |   (asked whether it is there: no fork, no file)
//!    |  -- nonce, mark, grace, text ---> |   on stdin; nothing of it is ever an argument
//!    |  <-------------- go ------------- |-- the watcher: reads stdin; at its end TERM, grace, KILL
//!    |  <----------- output ------------ |-- $SHELL -l -c 'eval "$PREHEAT_STEP"'
//!    |  <------- exit code, end -------- |   the leader is gone; what it left behind may print on
//!    |  -- end of stdin ---------------> |   kill -KILL 0: the group, the wrapper with it
//! ```
//!
//! Our end of stdin is the dead man's switch: it closes on a cancel, when the daemon dies and when the connection breaks.
//!
//! Marks travel inside the two outputs, so that they keep their order with what the step printed. They carry a nonce
//! that the step is not told.
//!
//! What is killed: the process group always. On a cancel and at a time-out also whatever else is in the session, and
//! every process that carries the step's `PREHEAT_STEP_ID` in its environment, which finds daemons that made a session of
//! their own (Linux: by /proc; elsewhere by `ps -E`, group and environment only). Not caught: a process of another user
//! (sudo), and one that made a session *and* cleared its environment. After a step that ended by itself, a daemon that
//! made a session of its own lives on, for the steps that come; what merely stayed in the background does not.

use std::time::Duration;

use super::{Script, WORK_DIR};

/// The longest command with all its variables. Linux takes no single string over 128 KiB into a new process.
pub const SCRIPT_BYTES_MAX: usize = 120 * 1024;

/// Up to here the wrapper reads with the shell's own `read`, a system call a byte; above, `head` is worth its fork.
const READ_BYTES_MAX: usize = 4 * 1024;

/// The longest mark: a nonce, a code, a flag.
const MARK_BYTES_MAX: usize = 96;

/// Begins and ends a mark.
const MARK: u8 = 0x1E;

/// What the wrapper prints on stderr when it is up.
pub(super) const READY: &[u8] = b"\x1Epreheat ready\x1E";

/// What a waiting wrapper is sent, and what it prints on stderr for it.
pub(super) fn question(word: &str) -> (Vec<u8>, Vec<u8>) {
    (format!("{word}\n").into_bytes(), format!("\x1E{word} here\x1E").into_bytes())
}

/// The command that starts a wrapper. It is the same for every script.
pub(super) fn wrapper_command() -> String {
    format!("exec /bin/sh -c '{WRAPPER}'")
}

// No single quote may stand in it, and nothing but POSIX: dash, bash as sh and busybox all run it. Forks are dear in an
// emulated guest, so the way to the step has two: the watcher and the step. Reasons, in its order:
// - 3 is our end of the switch, 4 the step's stderr; the wrapper's own noise ("Terminated") goes nowhere.
// - A session is needed: `kill 0` must hit the step's group and nobody else.
// - A text that is cut off by a lost connection is never run.
// - The step runs in the foreground: a background job of a shell without job control would ignore SIGINT for ever.
// - TERM is caught, not ignored: caught ones are reset in children. It tells us that the watcher is at work.
const WRAPPER: &str = r#"
exec 3<&0 4>&2 2>/dev/null </dev/null
kill -0 "-$$" || { printf "preheat: this sshd gives a command no session of its own\n" >&4; exit 71; }
printf "\036preheat ready\036" >&4
while :; do
  IFS=" " read -r nonce mark grace size <&3 || exit 0
  [ -z "$mark" ] || break
  printf "\036%s here\036" "$nonce" >&4
done
if [ -n "$size" ]; then
  body=$(head -c "$size" <&3)
  case $body in *"$nonce") body=${body%"$nonce"} ;; *) exit 0 ;; esac
else
  body=
  while :; do
    IFS= read -r line <&3 || exit 0
    [ "$line" = "$nonce" ] && break
    body="$body$line
"
  done
fi
printf "\036%s go\036" "$nonce" >&4
printf "\036%s go\036" "$nonce"
left() {
  all= out=
  if [ -r /proc/self/stat ]; then
    for f in /proc/[0-9]*/stat; do
      read -r s <"$f" || continue
      p=${s%% *}
      set -- ${s##*") "}
      case $p:$1 in $$:*|$self:*|*:Z|*:X) continue ;; esac
      if [ "$3" = $$ ]; then all="$all $p"
      elif [ "$4" = $$ ]; then all="$all $p" out="$out $p"; fi
    done
    for f in $(grep -lsF "ID=$mark" /proc/[0-9]*/environ); do
      p=${f#/proc/} p=${p%/environ}
      case " $all " in *" $p "*) ;; *) all="$all $p" out="$out $p" ;; esac
    done
  else
    while read -r p g t c; do
      case $p:$t in $$:*|$self:*|*:Z*) continue ;; esac
      case $g:$c in
        $$:ps\ *|$$:*/ps\ *) ;;
        $$:*) all="$all $p" ;;
        *"ID=$mark"*) all="$all $p" out="$out $p" ;;
      esac
    done <<LIST
$(exec ps -A -E -ww -o pid=,pgid=,stat=,command=)
LIST
  fi
}
(
  trap "" TERM HUP INT QUIT USR1 USR2 ALRM PIPE
  while read -r _; do :; done
  kill -TERM 0
  if [ -r /proc/self/stat ]; then read -r self _ </proc/self/stat; else self=$(exec /bin/sh -c "echo \$PPID"); fi
  left
  [ -n "$out" ] && kill -TERM $out
  n=0
  while [ -n "$all" ] && [ "$n" -lt "$grace" ]; do
    sleep 0.1 || { sleep 1; n=$((n + 9)); }
    n=$((n + 1))
    left
  done
  n=0
  while [ -n "$all" ] && [ "$n" -lt 5 ]; do
    kill -KILL $all
    n=$((n + 1))
    left
  done
  kill -KILL 0
) <&3 >/dev/null 4>&- &
watcher=$!
ending=
trap "ending=1" TERM
trap : HUP INT QUIT USR1 USR2 ALRM PIPE
shell=${SHELL:-/bin/sh}
case ${shell##*/} in sh|bash|dash|ash|zsh|ksh|mksh) ;; *) shell=/bin/sh ;; esac
PREHEAT_STEP=$body PREHEAT_STEP_ID=$mark "$shell" -l -c "eval \"\$PREHEAT_STEP\"" </dev/null 2>&4 3<&- 4>&-
rc=$?
[ -n "$ending" ] || kill -KILL "$watcher"
alone=
if [ ! -r /proc/self/stat ]; then self=$watcher; left; [ -n "$all" ] || alone=1; fi
printf "\036%s end\036" "$nonce"
printf "\036%s exit %s %s\036" "$nonce" "$rc" "$alone" >&4
exec >&- 4>&-
[ -z "$ending" ] || wait "$watcher"
while read -r _; do :; done <&3
kill -KILL 0
"#;

/// One run of a script: what goes to the wrapper, and the nonce of its marks.
pub(super) struct Payload {
    pub bytes: Vec<u8>,
    pub nonce: String,
}

/// Why a script is not even sent. The user's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadScript {
    #[error(
        "the command and its variables hold {0} bytes, and no more than {SCRIPT_BYTES_MAX} can be passed on"
    )]
    TooLong(usize),
    #[error("`{0}` is no name of a variable")]
    BadName(String),
    #[error("{0} contains a NUL byte")]
    Nul(String),
}

impl Payload {
    /// Puts a script into words.
    pub(super) fn new(script: &Script) -> Result<Self, BadScript> {
        let text = step_text(script)?;
        if text.len() > SCRIPT_BYTES_MAX {
            return Err(BadScript::TooLong(text.len()));
        }
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let mark = uuid::Uuid::new_v4().simple();
        let grace = tenths(script.kill_grace);
        let bytes = if text.len() > READ_BYTES_MAX {
            // No line end behind the nonce: `$(..)` would take it away.
            format!("{nonce} {mark} {grace} {}\n{text}\n{nonce}", text.len() + 1 + nonce.len())
        } else {
            format!("{nonce} {mark} {grace}\n{text}\n{nonce}\n")
        };
        Ok(Self { bytes: bytes.into_bytes(), nonce })
    }
}

fn tenths(d: Duration) -> u64 {
    u64::try_from(d.as_millis().div_ceil(100)).unwrap_or(u64::MAX).min(36_000)
}

/// What the login shell evaluates: after its profile, so that the build's variables win.
fn step_text(script: &Script) -> Result<String, BadScript> {
    let mut text = format!(
        "unset PREHEAT_STEP\nCDPATH= cd -- \"$HOME/{WORK_DIR}\" 2>/dev/null || \
         {{ mkdir -p -- \"$HOME/{WORK_DIR}\" && CDPATH= cd -- \"$HOME/{WORK_DIR}\"; }} || exit 1\n"
    );
    if script.dir.contains('\0') {
        return Err(BadScript::Nul("the folder's name".into()));
    }
    if !matches!(script.dir.as_str(), "" | "." | "./") {
        let dir = if script.dir.starts_with('/') { script.dir.clone() } else { format!("./{}", script.dir) };
        let complaint =
            quote(&format!("preheat: `{}` is no folder in the guest, so the step cannot start", script.dir));
        text += &format!(
            "CDPATH= cd -- {} 2>/dev/null || {{ printf '%s\\n' {complaint} >&2; exit 1; }}\n",
            quote(&dir)
        );
    }
    for (name, value) in &script.env {
        if !is_name(name) {
            return Err(BadScript::BadName(name.clone()));
        }
        if value.contains('\0') {
            return Err(BadScript::Nul(format!("the variable `{name}`")));
        }
        text += &format!("export {name}={}\n", quote(value));
    }
    if script.command.contains('\0') {
        return Err(BadScript::Nul("the command".into()));
    }
    text += &script.command;
    Ok(text)
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
}

/// One word for any shell.
pub(super) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What a wrapper says of its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// The script was read whole; from now on the stream is the step's.
    Go,
    /// The step's shell is gone; on its stdout nothing of its own follows.
    End,
    /// With this code; `alone` when it is known that it left nobody behind.
    Exit { code: i32, alone: bool },
}

/// Takes the marks out of a stream, and what came before the first one: a profile's chatter.
#[derive(Debug)]
pub(super) struct MarkFilter {
    prefix: Vec<u8>,
    /// What may be the beginning of a mark.
    held: Vec<u8>,
    going: bool,
}

impl MarkFilter {
    /// For the marks of one nonce.
    pub(super) fn new(nonce: &str) -> Self {
        let mut prefix = vec![MARK];
        prefix.extend_from_slice(nonce.as_bytes());
        prefix.push(b' ');
        Self { prefix, held: Vec::new(), going: false }
    }

    /// Takes the next bytes; returns the step's own ones and the marks between them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> (Vec<u8>, Vec<Mark>) {
        let (mut out, mut marks) = (Vec::new(), Vec::new());
        self.held.extend_from_slice(bytes);
        let mut from = 0;
        loop {
            let Some(at) = self.held[from..].iter().position(|b| *b == MARK).map(|at| from + at) else {
                self.pass(from, self.held.len(), &mut out);
                self.held.clear();
                return (out, marks);
            };
            self.pass(from, at, &mut out);
            let rest = &self.held[at..];
            let common = rest.iter().zip(&self.prefix).take_while(|(a, b)| a == b).count();
            let end = rest.iter().skip(1).take(MARK_BYTES_MAX).position(|b| *b == MARK).map(|end| end + 1);
            from = if common < self.prefix.len().min(rest.len()) {
                self.pass(at, at + 1, &mut out);
                at + 1
            } else if let Some(end) = end {
                let mark = parse_mark(rest.get(self.prefix.len()..end).unwrap_or_default());
                self.going |= mark == Some(Mark::Go);
                marks.extend(mark);
                at + end + 1
            } else if rest.len() > MARK_BYTES_MAX {
                self.pass(at, at + 1, &mut out);
                at + 1
            } else {
                self.held.drain(..at);
                return (out, marks);
            };
        }
    }

    /// The stream is over: what was held is the step's after all.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        if self.going { held } else { Vec::new() }
    }

    fn pass(&self, from: usize, to: usize, out: &mut Vec<u8>) {
        if self.going {
            out.extend_from_slice(&self.held[from..to]);
        }
    }
}

fn parse_mark(words: &[u8]) -> Option<Mark> {
    let words: Vec<&str> = std::str::from_utf8(words).ok()?.split(' ').collect();
    match words.as_slice() {
        ["go"] => Some(Mark::Go),
        ["end"] => Some(Mark::End),
        ["exit", code, alone] => Some(Mark::Exit { code: code.parse().ok()?, alone: *alone == "1" }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn script(command: &str) -> Script {
        Script {
            command: command.into(),
            dir: String::new(),
            env: Vec::new(),
            timeout: Duration::from_secs(1),
            kill_grace: Duration::from_millis(1_250),
        }
    }

    fn filter(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Mark>) {
        let mut filter = MarkFilter::new("n0");
        let (mut out, mut marks) = (Vec::new(), Vec::new());
        for piece in pieces {
            let (o, m) = filter.push(piece);
            out.extend(o);
            marks.extend(m);
        }
        out.extend(filter.finish());
        (out, marks)
    }

    #[test]
    fn the_wrapper_can_stand_between_single_quotes() {
        assert!(!WRAPPER.contains('\''));
    }

    #[test]
    fn a_short_script_ends_in_its_nonce_and_a_long_one_says_its_length() {
        let short = Payload::new(&script("true")).expect("fine");
        let text = String::from_utf8(short.bytes).expect("text");
        assert!(
            text.starts_with(&short.nonce) && text.ends_with(&format!("true\n{}\n", short.nonce)),
            "{text}"
        );
        assert_eq!(text.lines().next().and_then(|l| l.split(' ').nth(2)), Some("13"));
        let long = Payload::new(&script(&"x".repeat(READ_BYTES_MAX))).expect("fine");
        let text = String::from_utf8(long.bytes).expect("text");
        let (head, body) = text.split_once('\n').expect("two parts");
        assert_eq!(head.split(' ').nth(3), Some(body.len().to_string().as_str()));
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        assert!(matches!(Payload::new(&script(&"x".repeat(SCRIPT_BYTES_MAX))), Err(BadScript::TooLong(_))));
        assert!(matches!(Payload::new(&script("a\0b")), Err(BadScript::Nul(_))));
        for name in ["", "1A", "A-B", "A=B", "ä", "A;B"] {
            let env = vec![(name.to_owned(), String::new())];
            assert!(
                matches!(Payload::new(&Script { env, ..script("") }), Err(BadScript::BadName(_))),
                "{name}"
            );
        }
    }

    #[test]
    fn marks_are_taken_out_wherever_a_read_cuts_them() {
        let whole: &[u8] =
            b"motd\x1Epreheat ready\x1E\x1En0 go\x1Ea\x1Eb\x1En0 exit 7 1\x1Ec\x1En0 end\x1E\x1En";
        let want = (b"a\x1Ebc\x1En".to_vec(), vec![Mark::Go, Mark::Exit { code: 7, alone: true }, Mark::End]);
        assert_eq!(filter(&[whole]), want);
        for at in 0..whole.len() {
            assert_eq!(filter(&[&whole[..at], &whole[at..]]), want, "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn a_filter_lets_every_byte_of_the_step_through(
            bytes in prop::collection::vec(
                prop_oneof![Just(0x1E_u8), Just(b'n'), Just(b'0'), Just(b' '), any::<u8>()], 0..300),
            cut in 0_usize..300,
        ) {
            prop_assume!(!bytes.windows(4).any(|w| w == b"\x1En0 "));
            let cut = cut.min(bytes.len());
            let (out, marks) = filter(&[b"\x1En0 go\x1E", &bytes[..cut], &bytes[cut..]]);
            prop_assert_eq!(out, bytes);
            prop_assert_eq!(marks, vec![Mark::Go]);
        }

        #[test]
        fn a_quoted_word_is_one_word_without_open_ends(word in "[a-z'\"\\\\ $`\n]{0,30}") {
            let quoted = quote(&word);
            prop_assert!(quoted.starts_with('\'') && quoted.ends_with('\''));
            prop_assert_eq!(quoted[1..quoted.len() - 1].replace(r"'\''", "'"), word);
        }
    }
}
