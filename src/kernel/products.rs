//! Products of rows, summed in doubles in an order of their own, the same on every path.

/// Partial sums side by side: enough for two 512-bit registers, so that additions do not wait for each other.
const LANES: usize = 16;

/// The sum of x_k y_k. Each product is exact; element k goes to partial sum k mod 16, and the partial sums are
/// added up at the end, in order.
#[inline(always)]
pub(super) fn product_sum(x: &[f32], y: &[f32]) -> f64 {
    let mut sums = [0f64; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for k in 0..LANES {
            sums[k] += f64::from(x[k]) * f64::from(y[k]);
        }
    }
    for (sum, (&x, &y)) in sums.iter_mut().zip(rest.0.iter().zip(rest.1)) {
        *sum += f64::from(x) * f64::from(y);
    }
    sums.iter().sum()
}

/// The same for x with itself, x with y and y with itself, in one go.
#[inline(always)]
pub(super) fn product_sums(x: &[f32], y: &[f32]) -> [f64; 3] {
    let mut sums = [[0f64; LANES]; 3];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for k in 0..LANES {
            let (x, y) = (f64::from(x[k]), f64::from(y[k]));
            sums[0][k] += x * x;
            sums[1][k] += x * y;
            sums[2][k] += y * y;
        }
    }
    for (k, (&x, &y)) in rest.0.iter().zip(rest.1).enumerate() {
        let (x, y) = (f64::from(x), f64::from(y));
        sums[0][k] += x * x;
        sums[1][k] += x * y;
        sums[2][k] += y * y;
    }
    sums.map(|sums| sums.iter().sum())
}

/// The sums of products down the columns of two matrices of rows of `sums.len()`, from top to bottom.
#[inline(always)]
pub(super) fn column_products(x: &[f32], y: &[f32], sums: &mut [f64]) {
    sums.fill(0.0);
    let width = sums.len().max(1);
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(width)) {
        for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
            *sum += f64::from(x) * f64::from(y);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kernel::Kernels;

    fn row(len: usize, seed: u64) -> Vec<f32> {
        let special = [0.0, -0.0, 1e-45, -1e-39, 3e38, -2.5, 0.1];
        let mut x = seed + 7;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let plain = (x >> 40) as f32 / 3e7 - 0.3;
            if x >> 61 == 0 { special[(x >> 33) as usize % special.len()] } else { plain }
        };
        (0..len).map(|_| next()).collect()
    }

    /// The definition, element by element.
    fn plain(x: &[f32], y: &[f32]) -> f64 {
        let mut sums = [0f64; 16];
        for (k, (&x, &y)) in x.iter().zip(y).enumerate() {
            sums[k % 16] += f64::from(x) * f64::from(y);
        }
        sums.iter().sum()
    }

    #[test]
    fn every_path_gives_the_bits_of_the_definition_on_every_length() {
        for len in (0..70).chain([255, 4096, 5001]) {
            let (x, y) = (row(len, 1), row(len, 2));
            let expected = [plain(&x, &x), plain(&x, &y), plain(&y, &y)].map(f64::to_bits);
            for kernels in Kernels::available() {
                let got = kernels.product_sums(&x, &y).map(f64::to_bits);
                assert_eq!(got, expected, "{kernels:?} {len}");
                assert_eq!(kernels.product_sum(&x, &y).to_bits(), expected[1], "{kernels:?} {len}");
            }
        }
    }

    #[test]
    fn columns_are_summed_from_top_to_bottom() {
        for (height, width) in [(1, 1), (3, 1), (1, 40), (7, 33), (0, 5)] {
            let (x, y) = (row(height * width, 3), row(height * width, 4));
            let down = |c: usize| {
                let terms =
                    (0..height).map(|r| f64::from(x[r * width + c]) * f64::from(y[r * width + c]));
                terms.fold(0.0, |sum, term| sum + term)
            };
            let expected: Vec<u64> = (0..width).map(|c| down(c).to_bits()).collect();
            for kernels in Kernels::available() {
                let mut sums = vec![9.0; width];
                kernels.column_products(&x, &y, &mut sums);
                let got: Vec<u64> = sums.iter().map(|sum| sum.to_bits()).collect();
                assert_eq!(got, expected, "{kernels:?} {height} {width}");
            }
        }
    }
}
