//! The page cache of a file that only grows.

use std::io;

use super::StoredFile;

/// Bytes written between two pushes to disk: about twice this is in memory.
const STEP: u64 = 1 << 20;

/// Pushes what is appended to a file to disk, and drops it from the page cache behind that.
#[derive(Debug, Default)]
pub struct Trail {
    /// Up to here nothing is in memory.
    dropped: u64,
    /// Up to here it is on its way to disk.
    pushed: u64,
}

impl Trail {
    /// The trail of a file that has so many bytes already, none of them in memory.
    pub fn from(end: u64) -> Self {
        Self { dropped: end, pushed: end }
    }

    /// The file has grown to `end`. May wait for the disk to take earlier bytes. Gives no durability.
    ///
    /// # Errors
    /// What the system said, also of an earlier write that failed.
    pub fn grow(&mut self, file: &dyn StoredFile, end: u64) -> io::Result<()> {
        if end - self.pushed < STEP {
            return Ok(());
        }
        file.start_writeback((self.pushed, end))?;
        let under_way = (self.dropped, self.pushed);
        if under_way.0 < under_way.1 {
            file.await_writeback(under_way)?;
            file.drop_cache(under_way);
        }
        (self.dropped, self.pushed) = (self.pushed, end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Ranges that were pushed, waited for, and dropped.
    #[derive(Default)]
    struct Log([Mutex<Vec<(u64, u64)>>; 3]);

    impl Log {
        fn note(&self, which: usize, range: (u64, u64)) {
            self.0[which].lock().unwrap().push(range);
        }

        /// Where the ranges of one kind end, all of them without a hole.
        fn end(&self, which: usize) -> u64 {
            self.0[which].lock().unwrap().iter().fold(0, |end, range| {
                assert!(range.0 == end && range.1 > end);
                range.1
            })
        }
    }

    impl StoredFile for Log {
        fn write_at(&self, bytes: &[u8], _offset: u64) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn set_len(&self, _len: u64) -> io::Result<()> {
            Ok(())
        }

        fn reserve(&self, _len: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn start_writeback(&self, range: (u64, u64)) -> io::Result<()> {
            self.note(0, range);
            Ok(())
        }

        fn await_writeback(&self, range: (u64, u64)) -> io::Result<()> {
            self.note(1, range);
            Ok(())
        }

        fn drop_cache(&self, range: (u64, u64)) {
            self.note(2, range);
        }
    }

    #[test]
    fn however_a_file_grows_little_of_it_is_in_memory() {
        for step in [100, STEP / 3, STEP, 5 * STEP] {
            let (log, mut trail, mut end) = (Log::default(), Trail::default(), 0);
            while end < 20 * STEP {
                end += step;
                trail.grow(&log, end).unwrap();
                let [pushed, awaited, dropped] = [0, 1, 2].map(|which| log.end(which));
                assert!(end - pushed < STEP && awaited == dropped && dropped <= pushed);
                assert!(end - dropped < 2 * (STEP + step), "{step}: {end} {dropped}");
            }
        }
    }
}
