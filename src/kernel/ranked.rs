//! Odds that depend on the rank of an element's magnitude among others, mostly without finding ranks.
//!
//! An element is kept if its random number lies below a limit that depends on its rank. Limits lie near a straight line, so that it is
//! enough to know the rank to within a few. Magnitudes are counted in narrow buckets; where all in a bucket are alike, as differences
//! of two bf16 mostly are, the rank is even known exactly: they follow each other in their order. What is still open then has its rank
//! counted.

use super::dispatch::Lanes;
use super::keys;
use super::pack::{self, GROUP};
use super::random;

/// Low bits of a float that its bucket does not depend on, but for whether there are any: 64 buckets to each power of two.
const LOW: u32 = 17;
/// Pairs of buckets of magnitudes, for the sixteen largest powers of two. What is smaller shares the first pair.
const PAIRS: usize = 1024;
/// The first of a pair is for plain elements: those without low bits, which are all alike. The second one is for the others, which are
/// larger than these.
const BUCKETS: usize = 2 * PAIRS;
/// Pairs lie in as many columns, one below the other, so that counts are added up in vectors.
const COLUMNS: usize = 16;
const HEIGHT: usize = PAIRS / COLUMNS;

/// The most elements: ranks fit in 16 bits.
const MOST: usize = u16::MAX as usize;
/// The most ranks to count one by one. Sorting is cheaper beyond.
const COUNTED: usize = 128;

/// What `mark_ranked` makes of elements that are kept: less than this.
pub const MARK: u32 = 1;
const KEPT: u32 = 0;
const DROPPED: u32 = u32::MAX;
/// Not known yet.
const OPEN: u32 = MARK;

/// Limits of random numbers for each rank: a straight line, rounded.
#[derive(Debug, Default)]
pub struct Limits {
    /// Of the ranks from 0 on.
    each: Vec<u32>,
    /// Ranks for each unit of a random number.
    slope: f32,
    /// How many ranks off the line a rank with a limit may be, at most.
    slack: u32,
}

impl Limits {
    /// For so many ranks, the first of which has the odds `least` and the last `least + range`; one alone has `alone`.
    pub fn new(ranks: usize, least: f32, range: f32, alone: f32) -> Self {
        let odds = |rank: usize| match ranks {
            1 => alone,
            _ => least + rank as f32 / (ranks - 1) as f32 * range,
        };
        let each: Vec<u32> = (0..ranks).map(|rank| random::limit(odds(rank))).collect();
        let first = each.first().copied().unwrap_or(0);
        let rise = each.last().map_or(0, |last| last.saturating_sub(first));
        let slope = ranks.saturating_sub(1) as f32 / rise.max(1) as f32;
        // Odds are rounded four times, by less than the unit of numbers, and limits to whole ones, at the ends of the line as elsewhere;
        // ranks on the line are rounded to whole ones.
        let slack = 3.0 + 8.0 * slope;
        Self { each, slope, slack: slack as u32 }
    }

    /// How many ranks there are.
    pub fn len(&self) -> usize {
        self.each.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.each.is_empty()
    }

    /// The limit of a rank.
    #[inline(always)]
    pub fn get(&self, rank: usize) -> u32 {
        self.each[rank]
    }
}

/// Space for `mark_ranked`.
#[derive(Debug)]
pub struct Places {
    /// Of each element, the place of its bucket.
    buckets: Vec<u16>,
    /// How many elements of its bucket are before each.
    before: Vec<u16>,
    /// What is known of the ranks in the bucket of each: see `find_bounds`.
    bounds: Vec<u32>,
    /// Elements in each bucket: those of the first ones of all pairs, then those of the second ones.
    counts: Box<[u16; BUCKETS]>,
    /// The same of each bucket.
    table: Box<[u32; BUCKETS]>,
    /// Elements in each pair of buckets.
    all: Box<[u32; PAIRS]>,
    /// Elements whose buckets do not tell.
    unsure: Vec<u32>,
}

impl Places {
    /// Bytes for rows of up to so many elements, at most: longer ones than can be ranked take none.
    pub fn most_bytes(len: u64) -> u64 {
        let len = len.min(MOST as u64);
        // Two half words and a word for each, and what is unsure in a vector that has grown.
        len * 8 + len * 8 + BUCKETS as u64 * 8
    }

