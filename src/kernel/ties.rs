//! TIES as its authors compute it: sums of trimmed task vectors, and means of what agrees with their signs.

/// How many values are above zero, and how many below.
#[inline(always)]
pub(super) fn signs(values: &[f32]) -> [u64; 2] {
    // In pieces, so that counts of 32 bits do.
    let count = |piece: &[f32]| -> [u32; 2] {
        piece.iter().fold([0, 0], |[above, below], &value| {
            [above + u32::from(value > 0.0), below + u32::from(value < 0.0)]
        })
    };
    values.chunks(1 << 20).map(count).fold([0, 0], |[above, below], [more, less]| {
        [above + u64::from(more), below + u64::from(less)]
    })
}

/// `out` = in each column, the sum of those elements that have the sign of `votes`, or of `tie` where that is zero (and a
/// negative sign if both are); `counts` = their number, at least 1.
#[inline(always)]
pub(super) fn disjoint_sum(
    rows: &[&[f32]],
    votes: &[f32],
    tie: f32,
    counts: &mut [f32],
    out: &mut [f32],
) {
    out.fill(0.0);
    counts.fill(0.0);
    for row in rows {
        for (((sum, count), &x), &vote) in out.iter_mut().zip(&mut *counts).zip(*row).zip(votes) {
            let sign = if vote == 0.0 { tie } else { vote };
            let agrees = if sign > 0.0 { x > 0.0 } else { x < 0.0 };
            *sum += if agrees { x } else { 0.0 };
            *count += if agrees { 1.0 } else { 0.0 };
        }
    }
    for count in counts {
        *count = if *count == 0.0 { 1.0 } else { *count };
    }
}

/// The same sum, each element multiplied by its row's weight.
#[inline(always)]
pub(super) fn disjoint_weighted(
    rows: &[&[f32]],
    votes: &[f32],
    tie: f32,
    weights: &[f32],
    out: &mut [f32],
) {
    out.fill(0.0);
    for (row, &weight) in rows.iter().zip(weights) {
        for ((sum, &x), &vote) in out.iter_mut().zip(*row).zip(votes) {
            let sign = if vote == 0.0 { tie } else { vote };
            let agrees = if sign > 0.0 { x > 0.0 } else { x < 0.0 };
            *sum += weight * if agrees { x } else { 0.0 };
        }
    }
}

/// The same with the element of the largest magnitude instead of the sum; zero where `votes` and `tie` are.
#[inline(always)]
pub(super) fn disjoint_max(rows: &[&[f32]], votes: &[f32], tie: f32, out: &mut [f32]) {
    out.fill(0.0);
    for row in rows {
        for ((most, &x), &vote) in out.iter_mut().zip(*row).zip(votes) {
            let sign = if vote == 0.0 { tie } else { vote };
            let agreeing = if sign > 0.0 { x } else { -x };
            *most = if agreeing > *most { agreeing } else { *most };
        }
    }
    for (most, &vote) in out.iter_mut().zip(votes) {
        let sign = if vote == 0.0 { tie } else { vote };
        let signed = if sign > 0.0 { *most } else { -*most };
        *most = if sign == 0.0 { 0.0 } else { signed };
    }
}

#[cfg(test)]
mod tests {
    use crate::kernel::Kernels;

    #[test]
    fn all_paths_give_the_bits_of_a_plain_loop() {
        let some = [0.0f32, 1.5, -2.0, 0.25, -0.25, 0.0, 3.0, -1.0, -0.0, 0.5, 2.0];
        for len in (0..70).chain([4096]) {
            let row =
                |i: usize| -> Vec<f32> { (0..len).map(|k| some[(k * 5 + i * 3) % 11]).collect() };
            let rows = [row(0), row(1), row(2)];
            let votes: Vec<f32> = (0..len).map(|k| rows[0][k] + rows[1][k] + rows[2][k]).collect();
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            for (kernels, tie) in
                Kernels::available().flat_map(|k| [-1.0, 0.0, 1.0].map(|t| (k, t)))
            {
                let [mut counts, mut sums, mut most] = [(); 3].map(|()| vec![9.0f32; len]);
                kernels.disjoint_sum(&rows, &votes, tie, &mut counts, &mut sums);
                kernels.disjoint_max(&rows, &votes, tie, &mut most);
                let (weights, mut weighted) = ([0.5f32, -1.25, 3.0], vec![9.0f32; len]);
                kernels.disjoint_weighted(&rows, &votes, tie, &weights, &mut weighted);
                let above = votes.iter().filter(|v| **v > 0.0).count() as u64;
                let below = votes.iter().filter(|v| **v < 0.0).count() as u64;
                assert_eq!(kernels.signs(&votes), [above, below]);
                for k in 0..len {
                    let sign = if votes[k] == 0.0 { tie } else { votes[k].signum() };
                    let agree: Vec<f32> = (rows.iter().map(|row| row[k]))
                        .filter(|&x| if sign > 0.0 { x > 0.0 } else { x < 0.0 })
                        .collect();
                    assert_eq!(sums[k], agree.iter().sum::<f32>());
                    assert_eq!(counts[k], agree.len().max(1) as f32);
                    let terms = rows.iter().zip(weights).map(|(row, weight)| (row[k], weight));
                    let terms = terms.filter(|(x, _)| agree.contains(x));
                    assert_eq!(weighted[k], terms.map(|(x, weight)| weight * x).sum::<f32>());
                    let largest = agree.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    assert_eq!(most[k], largest * sign, "{k} {tie}");
                }
            }
        }
    }
}
