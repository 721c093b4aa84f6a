//! Sums of products and sign counts of rows, exact up to a written rounding of each term.

/// Bits between two grids of `dot`.
pub const GRID: i32 = 40;

/// Most elements that `dot` can take at once: its sums stay exact.
pub const DOT_MOST: usize = 4096;

/// The number of the grid for products of magnitudes up to `x` and `y`, both finite: all of them are below
/// half of 2^(40 (top + 1)).
#[inline]
pub fn top(x: f32, y: f32) -> i32 {
    // Exact, and normal in f64 for any two finite f32 but zeros.
    let bound = f64::from(x.abs()) * f64::from(y.abs());
    let exponent = ((bound.to_bits() >> 52) as i32 & 0x7ff) - 1022;
    exponent.div_euclid(GRID)
}

/// 2^k as f64, for k within its normal range.
#[inline(always)]
pub(crate) fn power_of_two(k: i32) -> f64 {
    f64::from_bits(((k + 1023) as u64) << 52)
}

/// Partial sums side by side: additions take a few cycles, and there is no need to wait for each.
const SUMS: usize = 32;

/// Adds terms, each rounded to a multiple of 2^(40 (top - 1)), in two parts: multiples of 2^(40 top) and of 2^(40 (top - 1)).
///
/// Adding and subtracting 1.5 * 2^(52 + g) rounds a term to a multiple of 2^g, ties to even. Every part is below 2^39 grid
/// steps, so 4096 of them are summed without rounding, in any order.
struct Grids {
    hi: [f64; SUMS],
    lo: [f64; SUMS],
    top: i32,
}

impl Grids {
    #[inline(always)]
    fn new(top: i32) -> Self {
        Self { hi: [0.0; SUMS], lo: [0.0; SUMS], top }
    }

    #[inline(always)]
    fn add(&mut self, terms: &[f64; SUMS]) {
        let (coarse, fine) = (GRID * self.top, GRID * (self.top - 1));
        let (m_hi, m_lo) = (1.5 * power_of_two(52 + coarse), 1.5 * power_of_two(52 + fine));
        for ((hi, lo), &term) in self.hi.iter_mut().zip(&mut self.lo).zip(terms) {
            let upper = (term + m_hi) - m_hi;
            *hi += upper;
            *lo += ((term - upper) + m_lo) - m_lo;
        }
    }

    /// Both parts, as integers.
    #[inline(always)]
    fn finish(&self) -> [i64; 2] {
        let (hi, lo): (f64, f64) = (self.hi.iter().sum(), self.lo.iter().sum());
        let (coarse, fine) = (GRID * self.top, GRID * (self.top - 1));
        [(hi * power_of_two(-coarse)) as i64, (lo * power_of_two(-fine)) as i64]
    }
}

/// The sum of x_k y_k, rounded and in two parts: see [`Grids`]. Each product is exact in f64.
#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32], top: i32) -> [i64; 2] {
    let mut grids = Grids::new(top);
    let ((xs, x), (ys, y)) = (x.as_chunks::<SUMS>(), y.as_chunks::<SUMS>());
    let mut terms = [0.0; SUMS];
    for (x, y) in xs.iter().zip(ys) {
        for ((term, &x), &y) in terms.iter_mut().zip(x).zip(y) {
            *term = f64::from(x) * f64::from(y);
        }
        grids.add(&terms);
    }
    terms = [0.0; SUMS];
    for ((term, &x), &y) in terms.iter_mut().zip(x).zip(y) {
        *term = f64::from(x) * f64::from(y);
    }
    grids.add(&terms);
    grids.finish()
}

/// The sum of |x_k|: `dot` with nothing but ones.
#[inline(always)]
pub(super) fn magnitude_sum(x: &[f32], top: i32) -> [i64; 2] {
    let mut grids = Grids::new(top);
    let (xs, x) = x.as_chunks::<SUMS>();
    let mut terms = [0.0; SUMS];
    for x in xs {
        for (term, &x) in terms.iter_mut().zip(x) {
            *term = f64::from(x.abs());
        }
        grids.add(&terms);
    }
    terms = [0.0; SUMS];
    for (term, &x) in terms.iter_mut().zip(x) {
        *term = f64::from(x.abs());
    }
    grids.add(&terms);
    grids.finish()
}

/// Elements that [`magnitude_sums`] takes at a time: those of one group of bits.
const NOTED: usize = u16::BITS as usize;

/// The sums of |x_k|, and of those that are noted in `kept`, a bit for each element. Both are what `magnitude_sum` has in
/// its upper part, if nothing is left for its lower one; `None` if something is. That is rare: all but the smallest differences of
/// floats that are stored in 16 bits are multiples of the coarse grid, and need no rounding.
#[inline(always)]
pub(super) fn magnitude_sums(x: &[f32], kept: &[u16], top: i32) -> Option<[i64; 2]> {
    let coarse = GRID * top;
    // Above this, floats are multiples of the grid anyway. Outside of that range there are no such floats.
    let exponent = coarse + 23;
    if !(-126..=126).contains(&exponent) {
        return None;
    }
    let limit = power_of_two(exponent) as f32;
    let (mut all, mut some, mut off) = ([0f64; NOTED], [0f64; NOTED], [0u32; NOTED]);
    let (xs, rest) = x.as_chunks::<NOTED>();
    for (x, &kept) in xs.iter().zip(kept) {
        add_noted(x, kept, limit, (&mut all, &mut some), &mut off);
    }
    if !rest.is_empty() {
        let mut x = [0.0; NOTED];
        x[..rest.len()].copy_from_slice(rest);
        add_noted(&x, kept.get(xs.len()).copied()?, limit, (&mut all, &mut some), &mut off);
    }
    if off.iter().any(|&off| off != 0) {
        return None;
    }
    let steps = power_of_two(-coarse);
    Some([all, some].map(|sums| (sums.iter().sum::<f64>() * steps) as i64))
}

