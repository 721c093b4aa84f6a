//! Reads that copy into a pooled buffer: `pread` through the page cache, `direct` around it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::file::OpenFile;
use super::{ByteRange, SourceError};
use crate::engine::buffer::{BufferPool, PAGE, PoolBuffer};

/// A buffer and where in it the range asked for begins.
pub(super) struct Copied {
    pub(super) buffer: PoolBuffer,
    pub(super) head: usize,
}

/// Reads exactly `range` through the page cache.
pub(super) fn buffered(
    file: &OpenFile,
    range: &ByteRange,
    pool: &Arc<BufferPool>,
) -> Result<Copied, SourceError> {
    if let Some(copied) = cached(file, range, pool, range.len)? {
        return Ok(copied);
    }
    let mut buffer = pool.take(range.len);
    let into = buffer.bytes_mut().get_mut(..range.len).unwrap_or_default();
    read_up_to(&file.file, into, range.offset, range.len, 1)
        .and_then(|got| whole(got, range.len))
        .map(|()| file.input.check_open(&file.file))
        .map_err(|e| file.input.read_error(&file.file, range.offset, range.len, e))??;
    Ok(Copied { buffer, head: 0 })
}

/// Reads `range` past the page cache, but for what was in there before this run.
pub(super) fn around(
    file: &OpenFile,
    range: &ByteRange,
    pool: &Arc<BufferPool>,
) -> Result<Copied, SourceError> {
    match cached(file, range, pool, direct_len(range))? {
        Some(copied) => Ok(copied),
        None => direct(file, range, pool),
    }
}

/// Copies exactly `range` from the page cache if it was there before this run, into a buffer for `room` bytes: as many as reading
/// it in the other way takes, since heaps grow where buffers of two sizes come and go.
fn cached(
    file: &OpenFile,
    range: &ByteRange,
    pool: &Arc<BufferPool>,
    room: usize,
) -> Result<Option<Copied>, SourceError> {
    if !file.is_at_hand(range.offset, range.len as u64) {
        return Ok(None);
    }
    let mut buffer = pool.take(room);
    let into = buffer.bytes_mut().get_mut(..range.len).unwrap_or_default();
    if !file.copy_cached(range.offset, into) {
        return Ok(None);
    }
    file.input.check_open(&file.file)?;
    Ok(Some(Copied { buffer, head: 0 }))
}

/// Bytes of the pages that `range` lies in.
fn direct_len(range: &ByteRange) -> usize {
    ((range.offset % PAGE as u64) as usize + range.len).next_multiple_of(PAGE)
}

/// Reads the page-aligned superset of `range` past the page cache; the file was opened for that.
fn direct(
    file: &OpenFile,
    range: &ByteRange,
    pool: &Arc<BufferPool>,
) -> Result<Copied, SourceError> {
    let head = (range.offset % PAGE as u64) as usize;
    let need = head + range.len;
    let mut buffer = pool.take(direct_len(range));
    let into = buffer.bytes_mut().get_mut(..direct_len(range)).unwrap_or_default();
    read_up_to(&file.file, into, range.offset - head as u64, need, PAGE)
        .and_then(|got| whole(got, need))
        .map(|()| file.input.check_open(&file.file))
        .map_err(|e| file.input.read_error(&file.file, range.offset, range.len, e))??;
    Ok(Copied { buffer, head })
}

fn whole(got: usize, need: usize) -> io::Result<()> {
    if got >= need {
        return Ok(());
    }
    let text = format!("the file ends {} bytes early", need - got);
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
}

/// Reads until `need` bytes of `into` are there or the file ends. After a short read goes on at a
/// multiple of `unit`, as direct I/O must.
fn read_up_to(
    file: &File,
    into: &mut [u8],
    offset: u64,
    need: usize,
    unit: usize,
) -> io::Result<usize> {
    let mut got = 0;
    while got < need {
        let from = got / unit * unit;
        let Some(rest) = into.get_mut(from..) else { break };
        match file.read_at(rest, offset + from as u64) {
            Ok(n) if from + n <= got => break,
            Ok(n) => got = from + n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

type Outcome = Result<Copied, SourceError>;

/// How far a read ahead has come.
#[derive(Default)]
enum State {
    #[default]
    Pending,
    Done(Outcome),
    /// The helper went away before it read.
    Abandoned,
}

/// Where a helper thread leaves what it read ahead.
#[derive(Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    filled: Condvar,
}

impl Slot {
    /// Waits for the outcome. None if the helper went away before it read.
    pub(super) fn wait(&self) -> Option<Outcome> {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match std::mem::take(&mut *guard) {
                State::Done(outcome) => return Some(outcome),
                State::Abandoned => return None,
                State::Pending => {}
            }
            guard = self.filled.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn leave(&self, state: State) {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*guard, State::Pending) {
            *guard = state;
        }
        drop(guard);
        self.filled.notify_all();
    }
}

/// The helper's end of a slot: dropping it unused tells the waiter to read for itself.
pub(super) struct Filler(pub(super) Arc<Slot>);

impl Filler {
    /// Runs the read and leaves its outcome. Does nothing if the reader no longer wants it.
    pub(super) fn run(&self, read: impl FnOnce() -> Outcome) {
        if Arc::strong_count(&self.0) > 1 {
            self.0.leave(State::Done(read()));
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.0.leave(State::Abandoned);
    }
}
