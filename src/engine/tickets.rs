//! Tickets: the right to have one tile in memory, each with the buffer for what is written of it.
//!
//! They are made once for all passes: a buffer that every pass asked the kernel for anew would come page by page, each
//! of them cleared, which took slerp of tensors of 130 MB a seventh of its time.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::checkpoint::components::TileFrames;

/// What a tile is made into.
#[derive(Default)]
pub(super) struct Room {
    /// The longest output so far.
    buffer: Vec<u8>,
    /// What of it is the tile's.
    len: usize,
    pub(super) frames: TileFrames,
}

impl Room {
    /// Room for output bytes, whatever they were before; and for frames.
    pub(super) fn of(&mut self, len: usize) -> (&mut [u8], &mut TileFrames) {
        self.len = len;
        if self.buffer.len() < len {
            // Given back first, so that there are not two of them. Zeros come from the kernel.
            self.buffer = Vec::new();
            self.buffer = vec![0; len];
        }
        (&mut self.buffer[..len], &mut self.frames)
    }
}

/// The tickets of a merge.
pub struct Tickets {
    home: Sender<Room>,
    pool: Receiver<Room>,
}

impl Tickets {
    /// So many tickets.
    pub fn new(count: usize) -> Self {
        let (home, pool) = bounded(count);
        for _ in 0..count {
            // Cannot fail: the channel has room for all and `pool` lives.
            let _full = home.send(Room::default());
        }
        Self { home, pool }
    }

    /// Where they can be waited for: never disconnected.
    pub(super) fn pool(&self) -> &Receiver<Room> {
        &self.pool
    }

    /// The ticket of what came from the pool.
    pub(super) fn ticket(&self, room: Room) -> Ticket {
        Ticket { room, home: self.home.clone() }
    }
}

/// One ticket, on its way. Goes home when it is dropped.
pub(super) struct Ticket {
    room: Room,
    home: Sender<Room>,
}

impl Deref for Ticket {
    type Target = Room;

    fn deref(&self) -> &Room {
        &self.room
    }
}

impl DerefMut for Ticket {
    fn deref_mut(&mut self) -> &mut Room {
        &mut self.room
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // There is room for all; and nobody may be there to take another one.
        let _gone = self.home.send(std::mem::take(&mut self.room));
    }
}

/// The finished bytes of a tile, for whoever works on them. The tile's ticket goes home when nobody does any more.
#[derive(Clone)]
pub struct TileOut(Arc<Ticket>);

impl TileOut {
    pub(super) fn new(ticket: Ticket) -> Self {
        Self(Arc::new(ticket))
    }

    /// Some bytes, of no tile.
    #[cfg(test)]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let tickets = Tickets::new(1);
        let mut ticket = tickets.ticket(Room::default());
        ticket.of(bytes.len()).0.copy_from_slice(bytes);
        Self::new(ticket)
    }

    /// Whether nobody else has them.
    #[cfg(test)]
    pub(crate) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    pub(super) fn frames(&self) -> &TileFrames {
        &self.0.frames
    }
}

impl Deref for TileOut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.buffer.get(..self.0.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_goes_home_with_its_buffer_when_nobody_has_its_bytes() {
        let tickets = Tickets::new(1);
        let take = || tickets.pool().try_recv().ok().map(|room| tickets.ticket(room));
        let mut ticket = take().unwrap();
        ticket.of(1000).0.fill(7);
        let buffer = ticket.of(1000).0.as_ptr();
        let out = TileOut::new(ticket);
        let other = out.clone();
        assert_eq!(other[..], [7; 1000]);
        drop(out);
        assert!(take().is_none(), "somebody has them");
        drop(other);
        let mut again = take().unwrap();
        assert_eq!(again.of(0).0.len(), 0);
        assert_eq!(again.of(900).0.as_ptr(), buffer, "not a new one");
        assert_eq!(again.of(1001).0.len(), 1001);
    }
}
