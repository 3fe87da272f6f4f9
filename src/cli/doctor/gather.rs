//! Looks at this host. Each look has a deadline, changes nothing that lasts, and an answer that does not come is a fact.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::facts::{
    Configured, Facts, HomeFacts, HostFacts, ImageFacts, KeyFacts, LinuxFacts, MacFacts, Port,
};
use crate::api::serve::{BindError, bind};
use crate::api::wire::{PoolList, TroubleView};
use crate::cli::client::Client;
use crate::cli::parts;
use crate::config::{ByteSize, Config};
use crate::images::generation;
use crate::runtime::command::{Invocation, Output};
use crate::runtime::{Fault, ImageInfo, Reason, Runtime};

/// For each command that is asked.
const LOOK: Duration = Duration::from_secs(10);
const DHCP_PLIST: &str = "/Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist";

/// Everything that [`evaluate`](super::evaluate::evaluate) wants to know.
pub async fn gather(config: Option<&Path>) -> Facts {
    let config = match parts::load_config(config) {
        Ok(loaded) => Ok(configured(&loaded.config).await),
        Err(mistakes) => Err(mistakes),
    };
    Facts {
        config,
        ssh: version("ssh", "-V").await,
        descriptors: asked("sh", &["-c", "ulimit -n"]).await.ok().and_then(|o| o.stdout.trim().parse().ok()),
        host: if cfg!(target_os = "macos") {
            HostFacts::Mac(mac().await)
        } else {
            HostFacts::Linux(linux().await)
        },
    }
}

async fn configured(config: &Config) -> Configured {
    let runtime = parts::runtime(config);
    let missing =
        || Fault::new(Reason::ProgramMissing, config.runtime.program.clone(), "there is no such runtime");
    let version = runtime.version().await;
    let mut images = Vec::new();
    for (pool, settings) in &config.pools {
        let (image, found) = match version {
            Ok(_) => image(runtime.as_ref(), &settings.image).await,
            Err(_) => (settings.image.clone(), Err(missing())),
        };
        images.push(ImageFacts { pool: pool.to_string(), image, found });
    }
    let key = |(pool, settings): (&crate::ids::PoolName, &crate::config::Pool)| KeyFacts {
        pool: pool.to_string(),
        path: settings.key.clone(),
        mode: std::fs::metadata(&settings.key).map(|m| m.permissions().mode()).map_err(|e| e.to_string()),
    };
    let (port, troubles) = port(config).await;
    Configured {
        pools: config.pools.len(),
        home: home(config),
        program: config.runtime.program.clone(),
        version,
        images,
        keys: config.pools.iter().map(key).collect(),
        listen: config.api.listen,
        port,
        troubles,
        control_socket: parts::control_socket(),
    }
}

/// The image, or where there is no VM of its name, its newest generation. Which one a daemon uses, `preheat image list` says.
async fn image(runtime: &dyn Runtime, name: &str) -> (String, Result<ImageInfo, Fault>) {
    let found = runtime.image(name).await;
    if !found.as_ref().is_err_and(|fault| fault.reason == Reason::ImageMissing) {
        return (name.to_owned(), found);
    }
    let listed = runtime.list().await.unwrap_or_default();
    match generation::there(name, listed.iter().map(|row| row.name.as_str())).last() {
        Some(newest @ Some(_)) => {
            let vm = generation::vm(name, *newest);
            let found = runtime.image(&vm).await;
            (vm, found)
        }
        Some(None) | None => (name.to_owned(), found),
    }
}

/// A home that is not there yet is judged by the nearest folder above it that is.
fn home(config: &Config) -> HomeFacts {
    let path = config.home.path();
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(path);
    let writable =
        tempfile::Builder::new().prefix(".doctor-").tempfile_in(there).map(drop).map_err(|e| e.to_string());
    let free = nix::sys::statvfs::statvfs(there).ok();
    let free = free.map(|s| ByteSize(wide(s.blocks_available()).saturating_mul(wide(s.fragment_size()))));
    HomeFacts { path: path.to_owned(), writable, free, free_min: config.host.disk_free_min }
}

