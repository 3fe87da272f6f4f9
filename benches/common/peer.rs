//! What is honest to compare with: a login over a connection of its own, with the daemon's key and options.

use std::time::Duration;

use anyhow::{Result, bail};
use preheat::clock::now;
use preheat::runtime::command::Invocation;

use super::{Installation, SSH_PORT};

const LIMIT: Duration = Duration::from_secs(30);

/// `ssh VM true`, from its process's start to its end.
pub async fn fresh_ssh(installation: &Installation, address: &str) -> Result<Duration> {
    let options = [
        "BatchMode=yes",
        "PreferredAuthentications=publickey",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "GlobalKnownHostsFile=/dev/null",
        "CheckHostIP=no",
        "UpdateHostKeys=no",
        "Compression=no",
        "Ciphers=chacha20-poly1305@openssh.com,aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr",
        "KexAlgorithms=^ecdh-sha2-nistp256,curve25519-sha256",
        "LogLevel=ERROR",
    ];
    let ssh = Invocation::new("ssh")
        .args(["-T", "-F", "/dev/null", "-p", &SSH_PORT.to_string(), "-l", "admin", "-i"])
        .arg(installation.key())
        .args(options.iter().flat_map(|o| ["-o", o]))
        .args(["--", address, "true"]);
    let begun = now();
    let done = ssh.output(LIMIT).await?;
    let took = begun.elapsed();
    if !done.status.success() {
        bail!("ssh {address} true: {}", done.stderr);
    }
    Ok(took)
}
