//! Statistics of several scopes over one read: a pass over a unit that the units within it see, too.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::several::add_part;
use super::{
    AnyStage, Block, Kept, Method, MethodError, Operand, Part, Pass, Sampling, Scope, Several,
    State, TensorView, UnitView,
};

/// Merges of one scope, and which of its units they want to know of.
pub struct Member {
    /// The scope.
    pub scope: Scope,
    /// The merges.
    pub merges: Several,
    /// Names of units.
    pub wanted: BTreeSet<String>,
}

/// For how many units of finer scopes there is room beside the unit that they lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// As many as are under way at a time, as their tensors lie.
    All,
    /// One of each scope.
    One,
}

/// Merges of several scopes. As a method it is that of the coarsest one, with room for the states of the others.
#[derive(Clone)]
pub struct Nested {
    coarsest: Arc<Member>,
    finer: Arc<[Member]>,
    room: Room,
}

impl Nested {
    /// A member of the coarsest scope, and those of finer ones.
    pub fn new(coarsest: Member, finer: Vec<Member>, room: Room) -> Self {
        Self { coarsest: Arc::new(coarsest), finer: finer.into(), room }
    }

    /// That of the coarsest scope.
    pub fn coarsest(&self) -> &Member {
        &self.coarsest
    }

    /// Those of finer scopes.
    pub fn finer(&self) -> &[Member] {
        &self.finer
    }

    /// Bytes of state that one worker may hold for units within this one.
    pub fn room(&self, unit: &UnitView) -> u64 {
        let finer = self.finer.iter().map(|member| {
            let parts = member.parts(unit).into_iter();
            let parts = parts.map(|part| (part.reach(unit), member.merges.state_bytes(&part.view)));
            parts.collect()
        });
        let finer: Vec<Vec<(Range<u64>, u64)>> = finer.collect();
        match self.room {
            Room::One => {
                let bytes = |parts: &Vec<_>| parts.iter().map(|(_, bytes)| *bytes).max();
                finer.iter().filter_map(bytes).sum()
            }
            Room::All => {
                let ends = finer.iter().flatten().flat_map(|(reach, bytes)| {
                    [(reach.start, true, *bytes), (reach.end, false, *bytes)]
                });
                // Of those at one place, first what ends there.
                let mut ends: Vec<(u64, bool, u64)> = ends.collect();
                ends.sort_unstable();
                let open = ends.into_iter().scan(0, |open, (_, begins, bytes)| {
                    *open = if begins { *open + bytes } else { *open - bytes };
                    Some(*open)
                });
                open.max().unwrap_or(0)
            }
        }
    }
}

impl Member {
    /// The wanted units within a unit.
    pub fn parts(&self, of: &UnitView) -> Vec<Part> {
        of.parts(self.scope, |name| self.wanted.contains(name))
    }
}

impl Method for Nested {
    fn operand(&self) -> Operand {
        self.coarsest.merges.operand()
    }

    fn grain(&self, tensor: &TensorView) -> u64 {
        let finer = self.finer.iter().map(|member| member.merges.grain(tensor));
        finer.fold(self.coarsest.merges.grain(tensor), u64::max)
    }

    fn passes(&self, unit: &UnitView) -> Vec<&'static str> {
        self.coarsest.merges.passes(unit)
    }

    fn sampled(&self, unit: &UnitView) -> Option<(usize, Sampling)> {
        self.coarsest.merges.sampled(unit)
    }

    fn state_bytes(&self, unit: &UnitView) -> u64 {
        self.coarsest.merges.state_bytes(unit) + self.room(unit)
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        self.coarsest.merges.start(unit)
    }
}

/// A stage of a unit, or of a part of it, among others that see the same blocks.
pub struct Strand<'a> {
    /// The stage.
    pub stage: &'a dyn Pass,
    /// The part, unless it is the unit itself.
    pub part: Option<&'a Part>,
}

/// A fold of several units: each sees the blocks of its own tensors. A sample is that of the first, and for it alone.
pub struct Together<'a>(Vec<Strand<'a>>);

/// A state for each strand that has seen something.
type States = Vec<Option<State>>;

impl<'a> Together<'a> {
    /// These strands, at least one.
    pub fn new(strands: Vec<Strand<'a>>) -> Self {
        Self(strands)
    }

    /// The states of the strands in one of all.
    pub fn split(&self, mut state: State) -> Vec<Option<State>> {
        std::mem::take(own(&mut state))
    }
}

