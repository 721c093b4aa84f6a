//! Records that a fold must keep one by one, handed out in compact parcels before they take room.

/// Records held at most before a parcel is due.
const MOST: usize = 1 << 15;

/// A multiset of 64-bit records in several lanes.
///
/// A parcel holds each lane sorted, as (gap, repetitions) in variable-length numbers: equal and
/// neighbouring records cost a byte or two. A plain one, which is not to be stored, holds them as they come. What is handed
/// out as parcels together with what is held is the multiset, however it was cut.
#[derive(Clone, Debug)]
pub struct Pile {
    lanes: Vec<Vec<u64>>,
    held: usize,
}

impl Pile {
    /// An empty pile.
    pub fn new(lanes: usize) -> Self {
        Self { lanes: vec![Vec::new(); lanes], held: 0 }
    }

    /// Adds a record to a lane.
    #[inline]
    pub fn push(&mut self, lane: usize, record: u64) {
        self.lanes[lane].push(record);
        self.held += 1;
    }

    /// Adds records to a lane.
    pub fn extend(&mut self, lane: usize, records: impl ExactSizeIterator<Item = u64>) {
        self.held += records.len();
        self.lanes[lane].extend(records);
    }

    /// Whether a parcel is due.
    pub fn is_full(&self) -> bool {
        self.held >= MOST
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// An upper bound for the bytes that a pile takes, its parcel included, with up to `more`
    /// records added before a due parcel is taken.
    pub fn bytes(more: u64) -> u64 {
        // Vectors grow by doubling, in lanes that fill unevenly; a record takes up to 11 bytes in
        // a parcel.
        (MOST as u64 + more) * (16 + 11)
    }

    /// Adds another pile of as many lanes.
    pub fn merge(&mut self, other: Self) {
        for (lane, more) in self.lanes.iter_mut().zip(other.lanes) {
            lane.extend(more);
        }
        self.held += other.held;
    }

    /// Hands out all that is held.
    pub fn parcel(&mut self) -> Vec<u8> {
        let mut parcel = Vec::new();
        for lane in &mut self.lanes {
            lane.sort_unstable();
            let mut packed = Vec::with_capacity(lane.len() * 4);
            let mut before = 0;
            for same in lane.chunk_by(|a, b| a == b) {
                put(&mut packed, same[0] - before);
                put(&mut packed, same.len() as u64);
                before = same[0];
            }
            lane.clear();
            add_section(&mut parcel, &packed);
        }
        self.held = 0;
        parcel
    }

    /// Hands out all that is held in the order in which it came, for [`lanes`]: in far less time than [`Self::parcel`], and in
    /// two or three times as many bytes.
    pub fn plain_parcel(&mut self) -> Vec<u8> {
        // A length takes up to ten bytes.
        let mut parcel = Vec::with_capacity(self.held * RECORD + self.lanes.len() * 10);
        for lane in &mut self.lanes {
            put(&mut parcel, (lane.len() * RECORD) as u64);
            let start = parcel.len();
            parcel.resize(start + lane.len() * RECORD, 0);
            let places = parcel[start..].as_chunks_mut::<RECORD>().0;
            places.iter_mut().zip(&*lane).for_each(|(to, record)| *to = record.to_le_bytes());
            lane.clear();
        }
        self.held = 0;
        parcel
    }
}

/// Bytes of a record in a plain parcel.
const RECORD: usize = size_of::<u64>();

/// Visits the lanes of a plain parcel, each with its little-endian records. `None` if the bytes are no such parcel.
pub fn lanes(mut parcel: &[u8], mut visit: impl FnMut(usize, &[[u8; RECORD]])) -> Option<()> {
    let mut lane = 0;
    while !parcel.is_empty() {
        let len = usize::try_from(get(&mut parcel)?).ok()?;
        let (records, rest) = parcel.split_at_checked(len)?;
        let (records, odd) = records.as_chunks::<RECORD>();
        odd.is_empty().then_some(())?;
        visit(lane, records);
        (parcel, lane) = (rest, lane + 1);
    }
    Some(())
}

/// Visits the records of the lanes that are `wanted` in a parcel, each with how often it occurs.
/// `None` if the bytes are no parcel.
pub fn unpack(
    mut parcel: &[u8],
    wanted: impl Fn(usize) -> bool,
    mut visit: impl FnMut(usize, u64, u64),
) -> Option<()> {
    let mut lane = 0;
    while !parcel.is_empty() {
        let len = usize::try_from(get(&mut parcel)?).ok()?;
        let (mut packed, rest) = parcel.split_at_checked(len)?;
        parcel = rest;
        let mut record = 0u64;
        while wanted(lane) && !packed.is_empty() {
            record = record.checked_add(get(&mut packed)?)?;
            visit(lane, record, get(&mut packed)?);
        }
        lane += 1;
    }
    Some(())
}

/// Adds something else to a parcel, behind the lanes and what was added before.
pub fn add_section(parcel: &mut Vec<u8>, section: &[u8]) {
    put(parcel, section.len() as u64);
    parcel.extend_from_slice(section);
}

/// What was added to a parcel behind so many lanes and other sections. `None` if the bytes are no
/// parcel or hold no such section.
pub fn section(mut parcel: &[u8], before: usize) -> Option<&[u8]> {
    for _ in 0..before {
        let len = usize::try_from(get(&mut parcel)?).ok()?;
        (_, parcel) = parcel.split_at_checked(len)?;
    }
    let len = usize::try_from(get(&mut parcel)?).ok()?;
    parcel.get(..len)
}

/// Appends a number, seven bits a byte, the lowest first.
#[inline]
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[inline]
pub(super) fn get(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parcels_and_what_is_held_are_the_multiset(
            records in prop::collection::vec((0usize..3, prop_oneof![any::<u64>(), 0u64..5]), 0..200),
            cut in 1usize..50,
        ) {
            let (mut pile, mut parcels) = (Pile::new(3), Vec::new());
            for part in records.chunks(cut) {
                let mut more = Pile::new(3);
                for lane in 0..3 {
                    let records = part.iter().filter(|record| record.0 == lane);
                    let records: Vec<u64> = records.map(|record| record.1).collect();
                    more.extend(lane, records.into_iter());
                }
                pile.merge(more);
                if part.len() % 2 == 0 {
                    parcels.push(pile.parcel());
                    prop_assert!(pile.is_empty());
                }
            }
            parcels.push(pile.parcel());
            let mut found = Vec::new();
            for parcel in &parcels {
                unpack(parcel, |lane| lane != 1, |lane, record, times| {
                    found.extend((0..times).map(|_| (lane, record)));
                }).unwrap();
            }
            let mut expected: Vec<_> = records.into_iter().filter(|&(lane, _)| lane != 1).collect();
            expected.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn plain_parcels_are_the_records_as_they_came(
            records in prop::collection::vec((0usize..3, any::<u64>()), 0..200),
            cut in 1usize..50,
        ) {
            let (mut pile, mut found) = (Pile::new(3), Vec::new());
            for part in records.chunks(cut) {
                part.iter().for_each(|&(lane, record)| pile.push(lane, record));
                let parcel = pile.plain_parcel();
                prop_assert!(pile.is_empty());
                let mut seen = Vec::new();
                lanes(&parcel, |lane, records| {
                    seen.extend(records.iter().map(|record| (lane, u64::from_le_bytes(*record))));
                }).unwrap();
                prop_assert!(seen.is_sorted_by_key(|record| record.0));
                found.push(seen);
                // The last byte is the length of an empty lane, or a record's.
                let cut = lanes(&parcel[..parcel.len() - 1], |_, _| ());
                prop_assert_eq!(cut.is_none(), part.iter().any(|record| record.0 == 2));
            }
            for (found, part) in found.iter_mut().zip(records.chunks(cut)) {
                let mut part = part.to_vec();
                part.sort_by_key(|record| record.0);
                prop_assert_eq!(found, &part);
            }
        }

        #[test]
        fn sections_stay_behind_the_lanes(
            records in prop::collection::vec((0usize..3, any::<u64>()), 0..50),
            added in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut pile = Pile::new(3);
            records.iter().for_each(|&(lane, record)| pile.push(lane, record));
            let mut parcel = pile.parcel();
            add_section(&mut parcel, &added);
            prop_assert_eq!(section(&parcel, 3), Some(&added[..]));
            prop_assert_eq!(section(&parcel, 4), None);
            let mut seen = 0;
            unpack(&parcel, |lane| lane < 3, |_, _, times| seen += times).unwrap();
            prop_assert_eq!(seen, records.len() as u64);
        }

        #[test]
        fn any_bytes_are_a_parcel_or_none(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _either = unpack(&bytes, |_| true, |_, _, _| ());
            let _either = lanes(&bytes, |_, _| ());
        }
    }
}
