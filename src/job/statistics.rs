//! What a merge has seen of its tensors, gathered while it writes them: `reflow_statistics.json`.
//!
//! ```text
//! state/seen-U-S-E    BLAKE3 (32 bytes), then, zstd: bytes of rows: u64 | rows of the tensors that a piece has finished |
//!                     of the tensor that it has begun: segment: u32 | what was seen of it
//! ```
//! One such file for each record of the journal that says so; together they are the rows of the whole. Rows are a tensor each, in
//! plan order, so the file does not depend on how the merge was cut.

use std::io::Write as _;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Job;
use super::journal::Journal;
use super::manifest::ManifestFile;
use super::snapshots::Snapshots;
use crate::checkpoint::{RowMagnitudes, STATISTICS, StatisticsHead, TensorRow, hex};
use crate::engine::Seen;
use crate::engine::sink::{SinkError, durable};
use crate::error::Error;
use crate::method::Kept;
use crate::plan::{Action, Plan, ROWS_HELD, Tile, row_bytes};
use crate::stats::Magnitudes;

/// Gathers what is seen of the tensors.
pub(super) struct Collector<'a> {
    plan: &'a Plan,
    scores: bool,
    open: Option<Open>,
    rows: Vec<u8>,
    /// Whether anything came since the last record.
    news: bool,
}

/// A tensor of which a part was seen.
pub(super) struct Open {
    segment: u32,
    seen: Seen,
}

impl<'a> Collector<'a> {
    /// Begins, or goes on with what the last record has left open.
    pub(super) fn new(job: &'a Job, open: Option<Open>) -> Self {
        let scores = job.method.has_scores();
        Self { plan: &job.plan, scores, open, rows: Vec::new(), news: false }
    }

    /// Takes what was seen of a tile; tiles come in plan order.
    pub(super) fn add(&mut self, tile: &Tile, seen: &Seen) {
        self.news = true;
        match &mut self.open {
            Some(open) if open.segment == tile.segment => open.seen.merge(seen),
            open => *open = Some(Open { segment: tile.segment, seen: seen.clone() }),
        }
        let segment = &self.plan.segments[tile.segment as usize];
        if tile.start + u64::from(tile.elements) == segment.elements
            && let Some(open) = self.open.take()
        {
            let row = row(self.plan, &open, self.scores);
            // Into memory: nothing that could fail.
            let _infallible = writeln!(self.rows, "{}", row.render());
        }
    }

    /// What is new since the last time, as bytes to be saved; `None` if nothing is.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.news) {
            return None;
        }
        let mut bytes = (self.rows.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut self.rows);
        if let Some(open) = &self.open {
            bytes.extend(open.segment.to_le_bytes());
            bytes.extend(open.seen.save());
        }
        Some(bytes)
    }
}

/// The rows in saved bytes, and what they say of a tensor that was begun.
fn parts(saved: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = saved.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)
}

/// The tensor that was begun when the last record was made.
#[expect(clippy::option_option, reason = "nothing begun is not the same as damaged")]
fn open(plan: &Plan, saved: &[u8]) -> Option<Option<Open>> {
    let (_, rest) = parts(saved)?;
    if rest.is_empty() {
        return Some(None);
    }
    let (segment, rest) = rest.split_first_chunk()?;
    let segment = u32::from_le_bytes(*segment);
    let seen = Seen::load(experts(plan, segment)?, rest)?;
    Some(Some(Open { segment, seen }))
}

fn experts(plan: &Plan, segment: u32) -> Option<usize> {
    let values = plan.segments.get(segment as usize)?.valued();
    values.checked_sub(usize::from(plan.has_base))
}

/// Looks at what the records of a journal have left. Takes back those for which that is gone or damaged; returns the tensor that
/// was begun at the last one.
///
/// # Errors
/// What the disk says.
pub(super) fn resume(
    job: &Job,
    journal: &mut Journal,
    saved: &Snapshots<'_>,
) -> Result<Option<Open>, Error> {
    let cursors: Vec<_> = journal.records().map(|r| (r.statistics, r.cursor.clone())).collect();
    let mut last = None;
    for (at, (_, cursor)) in cursors.iter().enumerate().filter(|(_, (told, _))| *told) {
        let bytes = saved.load(cursor.units, cursor.stage, cursor.elements)?;
        let Some(open) = bytes.as_deref().and_then(|bytes| open(&job.plan, bytes)) else {
            journal.take_back(at)?;
            break;
        };
        last = open;
    }
    Ok(last)
}

