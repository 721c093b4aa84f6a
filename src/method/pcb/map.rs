//! The map: weights from scores, and the weighted mean of the clamped task vectors.

use std::sync::Arc;

use super::{Findings, Setup, Variant, load_tallies, save_tallies};
use crate::kernel::pcb::{Bounds, Cut, Scratch, Tally};
use crate::method::{Block, Kept, MethodError, Next, Note, Outcome, Stage};
use crate::stats::{Reader, Writer};

/// First word of findings.
const FINDINGS: u32 = 0x5a6d_0010;
/// The names of figures, by their numbers in findings.
const FIGURES: [&str; 5] = ["lo", "hi", "largest", "threshold", "top"];
/// The same of notes.
const NOTES: [Note; 4] = [
    Note::IdenticalToBase,
    Note::BoundsCoincide,
    Note::MagnitudesEqual,
    Note::NothingAboveThreshold,
];

/// Writes out = base + sum_i lambda_i u_i, with u_i = s_i T_i / max(sum_k s_k, 1e-12).
pub(super) struct Map {
    setup: Arc<Setup>,
    elements: u64,
    bounds: Vec<Bounds>,
    cuts: Vec<Cut>,
    findings: Vec<Findings>,
    /// Brackets that were missed before.
    missed: u64,
}

pub(super) struct State {
    tallies: Vec<Tally>,
    /// As they were when they were counted last.
    counted: Vec<Tally>,
    scratch: Scratch,
}

impl Map {
    pub(super) fn new(
        setup: Arc<Setup>,
        elements: u64,
        bounds: Vec<Bounds>,
        cuts: Vec<Cut>,
        findings: Vec<Findings>,
    ) -> Self {
        Self { setup, elements, bounds, cuts, findings, missed: 0 }
    }

    /// The same, after so many brackets were missed.
    pub(super) fn after(self, missed: u64) -> Self {
        Self { missed, ..self }
    }

    /// The map that [`Stage::findings`] tells of, if these are findings of as many experts and elements, with this
    /// variant and this fraction kept.
    pub(super) fn knowing(setup: Arc<Setup>, elements: u64, findings: &[u8]) -> Option<Self> {
        let mut from = Reader::new(findings);
        let head = [from.u32()?, from.u32()?, from.u32()?];
        let same = head == [FINDINGS, variant(setup.variant), setup.experts as u32]
            && from.u64()? == setup.keep.to_bits()
            && from.u64()? == elements;
        same.then_some(())?;
        let missed = from.u64()?;
        let (mut bounds, mut cuts, mut findings) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..setup.experts {
            bounds.push(Bounds { lo: float(&mut from)?, hi: float(&mut from)? });
            let (threshold, span) = (float(&mut from)?, float(&mut from)?);
            cuts.push(Cut { threshold, span, active: flag(&mut from)? });
            let empty = flag(&mut from)?;
            // Each takes bytes, so no count makes this long.
            let figure =
                |from: &mut Reader<'_>| Some((*FIGURES.get(from.u32()? as usize)?, float(from)?));
            let note = |from: &mut Reader<'_>| NOTES.get(from.u32()? as usize).copied();
            let figures = (0..from.u32()?).map(|_| figure(&mut from)).collect::<Option<_>>()?;
            let notes = (0..from.u32()?).map(|_| note(&mut from)).collect::<Option<_>>()?;
            findings.push(Findings { empty, figures, notes });
        }
        from.end()?;
        Some(Self { setup, elements, bounds, cuts, findings, missed })
    }
}

/// The number of a variant in findings.
fn variant(variant: Variant) -> u32 {
    match variant {
        Variant::A => 0,
        Variant::B => 1,
        Variant::C => 2,
        Variant::D => 3,
        Variant::Paper => 4,
    }
}

fn float(from: &mut Reader<'_>) -> Option<f32> {
    from.u32().map(f32::from_bits)
}

fn flag(from: &mut Reader<'_>) -> Option<bool> {
    match from.u32()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

impl Stage for Map {
    type State = State;

    fn name(&self) -> &'static str {
        "merge"
    }

    fn writes(&self) -> bool {
        true
    }

    fn empty(&self) -> State {
        let tallies = vec![Tally::default(); self.bounds.len()];
        State { counted: tallies.clone(), tallies, scratch: Scratch::default() }
    }

    fn add(&self, state: &mut State, block: &Block<'_>, out: &mut [f32]) {
        let setup = &self.setup;
        setup.kernels.pcb_map(
            setup.inter(),
            block.base,
            block.rows,
            &self.bounds,
            &self.cuts,
            setup.lambdas.get(block.tensor),
            &mut state.scratch,
            out,
            &mut state.tallies,
        );
    }

    fn add_shares(
        &self,
        state: &mut State,
        block: &Block<'_>,
        out: &mut [f32],
        shares: &mut [f32],
        _sums: &mut [f64],
    ) {
        let setup = &self.setup;
        setup.kernels.pcb_shares(
            setup.inter(),
            block.base,
            block.rows,
            &self.bounds,
            &self.cuts,
            &mut state.scratch,
            shares,
            &mut state.tallies,
        );
        setup.combine(block, shares, out);
    }

    fn count_kept(&self, state: &mut State, _block: &Block<'_>, kept: &mut [Kept]) -> bool {
        for ((kept, now), before) in kept.iter_mut().zip(&state.tallies).zip(&mut state.counted) {
            let ([elements, score], [e, s]) = (now.to_parts(), before.to_parts());
            kept.add(Kept { elements: elements - e, score: score - s });
            *before = *now;
        }
        true
    }

    fn merge(&self, into: &mut State, from: State) {
        let both = into.tallies.iter_mut().zip(from.tallies);
        both.chain(into.counted.iter_mut().zip(from.counted)).for_each(|(tally, more)| {
            tally.merge(more);
        });
    }

    fn findings(&self) -> Option<Vec<u8>> {
        let mut out = Writer::default();
        for word in [FINDINGS, variant(self.setup.variant), self.setup.experts as u32] {
            out.u32(word);
        }
        [self.setup.keep.to_bits(), self.elements, self.missed].iter().for_each(|&n| out.u64(n));
        for ((bounds, cut), findings) in self.bounds.iter().zip(&self.cuts).zip(&self.findings) {
            for value in [bounds.lo, bounds.hi, cut.threshold, cut.span] {
                out.u32(value.to_bits());
            }
            out.u32(cut.active.into());
            out.u32(findings.empty.into());
            out.u32(findings.figures.len() as u32);
            for (name, value) in &findings.figures {
                out.u32(FIGURES.iter().position(|known| known == name)? as u32);
                out.u32(value.to_bits());
            }
            out.u32(findings.notes.len() as u32);
            for note in &findings.notes {
                out.u32(NOTES.iter().position(|known| known == note)? as u32);
            }
        }
        Some(out.finish())
    }

    fn save(&self, state: &State) -> Vec<u8> {
        save_tallies(&state.tallies)
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        let tallies = load_tallies(saved, self.findings.len())?;
        // What is saved was counted.
        Some(State { counted: tallies.clone(), tallies, ..self.empty() })
    }

    fn finish(self, state: State) -> Result<Next, MethodError> {
        let experts = self.findings.into_iter().zip(state.tallies);
        let experts = experts.map(|(f, t)| f.outcome(t.kept, t.weight())).collect();
        Ok(Next::Done(Outcome { elements: self.elements, missed: self.missed, experts }))
    }
}
