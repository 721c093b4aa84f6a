//! The fused plan against the radix plan: the same bits and the same statistics, whatever the data.

use proptest::prelude::*;

use super::Tuning;
use crate::kernel;
use crate::method::pcb::tests::{Case, bits, merge, merge_in_parts, taus};
use crate::method::pcb::{Pcb, Variant};
use crate::method::{
    BLOCK, Block, Held, Method, MethodError, Next, Outcome, Strategy, run_in_memory,
};
use crate::testing::parts::{Hard, Run, merge_within};

const ALL: [Variant; 4] = [Variant::A, Variant::B, Variant::C, Variant::D];
const NEVER_COLLECT: Tuning = Tuning { collect: 0, width: 1.0 };

fn pcb(variant: Variant, n: usize, tuning: Tuning) -> Case {
    let method = Pcb { tuning, ..Pcb::new(variant, 0.1, kernel::select().unwrap()) };
    Case { method, lambdas: (0..n).map(|i| 1.0 + 0.25 * i as f64).collect() }
}

fn radix(case: &Case) -> Case {
    let method = case.method.clone().with_strategy(Strategy::Radix);
    Case { method, lambdas: case.lambdas.clone() }
}

/// Task vectors without ties: heavy tails, in runs of different scale.
pub(in crate::method::pcb) fn smooth(n: usize, d: usize, seed: u64) -> Vec<Vec<f32>> {
    smooth_in_runs(n, d, 1000, seed)
}

fn smooth_in_runs(n: usize, d: usize, run: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut value = |e: usize| {
        let normal = (0..6).map(|_| uniform()).sum::<f64>() - 3.0;
        let scale = 1.0 + 0.3 * (e / run % 7) as f64;
        (normal * normal.abs() * scale * 1e-3) as f32
    };
    (0..n).map(|_| (0..d).map(&mut value).collect()).collect()
}

/// Merges by both plans, compares, and tells how many brackets were missed.
#[track_caller]
fn compare(variant: Variant, taus: &[Vec<f32>], tuning: Tuning) -> u64 {
    let base = vec![0.125; taus[0].len()];
    let fused = pcb(variant, taus.len(), tuning);
    let (expected, plain) = merge(&radix(&fused), &base, taus);
    let (got, outcome) = merge(&fused, &base, taus);
    assert_eq!(Outcome { missed: 0, ..outcome.clone() }, plain);
    assert!(bits(&got) == bits(&expected));
    outcome.missed
}

#[test]
fn ordinary_data_miss_nothing() {
    for variant in ALL {
        for (n, seed) in [(1, 1), (2, 2), (3, 3), (5, 4)] {
            // Where bounds of all experts matter, a small sample must show them well.
            let run = if matches!(variant, Variant::A | Variant::B) { 1000 } else { 50 };
            let rows = smooth_in_runs(n, 900_000, run, seed);
            assert_eq!(compare(variant, &rows, NEVER_COLLECT), 0, "{variant:?} {n}");
        }
    }
}

#[test]
fn ties_and_zeros_change_no_bit() {
    for variant in ALL {
        // Nothing but ties on a coarse grid.
        compare(variant, &taus(3, 300_000, 5), NEVER_COLLECT);
        for zeros in [2, 9, 10] {
            // Most elements zero, in all experts or in one.
            let mut some = smooth(2, 300_000, zeros);
            for (e, tau) in some[1].iter_mut().enumerate() {
                *tau = if (e as u64 * 7919) % 10 < zeros { 0.0 } else { *tau };
            }
            compare(variant, &some, NEVER_COLLECT);
            let other = some[1].clone();
            some[0].copy_from_slice(&other);
            compare(variant, &some, NEVER_COLLECT);
        }
    }
}

#[test]
fn degenerate_experts_change_no_bit() {
    let d = 200_000;
    for tuning in [NEVER_COLLECT, Tuning::default()] {
        for variant in ALL {
            let mut outlier = smooth(2, d, 8);
            outlier[0][77_777] = 1.0;
            compare(variant, &outlier, tuning);
            let one = smooth(1, d, 9).remove(0);
            compare(variant, &[one.clone(), one.clone(), one.clone()], tuning);
            let opposite: Vec<f32> = one.iter().map(|tau| -tau).collect();
            compare(variant, &[one.clone(), opposite], tuning);
            compare(variant, &[one.clone(), vec![0.0; d]], tuning);
            compare(variant, &[one.clone(), vec![0.5; d]], tuning);
            compare(variant, &[vec![0.5; d]], tuning);
            // Bounds that coincide, so that the upper one becomes the maximum.
            let mut sparse = vec![0.0; d];
            (0..d).step_by(50_001).for_each(|e| sparse[e] = 0.01 + e as f32 * 1e-7);
            compare(variant, &[one, sparse], tuning);
            // Scores far below the normal numbers.
            let tiny =
                smooth(2, d, 10).into_iter().map(|row| row.iter().map(|t| t * 1e-19).collect());
            compare(variant, &tiny.collect::<Vec<_>>(), tuning);
        }
    }
}

