//! Properties that follow from the definition, and the policy for degenerate input.

use proptest::prelude::*;

use std::sync::Arc;

use super::{Pcb, Setup, Variant};
use crate::kernel;
use crate::method::{
    BLOCK, Block, Held, Method, Next, Note, Outcome, Sampling, UnitView, Values, run_in_memory,
};

const ALL: [Variant; 5] = [Variant::A, Variant::B, Variant::C, Variant::D, Variant::Paper];

/// PCB and the lambdas of its experts.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) method: Pcb,
    pub(super) lambdas: Vec<f64>,
}

fn pcb(variant: Variant, keep: f64, lambdas: &[f32]) -> Case {
    let lambdas = lambdas.iter().map(|&lambda| lambda.into()).collect();
    Case { method: Pcb::new(variant, keep, kernel::select().unwrap()), lambdas }
}

impl Case {
    pub(super) fn unit(&self, elements: usize) -> Arc<UnitView> {
        let values = Values::new(self.lambdas.len()).with_each("lambda", &self.lambdas);
        UnitView::array("unit", elements as u64, values)
    }

    fn setup(&self) -> Setup {
        self.method.setup(&self.unit(0))
    }
}

/// Task vectors as fine-tuning in bf16 makes them: heavy tails, many zeros, many ties.
pub(super) fn taus(n: usize, d: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut value = move || {
        let tail = (uniform() - 0.5) / (uniform() + 0.02);
        // A grid of 2^-12 makes ties.
        ((tail * 16.0).round() / 4096.0) as f32
    };
    (0..n).map(|_| (0..d).map(|_| value()).collect()).collect()
}

pub(super) fn merge(case: &Case, base: &[f32], taus: &[Vec<f32>]) -> (Vec<f32>, Outcome) {
    let rows: Vec<&[f32]> = taus.iter().map(Vec::as_slice).collect();
    run_in_memory(&case.method, &case.unit(base.len()), base, &rows).unwrap()
}