/// These fields are 32 bits wide on macOS and 64 on Linux.
fn wide(field: impl Into<u64>) -> u64 {
    field.into()
}

/// Who is at `api.listen`, and what troubles it has when it is us.
async fn port(config: &Config) -> (Port, Vec<(String, TroubleView)>) {
    let listen = config.api.listen;
    let error = match bind(listen).await {
        Ok(_) => return (Port::Free, Vec::new()),
        Err(error) => error,
    };
    if matches!(error, BindError::InUse { .. })
        && let Some(troubles) = daemon(listen, config).await
    {
        return (Port::Ours, troubles);
    }
    (Port::Taken { why: error.to_string(), hint: error.hint() }, Vec::new())
}

/// The troubles of the daemon there; `None` when it is none of ours.
async fn daemon(listen: SocketAddr, config: &Config) -> Option<Vec<(String, TroubleView)>> {
    let mut reach = listen;
    if listen.ip().is_unspecified() {
        reach.set_ip([127, 0, 0, 1].into());
    }
    let client = Client::new(&format!("http://{reach}"), config.api.token_file.as_deref()).ok()?;
    let list: PoolList = client.get(&["api", "v1", "pools"], &[]).await.ok()?;
    Some(list.pools.into_iter().filter_map(|p| Some((p.name, p.trouble?))).collect())
}

async fn asked(program: &str, args: &[&str]) -> Result<Output, String> {
    let output =
        Invocation::new(program).args(args.iter().copied()).output(LOOK).await.map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(output);
    }
    let said = format!("{}{}", output.stderr, output.stdout);
    Err(said.lines().next().unwrap_or("it failed without a word").to_owned())
}

/// The first line that a program says of itself, wherever it says it.
async fn version(program: &str, flag: &str) -> Result<String, String> {
    let output = asked(program, &[flag]).await?;
    let said = format!("{}{}", output.stdout, output.stderr);
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

async fn linux() -> LinuxFacts {
    let qemu = format!("qemu-system-{}", std::env::consts::ARCH);
    let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    LinuxFacts { qemu: version(&qemu, "--version").await, kvm: kvm.map(drop).map_err(|e| e.to_string()) }
}

async fn mac() -> MacFacts {
    let uid = nix::unistd::getuid();
    let keychain = asked("security", &["show-keychain-info"]).await.map(drop);
    let leases = asked("defaults", &["read", DHCP_PLIST, "bootpd"]).await.ok();
    let release = asked("sw_vers", &["-productVersion"]).await.ok();
    let power = asked("pmset", &["-g"]).await.ok();
    MacFacts {
        session: asked("launchctl", &["print", &format!("gui/{uid}")]).await.is_ok(),
        keychain,
        dhcp_lease_s: leases.and_then(|o| number_after(&o.stdout, "DHCPLeaseTimeSecs")),
        version: release.and_then(|o| o.stdout.trim().split('.').next()?.parse().ok()),
        root: uid.is_root(),
        sleep_min: power.and_then(|o| number_after(&o.stdout, "sleep")),
    }
}

/// The number on the line that starts with `word`, as in `DHCPLeaseTimeSecs = 600;` and `sleep  0 (sleep prevented ..)`.
fn number_after(text: &str, word: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split([' ', '\t', '=', ';']).filter(|w| !w.is_empty());
        (words.next()?.trim_matches('"') == word).then(|| words.next())??.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_macs_settings_are_read_from_what_its_tools_print() {
        let leases = "{\n    DHCPLeaseTimeSecs = 600;\n}\n";
        let power = "Currently in use:\n standby              0\n sleep                10 (sleep prevented by powerd)\n";
        assert_eq!(number_after(leases, "DHCPLeaseTimeSecs"), Some(600));
        assert_eq!(number_after(power, "sleep"), Some(10));
        assert_eq!(number_after("disksleep 10\n", "sleep"), None);
    }
}
