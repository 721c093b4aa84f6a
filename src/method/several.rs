//! The statistics of several merges of the same models, over one read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{
    AnyStage, Block, Held, Lost, Method, MethodError, Next, Operand, Outcome, Parcels, Sampling,
    Stage, State, TensorView, UnitView,
};

/// The [findings](Stage::findings) of several merges, by the names of units: of each merge, in order; none of one that
/// has met an error or has none.
#[derive(Clone, Debug, Default)]
pub struct Found(Arc<Mutex<ByUnit>>);

type ByUnit = BTreeMap<String, Vec<Option<Vec<u8>>>>;

impl Found {
    /// Takes out what was found of a unit.
    pub fn take(&self, unit: &str) -> Option<Vec<Option<Vec<u8>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(unit)
    }

    fn put(&self, unit: &str, findings: Vec<Option<Vec<u8>>>) {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.insert(unit.to_owned(), findings);
    }
}

/// Methods of one name that differ in parameters of the merge, side by side: their passes up to the maps run over the same
/// reads, and what they have found is kept. It merges nothing.
pub struct Several {
    inner: Vec<Box<dyn Method>>,
    found: Found,
}

impl Several {
    /// These methods, at least one, and where to find what they find.
    pub fn new(inner: Vec<Box<dyn Method>>) -> (Self, Found) {
        let found = Found::default();
        (Self { inner, found: found.clone() }, found)
    }

    /// Passes over samples, and over everything, of each method up to its map.
    fn folds<'a>(&'a self, unit: &'a UnitView) -> impl Iterator<Item = (usize, usize)> + 'a {
        self.inner.iter().map(|method| {
            let samples = method.sampled(unit).map_or(0, |(samples, _)| samples);
            (samples, method.passes(unit).len().saturating_sub(samples + 1))
        })
    }
}

impl Method for Several {
    fn operand(&self) -> Operand {
        self.inner.first().map_or(Operand::TaskVector, |method| method.operand())
    }

    fn grain(&self, tensor: &TensorView) -> u64 {
        self.inner.iter().map(|method| method.grain(tensor)).max().unwrap_or(1)
    }

    /// Those of the method that has most of them. There is no map behind them.
    fn passes(&self, unit: &UnitView) -> Vec<&'static str> {
        let longest = self.inner.iter().map(|method| method.passes(unit)).max_by_key(Vec::len);
        let mut passes = longest.unwrap_or_default();
        let _map = passes.pop();
        passes
    }

    fn sampled(&self, unit: &UnitView) -> Option<(usize, Sampling)> {
        let samples = self.folds(unit).map(|(samples, _)| samples).max()?;
        let sampling = self.inner.iter().find_map(|method| method.sampled(unit))?.1;
        Some((samples, sampling))
    }

    fn state_bytes(&self, unit: &UnitView) -> u64 {
        self.inner.iter().map(|method| method.state_bytes(unit)).sum()
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let mut first = None;
        let started = self.inner.iter().map(|method| {
            let stage = method.start(unit);
            stage.map_err(|error| first.get_or_insert(error).clone()).ok()
        });
        let stages: Vec<_> = started.collect();
        match first {
            Some(error) if stages.iter().all(Option::is_none) => Err(error),
            _ => Ok(Box::new(Abreast::new(Arc::clone(unit), self.found.clone(), stages))),
        }
    }
}

/// A pass of several stages.
struct Abreast {
    unit: Arc<UnitView>,
    found: Found,
    /// Where each method has come; none of one that has met an error.
    stages: Vec<Option<Box<dyn AnyStage>>>,
    /// Which of them are in this pass.
    runs: Vec<bool>,
    sampling: Option<Sampling>,
}

impl Abreast {
    fn new(unit: Arc<UnitView>, found: Found, stages: Vec<Option<Box<dyn AnyStage>>>) -> Self {
        let sampling = stages.iter().flatten().find_map(|stage| stage.sample());
        let is_in = |stage: &Option<Box<dyn AnyStage>>| {
            stage.as_ref().is_some_and(|stage| match sampling {
                // Whoever is about to look at everything waits for those who are not so far.
                Some(_) => stage.sample() == sampling,
                None => !stage.writes(),
            })
        };
        let runs = stages.iter().map(is_in).collect();
        Self { unit, found, stages, runs, sampling }
    }

    fn running(&self) -> impl Iterator<Item = (usize, &dyn AnyStage)> {
        let stages = self.stages.iter().zip(&self.runs).enumerate();
        stages.filter_map(|(k, (stage, runs))| Some((k, &**stage.as_ref().filter(|_| *runs)?)))
    }

    /// The stages that run, each with its state.
    fn each<'a>(
        &'a self,
        states: &'a mut [Option<State>],
    ) -> impl Iterator<Item = (usize, &'a dyn AnyStage, &'a mut State)> {
        let mut states = states.iter_mut().map(Option::as_mut).collect::<Vec<_>>();
        self.running().filter_map(move |(k, stage)| Some((k, stage, states.get_mut(k)?.take()?)))
    }
}