impl Pass for Together<'_> {
    fn name(&self) -> &'static str {
        self.0.first().map_or("nothing", |strand| strand.stage.name())
    }

    fn writes(&self) -> bool {
        false
    }

    fn sample(&self) -> Option<Sampling> {
        self.0.first()?.stage.sample()
    }

    fn empty(&self) -> State {
        let states: States = self.0.iter().map(|_| None).collect();
        State(Box::new(states))
    }

    fn add(&self, state: &mut State, block: &Block<'_>, _out: &mut [f32]) {
        for (strand, state) in self.0.iter().zip(own(state)) {
            let place = match strand.part {
                None => Ok(block.tensor),
                Some(part) => part.places.binary_search(&block.tensor),
            };
            if let Ok(tensor) = place {
                let state = state.get_or_insert_with(|| strand.stage.empty());
                strand.stage.add(state, &Block { tensor, ..*block }, &mut []);
            }
        }
    }

    fn add_shares(
        &self,
        state: &mut State,
        block: &Block<'_>,
        out: &mut [f32],
        _shares: &mut [f32],
        _sums: &mut [f64],
    ) {
        self.add(state, block, out);
    }

    fn count_kept(&self, _state: &mut State, _block: &Block<'_>, _kept: &mut [Kept]) -> bool {
        false
    }

    fn merge(&self, into: &mut State, mut from: State) {
        let from = std::mem::take(own(&mut from));
        for ((strand, into), from) in self.0.iter().zip(own(into)).zip(from) {
            *into = match (into.take(), from) {
                (Some(mut into), Some(from)) => {
                    strand.stage.merge(&mut into, from);
                    Some(into)
                }
                (into, from) => into.or(from),
            };
        }
    }

    fn hand_out(&self, state: &mut State, all: bool) -> Option<Vec<u8>> {
        let mut parcel = Vec::new();
        for ((number, strand), state) in (0..).zip(&self.0).zip(own(state)) {
            if let Some(part) = state.as_mut().and_then(|state| strand.stage.hand_out(state, all)) {
                add_part(&mut parcel, number, &part);
            }
        }
        (!parcel.is_empty()).then_some(parcel)
    }
}

