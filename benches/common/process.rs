//! What the daemon's process takes of the machine, as Linux counts it.

use anyhow::{Context, Result};

/// One look at it.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    pub resident_mib: f64,
    pub open_files: f64,
    pub threads: f64,
}

impl Taken {
    /// Looks at a process.
    pub fn by(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |field: &str| {
            let line =
                status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| field.to_owned())?;
            anyhow::Ok(line.trim().trim_end_matches(" kB").parse::<f64>()?)
        };
        Ok(Self {
            resident_mib: number("VmRSS:")? / 1024.0,
            open_files: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64,
            threads: number("Threads:")?,
        })
    }
}

/// User and system time, of its threads that are gone too, but not of its children. Linux counts it in hundredths.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the program's name, which may hold anything but this.
    let fields: Vec<&str> = text.rsplit(") ").next().context("fields")?.split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).context("a number");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
