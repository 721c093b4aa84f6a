//! The payload of a frame of EMR-Merging: where somebody has moved, the value of the expert that the others yield to, and
//! a mask for each expert.
//!
//! ```text
//! payload:  | elements: u32 | for each expert: sum of |task vector|: f64, sum of |what its mask leaves|: f64 |
//!           | for each expert: a bit per element, lowest first, in whole bytes |
//!           | byte 0 of all values, byte 1, byte 2, byte 3 |
//! ```
//! `elements` reaches to the last one in any mask. There is a value for each element that is in one, the same for all that
//! have it, as `f32`. The sums are over all elements of the frame.

use super::components::{self, Entry, FRAME};

/// Bytes of a mask over a frame.
const MASK: usize = FRAME as usize / 8;

/// Bytes of the largest payload.
pub(super) fn largest(experts: usize) -> usize {
    4 + experts * (16 + FRAME as usize / 8) + 4 * FRAME as usize
}

/// Packs rows that agree wherever two of them have an entry: what [`Packed`] does, from lists of entries.
#[cfg(any(test, fuzzing))]
pub(super) fn pack(rows: &[Vec<Entry>], sums: &[f64], raw: &mut Vec<u8>) {
    let span = rows.iter().filter_map(|row| row.last()).map(|(place, _)| place + 1).max();
    let span = span.unwrap_or(0) as usize;
    raw.extend((span as u32).to_le_bytes());
    sums.iter().for_each(|sum| raw.extend(sum.to_le_bytes()));
    let (mut values, mut any) = (vec![0f32; span], vec![0u8; span.div_ceil(8)]);
    for row in rows {
        let begin = raw.len();
        raw.resize(begin + any.len(), 0);
        for &(place, value) in row {
            let place = place as usize;
            raw[begin + place / 8] |= 1 << (place % 8);
            values[place] = value;
        }
        any.iter_mut().zip(&raw[begin..]).for_each(|(any, mask)| *any |= mask);
    }
    let moved = (0..span).filter(|place| any[place / 8] >> (place % 8) & 1 == 1);
    let values: Vec<[u8; 4]> = moved.map(|place| values[place].to_le_bytes()).collect();
    (0..4).for_each(|byte| raw.extend(values.iter().map(|value| value[byte])));
}

/// A frame that is packed as it comes, without lists of its entries.
pub struct Packed {
    /// For each expert a bit for each element of a frame; only those of elements that came have a meaning.
    masks: Vec<u8>,
    /// The values of those elements that are in a mask.
    pub values: Vec<f32>,
    /// Elements that came.
    len: usize,
    raw: Vec<u8>,
}

impl Packed {
    /// A frame of so many experts, of which nothing has come.
    pub fn new(experts: usize) -> Self {
        Self { masks: vec![0; experts * MASK], values: Vec::new(), len: 0, raw: Vec::new() }
    }

    /// Takes out all that is in it.
    pub fn clear(&mut self) {
        self.values.clear();
        self.len = 0;
    }

    /// Takes in the masks of the next elements, whole bytes for each expert; all but the last come by multiples of eight.
    /// Their values were appended.
    pub fn add(&mut self, len: usize, masks: &[u8]) {
        let (at, bytes) = (self.len / 8, len.div_ceil(8));
        let of_experts = self.masks.chunks_exact_mut(MASK).zip(masks.chunks_exact(bytes.max(1)));
        of_experts.for_each(|(all, more)| all[at..at + bytes].copy_from_slice(more));
        self.len += len;
    }

