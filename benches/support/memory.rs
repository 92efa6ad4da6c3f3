//! Memory of this process as Linux counts it.

use std::fs;
use std::io;

/// Resident bytes now.
pub(crate) fn resident() -> io::Result<u64> {
    read("VmRSS:")
}

/// Peak of the resident bytes since [`forget_peak`], or since the start.
pub(crate) fn peak() -> io::Result<u64> {
    read("VmHWM:")
}

pub(crate) fn forget_peak() -> io::Result<()> {
    fs::write("/proc/self/clear_refs", "5")
}

fn read(name: &str) -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| 1_024 * kib).ok_or_else(|| io::Error::other(format!("/proc/self/status has no {name}")))
}
