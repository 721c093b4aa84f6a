//! Stages behind a pointer: the typed state of a [`Stage`] as an opaque [`State`].

use std::any::Any;

use super::{Block, Kept, MethodError, Next, Parcels, Sampling, Stage};

/// The state of some stage. Belongs to the stage that made it.
pub struct State(pub(super) Box<dyn Any + Send>);

/// What an engine needs of a [`Stage`] whose state type is hidden: to show it blocks, on several threads.
///
/// Every method must be given states made by the same pass.
pub trait Pass: Send + Sync {
    /// See [`Stage::name`].
    fn name(&self) -> &'static str;
    /// See [`Stage::writes`].
    fn writes(&self) -> bool;
    /// See [`Stage::sample`].
    fn sample(&self) -> Option<Sampling>;
    /// See [`Stage::empty`].
    fn empty(&self) -> State;
    /// See [`Stage::add`].
    fn add(&self, state: &mut State, block: &Block<'_>, out: &mut [f32]);
    /// See [`Stage::add_shares`].
    fn add_shares(
        &self,
        state: &mut State,
        block: &Block<'_>,
        out: &mut [f32],
        shares: &mut [f32],
        sums: &mut [f64],
    );
    /// See [`Stage::count_kept`].
    fn count_kept(&self, state: &mut State, block: &Block<'_>, kept: &mut [Kept]) -> bool;
    /// See [`Stage::merge`].
    fn merge(&self, into: &mut State, from: State);
    /// See [`Stage::hand_out`].
    fn hand_out(&self, state: &mut State, all: bool) -> Option<Vec<u8>>;
}

/// A [`Stage`] whose state type is hidden: a pass that can be saved, and ends.
pub trait AnyStage: Pass {
    /// See [`Stage::findings`].
    fn findings(&self) -> Option<Vec<u8>>;
    /// See [`Stage::save`].
    fn save(&self, state: &State) -> Vec<u8>;
    /// See [`Stage::load`].
    fn load(&self, saved: &[u8]) -> Option<State>;
    /// See [`Stage::conclude`].
    ///
    /// # Errors
    /// Those of [`Stage::conclude`].
    fn finish(self: Box<Self>, state: State, parcels: &dyn Parcels) -> Result<Next, MethodError>;
}

impl<S: Stage> Pass for S {
    fn name(&self) -> &'static str {
        Stage::name(self)
    }

    fn writes(&self) -> bool {
        Stage::writes(self)
    }

    fn sample(&self) -> Option<Sampling> {
        Stage::sample(self)
    }

    fn empty(&self) -> State {
        State(Box::new(Stage::empty(self)))
    }

    fn add(&self, state: &mut State, block: &Block<'_>, out: &mut [f32]) {
        Stage::add(self, own::<S>(state), block, out);
    }

    fn add_shares(
        &self,
        state: &mut State,
        block: &Block<'_>,
        out: &mut [f32],
        shares: &mut [f32],
        sums: &mut [f64],
    ) {
        Stage::add_shares(self, own::<S>(state), block, out, shares, sums);
    }

    fn count_kept(&self, state: &mut State, block: &Block<'_>, kept: &mut [Kept]) -> bool {
        Stage::count_kept(self, own::<S>(state), block, kept)
    }

    fn merge(&self, into: &mut State, from: State) {
        Stage::merge(self, own::<S>(into), take::<S>(from));
    }

    fn hand_out(&self, state: &mut State, all: bool) -> Option<Vec<u8>> {
        Stage::hand_out(self, own::<S>(state), all)
    }
}

impl<S: Stage> AnyStage for S {
    fn findings(&self) -> Option<Vec<u8>> {
        Stage::findings(self)
    }

    fn save(&self, state: &State) -> Vec<u8> {
        Stage::save(self, seen::<S>(state))
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        Some(State(Box::new(Stage::load(self, saved)?)))
    }

    fn finish(self: Box<Self>, state: State, parcels: &dyn Parcels) -> Result<Next, MethodError> {
        Stage::conclude(*self, take::<S>(state), parcels)
    }
}

#[expect(clippy::expect_used, reason = "states never leave the pass of the stage that made them")]
fn own<S: Stage>(state: &mut State) -> &mut S::State {
    state.0.downcast_mut().expect("a state was given to another stage")
}

#[expect(clippy::expect_used, reason = "states never leave the pass of the stage that made them")]
fn seen<S: Stage>(state: &State) -> &S::State {
    state.0.downcast_ref().expect("a state was given to another stage")
}

#[expect(clippy::expect_used, reason = "states never leave the pass of the stage that made them")]
fn take<S: Stage>(state: State) -> S::State {
    *state.0.downcast().expect("a state was given to another stage")
}
