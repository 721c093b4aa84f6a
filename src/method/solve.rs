//! Methods that solve a system of equations for a whole tensor: the third kind of step beside folds and maps.
//!
//! A solver is told about one model after another, and then solves. It knows no threads: it hands out jobs to a
//! [`Crew`], and its results are the same whoever does them in which order.

use super::MethodError;

/// A piece of work that depends on no other of its batch.
pub type Job<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Does jobs.
pub trait Crew {
    /// Does all of them, in any order, before it returns. After a stop from outside it may leave some: what comes out
    /// then is not used.
    fn run(&self, jobs: Vec<Job<'_>>);
}

/// One tensor as a matrix: each output is a row of as many weights as there are inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
}

/// Solves for one tensor. `deltas` are a model's weights relative to those of the first model, a row for each
/// output; none for the first model itself.
pub trait Solver {
    /// So many rows of a Gram matrix are taken at a time, at most; a multiple of [`crate::kernel::dense::GROUP`].
    fn rows(&self) -> usize;

    /// Takes rows `first..` of the Gram matrix of model `model`, each of `inputs` finite values.
    fn take(&mut self, model: usize, first: usize, gram: &[f32], deltas: &[f32], crew: &dyn Crew);

    /// Takes note that all rows of a model have come.
    ///
    /// # Errors
    /// If they are no Gram matrix.
    fn close(&mut self, model: usize, deltas: &[f32], crew: &dyn Crew) -> Result<(), MethodError>;

    /// Solves, after the last model: what the merged weights are relative to those of the first model, a row for each
    /// output.
    ///
    /// # Errors
    /// If there is no solution.
    fn solve(&mut self, crew: &dyn Crew) -> Result<&[f64], MethodError>;
}
