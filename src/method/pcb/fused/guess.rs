//! From brackets to what the scan compares with. See `kernel::bracket` for the inequality.

use crate::kernel::bracket::Guess;
use crate::kernel::keys;
use crate::kernel::pcb::Bounds;
use crate::stats::{Brackets, EVERYTHING, Span};

/// Relative slack that no rounding reaches, for each expert and once more.
const GUARD: f64 = 1.0 / (1 << 18) as f64;
/// The largest exponent for which exp(s) - 1 <= s + s^2 is relied on; it holds up to 1.79.
const STEEP: f64 = 1.7;
/// Where scores depend on the bounds of all experts, the largest is looked for from this share of the
/// largest sampled one.
const TOP: f64 = 0.98;

/// A box that clamp bounds lie in: lo in one range, hi in one above it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Boxed {
    lo: (f64, f64),
    hi: (f64, f64),
    /// The least and the greatest hi - lo.
    width: (f64, f64),
}

/// What to compare with, and how the threshold's bracket moves in the box.
#[derive(Clone, Copy, Debug)]
pub(super) struct Aim {
    pub(super) guess: Guess,
    /// 1 / (hi - lo)^2 in the middle.
    middle: f64,
}

/// Relative slack for everybody among `n` experts.
pub(super) fn guard(n: f64) -> f64 {
    (n + 1.0) * GUARD
}

/// What is divided by, for bounds that are known.
pub(super) fn width_of(bounds: Bounds) -> f64 {
    let width = f64::from(bounds.hi) - f64::from(bounds.lo);
    if width > 0.0 { width } else { 1.0 }
}

impl Boxed {
    /// The box of bounds that are known.
    pub(super) fn known(bounds: Bounds) -> Self {
        let (lo, hi, width) = (f64::from(bounds.lo), f64::from(bounds.hi), width_of(bounds));
        Self { lo: (lo, lo), hi: (hi, hi), width: (width, width) }
    }

    /// The box of any bounds.
    pub(super) fn anywhere() -> Self {
        Self { lo: (0.0, f64::MAX), hi: (0.0, f64::MAX), width: (1.0, 1.0) }
    }

    /// The box of brackets of both bounds; none if they overlap.
    pub(super) fn around(brackets: &Brackets) -> Option<Self> {
        let largest = f64::from(keys::magnitude(brackets.largest));
        let value = |key: u32| {
            let value = f64::from(keys::magnitude(key.min(brackets.largest)));
            // Open to above: not far above the largest of the sample, most likely.
            if key == u32::MAX { 1.5 * largest } else { value }
        };
        let [lo, hi] =
            [0, 1].map(|i| brackets.spans[i]).map(|(low, high)| (value(low), value(high)));
        let width = (hi.0 - lo.1, hi.1 - lo.0);
        (width.0 > 0.0 && width.1.is_finite()).then_some(Self { lo, hi, width })
    }

    /// Whether bounds lie in the box.
    pub(super) fn holds(&self, bounds: Bounds) -> bool {
        let inside = |value: f32, range: (f64, f64)| {
            f64::from(value) >= range.0 && f64::from(value) <= range.1
        };
        inside(bounds.lo, self.lo) && inside(bounds.hi, self.hi)
    }

    /// The least and the greatest hi - lo.
    pub(super) fn widths(&self) -> [f64; 2] {
        [self.width.0, self.width.1]
    }

    /// hi - lo in the middle of the box.
    pub(super) fn middle_width(&self) -> f64 {
        self.inverse_squares().1.powf(-0.5)
    }

    /// Bounds in the middle.
    pub(super) fn middle(&self) -> Bounds {
        self.with_width(self.middle_width())
    }

    /// The largest relative change of 1 / (hi - lo)^2 from the middle, and the largest change of lo
    /// in units of hi - lo; with what rounding does to them and to the bounds in the middle as f32.
    fn reach_and_off(&self) -> (f64, f64) {
        let (from, _, to) = self.inverse_squares();
        let rounding = self.hi.1 * 2f64.powi(-22) / self.width.0;
        let moves = (to - from) / (to + from);
        let reach = if moves > 0.0 { moves + 4.0 * rounding } else { 0.0 };
        (reach, (self.lo.1 - self.lo.0) / 2.0 / self.width.0 + rounding)
    }

    /// The largest relative change of a normed magnitude where lo stays.
    pub(super) fn sway(&self) -> f64 {
        let (reach, _) = self.reach_and_off();
        // |sqrt(1 + r) - 1| <= |r| / 2 (1 + |r|) for r from -1.
        reach / 2.0 * (1.0 + reach)
    }

    /// The largest change of a normed magnitude by changes of lo.
    pub(super) fn shift(&self) -> f64 {
        let (_, off) = self.reach_and_off();
        off * (1.0 + self.sway())
    }

    fn with_width(&self, width: f64) -> Bounds {
        let lo = f64::midpoint(self.lo.0, self.lo.1);
        Bounds { lo: lo as f32, hi: (lo + width) as f32 }
    }

    /// Bounds that give about the least scores of the box.
    pub(super) fn least(&self) -> Bounds {
        self.with_width(self.width.1)
    }

    /// Bounds that give about the greatest scores of the box.
    pub(super) fn greatest(&self) -> Bounds {
        self.with_width(self.width.0)
    }

