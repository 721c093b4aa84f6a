//! Which tensors of two models are compared, and in which groups.

use std::collections::HashMap;

use crate::checkpoint::{Catalog, TensorInfo};
use crate::kernel::Float;
use crate::plan::{kind, layer};

/// Tensors of two models, by name.
pub(super) struct Pairs {
    /// Those that are compared, in the order of names.
    pub(super) both: Vec<Pair>,
    /// The names of groups: layers, then kinds of modules; and whether it is a kind.
    pub(super) groups: Vec<(String, bool)>,
    /// Those that have no counterpart in the other model, as indices.
    pub(super) only: [Vec<usize>; 2],
    /// Those whose forms do not allow to compare them.
    pub(super) unlike: Vec<[usize; 2]>,
}

/// One tensor in both models.
pub(super) struct Pair {
    /// Its index in each model.
    pub(super) index: [usize; 2],
    /// Its index in the base, if that has it in the same shape.
    pub(super) base: Option<usize>,
    /// Whether only its bytes are compared: it holds integers, booleans or codes.
    pub(super) codes: bool,
    /// Its layer and its kind, as groups.
    pub(super) groups: [usize; 2],
}

/// The name that stands for all tensors outside layers.
const OUTSIDE: &str = "outside layers";

impl Pairs {
    pub(super) fn new(catalogs: &[Catalog]) -> Self {
        let by_name = |catalog: &Catalog| -> HashMap<Box<str>, usize> {
            catalog.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect()
        };
        let (a, b) = (&catalogs[0], &catalogs[1]);
        let (in_a, in_b) = (by_name(a), by_name(b));
        let in_base = catalogs.get(2).map(|base| (base, by_name(base)));
        let missing = |of: &Catalog, other: &HashMap<Box<str>, usize>| -> Vec<usize> {
            (0..of.tensors.len()).filter(|&i| !other.contains_key(&of.tensors[i].name)).collect()
        };
        let only = [missing(a, &in_b), missing(b, &in_a)];
        let (mut both, mut unlike, mut groups) = (Vec::new(), Vec::new(), Groups::default());
        for (i, tensor) in a.tensors.iter().enumerate() {
            let Some(&k) = in_b.get(&tensor.name) else { continue };
            let other = &b.tensors[k];
            let floats = float(tensor).is_some() && float(other).is_some();
            let same_codes = tensor.dtype == other.dtype && tensor.len == other.len;
            if tensor.shape != other.shape || !floats && !same_codes {
                unlike.push([i, k]);
                continue;
            }
            let base = in_base.as_ref().and_then(|(base, names)| {
                let at = *names.get(&tensor.name)?;
                let there = &base.tensors[at];
                (floats && there.shape == tensor.shape && float(there).is_some()).then_some(at)
            });
            let groups = [
                groups.of(layer(&tensor.name).unwrap_or(OUTSIDE).to_owned(), false),
                groups.of(kind(&tensor.name), true),
            ];
            both.push(Pair { index: [i, k], base, codes: !floats, groups });
        }
        Self { both, groups: groups.names, only, unlike }
    }
}

#[derive(Default)]
struct Groups {
    names: Vec<(String, bool)>,
    known: HashMap<(String, bool), usize>,
}

impl Groups {
    fn of(&mut self, name: String, is_kind: bool) -> usize {
        let key = (name, is_kind);
        if let Some(&at) = self.known.get(&key) {
            return at;
        }
        let at = self.names.len();
        self.names.push(key.clone());
        self.known.insert(key, at);
        at
    }
}

/// The type of a tensor of plain floats.
pub(super) fn float(tensor: &TensorInfo) -> Option<Float> {
    tensor.dtype.known().and_then(Float::from_dtype)
}
