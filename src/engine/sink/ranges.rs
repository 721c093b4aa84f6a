//! Sets of bytes.

use std::collections::BTreeMap;

/// Disjoint byte ranges, neighbours merged.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
    bytes: u64,
}

impl Ranges {
    /// Adds the bytes from `start` to `end`; some or all may be in already.
    pub fn add(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        while let Some((&s, &e)) =
            self.ranges.range(..=end).next_back().filter(|&(_, &e)| e >= start)
        {
            let _merged = self.ranges.remove(&s);
            self.bytes -= e - s;
            (start, end) = (start.min(s), end.max(e));
        }
        let _new = self.ranges.insert(start, end);
        self.bytes += end - start;
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the unbroken run that holds byte `at` ends; `at` itself if it is not in.
    pub fn run_end(&self, at: u64) -> u64 {
        let run = self.ranges.range(..=at).next_back();
        run.map_or(at, |(_, &end)| end.max(at))
    }

    /// Hands out all ranges, in order, and is empty.
    pub fn take(&mut self) -> Vec<(u64, u64)> {
        self.bytes = 0;
        std::mem::take(&mut self.ranges).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_are_the_union_of_what_was_added(adds in prop::collection::vec((0u64..60, 0u64..12), 0..30)) {
            let mut ranges = Ranges::default();
            let mut want = [false; 80];
            for (start, len) in adds {
                ranges.add(start, start + len);
                want[start as usize..(start + len) as usize].fill(true);
            }
            let count = want.iter().filter(|&&w| w).count() as u64;
            prop_assert_eq!(ranges.bytes(), count);
            for at in 0..70 {
                let end = (at..80).find(|&i| !want[i]).unwrap_or(80);
                prop_assert_eq!(ranges.run_end(at as u64), end as u64);
            }
            let mut got = [false; 80];
            let taken = ranges.take();
            prop_assert!(taken.windows(2).all(|w| w[0].1 < w[1].0), "neighbours are merged");
            for (start, end) in taken {
                got[start as usize..end as usize].fill(true);
            }
            prop_assert_eq!(got, want);
            prop_assert_eq!(ranges.bytes(), 0);
        }
    }
}
