//! Variant `paper`: the softmax form of the article, equations 1 to 7, with min-max as Norm.
//!
//! ```text
//! products       min and max of tau_i tau_j, for i <= j
//! softmax sums   Z_ij = sum_e exp(N_ij - top), and Z_i for the intra term
//! scores         beta_i = softmax(n N_ii) * sum_j softmax(N_ij); threshold by rank
//! map            out = base + sum_i lambda_i m_i beta_i tau_i / sum_i m_i beta_i
//! ```
//! Each N is min-max scaled over the unit, 0 where all products are equal.

use std::sync::Arc;

use super::{Findings, Setup, load_tallies, save_tallies};
use crate::kernel::keys;
use crate::kernel::pcb::{Softmax, Tally};
use crate::method::pass::count_taken;
use crate::method::{BLOCK, Block, Kept, MethodError, Next, Note, Outcome, Stage};
use crate::stats::{FixedSum, Reader, RowCounts, RowSelection, Selected, Writer};

/// Position of the pair (i, j) in the triangle of all pairs of n experts.
fn pair(n: usize, i: usize, j: usize) -> usize {
    let (i, j) = (i.min(j), i.max(j));
    i * n - i * (i + 1) / 2 + j
}

fn pairs(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).flat_map(move |i| (i..n).map(move |j| (i, j)))
}

struct Common {
    setup: Arc<Setup>,
    elements: u64,
    rank: u64,
}

/// Least and greatest product of each pair.
pub(super) struct Products(Common);

impl Products {
    pub(super) fn new(setup: Arc<Setup>, elements: u64, rank: u64) -> Self {
        Self(Common { setup, elements, rank })
    }
}

impl Stage for Products {
    /// (least, greatest) as sortable keys.
    type State = Vec<(u32, u32)>;

    fn name(&self) -> &'static str {
        "products"
    }

    fn empty(&self) -> Self::State {
        let n = self.0.setup.experts();
        vec![(u32::MAX, 0); n * (n + 1) / 2]
    }

    fn add(&self, state: &mut Self::State, block: &Block<'_>, _out: &mut [f32]) {
        for ((i, j), (least, greatest)) in pairs(block.rows.len()).zip(state) {
            for (a, b) in block.rows[i].iter().zip(block.rows[j]) {
                let key = keys::score_key(a * b);
                *least = key.min(*least);
                *greatest = key.max(*greatest);
            }
        }
    }

    fn merge(&self, into: &mut Self::State, from: Self::State) {
        for (into, from) in into.iter_mut().zip(from) {
            *into = (into.0.min(from.0), into.1.max(from.1));
        }
    }

    fn save(&self, state: &Self::State) -> Vec<u8> {
        let mut out = Writer::default();
        state.iter().flat_map(|&(least, most)| [least, most]).for_each(|key| out.u32(key));
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<Self::State> {
        let mut saved = Reader::new(saved);
        let mut state = self.empty();
        for range in &mut state {
            *range = (saved.u32()?, saved.u32()?);
        }
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: Self::State) -> Result<Next, MethodError> {
        let n = self.0.setup.experts();
        let ranges: Vec<(f32, f32)> =
            state.iter().map(|&(least, most)| (keys::score(least), keys::score(most))).collect();
        for (i, j) in pairs(n) {
            let (least, most) = ranges[pair(n, i, j)];
            // An empty unit has no products, and its unset range is not finite.
            if self.0.elements > 0 && !(least.is_finite() && (most - least).is_finite()) {
                return Err(MethodError::ScoreOverflow { expert: j + 1 });
            }
        }
        let empty = (0..n).map(|i| ranges[pair(n, i, i)] == (0.0, 0.0)).collect();
        Ok(Next::stage(Sums { common: self.0, ranges, empty }))
    }
}

/// The denominators of all softmaxes.
struct Sums {
    common: Common,
    ranges: Vec<(f32, f32)>,
    empty: Vec<bool>,
}

struct SumState {
    /// Per pair the inter term's sum, then per expert the intra term's.
    sums: Vec<FixedSum>,
    product: Vec<f32>,
    grown: Vec<f32>,
}

impl Stage for Sums {
    type State = SumState;

