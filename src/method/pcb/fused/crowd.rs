//! Scores that depend on the clamp bounds of all experts (variants c and d): what the scan compares with, what it gathers, and
//! thresholds from that. See `kernel::bracket::joint` for the inequality.
//!
//! What is undecided for any expert is kept with the task vectors of all, as one record. A bracket of a bound that fails fails all
//! experts.

use super::Known;
use super::guess::{Aim, Boxed, guard, width_of};
use super::scan::{Counted, Scan};
use super::settle::{Search, damaged};
use crate::kernel::Kernels;
use crate::kernel::bracket::{Guess, Joint, Judged, Member, SHORT, Space, flagged, mark_rows};
use crate::kernel::keys;
use crate::kernel::pcb::{Bounds, Inter, Scratch};
use crate::method::{BLOCK, Block, Lost, Parcels};
use crate::stats::{Sheaf, section, unpack_records};

/// Bounds that may vary by more than this share are found first, and thresholds in another round.
const MOST_SWAY: f64 = 0.4;

/// All experts of a scan.
pub(super) struct Crowd {
    pub(super) joint: Joint,
    boxes: Vec<Boxed>,
}

impl Crowd {
    /// From the boxes of the bounds of all experts. None if they are too wide.
    pub(super) fn new(inter: Inter, boxes: Vec<Boxed>) -> Option<Self> {
        let (n, pairs) = (boxes.len() as f64, inter == Inter::Pairs);
        let most = boxes.iter().map(Boxed::sway).fold(0.0, f64::max);
        if most.is_nan() || most > MOST_SWAY {
            return None;
        }
        let stretch = 1.0 / (1.0 - most);
        let (linear, rest) = (most * stretch, most * most * stretch.powi(3));
        let short = if pairs { f64::from(SHORT) } else { 0.0 };
        let member = |boxed: &Boxed| {
            let (sway, shift) = (boxed.sway(), boxed.shift());
            Member {
                guess: Guess { middle: boxed.middle(), ..Aim::at_everything().guess },
                wanted: false,
                sway: sway as f32,
                shift: shift as f32,
                sag: (sway * linear + rest + guard(n) + short) as f32,
                rim: (1.0 / (1.0 + sway) - shift - 1e-5) as f32,
                clip: (sway * stretch.powi(4)) as f32,
            }
        };
        let joint = Joint {
            pairs,
            members: boxes.iter().map(member).collect(),
            share: (1.0 / n) as f32,
            stretch: stretch as f32,
            bend: (linear * stretch.powi(2)) as f32,
            curve: stretch.powi(4) as f32,
            cubic: (4.0 / 3.0 * linear * stretch.powi(6)
                + (stretch.powi(2) - 1.0) * stretch.powi(4)) as f32,
        };
        Some(Self { joint, boxes })
    }

    /// All experts of a unit that is gathered whole.
    pub(super) fn of_everything(inter: Inter, experts: usize) -> Option<Self> {
        let mut crowd = Self::new(inter, vec![Boxed::anywhere(); experts])?;
        (0..experts).for_each(|i| crowd.want(i, Aim::at_everything().guess));
        Some(crowd)
    }

    /// Has the scores of an expert judged.
    pub(super) fn want(&mut self, expert: usize, guess: Guess) {
        let member = &mut self.joint.members[expert];
        (member.guess, member.wanted) = (guess, true);
    }

    /// By what the inter term of an expert moves the threshold from the middle of the boxes to
    /// where the ranges of the bounds have these widths.
    fn turn(&self, expert: usize, width: impl Fn(usize) -> f64) -> f64 {
        let moved = |j: usize| self.boxes[j].middle_width() / width(j);
        let logs = (0..self.boxes.len()).map(|j| moved(j).ln());
        let common = (logs.sum::<f64>() * f64::from(self.joint.share)).exp();
        if self.joint.pairs { common * moved(expert) } else { common }
    }

    /// [`Self::turn`] at the least and at the greatest scores.
    pub(super) fn turns(&self, expert: usize) -> [f64; 2] {
        [1, 0].map(|end| self.turn(expert, |j| self.boxes[j].widths()[end]))
    }

