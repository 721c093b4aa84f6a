//! Free space and the kind of file system that a path lies on.

use std::io;
use std::path::{Path, PathBuf};

/// Kinds of file systems, as far as reading and writing treat them differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// A file system on a local disk (ext4, xfs, btrfs, ...), by name.
    LocalDisk(&'static str),
    /// Files in memory (tmpfs, ramfs), by name. Page cache cannot be dropped there.
    Memory(&'static str),
    /// Shared over a network (nfs, lustre, cifs, ...), by name.
    Network(&'static str),
    /// FUSE: a program answers, near or far.
    Fuse,
    /// overlayfs: what lies below is not visible from here.
    Overlay,
    /// Anything else, by its `statfs` magic number.
    Unknown(u64),
}

impl FileSystem {
    /// Names it for a message.
    pub fn name(self) -> String {
        match self {
            Self::LocalDisk(name) | Self::Memory(name) | Self::Network(name) => name.to_owned(),
            Self::Fuse => "fuse".to_owned(),
            Self::Overlay => "overlayfs".to_owned(),
            Self::Unknown(magic) => format!("an unknown file system (magic {magic:#x})"),
        }
    }

    /// Whether maps are safe and fast: a local disk, or memory.
    pub fn is_local_disk(self) -> bool {
        matches!(self, Self::LocalDisk(_) | Self::Memory(_))
    }

    /// Whether other hosts may see it: `flock` alone is then not to be trusted.
    pub fn is_network(self) -> bool {
        matches!(self, Self::Network(_))
    }

    /// Whether `sync_file_range` starts and awaits writeback there. Where it does not (NFS, FUSE,
    /// unknown), dirty pages pile up until `fdatasync`.
    pub fn has_write_behind(self) -> bool {
        self.is_local_disk()
    }

    /// Whether writing past the page cache is worth trying there. In memory there is nothing to pass by; elsewhere
    /// nobody has measured it.
    pub fn is_worth_direct_writes(self) -> bool {
        matches!(self, Self::LocalDisk(_))
    }

    /// Knows a file system by the magic number of `statfs` (linux/magic.h and the projects' own).
    pub fn from_magic(magic: u64) -> Self {
        match magic {
            0xEF53 => Self::LocalDisk("ext4"),
            0x5846_5342 => Self::LocalDisk("xfs"),
            0x9123_683E => Self::LocalDisk("btrfs"),
            0xF2F5_2010 => Self::LocalDisk("f2fs"),
            0x2FC1_2FC1 => Self::LocalDisk("zfs"),
            0xCA45_1A4E => Self::LocalDisk("bcachefs"),
            0x3153_464A => Self::LocalDisk("jfs"),
            0x5265_4973 => Self::LocalDisk("reiserfs"),
            0x7366_746E | 0x5346_544E => Self::LocalDisk("ntfs"),
            0x2011_BAB0 => Self::LocalDisk("exfat"),
            0x4D44 => Self::LocalDisk("vfat"),
            0x0102_1994 => Self::Memory("tmpfs"),
            0x8584_58F6 => Self::Memory("ramfs"),
            0x6969 => Self::Network("nfs"),
            0x0BD0_0BD0 => Self::Network("lustre"),
            0x4750_4653 => Self::Network("gpfs"),
            0xFF53_4D42 => Self::Network("cifs"),
            0xFE53_4D42 => Self::Network("smb2"),
            0x517B => Self::Network("smb"),
            0x00C3_6400 => Self::Network("ceph"),
            0x1983_0326 => Self::Network("beegfs"),
            0x0116_1970 => Self::Network("gfs2"),
            0x7461_636F => Self::Network("ocfs2"),
            0x0102_1997 => Self::Network("9p"),
            0x5346_414F | 0x6B41_4653 => Self::Network("afs"),
            0xAAD7_AAEA => Self::Network("panfs"),
            0x6573_5546 => Self::Fuse,
            0x794C_7630 => Self::Overlay,
            other => Self::Unknown(other),
        }
    }
}

/// The file system that `path`, or its nearest existing ancestor, lies on.
///
/// # Errors
/// What `statfs` said.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let stat = rustix::fs::statfs(nearest_existing(path))?;
    // The field is signed on some targets and 32 bits wide on others: only its low 32 bits count.
    Ok(FileSystem::from_magic(stat.f_type as u64 & 0xFFFF_FFFF))
}

/// The file system that `path` lies on: unknown on systems other than Linux.
///
/// # Errors
/// None here.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn file_system(_path: &Path) -> io::Result<FileSystem> {
    Ok(FileSystem::Unknown(0))
}

/// Bytes that this user may still write where `path` is or will be.
///
/// # Errors
/// What `statvfs` said of the nearest existing ancestor.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(nearest_existing(path))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// `path` itself, or the closest directory above it that exists.
fn nearest_existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|p| !p.as_os_str().is_empty() && p.exists());
    found.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_do_not_exist_yet_are_judged_by_their_parent() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("not/there/yet");
        assert_eq!(nearest_existing(&deep), dir.path());
        assert_eq!(nearest_existing(Path::new("not-there-either")), Path::new("."));
        assert!(free_bytes(&deep).unwrap() > 0);
        assert_eq!(file_system(&deep).unwrap(), file_system(dir.path()).unwrap());
    }

    #[test]
    fn magic_numbers_decide() {
        assert_eq!(FileSystem::from_magic(0xEF53), FileSystem::LocalDisk("ext4"));
        assert!(FileSystem::from_magic(0x6969).is_network());
        assert!(!FileSystem::from_magic(0x6573_5546).has_write_behind());
        assert!(!FileSystem::from_magic(0x794C_7630).is_local_disk());
        assert!(FileSystem::from_magic(0x1234).name().contains("0x1234"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn procfs_is_not_a_disk() {
        assert_eq!(file_system(Path::new("/proc/self")).unwrap(), FileSystem::Unknown(0x9FA0));
    }
}
