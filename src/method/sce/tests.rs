//! Against plain loops over whole arrays, however it is run.

use std::sync::Arc;

use proptest::prelude::*;

use super::{SMALLEST, Sce, weights};
use crate::kernel::Kernels;
use crate::method::sampling::sampling;
use crate::method::{BLOCK, Method, Outcome, Strategy, UnitView, Values, run_in_memory};
use crate::testing::parts::{self, Hard, Run, bits, tied};

fn sce() -> Sce {
    Sce::new(Kernels::available().last().unwrap(), Strategy::Fused)
}

/// Runs it on a unit at hand, of which all are sampled, with so much room for records.
fn at_hand(strategy: Strategy, topk: f64, taus: &[Vec<f32>], room: u64) -> (Vec<f32>, Outcome) {
    let elements = taus[0].len();
    let run = Run { cuts: vec![BLOCK], workers: 1, at_hand: true };
    let method = Sce { strategy, smallest: 0, ..sce() };
    let (unit, base) = (unit(taus.len(), elements, topk), vec![1.0; elements]);
    parts::merge_within(&method, &unit, &base, taus, &run, room).unwrap()
}

fn unit(experts: usize, elements: usize, topk: f64) -> Arc<UnitView> {
    UnitView::array("w", elements as u64, Values::new(experts).with("select_topk", topk))
}

