//! The disk itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Storage, StoredFile};
use crate::engine::sink::writeback;
use crate::patience::patiently;

/// The file systems of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Storage for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        let file = patiently(|| File::options().write(true).create_new(true).open(path))?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        Ok(Box::new(patiently(|| File::options().write(true).open(path))?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        match refusing_rename(from, to) {
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EINVAL | libc::ENOSYS | libc::ENOTSUP)
                ) =>
            {
                checked_rename(from, to)
            }
            done => done,
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        match patiently(|| File::open(dir))?.sync_all() {
            // Some file systems (CIFS, FUSE) cannot sync directories and do not need it.
            Err(e)
                if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP | libc::EBADF)) =>
            {
                Ok(())
            }
            done => done,
        }
    }
}

impl StoredFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn write_past_cache(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        writeback::write_past_cache(self, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        writeback::reserve_or_size(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn start_writeback(&self, range: (u64, u64)) -> io::Result<()> {
        writeback::start(self, range)
    }

    fn await_writeback(&self, range: (u64, u64)) -> io::Result<()> {
        writeback::wait(self, range)
    }

    fn drop_cache(&self, range: (u64, u64)) {
        writeback::drop_cache(self, range);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind::AlreadyExists;

    #[test]
    fn both_ways_of_renaming_refuse_a_taken_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let ours = |from: &Path, to: &Path| RealDisk.rename_noreplace(from, to);
        for (i, rename) in [&ours as &dyn Fn(&Path, &Path) -> _, &checked_rename].iter().enumerate()
        {
            let (from, to) = (at(&format!("from{i}")), at(&format!("to{i}")));
            std::fs::create_dir(&from).unwrap();
            std::fs::create_dir(&to).unwrap();
            assert_eq!(rename(&from, &to).unwrap_err().kind(), AlreadyExists);
            std::fs::remove_dir(&to).unwrap();
            std::os::unix::fs::symlink("nowhere", &to).unwrap();
            assert_eq!(rename(&from, &to).unwrap_err().kind(), AlreadyExists, "a dangling link");
            std::fs::remove_file(&to).unwrap();
            rename(&from, &to).unwrap();
            assert!(to.is_dir() && !from.exists());
            assert!(rename(&from, &to).is_err());
        }
        RealDisk.sync_dir(dir.path()).unwrap();
    }
}
