//! Names that only ever point at complete, durable files.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::SinkError;
use crate::engine::patience::patiently;

/// Replaces (or makes) a file such that after a crash its name gives the old bytes or the new ones, whole.
///
/// Writes a file beside it whose name ends in `.tmp`, syncs it, renames it over `path`, and syncs
/// the directory.
///
/// # Errors
/// [`SinkError`] of the step that failed. The temporary file is removed where possible.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), SinkError> {
    let temporary = temporary_name(path);
    let done = write_synced(&temporary, bytes).and_then(|()| {
        std::fs::rename(&temporary, path).map_err(|e| SinkError::of("rename", path, 0, e))
    });
    if done.is_err() {
        // A name that no reader looks at; the next attempt truncates it.
        drop(std::fs::remove_file(&temporary));
    }
    done?;
    fsync_dir(parent(path))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), SinkError> {
    let needed = bytes.len() as u64;
    let mut file =
        patiently(|| File::create(path)).map_err(|e| SinkError::of("create", path, needed, e))?;
    file.write_all(bytes).map_err(|e| SinkError::of("write", path, needed, e))?;
    file.sync_all().map_err(|e| SinkError::sync(path, needed, e))
}

/// Makes the entries of a directory durable: files made, renamed or removed in it.
///
/// # Errors
/// [`SinkError::Io`] when it cannot be opened, [`SinkError::Sync`] when it cannot be synced.
pub fn fsync_dir(dir: &Path) -> Result<(), SinkError> {
    let file = patiently(|| File::open(dir)).map_err(|e| SinkError::of("open", dir, 0, e))?;
    match file.sync_all() {
        // Some file systems (CIFS, FUSE) cannot sync directories and do not need it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP | libc::EBADF)) => {
            Ok(())
        }
        done => done.map_err(|e| SinkError::sync(dir, 0, e)),
    }
}

/// Renames a file or directory, refusing to replace anything. The caller syncs the parents.
///
/// File systems that cannot refuse by themselves get a check and a plain rename, which is as good as
/// the lock that the caller holds.
///
/// # Errors
/// [`SinkError::Exists`] when `to` is taken, else [`SinkError::Io`].
pub fn rename_noreplace(from: &Path, to: &Path) -> Result<(), SinkError> {
    let fail = |source: io::Error| SinkError::of("rename to", to, 0, source);
    match refusing_rename(from, to) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::ENOTSUP)) => {
            checked_rename(from, to).map_err(fail)
        }
        done => done.map_err(fail),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn refusing_rename(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn refusing_rename(_from: &Path, _to: &Path) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

fn checked_rename(from: &Path, to: &Path) -> io::Result<()> {
    match to.symlink_metadata() {
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EEXIST)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => std::fs::rename(from, to),
        Err(e) => Err(e),
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

/// The directory that holds an entry; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        write_atomic(&path, b"first").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let missing = dir.path().join("no/such");
        assert!(matches!(write_atomic(&missing, b"x"), Err(SinkError::Io { .. })));
        // A directory in the way: the error comes and the temporary file goes.
        std::fs::create_dir(dir.path().join("d")).unwrap();
        assert!(write_atomic(&dir.path().join("d"), b"x").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn both_ways_of_renaming_refuse_a_taken_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let plain =
            |a: &Path, b: &Path| checked_rename(a, b).map_err(|e| SinkError::of("rename", b, 0, e));
        for (i, rename) in [rename_noreplace, plain].into_iter().enumerate() {
            let (from, to) = (at(&format!("from{i}")), at(&format!("to{i}")));
            std::fs::create_dir(&from).unwrap();
            std::fs::create_dir(&to).unwrap();
            assert!(matches!(rename(&from, &to), Err(SinkError::Exists { .. })));
            std::fs::remove_dir(&to).unwrap();
            std::os::unix::fs::symlink("nowhere", &to).unwrap();
            assert!(matches!(rename(&from, &to), Err(SinkError::Exists { .. })), "a dangling link");
            std::fs::remove_file(&to).unwrap();
            rename(&from, &to).unwrap();
            assert!(to.is_dir() && !from.exists());
            assert!(matches!(
                rename(&from, &to),
                Err(SinkError::Io { .. } | SinkError::Exists { .. })
            ));
        }
        fsync_dir(dir.path()).unwrap();
        assert_eq!(parent(Path::new("bare")), Path::new("."));
    }
}
