//! The scan: counts what certainly lies below the brackets and hands out what may lie inside.

use super::crowd::{Crowd, Gathered};
use super::guess::{Aim, Boxed};
use super::settle::settle;
use super::{Course, NO_IDEA, Spans};
use crate::kernel::bracket::{Found, Judged, Rows, TOP, UNDECIDED};
use crate::kernel::keys;
use crate::kernel::pcb::Inter;
use crate::method::{BLOCK, Block, MethodError, Next, Parcels, Stage};
use crate::stats::{Pile, Reader, Writer, add_section};

pub(super) const NAME: &str = "scan";

/// First word of a saved state.
const STATE: u32 = 0x5a6d_0003;

/// Lanes of the pile for each expert: magnitudes in the brackets of lo and of hi, then
/// (tau, sum) of scores near the threshold and of those near the top.
pub(super) const LANES: usize = 4;
pub(super) const LO_LANE: usize = 0;
pub(super) const HI_LANE: usize = 1;
pub(super) const OPEN_LANE: usize = 2;
pub(super) const TOP_LANE: usize = 3;

/// Lanes take no more than this share of a large unit: a bracket that holds so much is a miss.
const SHARE: u64 = 32;
/// The same for records of all experts together.
const JOINT_SHARE: u64 = 8;
/// But so many records are always taken.
const ALWAYS: u64 = 1 << 20;

/// Scores of this magnitude are left to the radix plan, which knows what to say about them.
const HUGE: f32 = 1e37;

/// What is looked for in one expert.
pub(super) struct Look {
    /// Brackets of the bounds, unless they are known.
    pub(super) spans: Option<Spans>,
    /// Where the threshold is looked for, and for which bounds; if it can be looked for at all.
    pub(super) guess: Option<(Aim, Boxed)>,
}

/// One pass over everything.
pub(super) struct Scan {
    pub(super) course: Course,
    pub(super) looks: Vec<Look>,
    /// Where scores depend on the bounds of all experts, and can be judged.
    pub(super) crowd: Option<Crowd>,
    limit: u64,
    pub(super) joint_limit: u64,
}

/// What was counted in one expert.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Magnitudes below the brackets of lo and hi. Where a bracket begins with zero: zeros.
    pub(super) below: [u64; 2],
    /// Scores that are below the threshold.
    pub(super) under: u64,
    /// Scores that are zero.
    pub(super) zeros: u64,
    /// Records in each lane.
    pub(super) records: [u64; LANES],
    /// The largest magnitude, and the largest magnitude of a score, as keys.
    pub(super) largest: u32,
    pub(super) largest_score: u32,
}

pub(super) struct State {
    counted: Vec<Counted>,
    gathered: Gathered,
    pile: Pile,
    sum: Vec<f32>,
    rows: Rows,
    /// What is inside a bracket of a block.
    inside: Vec<u32>,
    found: Vec<Found>,
}

impl Scan {
    pub(super) fn new(course: Course, looks: Vec<Look>, crowd: Option<Crowd>) -> Self {
        let [limit, joint_limit] =
            [SHARE, JOINT_SHARE].map(|share| (course.elements / share).max(ALWAYS));
        Self { course, looks, crowd, limit, joint_limit }
    }

    /// Hands out the whole unit.
    pub(super) fn of_everything(course: Course) -> Self {
        let look = |_| {
            let anywhere = Boxed::anywhere();
            Look { spans: Some(NO_IDEA), guess: Some((Aim::at_everything(), anywhere)) }
        };
        let looks = (0..course.experts.len()).map(look).collect();
        let inter = course.setup.inter();
        let joint = course.is_joint().then(|| Crowd::of_everything(inter, course.experts.len()));
        Self { course, looks, crowd: joint.flatten(), limit: u64::MAX, joint_limit: u64::MAX }
    }

    /// Bytes of the state of one worker.
    pub(super) fn state_bytes(experts: u64, inter: Inter) -> u64 {
        let block = BLOCK as u64;
        let gathered = if inter == Inter::Raw { 0 } else { Gathered::bytes(experts) };
        gathered + Pile::bytes(experts * LANES as u64 * block) + 11 * 4 * block + experts * 128
    }

    /// Lanes of the pile.
    pub(super) fn lanes(&self) -> usize {
        self.looks.len() * LANES
    }

    /// Whether a lane has more records than it should.
    pub(super) fn is_overfull(&self, counted: &Counted, lane: usize) -> bool {
        counted.records[lane] > self.limit
    }
}

impl Stage for Scan {
    type State = State;

