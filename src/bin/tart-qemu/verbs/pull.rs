//! `pull`: the registry is a directory, `TART_QEMU_REGISTRY`, with one VM directory per image.
//!
//! `host/namespace:tag` is looked for as `<dir>/<host>/<namespace>/<tag>`, `<dir>/<namespace>/<tag>` and
//! `<dir>/<last part of the namespace>`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::args;
use crate::error::{Failure, Outcome};
use crate::home::Home;
use crate::oci::{self, Reference, RemoteName};
use crate::vm::VmDir;

pub fn pull(home: &Home, args: &args::Pull) -> Outcome {
    if args.concurrency < 1 {
        return Err(Failure::usage("pull <remote-name>", "network concurrency cannot be less than 1"));
    }
    if home.vm(&args.remote_name).is_whole() {
        println!("\"{}\" is a local image, nothing to pull here!", args.remote_name);
        return Ok(());
    }
    let Some(remote) = RemoteName::parse(&args.remote_name) else {
        return Err(Failure::Generic(format!(
            "failed to parse remote name: mismatched input '<EOF>' expecting '/' (character {})",
            args.remote_name.len() + 1
        )));
    };
    println!("pulling {remote}...");
    fetch(home, &remote)
}

fn in_registry(remote: &RemoteName) -> Option<VmDir> {
    let root = PathBuf::from(std::env::var_os("TART_QEMU_REGISTRY").filter(|root| !root.is_empty())?);
    let last = remote.namespace.rsplit('/').next().unwrap_or_default();
    let tag = remote.reference.value();
    [
        root.join(&remote.host).join(&remote.namespace).join(tag),
        root.join(&remote.namespace).join(tag),
        root.join(last),
    ]
    .into_iter()
    .map(VmDir::new)
    .find(VmDir::is_whole)
}

/// Brings the image into the cache, unless what is there is the same.
pub fn fetch(home: &Home, remote: &RemoteName) -> Outcome {
    let Some(source) = in_registry(remote) else {
        let why = if std::env::var_os("TART_QEMU_REGISTRY").is_none() {
            "Error Domain=NSURLErrorDomain Code=-1003 \"A server with the specified hostname could not be found.\" \
             (hint: set TART_QEMU_REGISTRY to a directory of images)"
                .to_owned()
        } else {
            format!(
                "unexpected HTTP status code 404 when pulling manifest for {remote}: not in TART_QEMU_REGISTRY"
            )
        };
        return Err(Failure::Foreign(why));
    };
    let digest = digest_of(&source)?;
    if let Reference::Digest(wanted) = &remote.reference
        && *wanted != digest
    {
        return Err(Failure::Foreign(format!("digest mismatch: {remote} is {digest}")));
    }
    let by_digest = RemoteName { reference: Reference::Digest(digest), ..remote.clone() };
    let place = by_digest.path(home);
    if !VmDir::new(place.clone()).is_whole() {
        let new = home.temporary()?;
        let _held = home.lock()?;
        source.clone_into(&new.vm(), false)?;
        new.vm().forget_saved_state();
        new.move_to(&place)?;
    }
    match &remote.reference {
        Reference::Digest(_) => {
            fs::write(place.join(".explicitly-pulled"), "").map_err(|error| Failure::io(remote, &error))?;
        }
        Reference::Tag(_) => {
            let tag = remote.path(home);
            let _ = fs::remove_file(&tag);
            symlink(place.file_name().unwrap_or_default(), &tag)
                .map_err(|error| Failure::io(remote, &error))?;
        }
    }
    oci::sweep(home);
    Ok(())
}

/// Not over the disk's bytes, of which there may be many gigabytes: over what says which they are.
fn digest_of(source: &VmDir) -> Outcome<String> {
    let fail = |error: std::io::Error| Failure::io(source.name(), &error);
    let mut hash = Sha256::new();
    hash.update(fs::read(source.config_path()).map_err(fail)?);
    let mut files = vec![source.disk()];
    files.extend(crate::qcow2::layers(&source.disk()).map_err(fail)?);
    for file in files {
        let data = fs::metadata(&file).map_err(fail)?;
        let changed =
            data.modified().map_err(fail)?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        hash.update(format!(
            "{} {} {changed:?}\n",
            file.file_name().unwrap_or_default().display(),
            data.len()
        ));
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}
