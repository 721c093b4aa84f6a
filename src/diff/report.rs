//! What a comparison has found, in numbers and names.

use std::path::Path;

use serde::Serialize;

use super::pairs::Pairs;
use super::pass::Seen;
use crate::checkpoint::{Catalog, TensorInfo, natural_order};

/// How two models differ.
#[derive(Clone, Debug, Serialize)]
pub struct DiffReport {
    /// The first model.
    pub a: String,
    /// The second model.
    pub b: String,
    /// The base of both.
    pub base: Option<String>,
    /// All tensors that are compared as numbers.
    pub total: Group,
    /// By layer, in the order of names.
    pub layers: Vec<Group>,
    /// By name with numbers replaced by `N`.
    pub kinds: Vec<Group>,
    /// Tensor by tensor; those that differ most come first.
    pub tensors: Vec<Row>,
    /// Tensors that hold no plain floats: only their bytes were compared.
    pub codes: Vec<Code>,
    /// Tensors that only the first model has.
    pub only_a: Vec<Form>,
    /// Tensors that only the second model has.
    pub only_b: Vec<Form>,
    /// Tensors whose shapes, or types that are no plain floats, differ.
    pub unlike: Vec<Unlike>,
    /// Compared tensors that the base does not have in this shape.
    pub without_base: Vec<String>,
    /// Bytes read.
    pub read: u64,
}

/// Several tensors together.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// What they have in common.
    pub name: String,
    /// How many they are.
    pub tensors: u64,
    /// How many of them are equal byte for byte.
    pub equal_tensors: u64,
    /// Their numbers.
    #[serde(flatten)]
    pub numbers: Numbers,
}

/// One tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its type in the first model.
    pub dtype_a: String,
    /// Its type in the second model.
    pub dtype_b: String,
    /// Its shape.
    pub shape: Box<[u64]>,
    /// Whether types and bytes are equal.
    pub equal_bytes: bool,
    /// Its numbers.
    #[serde(flatten)]
    pub numbers: Numbers,
}

/// How values differ.
#[derive(Clone, Debug, Serialize)]
pub struct Numbers {
    /// Elements.
    pub elements: u64,
    /// Elements whose values are equal.
    pub equal_elements: u64,
    /// Elements that are NaN or infinite somewhere: left out of all other numbers.
    pub nonfinite: u64,
    /// ||A||.
    pub norm_a: f64,
    /// ||B||.
    pub norm_b: f64,
    /// ||A - B||.
    pub distance: f64,
    /// ||A - B|| / ||A||; none if ||A|| is zero and the distance is not.
    pub relative: Option<f64>,
    /// Cosine of the angle between A and B; none if one of them is zero.
    pub cosine: Option<f64>,
    /// The largest |A - B| of an element.
    pub max_difference: f32,
    /// The same of the task vectors, where there is a base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskNumbers>,
}

/// How the differences from a base C differ.
#[derive(Clone, Debug, Serialize)]
pub struct TaskNumbers {
    /// Elements.
    pub elements: u64,
    /// Elements that are NaN or infinite somewhere: they count as zero here.
    pub nonfinite: u64,
    /// ||C||.
    pub norm_base: f64,
    /// ||A - C||.
    pub norm_a: f64,
    /// ||B - C||.
    pub norm_b: f64,
    /// ||A - C|| / ||C||.
    pub relative_a: Option<f64>,
    /// ||B - C|| / ||C||.
    pub relative_b: Option<f64>,
    /// Cosine of the angle between A - C and B - C; none if one of them is zero.
    pub cosine: Option<f64>,
    /// Elements that both change.
    pub shared: u64,
    /// Elements that both change, in opposite directions.
    pub conflicts: u64,
    /// Elements of A - C that are zero.
    pub zeros_a: u64,
    /// Elements of B - C that are zero.
    pub zeros_b: u64,
}

/// A tensor of which only the bytes were compared.
#[derive(Clone, Debug, Serialize)]
pub struct Code {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: String,
    /// Whether its bytes are equal.
    pub equal_bytes: bool,
}

/// A tensor's type and shape.
#[derive(Clone, Debug, Serialize)]
pub struct Form {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: String,
    /// Its shape.
    pub shape: Box<[u64]>,
}

/// A tensor that the models hold in forms that cannot be compared.
#[derive(Clone, Debug, Serialize)]
pub struct Unlike {
    /// In the first model.
    pub a: Form,
    /// In the second model.
    pub b: Form,
}

impl Form {
    fn new(tensor: &TensorInfo) -> Self {
        let (name, dtype) = (tensor.name.to_string(), tensor.dtype.to_string());
        Self { name, dtype, shape: tensor.shape.clone() }
    }
}

/// `part / whole`, where that says something; nothing of nothing is no difference.
fn ratio(part: f64, whole: f64) -> Option<f64> {
    if part == 0.0 { Some(0.0) } else { (whole > 0.0).then(|| part / whole) }
}

