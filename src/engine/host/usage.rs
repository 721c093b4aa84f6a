//! What a run used of the machine, for the report and for tests of the memory promise.

use std::path::{Path, PathBuf};

use super::cgroup::{Version, memory_trees};
use super::memory::{kib_field, stat_field};

/// Memory of this process and its cgroup. None where the system does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct MemoryUsage {
    /// Most resident memory ever, in bytes (`VmHWM`). Counts mapped file pages: not a measure of need.
    pub peak_resident: Option<u64>,
    /// Resident memory of its own now, in bytes (`RssAnon`).
    pub anonymous: Option<u64>,
    /// Resident mapped file pages now, in bytes (`RssFile`).
    pub mapped: Option<u64>,
    /// Most that was ever charged to the own cgroup, in bytes, page cache included.
    pub cgroup_peak: Option<u64>,
    /// How often the cgroup's limit was hit so far: reclaim had to make room.
    pub limit_hits: Option<u64>,
    /// Processes of the cgroup killed for lack of memory so far.
    pub oom_kills: Option<u64>,
}

impl MemoryUsage {
    /// The peak in words: of the container if it has a counter of its own, and of the process.
    pub fn describe(&self) -> String {
        let text =
            |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), crate::human::bytes);
        format!("{} resident", text(self.peak_resident))
    }
}

/// Reads the counters as they are now. Counters of the cgroup run since the group was made: a report
/// takes one snapshot at the start and shows the difference.
pub fn snapshot() -> MemoryUsage {
    snapshot_with(|path| std::fs::read_to_string(path).ok())
}

fn snapshot_with(read: impl Fn(&Path) -> Option<String>) -> MemoryUsage {
    let text = |path: &str| read(Path::new(path)).unwrap_or_default();
    let status = text("/proc/self/status");
    let mut usage = MemoryUsage {
        peak_resident: kib_field(&status, "VmHWM"),
        anonymous: kib_field(&status, "RssAnon"),
        mapped: kib_field(&status, "RssFile"),
        ..MemoryUsage::default()
    };
    for tree in memory_trees(&text("/proc/self/cgroup"), &text("/proc/self/mountinfo")) {
        let own: PathBuf = tree.directories().swap_remove(0);
        let number = |name: &str| read(&own.join(name)).and_then(|t| t.trim().parse::<u64>().ok());
        let field = |file: &str, name: &str| stat_field(&read(&own.join(file))?, name);
        let (peak, hits, kills) = match tree.version {
            Version::V1 => (
                number("memory.max_usage_in_bytes"),
                number("memory.failcnt"),
                field("memory.oom_control", "oom_kill"),
            ),
            Version::V2 => (
                number("memory.peak"),
                field("memory.events", "max"),
                field("memory.events", "oom_kill"),
            ),
        };
        // On hybrid hosts only one of the trees has the memory controller.
        usage.cgroup_peak = usage.cgroup_peak.or(peak);
        usage.limit_hits = usage.limit_hits.or(hits);
        usage.oom_kills = usage.oom_kills.or(kills);
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_a_v2_group_are_read() {
        let usage = snapshot_with(|path| {
            let text = match path.to_str().unwrap() {
                "/proc/self/status" => "VmHWM:\t  2048 kB\nRssAnon:\t 1024 kB\nRssFile:\t 4 kB\n",
                "/proc/self/cgroup" => "0::/a\n",
                "/proc/self/mountinfo" => "30 25 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
                "/cg/a/memory.peak" => "4096\n",
                "/cg/a/memory.events" => "low 0\nhigh 3\nmax 7\noom 1\noom_kill 2\n",
                _ => return None,
            };
            Some(text.to_owned())
        });
        assert_eq!(usage.peak_resident, Some(2 << 20));
        assert_eq!(usage.anonymous, Some(1 << 20));
        assert_eq!(usage.mapped, Some(4096));
        assert_eq!(usage.cgroup_peak, Some(4096));
        assert_eq!((usage.limit_hits, usage.oom_kills), (Some(7), Some(2)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_memory() {
        let usage = snapshot();
        assert!(usage.peak_resident.unwrap() >= usage.anonymous.unwrap());
    }
}
