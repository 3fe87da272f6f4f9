//! A guest that can sign: a keychain of the build's own on a Mac, by the Mac's own `security`.
//!
//! ```text
//!   place            folders; what an earlier try left is removed
//!   search list      read, to be put back together with ours in front
//!   create-keychain, set-keychain-settings (it never locks by itself), unlock-keychain
//!   import           the certificate and its key, for codesign and security; its file goes at once
//!   set-key-partition-list      or codesign would ask somebody at the screen, for ever
//!   list-keychains   ours first
//!   profile          each by its UUID, where Xcode 16 looks and where those before it did
//!   find-identity    the certificate is there, and good for signing code
//! ```
//!
//! Every step has its own time: a `security` that wants to ask somebody hangs until it is killed. Passwords go to it over its
//! stdin, where `security -i` reads its commands: it reads lines of less than 4096 bytes, words as a shell does, and ends with
//! the code of the last one. What the key comes in is a file of a moment, sealed with a password that is in no file.
//!
//! The default keychain stays what it was: whoever signs finds the identity in the search list.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use secrecy::ExposeSecret as _;
use secrecy::zeroize::Zeroizing;
use tokio::time::timeout;

use super::SignError;
use super::connection::Connection;
use super::link::{Link, OfTheWay};
use super::script::quote;
use super::transfer::read_text;
use super::wire::{Status, Wire, write};
use crate::clock::Deadline;
use crate::runtime::{Fault, Reason};
use crate::signing::Kit;

/// For each step: they take a fraction of a second on a Mac, and what waits for somebody at the screen waits for ever.
const STEP_MAX: Duration = Duration::from_secs(60);

/// What is shown of what a tool said.
const SAID_CHARS_MAX: usize = 300;

/// Below the folder of keychains.
const KEYCHAIN: &str = "preheat.keychain-db";

/// Ends and begins what a script of ours says, whatever a profile says before it.
const MARK: char = '\u{1E}';

/// Where profiles are looked for: by Xcode before 16, and since.
const PROFILES: [&str; 2] =
    ["Library/MobileDevice/Provisioning Profiles", "Library/Developer/Xcode/UserData/Provisioning Profiles"];

/// Makes the folders, in memory where there is a place for that, and says where they are.
const PLACE: &str = r#"umask 077
k=$HOME/Library/Keychains s=$HOME/.preheat
[ ! -d /dev/shm ] || [ ! -w /dev/shm ] || s=/dev/shm
s=$s/preheat-signing
rm -rf "$s"
mkdir -p "$k" "$HOME/.preheat" && mkdir "$s" || exit 73
[ ! -e "$k/preheat.keychain-db" ] || /usr/bin/security delete-keychain "$k/preheat.keychain-db" || exit
printf "\036%s\036%s\036" "$k" "$s""#;

const NO_TOOL: &str = "signing needs a macOS image: the guest cannot run /usr/bin/security";
const NOT_VALID: &str =
    "does the image have Apple's intermediate certificates (WWDR), and is the guest's clock right?";

/// Where a keychain was unlocked last: the connection, and the keychain's path.
#[derive(Debug, Default)]
pub(super) struct Unlocked(Mutex<Option<(Weak<Connection>, String)>>);

impl Unlocked {
    fn note(&self, on: &Arc<Connection>, keychain: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Arc::downgrade(on), keychain.to_owned()));
    }

    fn on(&self, connection: &Arc<Connection>) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, keychain) = known.as_ref().filter(|(on, _)| on.as_ptr() == Arc::as_ptr(connection))?;
        Some(keychain.clone())
    }
}

impl OfTheWay for SignError {
    fn of_the_way(&self) -> bool {
        matches!(self, Self::Guest(_))
    }
}

/// Lets the guest sign.
pub(super) async fn install(
    link: &Link,
    unlocked: &Unlocked,
    kit: &Kit,
    deadline: Deadline,
) -> Result<(), SignError> {
    link.is_used();
    let (on, keychain) = link
        .whole(|on, _| {
            async move {
                let _turn = on.wire.take_turn().await;
                let keychain = Guest { wire: &on.wire, deadline }.install(kit).await?;
                Ok::<_, SignError>((on.clone(), keychain))
            }
            .boxed()
        })
        .await?;
    unlocked.note(&on, &keychain);
    Ok(())
}

