//! Records of several words that a fold must keep, handed out in compact form before they take room.

use super::pile::{get, put};

/// Words held at most before they are due.
const MOST: usize = 1 << 17;

/// Records sorted at a time: as many as the low bits of a sort key can number.
const SORTED: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 20;

/// A multiset of records of the same number of 32-bit words.
///
/// Packed, equal records are counted, the first words are sorted and written as gaps, and all others byte by byte: the first bytes of
/// the second words, and so on. Numbers of a kind have their exponents in common, which a compressor then finds.
#[derive(Clone, Debug)]
pub struct Sheaf {
    width: usize,
    words: Vec<u32>,
}

impl Sheaf {
    /// An empty multiset of records of `width` words.
    pub fn new(width: usize) -> Self {
        Self { width: width.max(1), words: Vec::new() }
    }

    /// Adds a record of [`Self::new`]'s width.
    #[inline]
    pub fn push(&mut self, record: impl IntoIterator<Item = u32>) {
        self.words.extend(record);
    }

    /// Whether what is held is due.
    pub fn is_full(&self) -> bool {
        self.words.len() >= MOST
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// An upper bound for the bytes that it takes, its packed form included, with up to `more` records of `width` words added before it
    /// is packed when due.
    pub fn bytes(width: u64, more: u64) -> u64 {
        let words = MOST as u64 + more * width;
        // The vector grows by doubling; sort keys of 8 bytes; packed, a record takes up to 10 bytes more than its words.
        words * 8 + words / width.max(1) * 18 + words * 4
    }

    /// Adds another multiset of the same width.
    pub fn merge(&mut self, other: Self) {
        self.words.extend(other.words);
    }

    /// Hands out all that is held, at the end of `out`.
    pub fn pack(&mut self, out: &mut Vec<u8>) {
        for part in self.words.chunks(SORTED * self.width) {
            pack(part, self.width, out);
        }
        self.words.clear();
    }
}

fn pack(words: &[u32], width: usize, out: &mut Vec<u8>) {
    let record = |i: usize| &words[i * width..][..width];
    // By the first word, equal records together but for rare collisions, and where the record is.
    let mut keys: Vec<u64> = (0..words.len() / width)
        .map(|i| {
            let (first, rest) = (record(i)[0], &record(i)[1..]);
            let mixed = rest
                .iter()
                .fold(0u32, |mixed, &word| (mixed.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9));
            u64::from(first) << 32 | u64::from(mixed & 0xfff0_0000) | i as u64
        })
        .collect();
    keys.sort_unstable();
    let at = |key: u64| record((key & (SORTED as u64 - 1)) as usize);
    let groups = || keys.chunk_by(|&a, &b| at(a) == at(b));
    let distinct: Vec<(&[u32], u64)> =
        groups().map(|group| (at(group[0]), group.len() as u64)).collect();
    put(out, distinct.len() as u64);
    let mut before = 0;
    for (record, _) in &distinct {
        put(out, (record[0] - before).into());
        before = record[0];
    }
    for (_, times) in &distinct {
        put(out, *times);
    }
    for word in 1..width {
        for byte in 0..4 {
            out.extend(distinct.iter().map(|(record, _)| record[word].to_le_bytes()[byte]));
        }
    }
}

/// Visits the records of `width` words that were packed, each with how often it occurs. `None` if
/// the bytes are none.
pub fn unpack_records(
    mut packed: &[u8],
    width: usize,
    mut visit: impl FnMut(&[u32], u64),
) -> Option<()> {
    let mut record = vec![0u32; width];
    while !packed.is_empty() {
        let count = usize::try_from(get(&mut packed)?).ok()?;
        // Each takes a byte at least.
        if count == 0 || count > packed.len() {
            return None;
        }
        let numbers =
            |packed: &mut &[u8]| (0..count).map(|_| get(packed)).collect::<Option<Vec<u64>>>();
        let (gaps, times) = (numbers(&mut packed)?, numbers(&mut packed)?);
        let planes = count.checked_mul((width - 1) * 4)?;
        let (planes, rest) = packed.split_at_checked(planes)?;
        packed = rest;
        record[0] = 0;
        for (i, (gap, times)) in gaps.into_iter().zip(times).enumerate() {
            record[0] = record[0].checked_add(u32::try_from(gap).ok()?)?;
            for (word, planes) in record[1..].iter_mut().zip(planes.chunks_exact(4 * count)) {
                *word = u32::from_le_bytes([0, 1, 2, 3].map(|byte| planes[byte * count + i]));
            }
            visit(&record, times);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_in_parts_is_the_multiset(
            width in 1usize..5,
            values in prop::collection::vec(prop_oneof![any::<u32>(), 0u32..3], 0..600),
            cut in 1usize..70,
        ) {
            let records: Vec<&[u32]> = values.chunks_exact(width).collect();
            let (mut sheaf, mut packed) = (Sheaf::new(width), Vec::new());
            for part in records.chunks(cut) {
                let mut more = Sheaf::new(width);
                part.iter().for_each(|record| more.push(record.iter().copied()));
                sheaf.merge(more);
                if part.len() % 2 == 0 {
                    sheaf.pack(&mut packed);
                    prop_assert!(sheaf.is_empty());
                }
            }
            sheaf.pack(&mut packed);
            let mut found = Vec::new();
            unpack_records(&packed, width, |record, times| {
                found.extend((0..times).map(|_| record.to_vec()));
            }).unwrap();
            found.sort_unstable();
            let mut expected: Vec<_> = records.iter().map(|record| record.to_vec()).collect();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_bytes_are_records_or_none(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            width in 1usize..4,
        ) {
            let _either = unpack_records(&bytes, width, |_, _| ());
        }
    }

    #[test]
    fn equal_records_take_next_to_nothing() {
        let (mut sheaf, mut packed) = (Sheaf::new(3), Vec::new());
        for i in 0..30_000u32 {
            sheaf.push([i % 2, i % 3 / 2, i % 5 / 4]);
        }
        sheaf.pack(&mut packed);
        assert!(packed.len() < 300, "{}", packed.len());
    }
}
