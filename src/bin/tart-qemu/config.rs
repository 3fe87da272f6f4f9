//! `config.json` as Tart writes it, with what QEMU needs under a key of its own.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Failure, Outcome};
use crate::json;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Os {
    Darwin,
    Linux,
}

impl Os {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Darwin => "darwin",
            Self::Linux => "linux",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Display {
    pub width: u32,
    pub height: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

impl Default for Display {
    fn default() -> Self {
        Self { width: 1024, height: 768, unit: None }
    }
}

impl std::fmt::Display for Display {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}{}", self.width, self.height, self.unit.as_deref().unwrap_or_default())
    }
}

/// How QEMU boots the image. `kernel` and `initrd` lie beside `config.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Boot {
    #[serde(default)]
    pub append: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmConfig {
    pub version: u32,
    #[serde(default = "darwin")]
    pub os: Os,
    #[serde(default = "arm64")]
    pub arch: String,
    pub cpu_count_min: u32,
    pub cpu_count: u32,
    pub memory_size_min: u64,
    pub memory_size: u64,
    pub mac_address: String,
    #[serde(default)]
    pub display: Display,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_refit: Option<bool>,
    #[serde(default = "raw")]
    pub disk_format: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware_model: Option<String>,
    #[serde(default)]
    pub qemu: Boot,
}

fn darwin() -> Os {
    Os::Darwin
}

fn arm64() -> String {
    "arm64".to_owned()
}

fn raw() -> String {
    "raw".to_owned()
}

impl VmConfig {
    pub fn read(path: &Path) -> Outcome<Self> {
        let bytes = fs::read(path).map_err(|error| Failure::io(path.display(), &error))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::Foreign(format!("{}: {error}", path.display())))
    }

    /// Written in place and not through a rename: the lock of a running VM is on this very file.
    pub fn write(&self, path: &Path) -> Outcome {
        fs::write(path, json::pretty(self)).map_err(|error| Failure::io("“config.json”", &error))
    }

    pub fn memory_mib(&self) -> u64 {
        self.memory_size / 1024 / 1024
    }

    pub fn set_cpu(&mut self, count: u32) -> Outcome {
        let least = if self.os == Os::Darwin { self.cpu_count_min.max(1) } else { 1 };
        if count < least {
            return Err(Failure::Foreign(format!(
                "LessThanMinimalResourcesError: VM should have {least} CPU cores at minimum (requested {count})"
            )));
        }
        self.cpu_count = count;
        Ok(())
    }

    pub fn set_memory(&mut self, bytes: u64) -> Outcome {
        const LEAST_OF_ALL: u64 = 128 * 1024 * 1024;
        let least = if self.os == Os::Darwin { self.memory_size_min.max(LEAST_OF_ALL) } else { LEAST_OF_ALL };
        if bytes < least {
            return Err(Failure::Foreign(format!(
                "LessThanMinimalResourcesError: VM should have {least} bytes of memory at minimum (requested {bytes})"
            )));
        }
        self.memory_size = bytes;
        Ok(())
    }
}

pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .expect("/dev/urandom can be read");
    bytes
}

/// A locally administered unicast address.
pub fn random_mac() -> String {
    let mut bytes = random_bytes::<6>();
    bytes[0] = bytes[0] & 0xfc | 0x02;
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
