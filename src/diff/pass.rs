//! One read of both models and the base, side by side.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::pairs::{Pair, Pairs, float};
use super::panicked;
use super::report::Found;
use crate::checkpoint::{Catalog, TensorInfo};
use crate::engine::EngineError;
use crate::engine::source::{self, ByteRange, InputFile, Source, SourceConfig, TileBytes};
use crate::error::Error;
use crate::kernel::{Float, Kernels};
use crate::plan::{Budget, Demand, budget};
use crate::progress::{Event, Progress};
use crate::recipe::Settings;
use crate::stats::{PairStats, TensorStats};

/// Elements that are worked on while they are in cache.
const BLOCK: usize = 4096;

/// What was seen of a tensor, or of several. Mergeable in any order.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) pair: PairStats,
    /// Of the task vectors, where there is a base.
    pub(super) task: Option<Box<TensorStats>>,
    /// Whether all bytes are equal, and the types.
    pub(super) same_bytes: bool,
}

impl Seen {
    /// Nothing seen yet.
    pub(super) fn new(based: bool) -> Self {
        let task = based.then(|| Box::new(TensorStats::new(2, false)));
        Self { pair: PairStats::default(), task, same_bytes: true }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.pair.merge(&other.pair);
        self.same_bytes &= other.same_bytes;
        match (&mut self.task, &other.task) {
            (Some(task), Some(more)) => task.merge(more),
            (None, Some(more)) => self.task = Some(more.clone()),
            (_, None) => {}
        }
    }
}

/// A run of elements of one pair; of bytes where only these are compared.
#[derive(Clone, Copy)]
struct Tile {
    pair: usize,
    start: u64,
    len: u64,
}

pub(super) struct Pass<'a> {
    pub(super) catalogs: &'a [Catalog],
    pub(super) pairs: &'a Pairs,
    pub(super) kernels: &'static Kernels,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancel: &'a AtomicBool,
}

