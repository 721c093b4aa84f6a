//! Weighted sums of rows, one row after another, one rounding for each operation.

/// `out` = sum of `weights[i] * rows[i]`, added in order, starting from zero.
#[inline(always)]
pub(super) fn weighted_sum(rows: &[&[f32]], weights: &[f32], out: &mut [f32]) {
    add_weighted(rows, weights, 0, out);
}

/// The same for the columns from one on.
#[inline(always)]
fn add_weighted(rows: &[&[f32]], weights: &[f32], first: usize, out: &mut [f32]) {
    let mut pairs = rows.iter().zip(weights);
    let Some((row, &weight)) = pairs.next() else {
        out.fill(0.0);
        return;
    };
    for (sum, &x) in out.iter_mut().zip(&row[first..]) {
        *sum = 0.0 + weight * x;
    }
    for (row, &weight) in pairs {
        for (sum, &x) in out.iter_mut().zip(&row[first..]) {
            *sum += weight * x;
        }
    }
}

/// The same with a weight for each element.
#[inline(always)]
pub(super) fn weighted_rows(rows: &[&[f32]], weights: &[&[f32]], out: &mut [f32]) {
    out.fill(0.0);
    for (row, weights) in rows.iter().zip(weights) {
        for ((sum, &x), &weight) in out.iter_mut().zip(*row).zip(*weights) {
            *sum += weight * x;
        }
    }
}

/// [`weighted_sum`] with each product and the sum that it is added to rounded together: in doubles, in which the
/// product is exact, and then to `f32`.
#[inline(always)]
pub(super) fn fused_sum(rows: &[&[f32]], weights: &[f32], out: &mut [f32]) {
    // The sums of the first three stay in registers.
    match (rows, weights) {
        ([], _) | (_, []) => out.fill(0.0),
        ([a], [wa, ..]) | ([a, ..], [wa]) => {
            for (sum, &a) in out.iter_mut().zip(*a) {
                *sum = fused(*wa, a, 0.0);
            }
        }
        ([a, b], [wa, wb, ..]) | ([a, b, ..], [wa, wb]) => {
            for ((sum, &a), &b) in out.iter_mut().zip(*a).zip(*b) {
                *sum = fused(*wb, b, fused(*wa, a, 0.0));
            }
        }
        ([a, b, c, ..], [wa, wb, wc, ..]) => {
            for (((sum, &a), &b), &c) in out.iter_mut().zip(*a).zip(*b).zip(*c) {
                *sum = fused(*wc, c, fused(*wb, b, fused(*wa, a, 0.0)));
            }
        }
    }
    for (row, &weight) in rows.iter().zip(weights).skip(3) {
        for (sum, &x) in out.iter_mut().zip(*row) {
            *sum = fused(weight, x, *sum);
        }
    }
}

/// `weight * x + sum`, rounded in doubles and then to `f32`.
#[inline(always)]
fn fused(weight: f32, x: f32, sum: f32) -> f32 {
    (f64::from(weight) * f64::from(x) + f64::from(sum)) as f32
}

/// Columns whose sums stay in the first-level cache while row after row is added.
const NEAR: usize = 512;

/// The weighted sum of those elements that have the sign of the whole sum, which counts as positive if it is
/// zero; `shares` = the sum of their weights, 1 if that is zero. Zeros have no sign.
#[inline(always)]
pub(super) fn elected_sum(
    rows: &[&[f32]],
    weights: &[f32],
    votes: &mut [f32],
    shares: &mut [f32],
    out: &mut [f32],
) {
    let columns = votes.chunks_mut(NEAR).zip(shares.chunks_mut(NEAR)).zip(out.chunks_mut(NEAR));
    for (at, ((votes, shares), out)) in columns.enumerate() {
        elect(rows, weights, at * NEAR, votes, shares, out);
    }
}

/// The same for the columns from one on.
#[inline(always)]
fn elect(
    rows: &[&[f32]],
    weights: &[f32],
    first: usize,
    votes: &mut [f32],
    shares: &mut [f32],
    out: &mut [f32],
) {
    add_weighted(rows, weights, first, votes);
    out.fill(0.0);
    shares.fill(0.0);
    for (row, &weight) in rows.iter().zip(weights) {
        let columns = out.iter_mut().zip(&mut *shares).zip(&row[first..]).zip(&*votes);
        for (((sum, share), &x), &vote) in columns {
            let term = weight * x;
            let agrees = (if vote >= 0.0 { term } else { -term }) > 0.0;
            *sum += if agrees { term } else { 0.0 };
            *share += if agrees { weight } else { 0.0 };
        }
    }
    for share in shares {
        *share = if *share == 0.0 { 1.0 } else { *share };
    }
}

/// `out` = `share * row + (1 - share) * base`, where share = `t` / |row - base|, within 0 to 1: all of a row's element
/// where it is no further than `t` from the base, less and less beyond. Differences below 1e-6 count as that.
#[inline(always)]
pub(super) fn near(base: &[f32], row: &[f32], t: f32, out: &mut [f32]) {
    for ((out, &base), &x) in out.iter_mut().zip(base).zip(row) {
        let distance = (base - x).abs();
        let distance = if distance < 1e-6 { 1e-6 } else { distance };
        let share = t * (1.0 / distance);
        let share = if share < 0.0 { 0.0 } else { share };
        let share = if share > 1.0 { 1.0 } else { share };
        *out = share * x + (1.0 - share) * base;
    }
}

/// `out` = `factor * row`.
#[inline(always)]
pub(super) fn scale(row: &[f32], factor: f32, out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(row) {
        *out = x * factor;
    }
}

