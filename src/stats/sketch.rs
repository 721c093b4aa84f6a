//! Brackets for order statistics, from a sample of the keys.
//!
//! Two passes over the same sample: the first counts keys coarsely, the second finely around each
//! wanted rank. The second also looks at how much the blocks of the sample differ: neighbouring
//! weights are alike, so a block of them tells less than as many weights from everywhere. Only blocks
//! that lie close to each other are compared: the sample takes a like share of each part of the keys,
//! so how much the parts differ does no harm. A bracket reaches six standard deviations to either side,
//! at least as far as independent keys would demand. It may still be wrong; whoever counts with it finds out.

use super::{Reader, Writer};

/// Half the width of a bracket in standard deviations of the sampled rank.
const SIGMAS: f64 = 6.0;

/// Coarse bins: the upper 13 bits of a key.
const COARSE: u32 = 19;
const COARSE_BINS: usize = 1 << (32 - COARSE);
/// Fine bins per wanted rank.
const FINE_BINS: u32 = 1 << 12;
/// Parts of the keys in which blocks are compared, at most, and blocks of the sample in each, at least.
const PARTS: u64 = 256;
const PART_BLOCKS: u64 = 2;
/// Fewer blocks than this say little about how much blocks differ.
const FEW: f64 = 24.0;

/// A range of keys, ends included.
pub type Span = (u32, u32);

/// The spans of all keys.
pub const EVERYTHING: Span = (0, u32::MAX);

/// Looks for brackets of the same ranks in each of several rows of keys.
#[derive(Clone, Debug)]
pub struct Sketch {
    total: u64,
    parts: usize,
    /// Wanted ranks as shares of all keys, row by row.
    shares: Vec<Vec<f64>>,
    /// Factor on the width of all brackets.
    width: f64,
    coarse: Option<Coarse>,
}

#[derive(Clone, Debug)]
struct Coarse {
    bins: Vec<Vec<u32>>,
    sampled: u64,
    /// Row by row, share by share.
    windows: Vec<Window>,
}

/// Where the second pass looks closely.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: u32,
    shift: u32,
    /// How much blocks differ is seen in how many of their keys lie below this.
    pivot: u32,
}

/// What one pass has counted. Mergeable in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sketched {
    /// Row by row (and share by share in the second pass).
    bins: Vec<Vec<u32>>,
    /// In the second pass, below the pivot: sum of the blocks' counts, of their squares, and of
    /// their products with the blocks' lengths; row by row, share by share, part by part.
    spread: Vec<[u64; 3]>,
    /// Blocks, keys, and squares of the blocks' lengths, row by row and part by part.
    blocks: Vec<[u64; 3]>,
    largest: Vec<u32>,
}

/// What follows a pass.
pub enum Sketches {
    /// The second pass.
    Again(Sketch),
    /// Row by row.
    Done(Vec<Brackets>),
}

/// What the sample says about one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brackets {
    /// One bracket per wanted rank.
    pub spans: Vec<Span>,
    /// The largest key of the sample.
    pub largest: u32,
}

impl Sketch {
    /// Starts the search for the keys at `ranks` (from 0) among `total` keys in each of `rows`
    /// rows, with so many blocks in the sample. `width` widens all brackets.
    pub fn new(rows: usize, total: u64, blocks: u64, ranks: &[u64], width: f64) -> Self {
        Self::each(total, blocks, &vec![ranks.to_vec(); rows], width)
    }

    /// Starts the search for other ranks in each row.
    pub fn each(total: u64, blocks: u64, ranks: &[Vec<u64>], width: f64) -> Self {
        let parts = (blocks / PART_BLOCKS).clamp(1, PARTS) as usize;
        let share = |&rank: &u64| (rank as f64 + 0.5) / total.max(1) as f64;
        let shares = ranks.iter().map(|ranks| ranks.iter().map(share).collect()).collect();
        Self { total, parts, shares, width, coarse: None }
    }

    /// Where the first rank of a row stands among all ranks.
    fn first(&self, row: usize) -> usize {
        self.shares[..row].iter().map(Vec::len).sum()
    }

    /// Whether this is the first pass.
    pub fn is_first(&self) -> bool {
        self.coarse.is_none()
    }

    /// Empty counts for the coming pass.
    pub fn empty(&self) -> Sketched {
        let (rows, places) = (self.shares.len(), self.first(self.shares.len()));
        let (bins, places) = match &self.coarse {
            None => (vec![vec![0; COARSE_BINS]; rows], 0),
            Some(_) => (vec![vec![0; FINE_BINS as usize + 1]; places], places),
        };
        Sketched {
            bins,
            spread: vec![[0; 3]; places * self.parts],
            blocks: vec![[0; 3]; rows * self.parts],
            largest: vec![0; rows],
        }
    }

