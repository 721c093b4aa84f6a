//! Methods that thin out, against plain sorts, however they are run.

use std::sync::Arc;

use proptest::prelude::*;

use super::scan::Tuning;
use super::{Family, Thinning};
use crate::kernel::Kernels;
use crate::method::sampling::sampling;
use crate::method::{
    BLOCK, Block, Held, Method, MethodError, Outcome, Strategy, TensorView, UnitView, Values,
    run_in_memory,
};
use crate::testing::parts::{self, Hard, Run, bits, tied};

/// A method of the family on the kernels of this machine.
pub(super) fn family(elects: bool, thinning: Thinning) -> Family {
    let kernels = Kernels::available().last().unwrap();
    Family { kernels, elects, thinning, strategy: Strategy::Fused, tuning: Tuning::default() }
}

/// Parameters of experts of these densities, weights 1, 0.5, -0.25, ..
pub(super) fn values(densities: &[f64], rescale: bool) -> Values {
    let weights: Vec<f64> = (0..densities.len()).map(|i| (-0.5f64).powi(i as i32)).collect();
    let weights: Vec<f64> = weights.iter().map(|w| if *w == -0.5 { 0.5 } else { *w }).collect();
    Values::new(densities.len())
        .with_each("weight", &weights)
        .with_each("density", densities)
        .with_each("gamma", &vec![0.1; densities.len()])
        .with_each("epsilon", &vec![0.15; densities.len()])
        .with("lambda", 1.0)
        .with_flag("normalize", false)
        .with_flag("rescale", rescale)
}

/// A unit of tensors of these lengths, laid end to end.
pub(super) fn unit(lengths: &[u64], values: Values) -> Arc<UnitView> {
    let (experts, values) = (values.experts.len(), Arc::new(values));
    let mut elements = 0;
    let tensor = |(k, &len): (usize, &u64)| {
        let first = elements;
        elements += len;
        let (name, values) = (format!("tensor.{k}").into(), values.clone());
        TensorView { name, shape: [len].into(), elements: len, first, values }
    };
    let tensors = lengths.iter().enumerate().map(tensor).collect();
    Arc::new(UnitView { name: "unit".to_owned(), elements, experts, tensors })
}

/// What is left of a row: the ranks `kept` by descending magnitude, equal ones in order, and the sum of
/// magnitudes made up for.
fn plain(row: &[f32], kept: std::ops::Range<usize>, rescale: bool) -> Vec<f32> {
    let mut places: Vec<usize> = (0..row.len()).collect();
    places.sort_by(|&a, &b| row[b].abs().total_cmp(&row[a].abs()));
    let mut left = vec![0.0; row.len()];
    places[kept].iter().for_each(|&place| left[place] = row[place]);
    let sum = |row: &[f32]| row.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    let (all, some) = (sum(row), sum(&left));
    let factor = if rescale && all >= 1e-7 && some >= 1e-7 { (all / some) as f32 } else { 1.0 };
    left.iter().map(|x| x * factor).collect()
}

