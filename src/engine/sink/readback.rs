//! Reading what was written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::SinkError;
use crate::patience::patiently;

/// Bytes read at a time.
const STEP: u64 = 1 << 20;

/// Reads a range of a file that was written, and hands it on piece by piece. Leaves nothing in the page
/// cache.
///
/// # Errors
/// [`SinkError::Damaged`] if the file is not there or too short; else what the system said.
pub fn read_back(
    path: &Path,
    range: Range<u64>,
    mut take: impl FnMut(&[u8]),
) -> Result<(), SinkError> {
    let fail = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => SinkError::Damaged {
            path: path.to_owned(),
            offset: range.start,
            len: range.end - range.start,
        },
        _ => SinkError::of("read back", path, 0, e),
    };
    let file = patiently(|| File::open(path)).map_err(fail)?;
    let mut buffer = vec![0; STEP.min(range.end.saturating_sub(range.start)) as usize];
    let mut at = range.start;
    while at < range.end {
        let buffer = &mut buffer[..STEP.min(range.end - at) as usize];
        file.read_exact_at(buffer, at).map_err(fail)?;
        take(buffer);
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            let len = std::num::NonZeroU64::new(buffer.len() as u64);
            // A hint: when it fails, memory is used and nothing else happens.
            let _hint = rustix::fs::fadvise(&file, at, len, rustix::fs::Advice::DontNeed);
        }
        at += buffer.len() as u64;
    }
    Ok(())
}
