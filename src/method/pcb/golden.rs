//! Comparison with the numpy reference (`fixtures/golden/pcb`, made by `fixtures/make_golden.py`).
//!
//! Clamp bounds must be equal; thresholds and scores may differ by the last bits of exp and tanh;
//! masks are equal but for elements that lie on the threshold within those bits; values agree to
//! 1e-5 of the largest value averaged at the element.

use super::{Pcb, Variant};
use crate::kernel::Kernels;
use crate::kernel::pcb::{Bounds, Inter, Scratch};
use crate::method::{Outcome, UnitView, Values, run_in_memory};
use crate::testing::golden::{self, Case};

fn variant(name: &str) -> Variant {
    match name {
        "a" => Variant::A,
        "b" => Variant::B,
        "c" => Variant::C,
        "d" => Variant::D,
        "paper" => Variant::Paper,
        other => panic!("unknown variant {other}"),
    }
}

/// The distance to the next `f32`.
fn ulp(x: f32) -> f64 {
    let x = x.abs().max(f32::MIN_POSITIVE);
    f64::from(f32::from_bits(x.to_bits() + 1)) - f64::from(x)
}

fn close(a: f32, b: f32, ulps: f64, scale: f32) -> bool {
    (f64::from(a) - f64::from(b)).abs() <= ulps * ulp(scale)
}

/// Scores of all experts over the whole case, n rows of d, and the size of what was summed up
/// for each: exp(n z^2) times the sum of |tanh|.
fn scores(case: &Case, taus: &[&[f32]], outcome: &Outcome, kernels: &Kernels) -> Vec<Vec<f32>> {
    let inter = match variant(&case.variant) {
        Variant::C => Inter::Half,
        Variant::D => Inter::Pairs,
        _ => Inter::Raw,
    };
    let bounds: Vec<Bounds> = (outcome.experts.iter())
        .map(|e| Bounds { lo: e.figure("lo").unwrap(), hi: e.figure("hi").unwrap() })
        .collect();
    let d = case.base.len();
    let mut out = vec![0.0; taus.len() * d];
    kernels.pcb_scores(inter, taus, &bounds, &mut Scratch::default(), &mut out);
    out.chunks(d).map(<[f32]>::to_vec).collect()
}

fn check(case: &Case, kernels: &'static Kernels) {
    let name = &case.name;
    let method = Pcb::new(variant(&case.variant), case.keep, kernels);
    let taus: Vec<Vec<f32>> = (case.experts.iter())
        .map(|expert| expert.iter().zip(&case.base).map(|(x, b)| x - b).collect())
        .collect();
    let taus: Vec<&[f32]> = taus.iter().map(Vec::as_slice).collect();
    let zero = vec![0.0; case.base.len()];
    let lambdas: Vec<f64> = case.lambdas.iter().map(|&lambda| lambda.into()).collect();
    let values = Values::new(lambdas.len()).with_each("lambda", &lambdas);
    let unit = UnitView::array(&case.name, zero.len() as u64, values);
    let (delta, outcome) = run_in_memory(&method, &unit, &zero, &taus).unwrap();

    // In variant d terms of both signs are added, so the error is that of the terms, of which
    // each is at most tanh(1); exp is at most exp(n).
    let n = taus.len() as f32;
    let coarse = if case.variant == "d" { n * 0.77 } else { 0.0 };
    let mut near_threshold = vec![false; case.base.len()];
    for (i, expert) in outcome.experts.iter().enumerate() {
        let figure = |key| expert.figure(key).unwrap();
        if !case.lo.is_empty() {
            assert_eq!(figure("lo").to_bits(), case.lo[i].to_bits(), "{name}: lo of {i}");
            assert_eq!(figure("hi").to_bits(), case.hi[i].to_bits(), "{name}: hi of {i}");
        }
        let (threshold, top) = (figure("threshold"), figure("top"));
        let paper = if case.variant == "paper" { 4.0 } else { 1.0 };
        assert!(
            close(threshold, case.threshold[i], 4.0 * paper, case.threshold[i].abs().max(coarse)),
            "{name}: threshold of {i}: {threshold:e} against {:e}",
            case.threshold[i]
        );
        assert!(
            close(top, case.top[i], 8.0 * paper, case.top[i].abs().max(coarse)),
            "{name}: top of {i}: {top:e} against {:e}",
            case.top[i]
        );
    }
    if case.variant == "paper" {
        for (expert, kept) in outcome.experts.iter().zip(&case.kept) {
            assert!(expert.kept.abs_diff(*kept as u64) <= 2, "{name}: kept {} {kept}", expert.kept);
        }
    } else {
        for (i, row) in scores(case, &taus, &outcome, kernels).iter().enumerate() {
            let threshold = outcome.experts[i].figure("threshold").unwrap();
            let empty = taus[i].iter().all(|&t| t == 0.0);
            let spread = outcome.experts[i].figure("top").unwrap() > threshold;
            for (e, &score) in row.iter().enumerate() {
                let ours = score > threshold && !empty && spread;
                let theirs = case.mask[i * row.len() + e] != 0;
                let at = close(score, threshold, 4.0, threshold.abs().max(coarse));
                near_threshold[e] |= at;
                assert!(
                    ours == theirs || at,
                    "{name}: mask of {i} at {e}: {score:e} {threshold:e}"
                );
            }
        }
    }
    let mut beyond = 0;
    for (e, (&ours, &theirs)) in delta.iter().zip(&case.delta).enumerate() {
        let allowed = 1e-5 * f64::from(case.largest[e]) + 1e-45;
        let differs = (f64::from(ours) - f64::from(theirs)).abs() > allowed;
        assert!(
            !differs || near_threshold[e] || case.variant == "paper",
            "{name}: element {e}: {ours:e} against {theirs:e}, largest {:e}",
            case.largest[e]
        );
        beyond += usize::from(differs);
    }
    assert!(beyond <= 7, "{name}: {beyond} elements beyond the tolerance");
}

#[test]
fn agrees_with_the_reference() {
    let cases = golden::load_all("pcb");
    assert!(cases.len() > 40);
    for kernels in Kernels::available() {
        cases.iter().for_each(|case| check(case, kernels));
    }
}