impl Stage for Abreast {
    type State = Vec<Option<State>>;

    fn name(&self) -> &'static str {
        self.running().next().map_or("nothing", |(_, stage)| stage.name())
    }

    fn sample(&self) -> Option<Sampling> {
        self.sampling
    }

    fn empty(&self) -> Self::State {
        let mut states: Vec<Option<State>> = self.stages.iter().map(|_| None).collect();
        self.running().for_each(|(k, stage)| states[k] = Some(stage.empty()));
        states
    }

    fn add(&self, state: &mut Self::State, block: &Block<'_>, _out: &mut [f32]) {
        for (k, stage) in self.running() {
            if let Some(state) = &mut state[k] {
                stage.add(state, block, &mut []);
            }
        }
    }

    fn merge(&self, into: &mut Self::State, mut from: Self::State) {
        for (k, stage, into) in self.each(into) {
            if let Some(from) = from[k].take() {
                stage.merge(into, from);
            }
        }
    }

    fn hand_out(&self, state: &mut Self::State, all: bool) -> Option<Vec<u8>> {
        let mut parcel = Vec::new();
        for (k, stage) in self.running() {
            if let Some(part) = state[k].as_mut().and_then(|state| stage.hand_out(state, all)) {
                add_part(&mut parcel, k as u32, &part);
            }
        }
        (!parcel.is_empty()).then_some(parcel)
    }

    fn save(&self, state: &Self::State) -> Vec<u8> {
        let mut out = Vec::new();
        for (k, stage) in self.running() {
            if let Some(state) = &state[k] {
                add_part(&mut out, k as u32, &stage.save(state));
            }
        }
        out
    }

    fn load(&self, saved: &[u8]) -> Option<Self::State> {
        let mut states = Stage::empty(self);
        let mut running = self.running();
        let mut sound = true;
        let whole = each_part(saved, |number, part| {
            let loaded = running.next().and_then(|(k, stage)| {
                states[k] = Some(stage.load(part)?);
                Some(k as u32)
            });
            sound &= loaded == Some(number);
        });
        (whole.is_some() && sound && running.next().is_none()).then_some(states)
    }

    fn finish(self, state: Self::State) -> Result<Next, MethodError> {
        self.conclude(state, &Held::default())
    }

    fn conclude(self, mut state: Self::State, parcels: &dyn Parcels) -> Result<Next, MethodError> {
        let Self { unit, found, stages, runs, .. } = self;
        let mut next = Vec::with_capacity(stages.len());
        for (k, stage) in stages.into_iter().enumerate() {
            next.push(match (stage, state[k].take()) {
                (Some(stage), Some(state)) if runs[k] => {
                    let parcels = Of { parcels, part: k as u32 };
                    match stage.finish(state, &parcels) {
                        Ok(Next::Stage(next)) => Some(next),
                        Err(error @ MethodError::Lost(_)) => return Err(error),
                        // It is told when the merge itself is made.
                        Ok(Next::Done(_)) | Err(_) => None,
                    }
                }
                (stage, _) => stage,
            });
        }
        let elements = unit.elements;
        let pass = Self::new(unit, found, next);
        if pass.runs.contains(&true) {
            return Ok(Next::stage(pass));
        }
        let findings = pass.stages.iter().map(|stage| stage.as_ref()?.findings()).collect();
        pass.found.put(&pass.unit.name, findings);
        Ok(Next::Done(Outcome { elements, ..Outcome::default() }))
    }
}

/// The parcels of one stage among those of several.
struct Of<'a> {
    parcels: &'a dyn Parcels,
    part: u32,
}

impl Parcels for Of<'_> {
    fn visit(&self, see: &mut dyn FnMut(&[u8])) -> Result<(), Lost> {
        self.parcels.visit_part(self.part, see)
    }

    fn is_whole(&self) -> bool {
        self.parcels.is_whole()
    }
}

/// Adds the parcel of a stage, by its number, to a parcel of several: number (4 bytes, little-endian), length (8 bytes),
/// parcel; and so on.
pub(super) fn add_part(parcel: &mut Vec<u8>, number: u32, part: &[u8]) {
    parcel.extend(number.to_le_bytes());
    parcel.extend((part.len() as u64).to_le_bytes());
    parcel.extend(part);
}

/// Shows what a parcel of several stages consists of. `None` if it is none.
pub fn each_part(mut parcel: &[u8], mut see: impl FnMut(u32, &[u8])) -> Option<()> {
    while !parcel.is_empty() {
        let (number, rest) = parcel.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
        let (part, rest) = rest.split_at_checked(len)?;
        see(u32::from_le_bytes(*number), part);
        parcel = rest;
    }
    Some(())
}
