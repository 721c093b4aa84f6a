//! SCE: how much task vectors differ in each column, and sums of what agrees with a vote.

/// Columns that are worked on together.
const COLUMNS: usize = 64;

/// `out` = the population variance of each column, computed in doubles one row after another (Welford's way) and rounded
/// once.
#[inline(always)]
pub(super) fn variances(rows: &[&[f32]], out: &mut [f32]) {
    let number = rows.len().max(1) as f64;
    for (at, out) in (0..).step_by(COLUMNS).zip(out.chunks_mut(COLUMNS)) {
        let len = out.len();
        let (mut mean, mut square) = ([0f64; COLUMNS], [0f64; COLUMNS]);
        for (count, row) in (1u32..).zip(rows) {
            let (mean, square, row) = (&mut mean[..len], &mut square[..len], &row[at..at + len]);
            let divisor = f64::from(count);
            if count.is_power_of_two() {
                // The same bits without a division.
                take_in(mean, square, row, Share::Times(1.0 / divisor));
            } else {
                take_in(mean, square, row, Share::Over(divisor));
            }
        }
        for (out, square) in out.iter_mut().zip(&square[..len]) {
            *out = (square / number) as f32;
        }
    }
}

/// What a value weighs in the mean of it and those before it.
#[derive(Clone, Copy)]
enum Share {
    Times(f64),
    Over(f64),
}

/// Takes one value more in each column into mean and sum of squares.
#[inline(always)]
fn take_in(mean: &mut [f64], square: &mut [f64], row: &[f32], share: Share) {
    for ((mean, square), &x) in mean.iter_mut().zip(square).zip(row) {
        let delta = f64::from(x) - *mean;
        *mean += match share {
            Share::Times(factor) => delta * factor,
            Share::Over(count) => delta / count,
        };
        *square += delta * (f64::from(x) - *mean);
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
    use crate::kernel::Kernels;

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
