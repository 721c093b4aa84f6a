//! One pass: reader, workers, writer, and the pool of tickets that bounds them.
//!
//! ```text
//!            tickets (as many as output buffers fit in memory) <--------------+
//!               |                                                            |
//!  tiles --> reader ---hand----> worker 1..w --bounded--> writer --> sink ----+
//!            prefetch, read      decode, stage,           positional writes,
//!                                encode                   hashes
//! ```
//!
//! A tile needs a ticket from the moment a worker may have it until its bytes are written and hashed, or dropped. Tickets
//! carry the reusable output buffer, and outlive the pass. They and the reader, which asks for no more than there is room for
//! (`ahead`) and keeps a tile until a worker takes it, are the only back-pressure, so memory does not depend on which stage is
//! slow. A thread that fails rings an alarm, which ends the reader; the others find that their channels have ended and stop.
//!
//! Workers finish tiles in any order; the writer keeps those that are early until their turn, so that a
//! sink sees plan order. That cannot block: the tile it waits for has its ticket already.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, select_biased};

use super::adapters::{Adapters, Products};
use super::ahead::Coming;
use super::alarm::Alarm;
use super::decode::TileData;
use super::observe::Seen;
use super::rows::Rows;
use super::source::{ByteRange, Source, TileBytes};
use super::tickets::{Ticket, TileOut};
use super::worker::Worker;
use super::{Context, EngineError, PassResult, Sources, TileSink, Work};
use crate::method::State;
use crate::plan::{Action, Plan, Segment, Tile, sampled, tiles};

/// A tile whose bytes are in memory.
struct Loaded {
    /// Its place in plan order.
    number: u64,
    planned: Planned,
    /// Of the sources that are read, in order.
    bytes: Vec<Bytes>,
    products: Products,
    ticket: Ticket,
}

/// A tile to come.
#[derive(Clone, Copy)]
struct Planned {
    /// The unit it makes up, if it is whole.
    unit: Option<u32>,
    tile: Tile,
    /// How much is done after it, in [`PassResult::done`]'s terms.
    reach: u64,
    /// Whether it is one of this pass's.
    now: bool,
}

/// A tile whose output is ready to be written.
struct Finished {
    number: u64,
    planned: Planned,
    ticket: Ticket,
    /// What a map has seen of it.
    seen: Option<Seen>,
}

/// Runs one pass over all tiles of `work`.
///
/// # Errors
/// The first failure of any thread. Nothing that was written is undone.
pub(super) fn run(
    context: &Context<'_>,
    work: &Work<'_>,
    sources: Sources<'_>,
    sink: &mut dyn TileSink,
) -> Result<PassResult, EngineError> {
    let (tickets, workers) = (context.plan.budget.buffers, context.workers);
    // A tile that has come waits in the reader's hands, with the next one asked for: no more inputs than planned.
    let (to_workers, loaded) = bounded(0);
    let (to_writer, finished) = bounded::<Finished>(tickets);
    let alarm = &Alarm::new();
    thread::scope(|scope| {
        // Its channel ends close when it is done, which is how the workers know.
        let reader = scope.spawn(move || read(context, work, sources, &to_workers, alarm));
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                let (loaded, to_writer) = (loaded.clone(), to_writer.clone());
                scope.spawn(move || {
                    alarm.guard(|| compute(context, work, &loaded, &to_writer, alarm))
                })
            })
            .collect();
        // The threads hold the channel ends that they need; these would keep the others waiting.
        drop((loaded, to_writer));
        let writer = scope.spawn(move || alarm.guard(|| write(context, sink, &finished)));

        // A failed thread makes its neighbours end early without an error of their own.
        let issued = reader.join().unwrap_or(Err(EngineError::Panicked("reader")));
        let (mut result, mut cut, mut parts) = (Ok(()), false, Vec::new());
        for thread in threads {
            match thread.join().unwrap_or(Err(EngineError::Panicked("worker"))) {
                Ok(part) => {
                    cut |= part.cut;
                    parts.push(part);
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        let written = writer.join().unwrap_or(Err(EngineError::Panicked("writer")));
        let issued = issued?;
        result?;
        let written = written?;
        let done = match work {
            // What a worker has gathered from a part of a tile cannot be taken back.
            Work::Stage { .. } if cut => return Err(EngineError::Interrupted),
            Work::Stage { stage, .. } if !stage.writes() => issued,
            Work::Stage { .. } | Work::Copies { .. } | Work::Whole { .. } | Work::Solve { .. } => {
                written
            }
        };
        Ok(combine(work, parts, done))
    })
}

/// Takes tickets, asks for tiles ahead of time, and hands on those whose bytes have come. Returns how much
/// was handed on, in [`PassResult::done`]'s terms.
fn read(
    context: &Context<'_>,
    work: &Work<'_>,
    sources: Sources<'_>,
    to_workers: &Sender<Loaded>,
    alarm: &Alarm,
) -> Result<u64, EngineError> {
    let Sources { tiles: source, scattered } = sources;
    let (mut adapters, mut rows) = (Adapters::default(), Rows::default());
    let tiles = work.tiles(context.plan).chain(work.then(context.plan));
    let mut coming = Coming::new(tiles.map(|it| (it, ranges(context, it.tile))));
    let (mut number, mut issued) = (0, 0);
    let (mut ends, mut goes_on) = (false, false);
    while !context.cancel.load(Ordering::Relaxed) {
        coming.ask(source);
        let (planned, ranges) = match coming.take() {
            Some((planned, ranges)) if planned.now => (planned, ranges),
            next => {
                // Behind the last run of a sample there are elements that it passes over.
                issued = work.all().unwrap_or(issued);
                (ends, goes_on) = (true, next.is_some());
                break;
            }
        };
        let products = adapters.of(context, planned.tile.segment, scattered)?;
        let bytes = source.read(&ranges)?;
        let bytes = with_rows(context, planned.tile, bytes, (&mut rows, scattered))?;
        let room = select_biased! {
            recv(alarm.heard()) -> _ => break,
            recv(context.tickets.pool()) -> room => room,
        };
        let Ok(room) = room else { break };
        let ticket = context.tickets.ticket(room);
        let loaded = Loaded { number, planned, bytes, products, ticket };
        if to_workers.send(loaded).is_err() {
            break;
        }
        number += 1;
        issued = planned.reach;
    }
    match (ends, goes_on) {
        (true, true) => {}
        (true, false) => source.finish_pass(),
        // Nobody wants to wait for what was asked for.
        (false, _) => source.give_up(),
    }
    scattered.finish_pass();
    Ok(issued)
}

/// The bytes of a tile in one source.
enum Bytes {
    Read(TileBytes),
    Made(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Made(bytes) => bytes,
        }
    }
}

