//! The shards being written: opened when first touched, hashed on the way, finished when whole.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::components::Writer;
use super::digests::Digests;
use super::extents::{Extent, Extents};
use super::journal::{Record, Whole, Written};
use super::statistics::Collector;
use crate::checkpoint::components::TileFrames;
use crate::checkpoint::{Layout, hex};
use crate::engine::sink::{
    Lane, Ranges, ShardWriter, SinkConfig, SinkError, Storage, durable, read_back,
};
use crate::engine::{Seen, TileOut, TileSink};
use crate::plan::{Plan, Tile};
use crate::progress::{Event, Progress};

/// Writes tiles into `NAME.part` files and renames each to `NAME` once all its bytes are durable.
///
/// Tiles come in plan order, so each extent's bytes come in theirs and are hashed as they pass. A shard's own
/// hash follows as far as its bytes are without a hole, and reads back what was written before a hole was
/// filled. What it reads back is compared with the extents' hashes.
pub(super) struct Output<'a> {
    storage: &'a dyn Storage,
    layout: &'a Layout,
    extents: Extents,
    model: PathBuf,
    config: SinkConfig,
    /// What all shards share to pass the page cache by.
    lane: Arc<Lane>,
    progress: &'a dyn Progress,
    shards: Vec<Shard>,
    /// Hashes of the shards.
    digests: Digests,
    /// Hashes of the extents that are whole.
    hashes: Vec<Option<blake3::Hash>>,
    open: Option<OpenExtent>,
    /// Takes the shares of experts, if they are kept.
    components: Option<Writer<'a>>,
    /// Takes statistics, if they are asked for.
    statistics: Option<Collector<'a>>,
    /// What is new since the last record.
    news: Record,
}

/// An extent of which only the beginning is written.
struct OpenExtent {
    number: usize,
    hasher: blake3::Hasher,
    bytes: u64,
}

struct Shard {
    /// What is written, header not included.
    written: Ranges,
    /// How far its hash goes.
    digested: u64,
    state: State,
}

enum State {
    /// Not opened by this process.
    Closed,
    /// Being written.
    Open(Box<ShardWriter>),
    /// Whole, durable, under its final name; with its SHA-256.
    Done(String),
}

/// What a finished output consists of.
pub(super) struct Hashes {
    /// SHA-256 of each shard.
    pub(super) shards: Vec<String>,
    /// BLAKE3 of each extent.
    pub(super) extents: Vec<blake3::Hash>,
}

/// Where an output is written to.
pub(super) struct Place<'a> {
    /// The disk.
    pub(super) storage: &'a dyn Storage,
    /// The directory.
    pub(super) model: PathBuf,
    /// How shards are written.
    pub(super) config: SinkConfig,
    /// Who is told about finished shards.
    pub(super) progress: &'a dyn Progress,
}

