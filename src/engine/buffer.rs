//! A pool of page-aligned buffers, for reads and writes that copy.
#![expect(unsafe_code, reason = "views page-aligned storage as bytes, which direct I/O needs")]

use std::sync::{Arc, Mutex, PoisonError};

/// Alignment of every buffer and the unit of I/O past the page cache, in bytes.
pub(super) const PAGE: usize = 4096;

/// Capacities are multiples of this, so that tiles of nearly one size share buffers.
const CLASS: usize = 64 << 10;

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// One owned buffer; goes back to its pool when dropped.
pub(super) struct PoolBuffer {
    pages: Vec<Page>,
    pool: Arc<BufferPool>,
}

impl PoolBuffer {
    pub(super) fn capacity(&self) -> usize {
        self.pages.len() * PAGE
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `pages` owns `capacity()` initialised bytes without padding (`repr(C)` array of
        // u8 whose size equals its alignment), borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.capacity()) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.capacity();
        // SAFETY: as in `bytes`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), len) }
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.pages));
    }
}

#[derive(Default)]
struct Shelf {
    free: Vec<Vec<Page>>,
    free_bytes: usize,
    used_bytes: usize,
    peak_bytes: usize,
}

/// Keeps freed buffers for reuse, never more than were once in use at the same time.
#[derive(Default)]
pub(super) struct BufferPool {
    shelf: Mutex<Shelf>,
}

impl BufferPool {
    /// Takes a buffer of at least `len` bytes; its contents are left over from earlier use.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> PoolBuffer {
        let capacity = if len <= PAGE { PAGE } else { len.next_multiple_of(CLASS) };
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.used_bytes += capacity;
        shelf.peak_bytes = shelf.peak_bytes.max(shelf.used_bytes);
        let found = shelf.free.iter().position(|p| p.len() * PAGE == capacity);
        let pages = if let Some(i) = found {
            shelf.free_bytes -= capacity;
            shelf.free.swap_remove(i)
        } else {
            // Make room first: free buffers of other sizes must not add to the peak.
            while shelf.used_bytes + shelf.free_bytes > shelf.peak_bytes {
                let Some(old) = shelf.free.pop() else { break };
                shelf.free_bytes -= old.len() * PAGE;
            }
            drop(shelf);
            vec![Page([0; PAGE]); capacity / PAGE]
        };
        PoolBuffer { pages, pool: Arc::clone(self) }
    }

    fn put(&self, pages: Vec<Page>) {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = pages.len() * PAGE;
        shelf.used_bytes -= bytes;
        shelf.free_bytes += bytes;
        shelf.free.push(pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_reused_and_bounded() {
        let pool = Arc::new(BufferPool::default());
        let a = pool.take(1 << 20);
        let address = a.bytes().as_ptr() as usize;
        assert_eq!(address % PAGE, 0);
        assert_eq!(a.capacity(), 1 << 20);
        drop(a);
        let b = pool.take((1 << 20) - 5);
        assert_eq!(b.bytes().as_ptr() as usize, address, "the same storage again");
        drop(b);
        let mut c = pool.take(512 << 10);
        c.bytes_mut()[3] = 9;
        assert_eq!(c.bytes()[3], 9);
        let shelf = pool.shelf.lock().unwrap();
        assert!(shelf.used_bytes + shelf.free_bytes <= 1 << 20);
        drop(shelf);
        assert_eq!(pool.take(10).capacity(), PAGE);
    }
}
