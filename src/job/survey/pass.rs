//! The passes of a survey: over a unit of the coarsest scope, with units of finer ones beside it.
//!
//! ```text
//! unit    sample, sample, |            scan            | done
//! parts                   | sample, scan | sample, scan |      each as soon as the scan comes to it
//! ```
//! Where there is no room for a part when the scan comes to it, it is looked at by itself later. So is one that does not
//! find in one scan what it looks for.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::Survey;
use super::asked::{Asked, Realm};
use super::company::{Company, Line};
use super::keep::{Bundles, Nothing, Shelved};
use crate::engine::{self, Context, EngineError, Sources, Work};
use crate::error::Error;
use crate::job::findings::Findings;
use crate::job::journal::{Cursor, Journal, Record};
use crate::job::parcels::Shelf;
use crate::job::run::open;
use crate::job::snapshots::Snapshots;
use crate::method::{Method, MethodError, Next, Strand, Together};
use crate::plan::Grain;
use crate::progress::{Event, Progress};

pub(super) struct Pass<'s> {
    survey: &'s Survey,
    tiles: engine::source::Source,
    /// Reads samples.
    sampler: engine::source::Source,
    /// Reads adapters, and rows that move.
    scattered: engine::source::Source,
    shelf: Shelf<'s>,
    snapshots: Snapshots<'s>,
    /// Speaks of the unit under way.
    journal: Journal,
    dir: &'s Path,
    files: &'s [PathBuf],
    known: Vec<Findings>,
    progress: &'s dyn Progress,
    cancel: &'s AtomicBool,
    /// Bytes read so far.
    read: u64,
}

impl<'s> Pass<'s> {
    /// Prepares to read.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn open(
        survey: &'s Survey,
        (files, known): (&'s [PathBuf], Vec<Findings>),
        dir: &'s Path,
        progress: &'s dyn Progress,
        cancel: &'s AtomicBool,
    ) -> Result<Self, Error> {
        let (job, storage) = (&survey.job, &*survey.job.storage);
        Ok(Self {
            survey,
            tiles: open(job, job.plan.budget.grain)?,
            sampler: open(job, Grain::Sparse)?,
            scattered: open(job, Grain::Sparse)?,
            shelf: Shelf::new(storage, dir),
            snapshots: Snapshots::new(storage, dir),
            journal: Journal::open(storage, dir, &survey.name())?,
            dir,
            files,
            known,
            progress,
            cancel,
            read: 0,
        })
    }

    /// How far the unit under way has come.
    pub(super) fn cursor(&self) -> Cursor {
        self.journal.cursor()
    }

    /// Removes what was put aside. Returns the bytes read.
    pub(super) fn close(self) -> u64 {
        self.shelf.forget(|_| true);
        self.snapshots.forget(|_, _, _| true);
        self.read
    }

    /// Looks at what is asked of a unit and within it.
    ///
    /// # Errors
    /// Those of a merge.
    pub(super) fn realm(&mut self, realm: &'s Realm) -> Result<(), Error> {
        if let Some(outer) = &realm.outer {
            self.twice(outer, Some(realm))?;
        }
        for inner in &realm.inner {
            if !self.survey.is_known(&self.known, inner) {
                self.twice(inner, None)?;
            }
        }
        Ok(())
    }

    /// Once more if parcels were lost; a disk that loses them again is not to be trusted.
    fn twice(&mut self, asked: &'s Asked, realm: Option<&'s Realm>) -> Result<(), Error> {
        match self.unit(asked, realm) {
            Err(error) if is_lost(&error) => {
                self.journal.take_back(0)?;
                self.unit(asked, realm)
            }
            done => done,
        }
    }

    /// All passes over a unit, from where an earlier attempt has come to, in company.
    fn unit(&mut self, asked: &'s Asked, realm: Option<&'s Realm>) -> Result<(), Error> {
        let cursor = self.journal.cursor();
        let begun = if cursor.units == asked.number && cursor.elements > 0 {
            self.replay(asked, Some(cursor.stage), cursor.elements)?
        } else {
            None
        };
        let mut line = if let Some(line) = begun {
            line
        } else {
            self.journal.take_back(0)?;
            let Some(line) = self.begin(asked)? else { return Ok(()) };
            line
        };
        let mut company = self.company(realm, &line)?;
        self.forget_all_but(&line, &company);
        self.part(&mut company, line.seen)?;
        loop {
            while line.seen < asked.view.elements {
                self.piece(&mut line, &mut company)?;
            }
            match self.finish(line)? {
                Some(next) => line = next,
                None => break,
            }
        }
        self.tell(asked)?;
        self.journal.take_back(0)
    }