/// What the positions that differ most make of a base of ones.
fn plain(taus: &[Vec<f32>], topk: f64) -> Vec<f32> {
    let (n, d) = (taus.len(), taus[0].len());
    let column = |e: usize| taus.iter().map(move |tau| f64::from(tau[e]));
    let variance = |e: usize| {
        let mean = column(e).sum::<f64>() / n as f64;
        (column(e).map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64) as f32
    };
    let variances: Vec<f32> = (0..d).map(variance).collect();
    let mut places: Vec<usize> = (0..d).collect();
    places.sort_by(|&a, &b| variances[b].total_cmp(&variances[a]));
    let different = variances.iter().filter(|&&v| v != 0.0).count();
    if topk < 1.0 {
        places.truncate((different as f32 * topk as f32) as usize);
    }
    let mut selected = vec![false; d];
    places.iter().for_each(|&place| selected[place] = true);
    let kept = |tau: &Vec<f32>| -> Vec<f32> {
        tau.iter().zip(&selected).map(|(&x, &keep)| if keep { x } else { 0.0 }).collect()
    };
    let rows: Vec<Vec<f32>> = taus.iter().map(kept).collect();
    let squares: Vec<f64> =
        rows.iter().map(|row| row.iter().map(|&x| f64::from(x).powi(2)).sum()).collect();
    let weights = weights(&squares, d as u64);
    (0..d)
        .map(|e| {
            let vote = rows.iter().fold(0.0f32, |sum, row| sum + row[e]);
            let (mut sum, mut share) = (0.0f32, 0.0f32);
            for (row, weight) in rows.iter().zip(&weights) {
                if (vote >= 0.0 && row[e] > 0.0) || (vote < 0.0 && row[e] < 0.0) {
                    sum += weight * row[e];
                    share += weight;
                }
            }
            1.0 + sum / share.max(1e-6)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn the_positions_that_differ_most_are_merged_however_it_is_run(
        elements in prop_oneof![1usize..300, Just(70_001usize)],
        experts in 1usize..5,
        topk in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64],
        cuts in prop::collection::vec(1usize..=BLOCK, 1..6),
        workers in 1usize..4,
        at_hand in any::<bool>(),
        smallest in prop::sample::select(vec![0, SMALLEST]),
        seed in any::<u64>(),
    ) {
        let cuts = if elements > 300 { vec![BLOCK, 4001] } else { cuts };
        // Powers of two: their means over up to four are exact, so that equal variances are equal however computed.
        let mut taus = tied(experts, elements, seed);
        taus.iter_mut().flatten().for_each(|x| *x *= 64.0);
        let expected = if experts == 3 { None } else { Some(plain(&taus, topk)) };
        let (unit, base) = (unit(experts, elements, topk), vec![1.0; elements]);
        let run = Run { cuts, workers, at_hand };
        let method = Sce { smallest, ..sce() };
        let (got, _) = parts::merge(&method, &unit, &base, &taus, &run).unwrap();
        if let Some(expected) = expected {
            prop_assert_eq!(bits(&got), bits(&expected));
        }
        let rows: Vec<&[f32]> = taus.iter().map(Vec::as_slice).collect();
        let (whole, _) = run_in_memory(&sce(), &unit, &base, &rows).unwrap();
        prop_assert_eq!(bits(&got), bits(&whole));
    }

    #[test]
    fn samples_of_a_unit_at_hand_change_no_bit_however_bad_they_are(
        hard in prop::sample::select(Hard::ALL.to_vec()),
        elements in prop_oneof![1usize..9, Just(120_001usize)],
        experts in 1usize..4,
        topk in prop_oneof![Just(0.5), 0.01..0.99f64, Just(0.999_999_999)],
        room in prop::sample::select(vec![u64::MAX, 2000]),
    ) {
        let taus = hard.rows(experts, elements, sampling(elements as u64));
        let (expected, plain) = at_hand(Strategy::Radix, topk, &taus, room);
        let (got, outcome) = at_hand(Strategy::Fused, topk, &taus, room);
        prop_assert_eq!(bits(&got), bits(&expected));
        prop_assert_eq!(plain.missed, 0);
        prop_assert!(outcome.missed <= 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_number_of_experts_of_any_magnitude_have_what_plain_variances_select(
        elements in prop_oneof![1usize..70, Just(20_001usize)],
        experts in prop::sample::select(vec![1, 2, 3, 4, 5, 6, 9, 12, 17usize]),
        low in prop::sample::select(vec![0, 1, 0x2000_0000, 0x3f80_0000, 0x5f00_0000, 0x7e00_0000u32]),
        span in prop::sample::select(vec![1, 2, 16, 1 << 22, 1 << 24u32]),
        zeros in prop_oneof![Just(0.0), 0.0..1.0f64],
        topk in prop_oneof![Just(0.5), 0.01..0.99f64, Just(0.999_999_999), Just(1e-9)],
        room in prop::sample::select(vec![u64::MAX, 3000]),
        seed in any::<u64>(),
    ) {
        let mut uniform = parts::uniform(seed);
        let mut value = || {
            let x = f32::from_bits(low + (uniform() * f64::from(span)) as u32);
            let x = if uniform() < zeros { 0.0 } else { x };
            if uniform() < 0.5 { -x } else { x }
        };
        let taus: Vec<Vec<f32>> =
            (0..experts).map(|_| (0..elements).map(|_| value()).collect()).collect();
        let (expected, _) = at_hand(Strategy::Radix, topk, &taus, room);
        let (unit, base) = (unit(experts, elements, topk), vec![1.0; elements]);
        for kernels in Kernels::available() {
            let method = Sce { kernels, smallest: 0, ..sce() };
            for (cuts, workers, at_hand) in [(vec![BLOCK], 1, true), (vec![777, 16], 3, false)] {
                let run = Run { cuts, workers, at_hand };
                let (got, _) = parts::merge_within(&method, &unit, &base, &taus, &run, room).unwrap();
                prop_assert_eq!(bits(&got), bits(&expected), "{:?}", kernels);
            }
        }
        let variance = |e: usize| {
            let (mut mean, mut square) = (0f64, 0f64);
            for (count, tau) in (1u32..).zip(&taus) {
                let delta = f64::from(tau[e]) - mean;
                mean += delta / f64::from(count);
                square += delta * (f64::from(tau[e]) - mean);
            }
            (square / experts as f64) as f32
        };
        let variances: Vec<f32> = (0..elements).map(variance).collect();
        let mut places: Vec<usize> = (0..elements).collect();
        places.sort_by(|&a, &b| variances[b].total_cmp(&variances[a]));
        let different = variances.iter().filter(|&&v| v != 0.0).count();
        // What is not selected stays as it is.
        for &place in &places[(different as f32 * topk as f32) as usize..] {
            prop_assert_eq!(expected[place], 1.0);
        }
    }
}

#[test]
fn brackets_hold_on_ordinary_data_and_misses_change_no_bit() {
    let elements = 2_000_000;
    let mut uniform = parts::uniform(3);
    let mut row = || (0..elements).map(|_| ((uniform() - 0.5).powi(3) * 0.01) as f32).collect();
    let taus: [Vec<f32>; 3] = [row(), row(), row()];
    let (expected, _) = at_hand(Strategy::Radix, 0.1, &taus, 0);
    let room = sce().held_bytes(&unit(3, elements, 0.1));
    for (room, missed) in [(room, 0), (1000, 1)] {
        let (got, outcome) = at_hand(Strategy::Fused, 0.1, &taus, room);
        assert!(bits(&got) == bits(&expected));
        assert_eq!(outcome.missed, missed);
    }
    // What the sample takes differs far more than the rest.
    let taus = Hard::Deceptive.rows(2, elements, sampling(elements as u64));
    let (expected, _) = at_hand(Strategy::Radix, 0.5, &taus, 0);
    let (got, outcome) = at_hand(Strategy::Fused, 0.5, &taus, u64::MAX);
    assert!(bits(&got) == bits(&expected));
    assert_eq!(outcome.missed, 1);
    assert_eq!(sce().held_bytes(&unit(3, 1000, 0.1)), 0);
}

#[test]
fn tiny_task_vectors_weigh_the_same() {
    assert_eq!(weights(&[4e-7, 1e-7, 0.0], 1), [1.0 / 3.0; 3]);
    assert_eq!(weights(&[3.0, 1.0], 2), [0.75, 0.25]);
}

#[test]
fn elements_that_oppose_the_sum_are_left_out() {
    let rows: [&[f32]; 2] = [&[3.0, -4.0, 0.0], &[-1.0, -4.0, 0.0]];
    let unit = unit(2, 3, 1.0);
    let (merged, _) = run_in_memory(&sce(), &unit, &[0.0; 3], &rows).unwrap();
    assert_eq!(merged, [3.0, -4.0, 0.0]);
    // One expert differs from nobody: nothing is selected.
    let unit = UnitView::array("w", 3, Values::new(1).with("select_topk", 0.5));
    assert_eq!(run_in_memory(&sce(), &unit, &[7.0; 3], &rows[..1]).unwrap().0, [7.0; 3]);
    assert_eq!(sce().passes(&unit), ["variances", "equal variances", "sizes", "merge"]);
}
