//! What the texts of the configuration may hold, each with the reason that the operator is told.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use super::found::{Refusal, plain, shown_text};
use super::limits;
use super::mistake::Origin;
use crate::runtime::vm_name::{Parsed, VmName};

/// What a path is relative to.
#[derive(Debug, Clone)]
pub struct Folders {
    /// `$PREHEAT_HOME`.
    pub home: PathBuf,
    /// What `~` is; `None` when nobody says.
    pub user: Option<PathBuf>,
}

impl Folders {
    /// A path as the configuration writes it, made absolute.
    ///
    /// # Errors
    /// When it is empty, or begins with a `~` that cannot be expanded.
    pub fn path(&self, written: &str) -> Result<PathBuf, Refusal> {
        plain(written)?;
        let Some(rest) = written.strip_prefix('~') else { return Ok(self.home.join(written)) };
        let Some(user) = &self.user else {
            return Err(Refusal::says(format!("found {}, and HOME is not set", shown_text(written))));
        };
        match rest.strip_prefix('/') {
            Some(rest) => Ok(user.join(rest)),
            None if rest.is_empty() => Ok(user.clone()),
            None => {
                let text = format!("found {}, and `~` stands for your own home only", shown_text(written));
                Err(Refusal::says(text).hint("write the path in full"))
            }
        }
    }
}

/// The user that logs in to a guest: it becomes an argument of `ssh`.
pub fn user(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    if text.starts_with('-') || text.contains(|c: char| c == '@' || c == ':' || c.is_whitespace()) {
        return Err(Refusal::usual());
    }
    Ok(())
}

/// An image: it becomes an argument of `tart clone`, and must not look like a VM that we would throw away.
pub fn image(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    if text.starts_with('-') || text.contains(char::is_whitespace) {
        return Err(Refusal::usual());
    }
    match VmName::parse(text) {
        Parsed::Ours(_) => {
            let text =
                format!("found {}, which is the name of a VM of ours and would be deleted", shown_text(text));
            Err(Refusal::says(text).hint("rename the image: `tart rename`"))
        }
        Parsed::NotOurs | Parsed::Malformed => Ok(()),
    }
}

/// A network interface, by the name that Tart knows it by (`en0`, `Wi-Fi`).
pub fn interface(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    if text == "list" {
        let refusal = Refusal::says("found \"list\", with which Tart lists the interfaces and starts no VM");
        return Err(refusal.hint("`tart run --net-bridged=list <vm>` prints them"));
    }
    if text.starts_with('-') || text.contains(',') { Err(Refusal::usual()) } else { Ok(()) }
}

/// A block of IPv4 addresses.
pub fn cidr(text: &str) -> Result<(), Refusal> {
    if text.parse::<ipnet::Ipv4Net>().is_ok() {
        return Ok(());
    }
    let refusal = Refusal::usual();
    if text.parse::<std::net::Ipv4Addr>().is_ok() {
        Err(refusal.hint(format!("for this one address: \"{text}/32\"")))
    } else if text.parse::<ipnet::Ipv6Net>().is_ok() {
        Err(refusal.hint("softnet filters IPv4 only"))
    } else {
        Err(refusal)
    }
}

/// A further argument of `tart run`.
pub fn run_arg(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    if text.starts_with("--net-") {
        let says = format!("found {}, which `network` decides", shown_text(text));
        return Err(Refusal::says(says).hint("set `network` of the pool instead"));
    }
    Ok(())
}

/// A shell script.
pub fn script(text: &str) -> Result<(), Refusal> {
    if text.trim().is_empty() {
        return Err(Refusal::usual().hint("write \"none\" for no script"));
    }
    if text.len() > limits::WARMUP_BYTES_MAX {
        let max = limits::WARMUP_BYTES_MAX;
        let refusal = Refusal::says(format!("found {} bytes, allowed are {max}", text.len()));
        return Err(refusal.hint("put the script into the image and call it here"));
    }
    if text.contains('\0') { Err(Refusal::says("found a script with a NUL byte in it")) } else { Ok(()) }
}

/// The name of an upload: it is a label of metrics and part of the journal.
pub fn upload_name(text: &str) -> Result<(), Refusal> {
    let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.');
    let fits = (1..=limits::UPLOAD_NAME_BYTES_MAX).contains(&text.len());
    if letters && fits { Ok(()) } else { Err(Refusal::usual()) }
}

/// A folder that must be absolute, as it is no part of the installation.
pub fn folder(written: &str, folders: &Folders) -> Result<PathBuf, Refusal> {
    plain(written)?;
    if !written.starts_with(['/', '~']) {
        return Err(Refusal::usual().hint(format!("as \"{}\"", folders.home.join(written).display())));
    }
    folders.path(written)
}

/// Where artifacts are PUT to. Plain HTTP would send them, and the token, for everybody to read.
pub fn url(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    let url: reqwest::Url = text.parse().map_err(|_| Refusal::usual())?;
    if !url.username().is_empty() || url.password().is_some() {
        // The text is not shown: there is a password in it.
        let says = "found a URL with a user name or password in it, which logs would show";
        return Err(Refusal::says(says).hint("put a token into a file and name it as `token_file`"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        let says =
            format!("found {}, and a path is added to it, which `?` and `#` do not let", shown_text(text));
        return Err(Refusal::says(says));
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if is_loopback(&url) => Ok(()),
        "http" => {
            let says = format!("found {}, which is plain http to another host", shown_text(text));
            Err(Refusal::says(says).hint("write https://, or send it through a proxy on this host"))
        }
        _ => Err(Refusal::usual()),
    }
}

/// Whether it stays on this host.
pub fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An address to listen at.
pub fn listen(text: &str) -> Result<SocketAddr, Refusal> {
    let hint = match text.strip_prefix("localhost") {
        Some(rest) => format!("write \"127.0.0.1{rest}\""),
        None => "as \"127.0.0.1:7780\", or \"[::1]:7780\"".into(),
    };
    text.parse().map_err(|_| Refusal::usual().hint(hint))
}

/// A filter of log lines.
pub fn log_filter(text: &str) -> Result<(), Refusal> {
    plain(text)?;
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(()),
        Err(e) => Err(Refusal::says(format!("found {}, which is no filter: {e}", shown_text(text)))
            .hint("as \"info\", or \"info,preheat::pool=debug\"")),
    }
}

/// Whether a path stays below where it starts: relative, without `..`.
pub fn stays_below(path: &str) -> bool {
    !path.contains('\0')
        && Path::new(path).components().all(|part| match part {
            Component::Normal(_) | Component::CurDir => true,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => false,
        })
}

/// For warnings: the place of a value, in words.
pub fn from_where(origin: &Origin) -> String {
    match origin {
        Origin::Default => "by default".into(),
        Origin::File { .. } | Origin::HostFile { .. } | Origin::Environment { .. } | Origin::Request => {
            format!("in {origin}")
        }
    }
}
