use super::*;
use crate::method::{Values, run_in_memory};

/// What the pass finds in one block: unified task vector, values where masks have one, and sums.
fn unified(base: &[f32], rows: &[&[f32]]) -> (Vec<f32>, Vec<Vec<f32>>, Vec<f64>) {
    let (n, len) = (rows.len(), base.len());
    let (mut out, mut shares, mut sums) = (vec![9.0; len], vec![9.0; n * len], vec![9.0; 2 * n]);
    let block = Block { tensor: 0, first: 0, base, rows, weights: &[] };
    let (kernels, elements) = (crate::kernel::select().unwrap(), len as u64);
    let stage = Unify { kernels, elements };
    Stage::add_shares(&stage, &mut Unifying::default(), &block, &mut out, &mut shares, &mut sums);
    (out, shares.chunks(len.max(1)).map(<[f32]>::to_vec).collect(), sums)
}

fn masks(shares: &[Vec<f32>]) -> Vec<Vec<bool>> {
    shares.iter().map(|row| row.iter().map(|share| !share.is_nan()).collect()).collect()
}

#[test]
fn the_largest_of_those_that_agree_with_the_sum_is_elected() {
    let base = [10.0; 6];
    let rows: [&[f32]; 3] = [
        &[11.0, 9.0, 10.0, 12.0, 11.0, 10.0],
        &[13.0, 8.0, 10.0, 10.0, 9.0, 10.0],
        &[9.0, 12.5, 10.0, 6.0, 10.0, 9.5],
    ];
    let (out, shares, sums) = unified(&base, &rows);
    // Sums 3, -0.5, 0, -2, 0 (which is negative), -0.5.
    assert_eq!(out, [3.0, -2.0, 0.0, -4.0, -1.0, -0.5]);
    assert_eq!(
        masks(&shares),
        [
            [true, true, false, false, false, false],
            [true, true, false, false, true, false],
            [false, false, false, true, false, true]
        ]
    );
    assert_eq!((shares[0][0], shares[0][1], shares[1][0]), (13.0, 8.0, 13.0));
    assert_eq!(
        sums,
        [1.0 + 1.0 + 2.0 + 1.0, 5.0, 3.0 + 2.0 + 1.0, 6.0, 1.0 + 2.5 + 4.0 + 0.5, 4.5]
    );
}

#[test]
fn opposite_experts_go_negative_and_none_is_left_without_a_mask_for_what_moved() {
    let (out, shares, sums) = unified(&[0.0, 1.0], &[&[2.0, 1.0], &[-2.0, 1.0]]);
    assert_eq!(out, [-2.0, 0.0]);
    assert_eq!(masks(&shares), [[false, false], [true, false]]);
    assert_eq!(sums, [2.0, 0.0, 2.0, 2.0]);
}

#[test]
fn the_same_experts_come_back_to_the_bit() {
    // A difference that no f32 holds, a subnormal one, zeros of both signs, the largest numbers.
    let base = [1.0, 1e30, 0.0, -0.0, 0.0, -0.0, 3.4e38, 0.1];
    let expert = [1e-10f32, 1e-30, -0.0, 0.0, 1e-45, -0.0, -3.4e38, -0.3];
    for n in [1, 3] {
        let rows = vec![&expert[..]; n];
        let (_, shares, sums) = unified(&base, &rows);
        for (row, sums) in shares.iter().zip(sums.chunks(2)) {
            assert_eq!(sums[0], sums[1], "so lambda is 1");
            let unit = UnitView::array("w", 8, Values::new(1));
            let (made, _) = run_in_memory(&Rebuilt { lambda: 1.0 }, &unit, &base, &[row]).unwrap();
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&made), bits(&expert), "{n}");
        }
    }
}

#[test]
fn a_value_that_counts_as_the_base_has_not_moved() {
    let (out, shares, sums) = unified(&[f32::NAN, 1.0], &[&[f32::NAN, 2.0], &[f32::NAN, 1.0]]);
    assert_eq!(out, [0.0, 1.0]);
    assert_eq!(masks(&shares), [[false, true], [false, false]]);
    assert_eq!(sums, [1.0, 1.0, 0.0, 0.0]);
}
