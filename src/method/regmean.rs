//! RegMean: the weights whose outputs are nearest to those of each model on the inputs that it has seen (arXiv
//! 2212.09849), a linear system for each layer. Tensors without Gram matrices are the plain mean.

use std::sync::Arc;

use super::pass::Map;
use super::registry::{BaseUse, Entry, Evidence, Kind, Parameter, Per, Preset, Scope};
use super::solve::{Crew, Job, Matrix, Solver};
use super::{AnyStage, Method, MethodError, Operand, TensorView, UnitView, Values};
use crate::kernel::Kernels;
use crate::kernel::dense::{GROUP, packed};

/// What is added to each diagonal beside the ridge, so that inputs that no model has seen have a mean: 2^-100.
const FLOOR: f64 = 1.0 / (1_u128 << 100) as f64;
/// A pivot must be more than this share of its diagonal element: below, it is made of rounding errors.
const LEAST: f64 = 1.0 / (1_u64 << 50) as f64;
/// Bytes of rows of a Gram matrix that are held at a time.
const ROWS: usize = 4 << 20;
/// Rows of the panel of a Cholesky factor.
const PANEL: usize = 64;
/// Rows of weights in a job: while a few rows of a matrix are in the cache, they meet so many.
const OUTPUTS: usize = 8;
/// Rows of a factor in a job.
const FACTOR_ROWS: usize = 32;
/// How far mirror images may differ, as a share of all that is in a row.
const TOLERANCE: f64 = 1e-3;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "regmean",
    dialect: None,
    about: "least squares over each model's inputs, layer by layer",
    source: "arXiv 2212.09849; bloomberg/dataless-model-merging",
    base: BaseUse::Model,
    models: 1..=usize::MAX,
    scopes: &[Scope::Tensor],
    reads: (1, 1),
    random: false,
    evidence: Some(Evidence::Gram),
    per_expert: Some("weight"),
    parameters: &[
        Parameter::new(
            "weight",
            Per::Model,
            Kind::FACTOR,
            Preset::Number(1.0),
            "factor of the model's Gram matrices",
        ),
        Parameter::new(
            "alpha",
            Per::Tensor,
            Kind::FRACTION,
            Preset::Number(0.9),
            "factor of what is off their diagonals",
        ),
        Parameter::new(
            "ridge",
            Per::Tensor,
            Kind::FACTOR,
            Preset::Number(1e-6),
            "share of a diagonal's mean that is added to it",
        ),
        Parameter::new(
            "layout",
            Per::Tensor,
            Kind::Word(&["out_in", "in_out"]),
            Preset::Word("out_in"),
            "how weights are stored: rows of inputs (Linear), or of outputs (Conv1D)",
        ),
    ],
    build: |setup| Box::new(RegMean { kernels: setup.kernels }),
};

struct RegMean {
    kernels: &'static Kernels,
}

impl Method for RegMean {
    fn operand(&self) -> Operand {
        Operand::Value
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let kernels = self.kernels;
        let weights = unit.each_tensor(|values: &Values| values.each("weight"));
        if weights.all().iter().any(|weights| weights.iter().all(|weight| *weight == 0.0)) {
            return Err(MethodError::NoWeight);
        }
        Ok(Box::new(Map::new(unit.elements, move |block, _, out| {
            kernels.plain_mean(block.rows, weights.get(block.tensor), out);
        })))
    }

    fn solver(&self, tensor: &TensorView, matrix: Matrix) -> Result<Box<dyn Solver>, MethodError> {
        let (values, Matrix { outputs, inputs }) = (&tensor.values, matrix);
        let weights = values.each("weight");
        if weights.iter().all(|weight| *weight == 0.0) {
            return Err(MethodError::NoWeight);
        }
        let rows = rows_at_a_time(inputs);
        Ok(Box::new(System {
            kernels: self.kernels,
            weights,
            alpha: values.number("alpha"),
            ridge: values.number("ridge"),
            inputs,
            rows,
            matrix: vec![0.0; packed(inputs)],
            sums: vec![0.0; outputs * inputs],
            chunk: vec![0.0; rows.min(inputs) * inputs],
            trace: 0.0,
            probe: Probe::new(inputs),
        }))
    }

    fn solver_bytes(&self, matrix: Matrix) -> u64 {
        let (inputs, outputs) = (matrix.inputs as u64, matrix.outputs as u64);
        let rows = rows_at_a_time(matrix.inputs).min(matrix.inputs) as u64;
        let doubles =
            inputs * (inputs + 1) / 2 + inputs * outputs + inputs * (rows + PANEL as u64 + 5);
        8 * doubles
    }
}

