//! The rows of a file of statistics, put together as pictures need them.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use super::sums::{Numbers, Sums, cosine};
use crate::checkpoint::{StatisticsHead, TensorRow};
use crate::plan::{kind, layer, numbered};

/// Rows of a picture; more layers are taken together, as many in each.
const LAYERS: usize = 128;
/// Columns of a picture; the smaller modules are taken together.
const MODULES: usize = 24;
/// Stacks of layers that are shown.
const STACKS: usize = 6;
/// Tensors outside of layers that are shown.
const OUTSIDE: usize = 24;
/// What is left over.
const OTHERS: &str = "others";
/// The module of a tensor that has no name in its layer.
const ITSELF: &str = "(itself)";

/// What a merge has seen, as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// The name of the output's directory.
    pub name: String,
    /// The version of reflow that merged.
    pub reflow: String,
    /// The method, with its parameters.
    pub method: String,
    /// The base, if there is one.
    pub base: Option<String>,
    /// The experts.
    pub experts: Vec<String>,
    /// Tensors that were copied.
    pub copied: u64,
    /// All tensors that were merged.
    pub total: Numbers,
    /// Cosines of the task vectors with one another; that of the merge comes last. None where one of them is zero, or two models
    /// never meet.
    pub cosines: Vec<Vec<Option<f64>>>,
    /// How large the elements of the task vectors are, then those of the merge.
    pub magnitudes: Vec<Magnitudes>,
    /// Layers and their modules, the largest stack first.
    pub stacks: Vec<Stack>,
    /// Tensors that are in no layer.
    pub outside: Vec<Named>,
    /// Tensors in stacks that are not shown.
    pub hidden: u64,
}

/// Elements of one row of magnitudes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Magnitudes {
    /// Elements that are zero.
    pub zeros: u64,
    /// The binary exponent of the first count.
    pub from: i32,
    /// The other elements, by binary exponent.
    pub counts: Vec<u64>,
}

/// Numbers with a name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The numbers.
    #[serde(flatten)]
    pub numbers: Numbers,
}

/// A stack of layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stack {
    /// What the names of its tensors begin with.
    pub name: String,
    /// The modules of its layers.
    pub modules: Vec<String>,
    /// Its layers, or runs of them.
    pub layers: Vec<Layer>,
}

/// A layer, or a run of layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// The first layer.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// All of it.
    pub all: Numbers,
    /// Module by module, where there is one.
    pub modules: Vec<Option<Numbers>>,
}

/// Where a tensor belongs.
enum Place {
    Layer { stack: String, number: u64, module: String },
    Outside(String),
}

impl Place {
    fn of(name: &str) -> Self {
        let (Some(layer), Some((stack, number))) = (layer(name), numbered(name)) else {
            return Place::Outside(name.to_owned());
        };
        let module = kind(name[layer.len()..].trim_start_matches('.'));
        let module = module.strip_suffix(".weight").unwrap_or(&module);
        let module = if module.is_empty() { ITSELF } else { module };
        Place::Layer { stack: stack.to_owned(), number, module: module.to_owned() }
    }
}

/// The names of all tensors, so that it is known what there is room for.
#[derive(Default)]
pub(super) struct Names {
    stacks: HashMap<String, Stacked>,
    outside: HashMap<String, u64>,
}

#[derive(Default)]
struct Stacked {
    elements: u64,
    numbers: BTreeSet<u64>,
    modules: HashMap<String, u64>,
}

impl Names {
    pub(super) fn add(&mut self, row: &TensorRow) {
        let counted = match Place::of(&row.name) {
            Place::Outside(name) => self.outside.entry(name).or_default(),
            Place::Layer { stack, number, module } => {
                let stack = self.stacks.entry(stack).or_default();
                stack.elements += row.elements;
                let _new = stack.numbers.insert(number);
                stack.modules.entry(module).or_default()
            }
        };
        *counted += row.elements;
    }
}

/// The names with the largest numbers, in the order of names; whether others are left over.
fn largest(names: HashMap<String, u64>, most: usize) -> (Vec<String>, bool) {
    let mut all: Vec<(String, u64)> = names.into_iter().collect();
    all.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
    let more = all.len() > most;
    let mut names: Vec<String> = all.into_iter().take(most).map(|(name, _)| name).collect();
    names.sort();
    if more {
        names.push(OTHERS.to_owned());
    }
    (names, more)
}

/// Sums for every cell of the pictures.
pub(super) struct Gathered {
    experts: usize,
    total: Sums,
    products: Vec<f64>,
    /// Zeros and bins of each expert, then of the merge.
    magnitudes: Vec<(u64, Vec<u64>)>,
    least: i32,
    stacks: HashMap<String, Grid>,
    outside: Vec<(String, Sums)>,
    outside_at: HashMap<String, usize>,
    hidden: u64,
}

struct Grid {
    elements: u64,
    /// First and last layer of each row.
    runs: Vec<(u64, u64)>,
    modules: Vec<String>,
    at: HashMap<String, usize>,
    rows: Vec<Sums>,
    cells: Vec<Option<Sums>>,
}

