//! Whose tokenizer the output has, and which token of each model is which of the output.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::tokenizer::{self, Added, TOKENIZER, Vocabulary};
use crate::plan::Inputs;
use crate::plan::rows::{self, NONE, Rule};
use crate::recipe::{self, OtherToken, Recipe, TokenRow, TokenRule, TokenizerSource};

/// The tokenizer of an output.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tokenizer {
    /// The directory whose files it has, if not the donor's.
    pub(super) root: Option<PathBuf>,
    /// Tokens that it has besides those.
    pub(super) added: Vec<Added>,
    /// Its chat template, if not the one in these files.
    pub(super) template: Option<String>,
}

/// What the recipe asks for. Tells the inputs which rows move, if any do; returns what looks suspicious, too.
///
/// # Errors
/// If a tokenizer cannot be read, or what is asked for cannot be had.
pub(super) fn settle(
    recipe: &Recipe,
    inputs: &mut Inputs,
) -> Result<(Tokenizer, Vec<String>), CheckpointError> {
    let Some(wanted) = &recipe.tokenizer else { return Ok(Default::default()) };
    let position = |path: &Path| recipe.checkpoints().position(|other| other == path);
    let base = recipe.base.as_deref().and_then(position);
    let lender = match &wanted.source {
        TokenizerSource::Base | TokenizerSource::Union => base.unwrap_or(inputs.donor),
        TokenizerSource::Model(path) => position(path).unwrap_or(inputs.donor),
    };
    let mut warnings = Vec::new();
    let plain = wanted.rules.is_empty() && wanted.multiple.is_none();
    if wanted.source == TokenizerSource::Base
        && plain
        && inputs.catalogs().all(|catalog| !catalog.root.join(TOKENIZER).exists())
    {
        let text = format!("no model has a {TOKENIZER}: rows are merged as they are numbered");
        return Ok((Tokenizer::default(), vec![text]));
    }
    let mut output = need(inputs, lender)?;
    let mut tokenizer = Tokenizer::default();
    if wanted.source == TokenizerSource::Union {
        tokenizer.added = unite(inputs, lender, &mut output, &mut warnings)?;
    }
    let named = wanted.rules.iter().map(|rule| rule.token.as_str());
    tokenizer.added.extend(add(inputs, named, &mut output)?);
    if lender != inputs.donor {
        warnings.extend(other_numbers(inputs, lender));
        tokenizer.root = Some(inputs.catalogs[lender].root.clone());
    }
    let end = output.end() as usize;
    let mut rules = Rules::new(wanted, recipe, &output);
    let mut same = true;
    let mut known: HashMap<PathBuf, usize> = HashMap::new();
    let (mut numbers, mut taken): (Vec<Vec<u32>>, Vec<Vec<bool>>) = Default::default();
    for (at, catalog) in inputs.catalogs.iter().enumerate() {
        let root = &catalog.root;
        if let Some(&other) = known.get(root)
            && !rules.ask(at)
        {
            numbers.push(numbers[other].clone());
            taken.push(taken[other].clone());
            continue;
        }
        let _new = known.insert(root.clone(), at);
        let own = if tokenizer::has_tokenizer(root) {
            need(inputs, at)?
        } else {
            warnings.push(format!(
                "{} has no tokenizer: its rows are taken to be numbered as those of {}",
                inputs.labels[at], inputs.labels[lender]
            ));
            need(inputs, lender)?
        };
        rules.answer(at, &own, &root.join(TOKENIZER))?;
        let mut of = vec![NONE; end];
        for (token, &number) in &output.ids {
            if let (Some(place), Some(&id)) = (of.get_mut(number as usize), own.ids.get(token)) {
                *place = id;
            }
        }
        let mut there = vec![false; own.end() as usize];
        for &id in own.ids.values() {
            there[id as usize] = true;
        }
        same &= own.ids == output.ids;
        numbers.push(of);
        taken.push(there);
    }
    let rules = rules.settled(&numbers).map_err(|token| CheckpointError::File {
        path: inputs.catalogs[lender].root.join(TOKENIZER),
        reason: format!(
            "lacks the token {token:?} of the recipe's `tokens`, as do all other models: give it a `source`, for \
             example {{kind: zero}}"
        ),
    })?;
    if !same || !plain {
        let rows = wanted.multiple.map(|multiple| (end as u64).next_multiple_of(multiple));
        inputs.vocabulary = Some(rows::Vocabulary { numbers, taken, base, lender, rules, rows });
    }
    Ok((tokenizer, warnings))
}

