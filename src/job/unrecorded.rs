//! What is done and has no record yet, and what must be durable before one speaks of it.
//!
//! Small units get no records of their own: making everything durable takes longer than a small pass. What their folds
//! have gathered waits in memory, and the files of their parcels are not synced, until a record comes amid the unit; if
//! none does before the unit is merged, nobody will ask for either.

use super::Job;
use super::parcels::Bundle;
use super::pieces::most;
use super::snapshots::Snapshots;
use crate::error::Error;

/// Bytes of saved states that wait in memory, at most.
const WAITING: u64 = 256 << 10;

/// Which state: of a unit, a stage, after so many elements.
type Key = (u32, u32, u64);

/// Work without a record.
#[derive(Default)]
pub(super) struct Unrecorded<'a> {
    /// Whether there is any.
    any: bool,
    /// Whether some of it is in the output.
    has_output: bool,
    /// Bytes that were written.
    written: u64,
    /// Bytes that statistics have taken.
    read: u64,
    /// States of passes over the unit under way that are not on the disk.
    states: Vec<(Key, Vec<u8>)>,
    /// Its parcels that are not durable.
    bundles: Vec<Bundle<'a>>,
}

impl<'a> Unrecorded<'a> {
    /// Whether there is anything that a record could tell.
    pub(super) fn is_any(&self) -> bool {
        self.any
    }

    /// Whether it is in the output, in part at least.
    pub(super) fn has_output(&self) -> bool {
        self.has_output
    }

    /// Bytes of work of a kind so far.
    pub(super) fn done(&self, writes: bool) -> u64 {
        if writes { self.written } else { self.read }
    }

    /// Takes note of work.
    pub(super) fn add(&mut self, bytes: u64, writes: bool) {
        self.any = true;
        self.has_output |= writes;
        *(if writes { &mut self.written } else { &mut self.read }) += bytes;
    }

    /// Whether it is as much as a kill may cost. What is seen of tensors on the way is in memory until the record.
    pub(super) fn is_due(&self, job: &Job) -> bool {
        let told = self.has_output && job.settings.statistics;
        told || [true, false].into_iter().any(|writes| self.done(writes) >= most(job, writes))
    }

    /// Takes a state of the unit under way, instead of earlier ones of the same pass. One that is large goes to the disk
    /// at once.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn hold(
        &mut self,
        job: &Job,
        snapshots: &Snapshots<'_>,
        key: Key,
        state: Vec<u8>,
    ) -> Result<(), Error> {
        self.states.retain(|&((unit, stage, _), _)| (unit, stage) != (key.0, key.1));
        let held: usize = self.states.iter().map(|(_, state)| state.len()).sum();
        if (held + state.len()) as u64 > most(job, true).min(WAITING) {
            return snapshots.save(key, &state);
        }
        self.states.push((key, state));
        Ok(())
    }

    /// Takes the parcels of a piece of the unit under way.
    pub(super) fn keep(&mut self, bundle: Bundle<'a>) {
        self.bundles.push(bundle);
    }

    /// The unit under way is merged: no record will come amid it.
    pub(super) fn forget_unit(&mut self) {
        self.states.clear();
        self.bundles.drain(..).for_each(Bundle::discard);
    }

    /// Makes durable what a record amid the unit under way speaks of.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn settle(&mut self, snapshots: &Snapshots<'_>) -> Result<(), Error> {
        for (key, state) in self.states.drain(..) {
            snapshots.save(key, &state)?;
        }
        Ok(self.bundles.drain(..).try_for_each(Bundle::seal)?)
    }

    /// There is a record about all of it.
    pub(super) fn recorded(&mut self) {
        *self = Self::default();
    }
}
