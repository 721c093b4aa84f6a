//! Which positions are selected in a unit at hand, in one pass over it: a bracket for the last variance that is selected, from a
//! sample, and a scan that decides all positions outside of it.
//!
//! ```text
//! sample (2 passes of 1 % to 2.4 %)   of the variances that are not zero: the share that is selected is a share of these
//! scan   (1 pass)                     marks what is above the bracket, with its squares; hands out what is inside
//!        at its end                   the rank is known: so many of the latter are selected, too
//! ```
//! The counts prove whether the bracket held the rank. If not, or if too much lies inside, variances are ranked by selection.
//! The map takes the marks, a bit for each position, and computes no variance again.

use std::sync::Arc;

use super::{Chosen, Course, Variances, merge};
use crate::kernel::keys;
use crate::method::band::{Band, Edge};
use crate::method::sampling::sampling;
use crate::method::{
    AnyStage, BLOCK, Block, Held, Lost, MethodError, Next, Parcels, Sampling, Stage,
};
use crate::stats::{DotSum, Reader, Sketch, Sketched, Sketches, Span, Writer};

/// First words of saved states, so that none is taken for that of another stage.
const SAMPLE_STATE: u32 = 0x5ce0_0001;
const SCAN_STATE: u32 = 0x5ce0_0002;

/// The bracket takes no more than this share of a unit: one that holds more is a miss.
const SHARE: u64 = 16;
/// Words of records held before they are handed out.
const MOST: usize = 1 << 17;
/// Positions that a word of marks stands for.
pub(super) const WORD: usize = 16;

/// Bytes of a record: key and place, and the values of all experts.
fn record_bytes(experts: usize) -> u64 {
    (experts as u64 + 2) * 4
}

/// Bytes that a unit takes: records, a key and place of each once more, and the marks, of which there are two while they
/// are handed on.
pub(super) fn held_bytes(elements: u64, experts: usize) -> u64 {
    elements / SHARE * (record_bytes(experts) + 8) + elements / 4 + 2 * MOST as u64 * 4
}

/// Bytes of state of one worker.
pub(super) fn state_bytes(experts: usize) -> u64 {
    // A growing vector, the parcel made of it, and rows.
    let words = MOST as u64 + BLOCK as u64 * (experts as u64 + 2);
    Sketch::state_bytes(1, 1).max(words * 12) + 5 * BLOCK as u64 * 4
}

/// Starts with the sample.
pub(super) fn start(course: Arc<Course>, share: f64) -> Box<dyn AnyStage> {
    let elements = course.unit.elements;
    let blocks = elements.div_ceil(sampling(elements).stride);
    let rank = (elements as f64 * (1.0 - share)) as u64;
    let sketch = Sketch::new(1, elements, blocks, &[rank], 1.0);
    Box::new(Sample { course, share, sketch })
}

/// A bracket of the least variance that is selected.
struct Sample {
    course: Arc<Course>,
    share: f64,
    sketch: Sketch,
}

struct SampleState {
    counts: Sketched,
    variances: Vec<f32>,
    keys: Vec<u32>,
}

impl Stage for Sample {
    type State = SampleState;

    fn name(&self) -> &'static str {
        if self.sketch.is_first() { "sample of variances" } else { "sample of variances, refined" }
    }

    fn sample(&self) -> Option<Sampling> {
        Some(sampling(self.course.unit.elements))
    }

    fn empty(&self) -> SampleState {
        SampleState { counts: self.sketch.empty(), variances: Vec::new(), keys: Vec::new() }
    }

    fn add(&self, state: &mut SampleState, block: &Block<'_>, _out: &mut [f32]) {
        let SampleState { counts, variances, keys } = state;
        variances.resize(block.len(), 0.0);
        self.course.kernels.variances(block.rows, variances);
        keys.clear();
        keys.extend(variances.iter().map(|x| x.to_bits()).filter(|&key| key > 0));
        // Of a block without any it could not be said how much it differs from others.
        if !keys.is_empty() {
            self.sketch.add(counts, 0, self.course.unit.place(block), keys);
        }
    }

    fn merge(&self, into: &mut SampleState, from: SampleState) {
        into.counts.merge(from.counts);
    }

    fn save(&self, state: &SampleState) -> Vec<u8> {
        state.counts.saved(SAMPLE_STATE)
    }

    fn load(&self, saved: &[u8]) -> Option<SampleState> {
        let counts = self.sketch.loaded(SAMPLE_STATE, saved)?;
        Some(SampleState { counts, ..Stage::empty(self) })
    }

    fn finish(self, state: SampleState) -> Result<Next, MethodError> {
        let Self { course, share, sketch } = self;
        match sketch.absorb(state.counts) {
            Sketches::Again(sketch) => Ok(Next::stage(Self { course, share, sketch })),
            Sketches::Done(brackets) => {
                let (from, to) = brackets[0].spans[0];
                // Variances of zero are never selected.
                Ok(Next::stage(Scan { course, share, span: (from.max(1), to.max(1)) }))
            }
        }
    }
}