fn rows_at_a_time(inputs: usize) -> usize {
    (ROWS / (8 * inputs.max(1)) / GROUP * GROUP).clamp(GROUP, 1024)
}

/// The equations of one tensor: `matrix * x = sums` for each output, x relative to the first model's weights. That of
/// equal models is therefore zero, exactly.
struct System {
    kernels: &'static Kernels,
    weights: Vec<f64>,
    alpha: f64,
    ridge: f64,
    inputs: usize,
    rows: usize,
    /// The lower triangle of the sum of all Gram matrices, packed; then its Cholesky factor.
    matrix: Vec<f64>,
    /// For each output the sum of Gram matrices times weights; then the solution.
    sums: Vec<f64>,
    /// Rows of a Gram matrix as they count.
    chunk: Vec<f64>,
    /// The sum of the diagonal of the Gram matrix that is coming.
    trace: f64,
    probe: Probe,
}

impl System {
    /// Calls `work` for each few rows of deltas with those of the sums, as jobs.
    fn each(
        &mut self,
        deltas: &[f32],
        crew: &dyn Crew,
        work: &(dyn Fn(&[f32], &mut [f64]) + Sync),
    ) {
        let few = OUTPUTS * self.inputs;
        let jobs = deltas.chunks(few).zip(self.sums.chunks_mut(few));
        crew.run(
            jobs.map(|(deltas, sums)| -> Job<'_> { Box::new(|| work(deltas, sums)) }).collect(),
        );
    }
}

impl Solver for System {
    fn rows(&self) -> usize {
        self.rows
    }

    fn take(&mut self, model: usize, first: usize, gram: &[f32], deltas: &[f32], crew: &dyn Crew) {
        let (inputs, weight) = (self.inputs, self.weights[model]);
        let count = gram.len() / inputs;
        let mut chunk = std::mem::take(&mut self.chunk);
        for (k, (stored, row)) in
            gram.chunks_exact(inputs).zip(chunk.chunks_exact_mut(inputs)).enumerate()
        {
            let i = first + k;
            self.probe.see(i, stored);
            for (x, &stored) in row.iter_mut().zip(&stored[..i]) {
                *x = weight * (self.alpha * f64::from(stored));
            }
            row[i] = weight * f64::from(stored[i]);
            self.trace += row[i];
            for (sum, x) in self.matrix[packed(i)..].iter_mut().zip(&row[..=i]) {
                *sum += x;
            }
        }
        let kernels = self.kernels;
        self.each(deltas, crew, &|deltas, sums| {
            kernels.add_symmetric(&chunk[..count * inputs], first, inputs, deltas, sums);
        });
        self.chunk = chunk;
    }

    fn close(&mut self, model: usize, deltas: &[f32], crew: &dyn Crew) -> Result<(), MethodError> {
        if let Some(input) = self.probe.end() {
            return Err(MethodError::NotSymmetric { expert: model + 1, input });
        }
        let trace = std::mem::take(&mut self.trace);
        let ridge = self.ridge * trace / self.inputs as f64 + self.weights[model] * FLOOR;
        for i in 0..self.inputs {
            self.matrix[packed(i) + i] += ridge;
        }
        self.each(deltas, crew, &|deltas, sums| {
            for (sum, &delta) in sums.iter_mut().zip(deltas) {
                *sum += ridge * f64::from(delta);
            }
        });
        Ok(())
    }

    fn solve(&mut self, crew: &dyn Crew) -> Result<&[f64], MethodError> {
        let (kernels, inputs) = (self.kernels, self.inputs);
        let least = |i| self.matrix[packed(i) + i] * LEAST;
        let least: Vec<f64> = (0..inputs).map(least).collect();
        for begin in (0..inputs).step_by(PANEL) {
            let end = inputs.min(begin + PANEL);
            let (head, mut tail) = self.matrix.split_at_mut(packed(end));
            let panel = &mut head[packed(begin)..];
            if let Some(input) = kernels.factor_panel(panel, begin, end, &least) {
                return Err(MethodError::Singular { input });
            }
            let (panel, mut jobs) = (&*panel, Vec::<Job<'_>>::new());
            for first in (end..inputs).step_by(FACTOR_ROWS) {
                let last = inputs.min(first + FACTOR_ROWS);
                let (rows, rest) = tail.split_at_mut(packed(last) - packed(first));
                tail = rest;
                jobs.push(Box::new(move || {
                    kernels.factor_rows(rows, (first, last), panel, (begin, end));
                }));
            }
            crew.run(jobs);
        }
        let factor = &self.matrix;
        let all = self.sums.chunks_mut(OUTPUTS * inputs);
        let job = |sums| -> Job<'_> { Box::new(move || kernels.substitute(factor, inputs, sums)) };
        crew.run(all.map(job).collect());
        Ok(&self.sums)
    }
}

/// Tells a symmetric matrix from others, row by row, without holding it: G v and its transpose times v are equal, for a
/// vector v of ones of both signs.
struct Probe {
    /// v.
    signs: Vec<f64>,
    /// Row i of the matrix times v.
    rows: Vec<f64>,
    /// Column i times v.
    columns: Vec<f64>,
    /// The sum of all magnitudes in row i.
    sizes: Vec<f64>,
}

impl Probe {
    fn new(inputs: usize) -> Self {
        let zeros = || vec![0.0; inputs];
        let signs = (0..inputs).map(Self::sign).collect();
        Self { signs, rows: zeros(), columns: zeros(), sizes: zeros() }
    }