    /// Counts of this pass from [`Sketched::saved`]; `None` if the bytes are not that.
    pub fn loaded(&self, of: u32, saved: &[u8]) -> Option<Sketched> {
        let (mut saved, mut counts) = (Reader::new(saved), self.empty());
        (saved.u32()? == of).then_some(())?;
        counts.load(&mut saved)?;
        saved.end()?;
        Some(counts)
    }

    /// Bytes of the counts of one pass.
    pub fn state_bytes(rows: u64, ranks: u64) -> u64 {
        rows * 4 * (COARSE_BINS as u64).max(ranks * (u64::from(FINE_BINS) + 32))
            + rows * (ranks + 1) * PARTS * 24
    }

    /// Counts a block of the sample, from key number `at`, in one row.
    pub fn add(&self, counts: &mut Sketched, row: usize, at: u64, keys: &[u32]) {
        let len = keys.len() as u64;
        let part = (at as f64 / self.total.max(1) as f64 * self.parts as f64) as usize;
        let part = part.min(self.parts - 1);
        let [blocks, sampled, squares] = &mut counts.blocks[row * self.parts + part];
        (*blocks, *sampled, *squares) = (*blocks + 1, *sampled + len, *squares + len * len);
        counts.largest[row] = keys.iter().fold(counts.largest[row], |max, &key| max.max(key));
        let Some(coarse) = &self.coarse else {
            let bins = &mut counts.bins[row];
            keys.iter().for_each(|&key| bins[(key >> COARSE) as usize] += 1);
            return;
        };
        let first = self.first(row);
        for place in first..first + self.shares[row].len() {
            let window = coarse.windows[place];
            let bins = &mut counts.bins[place];
            for &key in keys {
                // Keys outside the window go to the last bin.
                let bin = key.wrapping_sub(window.from) >> window.shift;
                bins[bin.min(FINE_BINS) as usize] += 1;
            }
            let below: u64 = keys.iter().map(|&key| u64::from(key < window.pivot)).sum();
            let [sum, square, product] = &mut counts.spread[place * self.parts + part];
            (*sum, *square) = (*sum + below, *square + below * below);
            *product += below * len;
        }
    }

    /// Takes the merged counts of a pass over the sample.
    pub fn absorb(mut self, counts: Sketched) -> Sketches {
        let Some(coarse) = self.coarse.take() else {
            // Rows of which nothing is wanted may have been left out.
            let row = |parts: &[[u64; 3]]| parts.iter().map(|[_, sampled, _]| *sampled).sum();
            let sampled: u64 = counts.blocks.chunks(self.parts).map(row).max().unwrap_or(0);
            let windows = counts.bins.iter().zip(&self.shares).flat_map(|(bins, shares)| {
                shares.iter().map(move |share| Window::around(bins, *share, sampled))
            });
            let windows = windows.collect();
            let coarse = Coarse { bins: counts.bins, sampled, windows };
            return Sketches::Again(Self { coarse: Some(coarse), ..self });
        };
        let row = |row: usize| {
            let first = self.first(row);
            let span =
                |(share, &p): (usize, &f64)| self.span(&coarse, &counts, row, first + share, p);
            let spans = self.shares[row].iter().enumerate().map(span).collect();
            Brackets { spans, largest: counts.largest[row] }
        };
        Sketches::Done((0..self.shares.len()).map(row).collect())
    }

    fn span(&self, coarse: &Coarse, counts: &Sketched, row: usize, place: usize, p: f64) -> Span {
        let m = coarse.sampled as f64;
        let of = |counts: &[[u64; 3]], place: usize| -> Vec<[f64; 3]> {
            let counts = &counts[place * self.parts..][..self.parts];
            counts.iter().map(|counts| counts.map(|count| count as f64)).collect()
        };
        let (parts, spread) = (of(&counts.blocks, row), of(&counts.spread, place));
        let all =
            |counts: &[[f64; 3]], i: usize| counts.iter().map(|counts| counts[i]).sum::<f64>();
        let (blocks, sampled, sum) = (all(&parts, 0), all(&parts, 1), all(&spread, 0));
        if sampled == 0.0 {
            return EVERYTHING;
        }
        // Between blocks the variance of a count is that of its distance from what its length and
        // the others in its part let expect.
        let q = sum / sampled;
        let measured = parts.iter().zip(&spread).map(|(&[blocks, len, squares], spread)| {
            let (q, few) =
                if blocks > 1.0 { (spread[0] / len, blocks / (blocks - 1.0)) } else { (q, 1.0) };
            few * (spread[1] - 2.0 * q * spread[2] + q * q * squares)
        });
        let measured: f64 = measured.sum();
        let independent = sampled * q * (1.0 - q);
        let alike = if independent < 30.0 { 4.0 } else { (measured / independent).max(1.0) };
        let few = if blocks < FEW { FEW / blocks } else { 1.0 };
        let deviation = (alike * m * p * (1.0 - p)).sqrt();
        let reach = SIGMAS * self.width * few * deviation + 8.0 * self.width;
        let rank = m * p;
        let window = coarse.windows[place];
        let coarse = &coarse.bins[row];
        let low =
            locate(coarse, &counts.bins[place], window, rank - reach).map_or(0, |(low, _)| low);
        let high = locate(coarse, &counts.bins[place], window, rank + reach);
        (low, high.map_or(u32::MAX, |(_, high)| high))
    }
}

