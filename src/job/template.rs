//! Which chat template the output has.

use crate::checkpoint::CheckpointError;
use crate::checkpoint::tokenizer::{built_in, template};
use crate::plan::Inputs;
use crate::recipe::{ChatTemplate, Recipe};

/// The template that the recipe asks for, and what looks suspicious.
///
/// # Errors
/// If a model's template cannot be read.
pub(super) fn settle(
    recipe: &Recipe,
    inputs: &Inputs,
) -> Result<(Option<String>, Option<String>), CheckpointError> {
    match &recipe.chat_template {
        None => Ok((None, None)),
        Some(ChatTemplate::Text(text)) => Ok((Some(text.clone()), None)),
        Some(ChatTemplate::Named(name)) => Ok((built_in(name).map(str::to_owned), None)),
        Some(ChatTemplate::Auto) => most_common(inputs),
    }
}

/// The template that most models have; of equally many, that of the first model.
fn most_common(inputs: &Inputs) -> Result<(Option<String>, Option<String>), CheckpointError> {
    // In the order of models, so that the first of equals wins.
    let mut counts: Vec<(String, usize, &str)> = Vec::new();
    for (catalog, label) in inputs.catalogs().zip(&inputs.labels) {
        let Some(text) = template(&catalog.root)? else { continue };
        match counts.iter_mut().find(|(known, ..)| *known == text) {
            Some((_, count, _)) => *count += 1,
            None => counts.push((text, 1, label)),
        }
    }
    let most = counts.iter().map(|(_, count, _)| *count).max().unwrap_or(0);
    let tied: Vec<&str> =
        counts.iter().filter(|(_, count, _)| *count == most).map(|(.., label)| *label).collect();
    let warning = match tied[..] {
        [] => Some("chat_template: no model has one, so the output has none".to_owned()),
        [_] => None,
        [first, ..] => Some(format!(
            "chat_template: {} templates are equally frequent; that of {first} is taken",
            tied.len()
        )),
    };
    let first = counts.into_iter().find(|(_, count, _)| *count == most);
    Ok((first.map(|(text, ..)| text), warning))
}
