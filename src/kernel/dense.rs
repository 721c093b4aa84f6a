//! Dense symmetric systems in doubles: products with a symmetric matrix of which only the lower triangle is looked at,
//! Cholesky factors, and substitution.
//!
//! Blocks on the diagonal are `fixed`'s; all products are here, since libraries choose fused and wider instructions by
//! CPU, and so other bits. Each dot product is four sums of every fourth product, added up in pairs; which elements one
//! spans follows from their places in the matrix alone. So the results are the same bits however the work is cut and
//! dealt out, as long as cuts lie at multiples of [`GROUP`] rows.
//!
//! Lower triangles are packed by rows: row i has i + 1 elements, from i (i + 1) / 2 on.

use super::fixed::{self, Fixed};

/// Rows that are worked on together.
pub const GROUP: usize = 4;
/// Elements of rows that stay in the cache while they meet others.
const DEPTH: usize = 512;
/// Rows of a factor that are substituted together.
const BLOCK: usize = 32;

/// The place of row `i` in a packed triangle.
#[inline(always)]
pub const fn packed(i: usize) -> usize {
    i * (i + 1) / 2
}

/// Numbers that dot products are made of.
trait Number: Copy {
    /// The number as a double.
    fn wide(self) -> f64;
}

impl Number for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Number for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
}

#[inline(always)]
fn add_products<T: Number>(sums: &mut [f64; 4], row: &[f64; 4], column: &[T; 4]) {
    for ((sum, x), y) in sums.iter_mut().zip(row).zip(column) {
        *sum += x * y.wide();
    }
}

/// Dot products of four rows with two, all of the same length.
#[inline(always)]
fn dots<T: Number>(rows: [&[f64]; 4], columns: [&[T]; 2]) -> [[f64; 2]; 4] {
    let len = columns[0].len();
    let ((a, a_end), (b, b_end)) = (rows[0][..len].as_chunks(), rows[1][..len].as_chunks());
    let ((c, c_end), (d, d_end)) = (rows[2][..len].as_chunks(), rows[3][..len].as_chunks());
    let ((x, x_end), (y, y_end)) = (columns[0].as_chunks(), columns[1][..len].as_chunks());
    let mut sums = [[[0.0; 4]; 2]; 4];
    for (((a, b), (c, d)), (x, y)) in a.iter().zip(b).zip(c.iter().zip(d)).zip(x.iter().zip(y)) {
        for (sums, row) in sums.iter_mut().zip([a, b, c, d]) {
            add_products(&mut sums[0], row, x);
            add_products(&mut sums[1], row, y);
        }
    }
    for (sums, row) in sums.iter_mut().zip([a_end, b_end, c_end, d_end]) {
        for (sums, column) in sums.iter_mut().zip([x_end, y_end]) {
            for ((sum, x), y) in sums.iter_mut().zip(row).zip(column) {
                *sum += x * y.wide();
            }
        }
    }
    let mut all = [[0.0; 2]; 4];
    for (all, sums) in all.iter_mut().zip(&sums) {
        for (all, sums) in all.iter_mut().zip(sums) {
            *all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        }
    }
    all
}

/// Adds multiples of four rows to another.
#[inline(always)]
fn add_rows(rows: [&[f64]; 4], factors: [f64; 4], out: &mut [f64]) {
    let len = out.len();
    let (ab, cd) =
        (rows[0][..len].iter().zip(&rows[1][..len]), rows[2][..len].iter().zip(&rows[3][..len]));
    for ((out, (a, b)), (c, d)) in out.iter_mut().zip(ab).zip(cd) {
        *out += (a * factors[0] + b * factors[1]) + (c * factors[2] + d * factors[3]);
    }
}

/// Four runs of so many elements.
#[inline(always)]
fn four(rows: &[f64], begins: [usize; 4], len: usize) -> [&[f64]; 4] {
    let [a, b, c, d] = begins;
    [&rows[a..a + len], &rows[b..b + len], &rows[c..c + len], &rows[d..d + len]]
}

/// Where rows `at..` of a full matrix begin, of whose `count` rows the last one stands for all behind it.
#[inline(always)]
fn full_begins(at: usize, count: usize, width: usize) -> [usize; 4] {
    let last = count - 1;
    [
        at.min(last) * width,
        (at + 1).min(last) * width,
        (at + 2).min(last) * width,
        (at + 3).min(last) * width,
    ]
}

/// The same in a packed triangle that begins with row `first`.
#[inline(always)]
fn packed_begins(at: usize, first: usize, end: usize) -> [usize; 4] {
    let (before, last) = (packed(first), end - 1);
    [
        packed(at.min(last)) - before,
        packed((at + 1).min(last)) - before,
        packed((at + 2).min(last)) - before,
        packed((at + 3).min(last)) - before,
    ]
}

