//! Sample passes: brackets of the clamp bounds, then of the threshold for either end of these.

use super::crowd::Crowd;
use super::guess::{Boxed, guess};
use super::scan::{Look, Scan};
use super::{Course, Spans, sampling};
use crate::kernel::pcb::{Bounds, Scratch};
use crate::method::{BLOCK, Block, MethodError, Next, Sampling, Stage};
use crate::stats::{Brackets, Reader, Sketch, Sketched, Sketches, Span, Writer};

pub(super) const MAGNITUDES: [&str; 2] = ["sample of magnitudes", "sample of magnitudes, refined"];
pub(super) const SCORES: [&str; 2] = ["sample of scores", "sample of scores, refined"];

/// First words of saved states, so that none is taken for that of another stage.
const MAGNITUDE_STATE: u32 = 0x5a6d_0001;
const SCORE_STATE: u32 = 0x5a6d_0002;

/// What both sample stages gather.
pub(super) struct State {
    counts: Sketched,
    keys: Vec<u32>,
    scores: Vec<f32>,
    scratch: Scratch,
}

impl State {
    fn new(sketch: &Sketch, scores: usize) -> Self {
        let (counts, keys) = (sketch.empty(), vec![0; BLOCK]);
        Self { counts, keys, scores: vec![0.0; scores * BLOCK], scratch: Scratch::default() }
    }

    fn save(&self, tag: u32) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(tag);
        self.counts.save(&mut out);
        out.finish()
    }

    fn load(mut self, tag: u32, saved: &[u8]) -> Option<Self> {
        let mut saved = Reader::new(saved);
        (saved.u32()? == tag).then_some(())?;
        self.counts.load(&mut saved)?;
        saved.end()?;
        Some(self)
    }
}

/// Brackets of lo and hi.
pub(super) struct Magnitudes {
    course: Course,
    sketch: Sketch,
}

impl Magnitudes {
    pub(super) fn new(course: Course) -> Self {
        let ranks = course.setup.clamp_ranks(course.elements);
        let experts = course.experts.len();
        let sketch = course.sketch(experts, &ranks);
        Self { course, sketch }
    }
}

impl Stage for Magnitudes {
    type State = State;

    fn name(&self) -> &'static str {
        MAGNITUDES[usize::from(!self.sketch.is_first())]
    }

    fn sample(&self) -> Option<Sampling> {
        Some(sampling(self.course.elements))
    }

    fn empty(&self) -> State {
        State::new(&self.sketch, 0)
    }

    fn add(&self, state: &mut State, block: &Block<'_>, _out: &mut [f32]) {
        let keys = &mut state.keys[..block.base.len()];
        let at = self.course.setup.unit.place(block);
        for (i, tau) in block.rows.iter().enumerate() {
            self.course.setup.kernels.magnitude_keys(tau, keys);
            self.sketch.add(&mut state.counts, i, at, keys);
        }
    }

    fn merge(&self, into: &mut State, from: State) {
        into.counts.merge(from.counts);
    }

    fn save(&self, state: &State) -> Vec<u8> {
        state.save(MAGNITUDE_STATE)
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        self.empty().load(MAGNITUDE_STATE, saved)
    }

    fn finish(self, state: State) -> Result<Next, MethodError> {
        let brackets = match self.sketch.absorb(state.counts) {
            Sketches::Again(sketch) => return Ok(Next::stage(Self { sketch, ..self })),
            Sketches::Done(brackets) => brackets,
        };
        Ok(Next::stage(Scores::new(self.course, Some(&brackets))))
    }
}

/// Brackets of the threshold, at either end of the box that the bounds lie in.
pub(super) struct Scores {
    course: Course,
    /// Brackets of the bounds that are to be found.
    spans: Vec<Option<Spans>>,
    boxes: Vec<Option<Boxed>>,
    /// The bounds of the least and of the greatest scores in each box.
    corners: [Vec<Bounds>; 2],
    sketch: Sketch,
}