    /// Bytes that are taken.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let halves = self.buckets.capacity() + self.before.capacity();
        halves * 2 + (self.bounds.capacity() + self.unsure.capacity()) * 4 + BUCKETS * 8
    }
}

impl Default for Places {
    fn default() -> Self {
        Self {
            buckets: Vec::new(),
            before: Vec::new(),
            bounds: Vec::new(),
            counts: Box::new([0; BUCKETS]),
            table: Box::new([0; BUCKETS]),
            all: Box::new([0; PAIRS]),
            unsure: Vec::new(),
        }
    }
}

/// Marks elements with numbers below [`MARK`] whose random numbers lie below the limits of their ranks, the smallest magnitude having
/// rank 0 and equal ones their order; zeros as it comes. Returns whether it was done: where limits fall, or too many ranks would have to
/// be counted, it is not.
#[inline(always)]
pub(super) fn mark_ranked(
    lanes: Lanes,
    values: &[f32],
    numbers: &[u32],
    limits: &Limits,
    places: &mut Places,
    marks: &mut [u32],
) -> bool {
    let len = values.len();
    let (Some(&first), Some(&last)) = (limits.each.first(), limits.each.last()) else {
        return true;
    };
    if len > MOST || len != limits.len() || last < first {
        return false;
    }
    let floor = (keys::max_magnitude_bits(values) >> LOW).saturating_sub(PAIRS as u32 - 1);
    let Places { buckets, before, bounds, counts, table, all, unsure } = places;
    buckets.resize(len, 0);
    before.resize(len, 0);
    bounds.resize(len, 0);
    find_buckets(values, floor, buckets);
    counts.fill(0);
    count(buckets, counts, before);
    find_bounds(counts, all, table);
    look_up(buckets, table, bounds);
    compare((values, numbers), (bounds, before), limits, (first, last), marks);
    list_open(lanes, marks, unsure);

    let mut counted = 0;
    for &e in &*unsure {
        let e = e as usize;
        let rank = if bounds[e] >> 16 == 0 {
            bounds[e] as usize + usize::from(before[e])
        } else {
            counted += 1;
            if counted > COUNTED {
                return false;
            }
            count_rank(values, e)
        };
        marks[e] = if numbers[e] < limits.each[rank] { KEPT } else { DROPPED };
    }
    true
}

/// Counts the elements in each bucket, and for each element those before it in its bucket.
#[inline(always)]
fn count(buckets: &[u16], counts: &mut [u16; BUCKETS], before: &mut [u16]) {
    let mut next = |bucket: usize| {
        let count = &mut counts[bucket % BUCKETS];
        let before = *count;
        *count += 1;
        before
    };
    let (buckets, buckets_rest) = buckets.as_chunks::<4>();
    let (before, before_rest) = before.as_chunks_mut::<4>();
    for (buckets, before) in buckets.iter().zip(before) {
        // Loaded and stored together.
        let [a, b, c, d] = buckets.map(u64::from);
        let four = a | b << 16 | c << 32 | d << 48;
        let mut all = 0;
        for k in 0..4 {
            all |= u64::from(next((four >> (16 * k)) as usize)) << (16 * k);
        }
        *before = [all as u16, (all >> 16) as u16, (all >> 32) as u16, (all >> 48) as u16];
    }
    for (bucket, before) in buckets_rest.iter().zip(before_rest) {
        *before = next(usize::from(*bucket));
    }
}

/// Finds what is known of the bucket of each element.
#[inline(always)]
fn look_up(buckets: &[u16], table: &[u32; BUCKETS], bounds: &mut [u32]) {
    for (&bucket, bounds) in buckets.iter().zip(bounds) {
        *bounds = table[usize::from(bucket) % BUCKETS];
    }
}

/// Finds the place of the bucket of each element.
#[inline(always)]
fn find_buckets(values: &[f32], floor: u32, buckets: &mut [u16]) {
    for (value, bucket) in values.iter().zip(buckets) {
        let key = value.to_bits() & 0x7fff_ffff;
        let pair = (key >> LOW).max(floor) - floor;
        // What shares the first pair is not alike.
        let second = u32::from(key & ((1 << LOW) - 1) != 0) | u32::from(pair == 0);
        let place = (pair % HEIGHT as u32) * COLUMNS as u32 + pair / HEIGHT as u32;
        *bucket = (second * PAIRS as u32 + place) as u16;
    }
}