/// Adds to `sums` what rows `first..` of a symmetric matrix and their mirror image give with each of `vectors`: both are
/// rows of `width` elements. Of row i of the matrix only the elements up to i are looked at. `first` is a multiple of
/// [`GROUP`].
#[inline(always)]
pub(super) fn add_symmetric(
    rows: &[f64],
    first: usize,
    width: usize,
    vectors: &[f32],
    sums: &mut [f64],
) {
    let count = rows.len() / width;
    for at in (0..count).step_by(GROUP) {
        let group = GROUP.min(count - at);
        let row = first + at;
        let before = four(rows, full_begins(at, count, width), row);
        for (vectors, sums) in vectors.chunks(2 * width).zip(sums.chunks_mut(2 * width)) {
            let second = vectors.len() - width;
            let dots = dots(before, [&vectors[..row], &vectors[second..second + row]]);
            for (t, (vector, sums)) in
                vectors.chunks_exact(width).zip(sums.chunks_exact_mut(width)).enumerate()
            {
                let mut factors = [0.0; 4];
                for j in 0..group {
                    let x = f64::from(vector[row + j]);
                    let own = &rows[(at + j) * width + row..][..=j];
                    let mut sum = dots[j][t];
                    for (k, a) in own.iter().enumerate() {
                        sum += a * f64::from(vector[row + k]);
                    }
                    for (k, a) in own[..j].iter().enumerate() {
                        sums[row + k] += a * x;
                    }
                    sums[row + j] += sum;
                    factors[j] = x;
                }
                add_rows(before, factors, &mut sums[..row]);
            }
        }
    }
}

/// Subtracts from elements `begin..end` of packed rows `first..` their products with the rows of the panel `begin..end`,
/// as far as these are factors already: up to `begin`. `rows` may be of the panel itself.
#[inline(always)]
fn reduce(
    rows: &mut [f64],
    (first, last): (usize, usize),
    panel: &[f64],
    (begin, end): (usize, usize),
) {
    for from in (0..begin).step_by(DEPTH) {
        let to = begin.min(from + DEPTH);
        for at in (first..last).step_by(GROUP) {
            let group = GROUP.min(last - at);
            let mut begins = packed_begins(at, first, last);
            begins[0] += from;
            begins[1] += from;
            begins[2] += from;
            begins[3] += from;
            for j in (begin..end).step_by(2) {
                let [x, y] = [j, (j + 1).min(end - 1)].map(packed);
                let before = packed(begin) - from;
                let columns =
                    [&panel[x - before..][..to - from], &panel[y - before..][..to - from]];
                let dots = dots(four(rows, begins, to - from), columns);
                for (i, dots) in dots.iter().enumerate().take(group) {
                    // Above the diagonal there is nothing.
                    let most = (at + i + 1).min(end);
                    let row = packed(at + i) - packed(first);
                    for (j, dot) in (j..most).zip(dots) {
                        rows[row + j] -= dot;
                    }
                }
            }
        }
    }
}

/// Makes the packed rows `begin..end` of a matrix its Cholesky factor's, whose elements before `begin` they hold already.
/// Returns the first row whose pivot is not above `least` of it.
#[inline(always)]
pub(super) fn factor_panel(
    panel: &mut [f64],
    begin: usize,
    end: usize,
    least: &[f64],
) -> Option<usize> {
    // Its own rows are both sides of the products.
    let factors = panel.to_vec();
    reduce(panel, (begin, end), &factors, (begin, end));
    let mut block = diagonal(panel, begin, (begin, end));
    let size = end - begin;
    let failed = fixed::factor(&mut block, size).err();
    for (i, row) in block.chunks_exact(size).enumerate() {
        let pivot = row[i].0 * row[i].0;
        if failed == Some(i) || pivot <= least[begin + i] {
            return Some(begin + i);
        }
        let own = packed(begin + i) - packed(begin) + begin;
        for (to, from) in panel[own..].iter_mut().zip(&row[..=i]) {
            *to = from.0;
        }
    }
    None
}

