//! Leaving out elements of a row by their magnitudes.

/// `out` = the values whose magnitudes, as bits, lie in `least..=most`; zero for the others.
#[inline(always)]
pub(super) fn keep_between(values: &[f32], (least, most): (u32, u32), out: &mut [f32]) {
    debug_assert!(least <= most, "nothing lies between {least} and {most}");
    let width = most.wrapping_sub(least);
    for (out, &value) in out.iter_mut().zip(values) {
        let key = value.to_bits() & 0x7fff_ffff;
        *out = if key.wrapping_sub(least) <= width { value } else { 0.0 };
    }
}

/// `out` = the values where `marks` is not zero; zero for the others.
#[inline(always)]
pub(super) fn keep_marked(marks: &[f32], values: &[f32], out: &mut [f32]) {
    for ((out, &value), &mark) in out.iter_mut().zip(values).zip(marks) {
        *out = if mark == 0.0 { 0.0 } else { value };
    }
}

/// How many magnitudes have these bits.
#[inline(always)]
pub(super) fn count_magnitude(values: &[f32], key: u32) -> u64 {
    // In pieces, so that counts of 32 bits do.
    let count = |piece: &[f32]| -> u32 {
        piece.iter().map(|value| u32::from(value.to_bits() & 0x7fff_ffff == key)).sum()
    };
    values.chunks(1 << 20).map(|piece| u64::from(count(piece))).sum()
}

/// Multiplies each element by one number.
#[inline(always)]
pub(super) fn multiply_by(factor: f32, out: &mut [f32]) {
    for x in out {
        *x *= factor;
    }
}

#[cfg(test)]
mod tests {
    use crate::kernel::Kernels;

    #[test]
    fn all_paths_give_the_bits_of_a_plain_loop() {
        let some = [0.0f32, -0.0, 1.0, -1.0, 0.75, -0.25, 1e-45, 3.0, f32::MAX];
        for len in (0..70).chain([4096, 5001]) {
            let row: Vec<f32> = (0..len).map(|k| some[k * 7 % 9] * [1.0, 0.5][k % 2]).collect();
            for kernels in Kernels::available() {
                for (least, most) in [(0, 0), (1, u32::MAX), (0x3e80_0000, 0x3f80_0000), (5, 5)] {
                    let mut kept = vec![9.0; len];
                    kernels.keep_between(&row, (least, most), &mut kept);
                    for (x, kept) in row.iter().zip(kept) {
                        let inside = (least..=most).contains(&x.abs().to_bits());
                        assert_eq!(kept.to_bits(), if inside { x.to_bits() } else { 0 });
                    }
                }
                let (marks, mut marked) =
                    (row.iter().rev().copied().collect::<Vec<_>>(), vec![9.0; len]);
                kernels.keep_marked(&marks, &row, &mut marked);
                for ((x, mark), marked) in row.iter().zip(marks).zip(marked) {
                    assert_eq!(marked.to_bits(), if mark == 0.0 { 0 } else { x.to_bits() });
                }
                let equal = row.iter().filter(|x| x.abs() == 0.5).count();
                assert_eq!(kernels.count_magnitude(&row, 0.5f32.to_bits()), equal as u64);
                let mut scaled = row.clone();
                kernels.multiply_by(-1.7, &mut scaled);
                for (x, scaled) in row.iter().zip(scaled) {
                    assert_eq!(scaled.to_bits(), (x * -1.7).to_bits());
                }
            }
        }
    }
}