/// Like [`merge`], in blocks of the given lengths, dealt to several workers.
pub(super) fn merge_in_parts(
    case: &Case,
    base: &[f32],
    taus: &[Vec<f32>],
    cuts: &[usize],
    workers: usize,
) -> (Vec<f32>, Outcome) {
    let mut out = vec![0.0; base.len()];
    let mut stage = case.method.start(&case.unit(base.len())).unwrap();
    loop {
        let mut states: Vec<_> = (0..workers).map(|_| stage.empty()).collect();
        let (held, elements, mut turn) = (Held::default(), base.len() as u64, 0);
        // Without a sample: one run of everything.
        let everything = Sampling { block: elements.max(1), stride: elements.max(1) };
        let sampling = stage.sample().unwrap_or(everything);
        let runs: Vec<_> = sampling.runs(0..elements, elements).collect();
        for run in runs {
            let mut start = run.start as usize;
            while start < run.end as usize {
                let len = cuts[turn % cuts.len()].min(run.end as usize - start);
                let range = start..start + len;
                let rows: Vec<&[f32]> = taus.iter().map(|t| &t[range.clone()]).collect();
                let (tensor, first) = (0, start as u64);
                let block =
                    Block { tensor, first, base: &base[range.clone()], rows: &rows, weights: &[] };
                let values = if stage.writes() { &mut out[range] } else { &mut [] };
                let state = &mut states[(turn * 7 + turn / 3) % workers];
                stage.add(state, &block, values);
                stage.hand_out(state, false).into_iter().for_each(|parcel| held.keep(parcel));
                start += len;
                turn += 1;
            }
        }
        for state in &mut states {
            stage.hand_out(state, true).into_iter().for_each(|parcel| held.keep(parcel));
        }
        let mut merged = states.pop().unwrap();
        states.into_iter().for_each(|state| stage.merge(&mut merged, state));
        // As if the process had been killed and had resumed here.
        let saved = stage.save(&merged);
        assert!(stage.load(&saved[1..]).is_none());
        let merged = stage.load(&saved).unwrap();
        match stage.finish(merged, &held).unwrap() {
            Next::Stage(next) => stage = next,
            Next::Done(outcome) => return (out, outcome),
        }
    }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_tiling_and_any_number_of_workers_give_the_same_bits(
        variant in prop::sample::select(ALL.to_vec()),
        n in 1usize..5,
        d in prop_oneof![1usize..300, Just(70_001usize)],
        cuts in prop::collection::vec(1usize..=BLOCK, 1..6),
        workers in 1usize..4,
        seed in any::<u64>(),
    ) {
        let taus = taus(n, d, seed);
        let base = vec![0.5f32; d];
        let method = pcb(variant, 0.1, &vec![1.25; n]);
        let (whole, outcome) = merge(&method, &base, &taus);
        let cuts = if d > 300 { vec![BLOCK, 4001] } else { cuts };
        let (parts, parts_outcome) = merge_in_parts(&method, &base, &taus, &cuts, workers);
        prop_assert_eq!(bits(&whole), bits(&parts));
        prop_assert_eq!(outcome, parts_outcome);
    }

    #[test]
    fn one_expert_keeps_its_largest_magnitudes(d in 20usize..2000, seed in any::<u64>()) {
        let taus = taus(1, d, seed);
        let (delta, outcome) = merge(&pcb(Variant::A, 0.1, &[1.0]), &vec![0.0; d], &taus);
        let mut sorted: Vec<f32> = taus[0].iter().map(|t| t.abs()).collect();
        sorted.sort_by(f32::total_cmp);
        let at = sorted[(d as f64 * 0.9) as usize];
        prop_assert!(outcome.experts[0].kept <= (d - (d as f64 * 0.9) as usize - 1) as u64);
        for (delta, tau) in delta.iter().zip(&taus[0]) {
            // The score rises with the magnitude, strictly below the upper clamp bound.
            prop_assert!(*delta == 0.0 || tau.abs() >= at, "{delta} {tau} {at}");
        }
    }

    #[test]
    fn the_merged_task_vector_scales_with_a_common_lambda(
        variant in prop::sample::select(ALL.to_vec()),
        seed in any::<u64>(),
    ) {
        let taus = taus(3, 500, seed);
        let zero = vec![0.0; 500];
        let (one, _) = merge(&pcb(variant, 0.1, &[1.0; 3]), &zero, &taus);
        let (two, _) = merge(&pcb(variant, 0.1, &[2.0; 3]), &zero, &taus);
        for (one, two) in one.iter().zip(&two) {
            prop_assert_eq!((2.0 * one).to_bits(), two.to_bits());
        }
    }

    #[test]
    fn splitting_at_tensor_borders_does_not_matter_but_padding_does_not_panic(
        variant in prop::sample::select(ALL.to_vec()),
        n in 1usize..4,
        d in 1usize..12,
        seed in any::<u64>(),
    ) {
        let (merged, outcome) = merge(&pcb(variant, 0.1, &vec![1.0; n]), &vec![1.0; d], &taus(n, d, seed));
        prop_assert!(merged.iter().all(|v| v.is_finite()));
        prop_assert_eq!(outcome.elements, d as u64);
    }
}

#[test]
fn positions_that_nobody_keeps_are_exactly_the_base() {
    let base: Vec<f32> = (0..999).map(|i| 0.01 * i as f32 + 0.013).collect();
    for variant in ALL {
        let (merged, outcome) = merge(&pcb(variant, 0.05, &[1.0; 3]), &base, &taus(3, 999, 5));
        let unchanged = merged.iter().zip(&base).filter(|(m, b)| m == b).count() as u64;
        let kept: u64 = outcome.experts.iter().map(|e| e.kept).sum();
        assert!(kept > 0 && unchanged >= 999 - kept, "{variant:?} {kept} {unchanged}");
    }
}

#[test]
fn identical_experts_agree_on_one_mask() {
    let one = taus(1, 3000, 11).remove(0);
    let same = vec![one.clone(), one.clone(), one];
    for variant in [Variant::A, Variant::B, Variant::C, Variant::D] {
        let (delta, outcome) = merge(&pcb(variant, 0.1, &[1.0; 3]), &vec![0.0; 3000], &same);
        assert!(outcome.experts.iter().all(|e| e == &outcome.experts[0]), "{variant:?}");
        let hi = outcome.experts[0].figure("hi").unwrap();
        for (delta, tau) in delta.iter().zip(&same[0]) {
            let winsorised = tau.abs().min(hi).copysign(*tau);
            assert!(*delta == 0.0 || (delta - winsorised).abs() <= 1e-6 * winsorised.abs());
        }
    }
}

