//! The sign that experts elect, the largest of those that have it, and who they are.

#![expect(clippy::needless_bitwise_bool, reason = "vector loops have no branches")]

use super::dispatch::Lanes;
use super::pack::{self, GROUP};

/// The task vector of an element: finite for finite values. One that is not a number counts as the base's.
#[inline(always)]
pub(crate) fn moved(value: f32, base: f32) -> f32 {
    let moved = value - base;
    let moved = if moved > f32::MAX { f32::MAX } else { moved };
    let moved = if moved < -f32::MAX { -f32::MAX } else { moved };
    if moved.is_nan() { 0.0 } else { moved }
}

/// Whether a task vector's element has the sign that was elected, by the sum of all.
#[inline(always)]
fn agrees(own: f32, total: f32) -> bool {
    if total > 0.0 { own > 0.0 } else { own < 0.0 }
}

/// Whether two values that do not differ in size do in their bits: zeros of both signs.
#[inline(always)]
fn differs(value: f32, base: f32) -> bool {
    (value == base) & (value.to_bits() != base.to_bits())
}

/// Partial sums side by side.
const LANES: usize = 8;

/// Rows of scratch.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    totals: Vec<f32>,
    winners: Vec<f32>,
}

/// `out` = the elected task vector; `shares` (a row of the block's length for each expert) = the value of the expert that
/// has it where an expert is among those that agree, else NaN; `sums` = for each expert the sum of the magnitudes of its
/// task vector, and of what of the elected one it has. Sums are of doubles, in an order that depends on places alone.
#[inline(always)]
pub(super) fn unify(
    base: &[f32],
    rows: &[&[f32]],
    scratch: &mut Scratch,
    out: &mut [f32],
    shares: &mut [f32],
    sums: &mut [f64],
) {
    let len = base.len();
    scratch.totals.clear();
    scratch.totals.resize(len, 0.0);
    scratch.winners.clear();
    scratch.winners.resize(len, 0.0);
    let (totals, winners) = (&mut scratch.totals[..], &mut scratch.winners[..]);
    for row in rows {
        for ((total, &value), &base) in totals.iter_mut().zip(*row).zip(base) {
            *total += moved(value, base);
        }
    }
    out.fill(0.0);
    for row in rows {
        let columns = out.iter_mut().zip(&mut *winners).zip(&*totals);
        for (((out, winner), &total), (&value, &base)) in columns.zip(row.iter().zip(base)) {
            let own = moved(value, base);
            let better = agrees(own, total) & (own.abs() > out.abs());
            *out = if better { own } else { *out };
            *winner = if better { value } else { *winner };
        }
    }
    // Zero may have another sign than the base's: no task vector tells, and the expert is to come back to the bit. The first
    // one decides.
    for row in rows.iter().rev() {
        for ((winner, &out), (&value, &base)) in
            winners.iter_mut().zip(&*out).zip(row.iter().zip(base))
        {
            *winner = if differs(value, base) & (out == 0.0) { value } else { *winner };
        }
    }
    let parts = shares.chunks_exact_mut(len.max(1)).zip(rows).zip(sums.as_chunks_mut().0);
    for ((share, row), sums) in parts {
        *sums = masked(base, row, totals, winners, out, share);
    }
}

/// Fills in the share of one expert; returns its sums.
#[inline(always)]
fn masked(
    base: &[f32],
    row: &[f32],
    totals: &[f32],
    winners: &[f32],
    out: &[f32],
    share: &mut [f32],
) -> [f64; 2] {
    let (mut all, mut left) = ([0f64; LANES], [0f64; LANES]);
    let len = base.len();
    for at in (0..len).step_by(LANES) {
        let to = len.min(at + LANES);
        let lanes = all.iter_mut().zip(&mut left);
        let inputs = base[at..to].iter().zip(&row[at..to]).zip(&totals[at..to]);
        let inputs = inputs.zip(winners[at..to].iter().zip(&out[at..to]));
        for (((all, left), share), (((&base, &value), &total), (&winner, &out))) in
            lanes.zip(&mut share[at..to]).zip(inputs)
        {
            let own = moved(value, base);
            let has = (out != 0.0) & agrees(own, total) | (out == 0.0) & differs(value, base);
            *share = if has { winner } else { f32::NAN };
            *all += f64::from(own.abs());
            *left += f64::from(if has { out.abs() } else { 0.0 });
        }
    }
    [all, left].map(|[a, b, c, d, e, f, g, h]| ((a + b) + (c + d)) + ((e + f) + (g + h)))
}

