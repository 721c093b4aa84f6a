//! Whose tokenizer the output has, and which token of each model is which of the output.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::tokenizer::{self, Added, TOKENIZER, Vocabulary};
use crate::plan::Inputs;
use crate::plan::rows::{self, NONE};
use crate::recipe::{Recipe, TokenizerSource};

/// The tokenizer of an output.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tokenizer {
    /// The directory whose files it has, if not the donor's.
    pub(super) root: Option<PathBuf>,
    /// Tokens that it has besides those.
    pub(super) added: Vec<Added>,
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
    let lender = match wanted {
        TokenizerSource::Base | TokenizerSource::Union => base.unwrap_or(inputs.donor),
        TokenizerSource::Model(path) => position(path).unwrap_or(inputs.donor),
    };
    let mut warnings = Vec::new();
    if *wanted == TokenizerSource::Base
        && inputs.catalogs().all(|catalog| !catalog.root.join(TOKENIZER).exists())
    {
        let text = format!("no model has a {TOKENIZER}: rows are merged as they are numbered");
        return Ok((Tokenizer::default(), vec![text]));
    }
    let mut output = need(inputs, lender)?;
    let mut tokenizer = Tokenizer::default();
    if *wanted == TokenizerSource::Union {
        tokenizer.added = unite(inputs, lender, &mut output)?;
    }
    if lender != inputs.donor {
        let id = |at: usize, key: &str| inputs.catalogs[at].config.as_ref()?.get(key).cloned();
        for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            if id(lender, key) != id(inputs.donor, key) {
                warnings.push(format!(
                    "config.json and generation_config.json are those of {}, and {key} of {}, whose tokenizer the \
                     output has, is another: set it right in the output",
                    inputs.labels[inputs.donor], inputs.labels[lender]
                ));
            }
        }
        tokenizer.root = Some(inputs.catalogs[lender].root.clone());
    }
    let end = output.end() as usize;
    let mut same = true;
    let mut known: HashMap<PathBuf, usize> = HashMap::new();
    let (mut numbers, mut taken): (Vec<Vec<u32>>, Vec<Vec<bool>>) = Default::default();
    for (at, catalog) in inputs.catalogs.iter().enumerate() {
        let root = &catalog.root;
        if let Some(&other) = known.get(root) {
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
    if !same {
        inputs.vocabulary = Some(rows::Vocabulary { numbers, taken, base, lender });
    }
    Ok((tokenizer, warnings))
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

/// Gives the added tokens of other models numbers behind those of the output's tokenizer.
fn unite(
    inputs: &Inputs,
    lender: usize,
    output: &mut Vocabulary,
) -> Result<Vec<Added>, CheckpointError> {
    let mut added = Vec::new();
    let mut seen: Vec<&Path> = vec![&inputs.catalogs[lender].root];
    for (catalog, label) in inputs.catalogs.iter().zip(&inputs.labels) {
        if seen.contains(&catalog.root.as_path()) || !tokenizer::has_tokenizer(&catalog.root) {
            continue;
        }
        seen.push(&catalog.root);
        let other = tokenizer::vocabulary(&catalog.root)?.unwrap_or_default();
        let own = |id: u32| other.added.iter().any(|token| token.id == id);
        let strange = other.ids.iter().filter(|(token, _)| !output.ids.contains_key(*token));
        let strange = strange.filter(|&(_, &id)| !own(id)).min_by_key(|&(_, &id)| id);
        if let Some((token, _)) = strange {
            return Err(CheckpointError::File {
                path: catalog.root.join(TOKENIZER),
                reason: format!(
                    "has the token {token:?} in its model, which {} lacks: only added tokens can be united with \
                     another tokenizer; {label} is of another kind, or name a model's tokenizer instead of `union`",
                    inputs.labels[lender]
                ),
            });
        }
        for token in &other.added {
            if output.ids.contains_key(&token.content) {
                continue;
            }
            let id = output.end();
            let mut entry = token.entry.clone();
            entry["id"] = id.into();
            let _new = output.ids.insert(token.content.clone(), id);
            added.push(Added { id, content: token.content.clone(), entry });
        }
    }
    Ok(added)
}
