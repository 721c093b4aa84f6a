//! `tokenizer`, `tokenizer_source` and `chat_template`: what is asked for.

use std::path::PathBuf;

use super::super::mergekit::{
    Document, ModelReference, TokenRow as WrittenRow, TokenRule as WrittenRule,
    Tokenizer as Written, TokenizerSource as Source,
};
use super::super::{
    ChatTemplate, Recipe, RecipeError, TokenRow, TokenRule, Tokenizer, TokenizerSource, suggestion,
};
use super::Reader;
use crate::checkpoint::tokenizer::built_in_names;

/// A word for what the models have.
const AUTO: &str = "auto";
/// No template is shorter.
const SHORTEST: usize = 20;
/// No table is padded further.
const LARGEST_MULTIPLE: u64 = 1 << 20;

impl Reader<'_> {
    /// The output's chat template.
    pub(super) fn chat_template(
        &self,
        document: &Document,
    ) -> Result<Option<ChatTemplate>, RecipeError> {
        let Some((text, at)) = &document.chat_template else { return Ok(None) };
        if text == AUTO {
            return Ok(Some(ChatTemplate::Auto));
        }
        if let Some(name) = built_in_names().find(|name| name == text) {
            return Ok(Some(ChatTemplate::Named(name)));
        }
        if text.contains('{') && text.chars().count() >= SHORTEST {
            return Ok(Some(ChatTemplate::Text(text.clone())));
        }
        let known: Vec<&str> = [AUTO].into_iter().chain(built_in_names()).collect();
        let meant = suggestion(text, known.iter().copied());
        let meant = meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
        Err(self.at(
            *at,
            format!(
                "chat_template: {text:?} is neither the name of a template ({}) nor a template in the language of \
                 Jinja{meant}",
                known.join(", ")
            ),
        ))
    }

    /// The output's tokenizer.
    pub(super) fn tokenizer(
        &self,
        recipe: &Recipe,
        wanted: &Written,
    ) -> Result<Tokenizer, RecipeError> {
        let at = wanted.at;
        let source = match &wanted.source {
            Source::Base if recipe.base.is_none() => {
                return Err(self.at(at, "tokenizer: `base` needs a `base_model`"));
            }
            Source::Base => TokenizerSource::Base,
            Source::Union => TokenizerSource::Union,
            Source::Model(reference) => {
                TokenizerSource::Model(self.merged(recipe, reference, "tokenizer")?)
            }
        };
        if wanted.pad_to_multiple_of.is_some_and(|n| !(1..=LARGEST_MULTIPLE).contains(&n)) {
            let text = format!("tokenizer: `pad_to_multiple_of` is from 1 to {LARGEST_MULTIPLE}");
            return Err(self.at(at, text));
        }
        let rules = wanted.tokens.iter().map(|rule| self.rule(recipe, rule));
        let rules: Vec<TokenRule> = rules.collect::<Result<_, _>>()?;
        Ok(Tokenizer { source, rules, multiple: wanted.pad_to_multiple_of })
    }

    fn rule(&self, recipe: &Recipe, rule: &WrittenRule) -> Result<TokenRule, RecipeError> {
        let what = format!("the token {:?}", rule.token);
        let row = match &rule.source {
            None if rule.force => {
                let text = format!("{what}: `force` needs a `source` that all models take");
                return Err(self.at(rule.at, text));
            }
            None => None,
            Some(WrittenRow::Zero) => Some(TokenRow::Zero),
            Some(WrittenRow::Of(model)) => Some(TokenRow::Own(self.merged(recipe, model, &what)?)),
            Some(WrittenRow::Other(model, other)) => {
                Some(TokenRow::Other(self.merged(recipe, model, &what)?, other.clone()))
            }
        };
        if rule.token.is_empty() {
            return Err(self.at(rule.at, "tokenizer: a token in `tokens` is empty"));
        }
        Ok(TokenRule { token: rule.token.clone(), row, force: rule.force })
    }

    /// A model that must be one of those that are merged.
    fn merged(
        &self,
        recipe: &Recipe,
        reference: &ModelReference,
        what: &str,
    ) -> Result<PathBuf, RecipeError> {
        let path = self.model(reference)?;
        if recipe.checkpoints().any(|other| other == path) {
            return Ok(path);
        }
        let shown = path.display();
        Err(self.at(reference.at, format!("{what}: {shown} is none of the models that are merged")))
    }
}