/// Unlocks the keychain on the connection that there is, unless it was.
pub(super) async fn unlock(
    link: &Link,
    unlocked: &Unlocked,
    kit: &Kit,
    deadline: Deadline,
) -> Result<String, SignError> {
    if let Some(keychain) = unlocked.on(&link.up(None).await?) {
        return Ok(keychain);
    }
    let (on, keychain) = link
        .whole(|on, _| {
            async move {
                let _turn = on.wire.take_turn().await;
                let guest = Guest { wire: &on.wire, deadline };
                let keychain = guest.keychain().await?;
                guest.unlock(kit, &keychain).await?;
                Ok::<_, SignError>((on.clone(), keychain))
            }
            .boxed()
        })
        .await?;
    unlocked.note(&on, &keychain);
    Ok(keychain)
}

/// Takes everything out again.
pub(super) async fn remove(link: &Link, kit: &Kit, deadline: Deadline) -> Result<(), SignError> {
    link.whole(|on, _| {
        async move {
            let _turn = on.wire.take_turn().await;
            Guest { wire: &on.wire, deadline }.remove(kit).await
        }
        .boxed()
    })
    .await
}

/// One connection, and until when.
struct Guest<'a> {
    wire: &'a Wire,
    deadline: Deadline,
}

/// How a step ended.
struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Guest<'_> {
    async fn install(&self, kit: &Kit) -> Result<String, SignError> {
        let placed = self.script("place", PLACE, &[]).await?;
        let mut places = placed.split(MARK).skip(1);
        let (Some(folder), Some(scratch)) = (places.next(), places.next()) else {
            return Err(refused("place", 0, placed, None));
        };
        let keychain = &format!("{folder}/{KEYCHAIN}");
        let before = self.search_list(keychain).await?;
        let (password, path) = (word(kit.keychain_password.expose_secret()), word(keychain));
        self.security("create-keychain", &["-p", &password, &path]).await?;
        // Without a time after which it locks, and not when the guest sleeps.
        self.security("set-keychain-settings", &[&path]).await?;
        self.unlock(kit, keychain).await?;
        self.import(kit, keychain, scratch).await?;
        let partitions = &["-S", "apple-tool:,apple:", "-s", "-k", &password, &path];
        self.security("set-key-partition-list", partitions).await?;
        let list: String = before.iter().map(|other| format!(" {}", quote(other))).collect();
        let list = format!("exec /usr/bin/security list-keychains -d user -s {}{list}", quote(keychain));
        self.script("list-keychains", &list, &[]).await?;
        for (uuid, profile) in &kit.profiles {
            let [first, second] = PROFILES;
            let script = format!(
                "umask 077\na=\"$HOME/{first}\" b=\"$HOME/{second}\" f={uuid}.mobileprovision\n\
                 mkdir -p \"$a\" \"$b\" && cat >\"$a/$f\" && cp \"$a/$f\" \"$b/$f\""
            );
            self.script("profile", &script, profile).await?;
        }
        self.find_identity(kit, keychain).await?;
        Ok(keychain.clone())
    }

    async fn keychain(&self) -> Result<String, SignError> {
        let script = format!("printf \"\\036%s/Library/Keychains/{KEYCHAIN}\\036\" \"$HOME\"");
        let said = self.script("place", &script, &[]).await?;
        let path = said.split(MARK).nth(1).map(str::to_owned);
        path.ok_or_else(|| refused("place", 0, said, None))
    }

    async fn unlock(&self, kit: &Kit, keychain: &str) -> Result<(), SignError> {
        let password = word(kit.keychain_password.expose_secret());
        self.security("unlock-keychain", &["-p", &password, &word(keychain)]).await
    }

    /// What is in the user's search list beside ours.
    async fn search_list(&self, keychain: &str) -> Result<Vec<String>, SignError> {
        let list = self.script("search list", "exec /usr/bin/security list-keychains -d user", &[]).await?;
        Ok(listed(&list, keychain))
    }

    async fn import(&self, kit: &Kit, keychain: &str, scratch: &str) -> Result<(), SignError> {
        let file = format!("{scratch}/identity.p12");
        let receive = format!("umask 077\ncat >{}", quote(&file));
        self.script("import", &receive, &kit.p12).await?;
        let line = line(
            "import",
            &[
                &word(&file),
                "-k",
                &word(keychain),
                "-f",
                "pkcs12",
                "-P",
                &word(kit.p12_password.expose_secret()),
                "-T",
                "/usr/bin/codesign",
                "-T",
                "/usr/bin/security",
            ],
        );
        let scratch = quote(scratch);
        let script = format!("/usr/bin/security -i\nrc=$?\nrm -rf -- {scratch}\nexit \"$rc\"");
        self.script("import", &script, line.as_bytes()).await.map(drop)
    }

    async fn find_identity(&self, kit: &Kit, keychain: &str) -> Result<(), SignError> {
        const STEP: &str = "find-identity";
        let ask = |flags: &str| {
            format!("exec /usr/bin/security find-identity {flags}-p codesigning {}", quote(keychain))
        };
        let valid = self.script(STEP, &ask("-v "), &[]).await?;
        if valid.to_ascii_uppercase().contains(&kit.identity) {
            return Ok(());
        }
        // With those that are not valid, each says why.
        let all = self.script(STEP, &ask(""), &[]).await?;
        let ours = all.lines().find(|line| line.to_ascii_uppercase().contains(&kit.identity));
        let said = ours.unwrap_or("the certificate is not in the keychain");
        Err(refused(STEP, 0, format!("it is not valid for signing code: {}", said.trim()), Some(NOT_VALID)))
    }

    async fn remove(&self, kit: &Kit) -> Result<(), SignError> {
        let keychain = self.keychain().await?;
        let rest = self.search_list(&keychain).await?;
        let rest: String = rest.iter().map(|other| format!(" {}", quote(other))).collect();
        let files = kit.profiles.iter().flat_map(|(uuid, _)| {
            PROFILES.map(|folder| format!(" \"$HOME/{folder}/{uuid}.mobileprovision\""))
        });
        let script = format!(
            "k={}\n/usr/bin/security list-keychains -d user -s{rest}\n\
             [ ! -e \"$k\" ] || /usr/bin/security delete-keychain \"$k\"\n\
             rm -rf -- /dev/shm/preheat-signing \"$HOME/.preheat/preheat-signing\"\n\
             rm -f --{} && [ ! -e \"$k\" ]",
            quote(&keychain),
            files.collect::<String>()
        );
        self.script("delete-keychain", &script, &[]).await.map(drop)
    }

    /// A verb of `security`, whose words come over its stdin.
    async fn security(&self, verb: &'static str, words: &[&str]) -> Result<(), SignError> {
        let line = line(verb, words);
        self.script(verb, "exec /usr/bin/security -i", line.as_bytes()).await.map(drop)
    }

    /// What a script said that ended well.
    async fn script(&self, step: &'static str, script: &str, stdin: &[u8]) -> Result<String, SignError> {
        let Answer { code, out, err } = self.run(step, script, stdin).await?;
        match code {
            0 => Ok(out),
            126 | 127 => Err(refused(step, code, said(&err, &out), Some(NO_TOOL))),
            _ => Err(refused(step, code, said(&err, &out), None)),
        }
    }

    async fn run(&self, step: &'static str, script: &str, stdin: &[u8]) -> Result<Answer, SignError> {
        let limit = STEP_MAX.min(self.deadline.left());
        let command = format!("exec /bin/sh -c {}", quote(script));
        let done = timeout(limit, async {
            let mut exec = self.wire.open(&command).await?;
            let input = exec.stdin.take();
            let (out, err) = (exec.stdout.take(), exec.stderr.take());
            let send = async {
                // One that reads no more says so in its end. Dropped, it ends there.
                if let Some(mut input) = input {
                    write(&mut input, stdin).await.ok();
                }
            };
            let ((), out, err) =
                self.wire.or_lost(async { tokio::join!(send, read_text(out), read_text(err)) }).await?;
            match exec.wait().await {
                Status::Code(code) => Ok(Answer { code, out, err }),
                Status::Killed => {
                    let text = format!("`{step}` was killed");
                    Err(SignError::Guest(Fault::new(Reason::ConnectionLost, "sign", text)))
                }
            }
        });
        // In whole seconds, for people.
        let shown = Duration::from_secs(limit.as_secs().max(1));
        done.await.unwrap_or(Err(SignError::TimedOut { step, limit: shown }))
    }
}

