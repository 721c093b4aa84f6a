//! Statistics of several merges of the same models, over one read of these: no output is made.
//!
//! ```text
//! DIR/journal         how far the unit under way has come, as in a staging directory
//! DIR/fold-U-S-E      what stage S of unit U had gathered then
//! DIR/kept-U-S-E      parcels of a stage; S counts the stages of all merges of its scope, one after the other
//! ```
//! Units of finer scopes are looked at in passes over the unit that they lie in. What was found of a unit is durable before
//! its files go. A unit that was under way is gone on with, and so are those within it that were when its last record was
//! made: those that begin and end between two records leave nothing on the disk but what was found.

mod asked;
mod company;
mod keep;
mod pass;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::findings::Findings;
use super::journal;
use super::parcels::Shelf;
use super::{Job, Ties};
use crate::error::{Error, IoContext};
use crate::kernel;
use crate::method::{Found, Member, Nested, Room, Scope, Several};
use crate::plan::PlanError;
use crate::progress::{Event, Progress};
use crate::recipe::{Recipe, Settings};
use asked::Asked;
use pass::Pass;

/// Names of the units of each scope that are looked at.
pub type Units = BTreeMap<Scope, BTreeSet<String>>;

/// A survey that is planned and has not begun.
pub struct Survey {
    job: Job,
    nested: Nested,
    /// Of each scope, the coarsest first.
    groups: Vec<Group>,
    /// The [keys](Job::findings_key) of the merges.
    keys: Vec<String>,
}

/// The merges of one scope.
struct Group {
    found: Found,
    /// Their numbers.
    merges: Vec<usize>,
}

impl Survey {
    /// Whether the statistics of a merge can be had before it.
    ///
    /// # Errors
    /// If its parameters make no sense.
    pub fn suits(recipe: &Recipe, settings: &Settings) -> Result<bool, Error> {
        Ok(Job::method(recipe, kernel::select()?, settings)?.has_findings())
    }

    /// Plans the survey of some units of merges, at least one, that differ in scope and parameters of the whole merge only.
    ///
    /// # Errors
    /// As [`Job::plan`]; the states of all methods must fit in memory together, and where there are several scopes, those
    /// of one unit of each.
    pub fn plan(
        recipes: &[Recipe],
        units: &Units,
        settings: &Settings,
        ties: Ties<'_>,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let nested = recipes.iter().any(|recipe| recipe.scope != recipes[0].scope);
        match Self::plan_for(Room::All, recipes, units, settings, ties, progress) {
            // Whoever finds no room is looked at later.
            Err(Error::Plan(PlanError::Memory { .. })) if nested => {
                Self::plan_for(Room::One, recipes, units, settings, ties, progress)
            }
            planned => planned,
        }
    }

    fn plan_for(
        room: Room,
        recipes: &[Recipe],
        units: &Units,
        settings: &Settings,
        ties: Ties<'_>,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let coarsest = recipes.iter().min_by_key(|recipe| recipe.scope);
        let recipe = coarsest.ok_or(Error::Plan(PlanError::Nothing))?.clone();
        let mut scopes: Vec<Scope> = recipes.iter().map(|recipe| recipe.scope).collect();
        scopes.sort_unstable();
        scopes.dedup();
        let settings = Settings { components: None, statistics: false, ..settings.clone() };
        let (kernels, mut groups) = (kernel::select()?, Vec::new());
        let members = scopes.into_iter().map(|scope| {
            let merges: Vec<usize> =
                (0..recipes.len()).filter(|&merge| recipes[merge].scope == scope).collect();
            let methods =
                merges.iter().map(|&merge| Job::method(&recipes[merge], kernels, &settings));
            let (several, found) = Several::new(methods.collect::<Result<_, _>>()?);
            groups.push(Group { found, merges });
            let wanted = units.get(&scope).cloned().unwrap_or_default();
            Ok(Member { scope, merges: several, wanted })
        });
        let mut members = members.collect::<Result<Vec<_>, Error>>()?;
        let nested = Nested::new(members.remove(0), members, room);
        let method = Box::new(nested.clone());
        let job = Job::plan_by(recipe, settings, ties, progress, |_, _, _| Ok(method))?;
        let keys = recipes.iter().map(|recipe| job.findings_key(recipe)).collect();
        Ok(Self { job, nested, groups, keys })
    }

    /// Looks at those units that a file does not know yet, and adds what was found to the files, one for each merge.
    /// `dir` is for what is put aside on the way. Returns the bytes read.
    ///
    /// # Errors
    /// Those of a merge. [`Error::Interrupted`] if it was stopped from outside.
    pub fn run(
        &self,
        files: &[PathBuf],
        dir: &Path,
        progress: &dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<u64, Error> {
        let known = files.iter().zip(&self.keys);
        let known = known.map(|(file, key)| {
            Findings::load(file, key).unwrap_or_else(|| Findings::new(key.clone()))
        });
        let known: Vec<Findings> = known.collect();
        let realms = self.realms(&known);
        if realms.is_empty() {
            return Ok(0);
        }
        std::fs::create_dir_all(dir).at("create", dir)?;
        let shelf = Shelf::new(&*self.job.storage, dir);
        let mut pass = Pass::open(self, (files, known), (dir, &shelf), progress, cancel)?;
        let bytes_total = realms.iter().map(|realm| self.bytes(realm)).sum();
        let bytes_done = self.bytes_done(&realms[0], &pass.cursor());
        progress.event(&Event::Started { bytes_total, bytes_done });
        for realm in &realms {
            pass.realm(realm)?;
        }
        let read = pass.close();
        // Of what is left the journal is empty, and all of it goes with the directory around it.
        let _litter = self.job.storage.remove_file(&dir.join(journal::FILE));
        let _litter = std::fs::remove_dir(dir);
        Ok(read)
    }

    /// The name under which records of this survey are told from those of others.
    fn name(&self) -> String {
        blake3::hash(self.keys.concat().as_bytes()).to_hex().to_string()
    }

    fn member(&self, asked: &Asked) -> &Member {
        let (coarsest, finer) = (self.nested.coarsest(), self.nested.finer());
        asked.member.checked_sub(1).map_or(coarsest, |at| &finer[at])
    }

    fn group(&self, asked: &Asked) -> &Group {
        &self.groups[asked.member]
    }

    /// Number of merges that want to know of a unit.
    fn merges(&self, asked: &Asked) -> u32 {
        self.group(asked).merges.len() as u32
    }

    /// Whether all that want to know of a unit do.
    fn is_known(&self, known: &[Findings], asked: &Asked) -> bool {
        let name = &asked.view.name;
        self.group(asked).merges.iter().all(|&merge| known[merge].are_of([name]))
    }
}
