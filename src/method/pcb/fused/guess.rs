//! From brackets to what the scan compares with. See `kernel::bracket` for the inequality.

use crate::kernel::bracket::Guess;
use crate::kernel::keys;
use crate::kernel::pcb::Bounds;
use crate::stats::{Brackets, EVERYTHING, Span};

/// Relative slack that no rounding reaches, for each expert and once more.
const GUARD: f64 = 1.0 / (1 << 18) as f64;
/// The largest exponent for which exp(s) - 1 <= s + s^2 is relied on; it holds up to 1.79.
const STEEP: f64 = 1.7;

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

impl Boxed {
    /// The box of bounds that are known.
    pub(super) fn known(bounds: Bounds) -> Self {
        let (lo, hi) = (f64::from(bounds.lo), f64::from(bounds.hi));
        let width = if hi > lo { hi - lo } else { 1.0 };
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
/// least and at the greatest scores of a box. None if numbers run out.
pub(super) fn guess(
    factor: f32,
    boxed: &Boxed,
    least: (Span, u32),
    greatest: (Span, u32),
) -> Option<Aim> {
    let n = f64::from(factor);
    let (from, middle, to) = boxed.inverse_squares();
    if !(from.is_normal() && to.is_normal()) {
        return None;
    }
    // What rounding does to hi - lo, lo, and to the bounds in the middle as f32.
    let rounding = boxed.hi.1 * 2f64.powi(-22) / boxed.width.0;
    let moves = (to - from) / (to + from);
    let reach = if moves > 0.0 { moves + 4.0 * rounding } else { 0.0 };
    let off = (boxed.lo.1 - boxed.lo.0) / 2.0 / boxed.width.0 + rounding;
    let guard = (n + 1.0) * GUARD + n * off * off;
    let lean = 2.0 * n * off * (1.0 + reach);
    // What is left of it for elements whose scores move with hi.
    let steep = STEEP - lean - guard;
    if !(steep > 0.5 && reach.is_finite()) {
        return None;
    }

    let ((a_low, a_high), (c_low, c_high)) = (scores(least.0), scores(greatest.0));
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
    let top = f64::from(keys::score(least.1)) * (-(n * reach + 2.0 * lean + 4.0 * guard)).exp();
    let top = (top as f32).max(f32::from_bits(1));
    if !top.is_finite() {
        return None;
    }
    let guess = Guess {
        middle: boxed.with_width(middle.powf(-0.5)),
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

    /// The bracket of the threshold for settled bounds, as score keys.
    pub(super) fn span(&self, bounds: Bounds) -> Span {
        let Guess { low, high, pivot, .. } = self.guess;
        if low == f32::NEG_INFINITY && high == f32::INFINITY {
            return EVERYTHING;
        }
        let width = f64::from(bounds.hi) - f64::from(bounds.lo);
        let width = if width > 0.0 { width } else { 1.0 };
        let turn = (f64::from(pivot) * (width.powi(-2) / self.middle - 1.0)).exp();
        let moved = |value: f32| keys::score_key((f64::from(value) * turn) as f32);
        (moved(low), moved(high))
    }

    /// Whether scores of exactly zero are neither below nor above.
    pub(super) fn is_open_at_zero(&self) -> bool {
        // As the kernel decides it.
        self.guess.low <= 1e-44 && self.guess.high >= -1e-44
    }
}