#[expect(clippy::expect_used, reason = "states never leave the pass that made them")]
fn own(state: &mut State) -> &mut States {
    state.0.downcast_mut().expect("a state was given to another pass")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel;
    use crate::method::pcb::{Pcb, Variant};
    use crate::method::{Held, Next, Parcels, Values};
    use crate::testing::parts::{self, Run};

    /// A model of layers whose tensors lie between those of others.
    fn model(interleaved: bool) -> Arc<UnitView> {
        let mut names = ["l.0.a", "l.0.b", "l.1.a", "l.1.b", "l.2.a", "l.2.b", "head"];
        if interleaved {
            names.sort_unstable_by_key(|name| (name.ends_with('b'), *name));
        }
        let values = Arc::new(Values::new(2).with_each("lambda", &[1.0, 1.5]));
        let mut tensors: Vec<TensorView> = Vec::new();
        for (name, elements) in names.into_iter().zip([5_000, 9_000, 3_000, 7_000, 4_100, 1, 800]) {
            let first = tensors.last().map_or(0, |last| last.first + last.elements);
            let (name, shape, values) = (name.into(), [elements].into(), Arc::clone(&values));
            tensors.push(TensorView { name, shape, elements, first, values });
        }
        let elements = tensors.iter().map(|tensor| tensor.elements).sum();
        Arc::new(UnitView { name: "model".into(), elements, experts: 2, tensors })
    }

    fn several() -> (Several, super::super::Found) {
        let kernels = kernel::select().unwrap();
        let pcb = |variant, keep| Box::new(Pcb::new(variant, keep, kernels)) as Box<dyn Method>;
        Several::new(vec![pcb(Variant::A, 0.1), pcb(Variant::D, 0.2)])
    }

    fn member(scope: Scope, wanted: &[&str]) -> Member {
        let wanted = wanted.iter().map(|&name| name.to_owned()).collect();
        Member { scope, merges: several().0, wanted }
    }

    #[test]
    fn room_is_for_what_is_under_way_at_a_time() {
        let layers = ["l.0", "l.1", "l.2"];
        let room = |interleaved, members: &[(Scope, &[&str])], room| {
            let finer = members.iter().map(|(scope, wanted)| member(*scope, wanted)).collect();
            let nested = Nested::new(member(Scope::Model, &["model"]), finer, room);
            let unit = model(interleaved);
            let own = nested.coarsest().merges.state_bytes(&unit);
            assert_eq!(nested.state_bytes(&unit), own + nested.room(&unit));
            nested.room(&unit)
        };
        let of = |interleaved, scope, wanted: &[&str]| -> Vec<u64> {
            let parts = member(scope, wanted).parts(&model(interleaved)).into_iter();
            parts.map(|part| several().0.state_bytes(&part.view)).collect()
        };
        assert_eq!(room(false, &[], Room::All), 0);
        let max = |bytes: Vec<u64>| bytes.into_iter().max().unwrap();
        let one = max(of(false, Scope::Layer, &layers));
        assert_eq!(room(false, &[(Scope::Layer, &layers)], Room::All), one, "one after the other");
        assert_eq!(room(false, &[(Scope::Layer, &layers)], Room::One), one);
        assert_eq!(
            room(false, &[(Scope::Layer, &["l.1"])], Room::One),
            of(false, Scope::Layer, &["l.1"])[0]
        );
        let mixed = room(true, &[(Scope::Layer, &layers)], Room::All);
        assert_eq!(mixed, of(true, Scope::Layer, &layers).iter().sum::<u64>(), "all at once");
        assert!(room(true, &[(Scope::Layer, &layers)], Room::One) < mixed);
        let tensors = ["l.0.b", "l.1.b"];
        let both: &[(Scope, &[&str])] = &[(Scope::Layer, &layers), (Scope::Tensor, &tensors)];
        let sum = one + max(of(false, Scope::Tensor, &tensors));
        assert_eq!(room(false, both, Room::One), sum);
        assert!(room(false, both, Room::All) <= sum);
    }

    /// Parcels of one strand among those of all.
    struct Of<'a>(&'a Held, u32);

    impl Parcels for Of<'_> {
        fn visit(&self, see: &mut dyn FnMut(&[u8])) -> Result<(), super::super::Lost> {
            self.0.visit_part(self.1, see)
        }
    }

    #[test]
    fn parts_find_in_a_pass_over_all_what_they_find_for_themselves() {
        let taus = parts::tied(2, 28_901, 7);
        for interleaved in [false, true] {
            let unit = model(interleaved);
            let mut all = vec![Part { view: Arc::clone(&unit), places: (0..7).collect() }];
            all.extend(unit.parts(Scope::Layer, |_| true));
            all.extend(unit.parts(Scope::Tensor, |_| true));
            // Small units take no samples: this pass is all that there is before the map.
            let several: Vec<_> = all.iter().map(|_| several()).collect();
            let stages: Vec<_> = several
                .iter()
                .zip(&all)
                .map(|((several, _), part)| several.start(&part.view).unwrap())
                .collect();
            let strands = stages.iter().zip(&all).enumerate().map(|(k, (stage, part))| Strand {
                stage: &**stage,
                part: (k > 0).then_some(part),
            });
            let together = Together::new(strands.collect());
            assert_eq!(
                (together.name(), together.writes(), together.sample()),
                ("scan", false, None)
            );
            let held = Held::default();
            let mut states: Vec<State> = (0..3).map(|_| together.empty()).collect();
            let mut turn = 0;
            for (tensor, view) in unit.tensors.iter().enumerate() {
                for first in (0..view.elements).step_by(1_024) {
                    let from = (view.first + first) as usize;
                    let to = from + 1_024.min(view.elements - first) as usize;
                    let rows: Vec<&[f32]> = taus.iter().map(|tau| &tau[from..to]).collect();
                    let base = vec![0.0; to - from];
                    let block = Block { tensor, first, base: &base, rows: &rows, weights: &[] };
                    turn = (turn + 1) % 3;
                    together.add(&mut states[turn], &block, &mut []);
                    together
                        .hand_out(&mut states[turn], false)
                        .into_iter()
                        .for_each(|p| held.keep(p));
                }
            }
            for state in &mut states {
                together.hand_out(state, true).into_iter().for_each(|parcel| held.keep(parcel));
            }
            let mut merged = states.pop().unwrap();
            states.into_iter().for_each(|state| together.merge(&mut merged, state));
            let states = together.split(merged);
            drop(together);
            for (k, ((stage, state), part)) in stages.into_iter().zip(states).zip(&all).enumerate()
            {
                let parcels = Of(&held, k as u32);
                assert!(matches!(stage.finish(state.unwrap(), &parcels), Ok(Next::Done(_))));
                let found = several[k].1.take(&part.view.name).unwrap();
                let (alone, place) = self::several();
                let firsts = part.places.iter().map(|&at| unit.tensors[at].first as usize..);
                let mine = |tau: &Vec<f32>| -> Vec<f32> {
                    let runs = firsts.clone().zip(&part.view.tensors);
                    runs.flat_map(|(at, t)| tau[at.start..][..t.elements as usize].to_vec())
                        .collect()
                };
                let rows: Vec<Vec<f32>> = taus.iter().map(mine).collect();
                let run = Run { cuts: vec![700], workers: 2, at_hand: false };
                let base = vec![0.0; rows[0].len()];
                parts::merge(&alone, &part.view, &base, &rows, &run).unwrap();
                let expected = place.take(&part.view.name).unwrap();
                assert!(found.iter().all(Option::is_some), "{}", part.view.name);
                assert!(found == expected, "{}", part.view.name);
            }
        }
    }
}
