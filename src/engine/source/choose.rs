//! Which way of reading fits the file systems, the kernel and the limits at hand.

use std::path::{Path, PathBuf};

use super::map;
use crate::engine::host::disk::{FileSystem, file_system};
use crate::plan::Mode;
use crate::recipe::IoRequest;

/// Chooses the mode for a set of input files and says why, in words for a notice to the user.
///
/// Where memory is `limited` and copies are made anyway, they are made past the page cache if the file
/// systems can: page cache of buffered reads was measured to outlive its drop by some 100 MiB (ext4, Linux
/// 6.18, with worker threads busy), which a limit of 64 MiB has no room for.
pub fn choose(request: IoRequest, paths: &[PathBuf], limited: bool) -> (Mode, String) {
    let (mode, why) = choose_unlimited(request, paths);
    if mode == Mode::Pread && limited && request != IoRequest::Direct {
        let (mode, refusal) = choose_direct(paths);
        if mode == Mode::Direct {
            return (Mode::Direct, format!("past the page cache, which --memory counts; {why}"));
        }
        return (Mode::Pread, format!("{why}; {refusal}"));
    }
    (mode, why)
}

/// The mode for samples, where everything else is read by `mode`. Maps are bad at short runs: each costs the kernel as much as
/// the block that it lies in. So runs are copied if what that leaves in the page cache may stay there (`keeps_cache`), and
/// past the page cache otherwise.
///
/// Four samples of 84 MiB in runs of 8 KiB, of 8.8 GB (ext4, two cores): from the page cache 1.0 s mapped, 0.5 s copied; from
/// the disk, with a limit of 64 MiB, 3.0 s mapped, 1.9 s past the page cache.
pub fn for_samples(mode: Mode, request: IoRequest, paths: &[PathBuf], keeps_cache: bool) -> Mode {
    match (mode, request) {
        (Mode::Mmap, IoRequest::Auto) if keeps_cache => Mode::Pread,
        (Mode::Mmap, IoRequest::Auto) => match choose_direct(paths) {
            (Mode::Direct, _) => Mode::Direct,
            _ => mode,
        },
        _ => mode,
    }
}

fn choose_unlimited(request: IoRequest, paths: &[PathBuf]) -> (Mode, String) {
    match request {
        IoRequest::Pread => (Mode::Pread, "asked for".into()),
        IoRequest::Direct => choose_direct(paths),
        IoRequest::Mmap => match address_space_refusal(paths) {
            Some(why) => (Mode::Pread, why),
            None => (Mode::Mmap, "asked for".into()),
        },
        IoRequest::Auto => match auto_refusal(paths) {
            Some(why) => (Mode::Pread, why),
            None => (Mode::Mmap, "all inputs are on local file systems".into()),
        },
    }
}

fn auto_refusal(paths: &[PathBuf]) -> Option<String> {
    if !map::can_populate() {
        return Some("this kernel has no MADV_POPULATE_READ (Linux 5.14)".into());
    }
    let odd = distinct_file_systems(paths).into_iter().find(|(fs, _)| !fs.is_local_disk());
    if let Some((fs, path)) = odd {
        return Some(format!("{} is on {}, where maps are not safe", path.display(), fs.name()));
    }
    address_space_refusal(paths)
}

/// One file of every directory is enough: a directory lies on one file system.
fn distinct_file_systems(paths: &[PathBuf]) -> Vec<(FileSystem, &Path)> {
    let mut seen: Vec<(Option<&Path>, FileSystem, &Path)> = Vec::new();
    for path in paths {
        // A shard is often a link into a cache elsewhere, so links are looked at one by one.
        let is_link = path.is_symlink();
        let parent = path.parent();
        if is_link || !seen.iter().any(|(p, ..)| *p == parent) {
            let fs = file_system(path).unwrap_or(FileSystem::Unknown(0));
            seen.push((parent.filter(|_| !is_link), fs, path));
        }
    }
    seen.into_iter().map(|(_, fs, path)| (fs, path)).collect()
}

/// Whole-file maps count against `RLIMIT_AS` although they cost no memory.
fn address_space_refusal(paths: &[PathBuf]) -> Option<String> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
    let sizes = paths.iter().map(|p| std::fs::metadata(p).map_or(0, |m| m.len()));
    let maps: u64 = sizes.fold(0, u64::saturating_add);
    // Half for everything else: stacks, allocator arenas, buffers, the program itself.
    (maps > limit / 2).then(|| {
        format!(
            "the address space limit (ulimit -v) of {} MiB is too small to map {} MiB of inputs",
            limit >> 20,
            maps >> 20
        )
    })
}

fn choose_direct(paths: &[PathBuf]) -> (Mode, String) {
    match paths.iter().find_map(|p| direct_refusal(p)) {
        None => (Mode::Direct, "asked for".into()),
        Some(why) => (Mode::Pread, why),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn direct_refusal(path: &Path) -> Option<String> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    match options.read(true).custom_flags(libc::O_DIRECT).open(path) {
        // Other errors are the business of whoever opens the file in earnest.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            Some(format!("the file system of {} has no direct I/O", path.display()))
        }
        _ => None,
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn direct_refusal(_path: &Path) -> Option<String> {
    Some("direct I/O is only known on Linux".into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn auto_maps_local_files_and_says_why_not_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"x").unwrap();
        let (mode, why) = choose(IoRequest::Auto, std::slice::from_ref(&path), false);
        let local = file_system(&path).unwrap().is_local_disk() && map::can_populate();
        assert_eq!(mode, if local { Mode::Mmap } else { Mode::Pread }, "{why}");
        // procfs stands for every file system that is not a disk.
        let (mode, why) =
            choose(IoRequest::Auto, &[path.clone(), "/proc/self/status".into()], false);
        assert_eq!(mode, Mode::Pread);
        assert!(why.contains("/proc/self/status"), "{why}");
        assert_eq!(choose(IoRequest::Pread, &[path], false).0, Mode::Pread);
        let (mode, why) = choose(IoRequest::Direct, &["/proc/self/status".into()], false);
        assert_eq!(mode, Mode::Pread, "{why}");
        let sampled =
            |mode, request, keeps| for_samples(mode, request, &["/proc/self/status".into()], keeps);
        assert_eq!(sampled(Mode::Mmap, IoRequest::Auto, true), Mode::Pread);
        assert_eq!(sampled(Mode::Mmap, IoRequest::Auto, false), Mode::Mmap, "cannot be direct");
        assert_eq!(sampled(Mode::Mmap, IoRequest::Mmap, true), Mode::Mmap, "was asked for");
        assert_eq!(sampled(Mode::Pread, IoRequest::Auto, true), Mode::Pread);
    }
}