/// Divides each element by that of another row.
#[inline(always)]
pub(super) fn divide(divisors: &[f32], out: &mut [f32]) {
    for (x, &divisor) in out.iter_mut().zip(divisors) {
        *x /= divisor;
    }
}

/// Divides each element by one number.
#[inline(always)]
pub(super) fn divide_by(divisor: f32, out: &mut [f32]) {
    // Weights often add up to 1, and divisions take long.
    if divisor == 1.0 {
        return;
    }
    for x in out {
        *x /= divisor;
    }
}

/// `out` = `base + factor * out`. A factor of 1 changes nothing.
#[inline(always)]
pub(super) fn add_base(base: &[f32], factor: f32, out: &mut [f32]) {
    for (x, &base) in out.iter_mut().zip(base) {
        *x = base + factor * *x;
    }
}

#[cfg(test)]
mod tests {
    use crate::kernel::Kernels;

    /// Rows of both signs with zeros, of every length around the widths of vectors.
    fn rows(len: usize) -> Vec<Vec<f32>> {
        let value = |i: usize, k: usize| match (i * 7 + k * 13) % 11 {
            0 => 0.0,
            1 => -0.0,
            m => (m as f32 - 6.3) * 1.1f32.powi((k % 40) as i32 - 20),
        };
        (0..3).map(|i| (0..len).map(|k| value(i, k)).collect()).collect()
    }

    #[test]
    fn all_paths_give_the_bits_of_a_plain_loop() {
        let weights = [0.3f32, -1.7, 0.9];
        for len in (0..70).chain([255, 4096]) {
            let rows = rows(len);
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            for kernels in Kernels::available() {
                let [mut sum, mut votes, mut shares, mut elected] =
                    [(); 4].map(|()| vec![9.0f32; len]);
                kernels.weighted_sum(&rows, &weights, &mut sum);
                let (mut by_rows, all) = (vec![9.0f32; len], weights.map(|w| vec![w; len]));
                kernels.weighted_rows(&rows, &all.each_ref().map(Vec::as_slice), &mut by_rows);
                assert_eq!(by_rows, sum);
                kernels.elected_sum(&rows, &weights, &mut votes, &mut shares, &mut elected);
                let (mut divided, mut halved) = (elected.clone(), sum.clone());
                kernels.divide(&shares, &mut divided);
                kernels.divide_by(2.5, &mut halved);
                let (mut merged, mut fused) = (sum.clone(), vec![9.0f32; len]);
                kernels.fused_sum(&rows, &weights, &mut fused);
                kernels.add_base(rows[0], 0.7, &mut merged);
                for k in 0..len {
                    let terms: Vec<f32> = (0..3).map(|i| weights[i] * rows[i][k]).collect();
                    let total = 0.0 + terms[0] + terms[1] + terms[2];
                    let sign = if total >= 0.0 { 1.0 } else { -1.0 };
                    let (mut part, mut share) = (0.0f32, 0.0f32);
                    for i in (0..3).filter(|&i| terms[i] * sign > 0.0) {
                        part += terms[i];
                        share += weights[i];
                    }
                    let share = if share == 0.0 { 1.0 } else { share };
                    let got =
                        [sum[k], votes[k], shares[k], elected[k], divided[k], halved[k], merged[k]];
                    let want = [
                        total,
                        total,
                        share,
                        part,
                        part / share,
                        total / 2.5,
                        rows[0][k] + 0.7 * total,
                    ];
                    assert_eq!(got.map(f32::to_bits), want.map(f32::to_bits), "{len} {k}");
                }
            }
        }
    }

    #[test]
    fn products_and_sums_of_any_number_of_rows_are_rounded_together() {
        let weights = [0.3f32, -1.7, 0.9, 1.1, 0.01];
        for (len, count) in
            [0, 1, 37, 256].into_iter().flat_map(|len| (0..=5).map(move |n| (len, n)))
        {
            let rows = (rows(len).into_iter().cycle().take(count)).collect::<Vec<_>>();
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            for kernels in Kernels::available() {
                // One row more or less than weights is none.
                for known in [count, count.saturating_sub(1), 5] {
                    let mut fused = vec![9.0f32; len];
                    kernels.fused_sum(&rows, &weights[..known], &mut fused);
                    for k in 0..len {
                        let terms = rows.iter().zip(&weights[..known]);
                        let sum = terms.fold(0.0f32, |sum, (row, &weight)| {
                            (f64::from(weight) * f64::from(row[k]) + f64::from(sum)) as f32
                        });
                        assert_eq!(fused[k].to_bits(), sum.to_bits(), "{len} {count} {known} {k}");
                    }
                }
            }
        }
    }

    #[test]
    fn division_by_one_and_by_others_is_division() {
        for kernels in Kernels::available() {
            for divisor in [1.0f32, -1.0, 3.0] {
                let mut row = [1.5f32, -0.0, f32::INFINITY, 7.3e-42];
                let want = row.map(|x| (x / divisor).to_bits());
                kernels.divide_by(divisor, &mut row);
                assert_eq!(row.map(f32::to_bits), want);
            }
        }
    }

    #[test]
    fn a_near_element_is_taken_and_a_far_one_moves_as_far_as_allowed() {
        let base = [1.0f32, 1.0, 1.0, 1.0, -0.5];
        let row = [1.0, 1.25, 3.0, 1.0 + 2e-7, -0.75];
        for kernels in Kernels::available() {
            let near = |t: f32| {
                let mut out = [9.0f32; 5];
                kernels.near(&base, &row, t, &mut out);
                out
            };
            assert_eq!(near(0.25), [1.0, 1.25, 1.25, row[3], -0.75]);
            assert_eq!(near(0.0), base);
            assert_eq!(near(-1.0), base);
            assert_eq!(near(9.0), row);
        }
    }
}
