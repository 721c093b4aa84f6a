//! `tokenizer` and `tokenizer_source`: what is asked for.

use super::super::mergekit::{Tokenizer, TokenizerSource as Written};
use super::super::{Recipe, RecipeError, TokenizerSource};
use super::Reader;

impl Reader<'_> {
    /// Whose tokenizer the output has.
    pub(super) fn tokenizer(
        &self,
        recipe: &Recipe,
        wanted: &Tokenizer,
    ) -> Result<TokenizerSource, RecipeError> {
        let at = wanted.at;
        let refuse = |what: &str, instead: &str| {
            Err(self.unsupported(format!("{at}: {what}"), instead.to_owned()))
        };
        if !wanted.tokens.is_empty() {
            return refuse(
                "`tokens` in `tokenizer`",
                "leave it out: a token that a model lacks has the row of the base, or else the mean of those that \
                 have it",
            );
        }
        if wanted.pad_to_multiple_of.is_some() {
            return refuse(
                "`pad_to_multiple_of` in `tokenizer`",
                "leave it out: rows of padding stay as they are",
            );
        }
        match &wanted.source {
            Written::Base if recipe.base.is_none() => {
                Err(self.at(at, "tokenizer: `base` needs a `base_model`"))
            }
            Written::Base => Ok(TokenizerSource::Base),
            Written::Union => Ok(TokenizerSource::Union),
            Written::Model(reference) => {
                let path = self.model(reference)?;
                if recipe.checkpoints().any(|other| other == path) {
                    return Ok(TokenizerSource::Model(path));
                }
                let shown = path.display();
                Err(self
                    .at(at, format!("tokenizer: {shown} is none of the models that are merged")))
            }
        }
    }
}
