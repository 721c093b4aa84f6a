//! Matrices of numbers on colours.

use std::fmt::Write as _;

use super::palette::Scale;
use crate::markup::{escape, shorten};

const WIDTH: f64 = 48.0;
const HEIGHT: f64 = 19.0;
/// Of a character, about.
const CHARACTER: f64 = 6.3;
/// Characters of a label, at most.
const LABEL: usize = 26;
/// How steep the labels of columns are: sine and cosine.
const STEEP: (f64, f64) = (0.766, 0.643);

/// A matrix of numbers.
pub(super) struct Heat<'a> {
    /// What the picture shows, for those who do not see it.
    pub(super) about: String,
    /// What rows are.
    pub(super) axis: &'a str,
    pub(super) rows: Vec<String>,
    pub(super) columns: Vec<String>,
    /// Row by row; none where there is nothing.
    pub(super) cells: Vec<Option<Cell>>,
    pub(super) scale: Scale,
    /// A number as it is shown.
    pub(super) shown: &'a dyn Fn(f64) -> String,
    /// Whether cells tell more when a pointer rests on them.
    pub(super) hovers: bool,
}

/// A number in a cell.
pub(super) struct Cell {
    /// None where it cannot be said: something relative to nothing.
    pub(super) value: Option<f64>,
    /// What else there is to tell about it.
    pub(super) note: String,
}

impl Heat<'_> {
    /// All numbers in cells.
    pub(super) fn values(cells: &[Option<Cell>]) -> impl Iterator<Item = f64> {
        cells.iter().flatten().filter_map(|cell| cell.value)
    }

    /// Appends the picture.
    pub(super) fn draw(&self, html: &mut String) {
        let longest = |labels: &[String]| {
            labels.iter().map(|label| label.chars().count().min(LABEL)).max().unwrap_or(0) as f64
        };
        let axis = self.axis.chars().count() as f64;
        let left = (longest(&self.rows).max(axis) * CHARACTER + 12.0).ceil();
        let top = longest(&self.columns) * CHARACTER * STEEP.0 + 18.0;
        let top = top.ceil();
        let last = self.columns.last().map_or(0, |label| label.chars().count().min(LABEL)) as f64;
        let over = (last * CHARACTER * STEEP.1 - WIDTH / 2.0).max(0.0) + 14.0;
        let width = left + WIDTH * self.columns.len() as f64 + over;
        let height = top + HEIGHT * self.rows.len() as f64 + 2.0;
        let _infallible = writeln!(
            html,
            "<svg class=\"heat\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             role=\"img\" aria-label=\"{}\">",
            escape(&self.about)
        );
        let _infallible = writeln!(
            html,
            "<text class=\"e soft\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 7.0,
            top - 6.0,
            self.axis
        );
        for (k, column) in self.columns.iter().enumerate() {
            let x = left + WIDTH * (k as f64 + 0.5);
            let _infallible = writeln!(
                html,
                "<text transform=\"translate({x:.1} {:.1})rotate(-50)\">{}{}</text>",
                top - 6.0,
                hover(column),
                escape(&shorten(column, LABEL))
            );
        }
        for (k, row) in self.rows.iter().enumerate() {
            let y = top + HEIGHT * k as f64;
            let _infallible = writeln!(
                html,
                "<text class=\"e\" x=\"{:.1}\" y=\"{:.1}\">{}{}</text>",
                left - 7.0,
                y + 13.5,
                hover(row),
                escape(&shorten(row, LABEL))
            );
            let cells = self.cells.iter().skip(k * self.columns.len()).zip(&self.columns);
            for (j, (cell, column)) in cells.enumerate() {
                let Some(cell) = cell else { continue };
                let x = left + WIDTH * j as f64;
                let class = cell.value.map_or_else(|| "none".to_owned(), |v| self.scale.class(v));
                let number = cell.value.map_or_else(|| "\u{2013}".to_owned(), self.shown);
                html.push_str("<g>");
                if self.hovers {
                    let (row, column) = (escape(row), escape(column));
                    let note = escape(&cell.note);
                    let _infallible =
                        write!(html, "<title>{row}, {column}: {number}{note}</title>");
                }
                let _infallible = writeln!(
                    html,
                    "<rect class=\"{class}\" x=\"{x:.0}\" y=\"{y:.0}\" width=\"{:.0}\" height=\"{:.0}\"/>\
                     <text class=\"m\" x=\"{:.0}\" y=\"{:.0}\">{number}</text></g>",
                    WIDTH - 1.0,
                    HEIGHT - 1.0,
                    x + WIDTH / 2.0,
                    y + 13.0
                );
            }
        }
        html.push_str("</svg>\n");
    }
}

/// The whole of a label that is shortened.
fn hover(label: &str) -> String {
    if label.chars().count() > LABEL {
        format!("<title>{}</title>", escape(label))
    } else {
        String::new()
    }
}

/// Appends the colours of a scale, with numbers.
pub(super) fn legend(scale: Scale, shown: &dyn Fn(f64) -> String, html: &mut String) {
    let classes: Vec<String> = scale.classes().collect();
    let step = 8.0;
    let (left, width) = (24.0, step * classes.len() as f64);
    let all = width + 2.0 * left;
    let _infallible = writeln!(
        html,
        "<svg class=\"legend\" width=\"{all:.0}\" height=\"34\" viewBox=\"0 0 {all:.0} 34\" role=\"img\" \
         aria-label=\"colours from {} to {}\">",
        shown(scale.value(0.0)),
        shown(scale.value(1.0))
    );
    // Numbers below are no numbers in cells, whose colour follows from the cell's.
    html.push_str("<g>");
    for (k, class) in classes.iter().enumerate() {
        let x = left + step * k as f64;
        let _infallible = write!(
            html,
            "<rect class=\"{class}\" x=\"{x:.0}\" y=\"2\" width=\"{:.1}\" height=\"12\"/>",
            step + 0.5
        );
    }
    html.push_str("</g>");
    for place in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let _infallible = write!(
            html,
            "<text class=\"m\" x=\"{:.1}\" y=\"29\">{}</text>",
            left + width * place,
            shown(scale.value(place))
        );
    }
    html.push_str("</svg>\n");
}
