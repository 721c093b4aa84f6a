//! The way past the page cache.
//!
//! ```text
//!  writer --copies--> chunk being filled --when full--> chunk on its way --> disk
//!    ^                                                  (a thread of its own)  |
//!    +------------------------- one of two buffers <---------------------------+
//! ```
//!
//! Copying into the page cache takes more of a CPU than all else that writing does. So what a shard is given is
//! collected in chunks that lie in memory as in the file, and a thread writes these past the cache while the next
//! one is filled. There are two of them, however many shards are open: a write to another shard, or to another
//! place, sends off what there is. Each shard's chunks are written in the order in which they were given.

use std::io;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, SendError, Sender, bounded};

use super::SinkError;
use super::file::ShardFile;
use crate::engine::buffer::{BufferPool, PAGE, PoolBuffer};

/// Chunks in memory: one is filled while another is written.
const CHUNKS: usize = 2;

/// Collects what shards are given, and writes it past the page cache.
pub struct Lane {
    chunk: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    filling: Option<Filling>,
    /// Started when there is something to write.
    helper: Option<Helper>,
}

impl Lane {
    /// A lane that holds two chunks of about so many bytes.
    pub fn new(chunk: u64) -> Self {
        let chunk = usize::try_from(chunk).unwrap_or(usize::MAX) / PAGE * PAGE;
        Self { chunk: chunk.max(PAGE), state: Mutex::default() }
    }

    /// Takes bytes for a file. May wait for the disk to take earlier ones.
    pub(super) fn write(
        &self,
        file: &Arc<ShardFile>,
        mut offset: u64,
        mut bytes: &[u8],
    ) -> Result<(), SinkError> {
        let mut state = self.state();
        let State { filling, helper } = &mut *state;
        let helper = match helper {
            Some(helper) => helper,
            // Where there can be no thread, nothing is under way either.
            None => match Helper::start() {
                Ok(started) => helper.insert(started),
                Err(_) => return file.write(offset, bytes),
            },
        };
        if let Some(other) = filling.take_if(|filling| !filling.goes_on(file, offset)) {
            helper.send(other);
        }
        while !bytes.is_empty() {
            let mut chunk = match filling.take() {
                Some(chunk) => chunk,
                None => Filling::new(file, offset, helper.buffer(file, self.chunk)?),
            };
            let n = chunk.add(bytes, self.chunk);
            offset += n as u64;
            bytes = bytes.get(n..).unwrap_or_default();
            if chunk.filled.end < self.chunk {
                *filling = Some(chunk);
            } else {
                helper.send(chunk);
            }
        }
        Ok(())
    }

    /// Waits until a file holds all that was given for it, or a write has failed.
    pub(super) fn flush(&self, file: &Arc<ShardFile>) {
        let mut state = self.state();
        let State { filling, helper } = &mut *state;
        if let (Some(helper), Some(chunk)) =
            (helper, filling.take_if(|filling| Arc::ptr_eq(&filling.file, file)))
        {
            helper.send(chunk);
        }
        drop(state);
        file.await_queued();
    }

    /// Forgets what was given for a file and has not been sent off.
    pub(super) fn forget(&self, file: &Arc<ShardFile>) {
        let mut state = self.state();
        let State { filling, helper } = &mut *state;
        if let (Some(helper), Some(chunk)) =
            (helper, filling.take_if(|filling| Arc::ptr_eq(&filling.file, file)))
        {
            helper.spare = Some(chunk.buffer);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic leaves behind is a chunk that is or is not sent off.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A chunk that is being filled.
struct Filling {
    file: Arc<ShardFile>,
    buffer: PoolBuffer,
    /// Where in the file the buffer begins.
    base: u64,
    /// What of the buffer is filled.
    filled: Range<usize>,
}

impl Filling {
    fn new(file: &Arc<ShardFile>, offset: u64, buffer: PoolBuffer) -> Self {
        let start = (offset % PAGE as u64) as usize;
        Self { file: Arc::clone(file), buffer, base: offset - start as u64, filled: start..start }
    }

    fn goes_on(&self, file: &Arc<ShardFile>, offset: u64) -> bool {
        Arc::ptr_eq(&self.file, file) && self.base + self.filled.end as u64 == offset
    }

    /// Takes as many bytes as fit in, and tells how many.
    fn add(&mut self, bytes: &[u8], capacity: usize) -> usize {
        let n = bytes.len().min(capacity - self.filled.end);
        let end = self.filled.end + n;
        self.buffer.bytes_mut()[self.filled.end..end].copy_from_slice(&bytes[..n]);
        self.filled.end = end;
        n
    }
}

fn gone(file: &ShardFile) -> SinkError {
    file.fail(io::Error::other("the thread that writes has failed"))
}

/// The thread that writes. Ends with what it has been sent when this is dropped.
struct Helper {
    chunks: Option<Sender<Filling>>,
    /// Room for a chunk; the buffer itself comes when it is first needed.
    free: Receiver<Option<PoolBuffer>>,
    /// One that came back unused.
    spare: Option<PoolBuffer>,
    pool: Arc<BufferPool>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    fn start() -> io::Result<Self> {
        let (chunks, sent) = bounded(CHUNKS);
        let (to_free, free) = bounded(CHUNKS);
        for _ in 0..CHUNKS {
            // Cannot fail: the channel has room for all and `free` lives.
            let _full = to_free.send(None);
        }
        let thread = thread::Builder::new().name("writes".into());
        let thread = thread.spawn(move || write_all(&sent, &to_free))?;
        let (chunks, thread) = (Some(chunks), Some(thread));
        Ok(Self { chunks, free, spare: None, pool: Arc::default(), thread })
    }

    /// Room for a chunk. Waits for it.
    fn buffer(&mut self, file: &ShardFile, len: usize) -> Result<PoolBuffer, SinkError> {
        if let Some(spare) = self.spare.take() {
            return Ok(spare);
        }
        let room = self.free.recv().map_err(|_| gone(file))?;
        Ok(room.unwrap_or_else(|| self.pool.take(len)))
    }

    /// Sends a chunk off; its file hears when it is written.
    fn send(&self, chunk: Filling) {
        chunk.file.queue();
        let unsent = match &self.chunks {
            Some(chunks) => chunks.send(chunk).err().map(SendError::into_inner),
            None => Some(chunk),
        };
        // Cannot be: the thread lives as long as this.
        if let Some(Filling { file, .. }) = unsent {
            file.unqueue(Err(gone(&file)));
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.chunks = None;
        if let Some(thread) = self.thread.take() {
            // It does not: see below.
            let _panicked = thread.join();
        }
    }
}

fn write_all(chunks: &Receiver<Filling>, free: &Sender<Option<PoolBuffer>>) {
    for Filling { file, buffer, base, filled } in chunks {
        let bytes = buffer.bytes().get(filled.clone()).unwrap_or_default();
        let outcome = if file.has_failed() {
            Ok(()) // That is known, and the rest of the file is worth nothing.
        } else {
            // Whoever waits for a chunk must hear of it; what a panic leaves of the file is not looked at again.
            let write = || file.write_chunk(base + filled.start as u64, bytes);
            panic::catch_unwind(AssertUnwindSafe(write)).unwrap_or_else(|_| Err(gone(&file)))
        };
        file.unqueue(outcome);
        // Nobody may be there to fill another one.
        let _gone = free.send(Some(buffer));
    }
}