impl Numbers {
    fn new(seen: &Seen) -> Self {
        let pair = &seen.pair;
        let ([norm_a, norm_b], distance) = (pair.norms(), pair.distance());
        let task = seen.task.as_ref().map(|task| {
            let (base, a, b) = (task.base_norm(), task.norm(0), task.norm(1));
            TaskNumbers {
                elements: task.elements,
                nonfinite: task.nonfinite,
                norm_base: base,
                norm_a: a,
                norm_b: b,
                relative_a: ratio(a, base),
                relative_b: ratio(b, base),
                cosine: task.cosine(0, 1),
                shared: task.shared,
                conflicts: task.clashes,
                zeros_a: task.magnitudes(0).zeros,
                zeros_b: task.magnitudes(1).zeros,
            }
        });
        Self {
            elements: pair.elements,
            equal_elements: pair.equal,
            nonfinite: pair.nonfinite,
            norm_a,
            norm_b,
            distance,
            relative: ratio(distance, norm_a),
            cosine: pair.cosine(),
            max_difference: pair.largest,
            task,
        }
    }

    /// What decides the order: no ratio at all is more than any.
    fn rank(&self) -> f64 {
        self.relative.unwrap_or(f64::INFINITY)
    }
}

/// Sums of several tensors.
#[derive(Clone)]
struct Sum {
    tensors: u64,
    equal: u64,
    seen: Seen,
}

impl Sum {
    fn new() -> Self {
        Self { tensors: 0, equal: 0, seen: Seen::new(false) }
    }

    fn add(&mut self, seen: &Seen) {
        self.tensors += 1;
        self.equal += u64::from(seen.same_bytes);
        self.seen.merge(seen);
    }

    fn group(&self, name: &str) -> Group {
        let (tensors, equal_tensors) = (self.tensors, self.equal);
        Group { name: name.to_owned(), tensors, equal_tensors, numbers: Numbers::new(&self.seen) }
    }
}

/// What tensors have come to so far.
pub(super) struct Found {
    /// By pair: whether the bytes are equal, and the numbers.
    rows: Vec<Option<(bool, Numbers)>>,
    groups: Vec<Sum>,
    total: Sum,
    /// Bytes read.
    pub(super) read: u64,
}

impl Found {
    pub(super) fn new(pairs: &Pairs) -> Self {
        Self {
            rows: vec![None; pairs.both.len()],
            groups: vec![Sum::new(); pairs.groups.len()],
            total: Sum::new(),
            read: 0,
        }
    }

    /// A tensor is seen to its end.
    pub(super) fn tensor(&mut self, pairs: &Pairs, k: usize, seen: &Seen) {
        let pair = &pairs.both[k];
        self.rows[k] = Some((seen.same_bytes, Numbers::new(seen)));
        if !pair.codes {
            pair.groups.iter().for_each(|&group| self.groups[group].add(seen));
            self.total.add(seen);
        }
    }
}

impl DiffReport {
    pub(super) fn new(paths: &[&Path], catalogs: &[Catalog], pairs: &Pairs, found: &Found) -> Self {
        let path = |path: &&Path| path.display().to_string();
        let form = |model: usize, index: usize| Form::new(&catalogs[model].tensors[index]);
        let (mut tensors, mut codes, mut without_base) = (Vec::new(), Vec::new(), Vec::new());
        for (pair, row) in pairs.both.iter().zip(&found.rows) {
            let Some((equal_bytes, numbers)) = row.clone() else { continue };
            let (a, b) = (form(0, pair.index[0]), form(1, pair.index[1]));
            if pair.codes {
                codes.push(Code { name: a.name, dtype: a.dtype, equal_bytes });
                continue;
            }
            if catalogs.len() > 2 && pair.base.is_none() {
                without_base.push(a.name.clone());
            }
            let (dtype_a, dtype_b) = (a.dtype, b.dtype);
            tensors.push(Row {
                name: a.name,
                dtype_a,
                dtype_b,
                shape: a.shape,
                equal_bytes,
                numbers,
            });
        }
        // Stable: ties stay in the order of names.
        tensors.sort_by(|x, y| {
            let order = y.numbers.rank().total_cmp(&x.numbers.rank());
            order
                .then(y.numbers.nonfinite.cmp(&x.numbers.nonfinite))
                .then(x.equal_bytes.cmp(&y.equal_bytes))
        });
        codes.sort_by_key(|code| code.equal_bytes);
        let groups = |kinds: bool| -> Vec<Group> {
            let named = pairs.groups.iter().zip(&found.groups);
            // Groups of codes alone have no numbers.
            let some = named.filter(|((_, is_kind), sum)| *is_kind == kinds && sum.tensors > 0);
            some.map(|((name, _), sum)| sum.group(name)).collect()
        };
        let (mut layers, mut kinds) = (groups(false), groups(true));
        layers.sort_by(|x, y| natural_order(&x.name, &y.name));
        kinds.sort_by(|x, y| y.numbers.rank().total_cmp(&x.numbers.rank()));
        Self {
            a: path(&paths[0]),
            b: path(&paths[1]),
            base: paths.get(2).map(path),
            total: found.total.group("total"),
            layers,
            kinds,
            tensors,
            codes,
            only_a: pairs.only[0].iter().map(|&i| form(0, i)).collect(),
            only_b: pairs.only[1].iter().map(|&i| form(1, i)).collect(),
            unlike: (pairs.unlike.iter())
                .map(|&[i, k]| Unlike { a: form(0, i), b: form(1, k) })
                .collect(),
            without_base,
            read: found.read,
        }
    }
}