impl Scores {
    pub(super) fn new(course: Course, brackets: Option<&[Brackets]>) -> Self {
        let mut spans = Vec::new();
        let mut boxes = Vec::new();
        for (i, expert) in course.experts.iter().enumerate() {
            let bracket = brackets.map(|brackets| &brackets[i]);
            let span: Option<Spans> = bracket.map(|b| [b.spans[0], b.spans[1]]);
            let boxed = match (&expert.bounds, bracket) {
                // Not looked at.
                _ if expert.cut.is_some() && !course.is_joint() => None,
                (Some((bounds, _)), _) => Some(Boxed::known(*bounds)),
                (None, Some(bracket)) => Boxed::around(bracket),
                (None, None) => None,
            };
            spans.push(span.filter(|_| expert.bounds.is_none()));
            boxes.push(boxed);
        }
        let corner = |which: fn(&Boxed) -> Bounds| {
            let bounds = boxes.iter().map(|boxed: &Option<Boxed>| match boxed {
                Some(boxed) => which(boxed),
                // Not looked at.
                None => Bounds { lo: 0.0, hi: 1.0 },
            });
            bounds.collect::<Vec<_>>()
        };
        let corners = [corner(Boxed::least), corner(Boxed::greatest)];
        let rows = 2 * boxes.len();
        let sketch = course.sketch(rows, &[course.rank]);
        Self { course, spans, boxes, corners, sketch }
    }
}

impl Stage for Scores {
    type State = State;

    fn name(&self) -> &'static str {
        SCORES[usize::from(!self.sketch.is_first())]
    }

    fn sample(&self) -> Option<Sampling> {
        Some(sampling(self.course.elements))
    }

    fn empty(&self) -> State {
        State::new(&self.sketch, self.boxes.len())
    }

    fn add(&self, state: &mut State, block: &Block<'_>, _out: &mut [f32]) {
        let (setup, n, len) = (&self.course.setup, self.boxes.len(), block.base.len());
        let State { counts, keys, scores, scratch } = state;
        let at = setup.unit.place(block);
        let (keys, scores) = (&mut keys[..len], &mut scores[..n * len]);
        for (corner, bounds) in self.corners.iter().enumerate() {
            setup.kernels.pcb_scores(setup.inter(), block.rows, bounds, scratch, scores);
            for (i, scores) in scores.chunks_exact(len).enumerate() {
                setup.kernels.score_keys(scores, keys);
                self.sketch.add(counts, corner * n + i, at, keys);
            }
        }
    }

    fn merge(&self, into: &mut State, from: State) {
        into.counts.merge(from.counts);
    }

    fn save(&self, state: &State) -> Vec<u8> {
        state.save(SCORE_STATE)
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        self.empty().load(SCORE_STATE, saved)
    }

    fn finish(self, state: State) -> Result<Next, MethodError> {
        let brackets = match self.sketch.absorb(state.counts) {
            Sketches::Again(sketch) => return Ok(Next::stage(Self { sketch, ..self })),
            Sketches::Done(brackets) => brackets,
        };
        let n = self.boxes.len();
        let span = |row: usize| -> (Span, u32) { (brackets[row].spans[0], brackets[row].largest) };
        let factor = n as f32;
        let boxes: Option<Vec<Boxed>> = self.boxes.iter().copied().collect();
        let joint = self.course.is_joint();
        let mut crowd =
            boxes.filter(|_| joint).and_then(|boxes| Crowd::new(self.course.setup.inter(), boxes));
        let looks = self.boxes.into_iter().zip(self.spans).enumerate();
        let looks = looks.map(|(i, (boxed, spans))| {
            let turns = crowd.as_ref().map(|crowd| crowd.turns(i));
            let wanted = self.course.experts[i].cut.is_none() && (!joint || turns.is_some());
            let guess = boxed.filter(|_| wanted).and_then(|boxed| {
                Some((guess(factor, &boxed, span(i), span(n + i), turns)?, boxed))
            });
            if let (Some(crowd), Some((aim, _))) = (&mut crowd, &guess) {
                crowd.want(i, aim.guess);
            }
            Look { spans, guess }
        });
        let looks = looks.collect();
        Ok(Next::stage(Scan::new(self.course, looks, crowd)))
    }
}
