//! Eigenvectors of small symmetric matrices.

/// Eigenvectors, as columns, and eigenvalues of a symmetric matrix, by Jacobi's rotations.
pub(super) fn eigen(matrix: &[Vec<f64>]) -> (Vec<Vec<f64>>, Vec<f64>) {
    let n = matrix.len();
    let mut a = matrix.to_vec();
    let mut v: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _sweep in 0..60 {
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j].powi(2)).sum();
        let all: f64 = (0..n).map(|i| a[i][i].powi(2)).sum();
        if off <= 1e-28 * all {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for row in &mut a {
                    let (x, y) = (row[p], row[q]);
                    (row[p], row[q]) = (c * x - s * y, s * x + c * y);
                }
                let (above, below) = a.split_at_mut(q);
                for (x, y) in above[p].iter_mut().zip(&mut below[0]) {
                    (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                }
                for row in &mut v {
                    let (x, y) = (row[p], row[q]);
                    (row[p], row[q]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    (v, (0..n).map(|i| a[i][i]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_and_values_make_the_matrix_again() {
        let matrix: Vec<Vec<f64>> = (0..6)
            .map(|i| {
                (0..6).map(|j| 1.0 / f64::from(1 + i + j) + f64::from(u8::from(i == j))).collect()
            })
            .collect();
        let (v, values) = eigen(&matrix);
        for i in 0..6usize {
            for j in 0..6usize {
                let made: f64 = (0..6).map(|k| v[i][k] * values[k] * v[j][k]).sum();
                assert!((made - matrix[i][j]).abs() < 1e-12, "{i} {j} {made}");
                let unit: f64 = (0..6).map(|k| v[k][i] * v[k][j]).sum();
                assert!((unit - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
    }
}
