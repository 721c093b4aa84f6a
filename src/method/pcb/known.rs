//! Findings: a merge that is given those of another one is the same merge, in one pass.

use std::collections::BTreeMap;

use super::fused::Tuning;
use super::fused::tests::smooth;
use super::tests::{Case, bits, merge, taus};
use super::{Pcb, Variant};
use crate::kernel;
use crate::method::{BLOCK, Knowing, Method, Several, Strategy, run_in_memory};
use crate::testing::parts::{self, Run};

const ALL: [Variant; 4] = [Variant::A, Variant::B, Variant::C, Variant::D];

fn case(variant: Variant, keep: f64, n: usize, tuning: Tuning) -> Case {
    let method = Pcb { tuning, ..Pcb::new(variant, keep, kernel::select().unwrap()) };
    Case { method, lambdas: (0..n).map(|i| 1.0 + 0.25 * i as f64).collect() }
}

/// The findings of several merges over one read, as an engine would cut it.
fn survey(cases: &[&Case], taus: &[Vec<f32>], run: &Run) -> Vec<Vec<u8>> {
    let methods = cases.iter().map(|case| Box::new(case.method.clone()) as Box<dyn Method>);
    let (several, found) = Several::new(methods.collect());
    let unit = cases[0].unit(taus[0].len());
    let base = vec![0.125; taus[0].len()];
    let (out, _) = parts::merge(&several, &unit, &base, taus, run).unwrap();
    assert!(out.iter().all(|value| value.is_nan()), "it writes nothing");
    found.take(&unit.name).unwrap().into_iter().map(Option::unwrap).collect()
}

/// Demands that each merge that is given its findings is the merge itself, in one pass; tells of brackets missed.
#[track_caller]
fn check(cases: &[Case], taus: &[Vec<f32>], run: &Run) -> Vec<u64> {
    let all: Vec<&Case> = cases.iter().collect();
    let base = vec![0.125; taus[0].len()];
    let rows: Vec<&[f32]> = taus.iter().map(Vec::as_slice).collect();
    let unit = cases[0].unit(taus[0].len());
    let found = survey(&all, taus, run);
    let one_by_one = cases.iter().zip(found).map(|(case, findings)| {
        let (expected, told) = merge(case, &base, taus);
        let known = BTreeMap::from([(unit.name.clone(), findings)]);
        let method = Knowing::new(Box::new(case.method.clone()), known);
        assert_eq!((method.passes(&unit), method.sampled(&unit)), (vec!["merge"], None));
        assert!(method.start(&unit).unwrap().writes());
        let (merged, outcome) = run_in_memory(&method, &unit, &base, &rows).unwrap();
        assert_eq!(outcome, told);
        assert!(bits(&merged) == bits(&expected));
        outcome.missed
    });
    one_by_one.collect()
}

fn all_settings(n: usize, tuning: Tuning) -> Vec<Case> {
    let keeps = |variant| [0.05, 0.2].map(|keep| case(variant, keep, n, tuning));
    ALL.into_iter().flat_map(keeps).collect()
}

fn run() -> Run {
    Run { cuts: vec![BLOCK, 1500], workers: 2, at_hand: false }
}

const SAMPLED: Tuning = Tuning { collect: 0, width: 1.0 };

#[test]
fn one_scan_finds_what_each_merge_finds_for_itself() {
    for tuning in [SAMPLED, Tuning::default()] {
        check(&all_settings(2, tuning), &smooth(2, 150_000, 3), &run());
        check(&all_settings(3, tuning), &taus(3, 60_000, 4), &run());
    }
    // Notes and figures of degenerate experts are told as well.
    let rows = [smooth(1, 50_000, 5).remove(0), vec![0.0; 50_000], vec![0.5; 50_000]];
    check(&all_settings(3, Tuning::default()), &rows, &run());
}