    fn name(&self) -> &'static str {
        "softmax sums"
    }

    fn empty(&self) -> SumState {
        let sums = vec![FixedSum::default(); self.ranges.len() + self.empty.len()];
        SumState { sums, product: vec![0.0; BLOCK], grown: vec![0.0; BLOCK] }
    }

    fn add(&self, state: &mut SumState, block: &Block<'_>, _out: &mut [f32]) {
        let (n, len) = (block.rows.len(), block.base.len());
        let kernels = self.common.setup.kernels;
        let SumState { sums, product, grown } = state;
        let (product, grown) = (&mut product[..len], &mut grown[..len]);
        for (i, j) in pairs(n) {
            let at = pair(n, i, j);
            kernels.products(block.rows[i], block.rows[j], product);
            let softmax = Softmax::new(self.ranges[at], 1.0);
            kernels.softmax_numerators(&softmax, product, grown);
            grown.iter().for_each(|&term| sums[at].add(term));
            if i == j {
                let softmax = Softmax::new(self.ranges[at], n as f32);
                kernels.softmax_numerators(&softmax, product, grown);
                let intra = &mut sums[self.ranges.len() + i];
                grown.iter().for_each(|&term| intra.add(term));
            }
        }
    }

    fn merge(&self, into: &mut SumState, from: SumState) {
        for (sum, more) in into.sums.iter_mut().zip(from.sums) {
            sum.merge(more);
        }
    }

    fn save(&self, state: &SumState) -> Vec<u8> {
        let mut out = Writer::default();
        state.sums.iter().for_each(|sum| out.u128(sum.to_bits()));
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<SumState> {
        let mut saved = Reader::new(saved);
        let mut state = self.empty();
        for sum in &mut state.sums {
            *sum = FixedSum::from_bits(saved.u128()?);
        }
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: SumState) -> Result<Next, MethodError> {
        let Common { setup, elements, rank } = self.common;
        let totals: Vec<f32> = state.sums.iter().map(|sum| sum.value() as f32).collect();
        let (inter, intra) = totals.split_at(self.ranges.len());
        let (inter, intra) = (inter.to_vec(), intra.to_vec());
        let selection = RowSelection::new(setup.experts(), elements, vec![rank]);
        let beta = Beta { setup, ranges: self.ranges, inter, intra };
        Ok(Next::stage(Scores { beta, elements, empty: self.empty, selection }))
    }
}

/// Everything that beta_i depends on, apart from the task vectors.
struct Beta {
    setup: Arc<Setup>,
    ranges: Vec<(f32, f32)>,
    inter: Vec<f32>,
    intra: Vec<f32>,
}

#[derive(Clone)]
struct Rows {
    product: Vec<f32>,
    grown: Vec<f32>,
    beta: Vec<f32>,
}

impl Rows {
    fn new() -> Self {
        Self { product: vec![0.0; BLOCK], grown: vec![0.0; BLOCK], beta: vec![0.0; BLOCK] }
    }
}

impl Beta {
    /// beta_i of a block, left in `rows.beta`.
    fn compute(&self, i: usize, block: &Block<'_>, rows: &mut Rows) {
        let (n, len) = (block.rows.len(), block.base.len());
        let kernels = self.setup.kernels;
        let Rows { product, grown, beta } = rows;
        let (product, grown, beta) = (&mut product[..len], &mut grown[..len], &mut beta[..len]);
        beta.fill(0.0);
        for j in 0..n {
            let at = pair(n, i, j);
            kernels.products(block.rows[i], block.rows[j], product);
            kernels.softmax_numerators(&Softmax::new(self.ranges[at], 1.0), product, grown);
            for (sum, term) in beta.iter_mut().zip(&*grown) {
                *sum += term / self.inter[at];
            }
        }
        let at = pair(n, i, i);
        kernels.products(block.rows[i], block.rows[i], product);
        kernels.softmax_numerators(&Softmax::new(self.ranges[at], n as f32), product, grown);
        for (beta, term) in beta.iter_mut().zip(&*grown) {
            *beta *= term / self.intra[i];
        }
    }
}

/// Threshold and maximum of beta_i.
struct Scores {
    beta: Beta,
    elements: u64,
    empty: Vec<bool>,
    selection: RowSelection,
}

struct ScoreState {
    counts: RowCounts,
    keys: Vec<u32>,
    rows: Rows,
}

impl Stage for Scores {
    type State = ScoreState;