/// One pass over everything.
struct Scan {
    course: Arc<Course>,
    share: f64,
    /// The bracket, as keys.
    span: Span,
}

struct ScanState {
    counted: Counted,
    /// Of what is above the bracket.
    squares: Vec<DotSum>,
    /// A bit for each position that is selected.
    marks: Vec<u16>,
    /// Records of what is inside: words of key, place and values.
    records: Vec<u32>,
    variances: Vec<f32>,
    places: Vec<u32>,
    noted: Vec<u16>,
    packed: Vec<f32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// Positions that differ.
    different: u64,
    /// Those whose variance is below the bracket, that do not differ among them.
    below: u64,
    /// Inside.
    inside: u64,
}

impl Scan {
    /// Records that are kept at most.
    fn limit(&self) -> u64 {
        self.course.unit.elements / SHARE
    }

    /// How many of the records are selected, if the bracket holds the rank.
    fn taken(&self, counted: Counted, selected: u64) -> Option<u64> {
        let above = self.course.unit.elements - counted.below - counted.inside;
        let taken = selected.checked_sub(above)?;
        // Rounding may select one more than differ: which, is for the selection to say.
        (taken <= counted.inside && counted.inside <= self.limit()).then_some(taken)
    }

    /// In the order of the ranking.
    fn ranked(&self, record: &[u32]) -> u64 {
        u64::from(self.span.1 - record[0]) << 32 | u64::from(record[1])
    }

    /// Shows all records to `see`.
    fn visit(
        &self,
        counted: Counted,
        parcels: &dyn Parcels,
        mut see: impl FnMut(&[u32]),
    ) -> Result<(), Lost> {
        let (mut seen, mut record) = (0, vec![0u32; self.course.unit.experts + 2]);
        let size = record.len() * 4;
        parcels.visit(&mut |parcel| {
            for bytes in parcel.chunks_exact(size) {
                for (word, bytes) in record.iter_mut().zip(bytes.as_chunks().0) {
                    *word = u32::from_le_bytes(*bytes);
                }
                seen += 1;
                see(&record);
            }
        })?;
        let whole = seen == counted.inside;
        if whole { Ok(()) } else { Err(Lost { reason: "parcels are damaged".to_owned() }) }
    }

    /// Adds the records that are selected to marks and squares.
    fn take(&self, state: &mut ScanState, taken: u64, parcels: &dyn Parcels) -> Result<(), Lost> {
        let ScanState { counted, squares, marks, .. } = state;
        let mut ranking = Vec::with_capacity(counted.inside as usize);
        self.visit(*counted, parcels, |record| ranking.push(self.ranked(record)))?;
        let taken = taken as usize;
        let edge = (taken < ranking.len()).then(|| *ranking.select_nth_unstable(taken).1);
        drop(ranking);
        let mut rows = vec![Vec::with_capacity(BLOCK); squares.len()];
        let mut flush = |rows: &mut [Vec<f32>]| {
            for (sum, row) in squares.iter_mut().zip(rows) {
                self.add_squares(sum, row);
                row.clear();
            }
        };
        self.visit(*counted, parcels, |record| {
            if edge.is_none_or(|edge| self.ranked(record) < edge) {
                set(marks, record[1] as usize);
                for (row, &bits) in rows.iter_mut().zip(&record[2..]) {
                    row.push(f32::from_bits(bits));
                }
                if rows[0].len() == BLOCK {
                    flush(&mut rows);
                }
            }
        })?;
        flush(&mut rows);
        Ok(())
    }

    fn add_squares(&self, sum: &mut DotSum, row: &[f32]) {
        let kernels = self.course.kernels;
        let largest = keys::magnitude(kernels.max_magnitude_bits(row));
        sum.add(kernels, (row, row), (largest, largest));
    }
}

/// Marks the positions that are noted of a run that begins at place `first`.
fn mark(marks: &mut [u16], first: usize, noted: &[u16]) {
    let (shift, words) = (first % WORD, &mut marks[first / WORD..]);
    for (k, &noted) in noted.iter().enumerate() {
        let bits = u32::from(noted) << shift;
        words[k] |= bits as u16;
        // There is no next word behind the last position.
        if let Some(next) = words.get_mut(k + 1) {
            *next |= (bits >> WORD) as u16;
        }
    }
}

fn set(marks: &mut [u16], place: usize) {
    marks[place / WORD] |= 1 << (place % WORD);
}

impl Stage for Scan {
    type State = ScanState;

