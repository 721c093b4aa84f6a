//! What all methods of the room have in common.

use proptest::prelude::*;

use crate::kernel::Kernels;
use crate::method::Values;
use crate::method::registry::Entry;
use crate::method::testing::{in_tiles, merged, numbers};

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