    /// [`Self::turn`] for bounds; none if some are not in their boxes.
    pub(super) fn turn_for(&self, expert: usize, bounds: &[Bounds]) -> Option<f64> {
        let held = self.boxes.iter().zip(bounds).all(|(boxed, bounds)| boxed.holds(*bounds));
        held.then(|| self.turn(expert, |j| width_of(bounds[j])))
    }
}

/// Records of a scan.
pub(super) struct Gathered {
    sheaf: Sheaf,
    /// Records so far, those that were handed out included.
    pub(super) count: u64,
    marks: Vec<u32>,
    space: Space,
    judged: Vec<Judged>,
}

fn width(experts: usize) -> usize {
    experts + mark_rows(experts) - 1
}

impl Gathered {
    pub(super) fn new(experts: usize) -> Self {
        let sheaf = Sheaf::new(width(experts));
        let (marks, judged) = (Vec::new(), vec![Judged::default(); experts]);
        Self { sheaf, count: 0, marks, space: Space::default(), judged }
    }

    /// Bytes of it.
    pub(super) fn bytes(experts: u64) -> u64 {
        let block = BLOCK as u64;
        let marks = mark_rows(experts as usize) as u64 * block * 4;
        Sheaf::bytes(width(experts as usize) as u64, block) + marks + experts * 2048
    }

    /// Judges a block, and keeps what is not decided, up to a limit on all records.
    pub(super) fn add(
        &mut self,
        kernels: &Kernels,
        joint: &Joint,
        block: &Block<'_>,
        limit: u64,
    ) -> &[Judged] {
        let len = block.len();
        self.marks.clear();
        self.marks.resize(mark_rows(block.rows.len()) * len, 0);
        self.judged.fill(Judged::default());
        let Self { sheaf, count, marks, space, judged } = self;
        kernels.pcb_judge_together(joint, block.rows, space, marks, judged);
        let (any, bits) = marks.split_at(len);
        flagged(any, |e, _| {
            *count += 1;
            if *count <= limit {
                let taus = block.rows.iter().map(|row| row[e].to_bits());
                sheaf.push(taus.chain(bits.chunks_exact(len).map(|row| row[e])));
            }
        });
        judged
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.sheaf.merge(other.sheaf);
        self.count += other.count;
    }

    pub(super) fn is_full(&self) -> bool {
        self.sheaf.is_full()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sheaf.is_empty()
    }

    pub(super) fn pack(&mut self) -> Vec<u8> {
        let mut packed = Vec::new();
        self.sheaf.pack(&mut packed);
        packed
    }
}

/// A search for a threshold, and the largest score of a record.
struct Sought {
    expert: usize,
    search: Search,
    largest: Option<u32>,
    /// Records with scores from here on have all been kept.
    top: Option<f64>,
}

/// Records of one batch, and what is computed from them.
struct Batch {
    rows: Vec<Vec<f32>>,
    bits: Vec<Vec<u32>>,
    times: Vec<u64>,
    scores: Vec<f32>,
    keys: Vec<u32>,
    scratch: Scratch,
}

impl Batch {
    fn new(experts: usize) -> Self {
        Self {
            rows: vec![Vec::new(); experts],
            bits: vec![Vec::new(); mark_rows(experts) - 1],
            times: Vec::new(),
            scores: vec![0.0; experts * BLOCK],
            keys: vec![0; BLOCK],
            scratch: Scratch::default(),
        }
    }

    fn push(&mut self, record: &[u32], times: u64) {
        let (taus, bits) = record.split_at(self.rows.len());
        self.rows.iter_mut().zip(taus).for_each(|(row, &tau)| row.push(f32::from_bits(tau)));
        self.bits.iter_mut().zip(bits).for_each(|(row, &bits)| row.push(bits));
        self.times.push(times);
    }

