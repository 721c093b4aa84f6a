//! Against the authors' program, written down once more as plain loops over whole arrays.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Combine, Ties};
use crate::kernel::Kernels;
use crate::method::{BLOCK, Method, UnitView, Values, run_in_memory};
use crate::testing::parts::{self, Run, bits, tied};

fn ties(density: f64, combine: Combine) -> Ties {
    Ties { kernels: Kernels::available().last().unwrap(), density, combine }
}

fn unit(experts: usize, elements: usize) -> Arc<UnitView> {
    UnitView::array("w", elements as u64, Values::new(experts).with("lambda", 0.5))
}

/// `merge_utils.py`: `topk_values_mask`, `resolve_sign`, `disjoint_merge`.
fn reference(taus: &[Vec<f32>], density: f64, combine: Combine) -> Vec<f32> {
    let d = taus[0].len();
    let trimmed: Vec<Vec<f32>> = (taus.iter())
        .map(|tau| {
            let mut sorted: Vec<f32> = tau.iter().map(|x| x.abs()).collect();
            sorted.sort_by(f32::total_cmp);
            let k = d - (d as f64 * density) as usize;
            // The authors' kthvalue counts from 1, and fails at 0, where everything is to be kept.
            let threshold = if k == 0 { 0.0 } else { sorted[k - 1] };
            tau.iter().map(|&x| if x.abs() >= threshold { x } else { 0.0 }).collect()
        })
        .collect();
    let sign = |x: f32| if x == 0.0 { 0.0 } else { x.signum() };
    let sums: Vec<f32> =
        (0..d).map(|e| trimmed.iter().fold(0.0f32, |sum, row| sum + row[e])).collect();
    let majority = sign(sums.iter().map(|&sum| sign(sum) as i64).sum::<i64>() as f32);
    (0..d)
        .map(|e| {
            let elected = if sums[e] == 0.0 { majority } else { sign(sums[e]) };
            let kept = trimmed.iter().map(|row| row[e]);
            let kept: Vec<f32> =
                kept.filter(|&x| if elected > 0.0 { x > 0.0 } else { x < 0.0 }).collect();
            let sum = kept.iter().fold(0.0f32, |sum, x| sum + x);
            match combine {
                Combine::Mean => sum / kept.len().max(1) as f32,
                Combine::Sum | Combine::Each => sum,
                Combine::Max => kept.iter().fold(0.0f32, |most, x| most.max(x.abs())) * elected,
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn it_is_the_authors_program_however_it_is_run(
        elements in prop_oneof![1usize..300, Just(70_001usize)],
        experts in 1usize..5,
        density in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
        combine in prop::sample::select(vec![Combine::Mean, Combine::Sum, Combine::Max]),
        cuts in prop::collection::vec(1usize..=BLOCK, 1..6),
        workers in 1usize..4,
        at_hand in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let cuts = if elements > 300 { vec![BLOCK, 4001] } else { cuts };
        let taus = tied(experts, elements, seed);
        let delta = reference(&taus, density, combine);
        let expected: Vec<f32> = delta.iter().map(|delta| 1.0 + 0.5 * delta).collect();
        let (method, unit, base) = (ties(density, combine), unit(experts, elements), vec![1.0; elements]);
        let run = Run { cuts, workers, at_hand };
        let (got, _) = parts::merge(&method, &unit, &base, &taus, &run).unwrap();
        prop_assert_eq!(bits(&got), bits(&expected));
    }
}

fn merged(density: f64, combine: Combine, rows: &[&[f32]]) -> Vec<f32> {
    let d = rows[0].len();
    let unit = UnitView::array("w", d as u64, Values::new(rows.len()).with("lambda", 1.0));
    run_in_memory(&ties(density, combine), &unit, &vec![0.0; d], rows).unwrap().0
}

#[test]
fn all_equal_to_the_threshold_are_kept() {
    assert_eq!(merged(0.25, Combine::Mean, &[&[2.0, -2.0, 2.0, 1.0]]), [2.0, -2.0, 2.0, 0.0]);
}

#[test]
fn a_zero_sum_takes_the_sign_of_the_majority() {
    let rows: [&[f32]; 2] = [&[1.0, -3.0, -5.0], &[-1.0, -3.0, 0.0]];
    assert_eq!(merged(1.0, Combine::Mean, &rows), [-1.0, -3.0, -5.0]);
    assert_eq!(merged(1.0, Combine::Sum, &rows), [-1.0, -6.0, -5.0]);
    let positive: [&[f32]; 2] = [&[1.0, 3.0, 5.0], &[-1.0, 3.0, 0.0]];
    assert_eq!(merged(1.0, Combine::Max, &positive), [1.0, 3.0, 5.0]);
    // Without a majority it is negative, but for the largest, which is multiplied by a sign of zero.
    let even: [&[f32]; 2] = [&[1.0, 3.0, -5.0], &[-1.0, 3.0, 0.0]];
    assert_eq!(merged(1.0, Combine::Mean, &even), [-1.0, 3.0, -5.0]);
    assert_eq!(merged(1.0, Combine::Max, &even), [0.0, 3.0, -5.0]);
}

#[test]
fn equal_experts_give_the_trimmed_one_and_passes_are_what_is_planned() {
    let row: &[f32] = &[0.5, -4.0, 3.0, 0.25, -1.0];
    for combine in [Combine::Mean, Combine::Max] {
        assert_eq!(merged(0.4, combine, &[row, row, row]), [0.0, -4.0, 3.0, 0.0, -1.0]);
    }
    let passes = |density, elements| ties(density, Combine::Mean).passes(&unit(1, elements)).len();
    assert_eq!((passes(0.2, 100), passes(0.2, 70_000), passes(1.0, 70_000)), (3, 4, 2));
}
