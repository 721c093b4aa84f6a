//! Bars and histograms.

use std::fmt::Write as _;

use crate::markup::{escape, shorten};
use crate::report::Magnitudes;

/// Characters of a label.
const LABEL: usize = 44;

/// A bar: what it is of, how long it is, and what stands behind it.
pub(super) struct Bar {
    pub(super) label: String,
    /// Length of each bar of the group, and its number in words.
    pub(super) parts: Vec<(f64, String)>,
}

/// Appends horizontal bars, each group below its name; parts of a group have one colour each. Pictures narrow enough for a phone, side
/// by side where there is room.
pub(super) fn bars(about: &str, bars: &[Bar], html: &mut String) {
    let most = bars.iter().flat_map(|bar| &bar.parts).fold(0f64, |most, part| most.max(part.0));
    html.push_str("<div class=\"many\">\n");
    bars.chunks(8).for_each(|bars| some_bars(about, bars, most, html));
    html.push_str("</div>\n");
}

fn some_bars(about: &str, bars: &[Bar], most: f64, html: &mut String) {
    const LONG: f64 = 262.0;
    let parts = bars.iter().map(|bar| bar.parts.len()).max().unwrap_or(0) as f64;
    let step = 15.0 * parts + 27.0;
    let (width, height) = (LONG + 64.0, step * bars.len() as f64);
    let _infallible = writeln!(
        html,
        "<svg class=\"bars\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         role=\"img\" aria-label=\"{}\">",
        escape(about)
    );
    for (k, bar) in bars.iter().enumerate() {
        let top = step * k as f64 + 17.0;
        let _infallible = writeln!(
            html,
            "<text x=\"0\" y=\"{:.0}\"><title>{}</title>{}</text>",
            top - 4.0,
            escape(&bar.label),
            escape(&shorten(&bar.label, LABEL))
        );
        for (part, (value, text)) in bar.parts.iter().enumerate() {
            let y = top + 15.0 * part as f64;
            let long = if most > 0.0 { LONG * value / most } else { 0.0 };
            let _infallible = writeln!(
                html,
                "<rect class=\"b{part}\" x=\"0\" y=\"{y:.0}\" width=\"{:.1}\" height=\"13\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                long.max(1.0),
                long.max(1.0) + 6.0,
                y + 10.5,
                escape(text)
            );
        }
    }
    html.push_str("</svg>\n");
}

/// Appends a histogram for each name, a picture each, all on the same axes: shares of elements by powers of two.
pub(super) fn histograms(named: &[(String, &Magnitudes)], html: &mut String) {
    const WIDTH: f64 = 330.0;
    const HEIGHT: f64 = 96.0;
    const TOP: f64 = 34.0;
    let filled = named.iter().filter(|(_, it)| !it.counts.is_empty());
    let from = filled.clone().map(|(_, it)| it.from).min().unwrap_or(0);
    let to =
        filled.map(|(_, it)| it.from + it.counts.len() as i32).max().unwrap_or(1).max(from + 1);
    let wide = (WIDTH - 24.0) / f64::from(to - from);
    let all = |it: &Magnitudes| (it.zeros + it.counts.iter().sum::<u64>()).max(1) as f64;
    let most =
        named.iter().flat_map(|(_, it)| it.counts.iter().map(|&count| count as f64 / all(it)));
    let most = most.fold(0f64, f64::max).max(1e-9);
    let place = |exponent: i32| 12.0 + wide * f64::from(exponent - from);
    let (bottom, height) = (TOP + HEIGHT, TOP + HEIGHT + 38.0);
    let last = named.len().saturating_sub(1);
    let every = (f64::from(to - from) / 6.0).ceil().max(1.0) as i32;
    for (k, (name, it)) in named.iter().enumerate() {
        let _infallible = writeln!(
            html,
            "<svg class=\"histogram\" width=\"{WIDTH:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" \
             role=\"img\" aria-label=\"Magnitudes of {}\">\n<text x=\"0\" y=\"12\"><title>{}</title>{}</text>\
             <text class=\"soft e\" x=\"{WIDTH:.0}\" y=\"12\">{} zero</text>",
            escape(name),
            escape(name),
            escape(&shorten(name, LABEL - 8)),
            super::percent(it.zeros as f64 / all(it))
        );
        let class = if k == last { "b1" } else { "b0" };
        let mut peak: Option<(i32, f64)> = None;
        for (exponent, &count) in (it.from..).zip(&it.counts).filter(|(_, count)| **count > 0) {
            let share = count as f64 / all(it);
            if peak.is_none_or(|(_, most)| share > most) {
                peak = Some((exponent, share));
            }
            let high = (HEIGHT * share / most).max(0.7);
            let _infallible = writeln!(
                html,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{high:.1}\">\
                 <title>2^{exponent} to 2^{}: {count} elements, {}</title></rect>",
                place(exponent),
                bottom - high,
                (wide - 1.0).max(0.5),
                exponent + 1,
                super::percent(share)
            );
        }
        if let Some((exponent, share)) = peak {
            let _infallible = writeln!(
                html,
                "<text class=\"m\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                place(exponent) + wide / 2.0,
                bottom - HEIGHT * share / most - 4.0,
                super::percent(share)
            );
        }
        let _infallible = writeln!(
            html,
            "<line class=\"axis\" x1=\"12\" x2=\"{:.0}\" y1=\"{bottom:.1}\" y2=\"{bottom:.1}\"/>",
            WIDTH - 12.0
        );
        for exponent in (from..=to).filter(|exponent| exponent.rem_euclid(every) == 0) {
            let x = place(exponent);
            let _infallible = writeln!(
                html,
                "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"m\" x=\"{x:.1}\" y=\"{:.1}\">2<tspan dy=\"-4\" class=\"up\">{exponent}</tspan></text>\
                 <text class=\"m soft up\" x=\"{x:.1}\" y=\"{:.1}\">{:.0e}</text>",
                bottom + 4.0,
                bottom + 19.0,
                bottom + 34.0,
                2f64.powi(exponent)
            );
        }
        html.push_str("</svg>\n");
    }
}