/// Puts those sources of a tile whose rows move between those that were read.
fn with_rows(
    context: &Context<'_>,
    tile: Tile,
    read: Vec<TileBytes>,
    (rows, scattered): (&mut Rows, &mut Source),
) -> Result<Vec<Bytes>, EngineError> {
    let segment = &context.plan.segments[tile.segment as usize];
    let mut read = read.into_iter();
    let mut bytes = Vec::with_capacity(segment.sources.len());
    for i in segment.read() {
        bytes.push(match &segment.sources[i].rows {
            Some(map) => {
                let map = (map, segment.sources.len());
                Bytes::Made(rows.gather(context, map, segment.first, tile, scattered)?)
            }
            None => match read.next() {
                Some(read) => Bytes::Read(read),
                None => break,
            },
        });
    }
    // What comes from somewhere else than the sources.
    bytes.extend(read.map(Bytes::Read));
    Ok(bytes)
}

/// The bytes of a tile in each of its sources, those that share theirs once, and none where rows move.
fn ranges(context: &Context<'_>, tile: Tile) -> Vec<ByteRange> {
    let segment = &context.plan.segments[tile.segment as usize];
    let frames = context.frames.map(|frames| frames.range(tile.segment, tile.start, tile.elements));
    segment
        .read()
        .filter(|&i| segment.sources[i].rows.is_none())
        .map(|i| {
            let (source, size) = (&segment.sources[i], segment.source_size(i));
            ByteRange {
                file: source.file,
                offset: source.offset + tile.start * size,
                len: (u64::from(tile.elements) * size) as usize,
            }
        })
        .chain(frames)
        .collect()
}

/// The bytes of each source, of those that were read.
fn of_sources<'a>(segment: &Segment, read: &'a [Bytes]) -> Vec<&'a [u8]> {
    let mut bytes: Vec<&[u8]> = Vec::with_capacity(segment.sources.len());
    let mut fresh = read.iter();
    for (i, source) in segment.sources.iter().enumerate() {
        let shared = segment.sources[..i].iter().position(|other| other.shares(source));
        // As many are read as `Segment::read` says.
        bytes.push(match shared {
            Some(at) => bytes[at],
            None => fresh.next().map_or(&[], |bytes| &**bytes),
        });
    }
    // What comes from somewhere else than the sources.
    bytes.extend(fresh.map(|bytes| &**bytes));
    bytes
}

fn compute(
    context: &Context<'_>,
    work: &Work<'_>,
    loaded: &Receiver<Loaded>,
    to_writer: &Sender<Finished>,
    alarm: &Alarm,
) -> Result<Part, EngineError> {
    let mut worker = Worker::new(context, work);
    let mut cut = false;
    for Loaded { number, planned, bytes, products, mut ticket } in loaded {
        let Planned { unit, tile, .. } = planned;
        let segment = &context.plan.segments[tile.segment as usize];
        let size = if work.writes() { segment.out_size as usize } else { 0 };
        let (out, frames) = ticket.of(tile.elements as usize * size);
        let data = TileData {
            segment,
            index: tile.segment,
            start: tile.start,
            elements: tile.elements as usize,
            bytes: of_sources(segment, &bytes),
            products: &products,
        };
        match worker.tile(unit, &data, out, frames) {
            Err(EngineError::Interrupted) => {
                cut = true;
                alarm.ring();
                break;
            }
            done => done?,
        }
        let seen = worker.seen();
        let read: usize = bytes.iter().map(|bytes| bytes.len()).sum();
        drop((bytes, products));
        context.progress.advance(read as u64);
        if work.writes() && to_writer.send(Finished { number, planned, ticket, seen }).is_err() {
            break;
        }
    }
    if !cut {
        worker.hand_out()?;
    }
    let replaced = worker.replaced();
    Ok(Part { state: worker.state, outcomes: worker.outcomes, replaced, cut })
}