/// The bin that holds a rank of the sample, in fine bins if it lies in the window.
fn locate(coarse: &[u32], fine: &[u32], window: Window, rank: f64) -> Option<Span> {
    if rank < 0.0 {
        return None;
    }
    let mut rest = rank as u64;
    for (bin, &count) in (0u32..).zip(coarse) {
        let (from, to) = (bin << COARSE, (bin << COARSE) + ((1 << COARSE) - 1));
        let inside = from.wrapping_sub(window.from) >> window.shift < FINE_BINS;
        if rest >= u64::from(count) {
            rest -= u64::from(count);
        } else if inside {
            let first = (from - window.from) >> window.shift;
            for (bin, &count) in (first..).zip(&fine[first as usize..FINE_BINS as usize]) {
                if rest < u64::from(count) {
                    let from = window.from + (bin << window.shift);
                    return Some((from, from + ((1 << window.shift) - 1)));
                }
                rest -= u64::from(count);
            }
            return Some((from, to));
        } else {
            return Some((from, to));
        }
    }
    None
}

impl Window {
    fn around(bins: &[u32], p: f64, sampled: u64) -> Self {
        let m = sampled as f64;
        // Wide enough for blocks whose counts vary some ten times as much as independent keys'.
        let reach = 10.0 * SIGMAS * (m * p * (1.0 - p)).sqrt() + 64.0;
        let bin = |rank: f64| {
            let mut rest = rank.clamp(0.0, (m - 1.0).max(0.0)) as u64;
            let mut last = 0;
            for (bin, &count) in (0u32..).zip(bins) {
                last = bin;
                if rest < u64::from(count) {
                    break;
                }
                rest -= u64::from(count);
            }
            last
        };
        let (first, last) = (bin(m * p - reach), bin(m * p + reach));
        let mut shift = 0;
        // The bins of the window are whole parts of coarse bins.
        while u64::from(last - first + 1) << (COARSE - shift) > u64::from(FINE_BINS)
            && shift < COARSE
        {
            shift += 1;
        }
        let middle = bin(m * p);
        let below: u64 = bins[..middle as usize].iter().map(|&count| u64::from(count)).sum();
        let with = below + u64::from(bins[middle as usize]);
        // The edge of the middle bin that is closer to the rank.
        let upper = with as f64 - m * p < m * p - below as f64;
        let pivot = if upper { (middle + 1) << COARSE } else { middle << COARSE };
        Self { from: first << COARSE, shift, pivot }
    }
}

impl Sketched {
    /// Adds what another part of the same pass has counted.
    pub fn merge(&mut self, other: Self) {
        for (bins, more) in self.bins.iter_mut().zip(other.bins) {
            bins.iter_mut().zip(more).for_each(|(bin, more)| *bin += more);
        }
        let add = |into: &mut Vec<[u64; 3]>, from: Vec<[u64; 3]>| {
            let pairs = into.iter_mut().flatten().zip(from.into_iter().flatten());
            pairs.for_each(|(into, from)| *into += from);
        };
        add(&mut self.spread, other.spread);
        add(&mut self.blocks, other.blocks);
        for (largest, more) in self.largest.iter_mut().zip(other.largest) {
            *largest = (*largest).max(more);
        }
    }

    /// Adds the counts to what is saved.
    pub fn save(&self, out: &mut Writer) {
        self.bins.iter().flatten().for_each(|&bin| out.u32(bin));
        self.spread.iter().chain(&self.blocks).flatten().for_each(|&count| out.u64(count));
        self.largest.iter().for_each(|&largest| out.u32(largest));
    }