fn refused(step: &'static str, code: i32, said: String, hint: Option<&'static str>) -> SignError {
    let said = said.chars().filter(|c| !c.is_control()).take(SAID_CHARS_MAX).collect();
    SignError::Refused { step, code, said, hint }
}

/// The first line that says something.
fn said(err: &str, out: &str) -> String {
    let lines = err.lines().chain(out.lines()).map(str::trim);
    let mut telling = lines.filter(|line| !line.is_empty() && !line.contains(": returned "));
    let first = telling.next().unwrap_or("it did not say why");
    first.strip_prefix("security: ").unwrap_or(first).to_owned()
}

/// The paths in what `list-keychains` prints, each between quotes, without ours.
fn listed(list: &str, ours: &str) -> Vec<String> {
    let paths = list.lines().filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix('"'));
    paths.filter(|path| path.starts_with('/') && *path != ours).map(str::to_owned).collect()
}

/// One word for `security -i`. The buffer has its size at once: one that grew would leave copies of a password behind.
fn word(text: &str) -> Zeroizing<String> {
    let mut quoted = Zeroizing::new(String::with_capacity(text.len() * 2 + 2));
    quoted.push('"');
    for letter in text.chars() {
        if matches!(letter, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted.push('"');
    quoted
}

fn line(verb: &str, words: &[&str]) -> Zeroizing<String> {
    let bytes = verb.len() + 1 + words.iter().map(|word| word.len() + 1).sum::<usize>();
    let mut line = Zeroizing::new(String::with_capacity(bytes));
    line.push_str(verb);
    for word in words {
        line.push(' ');
        line.push_str(word);
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_one_word_to_the_tool_whatever_is_in_it() {
        assert_eq!(*word("plain"), "\"plain\"");
        assert_eq!(*word(r#"/Users/a "b"\c d"#), r#""/Users/a \"b\"\\c d""#);
        assert_eq!(*line("import", &["a", "b"]), "import a b\n");
    }

    #[test]
    fn the_search_list_is_read_without_ours() {
        let list =
            "    \"/Users/a/Library/Keychains/login.keychain-db\"\n    \"/k/preheat.keychain-db\"\nchatter\n";
        assert_eq!(listed(list, "/k/preheat.keychain-db"), ["/Users/a/Library/Keychains/login.keychain-db"]);
        assert_eq!(listed("", "/k"), Vec::<String>::new());
    }

    #[test]
    fn the_first_line_that_says_something_is_shown() {
        let err = "\nsecurity: SecKeychainItemImport: MAC verification failed\nimport: returned 1\n";
        assert_eq!(said(err, ""), "SecKeychainItemImport: MAC verification failed");
        assert_eq!(said("import: returned 1\n", ""), "it did not say why");
    }

    #[test]
    fn a_step_that_is_late_or_refused_is_named() {
        let late = SignError::TimedOut { step: "set-key-partition-list", limit: STEP_MAX };
        assert_eq!(late.to_string(), "`set-key-partition-list` in the guest took longer than 1m");
        let refused = refused("import", 1, "no\u{1b}[31m".into(), None);
        assert_eq!(refused.to_string(), "`import` in the guest ended with 1: no[31m");
    }
}