/// Writes tiles in plan order; returns how much, in [`PassResult::done`]'s terms.
fn write(
    context: &Context<'_>,
    sink: &mut dyn TileSink,
    finished: &Receiver<Finished>,
) -> Result<u64, EngineError> {
    let (mut early, mut next, mut written) = (BTreeMap::new(), 0, 0);
    for Finished { number, planned, ticket, seen } in finished {
        let _new = early.insert(number, (planned, ticket, seen));
        while let Some((Planned { tile, reach, .. }, ticket, seen)) = early.remove(&next) {
            let segment = &context.plan.segments[tile.segment as usize];
            let offset = segment.offset + tile.start * u64::from(segment.out_size);
            let out = TileOut::new(ticket);
            if !out.is_empty() {
                sink.write(segment.shard as usize, offset, &out)?;
            }
            if !out.frames().bytes.is_empty() {
                sink.frames(out.frames())?;
            }
            if let Some(seen) = seen.as_ref().filter(|_| segment.action == Action::Merge) {
                sink.seen(&tile, seen);
            }
            next += 1;
            written = reach;
        }
    }
    Ok(written)
}

/// What one worker leaves behind.
struct Part {
    state: Option<State>,
    outcomes: Vec<(u32, crate::method::Outcome)>,
    replaced: u64,
    /// Whether it was stopped amid a tile.
    cut: bool,
}

fn combine(work: &Work<'_>, parts: Vec<Part>, done: u64) -> PassResult {
    let mut result = PassResult { done, ..PassResult::default() };
    for part in parts {
        result.replaced += part.replaced;
        result.outcomes.extend(part.outcomes);
        if let (Work::Stage { stage, .. }, Some(state)) = (work, part.state) {
            match &mut result.state {
                Some(into) => stage.merge(into, state),
                none => *none = Some(state),
            }
        }
    }
    result.outcomes.sort_by_key(|&(unit, _)| unit);
    if let Work::Whole { units, .. } = work {
        // Units that were merged but not written are merged once more.
        let last = units[..done as usize].last();
        result.outcomes.retain(|(unit, _)| Some(unit) <= last);
    }
    result
}

impl Work<'_> {
    /// What is done when all tiles of a fold are.
    fn all(&self) -> Option<u64> {
        match self {
            Work::Stage { range, .. } => Some(range.end.saturating_sub(range.start)),
            Work::Copies { .. } | Work::Whole { .. } | Work::Solve { .. } => None,
        }
    }

    /// The tiles of this pass.
    fn tiles<'b>(&'b self, plan: &'b Plan) -> Box<dyn Iterator<Item = Planned> + 'b> {
        let most = plan.budget.tile_elements;
        let in_sequence = |listed, range| {
            tiles(&plan.segments, listed, range, most).scan(0, |reach, tile| {
                *reach += u64::from(tile.elements);
                Some(Planned { unit: None, tile, reach: *reach, now: true })
            })
        };
        match self {
            Work::Solve { .. } => Box::new(std::iter::empty()),
            Work::Copies { segments, range } => Box::new(in_sequence(segments, range.clone())),
            Work::Stage { segments: listed, stage, range, .. } => {
                let Some(sampling) = stage.sample() else {
                    return Box::new(in_sequence(listed, range.clone()));
                };
                let runs = sampling.runs(range.clone(), plan.elements(listed));
                let start = range.start;
                let sampled = sampled(&plan.segments, listed, runs, most);
                let planned = move |(tile, end)| {
                    let reach = end - start;
                    Planned { unit: None, tile, reach, now: true }
                };
                Box::new(sampled.map(planned))
            }
            Work::Whole { units, .. } => Box::new(whole(plan, units, true)),
        }
    }

    /// Tiles that the next pass will begin with.
    fn then<'b>(&'b self, plan: &'b Plan) -> impl Iterator<Item = Planned> + 'b {
        let units = match self {
            Work::Whole { then, .. } => *then,
            Work::Copies { .. } | Work::Stage { .. } | Work::Solve { .. } => &[],
        };
        whole(plan, units, false)
    }
}

/// The tiles of units that fit in one each.
fn whole<'a>(plan: &'a Plan, units: &'a [u32], now: bool) -> impl Iterator<Item = Planned> + 'a {
    (1..).zip(units).flat_map(move |(reach, &unit)| {
        tiles(&plan.segments, plan.unit_segments(unit), 0..u64::MAX, plan.budget.tile_elements)
            .map(move |tile| Planned { unit: Some(unit), tile, reach, now })
    })
}