fn merged(rows: &[Vec<f32>], weights: &[f32], elects: bool) -> Vec<f32> {
    (0..rows[0].len())
        .map(|e| {
            let terms: Vec<f32> = rows.iter().zip(weights).map(|(row, w)| w * row[e]).collect();
            let vote = terms.iter().fold(0.0f32, |sum, term| sum + term);
            let agrees = |term: &&f32| {
                !elects || (vote >= 0.0 && **term > 0.0) || (vote < 0.0 && **term < 0.0)
            };
            1.0 + terms.iter().filter(agrees).fold(0.0f32, |sum, term| sum + term)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn ranked_elements_are_those_of_a_sort_however_it_is_run(
        lengths in prop_oneof![
            prop::collection::vec(1u64..300, 1..5),
            Just(vec![40_000u64, 3, 31_000]),
        ],
        densities in prop::collection::vec(
            prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64, Just(1e-6)], 1..4),
        middle in any::<bool>(),
        rescale in any::<bool>(),
        elects in any::<bool>(),
        cuts in prop::collection::vec(1usize..=BLOCK, 1..6),
        workers in 1usize..4,
        at_hand in any::<bool>(),
        strategy in prop::sample::select(vec![Strategy::Fused, Strategy::Radix]),
        (collect, width) in prop::sample::select(vec![(1 << 20, 1.0), (0, 1.0), (0, 0.02)]),
        seed in any::<u64>(),
    ) {
        let elements = lengths.iter().sum::<u64>() as usize;
        let cuts = if elements > 10_000 { vec![BLOCK, 4001] } else { cuts };
        let rows = tied(densities.len(), elements, seed);
        let values = values(&densities, rescale);
        let weights = values.each_f32("weight");
        let unit = unit(&lengths, values);
        let count = |density: f64| match density {
            1.0.. => 0..elements,
            _ if middle => {
                let (kept, above) = ((density * elements as f64) as usize, elements / 10);
                let below = elements.saturating_sub(kept + above);
                elements - below - kept..elements - below
            }
            _ if density > 0.0 => 0..((density * elements as f64) as usize).max(1),
            _ => 0..0,
        };
        let left: Vec<Vec<f32>> = rows.iter().zip(&densities)
            .map(|(row, &density)| plain(row, count(density), rescale)).collect();
        let expected = merged(&left, &weights, elects);
        let run = Run { cuts, workers, at_hand };
        let thinning = if middle { Thinning::Middle } else { Thinning::Largest };
        let tuning = Tuning { collect, width };
        let method = Family { strategy, tuning, ..family(elects, thinning) };
        let base = vec![1.0; elements];
        let (got, _) = parts::merge(&method, &unit, &base, &rows, &run).unwrap();
        prop_assert_eq!(bits(&got), bits(&expected));
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let (whole, _) = run_in_memory(&method, &unit, &base, &rows).unwrap();
        prop_assert_eq!(bits(&whole), bits(&expected));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn edges_amid_the_least_and_the_largest_magnitudes_are_those_of_a_sort(
        elements in prop_oneof![1usize..70, 1000usize..9000],
        low in prop::sample::select(vec![0, 0x007f_fff0, 0x3f80_0000, 0x7f00_0000, 0x7f7f_fff0u32]),
        span in prop::sample::select(vec![1, 2, 16, 1000, 1 << 22, 1 << 31u32]),
        zeros in 0.0..1.0f64,
        density in prop_oneof![0.0..1.0f64, Just(1e-6), Just(0.999_999), Just(0.5)],
        (cut, workers) in (777usize..=BLOCK, 1usize..4),
        middle in any::<bool>(),
        at_hand in any::<bool>(),
        (collect, width) in prop::sample::select(vec![(1 << 20, 1.0), (0, 1.0), (0, 0.02), (0, 50.0)]),
        room in prop::sample::select(vec![u64::MAX, 3000]),
        seed in any::<u64>(),
    ) {
        let mut uniform = parts::uniform(seed);
        let mut value = || {
            let bits = u64::from(low) + (uniform() * f64::from(span)) as u64;
            let x = f32::from_bits(bits.min(0x7f7f_ffff) as u32);
            let x = if uniform() < zeros { 0.0 } else { x };
            if uniform() < 0.5 { -x } else { x }
        };
        let row: Vec<f32> = (0..elements).map(|_| value()).collect();
        let wanted = (density * elements as f64) as usize;
        let count = if middle {
            let below = elements.saturating_sub(wanted + elements / 10);
            elements - below - wanted..elements - below
        } else {
            0..wanted.max(usize::from(density > 0.0))
        };
        // Added to a base of zeros, which have no sign then.
        let expected: Vec<f32> = plain(&row, count, false).iter().map(|x| x + 0.0).collect();
        let thinning = if middle { Thinning::Middle } else { Thinning::Largest };
        let (unit, base) = (unit(&[elements as u64], values(&[density], false)), vec![0.0; elements]);
        let (rows, run) = ([row], Run { cuts: vec![cut], workers, at_hand });
        for kernels in Kernels::available() {
            let tuning = Tuning { collect, width };
            let method = Family { kernels, tuning, ..family(false, thinning) };
            let (got, _) = parts::merge_within(&method, &unit, &base, &rows, &run, room).unwrap();
            prop_assert_eq!(bits(&got), bits(&expected), "{:?}", kernels);
        }
    }
}

/// Task vectors without ties: heavy tails, in runs of different scale.
fn smooth(elements: usize, seed: u64) -> Vec<f32> {
    let mut uniform = parts::uniform(seed);
    let mut value = |e: usize| {
        let normal = (0..6).map(|_| uniform()).sum::<f64>() - 3.0;
        (normal * normal.abs() * (1.0 + 0.3 * (e / 1000 % 7) as f64) * 1e-3) as f32
    };
    (0..elements).map(&mut value).collect()
}

#[test]
fn brackets_hold_on_ordinary_data_and_misses_change_no_bit() {
    let elements = 900_000;
    let rows = [smooth(elements, 1), tied(1, elements, 2).remove(0), smooth(elements, 3)];
    let densities = [0.2, 0.3, 0.05];
    let unit = unit(&[elements as u64], values(&densities, false));
    let cases = [Thinning::Largest, Thinning::Middle].into_iter();
    for (thinning, at_hand) in cases.flat_map(|thinning| [(thinning, false), (thinning, true)]) {
        let run = Run { cuts: vec![BLOCK], workers: 2, at_hand };
        let merge = |strategy, width| -> (Vec<f32>, Outcome) {
            let tuning = Tuning { collect: 0, width };
            let method = Family { strategy, tuning, ..family(true, thinning) };
            let passes = method.passes(&unit);
            let samples = method.sampled(&unit).map_or(0, |(samples, _)| samples);
            // Two reads, and less than a tenth for the sample.
            assert!(strategy == Strategy::Radix || (passes.len(), samples) == (4, 2), "{passes:?}");
            parts::merge(&method, &unit, &vec![1.0; elements], &rows, &run).unwrap()
        };
        let (expected, _) = merge(Strategy::Radix, 1.0);
        let (got, outcome) = merge(Strategy::Fused, 1.0);
        assert!(bits(&got) == bits(&expected));
        assert_eq!(outcome.missed, 0, "{thinning:?}");
        let (got, outcome) = merge(Strategy::Fused, 0.0);
        assert!(bits(&got) == bits(&expected));
        assert!(outcome.missed > 0, "{thinning:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn samples_of_a_unit_at_hand_change_no_bit_however_bad_they_are(
        hard in prop::sample::select(Hard::ALL.to_vec()),
        elements in prop_oneof![1usize..9, Just(120_001usize)],
        experts in 1usize..4,
        density in prop_oneof![Just(0.5), 0.01..0.99f64],
        middle in any::<bool>(),
        elects in any::<bool>(),
        rescale in any::<bool>(),
        room in prop::sample::select(vec![u64::MAX, 2000]),
    ) {
        let rows = hard.rows(experts, elements, sampling(elements as u64));
        let unit = unit(&[elements as u64], values(&vec![density; experts], rescale));
        let run = Run { cuts: vec![BLOCK], workers: 1, at_hand: true };
        let thinning = if middle { Thinning::Middle } else { Thinning::Largest };
        let base = vec![1.0; elements];
        let merge = |strategy| {
            let tuning = Tuning { collect: 4, width: 1.0 };
            let method = Family { strategy, tuning, ..family(elects, thinning) };
            parts::merge_within(&method, &unit, &base, &rows, &run, room).unwrap()
        };
        let (expected, plain) = merge(Strategy::Radix);
        let (got, outcome) = merge(Strategy::Fused);
        prop_assert_eq!(bits(&got), bits(&expected));
        prop_assert_eq!(plain.missed, 0);
        prop_assert!(outcome.missed == 0 || elements > 9);
    }
}

#[test]
fn a_sample_that_deceives_is_found_out_at_hand() {
    let elements = 900_001;
    let rows = Hard::Deceptive.rows(2, elements, sampling(elements as u64));
    let unit = unit(&[elements as u64], values(&[0.5, 0.3], false));
    let run = Run { cuts: vec![BLOCK], workers: 1, at_hand: true };
    let merge = |strategy| {
        let tuning = Tuning { collect: 0, width: 1.0 };
        let method = Family { strategy, tuning, ..family(true, Thinning::Largest) };
        parts::merge(&method, &unit, &vec![1.0; elements], &rows, &run).unwrap()
    };
    let (expected, _) = merge(Strategy::Radix);
    let (got, outcome) = merge(Strategy::Fused);
    assert!(bits(&got) == bits(&expected));
    // Nothing outside the sample is as large as the least of it.
    assert_eq!(outcome.missed, 2);
}

#[test]
fn records_without_room_are_a_miss_that_changes_no_bit() {
    let elements = 2_000_000;
    let mut uniform = parts::uniform(1);
    let rows = [(0..elements).map(|_| ((uniform() - 0.5).powi(3) * 0.01) as f32).collect()];
    let unit = unit(&[elements as u64], values(&[0.2], false));
    let run = Run { cuts: vec![BLOCK], workers: 1, at_hand: true };
    let method = family(true, Thinning::Largest);
    let merge = |room| {
        parts::merge_within(&method, &unit, &vec![1.0; elements], &rows, &run, room).unwrap()
    };
    let (expected, outcome) = merge(method.held_bytes(&unit));
    assert_eq!(outcome.missed, 0);
    let (got, outcome) = merge(1000);
    assert_eq!(outcome.missed, 1);
    assert!(bits(&got) == bits(&expected));
    // Small units are not sampled, and so keep nothing.
    let small = UnitView::array("small", 1000, values(&[0.2], false));
    assert_eq!(method.held_bytes(&small), 0);
}

#[test]
fn missing_parcels_are_noticed() {
    let (unit, row) = (unit(&[5000], values(&[0.2], false)), smooth(5000, 1));
    let stage = family(true, Thinning::Largest).start(&unit).unwrap();
    let mut state = stage.empty();
    let block =
        Block { tensor: 0, first: 0, base: &[0.0; 4096], rows: &[&row[..4096]], weights: &[] };
    stage.add(&mut state, &block, &mut []);
    assert!(stage.hand_out(&mut state, true).is_some());
    let lost = stage.finish(state, &Held::default());
    assert!(matches!(lost, Err(MethodError::Lost(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn drawn_elements_are_the_same_however_it_is_run(
        shapes in prop::collection::vec(prop::collection::vec(1u64..24, 1..4), 1..4),
        densities in prop::collection::vec(
            prop_oneof![Just(0.0), Just(1.0), 0.2..0.8f64], 1..4),
        ranked in any::<bool>(),
        rescale in any::<bool>(),
        cuts in prop::collection::vec(1usize..=BLOCK, 1..6),
        workers in 1usize..4,
        seed in any::<u64>(),
    ) {
        let thinning = if ranked { Thinning::Ranked { seed } } else { Thinning::Random { seed } };
        let lengths: Vec<u64> = shapes.iter().map(|shape| shape.iter().product()).collect();
        let mut unit = (*unit(&lengths, values(&densities, rescale))).clone();
        for (tensor, shape) in unit.tensors.iter_mut().zip(shapes) {
            tensor.shape = shape.into();
        }
        let (unit, elements) = (Arc::new(unit), lengths.iter().sum::<u64>() as usize);
        let rows = tied(densities.len(), elements, seed);
        let (method, base) = (family(true, thinning), vec![1.0; elements]);
        let run = Run { cuts, workers, at_hand: false };
        let (got, _) = parts::merge(&method, &unit, &base, &rows, &run).unwrap();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let (whole, _) = run_in_memory(&method, &unit, &base, &rows).unwrap();
        prop_assert_eq!(bits(&got), bits(&whole));
    }
}

/// One expert of weight 1, over a base of zeros.
fn drawn(thinning: Thinning, density: f64, rescale: bool, row: &[f32]) -> Vec<f32> {
    let unit = unit(&[row.len() as u64], values(&[density], rescale));
    run_in_memory(&family(false, thinning), &unit, &vec![0.0; row.len()], &[row]).unwrap().0
}

#[test]
fn what_is_kept_at_random_makes_up_for_the_rest() {
    let row = &tied(1, 50_000, 3)[0];
    for thinning in [Thinning::Random { seed: 1 }, Thinning::Ranked { seed: 1 }] {
        let plain = drawn(thinning, 0.4, false, row);
        let kept = plain.iter().filter(|x| **x != 0.0).count();
        let there = row.iter().filter(|x| **x != 0.0).count();
        assert!(plain.iter().zip(row).all(|(x, y)| *x == 0.0 || x == y));
        let share = kept as f64 / there as f64;
        // Larger elements are kept rather, and zeros are the smallest.
        let expected =
            if thinning == (Thinning::Random { seed: 1 }) { 0.39..0.41 } else { 0.4..0.5 };
        assert!(expected.contains(&share), "{share}");
        let sum = |row: &[f32]| row.iter().map(|x| f64::from(x.abs())).sum::<f64>();
        let scaled = drawn(thinning, 0.4, true, row);
        assert!((sum(&scaled) / sum(row) - 1.0).abs() < 1e-6);
        let factor = (sum(row) / sum(&plain)) as f32;
        assert!(scaled.iter().zip(&plain).all(|(x, y)| *x == factor * y));
        assert_eq!(drawn(thinning, 1.0, true, row), *row);
        assert_eq!(drawn(thinning, 0.0, true, row), vec![0.0; row.len()]);
    }
}

#[test]
fn densities_that_differ_within_a_unit_are_refused() {
    let mut unit = (*unit(&[4, 4], values(&[0.5], false))).clone();
    unit.tensors[1].values = Arc::new(values(&[0.25], false));
    let rows: [&[f32]; 1] = [&[1.0; 8]];
    let error = run_in_memory(&family(true, Thinning::Largest), &Arc::new(unit), &[0.0; 8], &rows);
    assert_eq!(error.unwrap_err(), MethodError::Varies { parameter: "density" });
}
