//! What a guest that was resumed is given of its own: the time, randomness, a host key. All that resume from one state
//! would have the same otherwise.
//!
//! ```text
//!   before the state is saved            after it was resumed
//!   await_fresh.sh                       one line: time, seed, key
//!     `- sudo fresh.sh ... waits at a  ------> takes it, says "fresh"
//! ```
//!
//! A process that waits in the saved memory costs a resumed guest no start of `sudo`, shell and `perl`: where guests are
//! emulated that is a quarter of a second.

use std::time::Duration;

use openssh::ChildStdout;
use ring::rand::{SecureRandom as _, SystemRandom};
use secrecy::zeroize::Zeroizing;
use ssh_key::private::{Ed25519Keypair, PrivateKey};
use ssh_key::{LineEnding, PublicKey};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::transfer::read_all;
use super::wire::{Exec, LOSS_SHOWS, Status, Wire, write};
use super::wrapper::joined;
use crate::clock::{Deadline, UnixMillis};
use crate::runtime::{Fault, Reason};

/// Bytes of randomness: twice what any generator takes as its seed.
const SEED_BYTES: usize = 32;

/// It waits already, so that it answers at once; and it is asked once.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Of what a guest says instead. It is for people.
const LINE_BYTES_MAX: usize = 600;

const AWAITING: &str = "awaiting";
const TAKEN: &str = "fresh";

/// What is one guest's own. Secret: it is wiped when it is dropped.
pub struct Fresh {
    seed: Zeroizing<String>,
    host_key: Zeroizing<String>,
    public: PublicKey,
}

impl std::fmt::Debug for Fresh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fresh").finish_non_exhaustive()
    }
}

impl Fresh {
    /// Draws it.
    ///
    /// # Errors
    /// When the host has no randomness to give.
    pub fn draw() -> Result<Self, Fault> {
        let seed = Zeroizing::new(hex(random()?.as_ref()));
        let pair = Ed25519Keypair::from_seed(&*random()?);
        let key = PrivateKey::from(pair);
        let host_key = key.to_openssh(LineEnding::LF).map_err(|e| not_fresh(e.to_string()))?;
        Ok(Self { seed, host_key: Zeroizing::new(host_key.to_string()), public: key.public_key().clone() })
    }

    /// The host key that the guest shows from then on, as in a file of known hosts.
    pub fn public_key(&self) -> String {
        self.public.to_openssh().unwrap_or_default()
    }

    /// One line, for the shell's `read`.
    fn line(&self, now: UnixMillis) -> Zeroizing<String> {
        let mut line = Zeroizing::new(String::with_capacity(self.seed.len() + self.host_key.len() + 32));
        line.push_str(&format!("{}.{:03} ", now.0.div_euclid(1000), now.0.rem_euclid(1000)));
        line.push_str(&self.seed);
        line.push(' ');
        for (n, part) in self.host_key.lines().enumerate() {
            line.push_str(if n == 0 { "" } else { "," });
            line.push_str(part);
        }
        line.push('\n');
        line
    }
}

