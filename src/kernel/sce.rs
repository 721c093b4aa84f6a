//! SCE: how much task vectors differ in each column, and sums of what agrees with a vote.

/// Columns that are worked on together.
const COLUMNS: usize = 64;

/// `out` = the population variance of each column, computed in doubles one row after another (Welford's way) and rounded
/// once.
#[inline(always)]
pub(super) fn variances(rows: &[&[f32]], out: &mut [f32]) {
    let Some((first, others)) = rows.split_first() else { return out.fill(0.0) };
    for (at, out) in (0..).step_by(COLUMNS).zip(out.chunks_mut(COLUMNS)) {
        let len = out.len();
        let (mut mean, mut square) = ([0f64; COLUMNS], [0f64; COLUMNS]);
        let (mean, square) = (&mut mean[..len], &mut square[..len]);
        for (mean, &x) in mean.iter_mut().zip(&first[at..at + len]) {
            *mean = x.into();
        }
        for (count, row) in (2..).zip(others) {
            let row = &row[at..at + len];
            // A loop for each way.
            match Divisor::new(count) {
                Divisor::Power(by) => take_in(mean, square, row, Divisor::Power(by)),
                Divisor::Above(by) => take_in(mean, square, row, Divisor::Above(by)),
                Divisor::Other(by) => take_in(mean, square, row, Divisor::Other(by)),
            }
        }
        match Divisor::new(rows.len() as u32) {
            Divisor::Power(by) => finish(square, Divisor::Power(by), out),
            Divisor::Above(by) => finish(square, Divisor::Above(by), out),
            Divisor::Other(by) => finish(square, Divisor::Other(by), out),
        }
    }
}

/// Takes one value more in each column into mean and sum of squares.
#[inline(always)]
fn take_in(mean: &mut [f64], square: &mut [f64], row: &[f32], count: Divisor) {
    for ((mean, square), &x) in mean.iter_mut().zip(square).zip(row) {
        let delta = f64::from(x) - *mean;
        *mean += count.quotient(delta);
        *square += delta * (f64::from(x) - *mean);
    }
}

#[inline(always)]
fn finish(square: &[f64], number: Divisor, out: &mut [f32]) {
    for (out, &square) in out.iter_mut().zip(square) {
        *out = number.quotient(square) as f32;
    }
}

/// A way to divide by a small number. All of them give the quotient, rounded once.
#[derive(Clone, Copy)]
enum Divisor {
    /// By its inverse: of a power of two, which is exact.
    Power(f64),
    /// By the inverse, and what that leaves: of one more than this power of two.
    Above(f64),
    /// By division, which takes many times as long as all else here.
    Other(f64),
}

impl Divisor {
    fn new(number: u32) -> Self {
        match number {
            _ if number.is_power_of_two() => Self::Power(1.0 / f64::from(number)),
            _ if (number - 1).is_power_of_two() => Self::Above(f64::from(number - 1)),
            _ => Self::Other(number.into()),
        }
    }

    /// Of a number that is far from the least and the greatest ones, or zero: then with either sign.
    #[inline(always)]
    fn quotient(self, x: f64) -> f64 {
        match self {
            Self::Power(inverse) => x * inverse,
            Self::Above(power) => {
                // Both differences are exact, since what is subtracted is at least half of what it is subtracted from, and at
                // most twice. A quotient is never closer to the middle of two numbers than a small part of their distance.
                let inverse = 1.0 / (power + 1.0);
                let near = x * inverse;
                let rest = (x - power * near) - near;
                near + rest * inverse
            }
            Self::Other(number) => x / number,
        }
    }
}

/// `out` = the sum of `weights[i] * rows[i]` over those elements that have the sign of `votes`, which counts as positive if
/// it is zero; `shares` = the sum of their weights. Zeros have no sign.
#[inline(always)]
pub(super) fn agreeing_sum(
    rows: &[&[f32]],
    weights: &[f32],
    votes: &[f32],
    shares: &mut [f32],
    out: &mut [f32],
) {
    out.fill(0.0);
    shares.fill(0.0);
    for (row, &weight) in rows.iter().zip(weights) {
        let columns = out.iter_mut().zip(&mut *shares).zip(*row).zip(votes);
        for (((sum, share), &x), &vote) in columns {
            let agrees = if vote >= 0.0 { x > 0.0 } else { x < 0.0 };
            *sum += if agrees { weight * x } else { 0.0 };
            *share += if agrees { weight } else { 0.0 };
        }
    }
}