#[test]
fn an_expert_equal_to_the_base_has_no_weight_and_harms_nobody() {
    let mut rows = taus(2, 4000, 3);
    rows.push(vec![0.0; 4000]);
    for variant in ALL {
        let (merged, outcome) = merge(&pcb(variant, 0.1, &[1.0; 3]), &vec![1.0; 4000], &rows);
        assert!(merged.iter().all(|v| v.is_finite()), "{variant:?}");
        assert_eq!(outcome.experts[2].kept, 0, "{variant:?}");
        assert_eq!(outcome.experts[2].notes, [Note::IdenticalToBase], "{variant:?}");
        assert!(outcome.experts[0].kept > 0, "{variant:?}");
    }
}

#[test]
fn mostly_zero_task_vectors_keep_their_deltas() {
    let mut rows = taus(2, 20_000, 9);
    for (i, tau) in rows[1].iter_mut().enumerate() {
        *tau = if i % 1000 == 7 { 0.25 + i as f32 * 1e-5 } else { 0.0 };
    }
    let (_, outcome) = merge(&pcb(Variant::B, 0.1, &[1.0; 2]), &vec![0.0; 20_000], &rows);
    assert_eq!(outcome.experts[1].notes, [Note::BoundsCoincide]);
    assert_eq!(outcome.experts[1].figure("hi"), outcome.experts[1].figure("largest"));
    assert!(outcome.experts[1].kept > 0);
}

#[test]
fn one_magnitude_only_and_no_spread_above_the_threshold_are_named() {
    let rows = vec![vec![0.5; 100]];
    let (merged, outcome) = merge(&pcb(Variant::A, 0.1, &[1.0]), &vec![2.0; 100], &rows);
    assert_eq!(outcome.experts[0].notes, [Note::MagnitudesEqual, Note::NothingAboveThreshold]);
    assert!(merged.iter().all(|&v| v == 2.0));
}

#[test]
fn tiny_products_are_ranked_not_flushed() {
    // tau * S is subnormal: an FTZ mode would make all scores equal.
    let rows: Vec<Vec<f32>> = vec![(1..=1000).map(|i| i as f32 * 1e-23).collect()];
    let (_, outcome) = merge(&pcb(Variant::A, 0.1, &[1.0]), &vec![0.0; 1000], &rows);
    assert_eq!(outcome.experts[0].kept, 99);
}

#[test]
fn overflowing_sums_are_an_error() {
    let rows = [vec![3e38f32, 0.0, 1.0], vec![3e38, 1.0, 0.0]];
    let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
    let method = pcb(Variant::A, 0.5, &[1.0, 1.0]);
    // 0 * inf would be NaN.
    let rows_with_zero: Vec<&[f32]> = vec![rows[0], rows[1], &[0.0, 0.0, 0.0]];
    let method3 = pcb(Variant::A, 0.5, &[1.0; 3]);
    assert!(run_in_memory(&method.method, &method.unit(3), &[0.0; 3], &rows).is_ok());
    let error =
        run_in_memory(&method3.method, &method3.unit(3), &[0.0; 3], &rows_with_zero).unwrap_err();
    assert!(error.to_string().contains("overflows f32"), "{error}");
}

#[test]
fn the_index_arithmetic_is_that_of_the_reference() {
    let setup = pcb(Variant::B, 0.1, &[1.0]).setup();
    assert_eq!(setup.clamp_ranks(1), [0, 0]);
    assert_eq!(setup.clamp_ranks(100), [1, 98]);
    assert_eq!(setup.clamp_ranks(12_345), [123, 12_220]);
    assert_eq!(setup.threshold_rank(100).unwrap(), 90);
    // 1 - 0.9 is a little below 0.1 in doubles, and the rank is cut, not rounded.
    let setup = pcb(Variant::B, 0.9, &[1.0]).setup();
    assert_eq!(setup.threshold_rank(10).unwrap(), 0);
    assert!(pcb(Variant::A, 1e-18, &[1.0]).setup().threshold_rank(10).is_err());
}
