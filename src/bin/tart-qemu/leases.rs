//! The lease file, laid out as macOS's `/var/db/dhcpd_leases`.
//!
//! As there, an entry outlives its guest: `ip` of a VM that has died still answers.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Failure, Outcome};
use crate::home::Home;
use crate::lock;

const LEASE_SECONDS: u64 = 86_400;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub name: String,
    pub mac: String,
    pub ip: Ipv4Addr,
    pub expires: u64,
}

fn path(home: &Home) -> PathBuf {
    home.root().join("dhcpd_leases")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Reads as strictly as Tart does: one malformed line and nobody has an address.
pub fn parse(text: &str) -> Result<Vec<Lease>, String> {
    let mut leases = Vec::new();
    let mut open: Option<Vec<(&str, &str)>> = None;
    for (number, line) in text.lines().filter(|line| !line.is_empty()).enumerate() {
        let bad =
            |message: &str| format!("unexpected DHCPD leases file format on line {}: {message}", number + 1);
        match (line, &mut open) {
            ("{", None) => open = Some(Vec::new()),
            ("{", Some(_)) => return Err(bad("unexpected lease block start ({)")),
            ("}", Some(fields)) => {
                leases.extend(from_fields(fields));
                open = None;
            }
            ("}", None) => return Err(bad("unexpected lease block end (})")),
            (line, fields) => {
                let pair =
                    line.trim_start().split_once('=').ok_or_else(|| bad("key-value pair with only a key"))?;
                fields.get_or_insert_default().push(pair);
            }
        }
    }
    if open.is_some() {
        return Err("truncated DHCPD leases file".to_owned());
    }
    Ok(leases)
}

fn from_fields(fields: &[(&str, &str)]) -> Option<Lease> {
    let field = |wanted: &str| fields.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
    let (kind, mac) = field("hw_address")?.split_once(',')?;
    if kind != "1" {
        return None;
    }
    Some(Lease {
        name: field("name").unwrap_or_default().to_owned(),
        mac: mac.to_owned(),
        ip: field("ip_address")?.parse().ok()?,
        expires: u64::from_str_radix(field("lease")?.trim_start_matches("0x"), 16).ok()?,
    })
}

fn render(leases: &[Lease]) -> String {
    leases
        .iter()
        .map(|Lease { name, mac, ip, expires }| {
            format!("{{\n\tname={name}\n\tip_address={ip}\n\thw_address=1,{mac}\n\tidentifier=1,{mac}\n\tlease=0x{expires:x}\n}}\n")
        })
        .collect()
}

fn read(home: &Home) -> Outcome<Vec<Lease>> {
    match fs::read_to_string(path(home)) {
        Ok(text) => parse(&text).map_err(Failure::Foreign),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Failure::io("dhcpd_leases", &error)),
    }
}

/// The address of `mac`, from the entry that expires last.
pub fn resolve(home: &Home, mac: &str) -> Outcome<Option<Ipv4Addr>> {
    let now = now();
    let leases = read(home)?;
    let live = leases.iter().filter(|lease| lease.mac == mac && lease.expires > now);
    Ok(live.max_by_key(|lease| lease.expires).map(|lease| lease.ip))
}

pub fn grant(home: &Home, name: &str, mac: &str, ip: Ipv4Addr) -> Outcome {
    let fail = |error: io::Error| Failure::io("dhcpd_leases", &error);
    let guard = home.root().join("dhcpd_leases.lock");
    fs::OpenOptions::new().create(true).truncate(false).write(true).open(&guard).map_err(fail)?;
    let _held = lock::exclusive(&guard).map_err(fail)?;
    let now = now();
    let mut leases = read(home).unwrap_or_default();
    leases.retain(|lease| lease.mac != mac && lease.ip != ip && lease.expires > now);
    leases.push(Lease { name: name.to_owned(), mac: mac.to_owned(), ip, expires: now + LEASE_SECONDS });
    let fresh = path(home).with_extension("new");
    fs::write(&fresh, render(&leases)).and_then(|()| fs::rename(&fresh, path(home))).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let lease = Lease {
            name: "linux".to_owned(),
            mac: "52:54:00:00:00:01".to_owned(),
            ip: Ipv4Addr::new(127, 64, 0, 1),
            expires: 0x6500_0000,
        };
        assert_eq!(parse(&render(std::slice::from_ref(&lease))), Ok(vec![lease]));
    }

    #[test]
    fn one_malformed_line_spoils_the_file() {
        assert!(parse("{\n\tip_address\n}\n").is_err());
        assert!(parse("{\n\tname=x\n").is_err());
        assert!(parse("}\n").is_err());
    }
}
