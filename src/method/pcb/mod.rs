//! PCB-Merging (Parameter Competition Balancing, arXiv 2410.02396), in five variants.
//!
//! ```text
//! magnitudes (2 passes)      lo_i, hi_i = order statistics of |tau_i|
//! scores     (2 passes)      B_i = exp(n z_i^2) * inter_i;  thr_i, mx_i
//! map        (1 pass)        s_i = (B_i - thr_i)+ / (mx_i - thr_i);  out = base + sum lambda_i u_i
//! ```
//!
//! The authors' repository (github.com/duguodong7/pcb-merging) holds four programs that differ
//! in the clamp and in the inter-competition term: variants `a` to `d`. Variant `paper` is the
//! softmax form of the article itself. `docs/methods.md` has the formulas.
//!
//! The two folds above are the radix plan, the simple one. [`Strategy::Fused`] finds the same
//! statistics in one read: see `fused`.

mod fused;
mod magnitudes;
mod map;
mod paper;
mod scores;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod known;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use super::weighted::combine;
use super::{
    AnyStage, Block, ExpertOutcome, Method, MethodError, Note, Operand, PerTensor, Sampling,
    Strategy, UnitView, Values,
};
use crate::kernel::Kernels;
use crate::kernel::pcb::{Inter, SHIFT_ABOVE, Tally};
use crate::stats::{Reader, Selector, Writer};

/// Which published definition of PCB is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `pcb-merging.py`, the README's "key steps": clamp at 0.01 %, tanh(tau * S).
    A,
    /// `nlp_source_code/utils/merge_utils.py`: clamp at 1 %, otherwise as `A`.
    B,
    /// `vision_source_code/pcb.py`: clamp at 1 %, tanh(tau * sum of signed normed magnitudes).
    C,
    /// `vision_source_code/pcb_ES.py`: clamp at 1 %, sum of tanh over pairs.
    D,
    /// The article's equations 1 to 7, with min-max as Norm. Experimental.
    Paper,
}

impl Variant {
    /// The name used on the command line and in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Variant::A => "a",
            Variant::B => "b",
            Variant::C => "c",
            Variant::D => "d",
            Variant::Paper => "paper",
        }
    }

    fn inter(self) -> Inter {
        match self {
            Variant::A | Variant::B | Variant::Paper => Inter::Raw,
            Variant::C => Inter::Half,
            Variant::D => Inter::Pairs,
        }
    }

    /// The variant of that name; `A` for names that are none.
    pub fn named(name: &str) -> Self {
        let all = [Variant::A, Variant::B, Variant::C, Variant::D, Variant::Paper];
        all.into_iter().find(|variant| variant.name() == name).unwrap_or(Variant::A)
    }
}

/// The line of the registry.
pub static ENTRY: Entry = Entry {
    name: "pcb",
    dialect: None,
    about: "Parameter Competition Balancing: weights from competition scores",
    source: "arXiv 2410.02396; github.com/duguodong7/pcb-merging",
    base: BaseUse::Required,
    models: 1..=usize::MAX,
    scopes: &[Scope::Model, Scope::Layer, Scope::Tensor],
    reads: (1, 2),
    random: false,
    evidence: None,
    per_expert: Some("lambda"),
    parameters: &[
        Parameter::new(
            "variant",
            Per::Merge,
            Kind::Word(&["a", "b", "c", "d", "paper"]),
            Preset::Word("a"),
            "which published definition; `paper` takes 5 reads",
        ),
        Parameter::new(
            "keep",
            Per::Merge,
            Kind::OPEN_FRACTION,
            Preset::Number(0.1),
            "fraction of elements kept of each expert",
        )
        .usually(
            0.0,
            0.4,
            "above 0.4 its advantage is gone, and elements that oppose the other experts are kept",
        ),
        Parameter::new(
            "lambda",
            Per::Model,
            Kind::ANY,
            Preset::Number(1.0),
            "factor of the expert's part in the merged task vector",
        )
        .usually(
            0.5,
            3.0,
            "the merged task vector has the scale of one expert, and 0.5 to 3 is common",
        ),
    ],
    build: |setup| {
        let variant = Variant::named(setup.values.word("variant"));
        let pcb = Pcb::new(variant, setup.values.number("keep"), setup.kernels);
        Box::new(pcb.with_strategy(setup.strategy))
    },
};

