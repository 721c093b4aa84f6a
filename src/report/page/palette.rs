//! Colours that people with any eyes tell apart: viridis for amounts, blue to orange for signs. Numbers stand in every cell, so that
//! no colour has to be read.

use std::fmt::Write as _;

/// Steps of the scale of amounts.
const AMOUNTS: usize = 32;
/// Steps of the scale of signs; the middle one is zero.
const SIGNS: usize = 31;
/// Viridis, by Smith and van der Walt.
const VIRIDIS: [u32; 10] = [
    0x44_01_54, 0x48_28_78, 0x3e_4a_89, 0x31_68_8e, 0x26_82_8e, 0x1f_9e_89, 0x35_b7_79, 0x6d_cd_59,
    0xb4_de_2c, 0xfd_e7_25,
];
const DIVERGING: [u32; 7] =
    [0x1f_4e_8c, 0x5b_8e_c4, 0xb3_cd_e3, 0xf5_f5_f5, 0xfd_cc_8a, 0xe0_82_14, 0x8f_4a_08];

/// From numbers to colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// From the least amount to the largest, by their logarithms where these are far apart.
    Amounts { low: f64, high: f64, log: bool },
    /// From minus the largest magnitude to it.
    Signs { most: f64 },
}

impl Scale {
    /// A scale for amounts such as these, by logarithms if that helps and is `wide`.
    pub(super) fn amounts(values: impl Iterator<Item = f64>, wide: bool) -> Self {
        let (mut least, mut low, mut high) = (f64::INFINITY, f64::INFINITY, 0f64);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
            if value > 0.0 {
                least = least.min(value);
            }
        }
        if wide && high > 20.0 * least {
            // What is far below the rest would take all colours.
            return Scale::Amounts { low: least.max(high * 1e-6), high, log: true };
        }
        let low = if low.is_finite() { low } else { 0.0 };
        // Nearly equal amounts are no picture of differences.
        let low = if low > 0.8 * high { 0.0 } else { low };
        Scale::Amounts { low, high: if high > low { high } else { low + 1.0 }, log: false }
    }

    /// A scale for cosines. Small ones have weak colours.
    pub(super) fn signs(values: impl Iterator<Item = f64>) -> Self {
        Scale::Signs { most: values.fold(0.25, |most, value| value.abs().max(most)) }
    }

    /// Where a number lies: from 0 to 1.
    fn place(self, value: f64) -> f64 {
        let place = match self {
            Scale::Amounts { low, high, log: true } => {
                if value <= low {
                    0.0
                } else {
                    (value / low).ln() / (high / low).ln().max(1e-9)
                }
            }
            Scale::Amounts { low, high, log: false } => (value - low) / (high - low),
            Scale::Signs { most } => 0.5 + 0.5 * value / most,
        };
        place.clamp(0.0, 1.0)
    }

    /// The number in a place.
    pub(super) fn value(self, place: f64) -> f64 {
        match self {
            Scale::Amounts { low, high, log: true } => low * (high / low).powf(place),
            Scale::Amounts { low, high, log: false } => low + (high - low) * place,
            Scale::Signs { most } => (2.0 * place - 1.0) * most,
        }
    }

    fn steps(self) -> usize {
        match self {
            Scale::Amounts { .. } => AMOUNTS,
            Scale::Signs { .. } => SIGNS,
        }
    }

    /// The class of a number's colour.
    pub(super) fn class(self, value: f64) -> String {
        let step = (self.place(value) * (self.steps() - 1) as f64).round() as usize;
        self.class_of(step)
    }

    /// The classes of all steps, from the lowest up.
    pub(super) fn classes(self) -> impl Iterator<Item = String> {
        (0..self.steps()).map(move |step| self.class_of(step))
    }

    fn class_of(self, step: usize) -> String {
        match self {
            Scale::Amounts { .. } => format!("v{step}"),
            Scale::Signs { .. } => format!("d{step}"),
        }
    }
}

/// The rules of all classes: the cell's colour, and that of the number in it.
pub(super) fn style() -> String {
    let mut css = String::new();
    let mut rules = |name: char, anchors: &[u32], steps: usize| {
        for step in 0..steps {
            let colour = between(anchors, step as f64 / (steps - 1) as f64);
            let [r, g, b] = colour.map(|part| part.round() as u8);
            let ink = if is_dark(colour) { "fff" } else { "111" };
            let _infallible = writeln!(
                css,
                ".{name}{step}{{fill:#{r:02x}{g:02x}{b:02x}}}.{name}{step}+text{{fill:#{ink}}}"
            );
        }
    };
    rules('v', &VIRIDIS, AMOUNTS);
    rules('d', &DIVERGING, SIGNS);
    css
}

/// The colour in a place between anchors that are evenly spaced.
fn between(anchors: &[u32], place: f64) -> [f64; 3] {
    let at = place * (anchors.len() - 1) as f64;
    let below = (at as usize).min(anchors.len() - 2);
    let parts = |colour: u32| [16, 8, 0].map(|shift| f64::from(colour >> shift & 0xff));
    let (a, b) = (parts(anchors[below]), parts(anchors[below + 1]));
    std::array::from_fn(|k| a[k] + (b[k] - a[k]) * (at - below as f64))
}

/// Whether white text has more contrast on it than black.
fn is_dark(colour: [f64; 3]) -> bool {
    luminance(colour) < 0.18
}

/// As WCAG defines it.
fn luminance(colour: [f64; 3]) -> f64 {
    let linear = |part: f64| {
        let part = part / 255.0;
        if part <= 0.040_45 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    };
    let [r, g, b] = colour.map(linear);
    0.2126 * r + 0.7152 * g + 0.0722 * b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_cells_can_be_read_on_every_colour() {
        for (anchors, steps) in [(&VIRIDIS[..], AMOUNTS), (&DIVERGING, SIGNS)] {
            for step in 0..steps {
                let colour = between(anchors, step as f64 / (steps - 1) as f64);
                let ink = if is_dark(colour) { [255.0; 3] } else { [17.0; 3] };
                let (a, b) = (luminance(colour), luminance(ink));
                let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
                assert!(contrast >= 4.0, "{step} of {steps}: {contrast}");
            }
        }
        let light: Vec<f64> =
            (0..AMOUNTS).map(|k| luminance(between(&VIRIDIS, k as f64 / 31.0))).collect();
        assert!(light.is_sorted(), "more is lighter, also without colours: {light:?}");
    }

    #[test]
    fn scales_take_any_numbers() {
        for values in
            [vec![], vec![0.0], vec![1.0; 3], vec![0.0, 1e-300, 5.0], vec![2.0, 3.0, f64::MAX]]
        {
            for scale in
                [Scale::amounts(values.iter().copied(), true), Scale::signs(values.iter().copied())]
            {
                for &value in values.iter().chain(&[0.0, -1.0, 1e9]) {
                    let class = scale.class(value);
                    assert!(scale.classes().any(|known| known == class), "{scale:?} {value}");
                }
                assert!(scale.value(0.0) < scale.value(1.0), "{scale:?}");
            }
        }
        let scale = Scale::amounts([1.0, 10.0, 1000.0].into_iter(), true);
        assert_eq!((scale.class(1.0), scale.class(1000.0)), ("v0".to_owned(), "v31".to_owned()));
        assert_eq!(scale.class(1000f64.sqrt()), "v16");
        assert_eq!(Scale::signs([-0.5, 0.1].into_iter()).class(0.0), "d15");
    }
}
