//! Solving for a tensor: reads what the system is made of, has the threads work on it, and writes what comes out.
//!
//! No tiles are in flight meanwhile. Reading is ahead by one run; whatever the runs, the solver sees the same rows in
//! the same order.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::adapters::{Adapters, Products};
use super::decode::{Decoder, INFINITY, TileData, encode};
use super::observe::Observer;
use super::source::{ByteRange, Source};
use super::tickets::{Tickets, TileOut};
use super::{Context, EngineError, PassResult, Sources, TileSink};
use crate::method::solve::{Crew, Job};
use crate::method::{BLOCK, MethodError, Outcome};
use crate::plan::solve::Models;
use crate::plan::{Segment, Solve, SourceRef, Tile};

/// The threads of a pass.
struct Threads<'a> {
    workers: usize,
    cancel: &'a AtomicBool,
    /// Whether jobs were left.
    left: AtomicBool,
}

impl Crew for Threads<'_> {
    fn run(&self, jobs: Vec<Job<'_>>) {
        let workers = self.workers.min(jobs.len());
        let queue = Mutex::new(jobs.into_iter());
        let work = || loop {
            // The lock is let go before the job begins. It is never poisoned: no job runs under it.
            let job = queue.lock().map(|mut jobs| jobs.next()).unwrap_or_default();
            let Some(job) = job else { return };
            if self.cancel.load(Ordering::Relaxed) {
                self.left.store(true, Ordering::Relaxed);
                return;
            }
            job();
        };
        thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
    }
}

/// Solves for a unit, which is one tensor.
///
/// # Errors
/// If something cannot be read, is no number, or has no solution; [`EngineError::Interrupted`] after a stop, when
/// nothing of the tensor has been written.
pub(super) fn run(
    context: &Context<'_>,
    unit: u32,
    sources: Sources<'_>,
    sink: &mut dyn TileSink,
) -> Result<PassResult, EngineError> {
    let plan = context.plan;
    let view = plan.view(unit);
    let named = |error| EngineError::Method { unit: view.name.clone(), error };
    let found = view.tensors.first().zip(plan.unit_segments(unit).first());
    let Some((tensor, &index)) = found else { return Err(named(MethodError::NoSolver)) };
    let segment = &plan.segments[index as usize];
    let Some(solve) = segment.solve() else { return Err(named(MethodError::NoSolver)) };
    let Sources { tiles: source, scattered } = sources;
    let products = Adapters::default().of(context, index, scattered)?;
    let threads =
        Threads { workers: context.workers, cancel: context.cancel, left: AtomicBool::new(false) };
    let stopped = || context.cancel.load(Ordering::Relaxed) || threads.left.load(Ordering::Relaxed);
    let mut solver = context.method.solver(tensor, solve.matrix()).map_err(named)?;
    let solving = Solving { context, index, segment, solve, products };
    let mut deltas = Vec::new();
    let mut held = vec![Vec::new(); segment.sources.len()];
    for (model, gram) in solve.grams.iter().enumerate() {
        if model > 0 {
            deltas.resize((solve.inputs * solve.outputs) as usize, 0.0);
            solving.deltas(model, source, &mut deltas, &mut held[model])?;
        }
        solving.gram(gram, solver.rows() as u64, source, |first, rows| {
            solver.take(model, first, rows, &deltas, &threads);
        })?;
        let closed = solver.close(model, &deltas, &threads);
        if stopped() {
            return Err(EngineError::Interrupted);
        }
        closed.map_err(named)?;
    }
    drop(deltas);
    let solved = solver.solve(&threads);
    if stopped() {
        return Err(EngineError::Interrupted);
    }
    solving.write(solved.map_err(named)?, &held, source, sink)?;
    scattered.finish_pass();
    let outcome = Outcome { elements: segment.elements, ..Outcome::default() };
    Ok(PassResult { outcomes: vec![(unit, outcome)], done: 1, ..PassResult::default() })
}

/// Reads ranges one after another, the next ones asked for while `work` has the ones before.
fn read(
    context: &Context<'_>,
    source: &mut Source,
    runs: impl Iterator<Item = (u64, Vec<ByteRange>)>,
    mut work: impl FnMut(u64, &[&[u8]]) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let mut runs = runs.peekable();
    while let Some((at, now)) = runs.next() {
        if context.cancel.load(Ordering::Relaxed) {
            return Err(EngineError::Interrupted);
        }
        source.prefetch(&now);
        if let Some((_, next)) = runs.peek() {
            source.prefetch(next);
        }
        let bytes = source.read(&now)?;
        let parts: Vec<&[u8]> = bytes.iter().map(|bytes| &**bytes).collect();
        work(at, &parts)?;
        context.progress.advance(parts.iter().map(|part| part.len() as u64).sum());
    }
    source.finish_pass();
    Ok(())
}

