//! As much of qcow2 as a clone needs: read a header, write an empty overlay.
//!
//! Written here and not by `qemu-img`, whose start alone costs more than the whole clone.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: u32 = 0x5146_49fb;
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const HEADER_BYTES: u32 = 104;
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Each entry of the first table stands for an L2 table, that is for 512 MiB.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER * (CLUSTER / 8);

pub struct Header {
    pub virtual_bytes: u64,
    pub backing: Option<String>,
    l1_entries: u32,
    l1_offset: u64,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// `None` when the file is not qcow2.
pub fn read_header(path: &Path) -> io::Result<Option<Header>> {
    let mut file = File::open(path)?;
    let mut head = [0; HEADER_BYTES as usize];
    if file.read_exact(&mut head).is_err() || be32(&head, 0) != MAGIC {
        return Ok(None);
    }
    let (name_at, name_bytes) = (be64(&head, 8), be32(&head, 16));
    let backing = if name_at == 0 {
        None
    } else {
        let mut name = vec![0; name_bytes as usize];
        file.seek(SeekFrom::Start(name_at))?;
        file.read_exact(&mut name)?;
        Some(String::from_utf8_lossy(&name).into_owned())
    };
    Ok(Some(Header {
        virtual_bytes: be64(&head, 24),
        backing,
        l1_entries: be32(&head, 36),
        l1_offset: be64(&head, 40),
    }))
}

impl Header {
    /// Whether nothing was ever written into this overlay.
    pub fn is_untouched(&self, path: &Path) -> io::Result<bool> {
        let mut table = vec![0; self.l1_entries as usize * 8];
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(self.l1_offset))?;
        file.read_exact(&mut table)?;
        Ok(table.iter().all(|byte| *byte == 0))
    }
}

/// The files a disk is made of below its top, topmost first; they lie in the VM's own directory.
pub fn layers(disk: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut at = disk.to_owned();
    while let Some(backing) = read_header(&at)?.and_then(|header| header.backing) {
        at = at.with_file_name(backing);
        found.push(at.clone());
    }
    Ok(found)
}

pub fn virtual_bytes(disk: &Path) -> io::Result<u64> {
    Ok(match read_header(disk)? {
        Some(header) => header.virtual_bytes,
        None => fs::metadata(disk)?.len(),
    })
}

/// Writes an overlay with no data of its own over `backing`, a file name beside it.
pub fn write_overlay(path: &Path, backing: &str, backing_format: &str, virtual_bytes: u64) -> io::Result<()> {
    let l1_entries = virtual_bytes.div_ceil(BYTES_PER_L1_ENTRY).max(1);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    let mut head = Vec::with_capacity(512);
    let mut word = |value: u32| head.extend_from_slice(&value.to_be_bytes());
    let (low, high) = (virtual_bytes as u32, (virtual_bytes >> 32) as u32);
    let name_at = HEADER_BYTES + 8 + 8 + 8;
    // magic, version, backing name, cluster size, disk size, no encryption
    for value in [MAGIC, 3, 0, name_at, backing.len() as u32, CLUSTER_BITS, high, low, 0] {
        word(value);
    }
    // L1 table in cluster 3; refcount table in cluster 1; no snapshots
    for value in [l1_entries as u32, 0, 3 * CLUSTER as u32, 0, CLUSTER as u32, 1, 0, 0, 0] {
        word(value);
    }
    // no feature bits; 16-bit refcounts; header length
    for value in [0, 0, 0, 0, 0, 0, 4, HEADER_BYTES] {
        word(value);
    }
    word(BACKING_FORMAT);
    word(backing_format.len() as u32);
    head.extend_from_slice(backing_format.as_bytes());
    head.resize(HEADER_BYTES as usize + 16, 0);
    head.resize(name_at as usize, 0); // the end of the extensions
    head.extend_from_slice(backing.as_bytes());

    let mut file = File::create(path)?;
    file.set_len((3 + l1_clusters) * CLUSTER)?;
    file.write_all(&head)?;
    file.seek(SeekFrom::Start(CLUSTER))?;
    file.write_all(&(2 * CLUSTER).to_be_bytes())?;
    file.seek(SeekFrom::Start(2 * CLUSTER))?;
    for _ in 0..3 + l1_clusters {
        file.write_all(&1_u16.to_be_bytes())?;
    }
    Ok(())
}