/// Makes elements `begin..end` of the packed rows `first..last`, which lie below the panel, those of the factor.
#[inline(always)]
pub(super) fn factor_rows(
    rows: &mut [f64],
    (first, last): (usize, usize),
    panel: &[f64],
    (begin, end): (usize, usize),
) {
    reduce(rows, (first, last), panel, (begin, end));
    let size = end - begin;
    let places = (first..last).map(|i| packed(i) - packed(first) + begin);
    let mut found: Vec<Fixed> = Vec::with_capacity((last - first) * size);
    for at in places.clone() {
        found.extend(rows[at..at + size].iter().map(|x| Fixed(*x)));
    }
    fixed::solve(&diagonal(panel, begin, (begin, end)), size, &mut found);
    for (at, found) in places.zip(found.chunks_exact(size)) {
        for (to, from) in rows[at..at + size].iter_mut().zip(found) {
            *to = from.0;
        }
    }
}

/// The block on the diagonal of packed rows that begin with row `first`, zeros above it.
fn diagonal(rows: &[f64], first: usize, (begin, end): (usize, usize)) -> Vec<Fixed> {
    let size = end - begin;
    let mut block = vec![Fixed(0.0); size * size];
    for (i, to) in block.chunks_exact_mut(size).enumerate() {
        let own = packed(begin + i) - packed(first) + begin;
        for (to, from) in to.iter_mut().zip(&rows[own..=own + i]) {
            *to = Fixed(*from);
        }
    }
    block
}

/// Solves for each of `sums`, rows of `width` elements, with the packed factor of the matrix.
#[inline(always)]
pub(super) fn substitute(factor: &[f64], width: usize, sums: &mut [f64]) {
    let mut values = Vec::with_capacity(sums.len() / width.max(1) * BLOCK);
    for begin in (0..width).step_by(BLOCK) {
        let end = width.min(begin + BLOCK);
        let size = end - begin;
        for at in (begin..end).step_by(GROUP) {
            let group = GROUP.min(end - at);
            let rows = four(factor, packed_begins(at, 0, end), begin);
            for sums in sums.chunks_mut(2 * width) {
                let second = sums.len() - width;
                let dots = dots(rows, [&sums[..begin], &sums[second..second + begin]]);
                for (t, sums) in sums.chunks_exact_mut(width).enumerate() {
                    for (sum, dots) in sums[at..at + group].iter_mut().zip(&dots) {
                        *sum -= dots[t];
                    }
                }
            }
        }
        let block = diagonal(factor, 0, (begin, end));
        gather(sums, width, (begin, end), &mut values);
        fixed::solve(&block, size, &mut values);
        scatter(&values, sums, width, (begin, end));
    }
    for begin in (0..width).step_by(BLOCK).rev() {
        let end = width.min(begin + BLOCK);
        let size = end - begin;
        let block = diagonal(factor, 0, (begin, end));
        gather(sums, width, (begin, end), &mut values);
        fixed::solve_transposed(&block, size, &mut values);
        scatter(&values, sums, width, (begin, end));
        for at in (begin..end).step_by(GROUP) {
            let group = GROUP.min(end - at);
            let rows = four(factor, packed_begins(at, 0, end), begin);
            for sums in sums.chunks_exact_mut(width) {
                let mut factors = [0.0; 4];
                for (factor, x) in factors.iter_mut().zip(&sums[at..at + group]) {
                    *factor = -x;
                }
                add_rows(rows, factors, &mut sums[..begin]);
            }
        }
    }
}

/// Copies elements `begin..end` of each row of `width` elements to `values`.
#[inline(always)]
fn gather(rows: &[f64], width: usize, (begin, end): (usize, usize), values: &mut Vec<Fixed>) {
    values.clear();
    for row in rows.chunks_exact(width) {
        values.extend(row[begin..end].iter().map(|x| Fixed(*x)));
    }
}