    /// The counts alone, with a number that tells whose they are.
    pub fn saved(&self, of: u32) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(of);
        self.save(&mut out);
        out.finish()
    }

    /// Fills empty counts with saved ones of the same pass.
    pub fn load(&mut self, saved: &mut Reader<'_>) -> Option<()> {
        for bin in self.bins.iter_mut().flatten() {
            *bin = saved.u32()?;
        }
        for count in self.spread.iter_mut().chain(&mut self.blocks).flatten() {
            *count = saved.u64()?;
        }
        for largest in &mut self.largest {
            *largest = saved.u32()?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys in blocks of 1024; each block is shifted by as much as `alike` says.
    fn keys(blocks: usize, alike: u32, seed: u64) -> Vec<Vec<u32>> {
        let mut x = seed | 1;
        let mut next = move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u32
        };
        let mut block = || {
            let shift = if alike > 0 { next() % alike } else { 0 };
            (0..1024).map(|_| next() / 4 + shift).collect()
        };
        (0..blocks).map(|_| block()).collect()
    }

    /// Of a sample of blocks in the order of the keys.
    fn brackets(sample: &[&Vec<u32>], total: u64, ranks: &[u64]) -> Brackets {
        let blocks = sample.len() as u64;
        let mut sketch = Sketch::new(1, total, blocks, ranks, 1.0);
        loop {
            let mut counts = sketch.empty();
            let numbered: Vec<_> = (0..).zip(sample).collect();
            for half in numbered.chunks(sample.len().div_ceil(2)) {
                let mut more = sketch.empty();
                for (number, keys) in half {
                    sketch.add(&mut more, 0, number * total / blocks, keys);
                }
                counts.merge(more);
            }
            let mut out = Writer::default();
            counts.save(&mut out);
            let mut loaded = sketch.empty();
            loaded.load(&mut Reader::new(&out.finish())).unwrap();
            assert_eq!(loaded, counts);
            match sketch.absorb(loaded) {
                Sketches::Again(next) => sketch = next,
                Sketches::Done(mut rows) => return rows.remove(0),
            }
        }
    }

    #[test]
    fn brackets_hold_the_wanted_keys_of_independent_and_of_clustered_blocks() {
        for (alike, widest) in [(0, 0.02), (1 << 28, 0.2)] {
            let blocks = keys(4000, alike, 99);
            let mut all: Vec<u32> = blocks.concat();
            all.sort_unstable();
            let total = all.len() as u64;
            let ranks = [total / 1000, total / 2, total / 10 * 9, total - 1];
            for offset in 0..40 {
                let sample: Vec<&Vec<u32>> = blocks.iter().skip(offset).step_by(40).collect();
                let found = brackets(&sample, total, &ranks);
                for (&rank, &(low, high)) in ranks.iter().zip(&found.spans) {
                    let key = all[rank as usize];
                    assert!(
                        low <= key && key <= high,
                        "{alike} {offset} {rank}: {low} {key} {high}"
                    );
                }
                let (low, high) = found.spans[2];
                let below = |key| all.partition_point(|&other| other < key) as f64 / total as f64;
                let wide = below(high) - below(low);
                assert!(wide < widest, "{alike} {offset}: {wide}");
            }
        }
    }

    #[test]
    fn parts_that_differ_do_not_widen_brackets() {
        // Like tensors whose changes differ in scale: runs of blocks with keys of like size.
        let blocks: Vec<Vec<u32>> = (0..)
            .zip(keys(4000, 0, 7))
            .map(|(i, block)| block.into_iter().map(|key| (key >> 4) * (i / 400 % 7 + 1)).collect())
            .collect();
        let mut all = blocks.concat();
        all.sort_unstable();
        let total = all.len() as u64;
        let sample: Vec<&Vec<u32>> = blocks.iter().skip(13).step_by(40).collect();
        let found = brackets(&sample, total, &[total / 100 * 98]);
        let (low, high) = found.spans[0];
        let key = all[(total / 100 * 98) as usize];
        assert!(low <= key && key <= high, "{low} {key} {high}");
        let below = |key| all.partition_point(|&other| other < key) as f64 / total as f64;
        assert!(below(high) - below(low) < 0.015, "{}", below(high) - below(low));
    }

    #[test]
    fn ties_are_held_and_the_largest_rank_is_open_to_above() {
        let mut block = vec![0; 700];
        block.extend([5 << 20; 200]);
        block.extend((0..124).map(|i| (6 << 20) + i * 1000));
        let blocks = vec![block; 50];
        let total = 50 * 1024;
        let found =
            brackets(&blocks.iter().collect::<Vec<_>>(), total, &[0, 30_000, 40_000, total - 1]);
        assert_eq!(found.spans[0].0, 0);
        assert!(found.spans[1].0 == 0 && found.spans[1].1 < 5 << 20, "{:?}", found.spans[1]);
        let (low, high) = found.spans[2];
        assert!(low <= 5 << 20 && (5 << 20..6 << 20).contains(&high), "{low} {high}");
        assert_eq!(found.spans[3].1, u32::MAX);
        assert_eq!(found.largest, (6 << 20) + 123_000);
    }

    #[test]
    fn no_sample_means_that_nothing_is_known() {
        let found = brackets(&[&Vec::new()], 10, &[3]);
        assert_eq!(found.spans, [EVERYTHING]);
    }
}