/// What all parts of a tensor's solving share.
struct Solving<'a> {
    context: &'a Context<'a>,
    index: u32,
    segment: &'a Segment,
    solve: &'a Solve,
    products: Products,
}

impl Solving<'_> {
    /// Runs of elements of some sources of the segment: their first element, and their bytes.
    fn runs<'b>(
        &'b self,
        sources: &'b [usize],
    ) -> impl Iterator<Item = (u64, Vec<ByteRange>)> + 'b {
        let (all, most) = (self.segment.elements, self.solve.elements(sources.len()));
        let range = move |start: u64, i: usize| {
            let (source, size) = (&self.segment.sources[i], self.segment.source_size(i));
            let len = (most.min(all - start) * size) as usize;
            ByteRange { file: source.file, offset: source.offset + start * size, len }
        };
        let run = move |start| (start, sources.iter().map(|&i| range(start, i)).collect());
        (0..all).step_by(most as usize).map(run)
    }

    /// A run of elements in some sources of the segment, for decoding.
    fn tile<'b>(&'b self, start: u64, given: &[(usize, &'b [u8])]) -> TileData<'b> {
        let mut bytes: Vec<&[u8]> = vec![&[]; self.segment.sources.len()];
        given.iter().for_each(|&(i, part)| bytes[i] = part);
        let elements = given.first().map_or(0, |&(i, part)| part.len() / self.size(i));
        TileData {
            segment: self.segment,
            index: self.index,
            start,
            elements,
            bytes,
            products: &self.products,
        }
    }

    /// Bytes of an element in a source.
    fn size(&self, source: usize) -> usize {
        self.segment.source_size(source) as usize
    }

    /// Where an element of the tensor lies among rows of inputs, one for each output.
    fn place(&self, element: u64) -> usize {
        let Solve { inputs, outputs, transposed, .. } = *self.solve;
        (if transposed { element % outputs * inputs + element / outputs } else { element }) as usize
    }

    /// The first source whose bytes are those of source `i`.
    fn original(&self, i: usize) -> usize {
        let sources = &self.segment.sources;
        sources.iter().position(|source| source.shares(&sources[i])).unwrap_or(i)
    }

    /// The weights of a model, relative to those of the first. Their bytes are held, if they are wanted later and not there yet.
    fn deltas(
        &self,
        model: usize,
        source: &mut Source,
        deltas: &mut [f32],
        held: &mut Vec<u8>,
    ) -> Result<(), EngineError> {
        let (kernels, original) = (self.context.kernels, self.original(model));
        // Adapters may differ where the model is the same.
        let read_from = if original == 0 { vec![0] } else { vec![0, model] };
        let hold = self.solve.models == Models::Held && original == model;
        if hold {
            held.reserve_exact(self.segment.elements as usize * self.size(model));
        }
        let (mut base, mut row) = (vec![0.0; BLOCK], vec![0.0; BLOCK]);
        read(self.context, source, self.runs(&read_from), |start, parts| {
            let own = parts[parts.len() - 1];
            if hold {
                held.extend_from_slice(own);
            }
            let tile = self.tile(start, &[(0, parts[0]), (model, own)]);
            for at in (0..tile.elements).step_by(BLOCK) {
                let len = BLOCK.min(tile.elements - at);
                let (base, row) = (&mut base[..len], &mut row[..len]);
                tile.decode(kernels, 0, at, base);
                if tile.decode_minus_base(kernels, model, at, base, row) >= INFINITY {
                    let bad = (base.iter().zip(&*row)).position(|(a, b)| !(a + b).is_finite());
                    let k = bad.unwrap_or(0);
                    let culprit = if base[k].is_finite() { model } else { 0 };
                    return Err(Decoder::culprit(self.context, &tile, at + k, culprit));
                }
                for (element, &delta) in (start + at as u64..).zip(&*row) {
                    deltas[self.place(element)] = delta;
                }
            }
            Ok(())
        })
    }

    /// The rows of a Gram matrix, a few at a time.
    fn gram(
        &self,
        gram: &SourceRef,
        most: u64,
        source: &mut Source,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        let (inputs, size) = (self.solve.inputs, gram.float.size() as u64);
        let step = self.solve.rows(most);
        let run = |first: u64| {
            let (offset, count) = (gram.offset + first * inputs * size, step.min(inputs - first));
            let len = (count * inputs * size) as usize;
            (first, vec![ByteRange { file: gram.file, offset, len }])
        };
        let mut values = vec![0.0; (step.min(inputs) * inputs) as usize];
        let runs = (0..inputs).step_by(step as usize).map(run);
        read(self.context, source, runs, |first, parts| {
            let count = parts[0].len() / size as usize;
            let rows = &mut values[..count];
            self.context.kernels.decode(gram.float, parts[0], rows);
            self.check(gram, first, rows)?;
            take(first as usize, rows);
            Ok(())
        })
    }

    /// Demands that rows of a Gram matrix can be such.
    fn check(&self, gram: &SourceRef, first: u64, rows: &[f32]) -> Result<(), EngineError> {
        let inputs = self.solve.inputs;
        let is_finite = self.context.kernels.max_magnitude_bits(rows) < INFINITY;
        let mut diagonal = (first..).zip(rows.chunks_exact(inputs as usize));
        if is_finite && diagonal.all(|(i, row)| row[i as usize] >= 0.0) {
            return Ok(());
        }
        let on_diagonal = |k: usize| k as u64 / inputs + first == k as u64 % inputs;
        let bad = |&(k, x): &(usize, &f32)| !x.is_finite() || *x < 0.0 && on_diagonal(k);
        let (k, &value) = rows.iter().enumerate().find(bad).unwrap_or((0, &f32::NAN));
        let element = first * inputs + k as u64;
        Err(EngineError::Measured {
            file: self.context.plan.labels[gram.checkpoint as usize].clone(),
            tensor: self.context.plan.tensors[self.segment.tensor as usize].name.to_string(),
            element,
            offset: gram.offset + element * gram.float.size() as u64,
            value,
            rule: "Gram matrices are finite, with nothing negative on the diagonal",
        })
    }

    /// Writes what is solved for, which is relative to the weights of the first model. For statistics, all models are
    /// beside it: `held`, or read once more.
    fn write(
        &self,
        solved: &[f64],
        held: &[Vec<u8>],
        source: &mut Source,
        sink: &mut dyn TileSink,
    ) -> Result<(), EngineError> {
        let (context, segment) = (self.context, self.segment);
        let size = segment.out_size as usize;
        let (fresh, models) = match self.solve.models {
            Models::Unseen => (vec![0], 1),
            Models::Held => (vec![0], segment.valued()),
            Models::Again => (segment.read().collect::<Vec<usize>>(), segment.valued()),
        };
        let originals: Vec<usize> = (0..models).map(|i| self.original(i)).collect();
        let mut observer = (self.solve.models != Models::Unseen).then(Observer::new);
        let (mut rows, mut values) = (vec![0.0; models * BLOCK], vec![0.0; BLOCK]);
        // Of its own: what is written at a time has not the size of a tile.
        let tickets = Tickets::new(1);
        // Nothing more is asked than that a tensor is finished once it is begun.
        read(context, source, self.runs(&fresh), |start, parts| {
            let count = parts[0].len() / self.size(0);
            let part = |(i, &original): (usize, &usize)| {
                let read = fresh.iter().position(|&source| source == original);
                let size = self.size(original);
                let kept = || &held[original][start as usize * size..][..count * size];
                (i, read.map_or_else(kept, |at| parts[at]))
            };
            let given: Vec<_> = originals.iter().enumerate().map(part).collect();
            let tile = self.tile(start, &given);
            // Waits until the one before is hashed.
            let room = tickets.pool().recv().map_err(|_| EngineError::Panicked("writer"))?;
            let mut ticket = tickets.ticket(room);
            let (whole, _) = ticket.of(tile.elements * size);
            if let Some(observer) = &mut observer {
                observer.begin(models);
            }
            for at in (0..tile.elements).step_by(BLOCK) {
                let len = BLOCK.min(tile.elements - at);
                let (rows, values) = (&mut rows[..models * len], &mut values[..len]);
                for (i, row) in rows.chunks_exact_mut(len).enumerate() {
                    tile.decode(context.kernels, i, at, row);
                    if context.kernels.max_magnitude_bits(row) >= INFINITY {
                        let bad = row.iter().position(|x| !x.is_finite()).unwrap_or(0);
                        return Err(Decoder::culprit(context, &tile, at + bad, i));
                    }
                }
                for ((element, value), &first) in
                    (start + at as u64..).zip(&mut *values).zip(&*rows)
                {
                    *value = (f64::from(first) + solved[self.place(element)]) as f32;
                }
                let out = &mut whole[at * size..(at + len) * size];
                encode(context, &tile, at, values, out)?;
                if let Some(observer) = &mut observer {
                    observer.add(context, &tile, (&[], rows), out);
                }
            }
            let offset = segment.offset + start * size as u64;
            let out = TileOut::new(ticket);
            sink.write(segment.shard as usize, offset, &out).map_err(EngineError::Sink)?;
            if let Some(observer) = &mut observer {
                let elements = tile.elements as u32;
                sink.seen(&Tile { segment: self.index, start, elements }, &observer.take());
            }
            Ok(())
        })
    }
}