    /// Begins with a unit; not if it cannot be merged, which is told when it is to be.
    fn begin(&mut self, asked: &'s Asked) -> Result<Option<Line<'s>>, Error> {
        match self.survey.member(asked).merges.start(&asked.view) {
            Ok(stage) => Ok(Some(Line { asked, stage, at: 0, seen: 0, state: None })),
            Err(_) => self.tell(asked).map(|()| None),
        }
    }

    /// The units that were under way beside one, and those that may be.
    fn company(&self, realm: Option<&'s Realm>, line: &Line<'s>) -> Result<Company<'s>, Error> {
        let Some(realm) = realm else { return Ok(Company::default()) };
        let unknown = realm.inner.iter().filter(|asked| !self.survey.is_known(&self.known, asked));
        let room = self.survey.nested.room(&realm.view);
        let mut company = Company { waiting: Vec::new(), lines: Vec::new(), room };
        for asked in unknown {
            let was_there = !line.is_sampling() && asked.reach.start < line.seen;
            let begun = if was_there && asked.state_bytes <= company.left() {
                self.replay(asked, None, asked.before(&realm.view, line.seen))?
            } else {
                None
            };
            match begun {
                Some(line) => company.lines.push(line),
                None => company.waiting.push(asked),
            }
        }
        Ok(company)
    }

