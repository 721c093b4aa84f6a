//! The passes of a survey: over a unit of the coarsest scope, with units of finer ones beside it.
//!
//! ```text
//! unit    sample, sample, |            scan            | done
//! parts                   | sample, scan | sample, scan |      each as soon as the scan comes to it
//! ```
//! Where there is no room for a part when the scan comes to it, it is looked at by itself later. So is one that does not
//! find in one scan what it looks for.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::Survey;
use super::asked::{Asked, Realm};
use super::company::{Company, Line};
use super::keep::{Bundles, Shelved};
use crate::engine::{self, Context, EngineError, Nothing, Sources, Work};
use crate::error::Error;
use crate::job::findings::Findings;
use crate::job::journal::{Cursor, Journal, Record};
use crate::job::parcels::{Bundle, Shelf};
use crate::job::run::{open_sampler, open_scattered, open_tiles};
use crate::job::snapshots::Snapshots;
use crate::method::{Method, MethodError, Next, Strand, Together};
use crate::progress::{Event, Progress};

pub(super) struct Pass<'s> {
    survey: &'s Survey,
    tiles: engine::source::Source,
    /// Reads samples.
    sampler: engine::source::Source,
    tickets: engine::Tickets,
    /// Reads adapters, and rows that move.
    scattered: engine::source::Source,
    shelf: &'s Shelf<'s>,
    snapshots: Snapshots<'s>,
    /// Speaks of the unit under way.
    journal: Journal,
    dir: &'s Path,
    files: &'s [PathBuf],
    known: Vec<Findings>,
    /// Merges about which more is known than their files say, and units that are over since the last record.
    news: (BTreeSet<usize>, Vec<u32>),
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
        (dir, shelf): (&'s Path, &'s Shelf<'s>),
        progress: &'s dyn Progress,
        cancel: &'s AtomicBool,
    ) -> Result<Self, Error> {
        let (job, storage) = (&survey.job, &*survey.job.storage);
        Ok(Self {
            survey,
            tiles: open_tiles(job)?,
            sampler: open_sampler(job)?,
            tickets: engine::Tickets::new(job.plan.budget.buffers),
            scattered: open_scattered(job)?,
            shelf,
            snapshots: Snapshots::new(storage, dir),
            journal: Journal::open(storage, dir, &survey.name())?,
            dir,
            files,
            known,
            news: Default::default(),
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
            let Some(line) = self.begin(asked) else { return self.publish() };
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
        self.tell(asked);
        self.publish()?;
        self.journal.take_back(0)
    }

    /// Begins with a unit; not if it cannot be merged, which is told when it is to be.
    fn begin(&mut self, asked: &'s Asked) -> Option<Line<'s>> {
        let stage = self.survey.member(asked).merges.start(&asked.view);
        if stage.is_err() {
            self.tell(asked);
        }
        stage.ok().map(|stage| Line::new(asked, stage))
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
        let mut line = Line::new(asked, first);
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
        let end = line.piece(self.survey).end;
        let done = self.until(end, line, company);
        if matches!(done, Ok(()) | Err(Error::Interrupted { .. })) {
            self.record(line, company)?;
        }
        done
    }

    /// Goes on with a pass, in parts that end where others must be over before more find room.
    fn until(
        &mut self,
        end: u64,
        line: &mut Line<'s>,
        company: &mut Company<'s>,
    ) -> Result<(), Error> {
        let asked = line.asked;
        while line.seen < end {
            let mut range = line.seen..end;
            if !line.is_sampling() {
                let (invited, end_of_part) = company.invite(&range);
                range.end = end_of_part;
                for inner in invited {
                    let Some(mut begun) = self.begin(inner) else { continue };
                    begun.stays = inner.reach.end > end;
                    company.lines.extend(self.alone(begun, true)?);
                }
            }
            let to = range.end;
            let meets = |other: &&mut Line<'_>| {
                let [from, to] = [range.start, to].map(|at| other.asked.before(&asked.view, at));
                from < to
            };
            let beside: Vec<_> = company.lines.iter_mut().filter(meets).collect();
            let mut lines: Vec<&mut Line<'s>> = vec![line];
            lines.extend(beside);
            self.run(&mut lines, range)?;
            self.part(company, line.seen)?;
            if line.seen < to {
                return Err(interrupted(self.dir));
            }
        }
        Ok(())
    }

    /// Makes durable what was gathered and found, and records how far a unit has come.
    fn record(&mut self, line: &mut Line<'s>, company: &mut Company<'s>) -> Result<(), Error> {
        for line in std::iter::once(&mut *line).chain(&mut company.lines) {
            std::mem::take(&mut line.parcels).into_iter().try_for_each(Bundle::seal)?;
            self.save(line)?;
        }
        let cursor = Cursor {
            units: line.asked.number,
            stage: line.at,
            elements: line.seen,
            ..Cursor::default()
        };
        let plan = self.survey.name();
        self.write_findings()?;
        self.journal.append(Record { plan, cursor, ..Record::default() })?;
        self.snapshots.forget(|unit, stage, seen| {
            let mut lines = company.lines.iter().chain([&*line]);
            let line = lines.find(|line| line.asked.number == unit);
            line.is_some_and(|line| stage == line.at && seen < line.seen)
        });
        self.forget_over();
        Ok(())
    }

    /// Saves what a unit has gathered in its stage.
    fn save(&self, line: &Line<'s>) -> Result<(), Error> {
        let Some(state) = line.state.as_ref().filter(|_| line.seen > 0) else { return Ok(()) };
        let place = (line.asked.number, line.at, line.seen);
        self.snapshots.save(place, &line.stage.save(state))
    }

    /// Ends with units all of whose elements lie before one of the unit around them.
    fn part(&mut self, company: &mut Company<'s>, seen: u64) -> Result<(), Error> {
        let lines = std::mem::take(&mut company.lines).into_iter();
        let (over, left) = lines.partition::<Vec<_>, _>(|line| line.asked.reach.end <= seen);
        company.lines = left;
        for mut line in over {
            let asked = line.asked;
            line.stays = false;
            match self.alone(line, false) {
                Ok(_) => self.tell(asked),
                // It is looked at once more, by itself.
                Err(error) if is_lost(&error) => self.news.1.push(asked.number),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes a unit through passes of its own, without records: over samples only, or to its end. What it gathers is
    /// saved if a later record may speak of it.
    fn alone(&mut self, mut line: Line<'s>, samples: bool) -> Result<Option<Line<'s>>, Error> {
        while !samples || line.is_sampling() {
            while line.seen < line.asked.view.elements {
                let range = line.piece(self.survey);
                let end = range.end;
                self.run(&mut [&mut line], range)?;
                if line.seen < end {
                    return Err(interrupted(self.dir));
                }
                if line.stays {
                    self.save(&line)?;
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
        let stored = line.pieces(self.survey).map(|(unit, stage, _)| self.shelf.of(unit, stage));
        let stored = Shelved(stored.collect::<Result<_, _>>()?);
        let Line { asked, stage, at, stays, .. } = line;
        match stage.finish(state, &stored) {
            Ok(Next::Stage(stage)) => Ok(Some(Line::next(asked, stage, at + 1, stays))),
            Ok(Next::Done(_)) => Ok(None),
            Err(error) => {
                let unit = asked.view.name.clone();
                let named = || EngineError::Method { unit, error }.into();
                Err(stored.failure().unwrap_or_else(named))
            }
        }
    }

    /// Takes what was found of a unit: nothing, if it cannot be merged.
    fn tell(&mut self, asked: &Asked) {
        let (group, name) = (self.survey.group(asked), &asked.view.name);
        let mut found = group.found.take(name).unwrap_or_default().into_iter();
        for &merge in &group.merges {
            self.known[merge].put(name, found.next().flatten());
            let _new = self.news.0.insert(merge);
        }
        self.news.1.push(asked.number);
    }

    /// Makes durable what was found, and removes what it was found from.
    fn publish(&mut self) -> Result<(), Error> {
        self.write_findings()?;
        self.forget_over();
        Ok(())
    }

    fn write_findings(&mut self) -> Result<(), Error> {
        for merge in std::mem::take(&mut self.news.0) {
            self.known[merge].save(&*self.survey.job.storage, &self.files[merge])?;
        }
        Ok(())
    }

    /// Removes the files of units that are over.
    fn forget_over(&mut self) {
        let over = std::mem::take(&mut self.news.1);
        self.shelf.forget(|(unit, _, _)| over.contains(&unit));
        self.snapshots.forget(|unit, _, _| over.contains(&unit));
    }

    /// Shows elements of the first of these units to all of them, and takes what they have gathered.
    fn run(&mut self, lines: &mut [&mut Line<'s>], range: Range<u64>) -> Result<(), Error> {
        let (survey, shelf, dir) = (self.survey, self.shelf, self.dir);
        for line in lines.iter_mut().filter(|line| line.parcels.is_empty()) {
            line.parcels = line.pieces(survey).map(|piece| shelf.begin(piece)).collect();
        }
        let bundles = Bundles(lines.iter().map(|line| &*line.parcels).collect());
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
            tickets: &self.tickets,
            workers: survey.job.plan.budget.workers,
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
            let _state = line.state.get_or_insert_with(|| line.stage.empty());
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
