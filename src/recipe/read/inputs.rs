//! The inputs of a recipe: whole models, slices, or modules that hold either.

use std::path::PathBuf;

use super::super::mergekit::{self, Body, Document, Input};
use super::super::parameters::Reach;
use super::super::{
    Model, Module, Parameters, Recipe, RecipeError, Slice, SliceSource, modules, suggestion,
};
use super::Reader;
use crate::method::registry::{BaseUse, Per, Preset};

impl Reader<'_> {
    /// Fills in what the document's body says.
    pub(super) fn inputs(
        &mut self,
        recipe: &mut Recipe,
        document: &Document,
    ) -> Result<(), RecipeError> {
        match &document.body {
            Body::Models(inputs) => self.models(recipe, inputs),
            Body::Slices(slices) => {
                self.slices(recipe, slices)?;
                self.finish_slices(recipe);
                Ok(())
            }
            Body::Modules(modules) => self.modules(recipe, modules),
        }
    }

    /// Modules: the parts of a model, or the one that stands for the whole of it.
    fn modules(
        &mut self,
        recipe: &mut Recipe,
        modules: &[mergekit::Module],
    ) -> Result<(), RecipeError> {
        let Some(first) = modules.first() else {
            return Err(self.malformed("`modules` is empty"));
        };
        let kind = match modules {
            [only] => self.only_kind(only)?,
            _ => Some(self.kind(first, modules)?),
        };
        for module in modules {
            let parameters = self.parameters(recipe, &module.parameters, Reach::Part)?;
            // What is read below looks its parameters up.
            let name = module.name.clone();
            let slices = recipe.slices.len()..recipe.slices.len();
            recipe.modules.push(Module { name, parameters, slices });
            match (&module.body, kind) {
                (Body::Models(inputs), None) => self.models(recipe, inputs)?,
                (Body::Models(inputs), Some(_)) => self.whole(recipe, inputs)?,
                (Body::Slices(slices), _) => self.slices_of(recipe, module, kind, slices)?,
                (Body::Modules(_), _) => {
                    return Err(self.at(module.at, "a module holds `models` or `slices`"));
                }
            }
            let end = recipe.slices.len();
            if let Some(module) = recipe.modules.last_mut() {
                module.slices.end = end;
            }
        }
        if !recipe.slices.is_empty() {
            self.finish_slices(recipe);
        }
        Ok(())
    }

    /// What the only module is a part of; nothing if it stands for the whole model. In mergekit that is `default`, or whatever
    /// all names of an architecture that it does not know begin with.
    fn only_kind(&mut self, only: &mergekit::Module) -> Result<Option<modules::Kind>, RecipeError> {
        let kind = modules::Kind::with(&only.name);
        if kind.is_none() && only.name != modules::WHOLE {
            let known: Vec<&str> = modules::names().into_iter().chain([modules::WHOLE]).collect();
            if suggestion(&only.name, known.iter().copied()).is_some() {
                return Err(self.unknown(only, &known));
            }
            self.warnings.push(format!(
                "modules: {} is none of the modules that are known ({}), and stands for the whole model; call it {} to \
                 say so",
                only.name,
                modules::names().join(", "),
                modules::WHOLE
            ));
        }
        Ok(kind)
    }

    fn unknown(&self, module: &mergekit::Module, known: &[&str]) -> RecipeError {
        let hint = match suggestion(&module.name, known.iter().copied()) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("known: {}", known.join(", ")),
        };
        self.at(module.at, format!("the module {:?} is unknown; {hint}", module.name))
    }

    /// What modules of these names are parts of.
    fn kind(
        &self,
        first: &mergekit::Module,
        modules: &[mergekit::Module],
    ) -> Result<modules::Kind, RecipeError> {
        let known = modules::names();
        let kind = modules::Kind::with(&first.name).ok_or_else(|| self.unknown(first, &known))?;
        match modules.iter().find(|module| !kind.names().contains(&&*module.name)) {
            Some(module) if known.contains(&&*module.name) => {
                let text = format!("no model has both modules {} and {}", first.name, module.name);
                Err(self.at(module.at, text))
            }
            Some(module) => Err(self.unknown(module, &kind.names())),
            None => Ok(kind),
        }
    }

    /// A module that is made of whole models: the base is the last of them where it is not listed, as in mergekit.
    fn whole(&mut self, recipe: &mut Recipe, inputs: &[Input]) -> Result<(), RecipeError> {
        let mut sources: Vec<SliceSource> = Vec::new();
        for input in inputs {
            let path = self.model(&input.model)?;
            if sources.iter().any(|other| other.path == path) {
                let text = format!("{} is more than once in one module", input.model);
                return Err(self.at(input.model.at, text));
            }
            let parameters = self.parameters(recipe, &input.parameters, Reach::Model)?;
            sources.push(SliceSource { path, layers: 0..0, parameters });
        }
        let unlisted = |base: &&PathBuf| sources.iter().all(|source| source.path != **base);
        if let Some(base) = recipe.base.clone().filter(|base| unlisted(&base)) {
            if recipe.method.base == BaseUse::Model {
                let module = recipe.modules.last().map_or("", |module| &module.name);
                self.one_more(recipe, recipe.slices.len(), &format!(" of module {module}"))?;
            }
            sources.push(SliceSource {
                path: base,
                layers: 0..0,
                parameters: Parameters::default(),
            });
        }
        recipe.slices.push(Slice { sources, whole: true, ..Slice::default() });
        Ok(())
    }

    /// The slices of a module.
    fn slices_of(
        &mut self,
        recipe: &mut Recipe,
        module: &mergekit::Module,
        kind: Option<modules::Kind>,
        slices: &[mergekit::Slice],
    ) -> Result<(), RecipeError> {
        if kind.is_some() && module.name != modules::TEXT {
            return Err(self.unsupported(
                format!("{}: slices of the module {}", module.at, module.name),
                format!("only those of {} may be cut; give this one `models`", modules::TEXT),
            ));
        }
        self.slices(recipe, slices)
    }

    /// Runs of layers. Each names all its sources, the base too, where the method needs one.
    fn slices(
        &mut self,
        recipe: &mut Recipe,
        slices: &[mergekit::Slice],
    ) -> Result<(), RecipeError> {
        for slice in slices {
            let mut sources = Vec::new();
            for source in &slice.sources {
                sources.push(SliceSource {
                    path: self.model(&source.model)?,
                    layers: source.layers.clone(),
                    parameters: self.parameters(recipe, &source.parameters, Reach::Model)?,
                });
            }
            let base = slice.base_model.as_ref().map(|base| self.model(base)).transpose()?;
            let parameters = self.parameters(recipe, &slice.parameters, Reach::Part)?;
            recipe.slices.push(Slice { base, sources, parameters, whole: false });
        }
        Ok(())
    }

    /// What follows from all slices.
    fn finish_slices(&mut self, recipe: &mut Recipe) {
        if recipe.base.is_none() {
            // It lends config and tokenizer.
            recipe.base = recipe.slices.iter().find_map(|slice| slice.base.clone());
        }
        if recipe.has_base() {
            for slice in &recipe.slices {
                let (base, _) = recipe.lineup(slice);
                if let Some(base) = base.filter(|base| !base.parameters.is_empty()) {
                    self.warnings.push(self.without_effect(&base.path.display().to_string()));
                }
            }
        }
        recipe.gather_models();
    }

    fn without_effect(&self, base: &str) -> String {
        format!("{}: {base} is the base, so its parameters have no effect", self.path.display())
    }

    /// The models besides the base, as mergekit counts them: a base that is listed is no expert, and one
    /// that is not listed is one more model, the last, to a method without a base.
    fn models(&mut self, recipe: &mut Recipe, inputs: &[Input]) -> Result<(), RecipeError> {
        for input in inputs {
            let path = self.model(&input.model)?;
            let parameters = self.parameters(recipe, &input.parameters, Reach::Model)?;
            if recipe.has_base() && recipe.base.as_ref() == Some(&path) {
                if !parameters.is_empty() {
                    self.warnings.push(self.without_effect(&input.model.to_string()));
                }
                continue;
            }
            recipe.models.push(Model { path, parameters });
        }
        if recipe.models.is_empty() {
            return Err(self.malformed("`models` lists no model besides the base"));
        }
        let unlisted = |base: &&PathBuf| recipe.models.iter().all(|model| model.path != **base);
        let base = recipe.base.as_ref().filter(|_| !recipe.has_base()).filter(unlisted);
        if let Some(base) = base.cloned() {
            self.one_more(recipe, 0, "")?;
            recipe.models.push(Model::new(base));
        }
        Ok(())
    }

    /// Says that a base that is not listed is one more model of a slice or of whole models.
    fn one_more(&mut self, recipe: &Recipe, slice: usize, whose: &str) -> Result<(), RecipeError> {
        let lacks = recipe.method.parameters.iter().find(|parameter| {
            parameter.per == Per::Model
                && parameter.preset == Preset::Required
                && recipe.levels(slice).all(|level| level.get(parameter.name).is_none())
        });
        let name = recipe.method.name;
        if let Some(parameter) = lacks {
            return Err(self.malformed(format!(
                "base_model: {name} sees it as one more model{whose}, and it has no `{}`; list it under `models` \
                 with one, or leave base_model out",
                parameter.name
            )));
        }
        self.warnings.push(format!(
            "{}: {name} sees the base_model as one more model{whose}, the last one",
            self.path.display()
        ));
        Ok(())
    }
}