/// What a recipe says about the rows of single tokens, by their numbers in the output.
struct Rules<'a> {
    asked: Vec<(u32, &'a TokenRule)>,
    models: Vec<Option<usize>>,
    answered: BTreeMap<u32, Rule>,
}

impl<'a> Rules<'a> {
    fn new(wanted: &'a recipe::Tokenizer, recipe: &Recipe, output: &Vocabulary) -> Self {
        let number = |rule: &'a TokenRule| Some((*output.ids.get(&rule.token)?, rule));
        let asked: Vec<(u32, &TokenRule)> = wanted.rules.iter().filter_map(number).collect();
        let model = |(_, rule): &(u32, &TokenRule)| match &rule.row {
            Some(TokenRow::Own(path) | TokenRow::Other(path, _)) => {
                recipe.checkpoints().position(|other| other == path)
            }
            Some(TokenRow::Zero) | None => None,
        };
        let models = asked.iter().map(model).collect();
        let zero = |&&(_, rule): &&(u32, &TokenRule)| rule.row == Some(TokenRow::Zero);
        let settled = |&(number, rule): &(u32, &TokenRule)| {
            (number, Rule { token: rule.token.clone(), from: None, force: rule.force })
        };
        let answered = asked.iter().filter(zero).map(settled).collect();
        Self { asked, models, answered }
    }

    /// Whether some rows are those of this checkpoint.
    fn ask(&self, checkpoint: usize) -> bool {
        self.models.contains(&Some(checkpoint))
    }

    /// Finds the rows of this checkpoint, whose tokens are `own`, as read from `path`.
    fn answer(
        &mut self,
        checkpoint: usize,
        own: &Vocabulary,
        path: &Path,
    ) -> Result<(), CheckpointError> {
        let here = self.asked.iter().zip(&self.models).filter(|(_, at)| **at == Some(checkpoint));
        let row_of = |token: &'a String| own.ids.get(token).map(|&id| u64::from(id)).ok_or(token);
        for (&(number, rule), _) in here {
            let found = match &rule.row {
                Some(TokenRow::Own(_)) => row_of(&rule.token),
                Some(TokenRow::Other(_, OtherToken::Text(other))) => row_of(other),
                // Whether there is such a row is seen where the tables are.
                Some(TokenRow::Other(_, OtherToken::Id(id))) => Ok(*id),
                Some(TokenRow::Zero) | None => continue,
            };
            let row = found.map_err(|token| CheckpointError::File {
                path: path.to_owned(),
                reason: format!(
                    "lacks the token {token:?}, whose row the recipe wants for {:?}",
                    rule.token
                ),
            })?;
            let (token, from) = (rule.token.clone(), Some((checkpoint, row)));
            let _new = self.answered.insert(number, Rule { token, from, force: rule.force });
        }
        Ok(())
    }

    /// All rules.
    ///
    /// # Errors
    /// A token that no model has and that has no rule.
    fn settled(self, numbers: &[Vec<u32>]) -> Result<BTreeMap<u32, Rule>, String> {
        let nobody = |number: u32| {
            numbers.iter().all(|of| of.get(number as usize).is_none_or(|&row| row == NONE))
        };
        let mut bare = self.asked.iter().filter(|(number, _)| !self.answered.contains_key(number));
        match bare.find(|(number, _)| nobody(*number)) {
            Some((_, rule)) => Err(rule.token.clone()),
            None => Ok(self.answered),
        }
    }
}

/// Warnings about numbers of special tokens that the donor's config has and the lender's tokenizer has not.
fn other_numbers(inputs: &Inputs, lender: usize) -> Vec<String> {
    let id = |at: usize, key: &str| inputs.catalogs[at].config.as_ref()?.get(key).cloned();
    let keys = ["bos_token_id", "eos_token_id", "pad_token_id"].into_iter();
    keys.filter(|key| id(lender, key) != id(inputs.donor, key))
        .map(|key| {
            format!(
                "config.json and generation_config.json are those of {}, and {key} of {}, whose tokenizer the \
                 output has, is another: set it right in the output",
                inputs.labels[inputs.donor], inputs.labels[lender]
            )
        })
        .collect()
}

