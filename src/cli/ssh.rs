//! `preheat ssh`: this process becomes `ssh`.

use std::ffi::CString;
use std::net::IpAddr;
use std::path::Path;

use super::client::Client;
use super::configuration;
use super::exit::Exit;
use super::problem::Problem;
use crate::api::wire::{VmList, VmView};
use crate::config::Pool;
use crate::ids::BuildId;

/// Finds the VM, then becomes `ssh`; returns only when that is not possible.
pub async fn command(
    client: &Client,
    vm: &str,
    config: Option<&Path>,
    command: &[String],
) -> Result<Exit, Problem> {
    let list: VmList = client.get(&["api", "v1", "vms"], &[]).await?;
    let vm = find(&list.vms, vm)?;
    let address = vm.address.as_deref().and_then(|a| a.parse::<IpAddr>().ok()).ok_or_else(|| {
        Problem::system(format!("the VM `{}` is {} and has no address yet", vm.name, vm.state))
            .hint("try again in a moment")
    })?;
    let config = configuration::load(config)?.config;
    let pool = config.pools.iter().find(|(name, _)| name.as_str() == vm.pool).map(|(_, pool)| pool);
    let pool = pool.ok_or_else(|| {
        Problem::usage(format!("the configuration here has no pool `{}`", vm.pool))
            .hint("run it on the daemon's host, with the daemon's configuration (--config)")
    })?;
    if vm.build.is_none() {
        super::say(&format!(
            "warning: `{}` runs no build; what is changed in it stays there for the build that gets it",
            vm.name
        ));
    }
    become_ssh(&arguments(pool, address, command))
}

/// The VM with that name, or the one of that build.
fn find<'v>(vms: &'v [VmView], wanted: &str) -> Result<&'v VmView, Problem> {
    let build = wanted.parse::<BuildId>().ok();
    let found = vms.iter().find(|vm| vm.name == wanted || (build.is_some() && vm.build == build));
    found.ok_or_else(|| match build {
        Some(id) => Problem::usage(format!("build {id} has no VM: it waits, or is over")),
        None => Problem::usage(format!("there is no VM `{wanted}`")).hint("`preheat vms` lists them"),
    })
}

/// The guest was made a minute ago and its key is its image's, so there is no host key to know.
fn arguments(pool: &Pool, address: IpAddr, command: &[String]) -> Vec<String> {
    let mut args: Vec<String> =
        ["ssh", "-F", "none", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no"]
            .map(str::to_owned)
            .to_vec();
    args.extend(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"].map(str::to_owned));
    args.extend(["-i".into(), pool.key.display().to_string(), "-p".into(), pool.port.to_string()]);
    args.extend(["-l".into(), pool.user.clone(), "--".into(), address.to_string()]);
    args.extend(command.iter().cloned());
    args
}

fn become_ssh(args: &[String]) -> Result<Exit, Problem> {
    let cannot =
        |why: String| Problem::system(format!("cannot run `ssh`: {why}")).hint("install OpenSSH's client");
    let args: Vec<_> = args
        .iter()
        .map(|a| CString::new(a.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|e| cannot(e.to_string()))?;
    match nix::unistd::execvp(&args[0], &args) {
        Ok(never) => match never {},
        Err(errno) => Err(cannot(errno.desc().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;

    fn vm(name: &str, build: Option<u64>) -> VmView {
        VmView {
            name: name.into(),
            pool: "linux".into(),
            slot: 0,
            state: "leased".into(),
            since_ms: UnixMillis(0),
            address: None,
            build: build.map(BuildId),
            pid: None,
        }
    }

    #[test]
    fn a_vm_is_found_by_its_name_and_by_its_build() {
        let vms = [vm("preheat-linux-0-1", None), vm("preheat-linux-1-2", Some(7))];
        assert_eq!(find(&vms, "preheat-linux-0-1").map(|v| v.slot), Ok(0));
        assert_eq!(find(&vms, "7").map(|v| v.name.as_str()), Ok("preheat-linux-1-2"));
        assert!(find(&vms, "8").is_err() && find(&vms, "other").is_err());
    }
}
