//! Units under way, and who goes along with whom.

use std::ops::Range;

use super::Survey;
use super::asked::Asked;
use crate::job::parcels::{Bundle, Piece};
use crate::job::pieces::piece;
use crate::method::{AnyStage, Sampling, State};

/// A unit under way.
pub(super) struct Line<'s> {
    pub(super) asked: &'s Asked,
    pub(super) stage: Box<dyn AnyStage>,
    /// The stage's number.
    pub(super) at: u32,
    /// Elements that it has seen.
    pub(super) seen: u64,
    pub(super) state: Option<State>,
    /// Parcels of each merge that are to be durable before a record speaks of what this has seen.
    pub(super) parcels: Vec<Bundle<'s>>,
    /// Whether it will be under way when the next record is made.
    pub(super) stays: bool,
}

impl<'s> Line<'s> {
    pub(super) fn new(asked: &'s Asked, stage: Box<dyn AnyStage>) -> Self {
        let (parcels, stays) = (Vec::new(), true);
        Self { asked, stage, at: 0, seen: 0, state: None, parcels, stays }
    }

    /// The unit in its next stage.
    pub(super) fn next(asked: &'s Asked, stage: Box<dyn AnyStage>, at: u32, stays: bool) -> Self {
        Self { at, stays, ..Self::new(asked, stage) }
    }
}

impl Line<'_> {
    /// The next piece of each merge, as parcels are named.
    pub(super) fn pieces(&self, survey: &Survey) -> impl Iterator<Item = Piece> + use<> {
        let (number, at, seen) = (self.asked.number, self.at, self.seen);
        let merges = survey.merges(self.asked);
        (0..merges).map(move |merge| (number, at * merges + merge, seen))
    }

    pub(super) fn is_sampling(&self) -> bool {
        self.stage.sample().is_some()
    }

    /// The next piece of its pass.
    pub(super) fn piece(&self, survey: &Survey) -> Range<u64> {
        let share = self.stage.sample().map_or(1.0, Sampling::share);
        let Asked { view, segments, .. } = self.asked;
        piece(&survey.job, segments, self.seen..view.elements, false, share, 0)
    }
}

/// Units of finer scopes beside the one that they lie in.
#[derive(Default)]
pub(super) struct Company<'s> {
    /// Those that were not begun, by their first elements.
    pub(super) waiting: Vec<&'s Asked>,
    pub(super) lines: Vec<Line<'s>>,
    /// Bytes of state that they may hold, for each worker.
    pub(super) room: u64,
}

impl<'s> Company<'s> {
    pub(super) fn left(&self) -> u64 {
        let taken = self.lines.iter().map(|line| line.asked.state_bytes).sum();
        self.room.saturating_sub(taken)
    }

    /// Those that join in a piece of a pass, and where it must end so that those behind it find room.
    pub(super) fn invite(&mut self, range: &Range<u64>) -> (Vec<&'s Asked>, u64) {
        let mut left = self.left();
        let mut ends: Vec<u64> = self.lines.iter().map(|line| line.asked.reach.end).collect();
        let (mut invited, mut end) = (Vec::new(), range.end);
        for (number, &asked) in self.waiting.iter().enumerate() {
            let at = asked.reach.start;
            if !range.contains(&at) {
                continue;
            }
            match left.checked_sub(asked.state_bytes) {
                Some(rest) if !self.shuts_out(number, rest) => {
                    left = rest;
                    ends.push(asked.reach.end);
                    invited.push(asked);
                }
                None if ends.iter().any(|&end| end <= at) => {
                    end = at;
                    break;
                }
                Some(_) | None => {}
            }
        }
        self.waiting.retain(|asked| invited.iter().all(|other| other.number != asked.number));
        (invited, end)
    }

    /// Whether one of those that wait would take the room of others of its scope that begin and end while it is under way.
    fn shuts_out(&self, number: usize, rest: u64) -> bool {
        let (asked, behind) = (self.waiting[number], &self.waiting[number + 1..]);
        behind.iter().take_while(|other| other.reach.start < asked.reach.end).any(|other| {
            other.member == asked.member
                && other.reach.end <= asked.reach.end
                && other.state_bytes > rest
        })
    }
}