#[test]
fn a_merge_whose_brackets_are_missed_costs_the_others_nothing_but_time() {
    let narrow = Tuning { collect: 0, width: 0.0 };
    let radix = case(Variant::B, 0.1, 2, SAMPLED);
    let radix = Case { method: radix.method.with_strategy(Strategy::Radix), ..radix };
    let cases = [
        case(Variant::A, 0.1, 2, SAMPLED),
        case(Variant::A, 0.2, 2, narrow),
        case(Variant::C, 0.1, 2, narrow),
        radix,
    ];
    let missed = check(&cases, &smooth(2, 300_000, 20), &run());
    assert!(missed[0] == 0 && missed[1] > 0 && missed[2] > 0, "{missed:?}");
}

#[test]
fn a_setting_that_cannot_be_merged_does_not_end_the_others() {
    let methods = [case(Variant::A, 1e-18, 1, SAMPLED), case(Variant::A, 0.1, 1, SAMPLED)];
    let methods = methods.map(|case| Box::new(case.method) as Box<dyn Method>);
    let (several, found) = Several::new(methods.into());
    let taus = smooth(1, 5_000, 6);
    let unit = case(Variant::A, 0.1, 1, SAMPLED).unit(5_000);
    parts::merge(&several, &unit, &vec![0.0; 5_000], &taus, &run()).unwrap();
    let found = found.take(&unit.name).unwrap();
    assert!(found[0].is_none() && found[1].is_some());
    // None at all is told.
    let (several, _) = Several::new(vec![Box::new(case(Variant::A, 1e-18, 1, SAMPLED).method)]);
    assert!(several.start(&unit).is_err());
}

#[test]
fn findings_of_something_else_are_none() {
    let taus = smooth(2, 10_000, 8);
    let ours = case(Variant::B, 0.1, 2, Tuning::default());
    let findings = survey(&[&ours], &taus, &run()).remove(0);
    let knows = |case: &Case, elements, findings: &[u8]| {
        case.method.start_knowing(&case.unit(elements), findings).is_some()
    };
    assert!(knows(&ours, 10_000, &findings));
    assert!(!knows(&ours, 10_001, &findings), "other elements");
    assert!(!knows(&case(Variant::A, 0.1, 2, SAMPLED), 10_000, &findings), "another variant");
    assert!(!knows(&case(Variant::Paper, 0.1, 2, SAMPLED), 10_000, &findings), "another map");
    assert!(!knows(&case(Variant::B, 0.11, 2, SAMPLED), 10_000, &findings), "another keep");
    assert!(!knows(&case(Variant::B, 0.1, 3, SAMPLED), 10_000, &findings), "other experts");
    for len in 0..findings.len() {
        assert!(!knows(&ours, 10_000, &findings[..len]), "{len}");
    }
    let mut longer = findings.clone();
    longer.push(0);
    assert!(!knows(&ours, 10_000, &longer));
    // Whatever the bytes are, nothing breaks, and the merge is the same.
    let (expected, told) = merge(&ours, &vec![0.0; 10_000], &taus);
    let known = BTreeMap::from([(ours.unit(10_000).name.clone(), longer)]);
    let method = Knowing::new(Box::new(ours.method.clone()), known);
    let rows: Vec<&[f32]> = taus.iter().map(Vec::as_slice).collect();
    let (merged, outcome) =
        run_in_memory(&method, &ours.unit(10_000), &vec![0.0; 10_000], &rows).unwrap();
    assert!(bits(&merged) == bits(&expected) && outcome == told);
    for at in 0..findings.len() {
        let mut flipped = findings.clone();
        flipped[at] ^= 0x40;
        let _either_way = knows(&ours, 10_000, &flipped);
    }
}

#[test]
fn what_several_merges_read_is_what_one_reads() {
    let cases = all_settings(2, SAMPLED);
    let unit = cases[0].unit(100_000);
    let methods = cases.iter().map(|case| Box::new(case.method.clone()) as Box<dyn Method>);
    let (several, _) = Several::new(methods.collect());
    let mut passes = cases[0].method.passes(&unit);
    assert_eq!(several.sampled(&unit), cases[0].method.sampled(&unit));
    assert_eq!(passes.pop(), Some("merge"));
    assert_eq!(several.passes(&unit), passes);
    let one = cases.iter().map(|case| case.method.state_bytes(&unit));
    assert_eq!(several.state_bytes(&unit), one.sum::<u64>());
}