/// Writes the file from what all records have left.
///
/// # Errors
/// What the disk says; [`SinkError::Damaged`] if something is not as it was written.
pub(super) fn write(
    job: &Job,
    model: &Path,
    journal: &Journal,
    saved: &Snapshots<'_>,
) -> Result<ManifestFile, Error> {
    let path = model.join(STATISTICS);
    let (mut hasher, mut len, mut first) = (Sha256::new(), 0, true);
    durable::write_atomic_in_parts(&*job.storage, &path, |put| {
        let mut put = |bytes: &[u8]| -> Result<(), Error> {
            hasher.update(bytes);
            len += bytes.len() as u64;
            Ok(put(bytes)?)
        };
        put(head(job).begin().as_bytes())?;
        for record in journal.records().filter(|record| record.statistics) {
            let cursor = &record.cursor;
            let at = (cursor.units, cursor.stage, cursor.elements);
            let bytes = saved.load(at.0, at.1, at.2)?.unwrap_or_default();
            let Some((rows, _)) = parts(&bytes) else {
                let path = saved.path(at.0, at.1, at.2);
                return Err(SinkError::Damaged { path, offset: 0, len: 0 }.into());
            };
            for row in rows.split(|&byte| byte == b'\n').filter(|row| !row.is_empty()) {
                put(if std::mem::take(&mut first) { b"\n" } else { b",\n" })?;
                put(row)?;
            }
        }
        put(StatisticsHead::end().as_bytes())
    })?;
    let (name, sha256) = (STATISTICS.to_owned(), hex(&hasher.finalize()));
    Ok(ManifestFile { name, bytes: len, sha256, extents: Vec::new() })
}

fn head(job: &Job) -> StatisticsHead {
    let plan = &job.plan;
    let copied = plan.segments.iter().filter(|segment| segment.action != Action::Merge);
    // A tensor of which some rows are merged counts with its rows.
    let copied = copied.filter(|segment| segment.first == 0).count();
    StatisticsHead {
        plan: job.fingerprint(),
        method: plan.method.clone(),
        base: plan.has_base.then(|| plan.labels[0].clone()),
        experts: plan.experts().to_vec(),
        scores: job.method.has_scores(),
        copied: copied as u64,
        ..StatisticsHead::new(env!("CARGO_PKG_VERSION"), Magnitudes::LEAST, Magnitudes::BINS)
    }
}

/// The row of a tensor of which everything was seen.
fn row(plan: &Plan, open: &Open, scores: bool) -> TensorRow {
    let segment = &plan.segments[open.segment as usize];
    let tensor = &plan.tensors[segment.tensor as usize];
    let stats = &open.seen.stats;
    let before = usize::from(plan.has_base);
    let models = segment.sources[..segment.valued()]
        .iter()
        .skip(before)
        .map(|s| s.checkpoint - before as u32);
    let models: Vec<u32> = models.collect();
    let all = models.iter().copied().eq(0..plan.experts().len() as u32);
    let magnitudes = (0..stats.rows()).map(|row| {
        let Magnitudes { largest, zeros, bins } = stats.magnitudes(row);
        let begin = bins.iter().position(|&count| count > 0).unwrap_or(0);
        let end = bins.iter().rposition(|&count| count > 0).map_or(begin, |last| last + 1);
        let from = Magnitudes::LEAST + begin as i32;
        RowMagnitudes { largest: *largest, zeros: *zeros, from, counts: bins[begin..end].to_vec() }
    });
    let kept = open.seen.kept.as_ref();
    let score = |kept: &Kept| kept.score as f64 / Kept::SCORE;
    TensorRow {
        name: tensor.name.to_string(),
        shape: tensor.shape.to_vec(),
        first: segment.first,
        elements: segment.elements,
        models: (!all).then_some(models),
        base: stats.base_square(),
        products: stats.products().collect(),
        magnitudes: magnitudes.collect(),
        shared: stats.shared,
        conflicts: stats.clashes,
        nonfinite: stats.nonfinite,
        kept: kept.map(|kept| kept.iter().map(|kept| kept.elements).collect()),
        scores: kept.filter(|_| scores).map(|kept| kept.iter().map(score).collect()),
    }
}

/// Tensors that one piece may merge, so that no more rows than that are held.
pub(super) fn tensors_at_once(job: &Job) -> Option<usize> {
    job.settings.statistics.then(|| {
        let experts = job.plan.experts().len() as u64;
        (ROWS_HELD / row_bytes(experts)).max(1) as usize
    })
}

/// About what they take on the disk: while they are gathered, and then as a file.
pub(super) fn bytes(job: &Job) -> u64 {
    let merged = job.plan.units.iter().map(|unit| unit.segments.len() as u64).sum::<u64>();
    if job.settings.statistics {
        2 * merged * row_bytes(job.plan.experts().len() as u64)
    } else {
        0
    }
}