/// Packs rows of `len` elements, in which an element that is there has the same value in all rows that have it: `masks` =
/// for each row a bit per element, lowest first, in whole bytes; appends to `values` those that are there in any row.
#[inline(always)]
pub(super) fn pack_unified(
    lanes: Lanes,
    rows: &[f32],
    len: usize,
    masks: &mut [u8],
    values: &mut Vec<f32>,
) {
    let bytes = len.div_ceil(8);
    let mut count = values.len();
    values.resize(count + len + GROUP, 0.0);
    for first in (0..len).step_by(GROUP) {
        let here = GROUP.min(len - first);
        let (mut any, mut winner) = (0, [0f32; GROUP]);
        let of_rows = rows.chunks_exact(len).zip(masks.chunks_exact_mut(bytes.max(1)));
        for (row, bits) in of_rows {
            let mut group = [f32::NAN; GROUP];
            match row[first..].first_chunk() {
                Some(whole) => group = *whole,
                None => group[..here].copy_from_slice(&row[first..]),
            }
            let mut flags = [0u32; GROUP];
            for ((flag, winner), value) in flags.iter_mut().zip(&mut winner).zip(group) {
                let has = !value.is_nan();
                *flag = u32::from(has);
                *winner = if has { value } else { *winner };
            }
            let mask = pack::mask(lanes, &flags);
            any |= mask;
            let bits = &mut bits[first / 8..];
            match bits.first_chunk_mut() {
                Some(both) => *both = mask.to_le_bytes(),
                None => bits[0] = mask as u8,
            }
        }
        if let Some(to) = values[count..].first_chunk_mut() {
            pack::pack(lanes, any, &winner, to);
        }
        count += any.count_ones() as usize;
    }
    values.truncate(count);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;

    #[test]
    fn every_path_gives_the_scalar_bits_on_every_length() {
        let some = [0.0f32, -0.0, 1.0, -1.0, 0.75, -0.25, 1e-45, 3.0, f32::MAX, -f32::MAX];
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for len in (1..70).chain([4096]) {
            let row = |seed: usize| -> Vec<f32> {
                (0..len).map(|k| some[(k * k + seed * (k + 3)) % 97 % some.len()]).collect()
            };
            let (base, rows) = (row(1), [row(2), row(5), row(11)]);
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let made = |kernels: &Kernels| {
                let (mut out, mut shares) = (vec![9.0; len], vec![9.0; 3 * len]);
                let (mut sums, mut scratch) = (vec![9.0; 6], Scratch::default());
                for _again in 0..2 {
                    kernels.unify(&base, &rows, &mut scratch, &mut out, &mut shares, &mut sums);
                }
                let sums: Vec<u64> = sums.iter().map(|sum| sum.to_bits()).collect();
                (bits(&out), bits(&shares), sums)
            };
            let expected = made(Kernels::available().next().unwrap());
            for kernels in Kernels::available() {
                assert!(made(kernels) == expected, "{kernels:?} {len}");
            }
        }
    }

    #[test]
    fn what_is_there_is_packed_on_every_path_and_length() {
        for len in (0..70).chain([4096, 4097]) {
            let there =
                |row: usize, k: usize| ((k * k + row * (k + 3)) % 97).is_multiple_of(row + 2);
            let value = |k: usize| if k == 3 { -0.0 } else { k as f32 - 20.5 };
            let all = (0..3).flat_map(|row| (0..len).map(move |k| (row, k)));
            let rows: Vec<f32> =
                all.map(|(row, k)| if there(row, k) { value(k) } else { f32::NAN }).collect();
            let (bytes, moved) = (len.div_ceil(8), |k: &usize| (0..3).any(|row| there(row, *k)));
            let expected: Vec<u32> = [7.5]
                .into_iter()
                .chain((0..len).filter(moved).map(value))
                .map(f32::to_bits)
                .collect();
            for kernels in Kernels::available() {
                // What is there already stays.
                let (mut masks, mut values) = (vec![0xff; 3 * bytes], vec![7.5]);
                kernels.pack_unified(&rows, len, &mut masks, &mut values);
                for k in 0..8 * bytes {
                    for row in 0..3 {
                        let bit = masks[row * bytes + k / 8] >> (k % 8) & 1 == 1;
                        assert_eq!(bit, k < len && there(row, k), "{kernels:?} {len} {row} {k}");
                    }
                }
                let values: Vec<u32> = values.into_iter().map(f32::to_bits).collect();
                assert_eq!(values, expected, "{kernels:?} {len}");
            }
        }
    }
}