    /// Least, middle and greatest 1 / (hi - lo)^2.
    fn inverse_squares(&self) -> (f64, f64, f64) {
        let (least, greatest) = (self.width.1.powi(-2), self.width.0.powi(-2));
        (least, f64::midpoint(least, greatest), greatest)
    }
}

/// The values that a span of score keys stands for.
fn scores((low, high): Span) -> (f64, f64) {
    let finite = |key: u32| Some(f64::from(keys::score(key))).filter(|value| value.is_finite());
    (finite(low).unwrap_or(f64::NEG_INFINITY), finite(high).unwrap_or(f64::INFINITY))
}

/// What a scan compares with, from the threshold's brackets (and the largest sampled score) at the
/// least and at the greatest scores of a box. `turns` says what else moves the threshold there, if the
/// bounds of other experts do. None if numbers run out.
pub(super) fn guess(
    factor: f32,
    boxed: &Boxed,
    least: (Span, u32),
    greatest: (Span, u32),
    turns: Option<[f64; 2]>,
) -> Option<Aim> {
    let n = f64::from(factor);
    let (from, middle, to) = boxed.inverse_squares();
    if !(from.is_normal() && to.is_normal()) {
        return None;
    }
    let (reach, off) = boxed.reach_and_off();
    let guard = guard(n) + n * off * off;
    let lean = 2.0 * n * off * (1.0 + reach);
    // What is left of it for elements whose scores move with hi.
    let steep = STEEP - lean - guard;
    if !(steep > 0.5 && reach.is_finite()) {
        return None;
    }

    let [a_turn, c_turn] = turns.unwrap_or([1.0; 2]);
    let divided = |(low, high): (f64, f64), by: f64| (low / by, high / by);
    let (a_low, a_high) = divided(scores(least.0), a_turn);
    let (c_low, c_high) = divided(scores(greatest.0), c_turn);
    let positive = a_low > 0.0 && c_low > 0.0 && a_high.is_finite() && c_high.is_finite();
    let pivot = if positive && reach > 0.0 {
        let rise = (c_low * c_high).ln() / 2.0 - (a_low * a_high).ln() / 2.0;
        (rise / (2.0 * reach)).clamp(-steep / reach, steep / reach)
    } else {
        0.0
    };
    let turn = (pivot * reach).exp();
    let low = (a_low * turn).min(c_low / turn);
    let high = (a_high * turn).max(c_high / turn);
    // From here on the upper bound may clamp, or the factor gets too large to be told.
    let (mut edge, mut far) = (f64::INFINITY, 0.0);
    if reach > 0.0 {
        edge = (n / (1.0 + reach) * (1.0 - 1e-5)).min(pivot + steep / reach);
        far = n.max(pivot.abs()).max((n - pivot).abs());
        if far * reach > steep {
            // Its square is above any exp(n), and finite: zeros must stay zeros.
            far = 1e18 / reach;
        }
    }
    let [a_top, c_top] = [least.1, greatest.1].map(|key| f64::from(keys::score(key)));
    let top = match turns {
        None => (a_top * (-(n * reach + 2.0 * lean + 4.0 * guard)).exp()) as f32,
        // It is checked at the end whether the largest score is above that.
        Some(_) => (TOP * (a_top / a_turn * turn).min(c_top / c_turn / turn)) as f32,
    };
    let top = top.max(f32::from_bits(1));
    if !top.is_finite() {
        return None;
    }
    let guess = Guess {
        middle: boxed.middle(),
        low: low as f32,
        high: high as f32,
        pivot: pivot as f32,
        reach: reach as f32,
        lean: lean as f32,
        guard: guard as f32,
        edge: edge as f32,
        far: far as f32,
        top,
    };
    Some(Aim { guess, middle })
}

impl Aim {
    /// Looks at everything.
    pub(super) fn at_everything() -> Self {
        let guess = Guess {
            middle: Bounds { lo: 0.0, hi: 1.0 },
            low: f32::NEG_INFINITY,
            high: f32::INFINITY,
            pivot: 0.0,
            reach: 0.0,
            lean: 0.0,
            guard: 0.0,
            edge: f32::INFINITY,
            far: 0.0,
            top: f32::INFINITY,
        };
        Self { guess, middle: 1.0 }
    }

    /// Whether nothing is decided.
    pub(super) fn is_everything(&self) -> bool {
        self.guess.low == f32::NEG_INFINITY && self.guess.high == f32::INFINITY
    }

    /// By what settled bounds move the threshold from the middle.
    pub(super) fn turn(&self, bounds: Bounds) -> f64 {
        let width = width_of(bounds);
        (f64::from(self.guess.pivot) * (width.powi(-2) / self.middle - 1.0)).exp()
    }

    /// The bracket of the threshold where it is moved so, as score keys.
    pub(super) fn span(&self, turn: f64) -> Span {
        if self.is_everything() {
            return EVERYTHING;
        }
        let moved = |value: f32| keys::score_key((f64::from(value) * turn) as f32);
        (moved(self.guess.low), moved(self.guess.high))
    }

    /// Whether scores of exactly zero are neither below nor above.
    pub(super) fn is_open_at_zero(&self) -> bool {
        // As the kernel decides it.
        self.guess.low <= 1e-44 && self.guess.high >= -1e-44
    }
}
