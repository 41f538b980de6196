//! What the kernel says of a process and its children.

use std::fs;
use std::time::Duration;

/// The process and its children.
pub fn family(pid: u32) -> Vec<u32> {
    let mut pids = vec![pid];
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{child}/stat")) else { continue };
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if parent == Some(pid) {
            pids.push(child);
        }
    }
    pids
}

/// CPU time of all its threads, to the nanosecond.
pub fn cpu(pid: u32) -> Duration {
    let mut nanoseconds = 0;
    for pid in family(pid) {
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let Ok(schedstat) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            nanoseconds += schedstat.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    Duration::from_nanos(nanoseconds)
}

/// Resident memory, in bytes.
pub fn resident(pid: u32) -> f64 {
    let resident = |pid| field(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), "VmRSS:");
    family(pid).into_iter().map(resident).sum()
}

/// The kernel's own memory for objects, sockets among them, in bytes.
pub fn slab() -> f64 {
    field(&fs::read_to_string("/proc/meminfo").unwrap(), "Slab:")
}

fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
}