    fn name(&self) -> &'static str {
        NAME
    }

    fn empty(&self) -> State {
        let n = self.looks.len();
        State {
            counted: vec![Counted::default(); n],
            gathered: Gathered::new(n),
            pile: Pile::new(n * LANES),
            sum: vec![0.0; BLOCK],
            rows: Rows::default(),
            inside: Vec::new(),
            found: Vec::new(),
        }
    }

    fn add(&self, state: &mut State, block: &Block<'_>, _out: &mut [f32]) {
        let (kernels, len) = (self.course.setup.kernels, block.base.len());
        let State { counted, gathered, pile, sum, rows, inside, found } = state;
        let sum = &mut sum[..len];
        if let Some(crowd) = &self.crowd {
            let judged = gathered.add(kernels, &crowd.joint, block, self.joint_limit);
            for (counted, judged) in counted.iter_mut().zip(judged) {
                counted.judge(judged);
            }
        } else {
            kernels.pcb_sum(block.rows, sum);
        }
        let factor = block.rows.len() as f32;
        for (i, (tau, look)) in block.rows.iter().zip(&self.looks).enumerate() {
            let counted = &mut counted[i];
            let mut push = |records: &mut [u64; LANES], lane: usize, record: u64| {
                records[lane] += 1;
                if records[lane] <= self.limit {
                    pile.push(i * LANES + lane, record);
                }
            };
            if let Some(spans) = &look.spans {
                // A whole unit need not be listed twice.
                let lanes = if spans[0] == spans[1] { 1 } else { 2 };
                for (lane, &(from, to)) in [LO_LANE, HI_LANE].into_iter().zip(spans).take(lanes) {
                    // Zeros may be half of all and are only counted.
                    let span = (from.max(1), to.max(1));
                    let below = kernels.magnitudes_within(tau, span, inside);
                    counted.below[lane] += u64::from(below);
                    for magnitude in inside.drain(..) {
                        push(&mut counted.records, lane, magnitude.into());
                    }
                }
                counted.largest = counted.largest.max(kernels.max_magnitude_bits(tau));
            }
            if let (Some((aim, _)), None) = (&look.guess, &self.crowd) {
                counted.judge(&kernels.pcb_judge(factor, tau, sum, &aim.guess, rows, found));
                for Found { tau, sum, flags } in found.drain(..) {
                    let pair = u64::from(tau.to_bits()) << 32 | u64::from(sum.to_bits());
                    if flags & UNDECIDED != 0 {
                        push(&mut counted.records, OPEN_LANE, pair);
                    }
                    if flags & TOP != 0 {
                        push(&mut counted.records, TOP_LANE, pair);
                    }
                }
            }
        }
    }

    fn merge(&self, into: &mut State, from: State) {
        into.pile.merge(from.pile);
        into.gathered.merge(from.gathered);
        for (into, from) in into.counted.iter_mut().zip(from.counted) {
            into.below.iter_mut().zip(from.below).for_each(|(into, from)| *into += from);
            into.under += from.under;
            into.zeros += from.zeros;
            into.records.iter_mut().zip(from.records).for_each(|(into, from)| *into += from);
            into.largest = into.largest.max(from.largest);
            into.largest_score = into.largest_score.max(from.largest_score);
        }
    }

    fn hand_out(&self, state: &mut State, all: bool) -> Option<Vec<u8>> {
        let State { pile, gathered, .. } = state;
        let full = pile.is_full() || gathered.is_full();
        let due = full || all && !(pile.is_empty() && gathered.is_empty());
        due.then(|| {
            let mut parcel = pile.parcel();
            add_section(&mut parcel, &gathered.pack());
            parcel
        })
    }

    /// The counts alone: what the pile held is in parcels.
    fn save(&self, state: &State) -> Vec<u8> {
        debug_assert!(
            state.pile.is_empty() && state.gathered.is_empty(),
            "records must be handed out before the state is saved"
        );
        let mut out = Writer::default();
        out.u32(STATE);
        out.u64(state.gathered.count);
        for counted in &state.counted {
            counted.below.iter().for_each(|&count| out.u64(count));
            out.u64(counted.under);
            out.u64(counted.zeros);
            counted.records.iter().for_each(|&count| out.u64(count));
            out.u32(counted.largest);
            out.u32(counted.largest_score);
        }
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        let mut saved = Reader::new(saved);
        (saved.u32()? == STATE).then_some(())?;
        let mut state = self.empty();
        state.gathered.count = saved.u64()?;
        for counted in &mut state.counted {
            saved.fill(&mut counted.below)?;
            counted.under = saved.u64()?;
            counted.zeros = saved.u64()?;
            saved.fill(&mut counted.records)?;
            counted.largest = saved.u32()?;
            counted.largest_score = saved.u32()?;
        }
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: State) -> Result<Next, MethodError> {
        self.conclude(state, &crate::method::Held::default())
    }

    fn conclude(mut self, state: State, parcels: &dyn Parcels) -> Result<Next, MethodError> {
        if !parcels.is_whole() {
            return Ok(self.course.give_up());
        }
        settle(&mut self, &state.counted, state.gathered.count, parcels)?;
        Ok(self.course.go_on())
    }
}

impl Counted {
    fn judge(&mut self, judged: &Judged) {
        self.under += u64::from(judged.below);
        self.zeros += u64::from(judged.zeros);
        self.largest_score = self.largest_score.max(judged.largest);
    }

    /// Whether some score is so large that it might not be finite.
    pub(super) fn is_huge(&self) -> bool {
        self.largest_score >= HUGE.to_bits() || self.largest_score >= keys::INFINITY
    }
}
