//! Odds that depend on the rank of an element's magnitude among others, mostly without finding ranks.
//!
//! An element is kept if its random number lies below a limit that depends on its rank. Most numbers lie below all limits, or
//! below none. For the others, a rank between two bounds is often enough: magnitudes are counted in narrow buckets, so that
//! the rank is known but for the place in the bucket. What is still open then has its rank counted.

use super::dispatch::Lanes;
use super::keys;
use super::pack::{self, GROUP};
use super::random;

/// Buckets of magnitudes: the upper half of a float's bits, 128 to each power of two, for the sixteen largest powers of two. What is
/// smaller shares the first one.
const BUCKETS: usize = 2048;
/// Buckets lie in as many columns, one below the other, so that counts are added up in vectors.
const COLUMNS: usize = 16;
const HEIGHT: usize = BUCKETS / COLUMNS;

/// The most elements: ranks fit in 16 bits.
const MOST: usize = u16::MAX as usize;
/// The most ranks to count one by one. Sorting is cheaper beyond.
const COUNTED: usize = 128;
/// More elements than this have their places in their buckets counted together.
const FEW: usize = 64;

/// What `mark_ranked` makes of elements that are kept: less than this.
pub const MARK: u32 = 1;
const KEPT: u32 = 0;
const DROPPED: u32 = u32::MAX;

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
    /// Elements whose numbers alone do not tell, their buckets, and the ranks that have such limits. As bits: see [`pack`].
    open: [Vec<f32>; 3],
    /// Elements with something in the lower half of their bits.
    odd: Vec<f32>,
    /// Elements in each bucket.
    counts: Box<[u32; BUCKETS]>,
    /// Elements in the buckets above each in its column.
    starts: Box<[u32; BUCKETS]>,
    /// Buckets with several magnitudes.
    mixed: Box<[bool; BUCKETS]>,
    /// Elements whose buckets do not tell, either.
    unsure: Vec<u32>,
    /// How many elements of its bucket are before each.
    before: Vec<u32>,
}

impl Places {
    /// Bytes for rows of up to so many elements, at most: longer ones than can be ranked take none.
    pub fn most_bytes(len: u64) -> u64 {
        let len = len.min(MOST as u64);
        // Half a word for the bucket of each, four lists, places before each, and what is unsure in a vector that has grown.
        len * 2 + 4 * (len + GROUP as u64) * 4 + len * 4 + len * 8 + BUCKETS as u64 * 9
    }

    /// Bytes that are taken.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let lists = self.open.iter().chain([&self.odd]).map(Vec::capacity).sum::<usize>();
        let words = lists + self.unsure.capacity() + self.before.capacity();
        self.buckets.capacity() * 2 + words * 4 + BUCKETS * 9
    }
}