    /// The frame as it is stored, and the entries of each expert.
    ///
    /// # Errors
    /// What zstd says.
    pub fn store(
        &mut self,
        place: (u32, u32),
        base: [u8; 32],
        sums: &[f64],
    ) -> std::io::Result<(Vec<u8>, Vec<u32>)> {
        let Self { masks, values, len, raw } = self;
        let masks = || masks.chunks_exact(MASK).map(|mask| &mask[..len.div_ceil(8)]);
        let ends = masks().filter_map(|mask| {
            let last = mask.iter().rposition(|&byte| byte != 0)?;
            Some(8 * last + 8 - mask[last].leading_zeros() as usize)
        });
        let span = ends.max().unwrap_or(0);
        let count = |mask: &[u8]| mask.iter().map(|byte| byte.count_ones()).sum::<u32>();
        let entries: Vec<u32> = masks().map(count).collect();
        raw.clear();
        if span > 0 || sums.iter().any(|&sum| sum != 0.0) {
            raw.extend((span as u32).to_le_bytes());
            sums.iter().for_each(|sum| raw.extend(sum.to_le_bytes()));
            masks().for_each(|mask| raw.extend(&mask[..span.div_ceil(8)]));
            for shift in [0, 8, 16, 24] {
                raw.extend(values.iter().map(|value| (value.to_bits() >> shift) as u8));
            }
        }
        Ok((components::seal(place, base, entries.iter().sum(), raw)?, entries))
    }
}

/// Rows and sums of a payload; `None` if [`Packed`] makes no such thing.
pub(super) fn unpack(mut raw: &[u8], experts: usize) -> Option<(Vec<Vec<Entry>>, Vec<f64>)> {
    let span = u32::from_le_bytes(take(&mut raw, 4)?.try_into().ok()?);
    if span > FRAME {
        return None;
    }
    let sums = take(&mut raw, experts.checked_mul(16)?)?.as_chunks().0;
    let sums: Vec<f64> = sums.iter().map(|&sum| f64::from_le_bytes(sum)).collect();
    if !sums.iter().all(|sum| sum.is_finite() && sum.is_sign_positive()) {
        return None;
    }
    let (span, bytes) = (span as usize, span.div_ceil(8) as usize);
    let masks = take(&mut raw, experts.checked_mul(bytes)?)?;
    let mut any = vec![0u8; bytes];
    for mask in masks.chunks_exact(bytes.max(1)) {
        any.iter_mut().zip(mask).for_each(|(any, mask)| *any |= mask);
    }
    // The last element is in a mask, and none behind it.
    let last = any.iter().rposition(|&byte| byte != 0);
    let end = last.map_or(0, |at| 8 * at + 8 - any[at].leading_zeros() as usize);
    let count: usize = any.iter().map(|byte| byte.count_ones() as usize).sum();
    if end != span || raw.len() != 4 * count {
        return None;
    }
    let (planes, places) = (raw.chunks_exact(count.max(1)), set_bits(&any));
    let mut values = vec![0u32; count];
    for (plane, shift) in planes.zip([0, 8, 16, 24]) {
        values.iter_mut().zip(plane).for_each(|(value, &byte)| *value |= u32::from(byte) << shift);
    }
    let values: Vec<f32> = values.into_iter().map(f32::from_bits).collect();
    if !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let row = |mask: &[u8]| {
        let mut row = vec![(0, 0.0); count + 1];
        let mut has = 0;
        for (&place, &value) in places.iter().zip(&values) {
            // No branch: what is not in the mask is overwritten by the next.
            row[has] = (place, value);
            has += usize::from(mask[place as usize / 8] >> (place % 8) & 1);
        }
        row.truncate(has);
        row
    };
    let rows = match bytes {
        0 => vec![Vec::new(); experts],
        _ => masks.chunks_exact(bytes).map(row).collect(),
    };
    Some((rows, sums))
}

/// The places of the bits that are set.
fn set_bits(mask: &[u8]) -> Vec<u32> {
    let mut places = Vec::new();
    for (at, &byte) in (0..).step_by(8).zip(mask) {
        let mut left = byte;
        while left != 0 {
            places.push(at + left.trailing_zeros());
            left &= left - 1;
        }
    }
    places
}

