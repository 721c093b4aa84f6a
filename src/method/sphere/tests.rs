//! What all methods of the room have in common.

use proptest::prelude::*;

use crate::kernel::Kernels;
use crate::method;
use crate::method::registry::{Entry, Setup};
use crate::method::{
    AnyStage, Block, Held, MethodError, Next, State, UnitView, Values, block_len, run_in_memory,
};

pub(super) fn setup(kernels: &'static Kernels, base: bool) -> Setup {
    Setup {
        kernels,
        base,
        seed: 0,
        strategy: method::Strategy::default(),
        values: Values::default(),
    }
}

/// A merge of one tensor in memory.
pub(super) fn merged(
    entry: &Entry,
    shape: &[u64],
    values: Values,
    base: &[f32],
    rows: &[&[f32]],
) -> Result<Vec<f32>, MethodError> {
    let kernels = Kernels::available().last().unwrap();
    let method = (entry.build)(&setup(kernels, !base.is_empty()));
    let unit = UnitView::tensor("w", shape, values);
    run_in_memory(&*method, &unit, base, rows).map(|(merged, _)| merged)
}

/// The same in tiles on several threads' states, each state saved and loaded on the way.
fn in_tiles(
    entry: &Entry,
    kernels: &'static Kernels,
    shape: &[u64],
    values: &Values,
    (base, rows): (&[f32], &[&[f32]]),
    (tile, threads): (usize, usize),
) -> Vec<f32> {
    let method = (entry.build)(&setup(kernels, !base.is_empty()));
    let unit = UnitView::tensor("w", shape, values.clone());
    let grain = method.grain(&unit.tensors[0]);
    let block = block_len(grain);
    let tile = (tile / grain as usize * grain as usize).max(grain as usize);
    let mut merged = vec![0.0; unit.elements as usize];
    let mut stage: Box<dyn AnyStage> = method.start(&unit).unwrap();
    loop {
        let mut states: Vec<State> = (0..threads).map(|_| stage.empty()).collect();
        let tiles: Vec<usize> = (0..merged.len()).step_by(tile).collect();
        for (k, &start) in tiles.iter().enumerate().rev() {
            let end = (start + tile).min(merged.len());
            for at in (start..end).step_by(block) {
                let run = at..(at + block).min(end);
                let rows: Vec<&[f32]> = rows.iter().map(|row| &row[run.clone()]).collect();
                let base = base.get(run.clone()).unwrap_or_default();
                let view = Block { tensor: 0, first: at as u64, base, rows: &rows };
                let out = if stage.writes() { &mut merged[run] } else { &mut [] };
                stage.add(&mut states[k % threads], &view, out);
            }
        }
        let mut all = stage.empty();
        for mut state in states {
            let saved = stage.save(&mut state);
            assert!(
                stage.load(&saved[..saved.len().saturating_sub(1)]).is_none() || saved.is_empty()
            );
            stage.merge(&mut all, stage.load(&saved).unwrap());
        }
        match stage.finish(all, &Held::default()).unwrap() {
            Next::Stage(next) => stage = next,
            Next::Done(_) => return merged,
        }
    }
}

/// Values of both signs and sizes far apart, with zeros.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let value = ((x >> 40) as f32 / 16_777_216.0 - 0.5) * 10f32.powi((x % 5) as i32 - 3);
        if x.is_multiple_of(9) { 0.0 } else { value }
    };
    (0..len).map(|_| next()).collect()
}

/// Methods with parameters for two models (or one, besides the base).
fn cases() -> Vec<(&'static str, &'static Entry, bool, Values)> {
    let weights = |n| Values::new(n).with_each("weight", &[0.7, 0.4, 0.2]);
    let nuslerp = |flatten, row_wise| {
        weights(2).with_flag("nuslerp_flatten", flatten).with_flag("nuslerp_row_wise", row_wise)
    };
    let multislerp = |n| weights(n).with_flag("normalize_weights", true).with("eps", 1e-8);
    let karcher = Values::new(3).with("max_iter", 10.0).with("tol", 1e-5);
    vec![
        ("slerp", &super::slerp::ENTRY, true, Values::new(1).with("t", 0.3)),
        ("nuslerp", &super::nuslerp::ENTRY, false, nuslerp(true, false)),
        ("nuslerp with base", &super::nuslerp::ENTRY, true, nuslerp(true, false)),
        ("nuslerp by rows", &super::nuslerp::ENTRY, true, nuslerp(false, false)),
        ("multislerp", &super::multislerp::ENTRY, false, multislerp(3)),
        ("multislerp with base", &super::multislerp::ENTRY, true, multislerp(2)),
        ("karcher", &super::karcher::ENTRY, false, karcher),
        ("model_stock", &super::model_stock::ENTRY, true, Values::new(3)),
        (
            "model_stock by rows",
            &super::model_stock::ENTRY,
            true,
            Values::new(2).with_flag("filter_wise", true),
        ),
        ("nuslerp by columns", &super::nuslerp::ENTRY, false, nuslerp(false, true)),
        ("nuslerp by columns, with base", &super::nuslerp::ENTRY, true, nuslerp(false, true)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_tiling_on_any_path_gives_the_same_bits(
        shape in prop_oneof![
            (1u64..40_000).prop_map(|n| vec![n]),
            (1u64..300, 1u64..200).prop_map(|(r, c)| vec![r, c]),
            (1u64..9, 1u64..40, 1u64..90).prop_map(|(e, r, c)| vec![e, r, c]),
            Just(vec![3, 9000]),
        ],
        seed in any::<u64>(),
        tile in 1usize..50_000,
        threads in 1usize..4,
    ) {
        let len = shape.iter().product::<u64>() as usize;
        let base = numbers(len, seed);
        let rows: Vec<Vec<f32>> = (1..4).map(|k| numbers(len, seed ^ k)).collect();
        for (name, entry, has_base, values) in cases() {
            let base = if has_base { &base[..] } else { &[] };
            let rows: Vec<&[f32]> = rows.iter().take(values.experts.len()).map(Vec::as_slice).collect();
            let whole = merged(entry, &shape, values.clone(), base, &rows).unwrap();
            prop_assert!(whole.iter().all(|x| x.is_finite()), "{}", name);
            for kernels in Kernels::available() {
                let cut = in_tiles(entry, kernels, &shape, &values, (base, &rows), (tile, threads));
                let same = cut.iter().zip(&whole).all(|(x, y)| x.to_bits() == y.to_bits());
                prop_assert!(same, "{} {:?} {:?}", name, kernels, shape);
            }
        }
    }
}