    /// The sign of element `i` of v.
    fn sign(i: usize) -> f64 {
        let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if (mixed ^ (mixed >> 29)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
    }

    fn see(&mut self, i: usize, row: &[f32]) {
        let (own, sum, size) = (self.signs[i], &mut self.rows[i], &mut self.sizes[i]);
        for ((&x, &sign), column) in row.iter().zip(&self.signs).zip(&mut self.columns) {
            let x = f64::from(x);
            *sum += x * sign;
            *size += x.abs();
            *column += x * own;
        }
    }

    /// Ends a matrix; the first row that is not like its column.
    fn end(&mut self) -> Option<usize> {
        let all = self.rows.iter().zip(&self.columns).zip(&self.sizes);
        let differs =
            |((row, column), size): ((&f64, &f64), &f64)| (row - column).abs() > TOLERANCE * size;
        let found = all.into_iter().position(differs);
        for sums in [&mut self.rows, &mut self.columns, &mut self.sizes] {
            sums.fill(0.0);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does jobs one after another, forwards or backwards, or each in a thread of its own.
    struct Order(u8);

    impl Crew for Order {
        fn run(&self, mut jobs: Vec<Job<'_>>) {
            match self.0 {
                0 => jobs.into_iter().for_each(|job| job()),
                1 => {
                    jobs.reverse();
                    jobs.into_iter().for_each(|job| job());
                }
                _ => std::thread::scope(|scope| {
                    jobs.into_iter().for_each(|job| drop(scope.spawn(job)));
                }),
            }
        }
    }

    fn uniform(seed: u64) -> impl FnMut() -> f64 {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as f64 / f64::from(1 << 23) - 1.0
        }
    }

    /// Models with what they have seen: inputs, Gram matrices of these, weights.
    struct Family {
        inputs: usize,
        outputs: usize,
        seen: Vec<Vec<f64>>,
        grams: Vec<Vec<f32>>,
        weights: Vec<Vec<f32>>,
    }

    impl Family {
        fn new(models: usize, inputs: usize, outputs: usize, tokens: usize) -> Self {
            let mut random = uniform((models * 1000 + inputs * 10 + outputs) as u64);
            let mut all =
                Self { inputs, outputs, seen: Vec::new(), grams: Vec::new(), weights: Vec::new() };
            for _ in 0..models {
                // Of few bits, so that Gram matrices in f32 are exact.
                let seen: Vec<f64> =
                    (0..tokens * inputs).map(|_| (random() * 8.0).round()).collect();
                let mut gram = vec![0.0_f32; inputs * inputs];
                for x in seen.chunks_exact(inputs) {
                    for (row, a) in gram.chunks_exact_mut(inputs).zip(x) {
                        row.iter_mut().zip(x).for_each(|(sum, b)| *sum += (a * b) as f32);
                    }
                }
                all.seen.push(seen);
                all.grams.push(gram);
                all.weights.push((0..inputs * outputs).map(|_| random() as f32).collect());
            }
            all
        }

        fn values(&self, alpha: f64, ridge: f64) -> Values {
            let weights: Vec<f64> = (0..self.grams.len()).map(|k| 1.0 + k as f64 / 2.0).collect();
            let values = Values::new(weights.len()).with_each("weight", &weights);
            values.with("alpha", alpha).with("ridge", ridge)
        }

        /// The merged weights.
        fn solve(
            &self,
            values: Values,
            rows: usize,
            crew: &Order,
        ) -> Result<Vec<f32>, MethodError> {
            let matrix = Matrix { outputs: self.outputs, inputs: self.inputs };
            let method = RegMean { kernels: Kernels::available().last().unwrap() };
            let unit = UnitView::tensor("w", &[self.outputs as u64, self.inputs as u64], values);
            let mut solver = method.solver(&unit.tensors[0], matrix)?;
            for (model, gram) in self.grams.iter().enumerate() {
                let first = &self.weights[0];
                let deltas: Vec<f32> = match model {
                    0 => Vec::new(),
                    _ => self.weights[model].iter().zip(first).map(|(x, y)| x - y).collect(),
                };
                for (k, part) in gram.chunks(rows * self.inputs).enumerate() {
                    solver.take(model, k * rows, part, &deltas, crew);
                }
                solver.close(model, &deltas, crew)?;
            }
            let solved = solver.solve(crew)?;
            Ok(self.weights[0]
                .iter()
                .zip(solved)
                .map(|(x, y)| (f64::from(*x) + y) as f32)
                .collect())
        }
    }

    #[test]
    fn without_shrinking_it_is_the_least_squares_fit_of_all_outputs() {
        let family = Family::new(3, 21, 5, 60);
        let merged = family.solve(family.values(1.0, 0.0), 8, &Order(0)).unwrap();
        // At the least sum of weighted squares, the residuals are orthogonal to all inputs.
        for o in 0..family.outputs {
            let row = |weights: &[f32]| -> Vec<f64> {
                weights[o * family.inputs..][..family.inputs]
                    .iter()
                    .map(|&x| f64::from(x))
                    .collect()
            };
            let (merged, mut slope) = (row(&merged), vec![0.0; family.inputs]);
            let mut size = 0.0;
            for (k, (seen, weights)) in family.seen.iter().zip(&family.weights).enumerate() {
                let own = row(weights);
                for x in seen.chunks_exact(family.inputs) {
                    let dot = |w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                    let residual = (1.0 + k as f64 / 2.0) * (dot(&merged) - dot(&own));
                    size += residual.abs();
                    slope.iter_mut().zip(x).for_each(|(sum, x)| *sum += residual * x);
                }
            }
            assert!(size > 100.0);
            assert!(slope.iter().all(|sum| sum.abs() < 1e-5 * size), "{slope:?}");
        }
    }

    #[test]
    fn runs_of_rows_and_the_order_of_jobs_change_no_bit() {
        let family = Family::new(3, 131, 21, 50);
        let first = family.solve(family.values(0.9, 1e-6), 4, &Order(0)).unwrap();
        for (rows, order) in [(12, 1), (132, 2), (64, 2)] {
            let other = family.solve(family.values(0.9, 1e-6), rows, &Order(order)).unwrap();
            assert_eq!(first, other);
        }
    }

    #[test]
    fn one_model_and_equal_models_come_out_as_they_are() {
        let one = Family::new(1, 9, 4, 3);
        assert_eq!(one.solve(one.values(0.9, 1e-6), 4, &Order(0)).unwrap(), one.weights[0]);
        let mut equal = Family::new(3, 9, 4, 3);
        equal.weights = vec![equal.weights[0].clone(); 3];
        assert_eq!(equal.solve(equal.values(1.0, 1e-9), 4, &Order(0)).unwrap(), equal.weights[0]);
    }

    #[test]
    fn inputs_that_nobody_has_seen_have_the_mean_and_what_cannot_be_solved_is_said() {
        let mut family = Family::new(2, 6, 3, 20);
        for gram in &mut family.grams {
            for i in 0..6 {
                gram[i * 6 + 2] = 0.0;
                gram[2 * 6 + i] = 0.0;
            }
        }
        let blind = family.solve(family.values(1.0, 0.0), 4, &Order(0)).unwrap();
        let mean = |k: usize| (family.weights[0][k] + 1.5 * family.weights[1][k]) / 2.5;
        for k in [2, 8, 14] {
            assert!((blind[k] - mean(k)).abs() < 1e-6);
        }
        family.grams.iter_mut().for_each(|gram| gram.fill(0.0));
        let nothing = family.solve(family.values(0.9, 1e-6), 4, &Order(0)).unwrap();
        for (k, x) in nothing.iter().enumerate() {
            assert!((x - mean(k)).abs() < 1e-6);
        }
        // Fewer tokens than inputs.
        let few = Family::new(1, 12, 2, 3);
        let singular = few.solve(few.values(1.0, 0.0), 4, &Order(0));
        assert!(matches!(singular, Err(MethodError::Singular { input: 1.. })), "{singular:?}");
        assert!(few.solve(few.values(0.9, 0.0), 4, &Order(0)).is_ok());
        let mut crooked = Family::new(2, 7, 2, 20);
        crooked.grams[1][3 * 7 + 5] += 9000.0;
        let told = crooked.solve(crooked.values(0.9, 1e-6), 4, &Order(0));
        assert_eq!(told, Err(MethodError::NotSymmetric { expert: 2, input: 3 }));
        let values = Values::new(2).with_each("weight", &[0.0, 0.0]);
        assert_eq!(crooked.solve(values, 4, &Order(0)), Err(MethodError::NoWeight));
    }
}
