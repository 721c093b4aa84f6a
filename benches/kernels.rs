//! Kernels and selection, in cache, for every instruction set of this machine.
//!
//! Each kernel is checked against the scalar definition, bit by bit, before it is timed.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use reflow::kernel::bracket::{Guess, Rows};
use reflow::kernel::pcb::{Bounds, Cut, Inter, Scratch, Tally};
use reflow::kernel::{Float, Kernels};
use reflow::method::BLOCK;
use reflow::stats::Selector;

const EXPERTS: usize = 3;

/// Values like those of fine-tuned weights.
fn row(seed: u64, scale: f32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let uniform = (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        uniform * uniform.abs() * scale
    };
    std::iter::repeat_with(next).take(BLOCK).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn conversions(c: &mut Criterion) {
    let Some(scalar) = Kernels::available().next() else { return };
    let base = row(1, 0.1);
    for (name, float) in [
        ("bf16", Float::BF16),
        ("f16", Float::F16),
        ("f32", Float::F32),
        ("f8_e4m3", Float::F8E4M3),
    ] {
        let mut group = c.benchmark_group(name);
        let mut bytes = vec![0; BLOCK * float.size()];
        scalar.encode(float, &row(2, 0.1), &mut bytes);
        group.throughput(Throughput::Elements(BLOCK as u64));
        let mut expected = vec![0.0; BLOCK];
        scalar.decode_minus_base(float, &bytes, &base, &mut expected);
        for kernels in Kernels::available() {
            let (mut out, mut stored) = (vec![0.0; BLOCK], vec![0; bytes.len()]);
            kernels.decode_minus_base(float, &bytes, &base, &mut out);
            assert_eq!(bits(&out), bits(&expected));
            group.bench_function(BenchmarkId::new("task vector", kernels.level()), |b| {
                b.iter(|| {
                    kernels.decode_minus_base(float, black_box(&bytes), black_box(&base), &mut out);
                });
            });
            group.bench_function(BenchmarkId::new("encode", kernels.level()), |b| {
                b.iter(|| kernels.encode(float, black_box(&base), &mut stored));
            });
        }
    }
}

fn pcb(c: &mut Criterion) {
    let rows: Vec<Vec<f32>> = (0..EXPERTS).map(|i| row(i as u64 + 7, 0.01)).collect();
    let taus: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
    let bounds = [Bounds { lo: 1e-7, hi: 2e-3 }; EXPERTS];
    let cuts = [Cut { threshold: 1e-6, span: 1e-4, active: true }; EXPERTS];
    let base = row(1, 0.1);
    let mut group = c.benchmark_group("pcb");
    group.throughput(Throughput::Elements((BLOCK * EXPERTS) as u64));
    for (name, inter) in [("a", Inter::Raw), ("c", Inter::Half), ("d", Inter::Pairs)] {
        let mut expected = Vec::new();
        for kernels in Kernels::available() {
            let (mut scratch, mut scores) = (Scratch::default(), vec![0.0; EXPERTS * BLOCK]);
            let mut run = || {
                kernels.pcb_scores(inter, black_box(&taus), &bounds, &mut scratch, &mut scores);
            };
            run();
            group.bench_function(
                BenchmarkId::new(format!("scores {name}"), kernels.level()),
                |b| {
                    b.iter(&mut run);
                },
            );
            if expected.is_empty() {
                expected = bits(&scores);
            }
            assert_eq!(bits(&scores), expected);
            if inter == Inter::Raw {
                let (mut out, mut tallies) = (vec![0.0; BLOCK], [Tally::default(); EXPERTS]);
                group.bench_function(BenchmarkId::new("merge", kernels.level()), |b| {
                    b.iter(|| {
                        kernels.pcb_merge(
                            &base,
                            black_box(&taus),
                            &scores,
                            &bounds,
                            &cuts,
                            &[1.0; EXPERTS],
                            &mut scratch,
                            &mut out,
                            &mut tallies,
                        );
                    });
                });
            }
        }
    }
}

/// The scan's decision and the map, on task vectors of which a tenth is kept.
fn fused(c: &mut Criterion) {
    let Some(scalar) = Kernels::available().next() else { return };
    let rows: Vec<Vec<f32>> = (0..EXPERTS).map(|i| row(i as u64 + 7, 0.01)).collect();
    let taus: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
    let (base, middle) = (row(1, 0.1), Bounds { lo: 1e-7, hi: 2.4e-3 });
    let (bounds, mut scratch) = ([middle; EXPERTS], Scratch::default());
    let mut scores = vec![0.0; EXPERTS * BLOCK];
    scalar.pcb_scores(Inter::Raw, &taus, &bounds, &mut scratch, &mut scores);
    scores[..BLOCK].sort_unstable_by(f32::total_cmp);
    let (threshold, largest) = (scores[BLOCK / 10 * 9], scores[BLOCK - 1]);
    let cuts = [Cut { threshold, span: largest, active: true }; EXPERTS];
    let guess = Guess {
        middle,
        low: threshold * 0.999,
        high: threshold * 1.001,
        pivot: 1.0,
        reach: 1e-3,
        lean: 1e-4,
        guard: 1e-5,
        edge: 2.9,
        far: 3.0,
        top: largest,
    };
    let mut sum = vec![0.0; BLOCK];
    scalar.pcb_sum(&taus, &mut sum);
    let mut group = c.benchmark_group("pcb a");
    group.throughput(Throughput::Elements((BLOCK * EXPERTS) as u64));
    let mut expected = None;
    for kernels in Kernels::available() {
        let (mut found, mut judging) = (Vec::new(), Rows::default());
        let mut judge = || {
            found.clear();
            for tau in &taus {
                let (tau, sum) = (black_box(tau), &sum);
                kernels.pcb_judge(EXPERTS as f32, tau, sum, &guess, &mut judging, &mut found);
            }
            found.len()
        };
        let (mut out, mut tallies) = (vec![0.0; BLOCK], [Tally::default(); EXPERTS]);
        let mut map = |out: &mut [f32]| {
            kernels.pcb_map(
                Inter::Raw,
                &base,
                black_box(&taus),
                &bounds,
                &cuts,
                &[1.0; EXPERTS],
                &mut scratch,
                out,
                &mut tallies,
            );
        };
        map(&mut out);
        let got = (judge(), bits(&out));
        assert_eq!(expected.get_or_insert_with(|| got.clone()), &got);
        group.bench_function(BenchmarkId::new("judge", kernels.level()), |b| b.iter(&mut judge));
        group
            .bench_function(BenchmarkId::new("map", kernels.level()), |b| b.iter(|| map(&mut out)));
    }
}

fn selection(c: &mut Criterion) {
    let keys: Vec<u32> = row(3, 0.01).iter().map(|v| v.to_bits() & 0x7fff_ffff).collect();
    let mut group = c.benchmark_group("selection");
    group.throughput(Throughput::Elements(BLOCK as u64));
    let mut selector = Selector::new(1 << 20, vec![1 << 10, 1 << 19]);
    for pass in ["upper half", "lower half"] {
        let mut counts = selector.empty();
        group.bench_function(pass, |b| b.iter(|| counts.add(black_box(&keys))));
        selector.absorb(counts);
    }
}

criterion_group!(benches, conversions, pcb, fused, selection);
criterion_main!(benches);