impl Default for Places {
    fn default() -> Self {
        Self {
            buckets: Vec::new(),
            open: Default::default(),
            odd: Vec::new(),
            counts: Box::new([0; BUCKETS]),
            starts: Box::new([0; BUCKETS]),
            mixed: Box::new([false; BUCKETS]),
            unsure: Vec::new(),
            before: Vec::new(),
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
    let floor = (keys::max_magnitude_bits(values) >> 16).saturating_sub(BUCKETS as u32 - 1);
    places.buckets.resize(len, 0);
    // A group is written whole.
    places.open.iter_mut().for_each(|list| list.resize(len + GROUP, 0.0));
    places.odd.resize(len + GROUP, 0.0);
    let (some, strange) =
        sort_out(lanes, (values, numbers), (first, last), limits.slope, floor, places, marks);

    let Places { buckets, open, odd, counts, starts, mixed, unsure, before } = places;
    counts.fill(0);
    for &bucket in &*buckets {
        counts[usize::from(bucket) % BUCKETS] += 1;
    }
    let columns = add_up(counts, starts);

    unsure.clear();
    let [elements, theirs, ranks] = open;
    for ((element, bucket), rank) in elements[..some].iter().zip(&*theirs).zip(&*ranks) {
        let (bucket, rank) = (bucket.to_bits() as usize % BUCKETS, rank.to_bits());
        let start = starts[bucket] + columns[bucket % COLUMNS];
        let sure = start >= rank + limits.slack;
        marks[element.to_bits() as usize] = if sure { KEPT } else { DROPPED };
        if !sure && start + counts[bucket] + limits.slack > rank {
            unsure.push(element.to_bits());
        }
    }
    if unsure.is_empty() {
        return true;
    }

    let all_mixed = find_mixed(&odd[..strange], buckets, mixed);
    let together = unsure.len() > FEW && !all_mixed;
    if together {
        counts.fill(0);
        before.clear();
        before.extend(buckets.iter().map(|&bucket| {
            let count = &mut counts[usize::from(bucket) % BUCKETS];
            *count += 1;
            *count - 1
        }));
    }
    let mut counted = 0;
    for &e in &*unsure {
        let e = e as usize;
        let bucket = usize::from(buckets[e]) % BUCKETS;
        let rank = if all_mixed || mixed[bucket] {
            counted += 1;
            if counted > COUNTED {
                return false;
            }
            count_rank(values, e)
        } else {
            (starts[bucket] + columns[bucket % COLUMNS]) as usize
                + if together { before[e] as usize } else { count_before(buckets, e) }
        };
        marks[e] = if numbers[e] < limits.each[rank] { KEPT } else { DROPPED };
    }
    true
}

/// Finds the buckets of elements, marks those whose numbers lie below all limits or below none, and lists the others but for
/// zeros; and those with something in the lower half of their bits. Returns how many are in either list.
#[inline(always)]
fn sort_out(
    lanes: Lanes,
    (values, numbers): (&[f32], &[u32]),
    limits: (u32, u32),
    slope: f32,
    floor: u32,
    places: &mut Places,
    marks: &mut [u32],
) -> (usize, usize) {
    let (mut some, mut strange) = (0, 0);
    let Places { buckets, open: [elements, theirs, ranks], odd, .. } = places;
    let (full, rest) = values.as_chunks::<GROUP>();
    let (numbers, numbers_rest) = numbers.as_chunks::<GROUP>();
    let (buckets, buckets_rest) = buckets.as_chunks_mut::<GROUP>();
    let (marks, marks_rest) = marks.as_chunks_mut::<GROUP>();
    let groups = full.iter().zip(numbers).zip(buckets).zip(marks);
    for (at, (((values, numbers), buckets), marks)) in groups.enumerate() {
        let group = sort_out_group((values, numbers), limits, slope, floor, at * GROUP);
        (*buckets, *marks) = (group.places, group.marks);
        let (open, lower) = (pack::mask(lanes, &group.open), pack::mask(lanes, &group.lower));
        put(lanes, open, &group.elements, &mut elements[some..]);
        put(lanes, open, &group.buckets, &mut theirs[some..]);
        some += put(lanes, open, &group.ranks, &mut ranks[some..]);
        strange += put(lanes, lower, &group.elements, &mut odd[strange..]);
    }
    if !rest.is_empty() {
        // Zeros are not listed.
        let (mut values, mut numbers) = ([0.0; GROUP], [0; GROUP]);
        values[..rest.len()].copy_from_slice(rest);
        numbers[..rest.len()].copy_from_slice(numbers_rest);
        let at = full.len() * GROUP;
        let group = sort_out_group((&values, &numbers), limits, slope, floor, at);
        buckets_rest.copy_from_slice(&group.places[..rest.len()]);
        marks_rest.copy_from_slice(&group.marks[..rest.len()]);
        let (open, lower) = (pack::mask(lanes, &group.open), pack::mask(lanes, &group.lower));
        put(lanes, open, &group.elements, &mut elements[some..]);
        put(lanes, open, &group.buckets, &mut theirs[some..]);
        some += put(lanes, open, &group.ranks, &mut ranks[some..]);
        strange += put(lanes, lower, &group.elements, &mut odd[strange..]);
    }
    (some, strange)
}

/// What there is to know about a few elements.
struct Group {
    places: [u16; GROUP],
    marks: [u32; GROUP],
    /// Not zero for those that are listed.
    open: [u32; GROUP],
    lower: [u32; GROUP],
    elements: [f32; GROUP],
    buckets: [f32; GROUP],
    ranks: [f32; GROUP],
}

#[inline(always)]
fn sort_out_group(
    (values, numbers): (&[f32; GROUP], &[u32; GROUP]),
    (first, last): (u32, u32),
    slope: f32,
    floor: u32,
    at: usize,
) -> Group {
    let mut group = Group {
        places: [0; GROUP],
        marks: [0; GROUP],
        open: [0; GROUP],
        lower: [0; GROUP],
        elements: [0.0; GROUP],
        buckets: [0.0; GROUP],
        ranks: [0.0; GROUP],
    };
    for k in 0..GROUP {
        let (key, number) = (values[k].to_bits() & 0x7fff_ffff, numbers[k]);
        let bucket = (key >> 16).max(floor) - floor;
        let place = (bucket % HEIGHT as u32) * COLUMNS as u32 + bucket / HEIGHT as u32;
        group.places[k] = place as u16;
        group.buckets[k] = f32::from_bits(place);
        group.marks[k] = if number < first { KEPT } else { DROPPED };
        group.open[k] = u32::from(number.wrapping_sub(first) < last - first) & u32::from(key != 0);
        group.lower[k] = key & 0xffff;
        group.elements[k] = f32::from_bits((at + k) as u32);
        // Adding 2^23 leaves the rank, rounded, in the low bits. Below the first limit it has no meaning.
        let rank = number.wrapping_sub(first) as i32 as f32 * slope + 8_388_608.0;
        group.ranks[k] = f32::from_bits(rank.to_bits() & 0x007f_ffff);
    }
    group
}

/// Writes what a mask wants of a group to the front of a list; returns how much that is.
#[inline(always)]
fn put(lanes: Lanes, mask: u16, from: &[f32; GROUP], to: &mut [f32]) -> usize {
    // There is room for one group more than there are elements.
    if let Some(to) = to.first_chunk_mut() {
        pack::pack(lanes, mask, from, to);
    }
    mask.count_ones() as usize
}

/// For each bucket, the elements in the buckets above it in its column; for each column, those in the columns before it.
#[inline(always)]
fn add_up(counts: &[u32; BUCKETS], starts: &mut [u32; BUCKETS]) -> [u32; COLUMNS] {
    let mut columns = [0u32; COLUMNS];
    let (counts, starts) = (counts.as_chunks::<COLUMNS>().0, starts.as_chunks_mut::<COLUMNS>().0);
    for (starts, counts) in starts.iter_mut().zip(counts) {
        *starts = columns;
        for (column, count) in columns.iter_mut().zip(counts) {
            *column += count;
        }
    }
    let mut sum = 0;
    for column in &mut columns {
        (*column, sum) = (sum, sum + *column);
    }
    columns
}

/// Marks the buckets that may hold several magnitudes, given the elements that have something in the lower half of their bits: a bucket
/// without such elements holds one. Differences of two bf16 rarely have. Returns whether to take all buckets for such.
#[inline(always)]
fn find_mixed(odd: &[f32], buckets: &[u16], mixed: &mut [bool; BUCKETS]) -> bool {
    if odd.len() > buckets.len() / 4 {
        return true;
    }
    mixed.fill(false);
    // What is too small for a bucket of its own.
    mixed[0] = true;
    for element in odd {
        mixed[usize::from(buckets[element.to_bits() as usize]) % BUCKETS] = true;
    }
    false
}

/// How many elements before this one are in its bucket.
#[inline(always)]
fn count_before(buckets: &[u16], e: usize) -> usize {
    let (bucket, mut count) = (buckets[e], 0u16);
    for other in &buckets[..e] {
        count += u16::from(*other == bucket);
    }
    usize::from(count)
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
