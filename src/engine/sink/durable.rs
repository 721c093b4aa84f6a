//! Names that only ever point at complete, durable files.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::{SinkError, Storage, StoredFile};

/// Replaces (or makes) a file such that after a crash its name gives the old bytes or the new ones, whole.
///
/// Writes a file beside it whose name ends in `.tmp`, syncs it, renames it over `path`, and syncs
/// the directory.
///
/// # Errors
/// [`SinkError`] of the step that failed. The temporary file is removed where possible.
pub fn write_atomic(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<(), SinkError> {
    write_atomic_in_parts(storage, path, |put| put(bytes))
}

/// The same for a file that is not in memory: `write` hands its bytes to the function that it is given, part by part.
///
/// # Errors
/// As [`write_atomic`], and those of `write`.
pub fn write_atomic_in_parts<E: From<SinkError>>(
    storage: &dyn Storage,
    path: &Path,
    write: impl FnOnce(&mut Put<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let temporary = temporary_name(path);
    let done = write_synced(storage, &temporary, write).and_then(|()| {
        let renamed = storage.rename(&temporary, path);
        Ok(renamed.map_err(|e| SinkError::of("rename", path, 0, e))?)
    });
    if done.is_err() {
        // A name that no reader looks at; the next attempt removes it first.
        drop(storage.remove_file(&temporary));
    }
    done?;
    Ok(sync_dir(storage, parent(path))?)
}

/// Takes bytes that belong behind those before.
pub type Put<'a> = dyn FnMut(&[u8]) -> Result<(), SinkError> + 'a;

fn write_synced<E: From<SinkError>>(
    storage: &dyn Storage,
    path: &Path,
    write: impl FnOnce(&mut Put<'_>) -> Result<(), E>,
) -> Result<(), E> {
    match storage.remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(SinkError::of("remove", path, 0, e).into());
        }
        _ => {}
    }
    let file = storage.create(path).map_err(|e| SinkError::of("create", path, 0, e))?;
    let mut end = 0;
    write(&mut |bytes| {
        write_fully(&*file, path, end, bytes)?;
        end += bytes.len() as u64;
        Ok(())
    })?;
    Ok(file.sync().map_err(|e| SinkError::sync(path, end, e))?)
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// [`SinkError::NoSpace`] or [`SinkError::Io`].
pub fn write_fully(
    file: &dyn StoredFile,
    path: &Path,
    mut offset: u64,
    mut bytes: &[u8],
) -> Result<(), SinkError> {
    while !bytes.is_empty() {
        let error = match file.write_at(bytes, offset) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(n) => {
                // A short write is no error: what stopped it shows on the next one.
                offset += n as u64;
                bytes = bytes.get(n..).unwrap_or_default();
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => e,
        };
        return Err(SinkError::of("write", path, bytes.len() as u64, error));
    }
    Ok(())
}

/// Makes the entries of a directory durable: files made, renamed or removed in it.
///
/// # Errors
/// [`SinkError::Sync`].
pub fn sync_dir(storage: &dyn Storage, dir: &Path) -> Result<(), SinkError> {
    storage.sync_dir(dir).map_err(|e| SinkError::sync(dir, 0, e))
}

/// Renames a file or directory, refusing to replace anything. The caller syncs the parents.
///
/// # Errors
/// [`SinkError::Exists`] when `to` is taken, else [`SinkError::Io`].
pub fn rename_noreplace(storage: &dyn Storage, from: &Path, to: &Path) -> Result<(), SinkError> {
    storage.rename_noreplace(from, to).map_err(|e| SinkError::of("rename to", to, 0, e))
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

/// The directory that holds an entry; `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sink::RealDisk;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        write_atomic(&RealDisk, &path, b"first").unwrap();
        write_atomic(&RealDisk, &path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        // What a crash has left under the temporary name is not in the way.
        std::fs::write(dir.path().join(".plan.json.tmp"), b"longer than the third").unwrap();
        write_atomic(&RealDisk, &path, b"third").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"third");
        let missing = dir.path().join("no/such");
        assert!(matches!(write_atomic(&RealDisk, &missing, b"x"), Err(SinkError::Io { .. })));
        // A directory in the way: the error comes and the temporary file goes.
        std::fs::create_dir(dir.path().join("d")).unwrap();
        assert!(write_atomic(&RealDisk, &dir.path().join("d"), b"x").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(parent(Path::new("bare")), Path::new("."));
    }
}