/// PCB with what is the same for all units.
#[derive(Clone)]
pub struct Pcb {
    variant: Variant,
    keep: f64,
    kernels: &'static Kernels,
    strategy: Strategy,
    tuning: fused::Tuning,
}

/// What all stages of a unit share.
struct Setup {
    variant: Variant,
    keep: f64,
    experts: usize,
    lambdas: PerTensor<Vec<f32>>,
    unit: Arc<UnitView>,
    kernels: &'static Kernels,
    tuning: fused::Tuning,
}

impl Pcb {
    /// PCB that keeps the fraction `keep` of each expert. Its lambdas come with each unit.
    pub fn new(variant: Variant, keep: f64, kernels: &'static Kernels) -> Self {
        let (strategy, tuning) = (Strategy::default(), fused::Tuning::default());
        Self { variant, keep, kernels, strategy, tuning }
    }

    /// The same method with its statistics found in another way.
    #[must_use]
    pub fn with_strategy(self, strategy: Strategy) -> Self {
        Self { strategy, ..self }
    }

    fn setup(&self, unit: &Arc<UnitView>) -> Setup {
        Setup {
            variant: self.variant,
            keep: self.keep,
            experts: unit.experts,
            lambdas: unit.each_tensor(|values: &Values| values.each_f32("lambda")),
            unit: Arc::clone(unit),
            kernels: self.kernels,
            tuning: self.tuning,
        }
    }

    fn start_with(
        &self,
        unit: &Arc<UnitView>,
        fused: bool,
    ) -> Result<Box<dyn AnyStage>, MethodError> {
        let setup = Arc::new(self.setup(unit));
        let rank = setup.threshold_rank(unit.elements)?;
        Ok(match setup.variant {
            _ if fused => fused::start(setup, unit.elements, rank),
            Variant::Paper => Box::new(paper::Products::new(setup, unit.elements, rank)),
            _ => Box::new(magnitudes::Magnitudes::new(setup, unit.elements, rank)),
        })
    }

    /// Whether a unit at hand is scanned so, too: passes over a small one are cheaper than records of all its elements.
    fn is_fused_at_hand(&self, unit: &UnitView) -> bool {
        self.is_fused(unit) && unit.elements > self.tuning.collect
    }

    /// Whether the scan of `fused` can be had: where exp(n) is small enough not to be shifted.
    fn is_fused(&self, unit: &UnitView) -> bool {
        self.strategy == Strategy::Fused
            && self.variant != Variant::Paper
            && unit.experts <= SHIFT_ABOVE
    }
}

impl Method for Pcb {
    fn operand(&self) -> Operand {
        Operand::TaskVector
    }