    /// Counts the scores, and makes room.
    fn count(&mut self, kernels: &Kernels, inter: Inter, bounds: &[Bounds], sought: &mut [Sought]) {
        let len = self.times.len();
        if len == 0 {
            return;
        }
        let rows: Vec<&[f32]> = self.rows.iter().map(Vec::as_slice).collect();
        let scores = &mut self.scores[..rows.len() * len];
        kernels.pcb_scores(inter, &rows, bounds, &mut self.scratch, scores);
        let keys = &mut self.keys[..len];
        for sought in sought {
            let (row, bit) = (&self.bits[sought.expert / 32], 1 << (sought.expert % 32));
            kernels.score_keys(&scores[sought.expert * len..][..len], keys);
            for ((&key, &bits), &times) in keys.iter().zip(row).zip(&self.times) {
                if bits & bit != 0
                    && let Some(ladder) = sought.search.ladder()
                {
                    ladder.add(key.into(), times);
                }
                sought.largest = sought.largest.max(Some(key));
            }
        }
        self.rows.iter_mut().for_each(Vec::clear);
        self.bits.iter_mut().for_each(Vec::clear);
        self.times.clear();
    }
}

/// Thresholds by their ranks among the scores of the undecided, and the largest scores.
pub(super) fn find_cuts(
    scan: &Scan,
    counted: &[Counted],
    gathered: u64,
    parcels: &dyn Parcels,
    experts: &mut [Known],
) -> Result<(), Lost> {
    let bounds = experts.iter().map(|known| known.bounds.as_ref().map(|(bounds, _)| *bounds));
    let (Some(crowd), Some(bounds)) = (&scan.crowd, bounds.collect::<Option<Vec<Bounds>>>()) else {
        return Ok(());
    };
    if gathered > scan.joint_limit {
        return Ok(());
    }
    let (kernels, inter) = (scan.course.setup.kernels, scan.course.setup.inter());
    let zero = keys::score_key(0.0);
    let aims =
        scan.looks.iter().enumerate().filter_map(|(i, look)| Some((i, look.guess.as_ref()?.0)));
    let mut sought = Vec::new();
    for (expert, aim) in aims {
        let Some(turn) = crowd.turn_for(expert, &bounds) else { return Ok(()) };
        let Counted { under, zeros, .. } = counted[expert];
        let Some(rank) = scan.course.rank.checked_sub(under) else { continue };
        let turn = turn * aim.turn(bounds[expert]);
        let span = aim.span(turn);
        let largest = (zeros > 0).then_some(zero);
        let top = (!aim.is_everything()).then(|| f64::from(aim.guess.top) * turn);
        sought.push(Sought { expert, search: Search::new(0, span, rank, gathered), largest, top });
    }
    let mut batch = Batch::new(experts.len());
    while sought.iter_mut().any(|sought| sought.search.ladder().is_some()) {
        for Sought { expert, search, .. } in &mut sought {
            let open =
                scan.looks[*expert].guess.as_ref().is_some_and(|(aim, _)| aim.is_open_at_zero());
            if let Some(ladder) = search.ladder().filter(|_| open) {
                ladder.add(zero.into(), counted[*expert].zeros);
            }
        }
        let (mut whole, mut seen) = (true, 0);
        parcels.visit(&mut |parcel| {
            let records = section(parcel, scan.lanes());
            let unpacked = records.and_then(|records| {
                unpack_records(records, width(experts.len()), |record, times| {
                    seen += times;
                    batch.push(record, times);
                    if batch.times.len() == BLOCK {
                        batch.count(kernels, inter, &bounds, &mut sought);
                    }
                })
            });
            whole &= unpacked.is_some();
        })?;
        batch.count(kernels, inter, &bounds, &mut sought);
        if !whole || seen != gathered {
            return Err(damaged());
        }
        sought.iter_mut().for_each(|sought| sought.search.step());
    }
    for Sought { expert, search, largest, top } in sought {
        let (Some(threshold), Some(largest)) = (search.found(), largest) else { continue };
        // Whatever was not kept has a score below that.
        if top.is_none_or(|top| f64::from(keys::score(largest)) >= top * (1.0 + 1e-6)) {
            experts[expert].settle(threshold, largest);
        }
    }
    Ok(())
}
