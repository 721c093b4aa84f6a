//! The trials of a search as an SVG: their scores and the best so far; below, the lambdas of each expert.
//!
//! Marks differ in form as well as in colour (Okabe and Ito's, which colour-blind people tell apart), and the page's
//! scheme, light or dark, decides about text and lines.

use std::fmt::Write as _;

use super::Found;
use crate::markup::{escape, round_step};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 56.0;
const HEIGHT: f64 = 260.0;
const GAP: f64 = 84.0;
/// Experts that have a row of marks of their own.
const EXPERTS: usize = 8;
const COLOURS: [&str; EXPERTS] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#7f7f7f"];

const STYLE: &str = "\
svg { font: 13px system-ui, sans-serif; color: #1b1b1b; background: #ffffff; }
text { fill: currentColor; } .soft { opacity: .72; } .title { font-size: 16px; font-weight: 600; }
.grid { stroke: currentColor; opacity: .16; } .axis { stroke: currentColor; opacity: .55; }
.trial { fill: #0072b2; } .best { stroke: #d55e00; stroke-width: 2; fill: none; }
.star { fill: #d55e00; } .fail { stroke: currentColor; stroke-width: 1.6; opacity: .75; }
@media (prefers-color-scheme: dark) {
 svg { color: #e8e6e3; background: #16181b; } .trial { fill: #56b4e9; } .best { stroke: #e69f00; } .star { fill: #e69f00; }
}
";

/// Draws what a search has found.
pub(super) fn draw(found: &Found) -> String {
    let lambdas = found.trials.iter().all(|trial| !trial.point.lambdas.is_empty());
    let height = TOP + HEIGHT + GAP + if lambdas { HEIGHT + GAP } else { 0.0 };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"100%\" \
         height=\"{height}\" preserveAspectRatio=\"xMinYMin meet\" role=\"img\" aria-label=\"Scores of {} trials\">\n<style>\n{STYLE}</style>\n",
        found.trials.len()
    );
    scores(found, &mut svg);
    if lambdas {
        experts(found, TOP + HEIGHT + GAP, &mut svg);
    }
    svg.push_str("</svg>\n");
    svg
}

/// A chart's frame: from data to places.
struct Frame {
    top: f64,
    count: usize,
    range: (f64, f64),
}

impl Frame {
    fn new(top: f64, count: usize, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let (low, high) = if low.is_finite() { (low, high) } else { (0.0, 1.0) };
        let room = if high > low { 0.06 * (high - low) } else { 0.5 * low.abs().max(1e-3) };
        Self { top, count, range: (low - room, high + room) }
    }

    fn x(&self, trial: usize) -> f64 {
        let steps = self.count.saturating_sub(1).max(1) as f64;
        LEFT + 8.0 + (WIDTH - LEFT - RIGHT - 16.0) * trial as f64 / steps
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        self.top + HEIGHT * (1.0 - (value - low) / (high - low))
    }

    /// Axes, with round numbers along them.
    fn draw(&self, title: &str, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, self.top + HEIGHT);
        let step = round_step((self.range.1 - self.range.0) / 5.0);
        let mut value = (self.range.0 / step).ceil() * step;
        while value <= self.range.1 {
            let (y, shown) = (self.y(value), number(value, step));
            let _infallible = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{shown}</text>",
                LEFT - 8.0,
                y + 4.5
            );
            value += step;
        }
        let every = (round_step(self.count as f64 / 8.0).max(1.0)) as usize;
        let shown = |number: usize| number == 1 || number.is_multiple_of(every);
        for number in (1..=self.count).filter(|&number| shown(number)) {
            let _infallible = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{number}</text>",
                self.x(number - 1),
                bottom + 18.0
            );
        }
        let _infallible = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text class=\"soft\" x=\"{LEFT}\" y=\"{:.1}\">{title}</text>\
             <text class=\"soft\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">trial</text>",
            self.top - 12.0,
            bottom + 36.0
        );
    }
}