    fn name(&self) -> &'static str {
        "scan"
    }

    fn empty(&self) -> ScanState {
        let unit = &self.course.unit;
        ScanState {
            counted: Counted::default(),
            squares: vec![DotSum::default(); unit.experts],
            marks: vec![0; (unit.elements as usize).div_ceil(WORD)],
            records: Vec::new(),
            variances: Vec::new(),
            places: Vec::new(),
            noted: Vec::new(),
            packed: Vec::new(),
        }
    }

    fn add(&self, state: &mut ScanState, block: &Block<'_>, _out: &mut [f32]) {
        let (kernels, len) = (self.course.kernels, block.len());
        let ScanState { counted, squares, marks, records, variances, places, noted, packed } =
            state;
        let first = self.course.unit.place(block);
        variances.resize(len, 0.0);
        kernels.variances(block.rows, variances);
        counted.different += len as u64 - kernels.zeros(variances);
        let [below, inside] = kernels.places_within(variances, self.span, places).map(u64::from);
        let room = self.limit().saturating_sub(counted.inside);
        for &place in &places[..inside.min(room) as usize] {
            let e = place as usize;
            records.extend([variances[e].to_bits(), first as u32 + place]);
            records.extend(block.rows.iter().map(|row| row[e].to_bits()));
        }
        counted.below += below;
        counted.inside += inside;
        if below + inside < len as u64 {
            // Nothing is above the largest of all keys.
            noted.resize(len.div_ceil(WORD), 0);
            kernels.note_from(variances, self.span.1.saturating_add(1), noted);
            mark(marks, first as usize, noted);
            for (sum, row) in squares.iter_mut().zip(block.rows) {
                packed.clear();
                kernels.pack_noted(noted, row, packed);
                self.add_squares(sum, packed);
            }
        }
    }

    fn merge(&self, into: &mut ScanState, from: ScanState) {
        into.counted.different += from.counted.different;
        into.counted.below += from.counted.below;
        into.counted.inside += from.counted.inside;
        into.squares.iter_mut().zip(from.squares).for_each(|(into, from)| into.merge(from));
        into.marks.iter_mut().zip(from.marks).for_each(|(into, from)| *into |= from);
        into.records.extend(from.records);
    }

    fn hand_out(&self, state: &mut ScanState, all: bool) -> Option<Vec<u8>> {
        let records = &mut state.records;
        let due = records.len() >= MOST || all && !records.is_empty();
        due.then(|| {
            let parcel = records.iter().flat_map(|word| word.to_le_bytes()).collect();
            records.clear();
            parcel
        })
    }

    /// What was counted and marked: the records are in parcels.
    fn save(&self, state: &ScanState) -> Vec<u8> {
        debug_assert!(
            state.records.is_empty(),
            "records must be handed out before the state is saved"
        );
        let mut out = Writer::default();
        out.u32(SCAN_STATE);
        let Counted { different, below, inside } = state.counted;
        [different, below, inside].into_iter().for_each(|count| out.u64(count));
        state.squares.iter().for_each(|sum| sum.save(&mut out));
        state.marks.iter().for_each(|&word| out.u32(word.into()));
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<ScanState> {
        let (mut saved, mut state) = (Reader::new(saved), Stage::empty(self));
        (saved.u32()? == SCAN_STATE).then_some(())?;
        let [different, below, inside] = [saved.u64()?, saved.u64()?, saved.u64()?];
        state.counted = Counted { different, below, inside };
        for sum in &mut state.squares {
            *sum = DotSum::load(&mut saved)?;
        }
        for word in &mut state.marks {
            *word = u16::try_from(saved.u32()?).ok()?;
        }
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: ScanState) -> Result<Next, MethodError> {
        self.conclude(state, &Held::default())
    }

    fn conclude(self, mut state: ScanState, parcels: &dyn Parcels) -> Result<Next, MethodError> {
        let selected = super::selected(state.counted.different, self.share);
        if selected == 0 {
            let nothing = Band { from: Edge::START, to: Edge::START };
            let squares = vec![DotSum::default(); state.squares.len()];
            return Ok(merge(self.course, Some(Chosen::Band(nothing)), &squares));
        }
        let taken = self.taken(state.counted, selected);
        let Some(taken) = taken.filter(|_| parcels.is_whole()) else {
            let course = Course { missed: 1, ..Course::clone(&self.course) };
            return Ok(Next::stage(Variances::new(Arc::new(course), self.share)));
        };
        self.take(&mut state, taken, parcels)?;
        let chosen = Chosen::Marked(state.marks.into());
        Ok(merge(self.course, Some(chosen), &state.squares))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;
    use crate::method::{UnitView, Values};

    #[test]
    fn more_than_differ_are_left_to_the_selection() {
        // Rounded to 24 bits, this number is the next one, and the share is 1.
        let (different, share, inside) = ((1 << 24) + 3, 0.999_999_99, 1000);
        let unit = UnitView::array("w", different + 5, Values::new(2));
        let kernels = Kernels::available().next().unwrap();
        let course = Arc::new(Course { kernels, unit, missed: 0 });
        let scan = Scan { course, share, span: (1, 99) };
        let counted = Counted { different, below: 5, inside };
        let selected = super::super::selected(different, share);
        assert_eq!(selected, different + 1);
        assert_eq!(scan.taken(counted, selected), None);
        assert_eq!(scan.taken(counted, different), Some(inside));
        assert_eq!(scan.taken(counted, different - inside), Some(0));
        assert_eq!(scan.taken(counted, different - inside - 1), None);
    }
}