/// Divides each element by that of another row, or by `least` if that is larger.
#[inline(always)]
pub(super) fn divide_at_least(divisors: &[f32], least: f32, out: &mut [f32]) {
    for (x, &divisor) in out.iter_mut().zip(divisors) {
        *x /= if divisor < least { least } else { divisor };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Divisor;
    use crate::kernel::Kernels;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

        #[test]
        fn every_way_to_divide_gives_the_rounded_quotient(
            number in 1u32..140,
            mantissa in prop_oneof![any::<u64>(), (0u64..64).prop_map(|bit| 1 << bit), 0u64..999],
            multiple in any::<bool>(),
            off in -2i64..3,
            exponent in -700i32..700,
        ) {
            // Quotients that are whole numbers of 53 bits, or next to one, among them.
            let whole = mantissa >> 12 | 1;
            let x = if multiple { whole as f64 * f64::from(number) } else { mantissa as f64 };
            let x = f64::from_bits(x.to_bits().wrapping_add_signed(off));
            prop_assume!(x.is_normal());
            let x = x * 2f64.powi(exponent);
            for x in [x, -x] {
                let quotient = Divisor::new(number).quotient(x);
                prop_assert_eq!(quotient.to_bits(), (x / f64::from(number)).to_bits());
            }
            prop_assert_eq!(Divisor::new(number).quotient(0.0), 0.0);
        }
    }

    #[test]
    fn variances_have_the_bits_of_welfords_way_with_divisions() {
        let mut x = 9u32;
        let mut next = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Magnitudes of all sizes, equal values, subnormals.
            let scale = [1.0, 1e-3, 1e-20, 1e-38, 1e-44, 1e30][(x >> 5) as usize % 6];
            ((x >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
        };
        for number in 1..=11 {
            let mut rows: Vec<Vec<f32>> =
                (0..number).map(|_| (0..700).map(|_| next()).collect()).collect();
            for k in (0..700).step_by(7) {
                let same = rows[0][k];
                rows.iter_mut().for_each(|row| row[k] = same);
            }
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            for kernels in Kernels::available() {
                let mut variances = vec![9.0; 700];
                kernels.variances(&rows, &mut variances);
                for (k, variance) in variances.into_iter().enumerate() {
                    let (mut mean, mut square) = (0f64, 0f64);
                    for (count, row) in (1u32..).zip(&rows) {
                        let delta = f64::from(row[k]) - mean;
                        mean += delta / f64::from(count);
                        square += delta * (f64::from(row[k]) - mean);
                    }
                    let expected = (square / f64::from(number)) as f32;
                    assert_eq!(variance.to_bits(), expected.to_bits(), "{kernels:?} {number} {k}");
                }
            }
        }
    }

    #[test]
    fn all_paths_give_the_bits_of_a_plain_loop() {
        let some = [0.0f32, 1.5, -2.0, 0.25, -0.25, 0.1, 3.0, -1.0, -0.0, 0.5, 2.0];
        let weights = [0.3f32, 0.5, 0.2];
        for len in (0..140).chain([4096]) {
            let row =
                |i: usize| -> Vec<f32> { (0..len).map(|k| some[(k * 5 + i * 3) % 11]).collect() };
            let rows = [row(0), row(1), row(2)];
            let votes: Vec<f32> = (0..len).map(|k| rows[0][k] + rows[1][k] + rows[2][k]).collect();
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let scalar = Kernels::available().next().unwrap();
            let mut definition = vec![9.0; len];
            scalar.variances(&rows, &mut definition);
            for kernels in Kernels::available() {
                let [mut shares, mut sums, mut variances] = [(); 3].map(|()| vec![9.0f32; len]);
                kernels.variances(&rows, &mut variances);
                assert_eq!(variances, definition);
                kernels.agreeing_sum(&rows, &weights, &votes, &mut shares, &mut sums);
                let mut divided = sums.clone();
                kernels.divide_at_least(&shares, 0.4, &mut divided);
                for k in 0..len {
                    let column = [0, 1, 2].map(|i| f64::from(rows[i][k]));
                    let mean = column.iter().sum::<f64>() / 3.0;
                    let variance = column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 3.0;
                    assert!((f64::from(variances[k]) - variance).abs() <= 1e-7 * variance, "{k}");
                    let sign = if votes[k] >= 0.0 { 1.0 } else { -1.0 };
                    let (mut sum, mut share) = (0.0f32, 0.0f32);
                    for i in (0..3).filter(|&i| rows[i][k] * sign > 0.0) {
                        sum += weights[i] * rows[i][k];
                        share += weights[i];
                    }
                    let got = [sums[k], shares[k], divided[k]];
                    assert_eq!(got, [sum, share, sum / share.max(0.4)]);
                }
            }
        }
    }
}
