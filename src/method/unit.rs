//! What a method is told about the elements it merges: tensors, and its parameters in each.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::{Block, MethodError, Scope};

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// One of a few words.
    Word(String),
}

/// The values of all parameters of a method, as they are in one tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Values {
    /// Parameters with one value for all experts.
    pub shared: Vec<(&'static str, Value)>,
    /// Parameters of each expert, in the order of the blocks' rows.
    pub experts: Vec<Vec<(&'static str, Value)>>,
}

impl Values {
    /// Values for `experts` experts, without parameters yet.
    pub fn new(experts: usize) -> Self {
        Self { shared: Vec::new(), experts: vec![Vec::new(); experts] }
    }

    /// Adds a number that all experts share.
    #[must_use]
    pub fn with(mut self, name: &'static str, number: f64) -> Self {
        self.shared.push((name, Value::Number(number)));
        self
    }

    /// Adds a flag.
    #[must_use]
    pub fn with_flag(mut self, name: &'static str, flag: bool) -> Self {
        self.shared.push((name, Value::Flag(flag)));
        self
    }

    /// Adds a word.
    #[must_use]
    pub fn with_word(mut self, name: &'static str, word: &str) -> Self {
        self.shared.push((name, Value::Word(word.to_owned())));
        self
    }

    /// Adds a number for each expert.
    #[must_use]
    pub fn with_each(mut self, name: &'static str, numbers: &[f64]) -> Self {
        for (expert, &number) in self.experts.iter_mut().zip(numbers) {
            expert.push((name, Value::Number(number)));
        }
        self
    }

    /// A number that all experts share; NaN if the method has no such parameter.
    pub fn number(&self, name: &str) -> f64 {
        match find(&self.shared, name) {
            Some(Value::Number(number)) => *number,
            _ => f64::NAN,
        }
    }

    /// A flag; false if the method has no such parameter.
    pub fn flag(&self, name: &str) -> bool {
        matches!(find(&self.shared, name), Some(Value::Flag(true)))
    }

    /// A word; empty if the method has no such parameter.
    pub fn word(&self, name: &str) -> &str {
        match find(&self.shared, name) {
            Some(Value::Word(word)) => word,
            _ => "",
        }
    }

    /// A number of each expert.
    pub fn each(&self, name: &str) -> Vec<f64> {
        let number = |expert: &Vec<(&'static str, Value)>| match find(expert, name) {
            Some(Value::Number(number)) => *number,
            _ => f64::NAN,
        };
        self.experts.iter().map(number).collect()
    }

    /// The numbers of each expert in `f32`, in which merges are computed.
    pub fn each_f32(&self, name: &str) -> Vec<f32> {
        self.each(name).into_iter().map(|number| number as f32).collect()
    }
}

fn find<'a>(values: &'a [(&'static str, Value)], name: &str) -> Option<&'a Value> {
    values.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
}

/// One tensor of a unit.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorView {
    /// Its name in the output.
    pub name: Arc<str>,
    /// Its shape; the rows that all inputs have, if the numbers of rows differ.
    pub shape: Box<[u64]>,
    /// Number of elements.
    pub elements: u64,
    /// Elements of the unit that lie before it.
    pub first: u64,
    /// The parameters in it.
    pub values: Arc<Values>,
}

impl TensorView {
    /// Length of the last dimension; 1 for scalars.
    pub fn row(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1).max(1)
    }
}

/// The elements that are merged together: the whole model, a layer or a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitView {
    /// `model`, a layer's prefix such as `model.layers.3`, or a tensor's name.
    pub name: String,
    /// Number of elements.
    pub elements: u64,
    /// Rows of its blocks.
    pub experts: usize,
    /// Its tensors, in output order.
    pub tensors: Vec<TensorView>,
}

impl UnitView {
    /// A unit of one flat array, for merges in memory.
    pub fn array(name: &str, elements: u64, values: Values) -> Arc<Self> {
        Self::tensor(name, &[elements], values)
    }

    /// A unit of one tensor, for merges in memory.
    pub fn tensor(name: &str, shape: &[u64], values: Values) -> Arc<Self> {
        let elements = shape.iter().product();
        let experts = values.experts.len();
        let tensor = TensorView {
            name: name.into(),
            shape: shape.into(),
            elements,
            first: 0,
            values: Arc::new(values),
        };
        Arc::new(Self { name: name.to_owned(), elements, experts, tensors: vec![tensor] })
    }

    /// Those units of a finer scope that it consists of whose names are wanted, by their first tensors.
    pub fn parts(&self, scope: Scope, wanted: impl Fn(&str) -> bool) -> Vec<Part> {
        let mut parts: Vec<(Self, Vec<usize>)> = Vec::new();
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        for (place, tensor) in self.tensors.iter().enumerate() {
            let name = scope.unit_of(&tensor.name);
            if !wanted(name) {
                continue;
            }
            let at = *by_name.entry(name).or_insert_with(|| {
                let view =
                    Self { name: name.to_owned(), elements: 0, tensors: Vec::new(), ..*self };
                parts.push((view, Vec::new()));
                parts.len() - 1
            });
            let (view, places) = &mut parts[at];
            view.tensors.push(TensorView { first: view.elements, ..tensor.clone() });
            view.elements += tensor.elements;
            places.push(place);
        }
        let part = |(view, places)| Part { view: Arc::new(view), places };
        parts.into_iter().map(part).collect()
    }