fn random() -> Result<Zeroizing<[u8; SEED_BYTES]>, Fault> {
    let mut bytes = Zeroizing::new([0; SEED_BYTES]);
    let drawn = SystemRandom::new().fill(bytes.as_mut());
    drawn.map_err(|_| not_fresh("the host has no randomness to give".to_owned()))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn not_fresh(text: String) -> Fault {
    Fault::new(Reason::NotFresh, "give a resumed guest what is its own", text)
}

/// Leaves in the guest what waits for it.
pub(super) async fn await_it(wire: &Wire, limit: Duration) -> Result<(), Fault> {
    let waiter = joined(&[include_str!("sh/fresh.sh")]);
    let script = joined(&[include_str!("sh/await_fresh.sh")]);
    let command = format!("exec /bin/sh -c '{script}' preheat '{waiter}'");
    let asked = timeout(limit, async {
        let _turn = wire.take_turn().await;
        answer(wire, wire.open(&command).await?, AWAITING).await
    });
    let late = |_| Err(Fault::new(Reason::SuspendFailed, "prepare to suspend", "the guest does not answer"));
    asked.await.unwrap_or_else(late)
}

/// What a command begins with that takes `fresh` on its stdin and hands it to what waits: only what the shell does by itself,
/// for a fork is dear in an emulated guest, and a command of its own would be dearer.
pub(super) const HAND_OVER: &str = "cd \"$HOME/.preheat/fresh\" && IFS= read -r fresh && printf \"%s\\n\" \"$fresh\" >in && \
     IFS= read -r fresh <out && printf \"%s\\n\" \"$fresh\" && [ \"$fresh\" = fresh ] && cd \"$HOME\" || exit 75
unset fresh";

/// Gives it to a command that begins with [`HAND_OVER`], which goes on then.
pub(super) async fn give(
    wire: &Wire,
    exec: &mut Exec,
    fresh: &Fresh,
    deadline: Deadline,
) -> Result<(), Fault> {
    let limit = ANSWER_MAX.min(deadline.left());
    let given = timeout(limit, async {
        // What is written late is a clock that is late.
        let line = fresh.line(UnixMillis::now());
        if let Some(stdin) = exec.stdin.as_mut() {
            write(stdin, line.as_bytes()).await.ok();
        }
        let said = match exec.stdout.as_mut() {
            Some(stdout) => wire.or_lost(first_line(stdout)).await?,
            None => String::new(),
        };
        if said == TAKEN { Ok(()) } else { Err(not_fresh(why(wire, exec, said).await)) }
    });
    given.await.unwrap_or_else(|_| Err(not_fresh(format!("no answer within {limit:?}"))))
}

/// Up to the end of the line, and nothing behind it.
async fn first_line(stdout: &mut ChildStdout) -> String {
    let mut line = Vec::new();
    while let Ok(byte) = stdout.read_u8().await {
        if byte == b'\n' || line.len() == LINE_BYTES_MAX {
            break;
        }
        line.push(byte);
    }
    String::from_utf8_lossy(&line).into_owned()
}

/// What a command that ended says of it.
async fn why(wire: &Wire, exec: &mut Exec, mut said: String) -> String {
    let mut errors = Vec::new();
    if let Some(stderr) = exec.stderr.as_mut() {
        let mut stderr = stderr.take(LINE_BYTES_MAX as u64);
        drop(timeout(LOSS_SHOWS, wire.or_lost(stderr.read_to_end(&mut errors))).await);
    }
    for text in [String::from_utf8_lossy(&errors).trim(), "the guest took nothing"] {
        if said.is_empty() {
            said = text.to_owned();
        }
    }
    said
}

async fn answer(wire: &Wire, mut exec: Exec, expected: &str) -> Result<(), Fault> {
    let answer = read_all(wire, &mut exec).await?;
    let said = answer.out.trim();
    match exec.wait().await {
        Status::Code(0) if said.ends_with(expected) => Ok(()),
        status @ (Status::Code(_) | Status::Killed) => {
            Err(not_fresh(format!("{status:?}: {said} {}", answer.err.trim())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_guests_are_given_the_same_and_a_key_survives_the_line() {
        let (one, two) = (Fresh::draw().expect("drawn"), Fresh::draw().expect("drawn"));
        assert_ne!(*one.seed, *two.seed);
        assert_ne!(one.public_key(), two.public_key());
        let line = one.line(UnixMillis(1_700_000_000_042));
        let fields: Vec<&str> = line.trim_end().split(' ').collect();
        assert_eq!(fields.first(), Some(&"1700000000.042"));
        assert_eq!(fields.get(1).map(|seed| seed.len()), Some(SEED_BYTES * 2));
        // As the guest's shell puts it together again: the first and the last line of the key have spaces in them.
        let key = fields[2..].join(" ").replace(',', "\n") + "\n";
        let read = PrivateKey::from_openssh(key).expect("a key");
        assert_eq!(read.public_key().to_openssh().ok(), Some(one.public_key()));
        assert!(!format!("{one:?}").contains(&*one.seed));
    }

    #[test]
    fn whether_what_waits_has_died_is_not_asked_by_a_signal_that_root_may_refuse() {
        assert!(!include_str!("sh/await_fresh.sh").contains("kill"));
    }

    #[test]
    fn the_scripts_can_stand_between_single_quotes() {
        for script in [include_str!("sh/fresh.sh"), include_str!("sh/await_fresh.sh"), HAND_OVER] {
            assert!(!joined(&[script]).contains('\''), "{script}");
        }
    }
}