fn take<'a>(raw: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = raw.split_at_checked(len)?;
    *raw = rest;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::components::{Form, Frame, Kind};
    use proptest::prelude::*;

    fn form(experts: usize) -> Form {
        Form { kind: Kind::Unified, experts }
    }

    /// Values by place, and for each expert which of the places it has.
    fn frames() -> impl Strategy<Value = Frame> {
        let value = prop_oneof![Just(0.0f32), Just(-0.0), -1.0f32..1.0, Just(f32::MAX)];
        let moved = prop::collection::btree_map(0..FRAME, (value, 1u8..8), 0..60);
        (any::<u32>(), any::<u32>(), 1usize..4, moved, 0.0f64..9.0).prop_map(
            |(tensor, number, experts, moved, sum)| {
                let row = |i: usize| {
                    let has = moved.iter().filter(move |(_, (_, who))| who >> i & 1 == 1);
                    has.map(|(&place, &(value, _))| (place, value)).collect()
                };
                let rows = (0..experts).map(row).collect();
                Frame { tensor, number, base: [8; 32], rows, sums: vec![sum; 2 * experts] }
            },
        )
    }

    /// Entries to the bit.
    fn bits(frame: &Frame) -> Vec<Vec<(u32, u32)>> {
        let row = |row: &Vec<Entry>| row.iter().map(|&(at, x)| (at, x.to_bits())).collect();
        frame.rows.iter().map(row).collect()
    }

    proptest! {
        #[test]
        fn a_frame_comes_back_as_it_was_or_not_at_all(
            frame in frames(),
            bit in any::<prop::sample::Index>(),
            more in any::<u8>(),
        ) {
            let mut stored = frame.store_as(Kind::Unified).unwrap();
            let (form, len) = (form(frame.rows.len()), stored.len());
            stored.push(more);
            let (again, read) = Frame::load(&stored, form).unwrap();
            prop_assert_eq!((read, bits(&again)), (len, bits(&frame)));
            prop_assert_eq!(again, frame);
            let bit = bit.index(len * 8);
            stored[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Frame::load(&stored, form).is_err());
            prop_assert!(Frame::load(&stored[..len - 1], form).is_err());
        }

        #[test]
        fn what_is_taken_for_a_payload_is_one(raw in prop::collection::vec(any::<u8>(), 0..90), experts in 0usize..3, span in 0u32..40) {
            let mut raw = raw;
            if let Some(first) = raw.first_chunk_mut() {
                *first = span.to_le_bytes();
            }
            if let Some((rows, sums)) = unpack(&raw, experts) {
                let mut again = Vec::new();
                pack(&rows, &sums, &mut again);
                prop_assert_eq!(again, raw);
            }
        }
    }

    #[test]
    fn a_full_frame_fits_and_a_payload_that_is_wrong_anywhere_is_none() {
        let full: Vec<Entry> = (0..FRAME).map(|place| (place, place as f32 - 7.5)).collect();
        let rows = vec![full.clone(), Vec::new(), full];
        let mut raw = Vec::new();
        pack(&rows, &[1.0; 6], &mut raw);
        assert_eq!(raw.len(), largest(3));
        assert_eq!(unpack(&raw, 3), Some((rows, vec![1.0; 6])));
        let mut small = Vec::new();
        pack(&[vec![(2, 1.5)], vec![(9, 2.5)]], &[0.0, 1.0, 2.0, 3.0], &mut small);
        let wrong = |at: usize, byte: u8| {
            let mut changed = small.clone();
            changed[at] = byte;
            unpack(&changed, 2)
        };
        assert!(wrong(0, small[0]).is_some());
        // More elements than are in a mask, fewer, or more than a frame has.
        assert!(wrong(0, 11).is_none() && wrong(0, 9).is_none() && wrong(2, 2).is_none());
        // A sum that is negative or no number.
        assert!(
            wrong(11, 0x80).is_none() && wrong(19, 0x40).is_some() && wrong(19, 0x7f).is_none()
        );
        // Another bit of a mask: a value too few. A value that is no number.
        assert!(wrong(36, 5).is_none() && wrong(small.len() - 1, 0x7f).is_some());
        let mut infinite = Vec::new();
        pack(&[vec![(0, f32::INFINITY)]], &[0.0; 2], &mut infinite);
        assert!(unpack(&infinite, 1).is_none());
        assert!(unpack(&small[..small.len() - 1], 2).is_none() && unpack(&[], 0).is_none());
    }
}