    /// Elements of the unit that lie before a block.
    pub fn place(&self, block: &Block<'_>) -> u64 {
        self.tensors.get(block.tensor).map_or(0, |tensor| tensor.first) + block.first
    }

    /// Something that follows from the parameters, for each tensor. Computed once for all tensors that
    /// have the same parameters.
    pub fn each_tensor<T>(&self, mut derive: impl FnMut(&Values) -> T) -> PerTensor<T> {
        let mut seen: HashMap<*const Values, usize> = HashMap::new();
        let mut per = PerTensor { which: Vec::with_capacity(self.tensors.len()), all: Vec::new() };
        for tensor in &self.tensors {
            let at = *seen.entry(Arc::as_ptr(&tensor.values)).or_insert_with(|| {
                per.all.push(derive(&tensor.values));
                per.all.len() - 1
            });
            per.which.push(at as u32);
        }
        per
    }

    /// A value that must be the same in all tensors of the unit, since one statistic is taken over all.
    ///
    /// # Errors
    /// [`MethodError::Varies`] if it is not.
    pub fn uniform<T: PartialEq>(
        &self,
        parameter: &'static str,
        derive: impl FnMut(&Values) -> T,
    ) -> Result<Option<T>, MethodError> {
        let mut all = self.each_tensor(derive).all.into_iter();
        let first = all.next();
        if all.any(|other| Some(&other) != first.as_ref()) {
            return Err(MethodError::Varies { parameter });
        }
        Ok(first)
    }
}

/// A unit within a unit of a coarser scope.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// What methods are told about it.
    pub view: Arc<UnitView>,
    /// Where its tensors stand in the other unit, in ascending order.
    pub places: Vec<usize>,
}

impl Part {
    /// From its first element in the other unit up to behind its last.
    pub fn reach(&self, of: &UnitView) -> Range<u64> {
        let mut tensors = self.places.iter().filter_map(|&place| of.tensors.get(place));
        let (first, last) = (tensors.clone().next(), tensors.next_back());
        let end = last.map_or(0, |tensor| tensor.first + tensor.elements);
        first.map_or(0, |tensor| tensor.first)..end
    }

    /// Elements of the part among the first so many of the other unit.
    pub fn before(&self, of: &UnitView, elements: u64) -> u64 {
        let tensors = self.places.iter().filter_map(|&place| of.tensors.get(place));
        tensors.map(|tensor| elements.saturating_sub(tensor.first).min(tensor.elements)).sum()
    }
}

/// A value for each tensor of a unit, equal ones stored once.
#[derive(Clone, Debug)]
pub struct PerTensor<T> {
    which: Vec<u32>,
    all: Vec<T>,
}

impl<T> PerTensor<T> {
    /// The value for a tensor, by its place in the unit.
    pub fn get(&self, tensor: usize) -> &T {
        &self.all[self.which(tensor)]
    }

    /// Which of the distinct values it is.
    pub fn which(&self, tensor: usize) -> usize {
        self.which[tensor] as usize
    }

    /// The distinct values.
    pub fn all(&self) -> &[T] {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(tensors: &[(&str, u64)]) -> UnitView {
        let mut unit =
            UnitView { name: "model".into(), elements: 0, experts: 2, tensors: Vec::new() };
        for &(name, elements) in tensors {
            let values = Arc::new(Values::new(2));
            let (name, shape, first) = (name.into(), [elements].into(), unit.elements);
            unit.tensors.push(TensorView { name, shape, elements, first, values });
            unit.elements += elements;
        }
        unit
    }

    #[test]
    fn a_unit_consists_of_units_of_every_finer_scope() {
        let model = unit(&[("l.0.n", 2), ("l.1.n", 3), ("e", 10), ("l.0.a", 4), ("l.1.a", 5)]);
        let shown = |scope| {
            let shown = |part: Part| {
                let firsts: Vec<u64> = part.view.tensors.iter().map(|t| t.first).collect();
                let before = [0, 4, 12, 17, 99].map(|elements| part.before(&model, elements));
                let reach = part.reach(&model);
                (part.view.name.clone(), part.view.elements, part.places, firsts, reach, before)
            };
            model.parts(scope, |_| true).into_iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(
            shown(Scope::Layer),
            [
                ("l.0".to_owned(), 6, vec![0, 3], vec![0, 2], 0..19, [0, 2, 2, 4, 6]),
                ("l.1".to_owned(), 8, vec![1, 4], vec![0, 3], 2..24, [0, 2, 3, 3, 8]),
                ("e".to_owned(), 10, vec![2], vec![0], 5..15, [0, 0, 7, 10, 10]),
            ]
        );
        assert_eq!(shown(Scope::Tensor).len(), 5);
        assert_eq!(shown(Scope::Model).len(), 1);
        let layer = &model.parts(Scope::Layer, |name| name == "l.1")[0].view;
        let tensors = layer.parts(Scope::Tensor, |_| true);
        assert_eq!((&*tensors[1].view.name, tensors[1].reach(layer)), ("l.1.a", 3..8));
    }
}