/// Copies them back.
#[inline(always)]
fn scatter(values: &[Fixed], rows: &mut [f64], width: usize, (begin, end): (usize, usize)) {
    for (row, values) in rows.chunks_exact_mut(width).zip(values.chunks_exact(end - begin)) {
        for (to, from) in row[begin..end].iter_mut().zip(values) {
            *to = from.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f64 / f64::from(1 << 23) - 1.0
        }
    }

    /// A positive definite matrix, full, and its lower triangle, packed.
    fn matrix(width: usize, random: &mut Random) -> (Vec<f64>, Vec<f64>) {
        let x: Vec<f64> = (0..2 * width * width).map(|_| random.next()).collect();
        let mut full = vec![0.0; width * width];
        for (i, j) in (0..width).flat_map(|i| (0..width).map(move |j| (i, j))) {
            for row in x.chunks_exact(width) {
                full[i * width + j] += row[i] * row[j];
            }
        }
        let lower = (0..width).flat_map(|i| full[i * width..=i * width + i].to_vec()).collect();
        (full, lower)
    }

    #[test]
    fn symmetric_products_look_at_the_lower_triangle_only_and_may_be_cut() {
        let mut random = Random(1);
        for (width, outputs) in [(1, 1), (3, 2), (4, 3), (37, 5), (64, 4)] {
            let (full, _) = matrix(width, &mut random);
            let mut lower = full.clone();
            for (i, row) in lower.chunks_exact_mut(width).enumerate() {
                row[i + 1..].fill(f64::NAN);
            }
            let vectors: Vec<f32> = (0..outputs * width).map(|_| random.next() as f32).collect();
            let mut bits: Option<Vec<u64>> = None;
            for kernels in Kernels::available() {
                for (rows, block) in [(4, 1), (8, 2), (width.next_multiple_of(4), outputs)] {
                    let mut sums = vec![0.0; outputs * width];
                    for (k, part) in lower.chunks(rows * width).enumerate() {
                        for (v, s) in
                            vectors.chunks(block * width).zip(sums.chunks_mut(block * width))
                        {
                            kernels.add_symmetric(part, k * rows, width, v, s);
                        }
                    }
                    for (o, sums) in sums.chunks_exact(width).enumerate() {
                        for (i, sum) in sums.iter().enumerate() {
                            let exact: f64 = (0..width)
                                .map(|j| full[i * width + j] * f64::from(vectors[o * width + j]))
                                .sum();
                            assert!((exact - sum).abs() < 1e-11 * width as f64, "{width} {i}");
                        }
                    }
                    let found: Vec<u64> = sums.iter().map(|x| x.to_bits()).collect();
                    assert_eq!(*bits.get_or_insert_with(|| found.clone()), found, "{width}");
                }
            }
        }
    }

    #[test]
    fn factors_multiply_to_the_matrix_and_solve_it_the_same_bits_for_any_cut() {
        let mut random = Random(2);
        for width in [1, 2, 5, 64, 131] {
            let (full, lower) = matrix(width, &mut random);
            let sums: Vec<f64> = (0..3 * width).map(|_| random.next()).collect();
            let mut bits: Option<(Vec<u64>, Vec<u64>)> = None;
            for kernels in Kernels::available() {
                for rows in [4, 12, 200] {
                    let mut factor = lower.clone();
                    for begin in (0..width).step_by(16) {
                        let end = width.min(begin + 16);
                        let (head, tail) = factor.split_at_mut(packed(end));
                        let panel = &mut head[packed(begin)..];
                        assert_eq!(
                            kernels.factor_panel(panel, begin, end, &vec![0.0; width]),
                            None
                        );
                        let mut tail = tail;
                        for first in (end..width).step_by(rows) {
                            let last = width.min(first + rows);
                            let (now, rest) = tail.split_at_mut(packed(last) - packed(first));
                            kernels.factor_rows(now, (first, last), panel, (begin, end));
                            tail = rest;
                        }
                    }
                    let mut solved = sums.clone();
                    for part in solved.chunks_mut(rows.min(3) * width) {
                        kernels.substitute(&factor, width, part);
                    }
                    for i in 0..width {
                        for j in 0..=i {
                            let row = |i: usize| &factor[packed(i)..=packed(i) + j.min(i)];
                            let product: f64 = row(i).iter().zip(row(j)).map(|(x, y)| x * y).sum();
                            assert!((product - full[i * width + j]).abs() < 1e-10 * width as f64);
                        }
                    }
                    for (solved, sums) in solved.chunks_exact(width).zip(sums.chunks_exact(width)) {
                        for i in 0..width {
                            let row = &full[i * width..][..width];
                            let back: f64 = row.iter().zip(solved).map(|(x, y)| x * y).sum();
                            assert!((back - sums[i]).abs() < 1e-8, "{width} {i}");
                        }
                    }
                    let found =
                        [factor, solved].map(|all| all.iter().map(|x| x.to_bits()).collect());
                    let [factor, solved]: [Vec<u64>; 2] = found;
                    let first = bits.get_or_insert_with(|| (factor.clone(), solved.clone()));
                    assert_eq!(*first, (factor, solved), "{width} {rows}");
                }
            }
        }
    }

    #[test]
    fn a_pivot_that_is_too_small_or_no_number_is_named() {
        let kernels = Kernels::available().last().unwrap();
        let factor = |lower: &[f64]| kernels.factor_panel(&mut lower.to_vec(), 0, 3, &[1e-9; 3]);
        assert_eq!(factor(&[1.0, 1.0, 2.0, 0.0, 0.0, 1.0]), None);
        assert_eq!(factor(&[1.0, 1.0, 1.0, 0.0, 0.0, 1.0]), Some(1));
        assert_eq!(factor(&[1.0, 0.0, 1.0, 0.0, 0.0, f64::NAN]), Some(2));
    }
}