impl<'a> Output<'a> {
    /// An output of which everything is written that `records` say.
    ///
    /// # Errors
    /// [`SinkError::Damaged`] if it is not.
    pub(super) fn new<'r>(
        plan: &'a Plan,
        place: Place<'a>,
        records: impl Iterator<Item = &'r Record>,
    ) -> Result<Self, SinkError> {
        let extents = Extents::new(plan);
        let shards = (plan.layout.shards.iter())
            .map(|_| Shard { written: Ranges::default(), digested: 0, state: State::Closed })
            .collect();
        let mut output = Self {
            storage: place.storage,
            layout: &plan.layout,
            hashes: vec![None; extents.len()],
            extents,
            model: place.model,
            lane: Arc::new(Lane::new(place.config.chunk)),
            config: place.config,
            progress: place.progress,
            shards,
            digests: Digests::default(),
            open: None,
            components: None,
            statistics: None,
            news: Record::default(),
        };
        let mut last = None;
        for record in records {
            output.recall(record)?;
            last = record.open.as_ref();
        }
        for k in 0..output.shards.len() {
            output.settle(k)?;
        }
        // Only now: the names are settled.
        last.map_or(Ok(()), |open| output.reopen_extent(open))?;
        Ok(output)
    }

    /// The same, with a place for the shares of experts.
    pub(super) fn with_components(self, components: Option<Writer<'a>>) -> Self {
        Self { components, ..self }
    }

    /// The same, with a place for statistics.
    pub(super) fn with_statistics(self, statistics: Option<Collector<'a>>) -> Self {
        Self { statistics, ..self }
    }

    /// What takes statistics.
    pub(super) fn statistics(&mut self) -> Option<&mut Collector<'a>> {
        self.statistics.as_mut()
    }

    /// What takes the shares of experts.
    pub(super) fn components(&mut self) -> Option<&mut Writer<'a>> {
        self.components.as_mut()
    }

    /// Takes in what a record says.
    fn recall(&mut self, record: &Record) -> Result<(), SinkError> {
        for written in &record.extents {
            let hash = blake3::Hash::from_hex(&written.blake3).ok();
            let found = self.extents.find(written.shard, written.offset);
            let known =
                found.filter(|(_, e)| (e.offset, e.bytes) == (written.offset, written.bytes));
            let (Some((number, extent)), Some(hash)) = (known, hash) else {
                return Err(self.damaged(written));
            };
            self.hashes[number] = Some(hash);
            self.shards[extent.shard as usize]
                .written
                .add(extent.offset, extent.offset + extent.bytes);
        }
        for whole in &record.shards {
            if let Some(shard) = self.shards.get_mut(whole.shard as usize) {
                shard.state = State::Done(whole.sha256.clone());
            }
        }
        Ok(())
    }

    /// Brings the name of a shard's file in line with what is known of it.
    fn settle(&mut self, k: usize) -> Result<(), SinkError> {
        let (name, part) = (self.name(k), self.part(k));
        if matches!(self.shards[k].state, State::Done(_)) {
            let len = self.layout.shards[k].len;
            let whole = name.metadata().is_ok_and(|meta| meta.len() == len);
            return if whole && self.has_header(k)? {
                Ok(())
            } else {
                Err(SinkError::Damaged { path: name, offset: 0, len })
            };
        }
        // It got its final name, and then there was a crash, or its records were taken back.
        if name.exists() && !part.exists() {
            durable::rename_noreplace(self.storage, &name, &part)?;
        }
        Ok(())
    }

    /// Whether a whole shard begins with its header, of which no record speaks.
    fn has_header(&self, k: usize) -> Result<bool, SinkError> {
        let header = &self.layout.shards[k].header;
        let mut hasher = blake3::Hasher::new();
        let read = read_back(&self.name(k), 0..header.len() as u64, |bytes| {
            hasher.update(bytes);
        });
        match read {
            Ok(()) => Ok(hasher.finalize() == blake3::hash(header)),
            Err(SinkError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads back the beginning of an extent, to go on with its hash.
    fn reopen_extent(&mut self, open: &Written) -> Result<(), SinkError> {
        let found = self.extents.find(open.shard, open.offset);
        let known = found.filter(|(_, e)| e.offset == open.offset && open.bytes < e.bytes);
        let Some((number, _)) = known else { return Err(self.damaged(open)) };
        let end = open.offset + open.bytes;
        let mut hasher = blake3::Hasher::new();
        read_back(&self.file(open.shard as usize), open.offset..end, |bytes| {
            hasher.update(bytes);
        })?;
        if hasher.finalize().to_hex().as_str() != open.blake3 {
            return Err(self.damaged(open));
        }
        self.shards[open.shard as usize].written.add(open.offset, end);
        self.open = Some(OpenExtent { number, hasher, bytes: open.bytes });
        Ok(())
    }

    /// Makes everything durable that was written, and tells what is new since the last time.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn sync(&mut self) -> Result<Record, SinkError> {
        for shard in &self.shards {
            if let State::Open(writer) = &shard.state {
                writer.sync()?;
            }
        }
        durable::sync_dir(self.storage, &self.model)?;
        let mut news = std::mem::take(&mut self.news);
        news.open = self.open.as_ref().and_then(|open| {
            let extent = self.extents.get(open.number)?;
            let blake3 = open.hasher.finalize().to_hex().to_string();
            Some(Written { shard: extent.shard, offset: extent.offset, bytes: open.bytes, blake3 })
        });
        Ok(news)
    }

    /// Finishes shards that nothing is missing of and that no write has finished: those without any
    /// data.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn finish(&mut self) -> Result<(), SinkError> {
        (0..self.shards.len()).try_for_each(|k| {
            self.open(k)?;
            self.finish_if_whole(k)
        })
    }

    /// All hashes, once everything is written; `None` before.
    pub(super) fn hashes(&self) -> Option<Hashes> {
        let shard = |shard: &Shard| match &shard.state {
            State::Done(sha256) => Some(sha256.clone()),
            State::Closed | State::Open(_) => None,
        };
        let shards = self.shards.iter().map(shard).collect::<Option<_>>()?;
        let headers = self.layout.shards.iter().map(|shard| blake3::hash(&shard.header));
        let headers: Vec<_> = headers.collect();
        let extents = (0..self.extents.len()).map(|number| {
            let extent = self.extents.get(number)?;
            let header = extent.tensor.is_none().then(|| headers[extent.shard as usize]);
            header.or(self.hashes[number])
        });
        Some(Hashes { shards, extents: extents.collect::<Option<_>>()? })
    }

    /// The runs of bytes that have hashes.
    pub(super) fn extents(&self) -> &Extents {
        &self.extents
    }

    fn open(&mut self, k: usize) -> Result<(), SinkError> {
        if !matches!(self.shards[k].state, State::Closed) {
            return Ok(());
        }
        let shard = &self.layout.shards[k];
        let part = self.part(k);
        let begun = self.shards[k].written.bytes() > 0;
        let writer = match part.metadata() {
            Ok(meta) if !begun || meta.len() == shard.len => {
                ShardWriter::reopen(self.storage, &part, shard.len, &self.config)?
            }
            Err(_) if !begun => ShardWriter::create(self.storage, &part, shard.len, &self.config)?,
            _ => return Err(SinkError::Damaged { path: part, offset: 0, len: shard.len }),
        };
        let writer = writer.by_way_of(&self.lane);
        writer.write_at(0, &shard.header)?;
        self.digests.put(k, Sha256::new_with_prefix(&shard.header));
        self.shards[k].digested = shard.header.len() as u64;
        self.catch_up(k)?;
        self.shards[k].state = State::Open(Box::new(writer));
        Ok(())
    }

    /// Takes the bytes of an extent into its hash.
    fn hash(&mut self, k: usize, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some((number, extent)) = self.extents.find(k as u32, offset) else { return };
            let mut open = match self.open.take() {
                Some(open) if open.number == number && extent.offset + open.bytes == offset => open,
                _ => OpenExtent { number, hasher: blake3::Hasher::new(), bytes: 0 },
            };
            let now = (extent.bytes - open.bytes).min(bytes.len() as u64);
            let (these, rest) = bytes.split_at(now as usize);
            open.hasher.update(these);
            open.bytes += now;
            (offset, bytes) = (offset + now, rest);
            if open.bytes < extent.bytes {
                self.open = Some(open);
                continue;
            }
            let hash = open.hasher.finalize();
            self.hashes[number] = Some(hash);
            let blake3 = hash.to_hex().to_string();
            let Extent { shard, offset, bytes, .. } = extent;
            self.news.extents.push(Written { shard, offset, bytes, blake3 });
        }
    }

    /// Reads back what lies behind the digested bytes without a hole, and compares it with the hashes of
    /// its extents.
    fn catch_up(&mut self, k: usize) -> Result<(), SinkError> {
        let end = self.shards[k].written.run_end(self.shards[k].digested);
        if end <= self.shards[k].digested {
            return Ok(());
        }
        let file = self.file(k);
        let Shard { digested, state, .. } = &mut self.shards[k];
        if let State::Open(writer) = state {
            writer.flush()?;
        }
        let mut digest = taken(&mut self.digests, k, &file)?;
        while *digested < end {
            let at = *digested;
            let Some((number, extent)) = self.extents.find(k as u32, at) else { break };
            let until = end.min(extent.offset + extent.bytes);
            let mut hasher = blake3::Hasher::new();
            read_back(&file, at..until, |bytes| {
                digest.update(bytes);
                hasher.update(bytes);
            })?;
            *digested = until;
            let whole = (at, until) == (extent.offset, extent.offset + extent.bytes);
            if whole && self.hashes[number].is_some_and(|hash| hash != hasher.finalize()) {
                let (offset, len) = (extent.offset, extent.bytes);
                return Err(SinkError::Damaged { path: file, offset, len });
            }
        }
        self.digests.put(k, digest);
        Ok(())
    }

    fn finish_if_whole(&mut self, k: usize) -> Result<(), SinkError> {
        let shard = &self.layout.shards[k];
        let header = shard.header.len() as u64;
        let whole = self.shards[k].written.bytes() >= shard.len - header;
        if !whole || !matches!(self.shards[k].state, State::Open(_)) {
            return Ok(());
        }
        let (name, part) = (self.name(k), self.part(k));
        if let State::Open(writer) = std::mem::replace(&mut self.shards[k].state, State::Closed) {
            writer.finish()?;
            durable::rename_noreplace(self.storage, &part, &name)?;
            let sha256 = hex(&taken(&mut self.digests, k, &name)?.finalize());
            self.news.shards.push(Whole { shard: k as u32, sha256: sha256.clone() });
            self.shards[k].state = State::Done(sha256);
            self.progress.event(&Event::ShardDone { file: &shard.file_name });
        }
        Ok(())
    }

    fn damaged(&self, written: &Written) -> SinkError {
        let path = self.part(written.shard as usize);
        SinkError::Damaged { path, offset: written.offset, len: written.bytes }
    }

    /// Where the bytes of a shard are now.
    fn file(&self, k: usize) -> PathBuf {
        file_of(&self.model, &self.layout.shards[k].file_name)
    }

    fn name(&self, k: usize) -> PathBuf {
        self.model.join(self.layout.shards.get(k).map_or("", |shard| &shard.file_name))
    }

    fn part(&self, k: usize) -> PathBuf {
        part_of(&self.name(k))
    }
}

