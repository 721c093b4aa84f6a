//! `tokenizer` and `tokenizer_source`: what is asked for, and whether it is what the output has anyway.

use super::super::mergekit::{Tokenizer, TokenizerSource};
use super::super::{Recipe, RecipeError, reference};
use super::Reader;
use super::vocabulary::{self, Comparison};

impl Reader<'_> {
    /// A tokenizer is accepted if no row has to move: the donor's, or one whose files are the same.
    /// Returns what looks suspicious.
    pub(super) fn tokenizer(
        &self,
        recipe: &Recipe,
        wanted: &Tokenizer,
    ) -> Result<Vec<String>, RecipeError> {
        let mut warnings = Vec::new();
        // An adapter brings no tokenizer.
        let model_of = |path| reference::split(path).0;
        let Some(donor) = recipe.checkpoints().nth(recipe.donor()) else { return Ok(warnings) };
        let donor = model_of(donor);
        let at = wanted.at;
        let refuse = |what: &str, instead: &str| {
            Err(self.unsupported(format!("{at}: {what}"), instead.to_owned()))
        };
        let base = "write `tokenizer_source: base`, or leave it out, to keep the base's tokenizer";
        if !wanted.tokens.is_empty() {
            return refuse("`tokens` in `tokenizer`", base);
        }
        if wanted.pad_to_multiple_of.is_some() {
            return refuse(
                "`pad_to_multiple_of` in `tokenizer`",
                "leave it out: rows stay as they are",
            );
        }
        let source = match &wanted.source {
            TokenizerSource::Base if recipe.base.is_none() => {
                return Err(self.at(at, "tokenizer: `base` needs a `base_model`"));
            }
            TokenizerSource::Base => donor.to_owned(),
            TokenizerSource::Union if wanted.named => return refuse("the tokenizer `union`", base),
            TokenizerSource::Union => {
                return refuse("`tokenizer` without `source`, which means `union`,", base);
            }
            TokenizerSource::Model(model) => self.model(model)?,
        };
        // Any model with other tokens has its rows in another order, as far as files can tell.
        let source = model_of(&source);
        for model in recipe.checkpoints().map(model_of).chain([source]) {
            if model == donor {
                continue;
            }
            let compared = vocabulary::compare(model, donor);
            let compared = compared.map_err(|error| {
                self.at(
                    at,
                    format!("cannot compare the tokenizers of {}: {error}", model.display()),
                )
            })?;
            let (shown, named) = (model.display(), model == source);
            match compared {
                Comparison::Tokens(file) if named => {
                    let what = format!("the tokenizer of {shown}, whose {file} is not the donor's");
                    return refuse(&format!("{what} ({})", donor.display()), base);
                }
                Comparison::Unknown(which) if named => {
                    let lacking = if which == 0 { model } else { donor };
                    let what = "a tokenizer that cannot be compared: ";
                    let lacking = lacking.display();
                    return refuse(&format!("{what}{lacking} has no file with tokens"), base);
                }
                Comparison::Use(file) if named => warnings.push(format!(
                    "{at}: {file} of {shown} differs; the output has that of {}",
                    donor.display()
                )),
                Comparison::Tokens(file) => warnings.push(format!(
                    "{file} of {shown} differs from that of {}: rows of embeddings are merged as they are \
                     numbered, and none is moved",
                    donor.display()
                )),
                Comparison::Same | Comparison::Use(_) | Comparison::Unknown(_) => {}
            }
        }
        Ok(warnings)
    }
}
