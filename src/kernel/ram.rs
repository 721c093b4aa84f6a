//! RAM: what several task vectors change is averaged, what one alone changes is taken whole.

/// `counts` = how many rows are above `epsilon` in magnitude, in each column.
#[inline(always)]
pub(super) fn contributors(rows: &[&[f32]], epsilon: f32, counts: &mut [f32]) {
    counts.fill(0.0);
    for row in rows {
        for (count, &x) in counts.iter_mut().zip(*row) {
            *count += if x.abs() > epsilon { 1.0 } else { 0.0 };
        }
    }
}

/// How many elements of a row are above `epsilon`: together with other rows, and alone.
#[inline(always)]
pub(super) fn shared_and_alone(row: &[f32], epsilon: f32, counts: &[f32]) -> [u64; 2] {
    // In pieces, so that counts of 32 bits do.
    let count = |(row, counts): (&[f32], &[f32])| -> [u32; 2] {
        row.iter().zip(counts).fold([0, 0], |[shared, alone], (&x, &count)| {
            let here = x.abs() > epsilon;
            [shared + u32::from(here && count > 1.0), alone + u32::from(here && count == 1.0)]
        })
    };
    let pieces = row.chunks(1 << 20).zip(counts.chunks(1 << 20));
    pieces.map(count).fold([0, 0], |[shared, alone], [more, still]| {
        [shared + u64::from(more), alone + u64::from(still)]
    })
}

/// `out` = the sum of all elements above `epsilon`: divided by their number in the column, or, where it is one alone,
/// multiplied by its row's factor.
#[inline(always)]
pub(super) fn reinforced_sum(
    rows: &[&[f32]],
    epsilon: f32,
    factors: &[f32],
    counts: &[f32],
    out: &mut [f32],
) {
    out.fill(0.0);
    for (row, &factor) in rows.iter().zip(factors) {
        for ((sum, &x), &count) in out.iter_mut().zip(*row).zip(counts) {
            let part = if count > 1.0 { x / count } else { x * factor };
            *sum += if x.abs() > epsilon { part } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kernel::Kernels;

    #[test]
    fn all_paths_give_the_bits_of_a_plain_loop() {
        let some = [0.0f32, 1.5, -2.0, 1e-6, -0.25, 0.0, 3.0, -1e-5, -0.0, 0.5, 2.0];
        for len in (0..70).chain([4096]) {
            let row =
                |i: usize| -> Vec<f32> { (0..len).map(|k| some[(k * 5 + i * 3) % 11]).collect() };
            let rows = [row(0), row(1), row(2)];
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let (factors, epsilon) = ([1.0, 1.1, 0.9f32], 1e-5);
            for kernels in Kernels::available() {
                let [mut counts, mut out] = [(); 2].map(|()| vec![9.0f32; len]);
                kernels.contributors(&rows, epsilon, &mut counts);
                kernels.reinforced_sum(&rows, epsilon, &factors, &counts, &mut out);
                let above = |i: usize, k: usize| rows[i][k].abs() > epsilon;
                let number = |k: usize| (0..3).filter(|&i| above(i, k)).count();
                for k in 0..len {
                    assert_eq!(counts[k], number(k) as f32);
                    let part = |i: usize| match number(k) {
                        _ if !above(i, k) => 0.0,
                        1 => rows[i][k] * factors[i],
                        n => rows[i][k] / n as f32,
                    };
                    let sum = 0.0 + part(0) + part(1) + part(2);
                    assert_eq!(out[k].to_bits(), sum.to_bits(), "{k}");
                }
                for (i, row) in rows.iter().enumerate() {
                    let count = |one: bool| {
                        let fits = |k: &usize| above(i, *k) && (number(*k) == 1) == one;
                        (0..len).filter(fits).count() as u64
                    };
                    let counted = kernels.shared_and_alone(row, epsilon, &counts);
                    assert_eq!(counted, [count(false), count(true)]);
                }
            }
        }
    }
}