#[test]
fn units_at_hand_give_the_same_bits_however_bad_the_sample_and_with_no_room_for_records() {
    let d = 120_001;
    for variant in ALL {
        for hard in Hard::ALL {
            let rows = hard.rows(2, d, super::sampling(d as u64));
            let merge = |case: Case, room| {
                let run = Run { cuts: vec![BLOCK], workers: 1, at_hand: true };
                let (unit, base) = (case.unit(d), vec![0.125; d]);
                merge_within(&case.method, &unit, &base, &rows, &run, room).unwrap()
            };
            let fused = pcb(variant, 2, NEVER_COLLECT);
            let (expected, plain) = merge(radix(&fused), 0);
            for room in [u64::MAX, fused.method.held_bytes(&fused.unit(d)), 100] {
                let (got, outcome) = merge(fused.clone(), room);
                assert_eq!(Outcome { missed: 0, ..outcome.clone() }, plain, "{variant:?} {hard:?}");
                assert!(bits(&got) == bits(&expected), "{variant:?} {hard:?}");
                let doubtful = matches!(hard, Hard::Deceptive) || room == 100;
                assert!(outcome.missed > 0 || !doubtful || hard == Hard::Zeros, "{hard:?} {room}");
            }
        }
        // Small ones keep no records.
        let (fused, small) = (pcb(variant, 2, Tuning::default()), d);
        assert_eq!(fused.method.held_bytes(&fused.unit(small)), 0);
    }
}

#[test]
fn a_bracket_that_is_too_narrow_is_noticed() {
    let mut missed = 0;
    for seed in 0..6 {
        let narrow = Tuning { collect: 0, width: 0.02 };
        missed += compare(Variant::A, &smooth(2, 400_000, 20 + seed), narrow);
        let none = Tuning { collect: 0, width: 0.0 };
        missed += compare(Variant::B, &smooth(2, 400_000, 30 + seed), none);
    }
    assert!(missed > 6, "{missed}");
    for variant in [Variant::C, Variant::D] {
        let mut missed = 0;
        for (seed, width) in [(40, 0.0), (41, 0.02), (42, 0.05), (43, 0.1)] {
            missed += compare(variant, &smooth(3, 400_000, seed), Tuning { collect: 0, width });
        }
        assert!(missed > 3, "{variant:?} {missed}");
    }
}

#[test]
fn a_threshold_found_before_others_were_missed_is_told_once() {
    // Nothing but zeros in one expert is known at once; the other one is missed twice.
    for variant in ALL {
        let rows = [smooth(1, 400_000, 60).remove(0), vec![0.0; 400_000]];
        let missed = compare(variant, &rows, Tuning { collect: 0, width: 0.0 });
        assert!(missed > 0, "{variant:?}");
    }
}

#[test]
fn sums_that_overflow_are_named_by_both_plans() {
    let d = 100_000;
    let mut rows = [vec![1.0f32; d], vec![0.5; d], vec![0.25; d]];
    (rows[0][500], rows[1][500], rows[2][500]) = (3e38, 3e38, 0.0);
    let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
    for tuning in [NEVER_COLLECT, Tuning::default()] {
        let case = pcb(Variant::A, 3, tuning);
        let error = run_in_memory(&case.method, &case.unit(d), &vec![0.0; d], &rows).unwrap_err();
        assert_eq!(error, MethodError::ScoreOverflow { expert: 3 });
    }
}

#[test]
fn missing_parcels_are_noticed() {
    let rows = smooth(2, 10_000, 50);
    let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
    let base = vec![0.0; 10_000];
    let case = pcb(Variant::A, 2, Tuning::default());
    let stage = case.method.start(&case.unit(10_000)).unwrap();
    let mut state = stage.empty();
    for e in (0..10_000).step_by(BLOCK) {
        let range = e..(e + BLOCK).min(10_000);
        let rows: Vec<&[f32]> = rows.iter().map(|row| &row[range.clone()]).collect();
        let block =
            Block { tensor: 0, first: e as u64, base: &base[range], rows: &rows, weights: &[] };
        stage.add(&mut state, &block, &mut []);
    }
    assert!(stage.hand_out(&mut state, true).is_some());
    let lost = stage.finish(state, &Held::default());
    assert!(matches!(lost, Err(MethodError::Lost(_))), "{}", matches!(lost, Ok(Next::Done(_))));
}

#[test]
fn two_reads_and_a_tenth_at_most() {
    for elements in [1_000, 1 << 20, 1_100_000, 7_000_000, 1 << 27, 70_000_000_000] {
        for variant in ALL {
            let case = pcb(variant, 3, Tuning::default());
            let unit = case.unit(elements);
            let passes = case.method.passes(&unit).len();
            let (samples, share) = case
                .method
                .sampled(&unit)
                .map_or((0, 0.0), |(samples, sampling)| (samples, sampling.share()));
            let reads = (passes - samples) as f64 + samples as f64 * share;
            assert!(reads <= 2.1, "{elements}: {reads}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn tilings_workers_and_kills_change_no_bit(
        variant in prop::sample::select(ALL.to_vec()),
        n in 1usize..4,
        d in prop_oneof![100usize..3000, Just(150_001usize)],
        cuts in prop::collection::vec(1024usize..=BLOCK, 1..5),
        workers in 1usize..4,
        width in prop::sample::select(vec![0.0, 0.05, 1.0]),
        ties in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let rows = if ties { taus(n, d, seed) } else { smooth(n, d, seed) };
        let base = vec![0.5; d];
        for tuning in [Tuning { collect: 0, width }, Tuning::default()] {
            let fused = pcb(variant, n, tuning);
            let (expected, plain) = merge(&radix(&fused), &base, &rows);
            let (got, outcome) = merge_in_parts(&fused, &base, &rows, &cuts, workers);
            prop_assert!(bits(&got) == bits(&expected));
            prop_assert_eq!(Outcome { missed: 0, ..outcome }, plain);
        }
    }
}
