//! Means of rows, in doubles: equal rows give that row to the bit, whatever the weights.

/// Elements whose sums are kept at hand.
const STEP: usize = 64;

/// `out` = sum of `factors[i] * (weights[i] + floor) * rows[i]`, divided by the sum of these weights; both sums in
/// order, in doubles, and one rounding to `f32` at the end. Where the weights add up to zero, the mean by `factors`
/// alone.
///
/// No sum overflows as long as factors and floor are at most 1e30. With n rows the mean of equal values is off by n
/// 2^-52 at most before it is rounded, and so is that value.
#[inline(always)]
pub(super) fn weighted_mean(
    rows: &[&[f32]],
    weights: &[&[f32]],
    factors: &[f64],
    floor: f64,
    out: &mut [f32],
) {
    for (chunk, out) in out.chunks_mut(STEP).enumerate() {
        let run = chunk * STEP..chunk * STEP + out.len();
        let (mut sum, mut total) = ([0.0; STEP], [0.0; STEP]);
        for ((row, weights), &factor) in rows.iter().zip(weights).zip(factors) {
            let values = row[run.clone()].iter().zip(&weights[run.clone()]);
            for ((sum, total), (&x, &weight)) in sum.iter_mut().zip(&mut total).zip(values) {
                let weight = factor * (f64::from(weight) + floor);
                *sum += weight * f64::from(x);
                *total += weight;
            }
        }
        let mut empty = false;
        for (out, (&sum, &total)) in out.iter_mut().zip(sum.iter().zip(&total)) {
            empty |= total == 0.0;
            *out = (sum / total) as f32;
        }
        if empty {
            for (k, out) in out.iter_mut().enumerate().filter(|&(k, _)| total[k] == 0.0) {
                *out = mean_of(rows, factors, run.start + k);
            }
        }
    }
}

/// `out` = sum of `factors[i] * rows[i]`, divided by the sum of the factors, as above.
#[inline(always)]
pub(super) fn plain_mean(rows: &[&[f32]], factors: &[f64], out: &mut [f32]) {
    let total: f64 = factors.iter().fold(0.0, |total, factor| total + factor);
    for (chunk, out) in out.chunks_mut(STEP).enumerate() {
        let run = chunk * STEP..chunk * STEP + out.len();
        let mut sum = [0.0; STEP];
        for (row, &factor) in rows.iter().zip(factors) {
            for (sum, &x) in sum.iter_mut().zip(&row[run.clone()]) {
                *sum += factor * f64::from(x);
            }
        }
        for (out, sum) in out.iter_mut().zip(sum) {
            *out = (sum / total) as f32;
        }
    }
}

/// The mean of one element.
#[inline(always)]
fn mean_of(rows: &[&[f32]], factors: &[f64], at: usize) -> f32 {
    let (mut sum, mut total) = (0.0, 0.0);
    for (row, &factor) in rows.iter().zip(factors) {
        sum += factor * f64::from(row[at]);
        total += factor;
    }
    (sum / total) as f32
}

/// Whether some value is below zero.
#[inline(always)]
pub(super) fn any_negative(values: &[f32]) -> bool {
    values.iter().fold(0, |any, &x| any | u32::from(x < 0.0)) != 0
}

#[cfg(test)]
mod tests {
    use crate::kernel::Kernels;

    fn rows(len: usize, seed: u32, least: f32) -> Vec<f32> {
        let number = |k: u32| {
            let x = (k.wrapping_add(seed)).wrapping_mul(2_654_435_761) >> 8;
            (x as f32 / 8_388_608.0 - 1.0).max(least) * 1e-3
        };
        (0..len as u32).map(number).collect()
    }

    #[test]
    fn all_levels_agree_with_the_formula() {
        let len = 333;
        let (a, b) = (rows(len, 1, -1.0), rows(len, 2, -1.0));
        let (f, g) = (rows(len, 3, 0.0), rows(len, 4, 0.0));
        for kernels in Kernels::available() {
            let mut out = vec![f32::NAN; len];
            kernels.weighted_mean(&[&a, &b], &[&f, &g], &[0.5, 2.0], 1e-10, &mut out);
            let mut plain = vec![f32::NAN; len];
            kernels.plain_mean(&[&a, &b], &[0.5, 2.0], &mut plain);
            let mut bare = vec![f32::NAN; len];
            kernels.weighted_mean(&[&a, &b], &[&f, &g], &[0.5, 2.0], 0.0, &mut bare);
            let both_zero = |e: &usize| f[*e] == 0.0 && g[*e] == 0.0;
            assert!((0..len).filter(both_zero).count() > 20);
            for e in 0..len {
                let of = |floor: f64| {
                    let (u, v) = (0.5 * (f64::from(f[e]) + floor), 2.0 * (f64::from(g[e]) + floor));
                    (u * f64::from(a[e]) + v * f64::from(b[e])) / (u + v)
                };
                let mean = (0.5 * f64::from(a[e]) + 2.0 * f64::from(b[e])) / 2.5;
                assert_eq!(out[e], of(1e-10) as f32);
                assert_eq!(plain[e], mean as f32);
                assert_eq!(bare[e], if both_zero(&e) { mean as f32 } else { of(0.0) as f32 });
            }
        }
    }

    #[test]
    fn equal_rows_give_that_row_to_the_bit() {
        let kernels = Kernels::available().last().unwrap();
        let row: Vec<f32> = [f32::MAX, f32::MIN, 1e-45, -0.1, f32::MIN_POSITIVE].repeat(31);
        for n in [1, 3, 90] {
            let weights: Vec<Vec<f32>> = (0..n)
                .map(|k| {
                    let all = [0.0, f32::MAX, 1e-45, 0.3 + k as f32, 1e-9];
                    all.iter().cycle().skip(k as usize).take(row.len()).copied().collect()
                })
                .collect();
            let weights: Vec<&[f32]> = weights.iter().map(|row| &**row).collect();
            let rows = vec![&*row; n as usize];
            let factors: Vec<f64> = (0..n).map(|k| 10_f64.powi(k % 61 - 30)).collect();
            for floor in [0.0, 1e-10, 1e30] {
                let mut out = vec![f32::NAN; row.len()];
                kernels.weighted_mean(&rows, &weights, &factors, floor, &mut out);
                assert_eq!(out, row);
                kernels.plain_mean(&rows, &factors, &mut out);
                assert_eq!(out, row);
            }
        }
    }

    #[test]
    fn finds_what_is_no_weight() {
        let kernels = Kernels::available().last().unwrap();
        for (value, found) in [(-1e-45, true), (-0.0, false), (f32::MAX, false)] {
            let mut values = vec![0.0; 100];
            values[77] = value;
            assert_eq!(kernels.any_negative(&values), found, "{value}");
        }
    }
}