fn scores(found: &Found, svg: &mut String) {
    let all = found.trials.iter().filter_map(|trial| trial.outcome.score());
    let frame = Frame::new(TOP, found.trials.len(), all);
    let failed = found.trials.iter().filter(|trial| trial.outcome.score().is_none()).count();
    let _infallible = writeln!(
        svg,
        "<text class=\"title\" x=\"{LEFT}\" y=\"24\">{} trials, {failed} failed; the best is number {}</text>",
        found.trials.len(),
        found.best
    );
    frame.draw("score, higher is better", svg);
    let mut best = f64::NEG_INFINITY;
    let mut line = String::new();
    for (k, trial) in found.trials.iter().enumerate() {
        if let Some(score) = trial.outcome.score().filter(|score| *score > best) {
            let x = frame.x(k);
            let command = if line.is_empty() { 'M' } else { 'H' };
            let first =
                if line.is_empty() { format!(" {:.1}", frame.y(score)) } else { String::new() };
            let _infallible = write!(line, "{command}{x:.1}{first}");
            best = score;
            let _infallible = write!(line, "V{:.1}", frame.y(best));
        }
    }
    if !line.is_empty() {
        let _infallible = writeln!(
            svg,
            "<path class=\"best\" d=\"{line}H{:.1}\"/>",
            frame.x(found.trials.len() - 1)
        );
        let (x, y) = (WIDTH - RIGHT + 8.0, frame.y(best));
        let _infallible = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{:.1}\">best so far:</text><text x=\"{x}\" y=\"{:.1}\">{best}</text>",
            y - 4.0,
            y + 14.0
        );
    }
    for (k, trial) in found.trials.iter().enumerate() {
        let x = frame.x(k);
        let told = escape(&format!("trial {}: {trial}", k + 1));
        let mark = match trial.outcome.score() {
            Some(score) if k + 1 == found.best => star(x, frame.y(score)),
            Some(score) => {
                format!(
                    "<circle class=\"trial\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3.6\">",
                    frame.y(score)
                )
            }
            None => {
                let y = TOP + HEIGHT - 7.0;
                format!("<path class=\"fail\" d=\"M{:.1} {:.1}l8 8m0 -8l-8 8\">", x - 4.0, y - 4.0)
            }
        };
        let end = if mark.starts_with("<circle") { "circle" } else { "path" };
        let _infallible = writeln!(svg, "{mark}<title>{told}</title></{end}>");
    }
}

fn experts(found: &Found, top: f64, svg: &mut String) {
    let count = found.trials.iter().map(|trial| trial.point.lambdas.len()).max().unwrap_or(0);
    let all = found.trials.iter().flat_map(|trial| trial.point.lambdas.iter().copied());
    let frame = Frame::new(top, found.trials.len(), all);
    frame.draw("lambda of each expert", svg);
    let x = frame.x(found.best.saturating_sub(1));
    let _infallible = writeln!(
        svg,
        "<path class=\"best\" stroke-dasharray=\"2 4\" d=\"M{x:.1} {top}V{:.1}\"><title>the best trial</title></path>",
        top + HEIGHT
    );
    for (expert, colour) in COLOURS.into_iter().enumerate().take(count) {
        for (k, trial) in found.trials.iter().enumerate() {
            let Some(&lambda) = trial.point.lambdas.get(expert) else { continue };
            mark(expert, frame.x(k), frame.y(lambda), colour, svg);
        }
        let y = top + 12.0 + 20.0 * expert as f64;
        mark(expert, WIDTH - RIGHT + 14.0, y - 4.0, colour, svg);
        let name =
            if count == 1 { "all experts" } else { found.experts.get(expert).map_or("", |n| n) };
        let short: String = name.chars().take(16).collect();
        let _infallible = writeln!(
            svg,
            "<text x=\"{}\" y=\"{y}\">{}</text>",
            WIDTH - RIGHT + 26.0,
            escape(&short)
        );
    }
    if count > EXPERTS {
        let y = top + 12.0 + 20.0 * EXPERTS as f64;
        let _infallible = writeln!(
            svg,
            "<text class=\"soft\" x=\"{}\" y=\"{y}\">{} more not shown</text>",
            WIDTH - RIGHT + 8.0,
            count - EXPERTS
        );
    }
}

