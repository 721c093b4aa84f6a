//! Which tiles are asked for while others are worked on.
//!
//! Tiles are as unequal as tensors: 500 MB of all models for an embedding, a few KB for a norm. So it is bytes that are asked for
//! ahead, over as many tiles as they take: disk and workers then wait for each other only where memory ends.

use std::collections::VecDeque;
use std::iter::Fuse;

use super::source::{ByteRange, Source};

/// One tile has come or is waited for, the next one is asked for: the plan has room for two beside those of the workers,
/// however large they are.
const LEAST: usize = 2;

/// Most tiles that are asked for: where they are small, more would take more to remember than they hold.
const MOST: usize = 256;

/// What can be asked for bytes ahead of time.
pub(super) trait Asked {
    /// Whether there is room for them beside all that has been asked for and is in use.
    fn has_room(&self, ranges: &[ByteRange]) -> bool;

    /// Starts reading them. Asking twice is asking once.
    fn ask(&mut self, ranges: &[ByteRange]);
}

impl Asked for Source {
    fn has_room(&self, ranges: &[ByteRange]) -> bool {
        Source::has_room(self, ranges)
    }

    fn ask(&mut self, ranges: &[ByteRange]) {
        self.prefetch(ranges);
    }
}

/// Tiles to come, in the order in which they are read; the first of them asked for.
pub(super) struct Coming<T, I: Iterator<Item = (T, Vec<ByteRange>)>> {
    tiles: Fuse<I>,
    /// The one for which there was no room.
    next: Option<(T, Vec<ByteRange>)>,
    asked: VecDeque<(T, Vec<ByteRange>)>,
}

impl<T, I: Iterator<Item = (T, Vec<ByteRange>)>> Coming<T, I> {
    pub(super) fn new(tiles: I) -> Self {
        Self { tiles: tiles.fuse(), next: None, asked: VecDeque::new() }
    }

    /// Asks for as many as there is room for: for two in any case.
    pub(super) fn ask(&mut self, source: &mut impl Asked) {
        while self.asked.len() < MOST {
            let Some((tile, ranges)) = self.next.take().or_else(|| self.tiles.next()) else {
                break;
            };
            if self.asked.len() >= LEAST && !source.has_room(&ranges) {
                self.next = Some((tile, ranges));
                break;
            }
            source.ask(&ranges);
            self.asked.push_back((tile, ranges));
        }
    }

    /// The first of those asked for: now it is somebody else's.
    pub(super) fn take(&mut self) -> Option<(T, Vec<ByteRange>)> {
        self.asked.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A source with so much room, which notes what is asked of it.
    #[derive(Default)]
    struct Noted {
        room: u64,
        asked: Vec<ByteRange>,
        in_use: u64,
    }

    impl Noted {
        fn done(&mut self, ranges: &[ByteRange]) {
            self.in_use -= bytes(ranges);
        }
    }

    impl Asked for Noted {
        fn has_room(&self, ranges: &[ByteRange]) -> bool {
            self.in_use + bytes(ranges) <= self.room
        }

        fn ask(&mut self, ranges: &[ByteRange]) {
            self.asked.extend(ranges);
            self.in_use += bytes(ranges);
        }
    }

    fn bytes(ranges: &[ByteRange]) -> u64 {
        ranges.iter().map(|range| range.len as u64).sum()
    }

    /// Tiles of so many bytes in each of two files.
    fn tiles(sizes: &[usize]) -> impl Iterator<Item = (usize, Vec<ByteRange>)> + '_ {
        let mut offset = 0;
        sizes.iter().enumerate().map(move |(i, &len)| {
            let ranges = (0..2).map(|file| ByteRange { file, offset, len }).collect();
            offset += len as u64;
            (i, ranges)
        })
    }

    proptest! {
        #[test]
        fn as_much_is_asked_for_as_there_is_room_for_and_in_order(
            sizes in prop::collection::vec(prop_oneof![3 => 1usize..20, 1 => 100usize..200], 0..120),
            room in 0u64..2000,
            workers in 1usize..4,
        ) {
            let mut source = Noted { room, ..Noted::default() };
            let mut coming = Coming::new(tiles(&sizes));
            let mut busy: VecDeque<Vec<ByteRange>> = VecDeque::new();
            for expected in 0.. {
                coming.ask(&mut source);
                let asked = coming.asked.len();
                // Within the room, or no more tiles than the plan has a place for.
                prop_assert!(source.in_use <= room || busy.len() + asked <= workers + LEAST);
                if let Some((_, next)) = &coming.next {
                    prop_assert!(asked >= LEAST, "two in any case");
                    prop_assert!(source.in_use + bytes(next) > room, "there was room");
                } else {
                    prop_assert_eq!(expected + asked, sizes.len(), "all are asked for");
                }
                let Some((tile, ranges)) = coming.take() else {
                    prop_assert_eq!(expected, sizes.len());
                    break;
                };
                prop_assert_eq!(tile, expected);
                prop_assert_eq!(&source.asked[2 * tile..2 * tile + 2], &ranges[..]);
                if busy.len() == workers {
                    source.done(&busy.pop_front().unwrap());
                }
                busy.push_back(ranges);
            }
            let all: Vec<_> = tiles(&sizes).flat_map(|(_, ranges)| ranges).collect();
            prop_assert_eq!(source.asked, all, "each once");
        }
    }

    #[test]
    fn many_small_tiles_are_not_all_remembered() {
        let sizes = vec![1; 3 * MOST];
        let mut source = Noted { room: u64::MAX, ..Noted::default() };
        let mut coming = Coming::new(tiles(&sizes));
        coming.ask(&mut source);
        assert_eq!(source.asked.len(), 2 * MOST);
        assert_eq!(coming.take().unwrap().0, 0);
        coming.ask(&mut source);
        assert_eq!(source.asked.len(), 2 * (MOST + 1));
    }
}
