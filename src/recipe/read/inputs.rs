//! The inputs of a recipe: whole models, slices, or the one module that holds either.

use std::path::PathBuf;

use super::super::mergekit::{self, Body, Document, Input};
use super::super::parameters::Reach;
use super::super::{Model, Module, Recipe, RecipeError, Slice, SliceSource};
use super::Reader;
use crate::method::registry::{Per, Preset};

impl Reader<'_> {
    /// Fills in what the document's body says.
    pub(super) fn inputs(
        &mut self,
        recipe: &mut Recipe,
        document: &Document,
    ) -> Result<(), RecipeError> {
        match &document.body {
            Body::Models(inputs) => self.models(recipe, inputs),
            Body::Slices(slices) => self.slices(recipe, slices),
            Body::Modules(modules) => self.module(recipe, modules),
        }
    }

    /// The module that stands for the whole model. Which tensors belong to which of several modules is
    /// known from mergekit's table of architectures only.
    fn module(
        &mut self,
        recipe: &mut Recipe,
        modules: &[mergekit::Module],
    ) -> Result<(), RecipeError> {
        let module = match modules {
            [module] => module,
            [] => return Err(self.malformed("`modules` is empty")),
            [_, second, ..] => {
                return Err(self.unsupported(
                    format!("{}: more than one entry in `modules`", second.at),
                    "list the models under `models`, which merges all parts of them, with filters where parameters \
                     differ from part to part, e.g. [{filter: vision_tower, value: 0}, {value: 1}]; `slices` are about \
                     the text model's layers, and the other parts follow its first slice",
                ));
            }
        };
        let parameters = self.parameters(recipe, &module.parameters, Reach::Part)?;
        recipe.module = Some(Module { name: module.name.clone(), parameters });
        match &module.body {
            Body::Models(inputs) => self.models(recipe, inputs),
            Body::Slices(slices) => self.slices(recipe, slices),
            Body::Modules(_) => Err(self.at(module.at, "a module holds `models` or `slices`")),
        }
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
            recipe.slices.push(Slice { base, sources, parameters });
        }
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
        Ok(())
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
        let Some(base) = recipe.base.as_ref().filter(|_| !recipe.has_base()).filter(unlisted)
        else {
            return Ok(());
        };
        let lacks = recipe.method.parameters.iter().find(|parameter| {
            parameter.per == Per::Model
                && parameter.preset == Preset::Required
                && recipe.levels(0).all(|level| level.get(parameter.name).is_none())
        });
        let name = recipe.method.name;
        if let Some(parameter) = lacks {
            return Err(self.malformed(format!(
                "base_model: {name} sees it as one more model, and it has no `{}`; list it under `models` \
                 with one, or leave base_model out",
                parameter.name
            )));
        }
        self.warnings.push(format!(
            "{}: {name} sees the base_model as one more model, the last one",
            self.path.display()
        ));
        recipe.models.push(Model::new(base.clone()));
        Ok(())
    }
}