impl Pass<'_> {
    /// Reads everything once.
    pub(super) fn run(
        &self,
        files: Vec<InputFile>,
        settings: &Settings,
        (memory, of_memory): (u64, &str),
    ) -> Result<Found, Error> {
        let paths: Vec<_> = files.iter().map(|file| file.path.clone()).collect();
        let (mode, _why) = source::choose(settings.io, &paths, settings.memory.is_some());
        let budget = budget(memory, of_memory, &self.demand(settings, mode))?;
        let mut config = SourceConfig::new(mode);
        config.grain = budget.grain;
        let mut source = Source::open(files, &config).map_err(EngineError::Source)?;
        let bytes_total =
            (0..self.pairs.both.len()).map(|k| self.ranges(self.whole(k)).1).sum::<u64>();
        self.progress.event(&Event::Started { bytes_total, bytes_done: 0 });
        self.progress.event(&Event::PassStarted { name: "compare" });
        let begin = Instant::now();
        let mut found = Found::new(self.pairs);
        self.tiles_through(&mut source, &budget, &mut found)?;
        source.finish_pass();
        source.verify_unchanged().map_err(EngineError::Source)?;
        found.read = source.bytes_read();
        let seconds = begin.elapsed().as_secs_f64();
        let bytes = found.read;
        self.progress.event(&Event::PassFinished { name: "compare", bytes, seconds });
        Ok(found)
    }

    fn demand(&self, settings: &Settings, mode: crate::plan::Mode) -> Demand {
        let tensors = self.catalogs.iter().map(|catalog| catalog.tensors.len() as u64).sum::<u64>();
        let widths = self.catalogs.iter().flat_map(|catalog| &catalog.tensors).filter_map(float);
        let stats = (size_of::<Seen>() as u64) + TensorStats::bytes(2, false);
        let inputs = self.catalogs.len() as u64;
        Demand {
            mode,
            inputs,
            low_rank: crate::plan::low_rank::Need::default(),
            solve: crate::plan::solve::Need::default(),
            input_bytes: widths.map(Float::size).max().unwrap_or(1) as u64,
            output_bytes: 0,
            // Rows of a block, and what two tiles have come to.
            bits_at_hand: 0,
            state_bytes: 8 * (BLOCK as u64) * 4 + 2 * stats,
            seen_bytes: (0, 0),
            // Headers and names, then a row of the report and its text.
            held: Vec::new(),
            catalog_bytes: tensors * 320
                + self.pairs.both.len() as u64 * 2048
                + self.pairs.groups.len() as u64 * stats,
            sampled: 0,
            whole: None,
            grain: 1,
            threads: settings.threads.unwrap_or_else(|| {
                std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
            }),
            tile: settings.tile.map(|tile| tile.clamp(1, 1 << 30) as u32),
        }
    }

    fn tensor(&self, model: usize, index: usize) -> &TensorInfo {
        &self.catalogs[model].tensors[index]
    }

    /// The tensors of a pair: in both models, and in the base.
    fn tensors(&self, pair: &Pair) -> impl Iterator<Item = (usize, &TensorInfo)> {
        let base = pair.base.map(|index| (2, index));
        let models = [Some((0, pair.index[0])), Some((1, pair.index[1])), base];
        models.into_iter().flatten().map(|(model, index)| (model, self.tensor(model, index)))
    }

    fn whole(&self, pair: usize) -> Tile {
        let it = &self.pairs.both[pair];
        let tensor = self.tensor(0, it.index[0]);
        Tile { pair, start: 0, len: if it.codes { tensor.len } else { tensor.elements() } }
    }

    /// The bytes of a tile in both models and the base, and how many there are.
    fn ranges(&self, tile: Tile) -> (Vec<ByteRange>, u64) {
        let pair = &self.pairs.both[tile.pair];
        let before =
            |model| self.catalogs[..model].iter().map(|c| c.files.len() as u32).sum::<u32>();
        let ranges: Vec<ByteRange> = self
            .tensors(pair)
            .map(|(model, tensor)| {
                let size = match float(tensor) {
                    Some(float) if !pair.codes => float.size() as u64,
                    _ => 1,
                };
                ByteRange {
                    file: before(model) + tensor.file,
                    offset: tensor.offset + tile.start * size,
                    len: (tile.len * size) as usize,
                }
            })
            .collect();
        let bytes = ranges.iter().map(|range| range.len as u64).sum();
        (ranges, bytes)
    }

    /// All tiles, in the order in which the first model stores its tensors.
    fn tiles(&self, elements: u64, widest: u64) -> impl Iterator<Item = Tile> {
        let mut order: Vec<usize> = (0..self.pairs.both.len()).collect();
        order.sort_by_key(|&k| {
            let tensor = self.tensor(0, self.pairs.both[k].index[0]);
            (tensor.file, tensor.offset)
        });
        order.into_iter().flat_map(move |k| {
            let whole = self.whole(k);
            let step = if self.pairs.both[k].codes { elements * widest } else { elements };
            (0..whole.len).step_by(step as usize).map(move |start| Tile {
                pair: k,
                start,
                len: step.min(whole.len - start),
            })
        })
    }

    /// Reads tiles here and hands them to workers. A tile is handed over when a worker is free for it, so there are as
    /// many as workers, one that waits, and one that was asked for.
    fn tiles_through(
        &self,
        source: &mut Source,
        budget: &Budget,
        found: &mut Found,
    ) -> Result<(), Error> {
        let widths = self.catalogs.iter().flat_map(|catalog| &catalog.tensors).filter_map(float);
        let widest = widths.map(Float::size).max().unwrap_or(1) as u64;
        let tiles = || self.tiles(u64::from(budget.tile_elements), widest);
        // How many tiles of each pair are still to come.
        let mut left = vec![0u64; self.pairs.both.len()];
        tiles().for_each(|tile| left[tile.pair] += 1);
        // What has no element has no tile, and is equal.
        for (k, pair) in self.pairs.both.iter().enumerate().filter(|(k, _)| left[*k] == 0) {
            let mut seen = Seen::new(pair.base.is_some());
            seen.same_bytes = self.same_types(pair);
            found.tensor(self.pairs, k, &seen);
        }
        let mut open: HashMap<usize, Seen> = HashMap::new();
        let mut take = |(k, seen): (usize, Seen)| {
            open.entry(k).and_modify(|all| all.merge(&seen)).or_insert(seen);
            left[k] -= 1;
            if left[k] == 0
                && let Some(seen) = open.remove(&k)
            {
                found.tensor(self.pairs, k, &seen);
            }
        };
        std::thread::scope(|scope| {
            let (to_workers, work) = mpsc::sync_channel::<(Tile, Vec<TileBytes>)>(0);
            let (results, done) = mpsc::channel();
            let work = Arc::new(Mutex::new(work));
            let workers: Vec<_> = (0..budget.workers)
                .map(|_| {
                    let (work, results) = (Arc::clone(&work), results.clone());
                    scope.spawn(move || self.work(&work, &results))
                })
                .collect();
            // When all workers are gone, nothing can be handed over any more.
            drop((work, results));
            let read =
                self.read(source, tiles(), &to_workers, || done.try_iter().for_each(&mut take));
            drop(to_workers);
            let dead = workers.into_iter().filter_map(|worker| worker.join().err()).count();
            done.try_iter().for_each(&mut take);
            if dead == 0 { read } else { Err(panicked()) }
        })
    }

    fn read(
        &self,
        source: &mut Source,
        tiles: impl Iterator<Item = Tile>,
        to_workers: &SyncSender<(Tile, Vec<TileBytes>)>,
        mut take: impl FnMut(),
    ) -> Result<(), Error> {
        let mut tiles = tiles.peekable();
        while let Some(tile) = tiles.next() {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(EngineError::Interrupted.into());
            }
            let (ranges, bytes) = self.ranges(tile);
            source.prefetch(&ranges);
            if let Some(next) = tiles.peek() {
                source.prefetch(&self.ranges(*next).0);
            }
            let read = source.read(&ranges).map_err(EngineError::Source)?;
            to_workers.send((tile, read)).map_err(|_gone| panicked())?;
            self.progress.advance(bytes);
            take();
        }
        Ok(())
    }

    fn work(
        &self,
        work: &Mutex<Receiver<(Tile, Vec<TileBytes>)>>,
        results: &mpsc::Sender<(usize, Seen)>,
    ) {
        let mut space = Space::default();
        loop {
            let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((tile, bytes)) = next else { return };
            let seen = self.compare(tile, &bytes, &mut space);
            drop(bytes);
            if results.send((tile.pair, seen)).is_err() {
                return;
            }
        }
    }

    fn same_types(&self, pair: &Pair) -> bool {
        self.tensor(0, pair.index[0]).dtype == self.tensor(1, pair.index[1]).dtype
    }

    fn compare(&self, tile: Tile, bytes: &[TileBytes], space: &mut Space) -> Seen {
        let pair = &self.pairs.both[tile.pair];
        let mut seen = Seen::new(pair.base.is_some());
        seen.same_bytes = self.same_types(pair) && bytes[0][..] == bytes[1][..];
        if pair.codes {
            return seen;
        }
        let floats: Vec<Float> = self.tensors(pair).filter_map(|(_, t)| float(t)).collect();
        for start in (0..tile.len as usize).step_by(BLOCK) {
            let len = BLOCK.min(tile.len as usize - start);
            let part = |i: usize| {
                let size = floats[i].size();
                &bytes[i][start * size..(start + len) * size]
            };
            let Space { rows: [a, b, base, of_a, of_b], difference } = space;
            for row in [&mut *a, &mut *b, &mut *base, &mut *of_a, &mut *of_b] {
                row.resize(len, 0.0);
            }
            self.kernels.decode(floats[0], part(0), a);
            self.kernels.decode(floats[1], part(1), b);
            seen.pair.add(self.kernels, a, b, difference);
            if let Some(task) = &mut seen.task {
                self.kernels.decode(floats[2], part(2), base);
                for (row, tau) in [(&*a, &mut *of_a), (&*b, &mut *of_b)] {
                    tau.copy_from_slice(row);
                    self.kernels.subtract(base, tau);
                }
                task.add(self.kernels, base, &[of_a, of_b]);
            }
        }
        seen
    }
}

/// Decoded rows of a block: both models, the base, both task vectors; and the difference.
#[derive(Default)]
struct Space {
    rows: [Vec<f32>; 5],
    difference: Vec<f32>,
}
