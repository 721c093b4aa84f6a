//! What the scan decides in variants c and d, against exact scores for bounds anywhere in their brackets.

use proptest::prelude::*;

use super::crowd::Crowd;
use super::guess::{Aim, Boxed, guess};
use super::tests::smooth;
use crate::kernel;
use crate::kernel::bracket::{Judged, Space, mark_rows};
use crate::kernel::keys;
use crate::kernel::pcb::{Bounds, Inter, Scratch};
use crate::stats::{Brackets, Span};

const LEN: usize = 2000;

struct Family {
    inter: Inter,
    rows: Vec<Vec<f32>>,
    /// Ranges of lo and of hi.
    ranges: Vec<[(f32, f32); 2]>,
}

impl Family {
    fn new(inter: Inter, n: usize, scale: f32, wide: (f32, f32), seed: u64) -> Self {
        let mut rows = smooth(n, LEN, seed);
        rows.iter_mut().flatten().for_each(|tau| *tau *= scale);
        // Like values in all experts, so that signs agree at times.
        for e in (0..LEN).step_by(3) {
            (1..n).for_each(|i| rows[i][e] = rows[0][e] * (1.0 + i as f32 * 0.1));
        }
        let range = |row: &Vec<f32>| {
            let mut sorted: Vec<f32> = row.iter().map(|tau| tau.abs()).collect();
            sorted.sort_by(f32::total_cmp);
            let (lo, hi) = (sorted[LEN / 50], sorted[LEN / 50 * 48]);
            [(lo, wide.0), (hi, wide.1)].map(|(at, wide)| (at * (1.0 - wide), at * (1.0 + wide)))
        };
        let ranges = rows.iter().map(range).collect();
        Self { inter, rows, ranges }
    }

    fn scores(&self, bounds: &[Bounds]) -> Vec<f32> {
        let taus: Vec<&[f32]> = self.rows.iter().map(Vec::as_slice).collect();
        let mut scores = vec![0.0; taus.len() * LEN];
        let kernels = kernel::select().unwrap();
        kernels.pcb_scores(self.inter, &taus, bounds, &mut Scratch::default(), &mut scores);
        scores
    }

    /// The scan's view, with thresholds as narrow as can be.
    fn guessed(&self) -> Option<(Crowd, Vec<Aim>)> {
        let boxed = |(row, ranges): (&Vec<f32>, &[(f32, f32); 2])| {
            let largest = row.iter().map(|tau| tau.abs().to_bits()).max()?;
            let spans = ranges.map(|(from, to)| (from.to_bits(), to.to_bits())).to_vec();
            Boxed::around(&Brackets { spans, largest })
        };
        let boxes = self.rows.iter().zip(&self.ranges).map(boxed).collect::<Option<Vec<_>>>()?;
        let mut crowd = Crowd::new(self.inter, boxes.clone())?;
        let sampled = |which: fn(&Boxed) -> Bounds| -> Vec<(Span, u32)> {
            let bounds: Vec<Bounds> = boxes.iter().map(which).collect();
            let scores = self.scores(&bounds);
            let ranked = scores.chunks(LEN).map(|row| {
                let mut keys: Vec<u32> = row.iter().map(|&score| keys::score_key(score)).collect();
                keys.sort_unstable();
                ((keys[LEN / 10 * 9], keys[LEN / 10 * 9]), keys[LEN - 1])
            });
            ranked.collect()
        };
        let (least, greatest) = (sampled(Boxed::least), sampled(Boxed::greatest));
        let mut aims = Vec::new();
        for (i, boxed) in boxes.iter().enumerate() {
            let turns = Some(crowd.turns(i));
            let aim = guess(boxes.len() as f32, boxed, least[i], greatest[i], turns)?;
            crowd.want(i, aim.guess);
            aims.push(aim);
        }
        Some((crowd, aims))
    }

    /// Undecided scores, after all decisions were compared with exact scores for some bounds.
    fn check(&self, share: impl Fn(usize) -> [f32; 2]) -> Option<usize> {
        let (crowd, aims) = self.guessed()?;
        let bounds: Vec<Bounds> = (0..self.rows.len())
            .map(|i| {
                let at = |bound: usize| {
                    let (from, to) = self.ranges[i][bound];
                    (from + (to - from) * share(i)[bound]).clamp(from, to)
                };
                Bounds { lo: at(0), hi: at(1) }
            })
            .collect();
        let scores = self.scores(&bounds);
        let kernels = kernel::select().unwrap();
        let (mut open, mut space) = (0, Space::default());
        for e in 0..LEN {
            let taus: Vec<&[f32]> = self.rows.iter().map(|row| &row[e..=e]).collect();
            let mut marks = vec![0; mark_rows(taus.len())];
            let mut judged = vec![Judged::default(); taus.len()];
            kernels.pcb_judge_together(&crowd.joint, &taus, &mut space, &mut marks, &mut judged);
            for (i, aim) in aims.iter().enumerate() {
                let score = scores[i * LEN + e];
                let turn = crowd.turn_for(i, &bounds).unwrap() * aim.turn(bounds[i]);
                let (low, high) = aim.span(turn);
                let key = keys::score_key(score);
                let what = format!("{:?} expert {i} element {e}: {score}, {judged:?}", self.inter);
                if marks[0] == 0 {
                    assert!(f64::from(score) < f64::from(aim.guess.top) * turn, "top: {what}");
                }
                if marks[1] >> i & 1 != 0 {
                    open += 1;
                } else if judged[i].below != 0 {
                    assert!(key < low, "below: {what}");
                } else if judged[i].zeros != 0 {
                    assert!(score == 0.0, "zero: {what}");
                } else {
                    assert!(key > high, "above: {what}");
                }
            }
        }
        Some(open)
    }
}

#[test]
fn narrow_brackets_leave_few_undecided() {
    for inter in [Inter::Half, Inter::Pairs] {
        let family = Family::new(inter, 3, 1.0, (0.1, 0.01), 5);
        let open = family.check(|_| [0.3, 0.6]).unwrap();
        assert!(open < 3 * LEN / 40, "{inter:?}: {open}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn no_decision_is_wrong_for_any_bounds_in_the_brackets(
        inter in prop::sample::select(vec![Inter::Half, Inter::Pairs]),
        n in 1usize..6,
        scale in prop::sample::select(vec![1e-18, 1.0, 300.0]),
        wide in (
            prop::sample::select(vec![0.0f32, 0.3]),
            prop::sample::select(vec![0.0f32, 0.003, 0.03, 0.2]),
        ),
        ends in prop::collection::vec(prop_oneof![Just([0.0f32, 0.0]), Just([1.0, 1.0]), Just([1.0, 0.0]), [0.0f32..1.0, 0.0..1.0]], 6),
        seed in any::<u64>(),
    ) {
        let family = Family::new(inter, n, scale, wide, seed);
        let _undecided = family.check(|i| ends[i]);
    }
}
