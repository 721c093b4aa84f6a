//! Slices: an output whose layers are runs of layers of models, one run after the other.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::modules::Kind;
use super::{Model, Parameters, Recipe, RecipeError};
use crate::method::registry::BaseUse;

/// A run of output layers, and what it is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slice {
    /// The base of its sources, if it is another than the recipe's.
    pub base: Option<PathBuf>,
    /// The runs of layers that meet in it, all of the same length, in the order of sums.
    pub sources: Vec<SliceSource>,
    /// Parameters of all its sources.
    pub parameters: Parameters,
    /// Whether it is all of a module, whatever its layers: those of its sources have no meaning then.
    pub whole: bool,
}

/// A run of layers of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceSource {
    /// The model.
    pub path: PathBuf,
    /// Its layers: the first, and the one behind the last.
    pub layers: Range<u32>,
    /// What it sets itself.
    pub parameters: Parameters,
}

impl SliceSource {
    /// Its part in the slice.
    pub(super) fn row(&self) -> Row<'_> {
        Row { path: &self.path, parameters: &self.parameters }
    }
}

/// A part of a model that `modules` names.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Parameters of all its inputs.
    pub parameters: Parameters,
    /// Its slices among the recipe's; none if it stands for whole models.
    pub slices: Range<usize>,
}

/// A model as it takes part in a slice, or in a merge of whole models.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The model.
    pub path: &'a Path,
    /// What it sets itself.
    pub parameters: &'a Parameters,
}

impl Recipe {
    /// The base of a slice.
    pub fn slice_base<'a>(&'a self, slice: &'a Slice) -> Option<&'a Path> {
        slice.base.as_deref().or(self.base.as_deref())
    }