/// The tokens of a checkpoint.
fn need(inputs: &Inputs, at: usize) -> Result<Vocabulary, CheckpointError> {
    let root = &inputs.catalogs[at].root;
    tokenizer::vocabulary(root)?.ok_or_else(|| CheckpointError::File {
        path: root.clone(),
        reason: format!(
            "has no {TOKENIZER}, which is needed to know its tokens; save the tokenizer in that form, or leave \
             `tokenizer` out to merge rows as they are numbered"
        ),
    })
}

/// Gives the tokens of other models numbers behind those of the output's tokenizer: first those of their vocabularies,
/// then their added tokens, each in the order of models and numbers.
fn unite(
    inputs: &Inputs,
    lender: usize,
    output: &mut Vocabulary,
    warnings: &mut Vec<String>,
) -> Result<Vec<Added>, CheckpointError> {
    let (mut words, mut added): (Vec<Added>, Vec<Added>) = Default::default();
    let (mut taken, mut outside): (HashSet<String>, HashSet<String>) = Default::default();
    for_others(inputs, Some(lender), |other, label| {
        let own: HashSet<&str> = other.added.iter().map(|token| token.content.as_str()).collect();
        let lacking = other.ids.iter().filter(|(token, _)| {
            !output.ids.contains_key(*token)
                && !own.contains(token.as_str())
                && !taken.contains(*token)
        });
        let mut lacking: Vec<(u32, &str)> =
            lacking.map(|(token, &id)| (id, token.as_str())).collect();
        lacking.sort_unstable();
        if let Some((_, first)) = lacking.first() {
            warnings.push(format!(
                "{} tokens of {label}'s vocabulary, as {first:?}, become added tokens of the output, without their merge \
                 rules: they are found where a text has them letter for letter",
                lacking.len()
            ));
        }
        let new: Vec<String> = lacking.into_iter().map(|(_, token)| token.to_owned()).collect();
        taken.extend(new.iter().cloned());
        words.extend(new.into_iter().map(Added::plain));
        outside.extend(own.into_iter().map(str::to_owned));
        added.extend(other.added);
    })?;
    // What one model has added is no word, though another has it as one.
    words.retain(|word| !outside.contains(&word.content));
    Ok(number(words.into_iter().chain(added), output))
}

/// Gives tokens that the output lacks numbers; each is as the first model that has added it says, else a plain one.
fn add<'a>(
    inputs: &Inputs,
    tokens: impl Iterator<Item = &'a str>,
    output: &mut Vocabulary,
) -> Result<Vec<Added>, CheckpointError> {
    let lacking: Vec<&str> = tokens.filter(|token| !output.ids.contains_key(*token)).collect();
    if lacking.is_empty() {
        return Ok(Vec::new());
    }
    let mut found: Vec<Option<Added>> = vec![None; lacking.len()];
    for_others(inputs, None, |other, _| {
        for (token, found) in lacking.iter().zip(&mut found) {
            let own = || other.added.iter().find(|own| own.content == *token).cloned();
            *found = found.take().or_else(own);
        }
    })?;
    let new = lacking.into_iter().zip(found);
    let new = new.map(|(token, found)| found.unwrap_or_else(|| Added::plain(token.to_owned())));
    Ok(number(new.collect::<Vec<_>>().into_iter(), output))
}

/// Shows the tokenizers of all models but one that have any, each once, one after the other.
fn for_others<'a>(
    inputs: &'a Inputs,
    but: Option<usize>,
    mut see: impl FnMut(Vocabulary, &'a str),
) -> Result<(), CheckpointError> {
    let but = but.and_then(|at| inputs.catalogs.get(at));
    let mut seen: Vec<&Path> = but.map(|catalog| catalog.root.as_path()).into_iter().collect();
    for (catalog, label) in inputs.catalogs.iter().zip(&inputs.labels) {
        if seen.contains(&catalog.root.as_path()) || !tokenizer::has_tokenizer(&catalog.root) {
            continue;
        }
        seen.push(&catalog.root);
        see(tokenizer::vocabulary(&catalog.root)?.unwrap_or_default(), label);
    }
    Ok(())
}

/// Those of the tokens that the output lacks, with numbers behind its own.
fn number(tokens: impl Iterator<Item = Added>, output: &mut Vocabulary) -> Vec<Added> {
    let mut end = output.end();
    let mut added = Vec::new();
    for mut token in tokens {
        if output.ids.contains_key(&token.content) {
            continue;
        }
        token.id = end;
        token.entry["id"] = end.into();
        let _new = output.ids.insert(token.content.clone(), end);
        added.push(token);
        end += 1;
    }
    added
}
