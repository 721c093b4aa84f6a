//! The one place that maps input files: a read-only map whose pages come and go by window.
//!
//! # Safety contract
//! Bytes under a shared map may change if another process writes the file, which no program can
//! prevent. `reflow` only ever decodes them as plain numbers (every bit pattern is valid), never
//! derives an address or a length from them, and compares length, inode and mtime of the file while and
//! after it reads: a result computed from changed bytes is thrown away. Files that others may rewrite
//! are better read by `--io pread`. A file that shrinks raises SIGBUS: see `sigbus`.
#![expect(unsafe_code, reason = "maps files and drops pages below live maps")]

use std::fs::File;
use std::io;

use memmap2::{Advice, Mmap, MmapOptions};

use crate::engine::buffer::PAGE;

/// A read-only map of a whole file.
pub(super) struct Map(Mmap);

impl Map {
    /// Maps `len` bytes of a file without kernel readahead. The flag says whether faults will fill aligned 2 MiB blocks
    /// (`huge` was asked for and the kernel knows it).
    pub(super) fn new(file: &File, len: u64, huge: bool) -> io::Result<(Self, bool)> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        // The length is the recorded one: should the file have shrunk since it was checked, populating
        // the window says so.
        let mut options = MmapOptions::new();
        options.len(len);
        // SAFETY: see the contract above; the map is private to this module and read-only.
        let map = Self(unsafe { options.map(file)? });
        // With this advice a fault on a missing page reads that page alone, so every block is
        // populated before use (measured without: 0.07 GB/s).
        drop(map.0.advise(Advice::Random));
        let huge = huge && map.ask_for_huge_blocks();
        Ok((map, huge))
    }

    #[cfg(target_os = "linux")]
    fn ask_for_huge_blocks(&self) -> bool {
        self.0.advise(Advice::HugePage).is_ok()
    }

    #[cfg(not(target_os = "linux"))]
    fn ask_for_huge_blocks(&self) -> bool {
        false
    }

    /// The mapped bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Makes a range resident and mapped, waiting for the disk.
    ///
    /// # Errors
    /// `EFAULT` when the file is shorter than the range or the disk failed (where Linux can tell).
    pub(super) fn populate(&self, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (offset as usize, len as usize);
        loop {
            match self.populate_once(offset, len) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                    self.touch(offset, len);
                    return Ok(());
                }
                done => return done,
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn populate_once(&self, offset: usize, len: usize) -> io::Result<()> {
        self.0.advise_range(Advice::PopulateRead, offset, len)
    }

    #[cfg(not(target_os = "linux"))]
    fn populate_once(&self, _offset: usize, _len: usize) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    /// Reads one byte per page: what a kernel before Linux 5.14 has for `MADV_POPULATE_READ`.
    fn touch(&self, offset: usize, len: usize) {
        let end = self.0.len().min(offset.saturating_add(len));
        for at in (offset..end).step_by(PAGE) {
            std::hint::black_box(self.0.get(at).copied());
        }
    }

    /// Unmaps the pages of a range. Must come before the page cache is dropped: the kernel keeps pages
    /// that are mapped.
    pub(super) fn release(&self, offset: u64, len: u64) {
        // SAFETY: the map is shared, read-only and file-backed: pages that go come back from the file
        // with the same bytes on the next access, so live slices stay valid.
        let done = unsafe {
            self.0.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                offset as usize,
                len as usize,
            )
        };
        drop(done);
    }
}

/// Whether this kernel has `MADV_POPULATE_READ` (Linux 5.14), tried on one anonymous page.
pub(super) fn can_populate() -> bool {
    #[cfg(target_os = "linux")]
    {
        memmap2::MmapMut::map_anon(PAGE).is_ok_and(|map| map.advise(Advice::PopulateRead).is_ok())
    }
    #[cfg(not(target_os = "linux"))]
    {
        false
    }
}