/// The name that a shard has while it is written.
fn part_of(name: &Path) -> PathBuf {
    let mut part = name.as_os_str().to_owned();
    part.push(".part");
    PathBuf::from(part)
}

/// Where the bytes of a shard are: under its final name, or still under that of a part.
pub(super) fn file_of(model: &Path, name: &str) -> PathBuf {
    let name = model.join(name);
    let part = part_of(&name);
    if part.exists() { part } else { name }
}

/// The hash of a shard so far.
fn taken(digests: &mut Digests, k: usize, file: &Path) -> Result<Sha256, SinkError> {
    let failed = || io::Error::other("the thread that hashes has failed");
    digests.take(k).ok_or_else(|| SinkError::of("hash", file, 0, failed()))
}

/// Bytes that are written and hashed one after the other: a tile may be larger than any cache, and is read from memory once like
/// this.
const PIECE: usize = 256 << 10;

impl TileSink for Output<'_> {
    fn write(&mut self, k: usize, offset: u64, bytes: &TileOut) -> Result<(), SinkError> {
        self.open(k)?;
        if !matches!(self.shards[k].state, State::Open(_)) {
            // What a finished shard would be given again is what it holds; no plan does that.
            return Ok(());
        }
        if self.shards[k].digested == offset {
            self.digests.add(k, bytes);
            self.shards[k].digested += bytes.len() as u64;
        }
        for (piece, offset) in bytes.chunks(PIECE).zip((offset..).step_by(PIECE)) {
            if let State::Open(writer) = &self.shards[k].state {
                writer.write_at(offset, piece)?;
            }
            self.hash(k, offset, piece);
            self.shards[k].written.add(offset, offset + piece.len() as u64);
        }
        self.catch_up(k)?;
        self.finish_if_whole(k)
    }

    fn frames(&mut self, frames: &TileFrames) -> Result<(), SinkError> {
        self.components.as_mut().map_or(Ok(()), |components| components.add(frames))
    }

    fn seen(&mut self, tile: &Tile, seen: &Seen) {
        if let Some(statistics) = &mut self.statistics {
            statistics.add(tile, seen);
        }
    }
}