    /// The sources of a slice as methods see them: the base, if experts are seen relative to one, and
    /// the others as they are written.
    pub fn lineup<'a>(
        &'a self,
        slice: &'a Slice,
    ) -> (Option<&'a SliceSource>, impl Iterator<Item = &'a SliceSource>) {
        let base = self.slice_base(slice).filter(|_| self.has_base());
        let is_base = move |source: &&SliceSource| Some(&*source.path) == base;
        let rest = slice.sources.iter().filter(move |source| !is_base(source));
        (slice.sources.iter().find(is_base), rest)
    }

    /// The models that methods see as rows: those of a slice, or all in a merge of whole models.
    pub fn rows(&self, slice: usize) -> Vec<Row<'_>> {
        if let Some(slice) = self.slices.get(slice) {
            let (_, sources) = self.lineup(slice);
            return sources.map(SliceSource::row).collect();
        }
        self.models.iter().map(|m| Row { path: &m.path, parameters: &m.parameters }).collect()
    }

    /// What is said about all models of a slice, the nearest first.
    pub(super) fn levels(&self, number: usize) -> impl Iterator<Item = &Parameters> {
        let slice = self.slices.get(number).map(|slice| &slice.parameters);
        let module = self.module_of(number).map(|module| &module.parameters);
        slice.into_iter().chain(module).chain([&self.parameters])
    }

    /// The module that a slice belongs to, or that stands for whole models.
    fn module_of(&self, slice: usize) -> Option<&Module> {
        let slices = |module: &&Module| module.slices.is_empty() || module.slices.contains(&slice);
        self.modules.iter().find(slices)
    }

    /// The name of the module that a slice belongs to.
    pub(crate) fn module_name(&self, slice: usize) -> &str {
        self.module_of(slice).map_or("", |module| &module.name)
    }

    /// What the modules are, if the recipe tells several apart.
    pub(crate) fn kind(&self) -> Option<Kind> {
        self.modules
            .iter()
            .find(|module| !module.slices.is_empty())
            .and_then(|m| Kind::with(&m.name))
    }

    /// How a slice is called in messages: by its number, counted from 1, or as a module.
    pub(crate) fn slice_name(&self, number: usize) -> String {
        let (Some(module), Some(_)) = (self.module_of(number), self.kind()) else {
            return format!("slice {}", number + 1);
        };
        let name = &module.name;
        if self.slices.get(number).is_some_and(|slice| slice.whole) {
            return format!("module {name}");
        }
        format!("slice {} of {name}", number + 1 - module.slices.start)
    }

    /// The slices that follow each other: all, or those of each module.
    fn stretches(&self) -> Vec<Range<usize>> {
        match self.kind() {
            Some(_) => self.modules.iter().map(|module| module.slices.clone()).collect(),
            None => std::iter::once(0..self.slices.len()).collect(),
        }
    }

    /// The position of a slice's base among [`Recipe::checkpoints`].
    pub fn base_position(&self, path: &Path) -> Option<usize> {
        if self.has_base() && self.base.as_deref() == Some(path) {
            return Some(0);
        }
        self.row_position(path)
    }

    /// The position of a row among [`Recipe::checkpoints`].
    pub fn row_position(&self, path: &Path) -> Option<usize> {
        let at = self.models.iter().position(|model| model.path == path);
        at.map(|at| at + usize::from(self.has_base()))
    }

    /// Sets `models` to all models of the slices, each once; and the base, where it is none to the
    /// method: it lends config and tokenizer. A base that is a row elsewhere is a model, too.
    pub(super) fn gather_models(&mut self) {
        let mut models: Vec<Model> = Vec::new();
        let mut add = |path: &Path| {
            if models.iter().all(|model| model.path != path) {
                models.push(Model::new(path));
            }
        };
        for slice in &self.slices {
            let (base, rows) = self.lineup(slice);
            let own = base.filter(|base| Some(&base.path) != self.base.as_ref());
            own.into_iter().chain(rows).for_each(|source| add(&source.path));
        }
        if let Some(base) = self.base.as_deref().filter(|_| !self.has_base()) {
            add(base);
        }
        self.models = models;
    }

    /// Whether any slice lists its base.
    pub(super) fn a_slice_has_base(&self) -> bool {
        self.slices.iter().any(|slice| {
            let base = self.slice_base(slice);
            slice.sources.iter().any(|source| Some(&*source.path) == base)
        })
    }

    /// Checks that each slice has the models that the method needs.
    pub(super) fn check_slices(&self) -> Result<(), RecipeError> {
        let method = self.method.name;
        if self.coefficients.is_some() {
            let reason = "the file has one number for each model, and slices and modules have models of their own; set \
                          the parameter of each model there";
            return Err(RecipeError::Value {
                key: "coefficients".to_owned(),
                reason: reason.to_owned(),
            });
        }
        for (number, slice) in self.slices.iter().enumerate() {
            let wrong = |reason: String| {
                let key = format!("slices: {}", self.slice_name(number));
                Err(RecipeError::Value { key, reason })
            };
            let (base, rows) = self.lineup(slice);
            if base.is_none() && (self.has_base() || self.method.base == BaseUse::Required) {
                let Some(base) = self.slice_base(slice) else {
                    return wrong(format!("{method} needs a base_model"));
                };
                return wrong(format!(
                    "{method} needs its base_model among its sources; add {} with the layer_range that belongs \
                     to the others'",
                    base.display()
                ));
            }
            let besides = if base.is_some() { " besides the base" } else { "" };
            let count = rows.count();
            if let Some(wanted) = self.method.refusal(count) {
                return wrong(format!("{wanted}{besides}; {count} given"));
            }
            self.check_ranges(number, slice)?;
        }
        let sources = |slice: usize| self.slices.get(slice).map_or(0, |slice| slice.sources.len());
        for Range { start, end } in self.stretches() {
            let (first, last) = (sources(start), sources(end.saturating_sub(1)));
            if last <= first {
                continue;
            }
            let key = format!("slices: {}", self.slice_name(end - 1));
            let reason = format!(
                "it is the last and has {last} sources, and the first slice has {first}: mergekit would make what lies \
                 behind the layers (final norm, head) from the first {first} of them, without a word; end with a \
                 slice of at most {first}, for example of the last layer alone, or give the first slice {last} sources"
            );
            return Err(RecipeError::Value { key, reason });
        }
        Ok(())
    }
}

impl Recipe {
    fn check_ranges(&self, number: usize, slice: &Slice) -> Result<(), RecipeError> {
        if slice.whole {
            return Ok(());
        }
        let wrong = |source: &SliceSource, why: &str| {
            let key = format!("layer_range of {}", source.path.display());
            let Range { start, end } = source.layers;
            let reason = format!("[{start}, {end}] in {} {why}", self.slice_name(number));
            Err(RecipeError::Value { key, reason })
        };
        let Some(first) = slice.sources.first() else { return Ok(()) };
        for (i, source) in slice.sources.iter().enumerate() {
            if source.layers.is_empty() {
                return wrong(
                    source,
                    "holds no layer; it is [FIRST, END], END being the one behind the last",
                );
            }
            if source.layers.len() != first.layers.len() {
                let wanted = first.layers.len();
                return wrong(
                    source,
                    &format!("is not of {wanted} layers like the first source's"),
                );
            }
            if slice.sources[..i].iter().any(|other| other.path == source.path) {
                return wrong(source, "is the second of this model; a slice takes each model once");
            }
        }
        Ok(())
    }
}