    fn name(&self) -> &'static str {
        if self.selection.is_first() { "scores" } else { "scores, refined" }
    }

    fn empty(&self) -> ScoreState {
        ScoreState { counts: self.selection.empty(), keys: vec![0; BLOCK], rows: Rows::new() }
    }

    fn add(&self, state: &mut ScoreState, block: &Block<'_>, _out: &mut [f32]) {
        let len = block.base.len();
        let keys = &mut state.keys[..len];
        for i in 0..block.rows.len() {
            self.beta.compute(i, block, &mut state.rows);
            self.beta.setup.kernels.magnitude_keys(&state.rows.beta[..len], keys);
            self.selection.add(&mut state.counts, i, keys);
        }
    }

    fn merge(&self, into: &mut ScoreState, from: ScoreState) {
        into.counts.merge(from.counts);
    }

    fn save(&self, state: &ScoreState) -> Vec<u8> {
        let mut out = Writer::default();
        state.counts.save(&mut out);
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<ScoreState> {
        let mut saved = Reader::new(saved);
        let counts = self.selection.load(&mut saved)?;
        saved.end()?;
        Some(ScoreState { counts, ..self.empty() })
    }

    fn finish(self, state: ScoreState) -> Result<Next, MethodError> {
        let found = match self.selection.absorb(state.counts) {
            Selected::Again(selection) => return Ok(Next::stage(Self { selection, ..self })),
            Selected::Found(found) => found,
        };
        let (thresholds, findings) = (found.iter().zip(&self.empty))
            .map(|(row, &empty)| {
                let threshold = keys::magnitude(row.value(0));
                let figures = vec![("threshold", threshold), ("top", keys::magnitude(row.largest))];
                let notes = if empty { vec![Note::IdenticalToBase] } else { Vec::new() };
                (threshold, Findings { empty, figures, notes })
            })
            .unzip();
        let Self { beta, elements, .. } = self;
        Ok(Next::stage(Map { beta, elements, thresholds, findings }))
    }
}

/// Mean of the raw task vectors, weighted by the scores at or above the threshold.
struct Map {
    beta: Beta,
    elements: u64,
    thresholds: Vec<f32>,
    findings: Vec<Findings>,
}

struct MapState {
    tallies: Vec<Tally>,
    weights: Vec<f32>,
    shares: Vec<f32>,
    rows: Rows,
}

impl Stage for Map {
    type State = MapState;

    fn name(&self) -> &'static str {
        "merge"
    }

    fn writes(&self) -> bool {
        true
    }

    fn empty(&self) -> MapState {
        let n = self.thresholds.len();
        let weights = vec![0.0; n * BLOCK];
        let tallies = vec![Tally::default(); n];
        MapState { tallies, weights, shares: Vec::new(), rows: Rows::new() }
    }

    fn add(&self, state: &mut MapState, block: &Block<'_>, out: &mut [f32]) {
        let mut shares = std::mem::take(&mut state.shares);
        shares.resize(block.rows.len() * block.len(), 0.0);
        self.add_shares(state, block, out, &mut shares, &mut []);
        state.shares = shares;
    }

    fn add_shares(
        &self,
        state: &mut MapState,
        block: &Block<'_>,
        out: &mut [f32],
        shares: &mut [f32],
        _sums: &mut [f64],
    ) {
        let (n, len) = (block.rows.len(), block.len());
        for i in 0..n {
            self.beta.compute(i, block, &mut state.rows);
            let weights = &mut state.weights[i * BLOCK..i * BLOCK + len];
            for (weight, &beta) in weights.iter_mut().zip(&state.rows.beta) {
                let kept = beta >= self.thresholds[i] && !self.findings[i].empty;
                *weight = if kept { beta } else { 0.0 };
                state.tallies[i].kept += u64::from(*weight > 0.0);
            }
        }
        for e in 0..len {
            let sum = (0..n).fold(0.0, |sum, i| sum + state.weights[i * BLOCK + e]);
            for i in 0..n {
                let share = state.weights[i * BLOCK + e] * block.rows[i][e] / sum;
                shares[i * len + e] = if sum == 0.0 { 0.0 } else { share };
            }
        }
        self.beta.setup.combine(block, shares, out);
    }

    fn count_kept(&self, state: &mut MapState, block: &Block<'_>, kept: &mut [Kept]) -> bool {
        let rows = state.weights.chunks_exact(BLOCK).map(|row| &row[..block.len()]);
        count_taken(kept, rows, |_, _, weight| weight > 0.0);
        true
    }

    fn merge(&self, into: &mut MapState, from: MapState) {
        for (tally, more) in into.tallies.iter_mut().zip(from.tallies) {
            tally.merge(more);
        }
    }

    fn save(&self, state: &MapState) -> Vec<u8> {
        save_tallies(&state.tallies)
    }

    fn load(&self, saved: &[u8]) -> Option<MapState> {
        let tallies = load_tallies(saved, self.findings.len())?;
        Some(MapState { tallies, ..self.empty() })
    }

    fn finish(self, state: MapState) -> Result<Next, MethodError> {
        let experts = self.findings.into_iter().zip(state.tallies);
        let experts = experts.map(|(f, t)| f.outcome(t.kept, t.weight())).collect();
        Ok(Next::Done(Outcome { elements: self.elements, missed: 0, experts }))
    }
}
