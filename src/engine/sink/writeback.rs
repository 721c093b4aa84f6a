//! The calls that push written bytes to disk.
#![expect(unsafe_code, reason = "sync_file_range has no safe wrapper among the dependencies")]

use std::fs::File;
use std::io;
#[cfg(any(target_os = "linux", target_os = "android"))]
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;

/// Folios of the page cache are at most this large where seen so far. One that straddles the start of a
/// dropped range stays, so each drop reaches this far back to catch it.
const LARGEST_FOLIO: u64 = 2 << 20;

/// Writes past the page cache.
///
/// The file is switched over for this one call: a descriptor of its own for it would be one more per shard, where
/// there may be few.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn write_past_cache(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let flags = fcntl_getfl(file)?;
    fcntl_setfl(file, flags | OFlags::DIRECT)?;
    let written = file.write_at(bytes, offset);
    fcntl_setfl(file, flags)?;
    written
}

/// Starts writing a range to disk and returns. Gives no durability.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn start(file: &File, range: (u64, u64)) -> io::Result<()> {
    sync_file_range(file, range, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits until a range has been written out. Gives no durability.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn wait(file: &File, range: (u64, u64)) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file, range, flags)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn sync_file_range(file: &File, (start, end): (u64, u64), flags: libc::c_uint) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let (at, len) = (start.cast_signed(), (end - start).cast_signed());
    loop {
        // SAFETY: a call on integers; the descriptor is open as long as `file` is borrowed.
        if unsafe { libc::sync_file_range(file.as_raw_fd(), at, len, flags) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // Cannot be done here; the sync at the end does all the work then.
            Some(libc::ESPIPE | libc::EINVAL | libc::ENOSYS) => return Ok(()),
            _ => return Err(error),
        }
    }
}

/// Drops a written range from the page cache.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn drop_cache(file: &File, (start, end): (u64, u64)) {
    let from = (start / LARGEST_FOLIO).saturating_sub(1) * LARGEST_FOLIO;
    let len = std::num::NonZeroU64::new(end.saturating_sub(from));
    // A hint: when it fails, memory is used and nothing else happens.
    let _ = rustix::fs::fadvise(file, from, len, rustix::fs::Advice::DontNeed);
}

/// Gives a file exactly `len` bytes, reserved on disk where the file system can do that.
///
/// Raw `fallocate`: the C library's `posix_fallocate` writes zeros where it is not supported. Free space
/// is compared first, because ext4 takes all that is left before it fails, and every other program on
/// that disk fails with us.
///
/// # Errors
/// What the system said; `ENOSPC` when less is free than the file still lacks.
pub(super) fn reserve_or_size(file: &File, len: u64) -> io::Result<()> {
    let held = file.metadata()?.blocks().saturating_mul(512);
    let stat = rustix::fs::fstatvfs(file)?;
    // Blocks and not bytes available to this user; root may use what is kept back for it.
    let blocks = if rustix::process::geteuid().is_root() { stat.f_bfree } else { stat.f_bavail };
    if len.saturating_sub(held) > blocks.saturating_mul(stat.f_frsize) {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    let reserved = len > 0 && reserve(file, len)?;
    if !reserved || file.metadata()?.len() != len { file.set_len(len) } else { Ok(()) }
}

/// Reserves exactly `len` bytes on disk. Ok(false) where the file system cannot.
///
/// # Errors
/// What the system said, `ENOSPC` above all.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn reserve(file: &File, len: u64) -> io::Result<bool> {
    use rustix::io::Errno;
    loop {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod elsewhere {
    use std::fs::File;
    use std::io;

    pub(crate) fn write_past_cache(_file: &File, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    pub(crate) fn start(_file: &File, _range: (u64, u64)) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn wait(_file: &File, _range: (u64, u64)) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn drop_cache(_file: &File, _range: (u64, u64)) {}

    pub(crate) fn reserve(_file: &File, _len: u64) -> io::Result<bool> {
        Ok(false)
    }
}
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use elsewhere::reserve;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) use elsewhere::{drop_cache, start, wait, write_past_cache};