/// Adds the magnitudes of sixteen elements to as many sums. Sums of multiples of the grid are exact, as in [`Grids`].
#[inline(always)]
fn add_noted(
    x: &[f32; NOTED],
    kept: u16,
    limit: f32,
    (all, some): (&mut [f64; NOTED], &mut [f64; NOTED]),
    off: &mut [u32; NOTED],
) {
    for k in 0..NOTED {
        let size = x[k].abs();
        // Between the limit and twice the limit, floats are multiples of the grid, and no others: this rounds to it.
        let rounded = (size + limit) - limit;
        off[k] |= u32::from(size < limit && rounded != size);
        let term = f64::from(size);
        all[k] += term;
        some[k] += if kept >> k & 1 == 1 { term } else { 0.0 };
    }
}

/// Over the columns of equally long rows: in how many at least two values are not zero, and in how many both
/// signs occur.
#[inline(always)]
pub(super) fn clashes(rows: &[&[f32]]) -> [u64; 2] {
    const LANES: usize = 16;
    let len = rows.first().map_or(0, |row| row.len());
    let (mut shared, mut clashes) = ([0u32; LANES], [0u32; LANES]);
    let mut at = 0;
    while at < len {
        let now = LANES.min(len - at);
        let (mut above, mut below) = ([0u32; LANES], [0u32; LANES]);
        for row in rows {
            let mut values = [0f32; LANES];
            values[..now].copy_from_slice(&row[at..at + now]);
            for k in 0..LANES {
                above[k] += u32::from(values[k] > 0.0);
                below[k] += u32::from(values[k] < 0.0);
            }
        }
        for k in 0..LANES {
            shared[k] += u32::from(above[k] + below[k] >= 2);
            clashes[k] += u32::from(above[k] > 0 && below[k] > 0);
        }
        at += now;
    }
    [shared, clashes].map(|counts| counts.iter().map(|&count| u64::from(count)).sum())
}

/// Number of zeros, of either sign.
#[inline(always)]
pub(super) fn zeros(values: &[f32]) -> u64 {
    // Blocks are short: the count fits.
    u64::from(values.iter().map(|&value| u32::from(value == 0.0)).sum::<u32>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;

    fn rows(len: usize) -> Vec<Vec<f32>> {
        let special = [0.0, -0.0, 1e-45, -1e-39, 1e-20, -3e-4, 3e-4, 0.1, -0.7, 2.5, -40.0];
        let mut x = len as u64 + 99;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let plain = (x >> 40) as f32 / 3e7 - 0.3;
            if x >> 61 == 0 { special[(x >> 33) as usize % special.len()] } else { plain }
        };
        (0..3).map(|_| (0..len).map(|_| next()).collect()).collect()
    }

    #[test]
    fn every_path_gives_the_scalar_counts_and_sums_on_every_length() {
        let all = |kernels: &Kernels, rows: &[&[f32]]| {
            let top = top(40.0, 40.0);
            (
                kernels.dot(rows[0], rows[1], top),
                kernels.dot(rows[2], rows[2], top),
                kernels.magnitude_sum(rows[2], top),
                kernels.clashes(rows),
                kernels.zeros(rows[1]),
            )
        };
        let scalar = Kernels::available().next().unwrap();
        for len in (0..70).chain([DOT_MOST]) {
            let rows = rows(len);
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let expected = all(scalar, &rows);
            for kernels in Kernels::available() {
                assert_eq!(all(kernels, &rows), expected, "{kernels:?} {len}");
            }
            let (sizes, ones): (Vec<f32>, Vec<f32>) =
                rows[2].iter().map(|x| (x.abs(), 1.0)).unzip();
            let top = top(40.0, 40.0);
            assert_eq!(scalar.magnitude_sum(rows[2], top), scalar.dot(&sizes, &ones, top), "{len}");
        }
    }

    #[test]
    fn the_grid_covers_every_product_of_finite_values() {
        for x in [f32::from_bits(1), 1e-30, 0.99, 1.0, 1.5, 3e7, f32::MAX] {
            for y in [f32::from_bits(1), 0.5, 1.0, f32::MAX] {
                let limit = 0.5 * power_of_two(GRID * (top(x, y) + 1));
                let product = f64::from(x) * f64::from(y);
                assert!(product < limit && product * power_of_two(GRID) >= limit, "{x} {y}");
            }
        }
    }

    #[test]
    fn counts_columns_where_two_move_and_where_they_disagree() {
        let rows: [&[f32]; 3] = [
            &[1.0, 0.0, 1.0, -1.0, 0.0],
            &[2.0, 0.0, -1.0, -0.0, 1.0],
            &[0.0, -0.0, 1.0, -3.0, 0.0],
        ];
        assert_eq!(Kernels::available().next().unwrap().clashes(&rows), [3, 1]);
        assert_eq!(zeros(rows[2]), 3);
    }
}
