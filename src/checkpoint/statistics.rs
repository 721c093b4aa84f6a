//! What a merge has seen of its tensors: `reflow_statistics.json`, read line by line and written the same way.
//!
//! ```text
//! {
//! "format":"reflow statistics 1",
//! ..                                  one line for each other field of [`StatisticsHead`]
//! "tensors":[
//! {"name":..},                        one line for each [`TensorRow`], in output order
//! {"name":..}
//! ]
//! }
//! ```

use std::fmt::Write as _;
use std::io::{self, BufRead, Read as _};

use serde::{Deserialize, Serialize};

/// The name of the file in an output directory.
pub const STATISTICS: &str = "reflow_statistics.json";
/// Version of the format.
const FORMAT: &str = "reflow statistics 1";
/// Far above that of a tensor with 1000 experts.
const LONGEST: u64 = 64 << 20;
/// More than anybody merges, so that sizes that follow from it are small.
const EXPERTS: usize = 4096;
/// Elements of a tensor, so that sums over a million tensors are no more than 64 bits hold.
const ELEMENTS: u64 = 1 << 43;
/// The line before the rows.
const ROWS: &str = "\"tensors\":[";

/// What the rows have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatisticsHead {
    /// Version of the format.
    pub format: String,
    /// The version of reflow that made it.
    pub reflow: String,
    /// Fingerprint of the merge, as in the manifest.
    pub plan: String,
    /// The method, with its parameters.
    pub method: String,
    /// The name of the base; none in a merge without one.
    pub base: Option<String>,
    /// The names of the experts, in the order of the rows' numbers.
    pub experts: Vec<String>,
    /// Whether the method gives scores.
    pub scores: bool,
    /// Tensors of the output that were copied and not merged.
    pub copied: u64,
    /// The binary exponent of the first bin of [`RowMagnitudes::counts`].
    pub least: i32,
    /// The number of bins.
    pub bins: usize,
}

impl StatisticsHead {
    /// A head in which bins begin with this exponent.
    pub fn new(reflow: &str, least: i32, bins: usize) -> Self {
        Self {
            format: FORMAT.to_owned(),
            reflow: reflow.to_owned(),
            plan: String::new(),
            method: String::new(),
            base: None,
            experts: Vec::new(),
            scores: false,
            copied: 0,
            least,
            bins,
        }
    }

    /// The text before the first row.
    pub fn begin(&self) -> String {
        // Numbers, strings and lists: nothing that could fail.
        let value = serde_json::to_value(self).unwrap_or_default();
        let mut text = "{\n".to_owned();
        for (key, value) in value.as_object().into_iter().flatten() {
            let _infallible = writeln!(text, "\"{key}\":{value},");
        }
        text.push_str(ROWS);
        text
    }

    /// The text behind the last row.
    pub fn end() -> &'static str {
        "\n]\n}\n"
    }
}

/// One tensor that was merged, or the run of its elements that was.
///
/// Everything is about differences from the base: one for each expert that meets in it, then that of the merge as it is stored.
/// In a merge without a base they are the values themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRow {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// The first element that was merged, if not the first of all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first: u64,
    /// Elements that were merged.
    pub elements: u64,
    /// The experts that meet in it by their numbers, if not all do in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<u32>>,
    /// Squared norm of the base.
    pub base: f64,
    /// Products of the differences with one another: the upper triangle of their matrix, row by row.
    pub products: Vec<f64>,
    /// How large the elements of each difference are.
    pub magnitudes: Vec<RowMagnitudes>,
    /// Elements that at least two experts change.
    pub shared: u64,
    /// Elements that experts change in both directions.
    pub conflicts: u64,
    /// Elements that are NaN or infinite somewhere: they count as zero in all that is told here.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nonfinite: u64,
    /// Elements of each expert that the method took, if it takes part of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Vec<u64>>,
    /// The sum of the scores of each expert, if the method gives any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<Vec<f64>>,
}