/// A mark whose form is the expert's own.
fn mark(expert: usize, x: f64, y: f64, colour: &str, svg: &mut String) {
    let form = match expert % 4 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.4\" fill=\"{colour}\"/>"),
        1 => format!("<path d=\"M{:.1} {:.1}h7v7h-7z\" fill=\"{colour}\"/>", x - 3.5, y - 3.5),
        2 => format!("<path d=\"M{x:.1} {:.1}l4.4 7.6h-8.8z\" fill=\"{colour}\"/>", y - 4.6),
        _ => format!(
            "<path d=\"M{x:.1} {:.1}l4.6 4.6l-4.6 4.6l-4.6 -4.6z\" fill=\"none\" stroke=\"{colour}\" \
             stroke-width=\"1.8\"/>",
            y - 4.6
        ),
    };
    svg.push_str(&form);
    svg.push('\n');
}

fn star(x: f64, y: f64) -> String {
    let points: Vec<String> = (0..10)
        .map(|k| {
            let (radius, turn) =
                (if k % 2 == 0 { 8.5 } else { 3.8 }, f64::from(k) * 36f64.to_radians());
            format!("{:.1} {:.1}", x + radius * turn.sin(), y - radius * turn.cos())
        })
        .collect();
    format!("<path class=\"star\" d=\"M{}z\">", points.join("L"))
}

/// A number with as many digits as its step needs.
fn number(value: f64, step: f64) -> String {
    let digits = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
    let text = format!("{value:.digits$}");
    if text.trim_start_matches('-').chars().all(|c| c == '0' || c == '.') {
        "0".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Head, Outcome, Point, Trial};
    use super::*;

    fn found(trials: Vec<Trial>, best: usize) -> Found {
        Found {
            format: "",
            reflow: "",
            asked: Head {
                version: String::new(),
                recipe: String::new(),
                evaluate: String::new(),
                way: String::new(),
            },
            experts: vec!["<math>".to_owned(), "code".to_owned()],
            trials,
            best,
            place: "best".into(),
        }
    }

    #[test]
    fn every_trial_has_its_mark_and_names_are_text() {
        let trial = |outcome, x| Trial {
            point: Point::of_lambdas(&[x, 1.0]),
            outcome,
            seconds: 1.0,
            read: 0,
        };
        let trials = vec![
            trial(Outcome::Score(0.5), 1.0),
            trial(Outcome::Failure("a < b & \"c\"\u{1b}".to_owned()), 1.1),
            trial(Outcome::Score(0.75), 1.2),
        ];
        let svg = draw(&found(trials, 3));
        assert_eq!(svg.matches("<title>").count(), 4);
        assert_eq!(svg.matches("class=\"star\"").count(), 1);
        assert_eq!(svg.matches("class=\"fail\"").count(), 1);
        assert!(
            svg.contains("a &lt; b &amp; &quot;c&quot; ") && svg.contains("&lt;math&gt;"),
            "{svg}"
        );
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn one_trial_and_equal_scores_can_be_drawn() {
        for count in [1, 4] {
            let trial = Trial {
                point: Point::default(),
                outcome: Outcome::Score(0.0),
                seconds: 0.0,
                read: 0,
            };
            let svg = draw(&found(vec![trial; count], 1));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(!svg.contains("lambda of each"), "{svg}");
        }
        assert_eq!(
            (number(0.25, 0.05), number(-0.0, 0.1), number(30.0, 10.0)),
            ("0.25".into(), "0".into(), "30".into())
        );
    }
}