/// Finds for each bucket the number of elements in those of smaller magnitudes; and, in the upper sixteen bits, how many are in it if
/// these need not be alike, else zero.
#[inline(always)]
fn find_bounds(counts: &[u16; BUCKETS], all: &mut [u32; PAIRS], bounds: &mut [u32; BUCKETS]) {
    let (plain, others) = counts.split_at(PAIRS);
    for ((all, &plain), &others) in all.iter_mut().zip(plain).zip(others) {
        *all = u32::from(plain + others);
    }
    let (starts, bounds) = bounds.split_at_mut(PAIRS);
    let mut columns = add_up(all, [0; COLUMNS], starts);
    let mut sum = 0;
    for column in &mut columns {
        (*column, sum) = (sum, sum + *column);
    }
    add_up(all, columns, starts);
    let counts = plain.iter().zip(others);
    for ((bounds, start), (&plain, &others)) in bounds.iter_mut().zip(&*starts).zip(counts) {
        *bounds = (start + u32::from(plain)) | u32::from(others) << 16;
    }
}

/// Finds for each count the sum of those above it in its column, and of the number that the column begins with. Returns the sums of whole
/// columns.
#[inline(always)]
fn add_up(counts: &[u32], mut columns: [u32; COLUMNS], sums: &mut [u32]) -> [u32; COLUMNS] {
    let (counts, sums) = (counts.as_chunks::<COLUMNS>().0, sums.as_chunks_mut::<COLUMNS>().0);
    for (sums, counts) in sums.iter_mut().zip(counts) {
        *sums = columns;
        for (column, count) in columns.iter_mut().zip(counts) {
            *column += count;
        }
    }
    columns
}

/// Marks elements by what is known of their ranks: as [`OPEN`] if that is not enough.
#[inline(always)]
fn compare(
    (values, numbers): (&[f32], &[u32]),
    (bounds, before): (&[u32], &[u16]),
    limits: &Limits,
    (first, last): (u32, u32),
    marks: &mut [u32],
) {
    let known = bounds.iter().zip(before);
    let elements = values.iter().zip(numbers).zip(known).zip(marks);
    for (((value, &number), (bounds, &before)), mark) in elements {
        // Adding 2^23 leaves the rank that has such a limit, rounded, in the low bits. Below the first limit it has no meaning.
        let above = number.wrapping_sub(first);
        let line = above as i32 as f32 * limits.slope + 8_388_608.0;
        let (limit, several) = (line.to_bits() & 0x007f_ffff, bounds >> 16);
        let rank = (bounds & 0xffff) + (u32::from(before) & flag(several == 0));
        let between = flag(above < last - first);
        let kept = flag(number < first) | (between & flag(rank >= limit + limits.slack));
        let dropped = !between | flag(rank + several + limits.slack <= limit);
        // Zeros are as they come.
        let open = !(kept | dropped) & flag(*value != 0.0);
        *mark = !kept & (!open | OPEN);
    }
}

/// All ones or none: compilers make branches of what is chosen.
#[inline(always)]
fn flag(is: bool) -> u32 {
    u32::from(is).wrapping_neg()
}

/// Lists the elements that are marked as [`OPEN`].
#[inline(always)]
fn list_open(lanes: Lanes, marks: &[u32], list: &mut Vec<u32>) {
    list.clear();
    let (full, rest) = marks.as_chunks::<GROUP>();
    let mut last = [DROPPED; GROUP];
    last[..rest.len()].copy_from_slice(rest);
    for (first, marks) in (0..).step_by(GROUP).zip(full.iter().chain([&last])) {
        let mut flags = [0; GROUP];
        for k in 0..GROUP {
            flags[k] = flag(marks[k] == OPEN);
        }
        let mut mask = pack::mask(lanes, &flags);
        // Few masks have any.
        while mask != 0 {
            list.push(first + mask.trailing_zeros());
            mask &= mask - 1;
        }
    }
}

/// The rank of an element's magnitude.
#[inline(always)]
fn count_rank(values: &[f32], e: usize) -> usize {
    let key = values[e].to_bits() & 0x7fff_ffff;
    let (before, behind) = values.split_at(e);
    let mut rank = 0u32;
    for value in before {
        rank += u32::from(value.to_bits() & 0x7fff_ffff <= key);
    }
    for value in behind {
        rank += u32::from((value.to_bits() & 0x7fff_ffff) < key);
    }
    rank as usize
}
