//! The memory available to this process.

use std::fs::read_to_string;
use std::path::Path;

use rustix::system::sysinfo;

/// The default of `limits.buffer_bytes` is this fraction of the memory.
const BUFFER_FRACTION: u64 = 4;
/// The minimum of that default: 64 KiB each for a hundred slow readers.
const MIN_BUFFER_BYTES: u64 = 8 * 1024 * 1024;

/// An idle connection uses half of this, most of it in the kernel; one with a stalled hello no more than this.
const PER_CONNECTION: u64 = 16 * 1024;

/// In bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory(u64);

impl Memory {
    /// The memory of the machine, or the limit of the control groups, as it is now.
    pub(super) fn read() -> Self {
        let own = read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self(cgroup_limit(Path::new("/sys/fs/cgroup"), &own).unwrap_or(u64::MAX).min(total()))
    }

    /// The default of `limits.buffer_bytes`.
    pub(super) fn buffer_bytes(self) -> usize {
        usize::try_from((self.0 / BUFFER_FRACTION).max(MIN_BUFFER_BYTES)).unwrap_or(usize::MAX)
    }

    /// The number of connections that fit into the memory.
    pub(super) fn connections(self) -> usize {
        usize::try_from(self.0 / PER_CONNECTION).unwrap_or(usize::MAX)
    }
}

fn total() -> u64 {
    let info = sysinfo();
    (info.totalram as u64).saturating_mul(info.mem_unit.into())
}

/// The lowest limit of the control groups of this process; `own` is the content of `/proc/self/cgroup` (cgroups(7)).
fn cgroup_limit(root: &Path, own: &str) -> Option<u64> {
    let groups = own.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        if controllers.is_empty() {
            Some((root.to_owned(), "memory.max", path))
        } else if controllers.split(',').any(|controller| controller == "memory") {
            Some((root.join("memory"), "memory.limit_in_bytes", path))
        } else {
            None
        }
    });
    let limits = groups.flat_map(|(root, file, path)| {
        // In a container the path may be that of the host; its own group is at the root then.
        let ancestors = Path::new(path.trim_start_matches('/')).ancestors();
        ancestors.filter_map(move |group| read_to_string(root.join(group).join(file)).ok()?.trim().parse().ok())
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f10_the_lowest_limit_of_all_groups_counts() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let write = |file: &str, text: &str| {
            std::fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            std::fs::write(root.join(file), text).unwrap();
        };
        assert_eq!(cgroup_limit(root, "0::/a/b\n"), None);
        write("a/memory.max", "134217728\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(cgroup_limit(root, "0::/a/b\n"), Some(128 << 20));
        write("memory.max", "1000\n");
        assert_eq!(cgroup_limit(root, "0::/not/here\n"), Some(1000), "in a container");
        write("memory/c/memory.limit_in_bytes", "67108864\n");
        assert_eq!(cgroup_limit(root, "9:cpu,cpuacct:/\n4:memory:/c/d\n"), Some(64 << 20));
        assert_eq!(cgroup_limit(root, "nonsense"), None);
        assert!(Memory::read().buffer_bytes() >= 8 << 20);
    }
}
