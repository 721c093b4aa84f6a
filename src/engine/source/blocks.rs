//! Which blocks of one file are in use: pure bookkeeping, no system calls.
//!
//! A block is dropped when no tile and no prefetch holds it and the cursor is elsewhere. Whatever is
//! dropped too early is read again, so nothing here can make a result wrong.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

#[derive(Default)]
struct Block {
    holders: u32,
    started: bool,
    ready: bool,
}

/// Runs of neighbouring blocks, so that one system call serves many.
pub(super) type Runs = Vec<RangeInclusive<u64>>;

/// The blocks of one open file that are held, filled, or under the cursor.
#[derive(Default)]
pub(super) struct Blocks {
    live: BTreeMap<u64, Block>,
    cursor: Option<u64>,
}

impl Blocks {
    /// Takes hold of blocks: they are not dropped before as many calls of `release`. Returns those that were not in
    /// use before.
    pub(super) fn hold(&mut self, range: RangeInclusive<u64>) -> Runs {
        let mut fresh = Runs::new();
        for index in range {
            let block = self.live.entry(index).or_insert_with(|| {
                push(&mut fresh, index);
                Block::default()
            });
            block.holders += 1;
        }
        fresh
    }

    /// How many blocks are not in use yet.
    pub(super) fn anew(&self, range: RangeInclusive<u64>) -> u64 {
        let known = self.live.range(range.clone()).count() as u64;
        range.end() - range.start() + 1 - known
    }

    /// Marks blocks as asked for; returns those that were not.
    pub(super) fn start(&mut self, range: RangeInclusive<u64>) -> Runs {
        let mut runs = Runs::new();
        for index in range {
            let block = self.live.entry(index).or_default();
            if !block.started && !block.ready {
                block.started = true;
                push(&mut runs, index);
            }
        }
        runs
    }

    /// Blocks that are not known to be filled.
    pub(super) fn missing(&self, range: RangeInclusive<u64>) -> Runs {
        let mut runs = Runs::new();
        for index in range {
            if !self.live.get(&index).is_some_and(|b| b.ready) {
                push(&mut runs, index);
            }
        }
        runs
    }

    /// Whether somebody still waits for this block.
    pub(super) fn wanted(&self, index: u64) -> bool {
        self.live.get(&index).is_some_and(|b| !b.ready)
    }

    /// Marks blocks as filled; returns those that nobody holds any more, to be dropped again.
    pub(super) fn ready(&mut self, range: RangeInclusive<u64>) -> Runs {
        let mut runs = Runs::new();
        for index in range {
            match self.live.get_mut(&index) {
                Some(block) => block.ready = true,
                None => push(&mut runs, index),
            }
        }
        runs
    }

    /// Lets go of blocks; returns those to be dropped.
    pub(super) fn release(&mut self, range: RangeInclusive<u64>) -> Runs {
        let mut runs = Runs::new();
        for index in range {
            if let Some(block) = self.live.get_mut(&index) {
                block.holders = block.holders.saturating_sub(1);
            }
            if self.reap(index) {
                push(&mut runs, index);
            }
        }
        runs
    }

    /// Moves the cursor to a block, or away (`None`); returns the block it left if that is to be dropped.
    pub(super) fn move_cursor(&mut self, to: Option<u64>) -> Runs {
        let left = std::mem::replace(&mut self.cursor, to);
        let mut runs = Runs::new();
        if let Some(index) = left.filter(|&l| Some(l) != to && self.reap(l)) {
            push(&mut runs, index);
        }
        runs
    }

    /// Forgets every block and returns them all.
    pub(super) fn clear(&mut self) -> Runs {
        let mut runs = Runs::new();
        for index in std::mem::take(&mut self.live).into_keys() {
            push(&mut runs, index);
        }
        runs
    }

    fn reap(&mut self, index: u64) -> bool {
        let idle = self.cursor != Some(index)
            && self.live.get(&index).is_some_and(|block| block.holders == 0);
        idle && self.live.remove(&index).is_some()
    }
}

fn push(runs: &mut Runs, index: u64) {
    match runs.last_mut() {
        Some(run) if *run.end() + 1 == index => *run = *run.start()..=index,
        _ => runs.push(index..=index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_goes_when_nobody_holds_it_and_the_cursor_left() {
        let mut b = Blocks::default();
        assert_eq!((b.anew(0..=1), b.hold(0..=1)), (2, vec![0..=1]));
        assert_eq!(b.start(0..=1), vec![0..=1]);
        assert!(b.start(0..=1).is_empty(), "asked for once");
        assert!(b.ready(0..=1).is_empty());
        assert!(b.missing(0..=1).is_empty());
        assert!(b.move_cursor(Some(1)).is_empty());
        assert_eq!((b.anew(1..=2), b.hold(1..=2)), (1, vec![2..=2]));
        assert_eq!(b.release(0..=1), vec![0..=0], "block 1 is shared with the next tile");
        assert!(b.release(1..=2).contains(&(2..=2)));
        assert_eq!(b.move_cursor(Some(7)), vec![1..=1]);
    }

    #[test]
    fn a_late_fill_of_a_released_block_is_dropped_again() {
        let mut b = Blocks::default();
        assert_eq!(b.hold(3..=3), vec![3..=3]);
        assert_eq!(b.start(3..=3), vec![3..=3]);
        assert!(b.wanted(3));
        assert_eq!(b.release(3..=3), vec![3..=3]);
        assert!(!b.wanted(3));
        assert_eq!(b.ready(3..=3), vec![3..=3]);
        assert!(b.clear().is_empty());
    }

    #[test]
    fn runs_merge_neighbours_only() {
        let mut b = Blocks::default();
        for i in [0, 1, 2, 5, 6, 9] {
            drop(b.hold(i..=i));
        }
        assert!(b.ready(2..=2).is_empty());
        assert_eq!(b.missing(0..=2), vec![0..=1]);
        assert_eq!(b.clear(), vec![0..=2, 5..=6, 9..=9]);
    }
}
