//! Which elements a sample takes.

use std::ops::Range;

/// Of every `stride` consecutive elements of a unit, laid end to end in plan order, one run of
/// `block` elements at a place that looks random and depends on nothing but its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Elements per run.
    pub block: u64,
    /// Elements that one run stands for.
    pub stride: u64,
}

impl Sampling {
    /// The share of all elements that is read.
    pub fn share(self) -> f64 {
        self.block as f64 / self.stride as f64
    }

    /// The runs that begin in `range`, of a unit of `elements` elements.
    pub fn runs(self, range: Range<u64>, elements: u64) -> impl Iterator<Item = Range<u64>> {
        let end = range.end.min(elements);
        (range.start / self.stride..end.div_ceil(self.stride)).filter_map(move |number| {
            let spare = self.stride - self.block.min(self.stride);
            let start = number * self.stride + scatter(number) % (spare + 1);
            let run = start..(start + self.block).min(elements);
            (range.start..end).contains(&start).then_some(run)
        })
    }
}

/// A number that looks random (SplitMix64).
fn scatter(number: u64) -> u64 {
    let x = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// How much of a unit the sample passes read, each.
pub(super) fn sampling(elements: u64) -> Sampling {
    // Runs as long as cheap reads demand, but enough of them; 1 % of large units and at most
    // 2.4 % of small ones, so that four passes stay below a tenth of a read.
    let block = if elements >= 1 << 27 { 4096 } else { 1024 };
    Sampling { block, stride: block * (elements >> 20).clamp(42, 100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_belongs_to_one_part_wherever_the_unit_is_cut() {
        let sampling = Sampling { block: 10, stride: 1000 };
        let whole: Vec<_> = sampling.runs(0..1_234_567, 1_234_567).collect();
        assert!((1234..=1235).contains(&whole.len()), "{}", whole.len());
        let mut parts = Vec::new();
        for start in (0..1_234_567).step_by(777) {
            parts.extend(sampling.runs(start..(start + 777).min(1_234_567), 1_234_567));
        }
        assert_eq!(parts, whole);
        let distinct: std::collections::BTreeSet<u64> =
            whole.iter().map(|run| run.start % 1000).collect();
        assert!(distinct.len() > 600, "{}", distinct.len());
    }
}
