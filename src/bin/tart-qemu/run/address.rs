//! A loopback address of the VM's own, reserved for as long as `run` lives.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Failure, Outcome};

pub const SSH_PORT: u16 = 2222;
const TRIES: u32 = 4096;

/// The reservation is a UDP socket: whoever binds it has the address, whatever home or user it works for.
pub struct Address {
    pub ip: Ipv4Addr,
    /// Host ports that lead to the guest's sshd.
    pub ports: Vec<u16>,
    _reservation: UdpSocket,
}

/// Starts from the home and the MAC, so that a VM that runs again tends to get the address it had.
pub fn reserve(home: &Path, mac: &str) -> Outcome<Address> {
    let hash = Sha256::digest(format!("{}\n{mac}", home.display()));
    let first = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    let mut last_error = None;
    for step in 0..TRIES {
        let ip = candidate(first.wrapping_add(step));
        match take(ip) {
            Ok(address) => return Ok(address),
            Err(error) => last_error = Some(error),
        }
    }
    let why = last_error.map(|error| error.to_string()).unwrap_or_default();
    Err(Failure::Generic(format!(
        "no loopback address with a free port {SSH_PORT}: {why} (hint: nothing may listen on 0.0.0.0:{SSH_PORT}; on macOS \
         add addresses with `sudo ifconfig lo0 alias 127.64.0.1`)"
    )))
}

/// 127.64.0.1 to 127.127.255.254, without the ends of each /24.
fn candidate(number: u32) -> Ipv4Addr {
    let last = number % 254 + 1;
    let rest = number / 254;
    Ipv4Addr::new(127, 64 + (rest >> 8 & 63) as u8, (rest & 255) as u8, last as u8)
}

fn take(ip: Ipv4Addr) -> std::io::Result<Address> {
    let reservation = UdpSocket::bind((ip, SSH_PORT))?;
    drop(TcpListener::bind((ip, SSH_PORT))?);
    let mut ports = vec![SSH_PORT];
    // Unprivileged users may not, and a host's own sshd on 0.0.0.0 is in the way.
    if TcpListener::bind((ip, 22)).is_ok() {
        ports.push(22);
    }
    Ok(Address { ip, ports, _reservation: reservation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_reservations_never_share_an_address() {
        let home = Path::new("/nowhere");
        let first = reserve(home, "02:00:00:00:00:01").expect("an address");
        let second = reserve(home, "02:00:00:00:00:01").expect("another address");
        assert_ne!(first.ip, second.ip);
    }

    #[test]
    fn candidates_stay_in_their_range() {
        for number in [0, 253, 254, 65_535, u32::MAX, 4_128_767] {
            let [a, b, _, d] = candidate(number).octets();
            assert!(a == 127 && (64..128).contains(&b) && (1..=254).contains(&d), "{number}");
        }
    }
}
