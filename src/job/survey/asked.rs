//! Units that merges want to know of, how they lie in each other, and what looking at them reads.

use std::ops::Range;
use std::sync::Arc;

use super::Survey;
use crate::job::Job;
use crate::job::findings::Findings;
use crate::job::journal::Cursor;
use crate::method::{Method, Part, Sampling, Scope, UnitView};
use crate::plan::{Run, Unit};

/// A unit that merges of one scope want to know of.
pub(super) struct Asked {
    /// Names its files. It follows from the plan, whoever asks for what.
    pub(super) number: u32,
    /// Which of the survey's members ask.
    pub(super) member: usize,
    pub(super) view: Arc<UnitView>,
    pub(super) segments: Vec<u32>,
    /// What it is of a unit of the coarsest scope, unless it is one.
    pub(super) part: Option<Part>,
    /// Where it lies in that unit.
    pub(super) reach: Range<u64>,
    /// State that one worker holds.
    pub(super) state_bytes: u64,
}

impl Asked {
    /// Its elements among the first so many of the unit of the coarsest scope.
    pub(super) fn before(&self, around: &UnitView, elements: u64) -> u64 {
        self.part.as_ref().map_or(elements, |part| part.before(around, elements))
    }
}

/// A unit of the coarsest scope, with what is asked of it and within it.
pub(super) struct Realm {
    pub(super) view: Arc<UnitView>,
    pub(super) outer: Option<Asked>,
    /// By their first elements.
    pub(super) inner: Vec<Asked>,
}

impl Survey {
    /// The units that somebody wants to know of and does not.
    pub(super) fn realms(&self, known: &[Findings]) -> Vec<Realm> {
        let realms = (0..).zip(&self.job.plan.units).map(|(number, unit)| {
            let outer = self.outer(number, unit);
            let finer = self.nested.finer().iter().enumerate();
            let parts = finer.flat_map(|(at, member)| {
                member.parts(&unit.view).into_iter().map(move |part| (at + 1, part))
            });
            let inner = parts.map(|(member, part)| self.inner(unit, member, part));
            let mut inner: Vec<Asked> =
                inner.filter(|asked| !self.is_known(known, asked)).collect();
            inner.sort_by_key(|asked| (asked.reach.start, asked.member));
            let outer = outer.filter(|asked| !self.is_known(known, asked));
            Realm { view: Arc::clone(&unit.view), outer, inner }
        });
        realms.filter(|realm| realm.outer.is_some() || !realm.inner.is_empty()).collect()
    }

    fn outer(&self, number: u32, unit: &Unit) -> Option<Asked> {
        let member = self.nested.coarsest();
        member.wanted.contains(&unit.view.name).then(|| Asked {
            number,
            member: 0,
            view: Arc::clone(&unit.view),
            segments: unit.segments.clone(),
            part: None,
            reach: 0..unit.view.elements,
            state_bytes: member.merges.state_bytes(&unit.view),
        })
    }

    fn inner(&self, unit: &Unit, member: usize, part: Part) -> Asked {
        let segments: Vec<u32> = part.places.iter().map(|&place| unit.segments[place]).collect();
        let (units, finer) = (self.job.plan.units.len(), self.nested.finer());
        // A segment lies in one unit of each scope.
        let number = units + segments[0] as usize * finer.len() + member - 1;
        Asked {
            number: number as u32,
            member,
            view: Arc::clone(&part.view),
            segments,
            reach: part.reach(&unit.view),
            state_bytes: finer[member - 1].merges.state_bytes(&part.view),
            part: Some(part),
        }
    }

    /// Bytes that looking at a realm reads, as planned.
    pub(super) fn bytes(&self, realm: &Realm) -> u64 {
        let inner = realm.inner.iter().map(|asked| match realm.outer {
            Some(_) => self.sample_bytes(asked),
            None => self.unit_bytes(asked),
        });
        realm.outer.iter().map(|asked| self.unit_bytes(asked)).sum::<u64>() + inner.sum::<u64>()
    }

    /// Bytes of those that were read before a cursor.
    pub(super) fn bytes_done(&self, realm: &Realm, cursor: &Cursor) -> u64 {
        let Some(asked) = realm.outer.iter().chain(&realm.inner).find(|a| a.number == cursor.units)
        else {
            return 0;
        };
        let before = self.bytes_before(asked, cursor.stage, cursor.elements);
        let scans = self.samples(asked) as u32 <= cursor.stage;
        let along = realm
            .inner
            .iter()
            .filter(|inner| realm.outer.is_some() && scans && inner.reach.start < cursor.elements);
        before + along.map(|inner| self.sample_bytes(inner)).sum::<u64>()
    }

    /// Bytes that all passes over a unit read.
    pub(super) fn unit_bytes(&self, asked: &Asked) -> u64 {
        let passes = self.member(asked).merges.passes(&asked.view).len() as u32;
        self.bytes_before(asked, passes, 0)
    }

    fn sample_bytes(&self, asked: &Asked) -> u64 {
        self.bytes_before(asked, self.samples(asked) as u32, 0)
    }

    /// Passes over samples.
    fn samples(&self, asked: &Asked) -> usize {
        self.member(asked).merges.sampled(&asked.view).map_or(0, |(samples, _)| samples)
    }

    /// Bytes that are read of a unit before its stage has seen so many elements.
    pub(super) fn bytes_before(&self, asked: &Asked, stage: u32, seen: u64) -> u64 {
        let (plan, segments) = (&self.job.plan, &asked.segments);
        let sampled = self.member(asked).merges.sampled(&asked.view);
        let read = |pass: u32, bytes: u64| match sampled {
            Some((samples, sampling)) if (pass as usize) < samples => {
                (bytes as f64 * Sampling::share(sampling)) as u64
            }
            _ => bytes,
        };
        let whole = plan.input_bytes(segments);
        let part = plan.first(segments, seen);
        let part = part.map(|(segment, covered)| covered * segment.element_bytes()).sum();
        (0..stage).map(|pass| read(pass, whole)).sum::<u64>() + read(stage, part)
    }
}

impl Job {
    /// The scope of the merge, and the names of the units that are read once for each pass.
    pub fn streamed_units(&self) -> (Scope, impl Iterator<Item = String>) {
        let names = self.plan.runs.iter().filter_map(|run| match run {
            Run::Streamed(unit) => Some(self.plan.view(*unit).name.clone()),
            Run::Copies(_) | Run::Whole(_) | Run::Solved(_) => None,
        });
        (self.recipe.scope, names)
    }
}