    fn passes(&self, unit: &UnitView) -> Vec<&'static str> {
        let mut passes = Vec::new();
        if self.is_fused(unit) {
            passes.extend(fused::passes(self.tuning, unit.elements));
            passes.push("merge");
            return passes;
        }
        let small = unit.elements <= crate::stats::SMALL;
        if self.variant == Variant::Paper {
            passes.extend(["products", "softmax sums"]);
        } else {
            passes.push("magnitudes");
            if !small {
                passes.push("magnitudes, refined");
            }
        }
        passes.push("scores");
        if !small {
            passes.push("scores, refined");
        }
        passes.push("merge");
        passes
    }

    fn sampled(&self, unit: &UnitView) -> Option<(usize, Sampling)> {
        // All but the scan and the map.
        let samples = self.passes(unit).len() - 2;
        let sampled = self.is_fused(unit) && samples > 0;
        sampled.then(|| (samples, fused::sampling(unit.elements)))
    }

    fn state_bytes(&self, unit: &UnitView) -> u64 {
        let n = unit.experts as u64;
        let ranks = if self.variant == Variant::Paper { 1 } else { 2 };
        let counts = Selector::state_bytes(unit.elements, ranks);
        let pairs = if self.variant == Variant::Paper { n * (n + 1) / 2 } else { 0 };
        // `paper` makes its shares in rows of their own.
        let shares = if self.variant == Variant::Paper { n } else { 0 };
        let rows = (4 * n + 4 + shares) * super::BLOCK as u64 * 4;
        let radix = n * counts + rows + pairs * 32;
        // A missed bracket may end in the radix plan.
        if self.is_fused(unit) {
            radix.max(fused::state_bytes(n, self.variant.inter()))
        } else {
            radix
        }
    }

    fn has_scores(&self) -> bool {
        // Those of `paper` are parts of a softmax over the whole unit: too small to be summed in fixed point.
        self.variant != Variant::Paper
    }

    fn has_shares(&self) -> bool {
        true
    }

    fn held_bytes(&self, unit: &UnitView) -> u64 {
        if self.is_fused_at_hand(unit) {
            fused::held_bytes(unit.elements, unit.experts as u64)
        } else {
            0
        }
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        self.start_with(unit, self.is_fused(unit))
    }

    fn start_at_hand(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        self.start_with(unit, self.is_fused_at_hand(unit))
    }

    fn has_findings(&self) -> bool {
        // The map of `paper` is another one.
        self.variant != Variant::Paper
    }

    fn start_knowing(&self, unit: &Arc<UnitView>, findings: &[u8]) -> Option<Box<dyn AnyStage>> {
        self.has_findings().then_some(())?;
        let map = map::Map::knowing(Arc::new(self.setup(unit)), unit.elements, findings)?;
        Some(Box::new(map))
    }
}

impl Setup {
    fn experts(&self) -> usize {
        self.experts
    }

    /// Fraction of the magnitudes that is clamped at each end.
    fn clamped(&self) -> f64 {
        if self.variant == Variant::A { 0.0001 } else { 0.01 }
    }

    fn inter(&self) -> Inter {
        self.variant.inter()
    }

    /// Ranks of the clamp bounds: trunc(d q) and trunc(d (1 - q) - 1), in doubles as the
    /// authors' `clamp` computes them.
    fn clamp_ranks(&self, elements: u64) -> [u64; 2] {
        let (d, q) = (elements as f64, self.clamped());
        // A float cast to an integer truncates toward zero, as Python's int() does.
        [(d * q) as u64, (d * (1.0 - q) - 1.0) as u64]
    }

    /// Merged values from shares, one row for each expert.
    fn combine(&self, block: &Block<'_>, shares: &[f32], out: &mut [f32]) {
        let rows: Vec<&[f32]> = shares.chunks(block.len().max(1)).collect();
        combine(self.kernels, block.base, &rows, self.lambdas.get(block.tensor), out);
    }

    /// Rank of the score threshold: trunc(d (1 - keep)).
    fn threshold_rank(&self, elements: u64) -> Result<u64, MethodError> {
        let rank = (elements as f64 * (1.0 - self.keep)) as u64;
        if rank >= elements && elements > 0 {
            return Err(MethodError::KeepTooSmall { keep: self.keep, elements });
        }
        Ok(rank)
    }
}

fn save_tallies(tallies: &[Tally]) -> Vec<u8> {
    let mut out = Writer::default();
    tallies.iter().flat_map(|tally| tally.to_parts()).for_each(|part| out.u64(part));
    out.finish()
}

fn load_tallies(saved: &[u8], experts: usize) -> Option<Vec<Tally>> {
    let mut saved = Reader::new(saved);
    let tallies = (0..experts).map(|_| Some(Tally::from_parts([saved.u64()?, saved.u64()?])));
    let tallies = tallies.collect::<Option<_>>()?;
    saved.end()?;
    Some(tallies)
}

/// What the folds found out about one expert.
#[derive(Clone, Debug, Default)]
struct Findings {
    /// The task vector is all zero: no weight, whatever its scores.
    empty: bool,
    figures: Vec<(&'static str, f32)>,
    notes: Vec<Note>,
}

impl Findings {
    fn outcome(self, kept: u64, weight: f64) -> ExpertOutcome {
        ExpertOutcome { kept, weight, figures: self.figures, notes: self.notes }
    }
}