/// How large the elements of one difference are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowMagnitudes {
    /// The largest.
    pub largest: f32,
    /// Number of zeros.
    pub zeros: u64,
    /// The binary exponent of the first count.
    pub from: i32,
    /// Elements with this exponent and those after it, up to the last that is not zero. The first and the last bin of the
    /// file take also what is smaller and larger.
    pub counts: Vec<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl TensorRow {
    /// The text of the row, without a line's end.
    pub fn render(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Number of experts that meet in it.
    pub fn experts(&self) -> usize {
        self.magnitudes.len().saturating_sub(1)
    }

    /// The product of two of its differences; that of the merge comes last.
    pub fn product(&self, a: usize, b: usize) -> f64 {
        let (a, b) = (a.min(b), a.max(b));
        let before = a * self.magnitudes.len() - a * a.saturating_sub(1) / 2;
        self.products[before + b - a]
    }

    /// The number of the expert in a place.
    pub fn model(&self, place: usize) -> usize {
        self.models.as_ref().map_or(place, |models| models[place] as usize)
    }

    /// Whether its numbers can belong together, in a file that begins so.
    fn is_possible(&self, head: &StatisticsHead) -> bool {
        let rows = self.magnitudes.len();
        let experts = self.experts();
        let models = match &self.models {
            None => experts == head.experts.len(),
            Some(models) => {
                models.len() == experts && models.iter().all(|&m| (m as usize) < head.experts.len())
            }
        };
        let sums = self.products.iter().chain(self.scores.iter().flatten()).chain([&self.base]);
        let few = |count: &u64| *count <= self.elements;
        models
            && rows > 0
            && rows <= EXPERTS + 1
            && self.products.len() == rows * (rows + 1) / 2
            && (0..rows).all(|row| self.product(row, row) >= 0.0)
            && self.base >= 0.0
            && sums.copied().all(f64::is_finite)
            && self.elements <= ELEMENTS
            && [self.shared, self.conflicts, self.nonfinite].iter().all(few)
            && self.kept.iter().all(|kept| kept.len() == experts && kept.iter().all(few))
            && self.scores.iter().all(|scores| scores.len() == experts)
            && self.magnitudes.iter().all(|it| it.is_possible(self.elements, head))
    }
}

impl RowMagnitudes {
    fn is_possible(&self, elements: u64, head: &StatisticsHead) -> bool {
        let before = i64::from(self.from) - i64::from(head.least);
        let fits =
            before >= 0 && before.unsigned_abs() + self.counts.len() as u64 <= head.bins as u64;
        let sum = self.counts.iter().try_fold(self.zeros, |sum, &more| sum.checked_add(more));
        fits && sum == Some(elements) && self.largest >= 0.0 && self.largest.is_finite()
    }
}

/// What is wrong with a file of statistics.
#[derive(Debug)]
pub enum StatisticsError {
    /// It cannot be read.
    Io(io::Error),
    /// This line, counted from 1, is not as it was written.
    Line(u64),
}

impl From<io::Error> for StatisticsError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads a file of statistics row by row.
pub struct StatisticsReader<R> {
    lines: Lines<R>,
    /// What the rows have in common.
    pub head: StatisticsHead,
    ended: bool,
}

struct Lines<R> {
    from: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// The next line, without its end.
    fn next(&mut self) -> Result<String, StatisticsError> {
        self.number += 1;
        let mut line = Vec::new();
        let _read = self.from.by_ref().take(LONGEST).read_until(b'\n', &mut line)?;
        let line = String::from_utf8(line).map_err(|_| StatisticsError::Line(self.number))?;
        let whole = line.strip_suffix('\n').ok_or(StatisticsError::Line(self.number))?;
        Ok(whole.to_owned())
    }

    fn wrong(&self) -> StatisticsError {
        StatisticsError::Line(self.number)
    }
}

impl<R: BufRead> StatisticsReader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// If it is not one.
    pub fn new(from: R) -> Result<Self, StatisticsError> {
        let mut lines = Lines { from, number: 0 };
        let mut text = String::new();
        loop {
            let line = lines.next()?;
            if line == ROWS {
                break;
            }
            text.push_str(&line);
            if text.len() as u64 > LONGEST {
                return Err(lines.wrong());
            }
        }
        let closed = text.strip_suffix(',').map(|text| format!("{text}}}"));
        let head = closed.and_then(|text| serde_json::from_str::<StatisticsHead>(&text).ok());
        let possible = |head: &StatisticsHead| {
            let exponents = (-1100..1100).contains(&head.least) && head.bins <= 2200;
            head.format == FORMAT && head.experts.len() <= EXPERTS && exponents
        };
        let head = head.filter(possible).ok_or_else(|| lines.wrong())?;
        Ok(Self { lines, head, ended: false })
    }

    /// The next row; `None` behind the last one.
    ///
    /// # Errors
    /// If the file is not as it was written.
    pub fn row(&mut self) -> Result<Option<TensorRow>, StatisticsError> {
        if self.ended {
            return Ok(None);
        }
        let line = self.lines.next()?;
        if line == "]" {
            let end = self.lines.next()?;
            let mut rest = [0];
            if end != "}" || self.lines.from.read(&mut rest)? != 0 {
                return Err(self.lines.wrong());
            }
            self.ended = true;
            return Ok(None);
        }
        let text = line.strip_suffix(',').unwrap_or(&line);
        let row = serde_json::from_str::<TensorRow>(text).ok();
        let row = row.filter(|row| row.is_possible(&self.head));
        row.ok_or_else(|| self.lines.wrong()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> StatisticsHead {
        StatisticsHead {
            experts: vec!["\"a\"\n".to_owned(), "b".to_owned()],
            base: Some("base".to_owned()),
            ..StatisticsHead::new("0", -40, 48)
        }
    }

    fn row() -> TensorRow {
        let magnitudes = RowMagnitudes { largest: 0.5, zeros: 1, from: -2, counts: vec![2, 3] };
        TensorRow {
            name: "a,\n]".to_owned(),
            shape: vec![2, 3],
            first: 0,
            elements: 6,
            models: None,
            base: 1.5,
            products: vec![1.0, -0.5, 0.25, 2.0, 0.125, 3.0],
            magnitudes: vec![magnitudes; 3],
            shared: 2,
            conflicts: 1,
            nonfinite: 0,
            kept: Some(vec![1, 2]),
            scores: Some(vec![0.5, 0.25]),
        }
    }

    fn text(rows: &[TensorRow]) -> String {
        let rows: Vec<String> = rows.iter().map(|row| format!("\n{}", row.render())).collect();
        format!("{}{}{}", head().begin(), rows.join(","), StatisticsHead::end())
    }

    fn read(text: &str) -> Result<(StatisticsHead, Vec<TensorRow>), StatisticsError> {
        let mut reader = StatisticsReader::new(text.as_bytes())?;
        let mut rows = Vec::new();
        while let Some(row) = reader.row()? {
            rows.push(row);
        }
        Ok((reader.head, rows))
    }

    #[test]
    fn what_is_written_is_json_and_comes_back() {
        for count in 0..3 {
            let text = text(&vec![row(); count]);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["tensors"].as_array().unwrap().len(), count);
            assert_eq!(read(&text).unwrap(), (head(), vec![row(); count]));
        }
        let products =
            [(0, 0, 1.0), (1, 0, -0.5), (0, 2, 0.25), (1, 1, 2.0), (2, 1, 0.125), (2, 2, 3.0)];
        assert!(products.into_iter().all(|(a, b, product)| row().product(a, b) == product));
    }

    #[test]
    fn what_was_cut_or_cannot_be_is_refused_with_its_line() {
        let whole = text(&[row(), row()]);
        for len in 0..whole.len() {
            assert!(read(&whole[..len]).is_err(), "{len}");
        }
        assert!(read(&format!("{whole} ")).is_err());
        let line = |row: TensorRow| match read(&text(&[row])) {
            Err(StatisticsError::Line(line)) => line,
            other => panic!("{other:?}"),
        };
        let lines = head().begin().lines().count() as u64;
        for wrong in [
            TensorRow { products: vec![1.0; 5], ..row() },
            TensorRow { products: vec![-1.0; 6], ..row() },
            TensorRow { elements: 7, ..row() },
            TensorRow { elements: u64::MAX, ..row() },
            TensorRow { models: Some(vec![0, 2]), ..row() },
            TensorRow { models: Some(vec![0]), ..row() },
            TensorRow { kept: Some(vec![7, 0]), ..row() },
            TensorRow { scores: Some(vec![]), ..row() },
            TensorRow { magnitudes: vec![], products: vec![], ..row() },
        ] {
            assert_eq!(line(wrong), lines + 1);
        }
        let mut far = row();
        far.magnitudes[0].from = 7;
        assert_eq!(line(far), lines + 1);
        assert_eq!(
            read(&text(&[TensorRow { models: Some(vec![1, 1]), ..row() }])).unwrap().1.len(),
            1
        );
    }
}