    /// A unit as it was when a stage had seen so much: the one of that number, or the first that looks at everything.
    /// `None` if something that this takes is damaged or gone.
    fn replay(
        &self,
        asked: &'s Asked,
        stage: Option<u32>,
        seen: u64,
    ) -> Result<Option<Line<'s>>, Error> {
        let Ok(first) = self.survey.member(asked).merges.start(&asked.view) else {
            return Ok(None);
        };
        let mut line = Line { asked, stage: first, at: 0, seen: 0, state: None };
        loop {
            let is_there = stage.map_or(!line.is_sampling(), |stage| line.at == stage);
            let elements = if is_there { seen } else { asked.view.elements };
            let saved = self.snapshots.load(asked.number, line.at, elements)?;
            let Some(state) = saved.and_then(|saved| line.stage.load(&saved)) else {
                return Ok(None);
            };
            (line.state, line.seen) = (Some(state), elements);
            if is_there {
                return Ok(Some(line));
            }
            line = match self.finish(line) {
                Ok(Some(next)) => next,
                Ok(None) | Err(Error::Engine(EngineError::Method { .. })) => return Ok(None),
                Err(error) => return Err(error),
            };
        }
    }

    /// Removes what belongs to no unit under way, and parcels and states that have no record.
    fn forget_all_but(&self, line: &Line<'s>, company: &Company<'s>) {
        let find =
            |unit: u32| company.lines.iter().chain([line]).find(|line| line.asked.number == unit);
        self.shelf.forget(|(unit, stage, from)| {
            find(unit).is_none_or(|line| {
                (stage / self.survey.merges(line.asked), from) >= (line.at, line.seen)
            })
        });
        self.snapshots.forget(|unit, stage, seen| {
            find(unit).is_none_or(|line| (stage, seen) > (line.at, line.seen))
        });
    }

    /// A piece of a pass over a unit, with all that lie in it and find room, and the record about it.
    fn piece(&mut self, line: &mut Line<'s>, company: &mut Company<'s>) -> Result<(), Error> {
        let mut range = line.piece(self.survey);
        if !line.is_sampling() {
            let (invited, end) = company.invite(&range);
            range.end = end;
            for asked in invited {
                let Some(begun) = self.begin(asked)? else { continue };
                company.lines.extend(self.alone(begun, true)?);
            }
        }
        let (asked, end) = (line.asked, range.end);
        let meets = |other: &&mut Line<'_>| {
            let [from, to] = [range.start, end].map(|at| other.asked.before(&asked.view, at));
            from < to
        };
        let beside: Vec<_> = company.lines.iter_mut().filter(meets).collect();
        let mut lines: Vec<&mut Line<'s>> = vec![line];
        lines.extend(beside);
        self.run(&mut lines, range)?;
        let seen = lines[0].seen;
        let (units, stage) = (asked.number, lines[0].at);
        let cursor = Cursor { units, stage, elements: seen, ..Cursor::default() };
        let plan = self.survey.name();
        self.journal.append(Record { plan, cursor, ..Record::default() })?;
        self.snapshots.forget(|unit, stage, elements| {
            let line = lines.iter().find(|line| line.asked.number == unit);
            line.is_some_and(|line| stage == line.at && elements < line.seen)
        });
        self.part(company, seen)?;
        if seen < end { Err(interrupted(self.dir)) } else { Ok(()) }
    }

    /// Ends with units all of whose elements lie before one of the unit around them.
    fn part(&mut self, company: &mut Company<'s>, seen: u64) -> Result<(), Error> {
        let lines = std::mem::take(&mut company.lines).into_iter();
        let (over, left) = lines.partition::<Vec<_>, _>(|line| line.asked.reach.end <= seen);
        company.lines = left;
        for line in over {
            let asked = line.asked;
            match self.alone(line, false) {
                Ok(_) => self.tell(asked)?,
                // It is looked at once more, by itself.
                Err(error) if is_lost(&error) => self.forget(asked),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes a unit through passes of its own, without records: over samples only, or to its end.
    fn alone(&mut self, mut line: Line<'s>, samples: bool) -> Result<Option<Line<'s>>, Error> {
        while !samples || line.is_sampling() {
            while line.seen < line.asked.view.elements {
                let range = line.piece(self.survey);
                let end = range.end;
                self.run(&mut [&mut line], range)?;
                if line.seen < end {
                    return Err(interrupted(self.dir));
                }
            }
            let Some(next) = self.finish(line)? else { return Ok(None) };
            line = next;
        }
        Ok(Some(line))
    }

    /// Ends a stage.
    fn finish(&self, mut line: Line<'s>) -> Result<Option<Line<'s>>, Error> {
        let state = line.state.take().unwrap_or_else(|| line.stage.empty());
        let stored = line.shelf(self.survey).map(|(unit, stage, _)| self.shelf.of(unit, stage));
        let stored = Shelved(stored.collect::<Result<_, _>>()?);
        let Line { asked, stage, at, .. } = line;
        match stage.finish(state, &stored) {
            Ok(Next::Stage(stage)) => {
                Ok(Some(Line { asked, stage, at: at + 1, seen: 0, state: None }))
            }
            Ok(Next::Done(_)) => Ok(None),
            Err(error) => {
                let unit = asked.view.name.clone();
                let named = || EngineError::Method { unit, error }.into();
                Err(stored.failure().unwrap_or_else(named))
            }
        }
    }

    /// Makes durable what was found of a unit: nothing, if it cannot be merged.
    fn tell(&mut self, asked: &Asked) -> Result<(), Error> {
        let (group, name) = (self.survey.group(asked), &asked.view.name);
        let mut found = group.found.take(name).unwrap_or_default().into_iter();
        for &merge in &group.merges {
            self.known[merge].put(name, found.next().flatten());
            self.known[merge].save(&*self.survey.job.storage, &self.files[merge])?;
        }
        self.forget(asked);
        Ok(())
    }

    fn forget(&self, asked: &Asked) {
        self.shelf.forget(|(unit, _, _)| unit == asked.number);
        self.snapshots.forget(|unit, _, _| unit == asked.number);
    }

    /// Shows elements of the first of these units to all of them, and saves what they have gathered.
    fn run(&mut self, lines: &mut [&mut Line<'s>], range: Range<u64>) -> Result<(), Error> {
        let (survey, shelf, dir) = (self.survey, &self.shelf, self.dir);
        let bundles = lines.iter().map(|line| {
            let pieces = line.shelf(survey);
            pieces.map(|piece| shelf.begin(piece)).collect()
        });
        let bundles = Bundles(bundles.collect());
        let strands =
            lines.iter().map(|line| Strand { stage: &*line.stage, part: line.asked.part.as_ref() });
        let together = Together::new(strands.collect());
        let segments = &lines[0].asked.segments;
        let work = Work::Stage { segments, stage: &together, range: range.clone(), keep: &bundles };
        let context = Context {
            plan: &survey.job.plan,
            method: &*survey.job.method,
            kernels: survey.job.kernels,
            nonfinite: survey.job.recipe.nonfinite,
            shares: None,
            statistics: false,
            frames: None,
            progress: self.progress,
            cancel: self.cancel,
        };
        let sampling = lines[0].is_sampling();
        let tiles = if sampling { &mut self.sampler } else { &mut self.tiles };
        let name = lines[0].stage.name();
        self.progress.event(&Event::PassStarted { name });
        let begin = Instant::now();
        let already = tiles.bytes_read() + self.scattered.bytes_read();
        let sources = Sources { tiles: &mut *tiles, scattered: &mut self.scattered };
        let result = engine::run(&context, &work, sources, &mut Nothing);
        let bytes = tiles.bytes_read() + self.scattered.bytes_read() - already;
        self.read += bytes;
        let seconds = begin.elapsed().as_secs_f64();
        self.progress.event(&Event::PassFinished { name, bytes, seconds });
        let result = match result {
            Ok(result) if result.done > 0 => result,
            Ok(_) | Err(EngineError::Interrupted) => return Err(interrupted(dir)),
            Err(error) => return Err(error.into()),
        };
        // What was read must be what was planned for.
        tiles.verify_unchanged().map_err(EngineError::Source)?;
        let states = result.state.map(|state| together.split(state)).unwrap_or_default();
        bundles.seal()?;
        let (view, seen) = (&lines[0].asked.view, range.start + result.done);
        for (at, (line, state)) in lines.iter_mut().zip(states).enumerate() {
            line.state = match (line.state.take(), state) {
                (Some(mut into), Some(from)) => {
                    line.stage.merge(&mut into, from);
                    Some(into)
                }
                (into, from) => into.or(from),
            };
            line.seen = if at == 0 { seen } else { line.asked.before(view, seen) };
            let state = line.state.get_or_insert_with(|| line.stage.empty());
            self.snapshots
                .save((line.asked.number, line.at, line.seen), &line.stage.save(state))?;
        }
        Ok(())
    }
}

fn interrupted(dir: &Path) -> Error {
    Error::Interrupted { staging: dir.to_owned(), terminated: false }
}

/// Whether parcels are not what was put aside.
fn is_lost(error: &Error) -> bool {
    let Error::Engine(EngineError::Method { error, .. }) = error else { return false };
    matches!(error, MethodError::Lost(_))
}
