//! How much memory this process may be charged for, and who says so.
//!
//! The kernel charges page cache to the cgroup that touches it first, so cgroup limits count for more than
//! what the process allocates. v2: `memory.max` kills, `memory.high` throttles: both are limits here.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::cgroup::{Version, memory_trees};

/// Values from here on mean "no limit" in cgroup v1, which has no word for it.
const V1_NO_LIMIT: u64 = 1 << 60;

/// One limit that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// The limit in bytes.
    pub bytes: u64,
    /// Who sets it: a file, or a name that users know such as `ulimit -v`.
    pub source: String,
}

/// Every limit on memory that was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryLimits {
    /// In the order searched: cgroups from the own group upward, the machine, the process.
    pub found: Vec<Limit>,
}

impl MemoryLimits {
    /// The smallest, which is the one that counts. None where nothing could be found out.
    pub fn effective(&self) -> Option<&Limit> {
        self.found.iter().min_by_key(|limit| limit.bytes)
    }

    /// The smallest that a cgroup sets, if one does: page cache counts against it.
    pub fn cgroup(&self) -> Option<&Limit> {
        let from_cgroup = |limit: &&Limit| limit.source.contains("/memory.");
        self.found.iter().filter(from_cgroup).min_by_key(|limit| limit.bytes)
    }
}

/// Searches all places that can limit the memory of this process.
pub fn discover() -> MemoryLimits {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let mut limits = discover_with(read);
    for (resource, source) in [
        (Resource::As, "address space limit (ulimit -v)"),
        (Resource::Data, "data limit (ulimit -d)"),
    ] {
        if let Some(bytes) = getrlimit(resource).current {
            limits.found.push(Limit { bytes, source: source.to_owned() });
        }
    }
    limits
}

/// The part of [`discover`] that reads files, with the reading left to the caller.
fn discover_with(read: impl Fn(&Path) -> Option<String>) -> MemoryLimits {
    let mut found = Vec::new();
    let text = |path: &str| read(Path::new(path)).unwrap_or_default();
    for tree in memory_trees(&text("/proc/self/cgroup"), &text("/proc/self/mountinfo")) {
        for dir in tree.directories() {
            // A tree may be mounted without the memory controller: the files decide.
            let names: &[&str] = match tree.version {
                Version::V1 => &["memory.limit_in_bytes"],
                Version::V2 => &["memory.max", "memory.high"],
            };
            for name in names {
                let path = dir.join(name);
                if let Some(bytes) = read(&path).as_deref().and_then(parse_limit) {
                    found.push(Limit { bytes, source: path.display().to_string() });
                }
            }
            if tree.version == Version::V1 {
                // Covers ancestors that a container cannot see.
                let path = dir.join("memory.stat");
                let stat = read(&path).unwrap_or_default();
                let hidden = stat_field(&stat, "hierarchical_memory_limit");
                if let Some(bytes) = hidden.filter(|&b| b < V1_NO_LIMIT)
                    && found.iter().all(|limit: &Limit| limit.bytes > bytes)
                {
                    let source = format!("{} (hierarchical_memory_limit)", path.display());
                    found.push(Limit { bytes, source });
                }
            }
        }
    }
    if let Some(bytes) = parse_mem_available(&text("/proc/meminfo")) {
        found.push(Limit { bytes, source: "MemAvailable in /proc/meminfo".to_owned() });
    }
    MemoryLimits { found }
}

/// A limit file of either version: bytes, or no limit (`max`, -1, or a huge number in v1).
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes| bytes < V1_NO_LIMIT)
}

/// The value of a `name value` line.
pub(super) fn stat_field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn parse_mem_available(meminfo: &str) -> Option<u64> {
    kib_field(meminfo, "MemAvailable")
}

/// The value of a `Name:  123 kB` line, in bytes.
pub(super) fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn limits(files: &[(&str, &str)]) -> MemoryLimits {
        let files: HashMap<&Path, &str> = files.iter().map(|(p, t)| (Path::new(*p), *t)).collect();
        discover_with(|path| files.get(path).map(|t| (*t).to_owned()))
    }

    const V2_MOUNT: &str = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const V1_MOUNT: &str = "31 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    const MEMINFO: &str = "MemTotal:       24684084 kB\nMemAvailable:    1048576 kB\n";

    #[test]
    fn v2_takes_the_smallest_of_own_group_and_ancestors() {
        let found = limits(&[
            ("/proc/self/cgroup", "0::/jobs/one\n"),
            ("/proc/self/mountinfo", V2_MOUNT),
            ("/proc/meminfo", MEMINFO),
            ("/sys/fs/cgroup/jobs/one/memory.max", "max\n"),
            ("/sys/fs/cgroup/jobs/one/memory.high", "536870912\n"),
            ("/sys/fs/cgroup/jobs/memory.max", "268435456\n"),
            ("/sys/fs/cgroup/jobs/memory.high", "max\n"),
        ]);
        let best = found.effective().unwrap();
        assert_eq!(best.bytes, 256 << 20);
        assert_eq!(best.source, "/sys/fs/cgroup/jobs/memory.max");
        assert_eq!(found.found.len(), 3);
        assert_eq!(found.cgroup(), Some(best));
    }

    #[test]
    fn v1_knows_hidden_ancestors_and_its_way_to_say_no_limit() {
        let none = "9223372036854771712\n";
        let base = [
            ("/proc/self/cgroup", "4:memory:/job\n"),
            ("/proc/self/mountinfo", V1_MOUNT),
            ("/proc/meminfo", MEMINFO),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", none),
        ];
        let free = limits(
            &[&base[..], &[("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", none)]].concat(),
        );
        assert_eq!(free.effective().unwrap().source, "MemAvailable in /proc/meminfo");
        assert_eq!(free.effective().unwrap().bytes, 1 << 30);
        assert_eq!(free.cgroup(), None);
        let stat = "cache 0\nhierarchical_memory_limit 67108864\nhierarchical_memsw_limit 1\n";
        let hidden =
            limits(&[&base[..], &[("/sys/fs/cgroup/memory/job/memory.stat", stat)]].concat());
        assert_eq!(hidden.effective().unwrap().bytes, 64 << 20);
        assert!(hidden.effective().unwrap().source.contains("hierarchical"));
        let own = limits(
            &[&base[..], &[("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "67108864\n")]]
                .concat(),
        );
        assert_eq!(
            own.effective().unwrap().source,
            "/sys/fs/cgroup/memory/job/memory.limit_in_bytes"
        );
    }

    #[test]
    fn a_machine_without_any_of_it_has_no_limit() {
        assert_eq!(limits(&[]).effective(), None);
        let garbage =
            limits(&[("/proc/self/cgroup", "x\n"), ("/proc/meminfo", "MemAvailable: ?\n")]);
        assert_eq!(garbage.effective(), None);
        assert_eq!(parse_limit("-1\n"), None);
        assert_eq!(parse_limit("0\n"), Some(0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_some_limit() {
        assert!(discover().effective().unwrap().bytes > 0);
    }
}
