//! Where this process stands in the cgroup trees, from `/proc` texts.

use std::path::{Path, PathBuf};

/// Which of the two cgroup interfaces a directory belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// One tree per controller; here the one of `memory`.
    V1,
    /// The unified tree.
    V2,
}

/// A cgroup tree that is mounted here, and the own group in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) version: Version,
    mount: PathBuf,
    /// The own group, relative to the mount.
    group: PathBuf,
}

impl Tree {
    /// The directories of the own group and every visible ancestor, own first.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        self.group.ancestors().map(|part| self.mount.join(part)).collect()
    }
}

/// Finds the trees that can limit memory from `/proc/self/cgroup` and `/proc/self/mountinfo`.
pub(super) fn memory_trees(cgroup: &str, mountinfo: &str) -> Vec<Tree> {
    let mut trees = Vec::new();
    for line in cgroup.lines() {
        // hierarchy-id:controllers:path
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let version = if id == "0" && controllers.is_empty() {
            Version::V2
        } else if controllers.split(',').any(|c| c == "memory") {
            Version::V1
        } else {
            continue;
        };
        if let Some((root, mount)) = mount_of(version, mountinfo) {
            let group = group_below(&root, Path::new(path));
            trees.push(Tree { version, mount, group });
        }
    }
    trees
}

/// Root and mount point of the tree, from lines such as
/// `30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate`.
fn mount_of(version: Version, mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, mount) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let kind = right.next()?;
        let options = right.nth(1).unwrap_or("");
        let fits = match version {
            Version::V2 => kind == "cgroup2",
            Version::V1 => kind == "cgroup" && options.split(',').any(|o| o == "memory"),
        };
        fits.then(|| (PathBuf::from(unescape(root)), PathBuf::from(unescape(mount))))
    })
}

/// The own group relative to the mount. In a container without its own cgroup namespace the mount shows
/// only a part of the tree; a group outside of that part is seen as the mount's root.
fn group_below(root: &Path, path: &Path) -> PathBuf {
    let below = path.strip_prefix(root).unwrap_or(Path::new(""));
    // `..` appears when the namespace root lies beside the own group: nothing visible there either.
    let inside = below.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if inside { below.to_owned() } else { PathBuf::new() }
}

/// mountinfo writes blanks as `\040` and so on.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 30 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 30 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 30 0:32 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn both_trees_of_a_hybrid_host_are_found() {
        let trees = memory_trees("8:pids:/\n4:memory:/a/b\n0::/\n", HYBRID);
        assert_eq!(trees.len(), 2);
        assert_eq!(trees[0].version, Version::V1);
        let dirs = trees[0].directories();
        assert_eq!(dirs[0], Path::new("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(dirs[1], Path::new("/sys/fs/cgroup/memory/a"));
        assert_eq!(dirs[2], Path::new("/sys/fs/cgroup/memory/"));
        assert_eq!(dirs.len(), 3);
        assert_eq!(trees[1].directories(), vec![PathBuf::from("/sys/fs/cgroup/unified/")]);
    }

    #[test]
    fn a_container_sees_its_part_of_the_tree() {
        let mounts =
            "40 25 0:26 /docker/abc /sys/fs/cgroup\\040x ro shared:1 - cgroup2 cgroup2 rw\n";
        let inner = memory_trees("0::/docker/abc/job\n", mounts);
        assert_eq!(inner[0].directories()[0], Path::new("/sys/fs/cgroup x/job"));
        let outside = memory_trees("0::/../other\n", mounts);
        assert_eq!(outside[0].directories(), vec![PathBuf::from("/sys/fs/cgroup x/")]);
        assert!(memory_trees("garbage\n1:cpu:/\n", mounts).is_empty());
    }
}