impl Gathered {
    pub(super) fn new(head: &StatisticsHead, names: Names) -> Self {
        let n = head.experts.len();
        let mut stacks: Vec<(String, Stacked)> = names.stacks.into_iter().collect();
        stacks.sort_by(|(a, x), (b, y)| y.elements.cmp(&x.elements).then_with(|| a.cmp(b)));
        let stacks = stacks.into_iter().take(STACKS).map(|(name, it)| {
            let numbers: Vec<u64> = it.numbers.into_iter().collect();
            let each = numbers.len().div_ceil(LAYERS).max(1);
            let runs: Vec<_> =
                numbers.chunks(each).map(|run| (run[0], run[run.len() - 1])).collect();
            let (modules, _) = largest(it.modules, MODULES);
            let grid = Grid {
                elements: it.elements,
                rows: vec![Sums::new(n); runs.len()],
                cells: vec![None; runs.len() * modules.len()],
                at: modules.iter().cloned().zip(0..).collect(),
                runs,
                modules,
            };
            (name, grid)
        });
        let stacks = stacks.collect();
        let (outside, _) = largest(names.outside, OUTSIDE);
        Self {
            experts: n,
            total: Sums::new(n),
            products: vec![0.0; (n + 1) * (n + 2) / 2],
            magnitudes: vec![(0, vec![0; head.bins]); n + 1],
            least: head.least,
            stacks,
            outside_at: outside.iter().cloned().zip(0..).collect(),
            outside: outside.into_iter().map(|name| (name, Sums::new(n))).collect(),
            hidden: 0,
        }
    }

    pub(super) fn add(&mut self, row: &TensorRow) {
        self.total.add(row);
        let n = row.experts();
        let whose = |place: usize| if place == n { self.experts } else { row.model(place) };
        for a in 0..=n {
            for b in a..=n {
                // A model that meets itself is no pair.
                if a == b || whose(a) != whose(b) {
                    let at = triangle(self.experts + 1, whose(a), whose(b));
                    self.products[at] += row.product(a, b);
                }
            }
            let (zeros, bins) = &mut self.magnitudes[whose(a)];
            let told = &row.magnitudes[a];
            *zeros += told.zeros;
            let first = (told.from - self.least).max(0) as usize;
            for (bin, more) in bins.iter_mut().skip(first).zip(&told.counts) {
                *bin += more;
            }
        }
        match Place::of(&row.name) {
            Place::Outside(name) => {
                let at = self.outside_at.get(&name).copied().unwrap_or(OUTSIDE);
                if let Some((_, sums)) = self.outside.get_mut(at) {
                    sums.add(row);
                }
            }
            Place::Layer { stack, number, module } => match self.stacks.get_mut(&stack) {
                None => self.hidden += 1,
                Some(cells) => {
                    let at = cells.runs.partition_point(|&(_, last)| last < number);
                    let Some(sums) = cells.rows.get_mut(at) else { return };
                    sums.add(row);
                    let module = cells.at.get(&module).copied().unwrap_or(MODULES);
                    let cell = cells.cells.get_mut(at * cells.modules.len() + module);
                    if let Some(cell) = cell {
                        cell.get_or_insert_with(|| Sums::new(self.experts)).add(row);
                    }
                }
            },
        }
    }

    pub(super) fn finish(self, name: &str, head: &StatisticsHead) -> Figures {
        let (rows, scores) = (self.experts + 1, head.scores);
        let product = |a, b| self.products[triangle(rows, a, b)];
        let cosines = (0..rows)
            .map(|a| {
                (0..rows).map(|b| cosine(product(a, b), product(a, a), product(b, b))).collect()
            })
            .collect();
        let mut stacks: Vec<(String, Grid)> = self.stacks.into_iter().collect();
        stacks.sort_by(|(a, x), (b, y)| y.elements.cmp(&x.elements).then_with(|| a.cmp(b)));
        Figures {
            name: name.to_owned(),
            reflow: head.reflow.clone(),
            method: head.method.clone(),
            base: head.base.clone(),
            experts: head.experts.clone(),
            copied: head.copied,
            total: self.total.numbers(scores),
            cosines,
            magnitudes: self.magnitudes.into_iter().map(|it| trimmed(it, self.least)).collect(),
            stacks: stacks.into_iter().map(|(name, grid)| grid.finish(name, scores)).collect(),
            outside: (self.outside.into_iter())
                .map(|(name, sums)| Named { name, numbers: sums.numbers(scores) })
                .collect(),
            hidden: self.hidden,
        }
    }
}

impl Grid {
    fn finish(self, name: String, scores: bool) -> Stack {
        let width = self.modules.len().max(1);
        let mut layers = Vec::new();
        for ((&(first, last), sums), cells) in
            self.runs.iter().zip(&self.rows).zip(self.cells.chunks(width))
        {
            let modules = cells.iter().map(|cell| Some(cell.as_ref()?.numbers(scores)));
            let (all, modules) = (sums.numbers(scores), modules.collect());
            layers.push(Layer { first, last, all, modules });
        }
        Stack { name, modules: self.modules, layers }
    }
}

/// The place of a pair in the upper triangle of a matrix.
fn triangle(rows: usize, a: usize, b: usize) -> usize {
    let (a, b) = (a.min(b), a.max(b));
    a * rows - a * a.saturating_sub(1) / 2 + b - a
}

fn trimmed((zeros, bins): (u64, Vec<u64>), least: i32) -> Magnitudes {
    let begin = bins.iter().position(|&count| count > 0).unwrap_or(0);
    let end = bins.iter().rposition(|&count| count > 0).map_or(begin, |last| last + 1);
    Magnitudes { zeros, from: least + begin as i32, counts: bins[begin..end].to_vec() }
}
