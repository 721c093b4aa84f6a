//! Small files, read whole.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::error::{Error, IoContext};
use crate::patience::patiently;

/// All bytes of a regular file; `None` if there is none. Never waits for the other end of a pipe.
///
/// # Errors
/// What the disk says; [`Error::Foreign`] if it is no regular file, or larger than `most`.
pub(super) fn read_file(path: &Path, most: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut options = File::options();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK);
    let mut file = match patiently(|| options.open(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.at("read", path)?,
    };
    let meta = file.metadata().at("read", path)?;
    if !meta.is_file() || meta.len() > most {
        return Err(Error::Foreign { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    let _read = file.read_to_end(&mut bytes).at("read", path)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_sensible_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read_file(&path, 10).unwrap(), None);
        std::fs::write(&path, "ten bytes.").unwrap();
        assert_eq!(read_file(&path, 10).unwrap().unwrap(), b"ten bytes.");
        let foreign = |path: &Path| matches!(read_file(path, 9), Err(Error::Foreign { .. }));
        assert!(foreign(&path) && foreign(Path::new("/dev/zero")) && foreign(dir.path()));
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success() && foreign(&pipe));
    }
}
